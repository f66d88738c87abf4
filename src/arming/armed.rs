//! What this process holds of every account's state. In memory, asked by every enqueue.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

/// Where an account is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Work may start without a pin.
    Open,
    /// Everything is pinned as long as Postgres answers; waits until all processes do so.
    Pinning,
    /// The same; waits until every key that may be repeated has a pin.
    Window,
    /// Nothing starts without a pin any more; waits until nothing of that kind is left with any process.
    Closing,
    /// What is still open on Temporal without a pin gets one.
    Reconciling,
    /// Postgres may own work.
    Armed,
    /// Postgres may own nothing new; waits until what it owns has ended and can't be repeated.
    Disarming,
}

impl State {
    /// In the order of the way.
    pub const ALL: [State; 7] = [
        State::Open,
        State::Pinning,
        State::Window,
        State::Closing,
        State::Reconciling,
        State::Armed,
        State::Disarming,
    ];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Open => "open",
            State::Pinning => "pinning",
            State::Window => "window",
            State::Closing => "closing",
            State::Reconciling => "reconciling",
            State::Armed => "armed",
            State::Disarming => "disarming",
        }
    }

    /// Whether work may start without a pin while Postgres is away.
    fn may_fail_open(self) -> bool {
        matches!(self, State::Open | State::Pinning | State::Window)
    }

    /// Whether the driver waits for every process.
    pub fn is_barrier(self) -> bool {
        matches!(self, State::Pinning | State::Closing | State::Disarming)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for State {
    type Err = crate::interaction::UnknownName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        State::ALL.into_iter().find(|state| state.as_str() == name).ok_or_else(|| crate::interaction::UnknownName {
            what: "state of arming",
            found: name.to_owned(),
            known: State::ALL.map(State::as_str).join(", "),
        })
    }
}

/// Why a start has no pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unpinned {
    /// The account is in `off`.
    Off,
    /// Postgres is away.
    FailOpen,
}

/// An account's state, and which one that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// The state.
    pub state: State,
    /// Its number.
    pub generation: i64,
}

/// Whether this process knows what it may start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// It has registered and read the states from Postgres.
    Ready,
    /// It goes by the copy on disk until Postgres answers.
    ByDisk,
    /// It knows nothing, and why.
    Not(String),
}

/// What was started without a pin and isn't written to Postgres yet, kept by whoever keeps it.
pub trait Unwritten: Send + Sync {
    /// Whether any is of this account, or was lost and not reported yet.
    fn any_of(&self, account: &str) -> bool;
    /// How many there are.
    fn count(&self) -> u64;
}

/// What this process holds of every account's state. Cheap to clone.
#[derive(Clone)]
pub struct Armed {
    shared: Arc<Shared>,
}

struct Shared {
    fail_open: bool,
    inner: Mutex<Inner>,
    unwritten: OnceLock<Arc<dyn Unwritten>>,
}

struct Inner {
    readiness: Readiness,
    /// Grows with every change of a state; what was begun before one has a lower number.
    era: u64,
    /// All that are not open, and since which era.
    accounts: HashMap<String, (Held, u64)>,
    /// Unpinned starts without a definite answer, by account and era.
    flying: HashMap<String, Vec<(u64, usize)>>,
    /// Accounts in `off` that have their mark in Postgres, and whose series have nothing in the outbox.
    marked: HashSet<String>,
    /// Starts whose first answer was in doubt.
    in_doubt: usize,
    /// Not acknowledged yet.
    unacked: HashSet<String>,
}

/// An unpinned start. Held until it has a definite answer; then it is dropped. Once it was [`sent`](Self::sent), dropping
/// it is not enough: what nobody has answered stays in flight for as long as this process lives.
#[must_use = "held until the start has a definite answer"]
pub struct UnpinnedStart {
    shared: Arc<Shared>,
    account: String,
    era: u64,
    sent: bool,
    doubtful: bool,
}

impl fmt::Debug for UnpinnedStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UnpinnedStart({}, era {})", self.account, self.era)
    }
}

impl UnpinnedStart {
    /// Notes that Temporal is about to hear of it.
    pub fn sent(&mut self) {
        self.sent = true;
    }

    /// Notes that its answer was in doubt, so that it is counted until it has another.
    pub fn doubt(&mut self) {
        self.sent = true;
        if !std::mem::replace(&mut self.doubtful, true) {
            self.shared.lock().in_doubt += 1;
        }
    }

    /// It has a definite answer.
    pub fn settled(mut self) {
        self.sent = false;
        if std::mem::take(&mut self.doubtful) {
            self.shared.lock().in_doubt -= 1;
        }
    }
}

