//! A series never overlaps, keeps its order, and can end.

use stateright::Property;

use super::state::*;
use super::{Series, members};
use crate::explore::Goal;

/// Two members ran at once.
const OVERLAP: u8 = 1;
/// A member began before an earlier one had ended.
const ORDER: u8 = 2;
/// A member ran twice.
const TWICE: u8 = 4;

pub fn properties() -> Vec<Property<Series>> {
    vec![
        Property::always("a series never overlaps itself", |_, s: &State| s.wrong & OVERLAP == 0),
        Property::always("a series keeps its order", |_, s: &State| s.wrong & ORDER == 0),
        Property::always("a member runs on one side, once", |_, s: &State| s.wrong & TWICE == 0),
    ]
}

/// What was accepted has run, and where it is pinned its end is known.
pub const ENDS: Goal<State> = Goal {
    name: "what was accepted can still end",
    reached: |s| s.member.iter().all(|m| !m.accepted || m.run == Run::Ran && (m.ended || m.no == 0)),
};

impl Series {
    /// The effect of `i` begins, by an attempt whose fence is current.
    pub(super) fn begins(&self, s: &mut State, i: usize) {
        if members().any(|j| s.member[j].run == Run::Runs) {
            s.wrong |= OVERLAP;
        }
        if (0..i).any(|j| s.member[j].accepted && s.member[j].run != Run::Ran) {
            s.wrong |= ORDER;
        }
        if s.member[i].run != Run::Not {
            s.wrong |= TWICE;
        }
        s.member[i].run = Run::Runs;
    }
}
