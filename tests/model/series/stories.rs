//! The series' stories.

use super::state::State;
use super::{Action, As, Series, members};
use crate::guard::Guards;
use Action::*;

pub fn all(scale: u8) -> Vec<Series> {
    vec![flips(scale), handovers(scale), taking_over(scale)]
}

fn of_members(actions: &[fn(usize) -> Action]) -> Vec<Action> {
    members().flat_map(|i| actions.iter().map(move |action| action(i))).collect()
}

fn both_sides() -> Vec<Action> {
    let mut actions = of_members(&[Send, |i| Arrives(i, 1), |i| Received(i, 1), Claim, Finish]);
    actions.extend([Begin, Effect, Action::Result, Settle, RehearsalEnds, RehearsalIsBounded]);
    actions.push(RehearsalOnPostgresEnds);
    actions
}

/// Three members of an armed account in any stages, a handover and a cancellation in the middle.
fn flips(scale: u8) -> Series {
    let mut start = State::start(true);
    start.operator = 1 + scale;
    let mut actions = vec![Enqueue(As::Shadow), Enqueue(As::Live), Enqueue(As::Complete)];
    actions.extend(both_sides());
    actions.extend(of_members(&[Handover, |i| Arrives(i, 2), |i| Received(i, 2), Cancel, NumberCommits]));
    actions.extend(of_members(&[DropRehearsal]));
    Series { name: "series", start, actions, guards: Guards::ALL, behind_at_most: 1 }
}

/// Several of a series are handed over, while Temporal's backlog of rehearsals is cut.
fn handovers(scale: u8) -> Series {
    let mut start = State::start(true);
    start.operator = 2 + scale;
    let mut actions = vec![Enqueue(As::Shadow), Enqueue(As::Live)];
    actions.extend(of_members(&[Send, |i| Arrives(i, 1), |i| Received(i, 1), Claim, Finish, DropRehearsal]));
    actions.extend(of_members(&[Handover, |i| Arrives(i, 2), |i| Received(i, 2)]));
    actions.extend([Begin, Effect, Action::Result, Settle, RehearsalEnds]);
    Series { name: "series-handover", start, actions, guards: Guards::ALL, behind_at_most: 1 }
}

/// From `off` to armed, and back.
fn taking_over(scale: u8) -> Series {
    let mut start = State::start(false);
    start.operator = 1 + scale;
    let mut actions = vec![Enqueue(As::Unpinned), Enqueue(As::Shadow), Enqueue(As::Live)];
    actions.extend(both_sides());
    actions.extend([SignalIsHandled, Arm, Reconcile, Disarm, ContinueAsNew]);
    Series { name: "series-arming", start, actions, guards: Guards::ALL, behind_at_most: 2 }
}