impl Drop for UnpinnedStart {
    fn drop(&mut self) {
        if self.sent {
            return;
        }
        let mut inner = self.shared.lock();
        let Some(eras) = inner.flying.get_mut(&self.account) else { return };
        if let Some(at) = eras.iter().position(|(era, _)| *era == self.era) {
            eras[at].1 -= 1;
            if eras[at].1 == 0 {
                eras.swap_remove(at);
            }
        }
        if eras.is_empty() {
            inner.flying.remove(&self.account);
        }
    }
}

impl Shared {
    /// Nothing that holds it can stop half-way.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed {
    /// Knows nothing yet, and so allows nothing. `fail_open`: whether work may start without a pin while Postgres is away.
    pub fn new(fail_open: bool) -> Self {
        let inner = Inner {
            readiness: Readiness::Not("it has not read the accounts' states from Postgres yet".to_owned()),
            era: 0,
            accounts: HashMap::new(),
            flying: HashMap::new(),
            marked: HashSet::new(),
            in_doubt: 0,
            unacked: HashSet::new(),
        };
        Self { shared: Arc::new(Shared { fail_open, inner: Mutex::new(inner), unwritten: OnceLock::new() }) }
    }

    /// Every account is open: for a router that stands alone.
    pub fn all_open() -> Self {
        let armed = Self::new(false);
        armed.shared.lock().readiness = Readiness::Ready;
        armed
    }

    /// Begins an unpinned start of `account`. None: it must be pinned. Held until the start has a definite answer.
    pub fn begin_unpinned(&self, account: &str, why: Unpinned) -> Option<UnpinnedStart> {
        let mut inner = self.shared.lock();
        if matches!(inner.readiness, Readiness::Not(_)) {
            return None;
        }
        let state = inner.state(account);
        let allowed = match why {
            Unpinned::Off => state == State::Open,
            Unpinned::FailOpen => self.shared.fail_open && state.may_fail_open(),
        };
        if !allowed {
            return None;
        }
        let era = inner.era;
        let eras = inner.flying.entry(account.to_owned()).or_default();
        match eras.iter_mut().find(|(of, _)| *of == era) {
            Some((_, count)) => *count += 1,
            None => eras.push((era, 1)),
        }
        drop(inner);
        Some(UnpinnedStart {
            shared: self.shared.clone(),
            account: account.to_owned(),
            era,
            sent: false,
            doubtful: false,
        })
    }

    /// Whether unpinned copies of this account must ask their pin (closing, reconciling, armed, disarming).
    pub fn must_ask(&self, account: &str) -> bool {
        let inner = self.shared.lock();
        matches!(inner.readiness, Readiness::Not(_)) || !inner.state(account).may_fail_open()
    }

    /// The account's state, as far as it is known here.
    pub fn state(&self, account: &str) -> State {
        self.shared.lock().state(account)
    }

    /// Whether this process knows what it may start.
    pub fn readiness(&self) -> Readiness {
        self.shared.lock().readiness.clone()
    }

    /// Why nothing can be taken in yet; none where it can.
    pub fn not_ready(&self) -> Option<String> {
        match &self.shared.lock().readiness {
            Readiness::Not(why) => Some(why.clone()),
            _ => None,
        }
    }

    /// Whether this process starts work without a pin while Postgres is away, or has such work to write.
    pub fn fails_open(&self) -> bool {
        self.shared.fail_open || self.unwritten() > 0
    }

    /// Whether `router.fail_open` allows it.
    pub fn may_fail_open(&self) -> bool {
        self.shared.fail_open
    }

    /// Names the keeper of what is not written to Postgres yet; once.
    pub fn keep_unwritten(&self, unwritten: Arc<dyn Unwritten>) {
        drop(self.shared.unwritten.set(unwritten));
    }

    /// How much is not written to Postgres yet.
    pub fn unwritten(&self) -> u64 {
        self.shared.unwritten.get().map_or(0, |unwritten| unwritten.count())
    }

    /// Starts whose outcome is in doubt.
    pub fn in_doubt(&self) -> usize {
        self.shared.lock().in_doubt
    }

    /// Whether anything that it started without a pin has no definite answer, or isn't written.
    pub fn owes(&self) -> bool {
        !self.shared.lock().flying.is_empty() || self.unwritten() > 0
    }

    /// Whether the account has its mark of unpinned work.
    pub fn is_marked(&self, account: &str) -> bool {
        self.shared.lock().marked.contains(account)
    }

    /// Remembers that the account has its mark, if since `start` nothing has changed that could undo it.
    pub fn mark(&self, start: &UnpinnedStart) {
        let mut inner = self.shared.lock();
        if inner.era == start.era {
            inner.marked.insert(start.account.clone());
        }
    }

    /// Forgets it: Postgres is to be asked again.
    pub fn forget_mark(&self, account: &str) {
        let mut inner = self.shared.lock();
        inner.marked.remove(account);
    }

