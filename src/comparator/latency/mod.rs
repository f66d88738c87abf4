//! Latency in pairs: what both sides took for the same interactions, and whether Postgres starts them late.
//!
//! A pair is one interaction whose both copies were dequeued and have ended. Of each pair the start latencies are
//! subtracted, so that what burdens both sides alike (a big payload, a busy minute) cancels out; the pair is *slow*
//! where Postgres started more than a margin later than Temporal. The [test](sequential) asks whether the share of
//! slow pairs is below what is allowed, and may be looked at after every pair. [Sketches](sketch) hold the quantiles of both sides.
//!
//! Everything kept is a sum: of bins, of pairs, of slow pairs. So comparators may add in any order, and days, kinds and
//! accounts add up to views of their own. Pure but for [`storage`], which owns the SQL of `crossover.latencies`.
//!
//! `docs/comparison.md` tells operators how to read and to set it.

mod latencies;
pub mod sequential;
#[cfg(test)]
mod simulation;
pub mod sketch;
pub mod storage;

use chrono::NaiveDate;

pub use crate::config::Latency as Options;
pub use latencies::{Latencies, Measures, Quantiles, SideView, View};
pub use sequential::{Answer, Tally, Test};
pub use sketch::Sketch;
pub use storage::{Filter, Summary};

use crate::interaction::Stage;

/// Both sides' latencies for one interaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The stage that it was pinned in.
    pub stage: Stage,
    /// The day that it counts for, in UTC.
    pub day: NaiveDate,
    /// What Temporal took.
    pub temporal: Timing,
    /// What Postgres took.
    pub postgres: Timing,
}

/// What one side took for an interaction, in seconds. Clocks that differ may make any of them negative.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// From due to dequeued, of the first attempt.
    pub start: f64,
    /// From enqueued (delivered, on Temporal) to dequeued.
    pub queueing: f64,
    /// From dequeued to ended.
    pub run: f64,
}
