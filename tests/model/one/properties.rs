//! What must never happen, and what must always be possible still.

use stateright::Property;

use super::One;
use super::state::*;
use crate::explore::Goal;

/// Two effects with one fence.
pub const SAME_FENCE: u8 = 1;
/// An effect without a pin after the account was armed.
pub const UNPINNED: u8 = 2;
/// A late result was taken.
pub const LATE: u8 = 4;
/// An attempt began after the interaction had ended, or was cancelled on Postgres.
pub const AFTER_END: u8 = 8;
/// An end without an effect, or by another payload's.
pub const HOLLOW: u8 = 16;

pub fn properties() -> Vec<Property<One>> {
    vec![
        Property::always("one side has effects", |_, s: &State| s.ran_postgres == 0 || s.ran_temporal == 0),
        Property::always("an effect is repeated only with a newer fence", |_, s: &State| s.wrong & SAME_FENCE == 0),
        Property::always("nothing unpinned runs once the account is armed", |_, s: &State| s.wrong & UNPINNED == 0),
        Property::always("a late result is refused", |_, s: &State| s.wrong & LATE == 0),
        Property::always("nothing begins after its end", |_, s: &State| s.wrong & AFTER_END == 0),
        Property::always("what succeeded was run, and was what the caller sent", |_, s: &State| s.wrong & HOLLOW == 0),
        Property::always("a cancellation is not lost on its way", |_, s: &State| !cancel_is_lost(s)),
    ]
}

/// Temporal owns it, nobody has begun it, and nobody will be told.
fn cancel_is_lost(s: &State) -> bool {
    let Some(pin) = s.open_pin().filter(|pin| pin.wish && pin.owner == Side::Temporal) else { return false };
    let flow = s.flow[usize::from(pin.epoch - 1)];
    let told = !matches!(flow.step, Step::None | Step::Waiting) || flow.attempt > 1;
    !(told || s.outbox == pin.epoch && s.outbox_cancel)
}

/// What a caller was promised has ended, and can be looked up. A pin is held only where another payload came first.
pub const ENDS: Goal<State> = Goal {
    name: "what was accepted can still end",
    reached: |s| match s.pin {
        _ if !s.accepted => true,
        Some(pin) => pin.end != End::Open || pin.held && s.flow[0].other != pin.other && ended_unpinned(s),
        None => ended_unpinned(s),
    },
};

/// The unpinned copy has; one that gave up in favour of another payload has not.
fn ended_unpinned(s: &State) -> bool {
    match s.flow[0].step {
        Step::Closed | Step::Terminated => true,
        _ if s.flow[0].executes && s.flow[0].step != Step::None => false,
        _ => s.ran_temporal != 0 || s.ran_postgres != 0,
    }
}

pub const ARMS: Goal<State> =
    Goal { name: "the account can still be armed", reached: |s| matches!(s.account, Account::Open | Account::Armed) };
