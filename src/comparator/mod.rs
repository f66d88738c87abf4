//! Measures where rehearsal and execution part: every interaction of `shadow` and `live` gets one row with what both
//! sides did, and a verdict.
//!
//! `facts` is what is known of one interaction and `gather` puts it together; `judge` says what it means, without I/O, clock
//! or globals. `pass` does so again and again, and hands pairs to `latency`; `storage` speaks the SQL of observations, comparators and scores.

pub mod facts;
mod gather;
pub mod judge;
pub mod lanes;
pub mod latency;
mod pass;
pub mod rules;
mod storage;
mod written;

pub use gather::Gathered;
pub use pass::{Comparator, ComparatorOptions, caught_up};

use crate::interaction::{Side, names};

names! {
    /// What the comparator makes of an interaction.
    Verdict {
        /// A side has not settled yet.
        InFlight = "in_flight",
        /// Both sides did the same.
        Matched = "matched",
        /// They did not; see its divergences.
        Diverged = "diverged",
        /// A side left it out on purpose: it had ended before it could be delivered, or was called off.
        Dropped = "dropped",
        /// Both sides settled, but something made them incomparable: a lost worker, a bounded rehearsal, an outage.
        NotComparable = "not_comparable",
        /// What was seen of it has holes.
        Incomplete = "incomplete",
    }
}

names! {
    /// How the sides differ.
    Class {
        /// A side never began it.
        Missing = "missing",
        /// A side has it that should not.
        Extra = "extra",
        /// A side began the same attempt twice.
        Duplicate = "duplicate",
        /// A side began it late, and after work that was due later.
        Late = "late",
        /// A side began it before it was due.
        Early = "early",
        /// A side began a member of a series before its predecessor.
        Order = "order",
        /// A member of a series ran while its predecessor still did.
        Overlap = "overlap",
        /// A side read another payload than the one that was pinned.
        Payload = "payload",
        /// The sides made other attempts, or waited otherwise between them.
        Attempts = "attempts",
        /// The sides ended otherwise.
        Outcome = "outcome",
        /// A side's copy names another kind or group than the pin.
        Routing = "routing",
        /// Temporal holds another copy under this id.
        OwnerConflict = "owner_conflict",
        /// A side executed what it does not own.
        UnclaimedEffect = "unclaimed_effect",
    }
}

impl Class {
    /// Whether somebody must look at once.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Class::OwnerConflict | Class::UnclaimedEffect)
    }
}

/// A thing of each side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PerSide<T> {
    /// Temporal's.
    pub temporal: T,
    /// Postgres's.
    pub postgres: T,
}

impl<T> PerSide<T> {
    /// That of `side`.
    pub fn of(&self, side: Side) -> &T {
        match side {
            Side::Temporal => &self.temporal,
            Side::Postgres => &self.postgres,
        }
    }

    /// That of `side`, to change it.
    pub fn of_mut(&mut self, side: Side) -> &mut T {
        match side {
            Side::Temporal => &mut self.temporal,
            Side::Postgres => &mut self.postgres,
        }
    }
}
