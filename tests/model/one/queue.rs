//! The Postgres side: claim, run, finish with a fence, take over.

use super::One;
use super::properties::{AFTER_END, LATE, SAME_FENCE};
use super::state::*;
use crate::guard::Guard;

/// The most attempts that a story has.
const ATTEMPTS: u8 = 3;

impl One {
    /// Without the swap a worker looks first and claims what it saw.
    pub(super) fn see(&self, s: &mut State, w: usize) -> bool {
        let Place::Ready(attempt) = s.place else { return false };
        if self.has(Guard::ClaimIsASwap) || s.hold[w] != Hold::Nothing {
            return false;
        }
        s.hold[w] = Hold::Seen(attempt);
        true
    }

    pub(super) fn claim(&self, s: &mut State, w: usize) -> bool {
        let attempt = match (s.hold[w], s.place) {
            (Hold::Nothing, Place::Ready(attempt)) if self.has(Guard::ClaimIsASwap) => attempt,
            (Hold::Seen(attempt), _) => attempt,
            _ => return false,
        };
        // Workers are alike.
        if w == 1 && s.hold[0] == Hold::Nothing {
            return false;
        }
        if s.pin.is_some_and(|pin| pin.wish) {
            if self.has(Guard::CancelBeatsRetry) {
                self.end_on_postgres(s, End::Cancelled);
                return true;
            }
            s.wrong |= AFTER_END;
        }
        s.place = Place::Running(w as u8, attempt);
        s.hold[w] = Hold::Claimed(attempt);
        true
    }

    /// The runner is called, also by a worker that stalled and lost its lease.
    pub(super) fn run(&self, s: &mut State, w: usize) -> bool {
        let Hold::Claimed(attempt) = s.hold[w] else { return false };
        let fence = 1 << (attempt - 1);
        if s.ran_postgres & fence != 0 {
            s.wrong |= SAME_FENCE;
        }
        s.ran_postgres |= fence;
        s.hold[w] = Hold::Ran(attempt);
        true
    }

    pub(super) fn finish(&self, s: &mut State, w: usize) -> bool {
        let Hold::Ran(attempt) = s.hold[w] else { return false };
        s.hold[w] = Hold::Nothing;
        let held = s.place == Place::Running(w as u8, attempt);
        if held || !self.has(Guard::FinishIsFenced) {
            if !held {
                s.wrong |= LATE;
            }
            self.end_on_postgres(s, End::Done);
        }
        true
    }

    /// The attempt failed and is to be tried again.
    pub(super) fn fail(&self, s: &mut State, w: usize) -> bool {
        let Hold::Ran(attempt) = s.hold[w] else { return false };
        if s.faults == 0 || s.place != Place::Running(w as u8, attempt) {
            return false;
        }
        s.faults -= 1;
        s.hold[w] = Hold::Nothing;
        self.again(s, attempt + 1);
        true
    }

    pub(super) fn worker_dies(&self, s: &mut State, w: usize) -> bool {
        if s.faults == 0 || s.hold[w] == Hold::Nothing {
            return false;
        }
        s.faults -= 1;
        s.hold[w] = Hold::Nothing;
        true
    }

    /// A lease ran out: its worker is dead, or stalled, which costs a fault.
    pub(super) fn take_over(&self, s: &mut State) -> bool {
        let Place::Running(w, attempt) = s.place else { return false };
        let stalled = matches!(s.hold[usize::from(w)], Hold::Claimed(a) | Hold::Ran(a) if a == attempt);
        if stalled && s.faults == 0 {
            return false;
        }
        s.faults -= u8::from(stalled);
        self.again(s, attempt + u8::from(self.has(Guard::TakeoverCounts)));
        true
    }

    fn again(&self, s: &mut State, attempt: u8) {
        let wish = s.pin.is_some_and(|pin| pin.wish) && self.has(Guard::CancelBeatsRetry);
        match wish || attempt > ATTEMPTS {
            true => self.end_on_postgres(s, if wish { End::Cancelled } else { End::Failed }),
            false => s.place = Place::Ready(attempt),
        }
    }

    fn end_on_postgres(&self, s: &mut State, end: End) {
        s.place = Place::Nowhere;
        if let Some(pin) = s.pin {
            self.end_pin(s, Side::Postgres, pin.epoch, end, pin.other);
        }
    }

    /// Only the owner ends a pin, under its epoch, once.
    pub(super) fn end_pin(&self, s: &mut State, side: Side, epoch: u8, end: End, other: bool) {
        let Some(pin) = s.pin.as_mut() else { return };
        if pin.owner == side && pin.epoch == epoch && pin.end == End::Open {
            pin.end = end;
            let ran = s.ran_temporal != 0 || s.ran_postgres != 0;
            if end == End::Done && (!ran || other != pin.other) {
                s.wrong |= super::properties::HOLLOW;
            }
        }
    }
}
