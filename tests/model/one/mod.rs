//! Who runs one interaction: enqueue, delivery, both sides' workers, arming, handover, fences.

mod actions;
mod arming;
mod delivery;
mod enqueue;
mod operator;
mod properties;
mod queue;
pub mod state;
pub mod stories;
mod temporal;

pub use actions::{Action, Want};

use stateright::{Model, Property};

use crate::explore::{Goal, Story};
use crate::guard::{Guard, Guards};
use state::State;

/// A model of a part of the protocol: where it starts, who acts, and which guards stand.
#[derive(Clone)]
pub struct One {
    pub name: &'static str,
    pub start: State,
    pub actions: Vec<Action>,
    pub guards: Guards,
    /// No router fails open, so an account without an unpinned past is armed by its first live pin.
    pub on_the_spot: bool,
    /// Visibility lags behind the starts.
    pub lag: bool,
    /// Whether the account must be able to be armed from everywhere.
    pub arms: bool,
}

impl One {
    fn has(&self, guard: Guard) -> bool {
        self.guards.has(guard)
    }
}

impl Model for One {
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

impl Story for One {
    fn is_progress(&self, action: &Action) -> bool {
        action.is_progress()
    }

    fn needs_a_broken_guard(&self, action: &Action) -> bool {
        matches!(action, Action::MarkCommits(_) | Action::See(_))
    }

    fn goals(&self) -> Vec<Goal<State>> {
        let mut goals = vec![properties::ENDS];
        goals.extend(self.arms.then_some(properties::ARMS));
        goals
    }
}
