//! What an operator asks: how the two sides compare ([`Report`]), the whole of one interaction ([`Story`]), and where the
//! migration stands ([`Overview`]). Plain structs that `--json` prints as they are; the tables are the command line's.
//!
//! `verdict` decides and is pure; `read`, `story` and `overview` only ask. They read what other modules write and write nothing.

mod outage;
mod overview;
mod read;
mod story;
mod verdict;

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use uuid::Uuid;

pub use outage::temporal_away_since;
pub use overview::{Blocked, Comparison, Overview, overview};
pub use read::{Question, read};
pub use story::{
    Before, Contents, Difference, Event, Observation, Outbox, PinPart, Place, ResultOf, Series, SideSeen, Standing,
    Story, meaning, observation, story,
};
pub use verdict::{Answer, Bounds, Evidence, judge};

/// How the sides compare, by account, kind and stage.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// When it was made.
    pub at: DateTime<Utc>,
    /// It is about what was pinned since then.
    pub since: DateTime<Utc>,
    /// Latencies are kept by day (UTC): theirs begin here.
    pub latencies_since: DateTime<Utc>,
    /// The comparator that was last heard of.
    pub comparator: Option<Comparator>,
    /// The heaviest first.
    pub lines: Vec<Line>,
    /// Lines that were left out.
    pub more: usize,
    /// Over all lines, those that were left out too.
    pub total: Total,
    /// Pinned in `off` or `complete`: one side only, nothing to compare.
    pub one_sided: i64,
}

/// Where a comparator stands.
#[derive(Debug, Clone, Serialize)]
pub struct Comparator {
    /// Its name.
    pub name: String,
    /// Since when it runs.
    pub started_at: DateTime<Utc>,
    /// Seconds since it was last heard of.
    pub silent_seconds: f64,
    /// Seconds by which it is behind the pins.
    pub lag_seconds: f64,
}

/// One account, kind and stage.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The stage that it was pinned in.
    pub stage: String,
    /// Interactions pinned.
    pub pinned: i64,
    /// Of these, judged with both sides seen.
    pub judged: i64,
    /// Their share; none without pins.
    pub coverage: Option<f64>,
    /// Interactions by verdict of the comparator.
    pub verdicts: BTreeMap<String, i64>,
    /// What differs.
    pub divergences: Vec<Found>,
    /// What both sides took, for the same interactions.
    pub latency: Option<Latency>,
    /// What it comes to.
    pub verdict: Answer,
    /// Why it is no pass.
    pub why: Vec<String>,
}

/// Divergences of one class.
#[derive(Debug, Clone, Serialize)]
pub struct Found {
    /// The class.
    pub class: String,
    /// Interactions.
    pub count: i64,
    /// The newest of them, three at most.
    pub examples: Vec<Uuid>,
    /// What to type next.
    pub next: String,
}

/// What both sides took, in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct Latency {
    /// Pairs.
    pub pairs: u64,
    /// Temporal's.
    pub temporal: SideLatency,
    /// Postgres'.
    pub postgres: SideLatency,
    /// What the sequential test says of Postgres' start against Temporal's.
    pub answer: Answer,
    /// The test's numbers, for a person.
    pub test: String,
}

/// What one side took, in milliseconds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SideLatency {
    /// From due to dequeued.
    pub start: Option<Quantiles>,
    /// From dequeued to ended.
    pub run: Option<Quantiles>,
}

/// Half, 95 and 99 of 100 were faster.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half.
    pub p50: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
}

/// Over all lines.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Total {
    /// Lines.
    pub lines: usize,
    /// Interactions pinned.
    pub pinned: i64,
    /// Of these, judged with both sides seen.
    pub judged: i64,
    /// Interactions by verdict of the comparator.
    pub verdicts: BTreeMap<String, i64>,
    /// Divergences by class.
    pub classes: BTreeMap<String, i64>,
    /// Lines that pass.
    pub pass: usize,
    /// Lines that fail.
    pub fail: usize,
    /// Lines of which it is not known.
    pub inconclusive: usize,
}

impl Total {
    /// Over these lines.
    pub fn of(lines: &[Line]) -> Self {
        let mut total = Self { lines: lines.len(), ..Self::default() };
        for line in lines {
            total.pinned += line.pinned;
            total.judged += line.judged;
            for (verdict, count) in &line.verdicts {
                *total.verdicts.entry(verdict.clone()).or_default() += count;
            }
            for found in &line.divergences {
                *total.classes.entry(found.class.clone()).or_default() += found.count;
            }
            match line.verdict {
                Answer::Pass => total.pass += 1,
                Answer::Fail => total.fail += 1,
                Answer::Inconclusive => total.inconclusive += 1,
            }
        }
        total
    }

    /// The whole report's: a fail anywhere is one; without a single line nothing is known.
    pub fn verdict(&self) -> Answer {
        match self {
            Self { fail: 1.., .. } => Answer::Fail,
            Self { lines: 0, .. } | Self { inconclusive: 1.., .. } => Answer::Inconclusive,
            _ => Answer::Pass,
        }
    }
}
