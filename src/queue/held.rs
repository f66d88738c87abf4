//! What a worker holds, and its slots. An execution always has a slot. A rehearsal has one too, so that concurrency
//! and backlog are rehearsed, but gives it up when an execution wants it: occupancy is fidelity, never safety.

use std::collections::{HashMap, HashSet};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tracing::{Span, info_span};
use uuid::Uuid;

use super::storage::Claimed;
use super::tasks::Place;
use crate::telemetry;

/// What a worker may claim now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// At most so many; 0: nothing.
    pub limit: usize,
    /// Executions only, each in the place of a rehearsal.
    pub executions_only: bool,
}

/// A rehearsal that waits for the real run.
#[derive(Debug, Clone)]
pub(super) struct Rehearsing {
    /// What it rehearses.
    pub claimed: Claimed,
    /// When it was claimed, by this process's clock, which never jumps.
    pub since: Instant,
    occupies: bool,
    /// Its real run is away with its runner, and holds no slot either.
    aside: bool,
    /// Its end is on its way to the database.
    reported: bool,
    /// Its place in the trace; it ends when it is let go of.
    _span: Span,
}

impl Rehearsing {
    /// How long ago the interaction was first due.
    pub fn age(&self) -> Duration {
        self.claimed.age + self.since.elapsed()
    }
}

/// One attempt at one interaction. The end of an attempt must not touch a later one that this worker holds as well.
pub(super) type Key = (Uuid, i32);

/// How an execution is told to stop. Cheap to clone, and cheap where nobody tells anything.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    /// Bits of [`Stop`].
    what: AtomicU8,
    /// In which words somebody asked to cancel it.
    wish: OnceLock<String>,
    bell: Notify,
}

/// Why an execution must stop, the weightiest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// The lease was lost: whatever comes of it is late.
    Lost = 1,
    /// Somebody asked to cancel it: the attempt ends so, and no other follows.
    CalledOff = 2,
    /// The worker shuts down: the attempt fails, and another follows.
    Interrupted = 4,
}

impl Signals {
    /// Tells it to stop. True the first time that it is told this.
    pub fn tell(&self, stop: Stop) -> bool {
        let before = self.0.what.fetch_or(stop as u8, Ordering::AcqRel);
        self.0.bell.notify_waiters();
        before & stop as u8 == 0
    }

    /// Tells it that somebody asked to cancel it. True the first time.
    pub fn call_off(&self, wish: &str) -> bool {
        // The words first: who hears of it reads them.
        let first = self.0.wish.set(wish.to_owned()).is_ok();
        self.tell(Stop::CalledOff);
        first
    }

    /// In which words somebody asked to cancel it.
    pub fn wish(&self) -> Option<&String> {
        self.0.wish.get()
    }

    /// Whether it was told this.
    pub fn is_told(&self, stop: Stop) -> bool {
        self.0.what.load(Ordering::Acquire) & stop as u8 != 0
    }

    /// The weightiest that it was told.
    pub fn told(&self) -> Option<Stop> {
        [Stop::Lost, Stop::CalledOff, Stop::Interrupted].into_iter().find(|stop| self.is_told(*stop))
    }

    /// Waits until it is told anything.
    pub async fn stopped(&self) -> Stop {
        self.until(|| self.told()).await
    }

    /// Waits until it is told this.
    pub async fn hears(&self, stop: Stop) {
        self.until(|| self.is_told(stop).then_some(())).await
    }

    async fn until<T>(&self, seen: impl Fn() -> Option<T>) -> T {
        loop {
            let mut rung = pin!(self.0.bell.notified());
            // From here on no ring is missed.
            rung.as_mut().enable();
            if let Some(seen) = seen() {
                return seen;
            }
            rung.await;
        }
    }

    /// Runs `work` until it ends or is told to stop; nothing of it runs after that.
    pub async fn unless_told<T>(&self, work: impl Future<Output = T>) -> Result<T, Stop> {
        let mut work = pin!(work);
        // Most work never waits, so it comes before the bell.
        let work = poll_fn(|context| match self.told() {
            Some(_) => Poll::Pending,
            None => work.as_mut().poll(context),
        });
        tokio::select! {
            biased;
            done = work => Ok(done),
            stop = self.stopped() => Err(stop),
        }
    }
}

