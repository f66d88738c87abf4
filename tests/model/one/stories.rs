//! The stories: small enough to be explored to their end, each with the faults of its theme.

use super::delivery::*;
use super::state::{Account, State};
use super::{Action, One, Want};
use crate::guard::{Guard, Guards};
use Action::*;

/// All stories; `scale` adds requests and faults.
pub fn all(scale: u8) -> Vec<One> {
    vec![enqueue(scale), arming(scale), failing_open(scale), lag(scale), disarm(scale), handover(scale), fences(scale)]
}

fn story(name: &'static str, start: State) -> One {
    One { name, start, actions: Vec::new(), guards: Guards::ALL, on_the_spot: false, lag: false, arms: false }
}

const BOTH: [usize; 2] = [0, 1];

fn of_routers(actions: &[fn(usize) -> Action]) -> Vec<Action> {
    BOTH.iter().flat_map(|&r| actions.iter().map(move |action| action(r))).collect()
}

fn unpinned() -> Vec<Action> {
    of_routers(&[StartUnpinned, StartLands, StartAnswered, StartLost])
}

fn deliveries(kinds: &[u8]) -> Vec<Action> {
    let each = kinds.iter().flat_map(|&kind| [Arrives(kind), Lost(kind)]);
    [Send].into_iter().chain(each).collect()
}

fn workflow(e: usize) -> Vec<Action> {
    vec![Begin(e), Effect(e), Record(e), Settle(e)]
}

fn queue() -> Vec<Action> {
    vec![Claim(0), Run(0), Finish(0)]
}

fn steps_of_arming() -> Vec<Action> {
    let mut actions = of_routers(&[Beat]);
    actions.extend([WindowPasses, Closed, Reconcile, Reconciled]);
    actions
}

/// Repeated keys and routers with any flags, on an account that is armed on the spot or not at all.
fn enqueue(scale: u8) -> One {
    let mut start = State::start(Account::Open, 2);
    start.requests = 4 + scale;
    let mut actions = unpinned();
    actions.extend(of_routers(&[MarkCommits]));
    actions.extend([Want::Off, Want::Shadow, Want::Live, Want::Complete].map(|want| Pin(0, want, false)));
    actions.extend([Pin(0, Want::Shadow, true), KeyExpires, PinDropped]);
    actions.extend(deliveries(&[REHEARSAL, FIRST]));
    actions.extend(workflow(0));
    actions.extend(queue());
    One { actions, on_the_spot: true, ..story("enqueue", start) }
}

/// An account with an unpinned past is armed while routers fall silent, die, and lose their disks. Nothing asks its pin:
/// in this story and the next the barriers must do alone.
fn arming(scale: u8) -> One {
    let mut start = State::start(Account::Open, 2);
    start.requests = 2 + scale;
    start.faults = 1 + scale;
    let mut actions = unpinned();
    actions.extend(of_routers(&[Crash, Restart, RestartBlank, Forget]));
    actions.extend(steps_of_arming());
    actions.extend([
        AnotherIsPinned,
        AnotherIsUnpinned(0),
        Unwanted,
        Pinned,
        Pin(0, Want::Off, false),
        Pin(0, Want::Complete, false),
        Pin(1, Want::Complete, false),
    ]);
    actions.extend([Send, Arrives(FIRST)]);
    actions.extend(workflow(0));
    actions.extend(queue());
    One { actions, guards: barriers_alone(), arms: true, ..story("arming", start) }
}

/// Postgres is away for some routers while the account is armed: they fail open, spool, drop, die, are forgotten.
fn failing_open(scale: u8) -> One {
    let mut start = State::start(Account::Window, 2);
    start.requests = 2 + scale;
    start.faults = 1 + scale;
    let mut actions = of_routers(&[StartLands, StartAnswered, StartLost, FailOpen, Flush, Drop]);
    actions.extend(of_routers(&[Crash, Restart, RestartBlank, Forget, Stop]));
    actions.extend([Unwanted, FailOpenWithPinInDoubt(0), DoubtfulPinCommits(0), DoubtfulPinFails(0)]);
    actions.extend(steps_of_arming());
    actions.extend([Pin(0, Want::Complete, false), Pin(1, Want::Complete, false)]);
    actions.extend([Send, Arrives(FIRST)]);
    actions.extend(workflow(0));
    actions.extend(queue());
    One { actions, guards: barriers_alone(), arms: true, ..story("failing-open", start) }
}