    /// Goes by the copy on disk.
    pub(super) fn go_by_disk(&self, accounts: HashMap<String, Held>) {
        let mut inner = self.shared.lock();
        inner.replace(accounts);
        inner.readiness = Readiness::ByDisk;
    }

    pub(super) fn not_ready_for(&self, why: String) {
        self.shared.lock().readiness = Readiness::Not(why);
    }

    /// Takes all states from Postgres; whether any is new here.
    pub(super) fn take_all(&self, accounts: HashMap<String, Held>) -> bool {
        let mut inner = self.shared.lock();
        inner.readiness = Readiness::Ready;
        inner.replace(accounts)
    }

    /// Takes what has changed in Postgres; whether any is new here.
    pub(super) fn take_changes(&self, accounts: HashMap<String, Held>) -> bool {
        let mut inner = self.shared.lock();
        let mut new = false;
        for (account, held) in accounts {
            new |= inner.take(account, held);
        }
        new
    }

    /// Postgres knows nothing of what this process has asked and acknowledged: all of it is asked and acknowledged again.
    pub(super) fn start_over(&self) {
        let mut inner = self.shared.lock();
        inner.era += 1;
        inner.marked.clear();
        let barriers: Vec<String> = inner
            .accounts
            .iter()
            .filter(|(_, (held, _))| held.state.is_barrier())
            .map(|(name, _)| name.clone())
            .collect();
        inner.unacked.extend(barriers);
    }

    /// All that is not open.
    pub(super) fn snapshot(&self) -> HashMap<String, Held> {
        self.shared.lock().accounts.iter().map(|(account, (held, _))| (account.clone(), *held)).collect()
    }

    /// What can be acknowledged: nothing of the account that was begun before its state is without a definite answer, and,
    /// past fail-open, nothing is left to write.
    pub(super) fn acknowledgeable(&self, most: usize) -> Vec<(String, i64)> {
        let ready: Vec<(String, i64, State)> = {
            let inner = self.shared.lock();
            let settled = |account: &str, since: u64| {
                inner.flying.get(account).is_none_or(|eras| eras.iter().all(|(era, _)| *era >= since))
            };
            inner
                .unacked
                .iter()
                .filter_map(|account| inner.accounts.get(account).map(|(held, since)| (account, held, *since)))
                .filter(|(account, _, since)| settled(account, *since))
                .map(|(account, held, _)| (account.clone(), held.generation, held.state))
                .collect()
        };
        let written = |account: &str| self.shared.unwritten.get().is_none_or(|unwritten| !unwritten.any_of(account));
        ready
            .into_iter()
            .filter(|(account, _, state)| state.may_fail_open() || written(account))
            .map(|(account, generation, _)| (account, generation))
            .take(most)
            .collect()
    }

    pub(super) fn acknowledged(&self, acks: &[(String, i64)]) {
        let mut inner = self.shared.lock();
        for (account, generation) in acks {
            if inner.accounts.get(account).is_some_and(|(held, _)| held.generation == *generation) {
                inner.unacked.remove(account);
            }
        }
    }

    /// How many acknowledgements are owed.
    pub fn unacknowledged(&self) -> usize {
        self.shared.lock().unacked.len()
    }
}

impl Inner {
    fn state(&self, account: &str) -> State {
        self.accounts.get(account).map_or(State::Open, |(held, _)| held.state)
    }

    /// All at once; what is not among them is open. Marks are asked for again.
    fn replace(&mut self, accounts: HashMap<String, Held>) -> bool {
        let gone: Vec<String> =
            self.accounts.keys().filter(|account| !accounts.contains_key(*account)).cloned().collect();
        let mut new = !gone.is_empty();
        for account in gone {
            self.take(account, Held { state: State::Open, generation: 0 });
        }
        for (account, held) in accounts {
            new |= self.take(account, held);
        }
        new
    }

