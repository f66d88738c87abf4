//! Arming and disarming: what routers know and acknowledge, the window, the barriers, reconciliation.

use super::One;
use super::state::*;
use crate::guard::Guard;

impl One {
    /// A router that reaches Postgres registers, tells what it dropped, learns the account's state, writes it to its disk,
    /// and acknowledges what it can.
    pub(super) fn beat(&self, s: &mut State, r: usize) -> bool {
        if !s.router[r].alive {
            return false;
        }
        if s.router[r].spool == Spool::Dropped {
            s.router[r].spool = Spool::Empty;
            if self.has(Guard::DropRestartsWindow) {
                self.restart_window(s);
            }
        }
        let level = level(s.account);
        let router = &mut s.router[r];
        router.registered = true;
        let forgets = self.has(Guard::MarkIsForgotten) && self.has(Guard::EveryKindPins);
        router.knows_mark &= level == Level::Free || !forgets;
        router.level = level;
        let earlier_life = router.start != Start::None && !router.mine && !router.stray;
        let echo = earlier_life && self.has(Guard::AckWaitsForEcho);
        let in_flight = self.has(Guard::AckWaitsForStarts) && router.mine;
        let acks = match level {
            Level::Free => true,
            Level::Pins => !echo && (!in_flight || router.start == Start::FailOpen),
            _ => !echo && !in_flight && (router.spool == Spool::Empty || !self.has(Guard::AckWaitsForSpool)),
        };
        // It may not do more than it has acknowledged, so it takes its word back in the same transaction.
        if self.has(Guard::AckIsTakenBack) {
            router.acked = router.acked.min(level as u8);
        }
        if acks {
            router.acked = router.acked.max(level as u8);
        }
        true
    }

    /// The Temporal workers learn whether unpinned copies ask; not while one is about to run that hasn't asked.
    pub(super) fn workers_beat(&self, s: &mut State) -> bool {
        let flow = s.flow[0];
        let unasked = !flow.pinned && s.pin.is_none() && (flow.step == Step::Claimed || flow.zombie != 0);
        let asks = s.account >= Account::Closing;
        if asks && unasked {
            return false;
        }
        s.asks = asks;
        true
    }

    pub(super) fn flush(&self, s: &mut State, r: usize) -> bool {
        if !s.router[r].alive || s.router[r].spool != Spool::Entry {
            return false;
        }
        s.router[r].spool = Spool::Empty;
        if s.pin.is_none() {
            self.adopt(s, true);
        }
        true
    }

    pub(super) fn drop_entry(&self, s: &mut State, r: usize) -> bool {
        if s.router[r].spool != Spool::Entry {
            return false;
        }
        s.router[r].spool = Spool::Dropped;
        true
    }

    /// Something may have run of which nobody has a record: its key must be past repeating.
    fn restart_window(&self, s: &mut State) {
        s.marked = true;
        if matches!(s.account, Account::Window | Account::Closing) {
            s.account = Account::Window;
            self.window_begins(s);
        }
    }

    fn window_begins(&self, s: &mut State) {
        if s.key == Key::New {
            s.key = Key::Old;
        }
    }

    fn window_ends(&self, s: &mut State) {
        if s.key == Key::Old {
            s.key = Key::Expired;
        }
    }

    fn acknowledged(&self, s: &State, level: Level) -> bool {
        !self.has(Guard::BarrierWaitsForSilent)
            || s.router.iter().all(|r| !r.orphan && (!r.registered || r.acked >= level as u8))
    }

    /// Another interaction of the account gets the first pin.
    pub(super) fn another_is_pinned(&self, s: &mut State) -> bool {
        let open = s.account == Account::Open;
        s.account = Account::Pinning;
        open
    }

    /// Another interaction of the account was started unpinned, and has ended.
    pub(super) fn another_is_unpinned(&self, s: &mut State, r: usize) -> bool {
        let open = s.account == Account::Open && s.router[r].level == Level::Free;
        (s.marked, s.router[r].knows_mark) = (true, true);
        open
    }

    pub(super) fn pinned(&self, s: &mut State) -> bool {
        if s.account != Account::Pinning || !self.acknowledged(s, Level::Pins) {
            return false;
        }
        s.account = Account::Window;
        self.window_begins(s);
        true
    }

    /// The window is waived where the account never had unpinned work. A start of which no disk knows arrives within it
    /// or never: a start's time-out is shorter than a window.
    pub(super) fn window_passes(&self, s: &mut State) -> bool {
        let in_flight = s.router.iter().any(|r| r.start != Start::None && r.stray);
        let in_doubt = self.has(Guard::PinTimesOut) && s.router.iter().any(|r| r.doubt);
        if s.account != Account::Window || in_flight || in_doubt {
            return false;
        }
        if s.marked && self.has(Guard::WindowPasses) {
            self.window_ends(s);
        }
        s.account = Account::Closing;
        true
    }

