//! A series of three across flips: its chain of numbers, its head, its workflow on Temporal, handover in the middle.

mod pins;
pub mod properties;
pub mod state;
pub mod stories;
mod workflow;

use stateright::{Model, Property};

use crate::explore::{Goal, Story};
use crate::guard::{Guard, Guards};
use state::{MEMBERS, State};

/// How a member comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum As {
    Unpinned,
    Shadow,
    Live,
    Complete,
}

/// All that may happen, one step each. Members are named by index, in the order in which they were accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Enqueue(As),
    NumberCommits(usize),
    Send(usize),
    Arrives(usize, u8),
    Received(usize, u8),
    DropRehearsal(usize),
    ContinueAsNew,
    Handover(usize),
    Cancel(usize),
    Claim(usize),
    Finish(usize),
    RehearsalOnPostgresEnds,
    SignalIsHandled,
    Begin,
    Effect,
    Result,
    Settle,
    RehearsalEnds,
    RehearsalIsBounded,
    Reconcile,
    Arm,
    Disarm,
}

/// A model of a series.
#[derive(Clone)]
pub struct Series {
    pub name: &'static str,
    pub start: State,
    pub actions: Vec<Action>,
    pub guards: Guards,
    /// An envelope names so many members that are behind.
    pub behind_at_most: u32,
}

impl Series {
    fn has(&self, guard: Guard) -> bool {
        self.guards.has(guard)
    }

    fn step(&self, s: &mut State, action: Action) -> bool {
        match action {
            Action::Enqueue(how) => self.enqueue(s, how),
            Action::NumberCommits(i) => self.number_commits(s, i),
            Action::Send(i) => self.send(s, i),
            Action::Arrives(i, epoch) => self.arrives(s, i, epoch),
            Action::Received(i, epoch) => self.received(s, i, epoch),
            Action::DropRehearsal(i) => self.drop_rehearsal(s, i),
            Action::ContinueAsNew => self.continue_as_new(s),
            Action::Handover(i) => self.handover(s, i),
            Action::Cancel(i) => self.cancel(s, i),
            Action::Claim(i) => self.claim(s, i),
            Action::Finish(i) => self.finish(s, i),
            Action::RehearsalOnPostgresEnds => self.rehearsal_on_postgres_ends(s),
            Action::SignalIsHandled => self.signal_is_handled(s),
            Action::Begin => self.begin(s),
            Action::Effect => self.effect(s),
            Action::Result => self.result(s),
            Action::Settle => self.settle(s),
            Action::RehearsalEnds => self.rehearsal_ends(s),
            Action::RehearsalIsBounded => self.rehearsal_is_bounded(s),
            Action::Reconcile => self.reconcile(s),
            Action::Arm => self.arm(s),
            Action::Disarm => self.disarm(s),
        }
    }
}

impl Model for Series {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![self.start]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        actions.extend_from_slice(&self.actions);
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        self.step(&mut next, action).then_some(next).filter(|next| next != state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        properties::properties()
    }
}

impl Story for Series {
    /// The bound of a rehearsal is no way out: it is long.
    fn is_progress(&self, action: &Action) -> bool {
        use Action::*;
        !matches!(action, Enqueue(_) | Handover(_) | Cancel(_) | RehearsalIsBounded | Disarm | DropRehearsal(_))
    }

    fn needs_a_broken_guard(&self, action: &Action) -> bool {
        matches!(action, Action::NumberCommits(_) | Action::RehearsalOnPostgresEnds)
    }

    fn goals(&self) -> Vec<Goal<State>> {
        vec![properties::ENDS]
    }
}

/// Every member.
pub fn members() -> std::ops::Range<usize> {
    0..MEMBERS
}