struct Execution {
    signals: Signals,
    alone: bool,
    /// Where its row is, of a task: its lease is its worker's.
    task: Option<Place>,
    /// Its end is on its way to the database.
    reported: bool,
}

#[derive(Default)]
struct Inner {
    executions: HashMap<Key, Execution>,
    rehearsals: HashMap<Key, Rehearsing>,
}

/// Everything that one worker holds.
pub(super) struct Held {
    slots: usize,
    inner: Mutex<Inner>,
}

/// So many rehearsals a slot may be waiting, with or without one, before no more are claimed.
const REHEARSALS_PER_SLOT: usize = 8;
/// So many rehearsals of runs that are away with their runners don't count for that.
const ASIDE: usize = 1_000;

impl Held {
    pub fn new(slots: usize) -> Self {
        Self { slots, inner: Mutex::default() }
    }

    /// What there is room for.
    pub fn room(&self) -> Room {
        let inner = self.lock();
        let occupying = inner.rehearsals.values().filter(|r| r.occupies).count();
        let free = self.slots.saturating_sub(inner.executions.len() + occupying);
        let aside = inner.rehearsals.values().filter(|r| r.aside).count().min(ASIDE);
        let rehearsals = (self.slots * REHEARSALS_PER_SLOT).saturating_sub(inner.rehearsals.len() - aside);
        match free.min(rehearsals) {
            0 => Room { limit: self.slots.saturating_sub(inner.executions.len()), executions_only: true },
            limit => Room { limit, executions_only: false },
        }
    }

    /// Takes an execution in, in the place of a rehearsal where there is no free slot.
    pub fn execute(&self, key: Key, alone: bool, task: Option<Place>) -> Signals {
        let mut inner = self.lock();
        let signals = Signals::default();
        inner.executions.insert(key, Execution { signals: signals.clone(), alone, task, reported: false });
        if inner.rehearsals.is_empty() {
            return signals;
        }
        let occupying = inner.rehearsals.values().filter(|r| r.occupies).count();
        if inner.executions.len() + occupying > self.slots
            && let Some(oldest) = inner.rehearsals.values_mut().filter(|r| r.occupies).min_by_key(|r| r.since)
        {
            oldest.occupies = false;
        }
        signals
    }

    /// Takes a rehearsal in.
    pub fn rehearse(&self, claimed: Claimed) {
        let envelope = &claimed.envelope;
        let span = info_span!("rehearse", id = %envelope.id, account = envelope.account, kind = envelope.kind,
            side = "postgres", fence = %claimed.fence);
        telemetry::join(&span, envelope.id);
        let rehearsing =
            Rehearsing { since: Instant::now(), occupies: true, aside: false, reported: false, _span: span, claimed };
        self.lock().rehearsals.insert(rehearsing.claimed.key(), rehearsing);
    }

    /// Has the rehearsals of `ids` hold no slot, because their real runs hold none; how many of them did.
    pub fn step_aside(&self, ids: &HashSet<Uuid>) -> usize {
        let mut inner = self.lock();
        let of_them = inner.rehearsals.values_mut().filter(|r| !r.aside && ids.contains(&r.claimed.envelope.id));
        of_them.map(|rehearsal| (rehearsal.occupies, rehearsal.aside) = (false, true)).count()
    }

    /// Lets go of whatever `key` is.
    pub fn drop(&self, key: Key) {
        let mut inner = self.lock();
        inner.executions.remove(&key);
        inner.rehearsals.remove(&key);
    }

    /// Everything held but tasks, for heartbeats.
    pub fn keys(&self) -> Vec<Key> {
        let inner = self.lock();
        let executions = inner.executions.iter().filter(|(_, held)| held.task.is_none()).map(|(key, _)| key);
        executions.chain(inner.rehearsals.keys()).copied().collect()
    }

