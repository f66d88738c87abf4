//! What a workflow does with a copy, and what its workers do.

use super::One;
use super::properties::{AFTER_END, SAME_FENCE, UNPINNED};
use super::state::*;
use crate::guard::Guard;

impl One {
    /// An activity is given to a worker. Two kinds of copies ask their pin before, and wait where it can't be reached.
    pub(super) fn begin(&self, s: &mut State, e: usize) -> bool {
        let flow = s.flow[e];
        if flow.step != Step::Waiting || !flow.executes {
            return false;
        }
        let asks = flow.reset && self.has(Guard::ResetAsks) || !flow.pinned && s.asks && self.has(Guard::UnpinnedAsks);
        if asks && !self.may_run(s, e) {
            s.flow[e].step = Step::GaveUp;
            return true;
        }
        if s.pin.is_some_and(|pin| pin.end != End::Open && (flow.pinned || asks)) {
            s.wrong |= AFTER_END;
        }
        s.flow[e].step = Step::Claimed;
        true
    }

    /// The pin is this copy's, or becomes it.
    fn may_run(&self, s: &mut State, e: usize) -> bool {
        if s.pin.is_none() {
            self.adopt(s, false);
        }
        let another = s.pin.is_some_and(|pin| pin.owner == Side::Temporal && pin.other != s.flow[e].other);
        if another && !s.flow[e].pinned && self.has(Guard::AskingHoldsAnother) {
            // Its caller was told yes first; the pin's own copy can never be delivered beside it.
            self.hold(s, 1);
            return true;
        }
        let own = s.pin.is_some_and(|pin| pin.other == s.flow[e].other);
        s.flow[e].pinned |= own;
        own && s.open_pin().is_some_and(|pin| pin.owner == Side::Temporal && usize::from(pin.epoch) == e + 1)
    }

    /// The runner is called.
    pub(super) fn effect(&self, s: &mut State, e: usize) -> bool {
        let flow = s.flow[e];
        if flow.step != Step::Claimed {
            return false;
        }
        if s.account == Account::Armed && !flow.pinned && s.pin.is_none_or(|pin| pin.owner == Side::Postgres) {
            s.wrong |= UNPINNED;
        }
        s.flow[e].step = Step::Ran;
        self.ran(s, e, flow.attempt);
        true
    }

    fn ran(&self, s: &mut State, e: usize, attempt: u8) {
        let fence = 1 << (e * 8 + usize::from(attempt - 1));
        if s.ran_temporal & fence != 0 {
            s.wrong |= SAME_FENCE;
        }
        s.ran_temporal |= fence;
    }

    /// A worker that stalled before it called the runner wakes up.
    pub(super) fn stalled_effect(&self, s: &mut State, e: usize) -> bool {
        let attempt = std::mem::take(&mut s.flow[e].zombie);
        if attempt != 0 {
            self.ran(s, e, attempt);
        }
        attempt != 0
    }

    /// Its worker died or stalled; Temporal refuses what it may still report.
    pub(super) fn redeliver(&self, s: &mut State, e: usize) -> bool {
        let flow = &mut s.flow[e];
        if s.faults == 0 || !matches!(flow.step, Step::Claimed | Step::Ran) {
            return false;
        }
        s.faults -= 1;
        stall(flow);
        flow.step = Step::Waiting;
        flow.attempt += 1;
        true
    }

    pub(super) fn record(&self, s: &mut State, e: usize) -> bool {
        let ran = s.flow[e].step == Step::Ran;
        s.flow[e].step = Step::Result;
        ran
    }

    /// The end goes into the pin, then the workflow closes.
    pub(super) fn settle(&self, s: &mut State, e: usize) -> bool {
        let flow = s.flow[e];
        let end = match flow.step {
            Step::Result => End::Done,
            Step::CalledOff => End::Cancelled,
            _ => return false,
        };
        if flow.pinned && self.has(Guard::SettleBeforeClose) {
            self.end_pin(s, Side::Temporal, e as u8 + 1, end, flow.other);
        }
        s.flow[e].step = Step::Closed;
        true
    }

    pub(super) fn becomes_visible(&self, s: &mut State) -> bool {
        let hidden = s.flow[0].step != Step::None && !s.flow[0].visible;
        s.flow[0].visible = true;
        hidden
    }

    /// Temporal forgets what closed long ago.
    pub(super) fn forgotten(&self, s: &mut State, e: usize) -> bool {
        let flow = s.flow[e];
        let undelivered = s.net & super::delivery::all_of(e) != 0
            || s.router.iter().any(|r| r.start != Start::None || r.spool == Spool::Entry)
            || s.open_pin().is_some();
        let long_ago = s.key == Key::Expired && !undelivered;
        s.flow[e] = Workflow { zombie: flow.zombie, ..Workflow::NONE };
        flow.step != Step::None && !flow.open() && (long_ago || !self.has(Guard::RetentionOutlasts))
    }
}

/// The worker of the attempt under way may still call the runner.
pub fn stall(flow: &mut Workflow) {
    if flow.step == Step::Claimed && flow.zombie == 0 {
        flow.zombie = flow.attempt;
    }
}
