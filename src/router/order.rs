//! What a router must know of series to start their members without a pin: whether something earlier may not be with
//! Temporal yet. Pins that are not delivered are known to Postgres alone, so a router looks while Postgres is there
//! and goes by that when it is not: then nobody can pin any more, and what was delivered stays so. What this router
//! leaves undelivered itself it knows at once.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as Turns, OwnedMutexGuard};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::spool::Spool;

/// How often Postgres is asked.
const EVERY: Duration = Duration::from_secs(1);
/// Beyond so many, a series that is not known is taken for one that waits.
const MOST: usize = 5_000;
/// A caller's own transaction may commit so long after it has pinned.
const COMMITS_WITHIN: Duration = Duration::from_secs(60);
/// Members of a series are started one after the other; so many series at once.
const STRIPES: usize = 256;

/// Held while a member of a series is started.
pub(super) type Turn = OwnedMutexGuard<()>;

/// See the module.
pub(super) struct Order {
    waiting: Mutex<Waiting>,
    turns: Vec<Arc<Turns<()>>>,
}

/// Of a schedule's run that is on its way. Later ones are greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u64);

#[derive(Default)]
struct Waiting {
    /// What Postgres said: absent until it was asked, or where there is too much to be told.
    known: Option<HashSet<Uuid>>,
    /// What this router knows to wait.
    own: HashMap<Uuid, Own>,
    marks: u64,
}

/// Why a series waits: each until a look that begins after the time given.
#[derive(Default)]
struct Own {
    /// For what callers have pinned, or may have.
    callers: Option<Instant>,
    /// For the last run of a schedule, and those before it.
    run: Option<(Mark, Instant)>,
}

impl Own {
    fn is_over(&self) -> bool {
        self.callers.is_none() && self.run.is_none()
    }
}

impl Order {
    pub(super) fn new() -> Self {
        Self { waiting: Mutex::default(), turns: std::iter::repeat_with(Arc::default).take(STRIPES).collect() }
    }

    /// Whether nothing earlier of `series` can wait for its way to Temporal. The next member has its turn when the guard
    /// is dropped.
    pub(super) async fn turn(&self, series: Uuid) -> Option<Turn> {
        let turn = self.turns[series.as_u128() as usize % STRIPES].clone().lock_owned().await;
        self.waiting().is_clear(series).then_some(turn)
    }

    /// Whether something of `series` waits for its way to Temporal, as far as Postgres said when it was asked last.
    pub(super) fn is_known_to_wait(&self, series: Uuid) -> bool {
        self.waiting().known.as_ref().is_some_and(|known| known.contains(&series))
    }

    /// Something of it is accepted, and may not be with Temporal.
    pub(super) fn waits(&self, series: Uuid) {
        self.waiting().wait(series, Instant::now());
    }

    /// A caller is about to pin something of it in a transaction of his own, that is still to commit.
    pub(super) fn may_wait(&self, series: Uuid) {
        self.waiting().wait(series, Instant::now() + COMMITS_WITHIN);
    }

    /// A schedule's run of it is pinned in a transaction that is still to commit; until then it waits, if nobody says more.
    pub(super) fn run_waits(&self, series: Uuid) -> Mark {
        let mut waiting = self.waiting();
        waiting.marks += 1;
        let mark = Mark(waiting.marks);
        if let Some(own) = waiting.own_of(series) {
            own.run = Some((mark, Instant::now() + COMMITS_WITHIN));
        }
        mark
    }

    /// A run has reached Temporal, and nothing before it waited. What came after it may wait, and what callers have sent meanwhile.
    pub(super) fn delivered_of(&self, series: Uuid, mark: Mark) {
        let mut waiting = self.waiting();
        if let Some(own) = waiting.own.get_mut(&series) {
            own.run = own.run.filter(|(last, _)| *last > mark);
            if !own.is_over() {
                return;
            }
        }
        waiting.delivered(series);
    }

    /// A member has reached Temporal, and nothing before it waited.
    pub(super) fn delivered(&self, series: Uuid) {
        self.waiting().delivered(series);
    }