    fn take(&mut self, account: String, held: Held) -> bool {
        let before = self.accounts.get(&account).map(|(held, _)| *held);
        if before == Some(held) || (before.is_none() && held.state == State::Open && !self.marked.contains(&account)) {
            return false;
        }
        self.era += 1;
        self.marked.remove(&account);
        match held.state.is_barrier() {
            true => self.unacked.insert(account.clone()),
            false => self.unacked.remove(&account),
        };
        match held.state {
            State::Open => drop(self.accounts.remove(&account)),
            _ => drop(self.accounts.insert(account, (held, self.era))),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(state: State, generation: i64) -> Held {
        Held { state, generation }
    }

    fn ready(fail_open: bool) -> Armed {
        let armed = Armed::new(fail_open);
        armed.take_all(HashMap::new());
        armed
    }

    fn change(armed: &Armed, state: State, generation: i64) {
        armed.take_changes(HashMap::from([("a".to_owned(), held(state, generation))]));
    }

    #[test]
    fn before_it_knows_anything_nothing_starts_and_everybody_asks() {
        let armed = Armed::new(true);
        assert!(armed.begin_unpinned("a", Unpinned::Off).is_none());
        assert!(armed.must_ask("a") && armed.not_ready().is_some());
        let by_disk = Armed::new(true);
        by_disk.go_by_disk(HashMap::from([("a".to_owned(), held(State::Armed, 5))]));
        assert!(by_disk.begin_unpinned("a", Unpinned::FailOpen).is_none());
        assert!(by_disk.begin_unpinned("b", Unpinned::Off).is_some());
        assert!(by_disk.must_ask("a") && !by_disk.must_ask("b") && by_disk.not_ready().is_none());
    }

    #[test]
    fn each_state_allows_what_it_says() {
        let armed = ready(true);
        for (generation, state) in (1..).zip(State::ALL) {
            change(&armed, state, generation);
            let open = matches!(state, State::Open | State::Pinning | State::Window);
            assert_eq!(armed.begin_unpinned("a", Unpinned::Off).is_some(), state == State::Open, "{state}");
            assert_eq!(armed.begin_unpinned("a", Unpinned::FailOpen).is_some(), open, "{state}");
            assert_eq!(armed.must_ask("a"), !open, "{state}");
        }
        assert!(ready(false).begin_unpinned("a", Unpinned::FailOpen).is_none());
    }

    #[test]
    fn a_state_is_acknowledged_when_what_began_before_it_has_an_answer() {
        let armed = ready(true);
        let mut before = armed.begin_unpinned("a", Unpinned::Off).unwrap();
        before.sent();
        change(&armed, State::Pinning, 1);
        assert!(armed.acknowledgeable(10).is_empty());
        // It may go on failing open, and that does not hold it up.
        let after = armed.begin_unpinned("a", Unpinned::FailOpen).unwrap();
        before.doubt();
        assert_eq!(armed.in_doubt(), 1);
        before.settled();
        let acks = armed.acknowledgeable(10);
        assert_eq!((acks.clone(), armed.in_doubt()), (vec![("a".to_owned(), 1)], 0));
        armed.acknowledged(&acks);
        assert!(armed.acknowledgeable(10).is_empty() && armed.owes());
        change(&armed, State::Closing, 3);
        assert!(armed.acknowledgeable(10).is_empty());
        drop(after);
        assert_eq!(armed.acknowledgeable(10), [("a".to_owned(), 3)]);
        assert!(!armed.owes());
    }

    #[test]
    fn what_was_sent_and_never_answered_is_in_flight_for_good() {
        let armed = ready(false);
        let mut start = armed.begin_unpinned("a", Unpinned::Off).unwrap();
        start.sent();
        drop(start);
        change(&armed, State::Pinning, 1);
        assert!(armed.acknowledgeable(10).is_empty() && armed.owes());
    }

    #[test]
    fn what_is_not_written_holds_up_closing_and_not_pinning() {
        struct One;
        impl Unwritten for One {
            fn any_of(&self, account: &str) -> bool {
                account == "a"
            }
            fn count(&self) -> u64 {
                1
            }
        }
        let armed = ready(false);
        armed.keep_unwritten(Arc::new(One));
        assert!(armed.fails_open(), "until it is written");
        change(&armed, State::Pinning, 1);
        assert_eq!(armed.acknowledgeable(10).len(), 1);
        change(&armed, State::Closing, 2);
        assert!(armed.acknowledgeable(10).is_empty() && armed.owes());
    }

    #[test]
    fn a_mark_does_not_outlive_a_change_of_state_nor_a_forgotten_registration() {
        let armed = ready(false);
        let marked = |armed: &Armed| armed.mark(&armed.begin_unpinned("a", Unpinned::Off).unwrap());
        marked(&armed);
        assert!(armed.is_marked("a"));
        change(&armed, State::Pinning, 1);
        change(&armed, State::Open, 2);
        assert!(!armed.is_marked("a"));
        let late = armed.begin_unpinned("a", Unpinned::Off).unwrap();
        change(&armed, State::Pinning, 3);
        change(&armed, State::Open, 4);
        armed.mark(&late);
        assert!(!armed.is_marked("a"), "its answer is of before");
        marked(&armed);
        armed.start_over();
        assert!(!armed.is_marked("a"));
    }

    #[test]
    fn postgres_put_back_to_an_earlier_time_is_believed() {
        let armed = ready(false);
        change(&armed, State::Armed, 5);
        assert!(armed.take_all(HashMap::from([("a".to_owned(), held(State::Pinning, 1))])));
        assert_eq!((armed.state("a"), armed.acknowledgeable(10)), (State::Pinning, vec![("a".to_owned(), 1)]));
        assert!(armed.take_all(HashMap::new()));
        assert_eq!(armed.state("a"), State::Open);
    }
}