    /// The tasks held, and where their rows are.
    pub fn tasks(&self) -> Vec<(Uuid, i32, Place)> {
        let inner = self.lock();
        inner.executions.iter().filter_map(|(key, held)| Some((key.0, key.1, held.task?))).collect()
    }

    /// Gives up what another has taken over.
    pub fn lose(&self, key: Key) -> bool {
        let mut inner = self.lock();
        // Whose end is on its way may be gone from the database because it has arrived.
        if inner.executions.get(&key).is_some_and(|e| e.reported)
            || inner.rehearsals.get(&key).is_some_and(|r| r.reported)
        {
            return false;
        }
        let rehearsal = inner.rehearsals.remove(&key).is_some();
        let execution = inner.executions.remove(&key);
        if let Some(execution) = &execution {
            execution.signals.tell(Stop::Lost);
        }
        rehearsal || execution.is_some()
    }

    /// Tells what must not run on once its lease may have run out, because the next of its series, or of those that it excludes, could
    /// start beside it.
    /// Each ends as a failed attempt and is held until that is known to the database; how many there were.
    pub fn interrupt_alone(&self) -> usize {
        let inner = self.lock();
        let alone = inner.executions.values().filter(|e| e.alone);
        alone.filter(|execution| execution.signals.tell(Stop::Interrupted)).count()
    }

    /// Tells an execution that somebody asked to cancel it; one whose end is known is past that. True the first time.
    pub fn call_off(&self, key: Key, wish: &str) -> bool {
        let inner = self.lock();
        inner.executions.get(&key).is_some_and(|execution| !execution.reported && execution.signals.call_off(wish))
    }

    /// The rehearsals whose end is not known yet.
    pub fn rehearsals(&self) -> Vec<Rehearsing> {
        self.lock().rehearsals.values().filter(|r| !r.reported).cloned().collect()
    }

    /// The end is known; the slot is kept until the database knows it too.
    pub fn reported(&self, key: Key) {
        let mut inner = self.lock();
        if let Some(rehearsal) = inner.rehearsals.get_mut(&key) {
            rehearsal.reported = true;
        }
        if let Some(execution) = inner.executions.get_mut(&key) {
            execution.reported = true;
        }
    }

