//! Temporal: the one workflow of the series, which takes its copies one after another.

use super::Series;
use super::state::*;
use crate::guard::Guard;

impl Series {
    /// Signal-with-start. What the workflow knows is dropped.
    pub(super) fn arrives(&self, s: &mut State, i: usize, epoch: u8) -> bool {
        let m = s.member[i];
        if m.net & 1 << (epoch - 1) == 0 {
            return false;
        }
        let executes = epoch == 2 || m.owner == Owner::Temporal && m.epoch == 1;
        // What came before it is handled before it.
        self.signal_is_handled(s);
        self.takes(s, Copy { member: i as u8, epoch, executes });
        true
    }

    /// Whoever sent it learns that it arrived. Until then it may arrive again.
    pub(super) fn received(&self, s: &mut State, i: usize, epoch: u8) -> bool {
        let bit = 1 << (epoch - 1);
        let under_way = s.member[i].net & bit != 0 && s.known & bit << (2 * i) != 0;
        s.member[i].net &= !bit;
        if epoch == s.member[i].epoch {
            s.member[i].outbox = false;
        }
        under_way
    }

    pub(super) fn continue_as_new(&self, s: &mut State) -> bool {
        if s.turn != Turn::Nobody || self.has(Guard::ContinuesWithEverything) {
            return s.turn == Turn::Nobody && self.signal_is_handled(s);
        }
        s.signal.take().is_some()
    }

    pub(super) fn signal_is_handled(&self, s: &mut State) -> bool {
        let signal = s.signal.take();
        if let Some(copy) = signal {
            self.takes(s, copy);
        }
        signal.is_some()
    }

    fn takes(&self, s: &mut State, copy: Copy) {
        let bit = 1 << (copy.member * 2 + copy.epoch - 1);
        // A rehearsal that comes after the handover's copy would rehearse what runs here.
        let late = copy.epoch == 1 && s.known & bit << 1 != 0;
        if s.known & bit != 0 && self.has(Guard::SeriesRemembers) || late {
            return;
        }
        s.known |= bit;
        if copy.epoch == 2 {
            self.takes_handed_over(s, copy);
        } else {
            self.push(s, copy);
        }
    }

    /// It replaces its rehearsal, and goes before all that is later in the chain; what has the turn and has not begun lets
    /// it pass. Not in its rehearsal's place: one that was late may stand behind a later one.
    fn takes_handed_over(&self, s: &mut State, copy: Copy) {
        if !self.has(Guard::HandoverKeepsItsPlace) {
            return self.push(s, copy);
        }
        if let Turn::Waits(waiting) = s.turn
            && (waiting.member == copy.member || self.later(s, waiting, copy) && self.has(Guard::WaitingLetsPass))
        {
            s.turn = Turn::Nobody;
            if waiting.member != copy.member {
                self.insert(s, 0, waiting);
            }
        }
        if let Some(at) = s.queue.iter().position(|c| c.is_some_and(|c| c.member == copy.member)) {
            s.queue[at..].rotate_left(1);
            *s.queue.last_mut().unwrap() = None;
        }
        let at = s.queue.iter().position(|c| c.is_none_or(|c| self.later(s, c, copy))).unwrap();
        self.insert(s, at, copy);
    }

    fn later(&self, s: &State, one: Copy, than: Copy) -> bool {
        s.member[usize::from(one.member)].no > s.member[usize::from(than.member)].no
    }

    fn push(&self, s: &mut State, copy: Copy) {
        // Only where a guard is missing it knows more copies than it has members.
        if let Some(at) = s.queue.iter().position(Option::is_none) {
            s.queue[at] = Some(copy);
        }
    }

    fn insert(&self, s: &mut State, at: usize, copy: Copy) {
        s.queue[at..].rotate_right(1);
        s.queue[at] = Some(copy);
    }

    pub(super) fn begin(&self, s: &mut State) -> bool {
        let Some(copy) = s.queue[0] else { return false };
        if s.turn != Turn::Nobody && self.has(Guard::OneAtATime) {
            return false;
        }
        s.queue.rotate_left(1);
        *s.queue.last_mut().unwrap() = None;
        s.turn = Turn::Waits(copy);
        true
    }

    /// An execution, once what is behind it has ended.
    pub(super) fn effect(&self, s: &mut State) -> bool {
        let Turn::Waits(copy) = s.turn else { return false };
        let i = usize::from(copy.member);
        let m = s.member[i];
        let named = m.behind[usize::from(copy.epoch - 1)];
        let is_head = self.has(Guard::BehindMeansHead);
        let behind = |j: usize| named & 1 << j != 0 || is_head && named != 0 && s.member[j].no < m.no;
        let waits = (0..MEMBERS).any(|j| s.unended(j) && behind(j));
        if !copy.executes || waits && self.has(Guard::BehindWaits) {
            return false;
        }
        s.turn = Turn::Runs(copy);
        self.begins(s, i);
        true
    }

    pub(super) fn result(&self, s: &mut State) -> bool {
        let Turn::Runs(copy) = s.turn else { return false };
        s.member[usize::from(copy.member)].run = Run::Ran;
        s.turn = Turn::Settles(copy);
        true
    }

    pub(super) fn settle(&self, s: &mut State) -> bool {
        let Turn::Settles(copy) = s.turn else { return false };
        let i = usize::from(copy.member);
        if s.unended(i) && s.member[i].owner == Owner::Temporal && s.member[i].epoch == copy.epoch {
            self.end(s, i);
        }
        s.turn = Turn::Nobody;
        true
    }

    /// The real run has ended.
    pub(super) fn rehearsal_ends(&self, s: &mut State) -> bool {
        let Turn::Waits(copy) = s.turn else { return false };
        s.turn = Turn::Nobody;
        !copy.executes && s.member[usize::from(copy.member)].ended
    }

    /// Its bound passes before the real run has ended.
    pub(super) fn rehearsal_is_bounded(&self, s: &mut State) -> bool {
        let Turn::Waits(copy) = s.turn else { return false };
        s.turn = Turn::Nobody;
        !copy.executes
    }
}
