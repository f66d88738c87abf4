//! Postgres: numbers, the head, the outbox, the queue.

use super::state::*;
use super::{As, Series, members};
use crate::guard::Guard;

impl Series {
    pub(super) fn enqueue(&self, s: &mut State, how: As) -> bool {
        let Some(i) = s.next() else { return false };
        s.member[i].accepted = true;
        if how == As::Unpinned {
            return self.start_unpinned(s, i);
        }
        let owner = if how == As::Shadow { Owner::Temporal } else { Owner::Postgres };
        if owner == Owner::Postgres && !s.armed {
            return false;
        }
        let committed = members().filter(|&j| s.member[j].no != 0 && !s.member[j].open).count() as u8;
        let m = &mut s.member[i];
        m.owner = owner;
        m.outbox = how != As::Complete;
        if self.has(Guard::NumbersUnderLock) {
            s.last += 1;
            m.no = s.last;
            self.pin_commits(s, i);
        } else {
            m.no = committed + 1;
            m.open = true;
        }
        true
    }

    pub(super) fn number_commits(&self, s: &mut State, i: usize) -> bool {
        let open = s.member[i].open;
        self.pin_commits(s, i);
        open
    }

    fn pin_commits(&self, s: &mut State, i: usize) {
        s.member[i].open = false;
        s.member[i].behind[0] = self.behind(s, i);
        let postgres = s.member[i].owner == Owner::Postgres;
        if postgres && (s.member[i].no == s.head || !self.has(Guard::OnlyTheHeadIsPlaced)) {
            s.member[i].place = Place::Ready;
        }
    }

    /// The latest earlier members that Postgres owns and that have not ended.
    fn behind(&self, s: &State, i: usize) -> u8 {
        let mut named = 0;
        for j in members().rev() {
            let m = &s.member[j];
            let behind = s.unended(j) && m.no < s.member[i].no && m.owner == Owner::Postgres;
            if behind && u8::count_ones(named) < self.behind_at_most {
                named |= 1 << j;
            }
        }
        named
    }

    /// `off`: Temporal only, and only where nothing of the series waits to be delivered.
    fn start_unpinned(&self, s: &mut State, i: usize) -> bool {
        let waits = s.member.iter().any(|m| m.outbox) && self.has(Guard::UnpinnedWaitsForOutbox);
        if s.closing || waits || s.signal.is_some() {
            return false;
        }
        s.signal = Some(Copy { member: i as u8, epoch: 1, executes: true });
        true
    }

    /// A router, or the relay: what is first in the chain.
    pub(super) fn send(&self, s: &mut State, i: usize) -> bool {
        let m = s.member[i];
        let earlier = s.member.iter().any(|e| e.outbox && e.no < m.no);
        if !m.outbox || m.open || earlier && self.has(Guard::DeliverInOrder) {
            return false;
        }
        match m.ended {
            true => s.member[i].outbox = false,
            false => s.member[i].net |= 1 << (m.epoch - 1),
        }
        true
    }

    pub(super) fn drop_rehearsal(&self, s: &mut State, i: usize) -> bool {
        let row = s.member[i].outbox && s.member[i].owner == Owner::Postgres && !s.member[i].open;
        s.member[i].outbox = false;
        row
    }

    pub(super) fn handover(&self, s: &mut State, i: usize) -> bool {
        let m = s.member[i];
        if s.operator == 0 || !s.unended(i) || m.owner != Owner::Postgres || m.place == Place::Running {
            return false;
        }
        s.operator -= 1;
        let behind = if self.has(Guard::HandedOverWaitsBehind) { self.behind(s, i) } else { 0 };
        let m = &mut s.member[i];
        m.owner = Owner::Temporal;
        m.epoch = 2;
        m.behind[1] = behind;
        m.outbox = true;
        m.place = Place::Nowhere;
        true
    }

    /// What waits with Postgres ends at once, out of its turn.
    pub(super) fn cancel(&self, s: &mut State, i: usize) -> bool {
        let m = s.member[i];
        if s.operator == 0 || !s.unended(i) || m.owner != Owner::Postgres || m.place == Place::Running {
            return false;
        }
        s.operator -= 1;
        s.member[i].place = Place::Nowhere;
        s.member[i].run = Run::Ran;
        self.end(s, i);
        true
    }

    pub(super) fn claim(&self, s: &mut State, i: usize) -> bool {
        let ready = s.member[i].place == Place::Ready;
        s.member[i].place = Place::Running;
        self.begins(s, i);
        ready
    }

    pub(super) fn finish(&self, s: &mut State, i: usize) -> bool {
        let running = s.member[i].place == Place::Running;
        s.member[i].place = Place::Nowhere;
        s.member[i].run = Run::Ran;
        self.end(s, i);
        running
    }

    /// The pin's end, the head's move and the next one's place are one transaction.
    pub(super) fn end(&self, s: &mut State, i: usize) {
        s.member[i].ended = true;
        let lowest = members().filter(|&j| s.unended(j)).map(|j| s.member[j].no).min();
        self.head_moves(s, lowest.unwrap_or(s.last + 1));
    }

    fn head_moves(&self, s: &mut State, head: u8) {
        let moved = head > s.head;
        s.head = s.head.max(head);
        for m in s.member.iter_mut().filter(|m| m.no == head && !m.open && !m.ended) {
            if moved && m.owner == Owner::Postgres && m.place == Place::Nowhere && self.has(Guard::EndPlacesTheNext) {
                m.place = Place::Ready;
            }
        }
    }

    /// Postgres' rehearsal of a head that Temporal owns was bounded or dropped.
    pub(super) fn rehearsal_on_postgres_ends(&self, s: &mut State) -> bool {
        let head = members().find(|&j| s.unended(j) && s.member[j].no == s.head);
        let rehearses = head.is_some_and(|j| s.member[j].owner == Owner::Temporal);
        if rehearses && !self.has(Guard::RehearsalsKeepTheChain) {
            self.head_moves(s, s.head + 1);
            return true;
        }
        false
    }

    /// What the series' workflow has pending and running gets pins and places in the chain, by an update, which is handled
    /// after every signal before it.
    pub(super) fn reconcile(&self, s: &mut State) -> bool {
        if !s.closing || s.armed {
            return false;
        }
        if self.has(Guard::SeriesIsAskedByUpdate) {
            self.signal_is_handled(s);
        }
        let running = match s.turn {
            Turn::Nobody => None,
            Turn::Waits(copy) | Turn::Runs(copy) | Turn::Settles(copy) => Some(copy),
        };
        for copy in running.into_iter().chain(s.queue.into_iter().flatten()) {
            let m = &mut s.member[usize::from(copy.member)];
            if m.no == 0 {
                s.last += 1;
                m.no = s.last;
                m.owner = Owner::Temporal;
            }
        }
        self.arms(s)
    }

    fn arms(&self, s: &mut State) -> bool {
        s.armed = true;
        true
    }

    pub(super) fn arm(&self, s: &mut State) -> bool {
        let closing = s.closing;
        s.closing = true;
        if self.has(Guard::SeriesIsReconciled) { !closing } else { !s.armed && self.arms(s) }
    }

    pub(super) fn disarm(&self, s: &mut State) -> bool {
        let owns = members().any(|j| s.unended(j) && s.member[j].owner == Owner::Postgres);
        let may = s.armed && s.operator > 0 && (!owns || !self.has(Guard::DisarmDrains));
        s.operator = s.operator.saturating_sub(1);
        s.armed = false;
        s.closing = false;
        may
    }
}