    /// Nobody wants it live any more: routers may fail open again. The window goes on from where it was.
    pub(super) fn unwanted(&self, s: &mut State) -> bool {
        let closing = s.account == Account::Closing;
        s.account = Account::Window;
        closing
    }

    pub(super) fn closed(&self, s: &mut State) -> bool {
        let workers = s.asks || !self.has(Guard::WorkersAcknowledge);
        if s.account != Account::Closing || !self.acknowledged(s, Level::MustPin) || !workers {
            return false;
        }
        s.account = Account::Reconciling;
        true
    }

    fn unreconciled(&self, s: &State) -> bool {
        s.flow[0].open() && s.flow[0].visible && s.pin.is_none()
    }

    pub(super) fn reconcile(&self, s: &mut State) -> bool {
        if s.account != Account::Reconciling || !self.unreconciled(s) {
            return false;
        }
        self.adopt(s, true);
        true
    }

    pub(super) fn reconciled(&self, s: &mut State) -> bool {
        let done = s.account == Account::Reconciling && (!self.unreconciled(s) || !self.has(Guard::Reconcile));
        s.account = Account::Armed;
        // All that was ever unpinned is past its window, or has a pin.
        s.marked = false;
        done
    }

    pub(super) fn disarm(&self, s: &mut State) -> bool {
        let armed = s.account == Account::Armed && s.operator > 0;
        s.operator = s.operator.saturating_sub(1);
        s.account = Account::Disarming;
        self.window_begins(s);
        armed
    }

    pub(super) fn disarmed(&self, s: &mut State) -> bool {
        let owns = s.open_pin().is_some_and(|pin| pin.owner == Side::Postgres);
        if s.account != Account::Disarming || owns && self.has(Guard::DisarmDrains) {
            return false;
        }
        if self.has(Guard::DisarmWindow) {
            self.window_ends(s);
        }
        s.account = Account::Open;
        true
    }

    pub(super) fn crash(&self, s: &mut State, r: usize) -> bool {
        if s.faults == 0 || !s.router[r].alive {
            return false;
        }
        s.faults -= 1;
        s.router[r].alive = false;
        s.router[r].mine = false;
        s.router[r].knows_mark = false;
        if s.router[r].start == Start::Asked {
            s.router[r].start = Start::None;
        }
        true
    }

    /// An orderly end takes back the registration.
    pub(super) fn stop(&self, s: &mut State, r: usize) -> bool {
        let router = &mut s.router[r];
        let settled = router.start == Start::None || router.stray;
        let clean = router.spool == Spool::Empty && settled || !self.has(Guard::DeregistersClean);
        let stops = router.alive && router.registered && clean;
        router.alive = false;
        router.registered = false;
        router.mine = false;
        router.stray = router.start != Start::None;
        stops
    }

    /// With its disk, hence under the same registration.
    pub(super) fn restart(&self, s: &mut State, r: usize) -> bool {
        let router = &mut s.router[r];
        if router.alive || !router.registered && self.has(Guard::ForgottenDiskIsVoid) {
            return false;
        }
        router.alive = true;
        if !self.has(Guard::LevelOnDisk) {
            router.level = Level::Free;
        }
        true
    }

    /// Without its disk: what it had spooled is lost, and it is somebody new.
    pub(super) fn restart_blank(&self, s: &mut State, r: usize) -> bool {
        let router = &mut s.router[r];
        if router.alive {
            return false;
        }
        router.alive = true;
        router.orphan |= router.registered;
        router.registered = false;
        router.stray = router.start != Start::None;
        router.knows_mark = false;
        router.level = Level::Unknown;
        router.acked = 0;
        router.spool = Spool::Empty;
        true
    }

    /// An operator says that the process of a silent registration is stopped. What it spooled may never be known.
    pub(super) fn forget(&self, s: &mut State, r: usize) -> bool {
        let router = &mut s.router[r];
        let silent = router.registered && !router.alive;
        if !silent && !router.orphan {
            return false;
        }
        let closed = silent && !router.orphan && router.acked >= Level::MustPin as u8;
        router.orphan = false;
        if silent {
            router.registered = false;
            router.stray = router.start != Start::None;
        }
        if !closed && self.has(Guard::ForgetRestartsWindow) {
            self.restart_window(s);
        }
        true
    }
}
