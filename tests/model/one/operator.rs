//! What operators do to work: reset, terminate, hand over, cancel.

use super::One;
use super::state::*;
use super::temporal::stall;
use crate::guard::Guard;

impl One {
    /// The workflow runs again from its beginning.
    pub(super) fn reset(&self, s: &mut State, e: usize) -> bool {
        let flow = &mut s.flow[e];
        let begun = matches!(flow.step, Step::Claimed | Step::Ran | Step::Result | Step::Closed | Step::GaveUp);
        if s.operator == 0 || !flow.executes || !begun {
            return false;
        }
        s.operator -= 1;
        stall(flow);
        flow.step = Step::Waiting;
        flow.reset = true;
        flow.attempt = if self.has(Guard::ResetKeepsCounting) { flow.attempt + 1 } else { 1 };
        true
    }

    pub(super) fn terminate(&self, s: &mut State, e: usize) -> bool {
        let flow = &mut s.flow[e];
        if s.operator == 0 || !flow.executes || !flow.open() {
            return false;
        }
        s.operator -= 1;
        stall(flow);
        flow.step = Step::Terminated;
        true
    }

    /// Postgres → Temporal, in one transaction.
    pub(super) fn handover(&self, s: &mut State) -> bool {
        let never_claimed = s.place == Place::Ready(1);
        let Some(mut pin) = s.open_pin().filter(|pin| pin.owner == Side::Postgres && pin.epoch == 1) else {
            return false;
        };
        if s.account < Account::Armed || pin.wish || !never_claimed && self.has(Guard::HandoverOnlyUnclaimed) {
            return false;
        }
        pin.owner = Side::Temporal;
        pin.epoch += u8::from(self.has(Guard::HandoverNewEpoch));
        s.pin = Some(pin);
        s.place = Place::Nowhere;
        s.outbox = pin.epoch;
        s.outbox_cancel = false;
        true
    }

    /// What waits with Postgres ends at once; what runs there ends at its next step; Temporal is told by the outbox.
    pub(super) fn cancel(&self, s: &mut State) -> bool {
        let Some(mut pin) = s.open_pin().filter(|pin| !pin.wish) else { return false };
        if s.operator == 0 {
            return false;
        }
        s.operator -= 1;
        pin.wish = true;
        if pin.owner == Side::Temporal {
            s.outbox = pin.epoch;
            s.outbox_cancel = true;
        } else if matches!(s.place, Place::Ready(_)) {
            pin.end = End::Cancelled;
            s.place = Place::Nowhere;
        }
        s.pin = Some(pin);
        true
    }
}
