//! Decide, pin, or start without a pin.

use super::state::*;
use super::{One, Want};
use crate::guard::Guard;

impl One {
    /// A request comes to `r`: whether it takes it, and what it may do.
    fn asked(&self, s: &mut State, r: usize) -> Option<Level> {
        let level = match s.router[r].level {
            Level::Unknown if self.has(Guard::RegisterBeforeTraffic) => return None,
            Level::Unknown => Level::Free,
            level => level,
        };
        if !s.router[r].alive || s.requests == 0 || s.key == Key::Expired {
            return None;
        }
        s.requests -= 1;
        if s.key == Key::Unused {
            s.key = if s.account >= Account::Window { Key::New } else { Key::Old };
        }
        Some(level)
    }

    /// Stage `off` of an account that isn't being armed, as far as `r` knows: Temporal only.
    pub(super) fn start_unpinned(&self, s: &mut State, r: usize) -> bool {
        let Some(level) = self.asked(s, r) else { return false };
        if level != Level::Free && self.has(Guard::EveryKindPins) || s.router[r].start != Start::None {
            return false;
        }
        s.router[r].mine = true;
        s.router[r].start = Start::Off;
        if !s.router[r].knows_mark && self.has(Guard::MarkBeforeUnpinned) {
            if s.account != Account::Open {
                return false;
            }
            match self.has(Guard::AccountLock) {
                true => (s.marked, s.router[r].knows_mark) = (true, true),
                false => s.router[r].start = Start::Asked,
            }
        }
        true
    }

    /// Without the account's lock the mark commits whatever happened since it was asked for.
    pub(super) fn mark_commits(&self, s: &mut State, r: usize) -> bool {
        let asked = s.router[r].start == Start::Asked;
        s.router[r].start = Start::Off;
        (s.marked, s.router[r].knows_mark) = (true, true);
        asked
    }

    pub(super) fn pin(&self, s: &mut State, r: usize, want: Want, other: bool) -> bool {
        let Some(level) = self.asked(s, r) else { return false };
        if want == Want::Off && level == Level::Free && (s.router[r].knows_mark || s.account == Account::Open) {
            return false;
        }
        self.pin_commits(s, want, other);
        true
    }

    /// Postgres is away for `r`, or slow. Its request for a pin may still be on its way there.
    pub(super) fn fail_open(&self, s: &mut State, r: usize, doubt: bool) -> bool {
        let Some(level) = self.asked(s, r) else { return false };
        let router = &mut s.router[r];
        if level > Level::Pins && self.has(Guard::ArmedRefuses) || router.start != Start::None || doubt && router.doubt
        {
            return false;
        }
        router.doubt |= doubt;
        router.mine = true;
        router.start = Start::FailOpen;
        if self.has(Guard::SpoolBeforeStart) && router.spool == Spool::Empty {
            router.spool = Spool::Entry;
        }
        true
    }

    pub(super) fn doubtful_pin_commits(&self, s: &mut State, r: usize) -> bool {
        if !s.router[r].doubt {
            return false;
        }
        s.router[r].doubt = false;
        self.pin_commits(s, Want::Live, false);
        true
    }

    pub(super) fn doubtful_pin_fails(&self, s: &mut State, r: usize) -> bool {
        std::mem::take(&mut s.router[r].doubt)
    }

    /// One transaction: the pin, the Postgres copy, the outbox row. The first insert wins.
    fn pin_commits(&self, s: &mut State, want: Want, other: bool) {
        if let Some(pin) = s.pin
            && (self.has(Guard::FirstInsertWins) || pin.end != End::Open)
        {
            s.accepted |= pin.other == other;
            return;
        }
        let on_the_spot = self.on_the_spot && want >= Want::Live && !s.marked;
        if on_the_spot && s.account < Account::Armed {
            s.account = Account::Armed;
        } else if s.account == Account::Open && want > Want::Off {
            s.account = Account::Pinning;
        }
        let may_own = s.account == Account::Armed || !self.has(Guard::OnlyArmedOwns);
        let may_own = may_own || s.account == Account::Disarming && !self.has(Guard::DisarmingOwnsNothing);
        let postgres = want >= Want::Live && may_own;
        let owner = if postgres { Side::Postgres } else { Side::Temporal };
        let wish = false;
        s.pin = Some(Pin { owner, epoch: 1, end: End::Open, wish, held: false, other });
        s.accepted = true;
        if postgres {
            s.place = Place::Ready(1);
        }
        if !(postgres && want == Want::Complete) {
            self.hand_to_temporal(s);
        }
    }

    /// The outbox row; without it the router's own delivery is all there is.
    fn hand_to_temporal(&self, s: &mut State) {
        match self.has(Guard::OutboxInThePin) {
            true => s.outbox = 1,
            false => s.net |= super::delivery::of(&s.pin.unwrap(), false),
        }
    }

    /// A pin for what runs, or ran, without one.
    pub(super) fn adopt(&self, s: &mut State, outbox: bool) {
        let other = s.flow[0].other;
        s.pin = Some(Pin { owner: Side::Temporal, epoch: 1, end: End::Open, wish: false, held: false, other });
        s.accepted = true;
        if outbox {
            s.outbox = 1;
        }
    }

    pub(super) fn start_lands(&self, s: &mut State, r: usize) -> bool {
        if !matches!(s.router[r].start, Start::Off | Start::FailOpen) {
            return false;
        }
        self.arrive_at(s, 0, Workflow { executes: true, step: Step::Waiting, ..Workflow::NONE });
        if !s.router[r].mine {
            s.router[r].start = Start::None;
            s.router[r].stray = false;
        }
        true
    }

    /// A definite yes, or that the workflow is there already.
    pub(super) fn start_answered(&self, s: &mut State, r: usize) -> bool {
        let router = &mut s.router[r];
        if !router.alive || !router.mine || s.flow[0].step == Step::None {
            return false;
        }
        if router.start == Start::FailOpen && router.spool == Spool::Empty && !self.has(Guard::SpoolBeforeStart) {
            router.spool = Spool::Entry;
        }
        s.accepted |= s.flow[0].executes && !s.flow[0].other;
        let begun = router.start != Start::None;
        router.start = Start::None;
        router.mine = false;
        begun
    }

    /// A definite no, or a request whose process is gone and that got nowhere.
    pub(super) fn start_lost(&self, s: &mut State, r: usize) -> bool {
        let begun = matches!(s.router[r].start, Start::Off | Start::FailOpen);
        s.router[r].start = Start::None;
        s.router[r].mine = false;
        s.router[r].stray = false;
        begun
    }

    pub(super) fn key_expires(&self, s: &mut State) -> bool {
        let used = s.key != Key::Unused;
        s.key = Key::Expired;
        used
    }

    /// The pin has ended long ago.
    pub(super) fn pin_dropped(&self, s: &mut State) -> bool {
        let ended = s.pin.is_some_and(|pin| pin.end != End::Open) && s.outbox == 0;
        let past = s.key == Key::Expired || !self.has(Guard::PinsOutlastKeys);
        s.pin = None;
        ended && past
    }
}
