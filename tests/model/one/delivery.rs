//! The outbox, the relay, and what Temporal makes of a delivery.
//!
//! A router that delivers what it has just pinned does what the relay does, so there is one sender. A delivery under
//! way may arrive late and twice.

use super::One;
use super::state::*;
use crate::guard::Guard;

pub const REHEARSAL: u8 = 1;
pub const FIRST: u8 = 2;
pub const SECOND: u8 = 4;
pub const CANCEL_FIRST: u8 = 8;
pub const CANCEL_SECOND: u8 = 16;

/// The delivery that brings what `pin` says now.
pub fn of(pin: &Pin, cancel: bool) -> u8 {
    match (pin.owner, pin.epoch, cancel) {
        (Side::Postgres, ..) => REHEARSAL,
        (Side::Temporal, 1, false) => FIRST,
        (Side::Temporal, 1, true) => CANCEL_FIRST,
        (Side::Temporal, _, false) => SECOND,
        (Side::Temporal, _, true) => CANCEL_SECOND,
    }
}

fn epoch(delivery: u8) -> u8 {
    1 + u8::from(matches!(delivery, SECOND | CANCEL_SECOND))
}

/// The deliveries of the workflow `id:e+1`.
pub fn all_of(e: usize) -> u8 {
    [REHEARSAL | FIRST | CANCEL_FIRST, SECOND | CANCEL_SECOND][e]
}

impl One {
    /// The relay takes the row, looks whether the pin has ended meanwhile, and sends.
    pub(super) fn send(&self, s: &mut State) -> bool {
        let Some(pin) = s.pin.filter(|_| s.outbox != 0) else { return false };
        if pin.end != End::Open && self.has(Guard::LookBeforeRelay) || pin.held {
            self.out_of_the_outbox(s);
        } else {
            s.net |= of(&pin, s.outbox_cancel);
        }
        true
    }

    fn out_of_the_outbox(&self, s: &mut State) {
        s.outbox = 0;
        s.outbox_cancel = false;
    }

    /// It arrives, and whoever sent it learns so. It may arrive again.
    pub(super) fn arrives(&self, s: &mut State, delivery: u8) -> bool {
        let Some(pin) = s.pin.filter(|_| s.net & delivery != 0) else { return false };
        let cancel = delivery & (CANCEL_FIRST | CANCEL_SECOND) != 0;
        let epoch = epoch(delivery);
        let e = usize::from(epoch - 1);
        let step = if cancel { Step::CalledOff } else { Step::Waiting };
        let copy = Workflow { executes: delivery != REHEARSAL, pinned: true, other: pin.other, step, ..Workflow::NONE };
        if self.arrive_at(s, e, copy) {
            self.delivered(s, epoch, cancel);
            return true;
        }
        let there = s.flow[e];
        if (there.executes != copy.executes || there.other != copy.other) && self.has(Guard::MemoMustAgree) {
            self.hold(s, epoch);
            return true;
        }
        if there.executes && (there.pinned || self.has(Guard::AdoptUnpinned)) {
            match there.step {
                Step::Closed => self.end_pin(s, Side::Temporal, epoch, End::Done, there.other),
                Step::Terminated => self.end_pin(s, Side::Temporal, epoch, End::Failed, there.other),
                _ => s.flow[e].pinned = true,
            }
        }
        if cancel && s.flow[e].step == Step::Waiting {
            s.flow[e].step = Step::CalledOff;
        }
        self.delivered(s, epoch, cancel);
        true
    }

    /// Puts `copy` where nothing is. Whether it did.
    pub(super) fn arrive_at(&self, s: &mut State, e: usize, copy: Workflow) -> bool {
        let there = s.flow[e];
        let free = match there.step {
            Step::None => true,
            _ if there.open() => !self.has(Guard::UseExisting),
            _ => !self.has(Guard::RejectDuplicate),
        };
        if free {
            s.flow[e] = Workflow { zombie: there.zombie, visible: !self.lag, ..copy };
        }
        free
    }

    /// Takes out the row that this delivery was made of, and no other.
    fn delivered(&self, s: &mut State, epoch: u8, cancel: bool) {
        let other_epoch = s.outbox != epoch && self.has(Guard::DeliveredByEpoch);
        let other_wish = s.outbox_cancel && !cancel && self.has(Guard::CancelStaysInOutbox);
        if !other_epoch && !other_wish {
            self.out_of_the_outbox(s);
        }
    }

    pub(super) fn hold(&self, s: &mut State, epoch: u8) {
        let Some(pin) = s.pin.as_mut().filter(|pin| pin.epoch == epoch) else { return };
        if pin.end == End::Open {
            pin.held = true;
            s.place = Place::Nowhere;
        }
        self.out_of_the_outbox(s);
    }

    pub(super) fn lost(&self, s: &mut State, delivery: u8) -> bool {
        let was = s.net & delivery != 0;
        s.net &= !delivery;
        was
    }

    /// Temporal is away for long: the backlog of rehearsals is bounded.
    pub(super) fn drop_rehearsal(&self, s: &mut State) -> bool {
        let rehearsal = s.open_pin().is_some_and(|pin| pin.owner == Side::Postgres);
        let row = s.outbox != 0 && !s.outbox_cancel;
        s.outbox = 0;
        row && (rehearsal || !self.has(Guard::OnlyRehearsalsAreDropped))
    }

    /// What Temporal should long have ended is delivered again.
    pub(super) fn sweep(&self, s: &mut State) -> bool {
        let stuck = s.open_pin().filter(|pin| pin.owner == Side::Temporal && s.outbox == 0);
        if let Some(pin) = stuck {
            s.outbox = pin.epoch;
        }
        stuck.is_some() && self.has(Guard::Sweep)
    }
}