    /// Tells every execution to stop; how many there were.
    pub fn interrupt(&self) -> usize {
        let inner = self.lock();
        inner.executions.values().for_each(|execution| _ = execution.signals.tell(Stop::Interrupted));
        inner.executions.len()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::{Envelope, Fence, Payload, Side, interaction_id};
    use chrono::Utc;

    fn claimed(n: usize) -> Claimed {
        let payload = Payload::parse("1".into()).unwrap();
        let envelope = Envelope {
            id: interaction_id("a", &n.to_string()),
            account: "a".into(),
            kind: "k".into(),
            key: n.to_string(),
            series: None,
            series_no: None,
            group: None,
            run_at: None,
            policy: Default::default(),
            owner: Side::Temporal,
            epoch: 1,
            pinned: true,
            cancelled: false,
            payload_hash: String::new(),
            behind: Vec::new(),
            payload,
        };
        let now = Utc::now();
        let fence = Fence { epoch: 1, attempt: 1 };
        Claimed {
            envelope,
            fence,
            rehearsal: true,
            due_at: now,
            started_at: now,
            age: Duration::ZERO,
            called_off: None,
            exclusive: false,
            task: None,
            lapsed: None,
        }
    }

    #[test]
    fn rehearsals_fill_the_slots_and_then_only_executions_fit() {
        let held = Held::new(2);
        held.rehearse(claimed(1));
        assert_eq!(held.room(), Room { limit: 1, executions_only: false });
        held.rehearse(claimed(2));
        assert_eq!(held.room(), Room { limit: 2, executions_only: true });
    }

    #[test]
    fn an_execution_takes_the_place_of_a_rehearsal() {
        let held = Held::new(2);
        held.rehearse(claimed(1));
        held.rehearse(claimed(2));
        held.execute((Uuid::from_u128(1), 1), false, None);
        held.execute((Uuid::from_u128(2), 1), false, None);
        assert_eq!(held.room().limit, 0);
        assert_eq!(held.rehearsals().len(), 2, "both still wait for their real runs");
        held.drop((Uuid::from_u128(1), 1));
        assert_eq!(held.room(), Room { limit: 1, executions_only: false });
    }

    #[test]
    fn waiting_rehearsals_are_bounded() {
        let held = Held::new(1);
        for n in 0..REHEARSALS_PER_SLOT {
            held.rehearse(claimed(n));
            held.execute((Uuid::from_u128(n as u128), 1), false, None);
            held.drop((Uuid::from_u128(n as u128), 1));
        }
        assert_eq!(held.room(), Room { limit: 1, executions_only: true });
    }

    #[test]
    fn rehearsals_of_what_is_away_hold_no_slot_and_leave_room_for_others() {
        let held = Held::new(1);
        for n in 0..REHEARSALS_PER_SLOT + 1 {
            held.rehearse(claimed(n));
            assert_eq!(held.room(), Room { limit: 1, executions_only: true });
            assert_eq!(held.step_aside(&HashSet::from([interaction_id("a", &n.to_string())])), 1);
            assert_eq!(held.room(), Room { limit: 1, executions_only: false });
        }
        assert_eq!(held.rehearsals().len(), REHEARSALS_PER_SLOT + 1, "all still wait for their real runs");
    }

    #[tokio::test]
    async fn work_that_is_told_to_stop_runs_no_further_and_hears_the_weightiest_reason() {
        let signals = Signals::default();
        assert_eq!(signals.unless_told(async { 7 }).await, Ok(7));
        let waits = tokio::spawn({
            let signals = signals.clone();
            async move { signals.unless_told(std::future::pending::<()>()).await }
        });
        tokio::task::yield_now().await;
        assert!(signals.tell(Stop::Interrupted) && !signals.tell(Stop::Interrupted));
        assert_eq!(waits.await.unwrap(), Err(Stop::Interrupted));
        signals.tell(Stop::Lost);
        assert_eq!(signals.unless_told(async { unreachable!("it was told before") }).await, Err::<(), _>(Stop::Lost));
        tokio::time::timeout(Duration::from_secs(5), signals.hears(Stop::Interrupted)).await.unwrap();
    }

    #[test]
    fn a_lost_execution_is_told() {
        let held = Held::new(1);
        let signals = held.execute((Uuid::nil(), 1), false, None);
        assert!(held.lose((Uuid::nil(), 1)) && signals.told() == Some(Stop::Lost));
        assert!(!held.lose((Uuid::nil(), 1)));
    }

    #[test]
    fn an_execution_is_called_off_once_and_not_after_its_end() {
        let held = Held::new(1);
        let signals = held.execute((Uuid::nil(), 1), false, None);
        assert!(held.call_off((Uuid::nil(), 1), "so be it") && signals.told() == Some(Stop::CalledOff));
        assert_eq!(signals.wish().unwrap(), "so be it");
        assert!(!held.call_off((Uuid::nil(), 1), "once more"));
        held.execute((Uuid::nil(), 2), false, None);
        held.reported((Uuid::nil(), 2));
        assert!(!held.call_off((Uuid::nil(), 2), "too late"));
    }

    #[test]
    fn the_end_of_an_attempt_does_not_touch_a_later_one() {
        let held = Held::new(1);
        let second = held.execute((Uuid::nil(), 2), true, None);
        held.drop((Uuid::nil(), 1));
        assert!(!held.lose((Uuid::nil(), 1)) && second.told().is_none());
    }

    #[test]
    fn a_member_of_a_series_is_interrupted_once_and_stays_held() {
        let held = Held::new(2);
        let member = held.execute((Uuid::from_u128(1), 1), true, None);
        let single = held.execute((Uuid::from_u128(2), 1), false, None);
        assert_eq!((held.interrupt_alone(), held.interrupt_alone()), (1, 0));
        assert!(member.told() == Some(Stop::Interrupted) && single.told().is_none());
        assert_eq!(held.keys().len(), 2);
    }
}