fn barriers_alone() -> Guards {
    Guards::ALL.without(Guard::UnpinnedAsks).without(Guard::WorkersAcknowledge)
}

/// The second net: what reconciliation does not see, because visibility lags, asks its pin.
fn lag(scale: u8) -> One {
    let mut start = State::start(Account::Window, 2);
    start.requests = 2 + scale;
    start.faults = 1;
    start.marked = true;
    start.asks = false;
    start.operator = 1;
    let mut actions =
        vec![StartLands(0), StartAnswered(0), StartLost(0), FailOpen(0), Flush(0), Crash(0), Restart(0), Forget(0)];
    actions.extend(steps_of_arming());
    actions.extend([
        Pin(1, Want::Live, false),
        Pin(1, Want::Shadow, true),
        Pin(1, Want::Complete, false),
        WorkersBeat,
        BecomesVisible,
        Reset(0),
        StalledEffect(0),
    ]);
    actions.extend(deliveries(&[REHEARSAL, FIRST]));
    actions.extend(workflow(0));
    actions.extend(queue());
    One { actions, lag: true, arms: true, ..story("lag", start) }
}

/// Armed, disarmed, and armed anew, on the spot.
fn disarm(scale: u8) -> One {
    let mut start = State::start(Account::Open, 2);
    start.requests = 2 + scale;
    start.operator = 1 + scale;
    let mut actions = unpinned();
    actions.extend(steps_of_arming());
    actions.extend([Pinned, Disarm, Disarmed, WorkersBeat, AnotherIsUnpinned(0), AnotherIsPinned]);
    actions.extend([Want::Off, Want::Live, Want::Complete].map(|want| Pin(1, want, false)));
    actions.extend([Send, Arrives(REHEARSAL), Arrives(FIRST)]);
    actions.extend(workflow(0));
    actions.extend(queue());
    One { actions, on_the_spot: true, ..story("disarm", start) }
}

/// An armed account: handover, cancel, reset, terminate, and a Temporal that forgets.
fn handover(scale: u8) -> One {
    let mut start = State::start(Account::Armed, 1);
    start.requests = 1;
    start.operator = 3 + scale;
    let mut actions = [Want::Off, Want::Live, Want::Complete].map(|want| Pin(0, want, false)).to_vec();
    actions.extend(deliveries(&[REHEARSAL, FIRST, SECOND, CANCEL_FIRST, CANCEL_SECOND]));
    for e in BOTH {
        actions.extend(workflow(e));
        actions.extend([StalledEffect(e), Reset(e), Terminate(e), Forgotten(e)]);
    }
    actions.extend(queue());
    actions.extend([See(0), Handover, Cancel, Sweep, KeyExpires]);
    One { actions, ..story("handover", start) }
}

/// Workers of either side that die, stall, and wake up too late.
fn fences(scale: u8) -> One {
    let mut start = State::start(Account::Armed, 1);
    start.requests = 1;
    start.faults = 3 + scale;
    start.operator = 1;
    let mut actions = vec![Pin(0, Want::Shadow, false), Pin(0, Want::Live, false)];
    actions.extend(deliveries(&[REHEARSAL, FIRST, SECOND, CANCEL_FIRST, CANCEL_SECOND]));
    for e in BOTH {
        actions.extend(workflow(e));
        actions.extend([StalledEffect(e), Redeliver(e)]);
        actions.extend([Claim(e), Run(e), Finish(e), Fail(e), WorkerDies(e)]);
    }
    actions.extend([TakeOver, Handover, Cancel, DropRehearsal]);
    One { actions, ..story("fences", start) }
}