    /// Looks until `stop`.
    pub(super) async fn follow(&self, ledger: &Ledger, spool: &Spool, stop: CancellationToken) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            let began = Instant::now();
            let Some(looked) = stop.run_until_cancelled(ledger.waiting_series(MOST)).await else { return };
            // Without an answer the last one holds: who can't pin adds nothing.
            if let Ok(known) = looked {
                self.waiting().looked(known, began, |series| spool.holds_series(series));
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn is_clear(&self, series: Uuid) -> bool {
        self.known.as_ref().is_some_and(|known| !known.contains(&series)) && !self.own.contains_key(&series)
    }

    fn wait(&mut self, series: Uuid, until: Instant) {
        if let Some(own) = self.own_of(series) {
            own.callers = own.callers.max(Some(until));
        }
    }

    fn delivered(&mut self, series: Uuid) {
        self.own.remove(&series);
        if let Some(known) = &mut self.known {
            known.remove(&series);
        }
    }

    fn own_of(&mut self, series: Uuid) -> Option<&mut Own> {
        if self.own.len() >= MOST && !self.own.contains_key(&series) {
            // Too much to be remembered: nothing is clear until the next look.
            self.known = None;
            return None;
        }
        Some(self.own.entry(series).or_default())
    }

    /// What is in the spool, Postgres does not know yet.
    fn looked(&mut self, known: Option<HashSet<Uuid>>, began: Instant, spooled: impl Fn(Uuid) -> bool) {
        self.known = known;
        self.own.retain(|series, own| {
            if spooled(*series) {
                return true;
            }
            own.callers = own.callers.filter(|until| *until >= began);
            own.run = own.run.filter(|(_, until)| *until >= began);
            !own.is_over()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Uuid = Uuid::from_u128(1);
    const B: Uuid = Uuid::from_u128(2);

    #[tokio::test]
    async fn nothing_is_clear_before_the_first_look_nor_where_there_is_too_much_to_be_told() {
        let order = Order::new();
        assert!(order.turn(A).await.is_none());
        order.waiting().looked(Some([B].into()), Instant::now(), |_| false);
        assert!(order.turn(A).await.is_some());
        assert!(order.turn(B).await.is_none());
        order.waiting().looked(None, Instant::now(), |_| false);
        assert!(order.turn(A).await.is_none());
    }

    #[tokio::test]
    async fn a_series_waits_for_sure_only_where_postgres_said_so() {
        let order = Order::new();
        order.waits(A);
        assert!(!order.is_known_to_wait(A), "nobody was asked");
        order.waiting().looked(Some([A].into()), Instant::now(), |_| false);
        assert!(order.is_known_to_wait(A) && !order.is_known_to_wait(B));
        order.delivered(A);
        assert!(!order.is_known_to_wait(A));
    }

    #[tokio::test]
    async fn what_waits_here_is_clear_again_after_a_look_that_began_later_or_a_delivery() {
        let order = Order::new();
        let before = Instant::now();
        order.waits(A);
        order.waiting().looked(Some(HashSet::new()), before, |_| false);
        assert!(order.turn(A).await.is_none(), "that look may have begun before the pin committed");
        order.waiting().looked(Some([A].into()), Instant::now(), |_| false);
        assert!(order.turn(A).await.is_none());
        order.delivered(A);
        assert!(order.turn(A).await.is_some());
        order.may_wait(A);
        order.run_waits(B);
        order.waiting().looked(Some(HashSet::new()), Instant::now(), |_| false);
        assert!(order.turn(A).await.is_none() && order.turn(B).await.is_none(), "their transactions may commit yet");
    }

    #[tokio::test]
    async fn what_reaches_temporal_says_nothing_of_what_came_after_it() {
        let order = Order::new();
        order.waiting().looked(Some(HashSet::new()), Instant::now(), |_| false);
        let (first, second) = (order.run_waits(A), order.run_waits(A));
        order.delivered_of(A, first);
        assert!(order.turn(A).await.is_none(), "the second is on its way");
        order.delivered_of(A, second);
        assert!(order.turn(A).await.is_some());
    }

    #[tokio::test]
    async fn what_a_caller_has_sent_beside_a_run_waits_on_when_the_run_is_there() {
        let order = Order::new();
        order.waiting().looked(Some(HashSet::new()), Instant::now(), |_| false);
        let run = order.run_waits(A);
        order.waits(A);
        order.delivered_of(A, run);
        assert!(order.turn(A).await.is_none(), "it is in doubt");
        order.waiting().looked(Some(HashSet::new()), Instant::now(), |_| false);
        assert!(order.turn(A).await.is_some(), "Postgres has said that it is not");
    }

    #[tokio::test]
    async fn more_than_can_be_remembered_leaves_nothing_clear() {
        let order = Order::new();
        order.waiting().looked(Some(HashSet::new()), Instant::now(), |_| false);
        (0..=MOST as u128).for_each(|n| order.waits(Uuid::from_u128(n + 10)));
        assert!(order.turn(A).await.is_none());
    }
}
