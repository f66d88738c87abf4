//! What a worker holds, and its slots. An execution always has a slot. A rehearsal has one too, so that concurrency
//! and backlog are rehearsed, but gives it up when an execution wants it: occupancy is fidelity, never safety.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::storage::Claimed;

/// What a worker may claim now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// At most so many; 0: nothing.
    pub limit: usize,
    /// Executions only, each in the place of a rehearsal.
    pub executions_only: bool,
}

/// One attempt at an interaction. The next attempt may be claimed before the end of this one is settled here.
pub(super) type Key = (Uuid, i32);

/// A rehearsal that waits for the real run.
#[derive(Debug, Clone)]
pub(super) struct Rehearsing {
    /// What it rehearses.
    pub claimed: Claimed,
    /// When it was claimed, by this process's clock, which never jumps.
    pub since: Instant,
    occupies: bool,
    /// Its end is on its way to the database.
    reported: bool,
}

impl Rehearsing {
    /// How long ago the interaction was first due.
    pub fn age(&self) -> Duration {
        self.claimed.age + self.since.elapsed()
    }
}

/// How an execution is told to stop.
#[derive(Debug, Clone, Default)]
pub(super) struct Signals {
    /// The lease was lost: whatever comes of it is late.
    pub lost: CancellationToken,
    /// The worker shuts down: the attempt fails, and another follows.
    pub interrupted: CancellationToken,
}

#[derive(Default)]
struct Execution {
    signals: Signals,
    /// Its end is on its way to the database.
    ending: bool,
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

impl Held {
    pub fn new(slots: usize) -> Self {
        Self { slots, inner: Mutex::default() }
    }

    /// What there is room for.
    pub fn room(&self) -> Room {
        let inner = self.lock();
        let occupying = inner.rehearsals.values().filter(|r| r.occupies).count();
        let free = self.slots.saturating_sub(inner.executions.len() + occupying);
        let rehearsals = (self.slots * REHEARSALS_PER_SLOT).saturating_sub(inner.rehearsals.len());
        match free.min(rehearsals) {
            0 => Room { limit: self.slots.saturating_sub(inner.executions.len()), executions_only: true },
            limit => Room { limit, executions_only: false },
        }
    }

    /// Takes an execution in, in the place of a rehearsal where there is no free slot.
    pub fn execute(&self, key: Key) -> Signals {
        let mut inner = self.lock();
        let signals = Signals::default();
        inner.executions.insert(key, Execution { signals: signals.clone(), ending: false });
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
        let rehearsing = Rehearsing { since: Instant::now(), occupies: true, reported: false, claimed };
        self.lock().rehearsals.insert(rehearsing.claimed.key(), rehearsing);
    }

    /// Lets go of whatever `key` is.
    pub fn drop(&self, key: Key) {
        let mut inner = self.lock();
        inner.executions.remove(&key);
        inner.rehearsals.remove(&key);
    }

    /// Everything held, for heartbeats: an end on its way still needs its lease.
    pub fn keys(&self) -> Vec<Key> {
        let inner = self.lock();
        inner.executions.keys().chain(inner.rehearsals.keys()).copied().collect()
    }

    /// Gives up what another has taken over. What is ending is left alone: either its end has been taken, or it is
    /// refused as late.
    pub fn lose(&self, key: Key) -> bool {
        let mut inner = self.lock();
        let ending = inner.executions.get(&key).is_some_and(|e| e.ending);
        if ending || inner.rehearsals.get(&key).is_some_and(|r| r.reported) {
            return false;
        }
        let execution = inner.executions.remove(&key);
        if let Some(execution) = &execution {
            execution.signals.lost.cancel();
        }
        inner.rehearsals.remove(&key).is_some() || execution.is_some()
    }

    /// The end of an execution is known; it keeps its slot until the database knows it too.
    pub fn ending(&self, key: Key) {
        if let Some(execution) = self.lock().executions.get_mut(&key) {
            execution.ending = true;
        }
    }

    /// The rehearsals whose end is not known yet.
    pub fn rehearsals(&self) -> Vec<Rehearsing> {
        self.lock().rehearsals.values().filter(|r| !r.reported).cloned().collect()
    }

    /// The end of a rehearsal is known; it keeps its slot until the database knows it too.
    pub fn reported(&self, key: Key) {
        if let Some(rehearsal) = self.lock().rehearsals.get_mut(&key) {
            rehearsal.reported = true;
        }
    }

    /// Whether `key` is rehearsed here.
    pub fn is_rehearsal(&self, key: Key) -> bool {
        self.lock().rehearsals.contains_key(&key)
    }

    /// Tells every execution to stop; how many there were.
    pub fn interrupt(&self) -> usize {
        let inner = self.lock();
        inner.executions.values().for_each(|execution| execution.signals.interrupted.cancel());
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

    fn key(n: u128) -> Key {
        (Uuid::from_u128(n), 1)
    }

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
            payload_hash: String::new(),
            behind: Vec::new(),
            payload,
        };
        let now = Utc::now();
        let fence = Fence { epoch: 1, attempt: 1 };
        Claimed { envelope, fence, rehearsal: true, due_at: now, started_at: now, age: Duration::ZERO }
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
        held.execute(key(1));
        held.execute(key(2));
        assert_eq!(held.room().limit, 0);
        assert_eq!(held.rehearsals().len(), 2, "both still wait for their real runs");
        held.drop(key(1));
        assert_eq!(held.room(), Room { limit: 1, executions_only: false });
    }

    #[test]
    fn waiting_rehearsals_are_bounded() {
        let held = Held::new(1);
        for n in 0..REHEARSALS_PER_SLOT {
            held.rehearse(claimed(n));
            held.execute(key(n as u128));
            held.drop(key(n as u128));
        }
        assert_eq!(held.room(), Room { limit: 1, executions_only: true });
    }

    #[test]
    fn a_lost_execution_is_told() {
        let held = Held::new(1);
        let signals = held.execute(key(1));
        assert!(held.lose(key(1)) && signals.lost.is_cancelled());
        assert!(!held.lose(key(1)));
    }

    #[test]
    fn an_attempt_that_ends_is_not_lost_and_takes_nothing_of_the_next_along() {
        let held = Held::new(1);
        let (first, second) = ((Uuid::nil(), 1), (Uuid::nil(), 2));
        held.execute(first);
        held.ending(first);
        let next = held.execute(second);
        assert!(!held.lose(first));
        held.drop(first);
        assert!(held.keys() == [second] && !next.lost.is_cancelled());
    }
}
