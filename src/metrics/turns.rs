//! What excludes others (`exclusive`), and waits for its turn.

use prometheus::{Gauge, IntCounter, IntGauge};

use super::{Registering, counter, float_gauge, gauge};
use crate::ledger::TurnCounts;

/// The metrics of turns.
pub struct TurnMetrics {
    /// Turns that were given to what waited for them.
    pub given: IntCounter,
    /// Turns that were found late.
    pub overlooked: IntCounter,
    waiting: IntGauge,
    oldest_seconds: Gauge,
    unsettled_seconds: Gauge,
}

impl TurnMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            given: counter(
                r,
                "crossover_turns_given_total",
                "Turns given to interactions that waited because no two of their `exclusive` run at once. What found nobody before it is not counted.",
            )?,
            overlooked: counter(
                r,
                "crossover_turns_overlooked_total",
                "Turns of an `exclusive` that nobody used or nobody was given, found only by a later search. Always 0; anything else is a fault of crossover, and its effect was a delay.",
            )?,
            waiting: gauge(
                r,
                "crossover_turns_waiting",
                "Interactions that wait for their turn (`exclusive`), counted up to 100,000. crossover tasks --state waiting lists them with whose turn it is.",
            )?,
            oldest_seconds: float_gauge(
                r,
                "crossover_turns_oldest_seconds",
                "Seconds for which the longest of them has waited for its turn, of those that were counted; 0 where none does. Look at it with crossover tasks show: it names who has the turn, and where that stands.",
            )?,
            unsettled_seconds: float_gauge(
                r,
                "crossover_turns_unsettled_seconds",
                "Seconds since the oldest note of a turn that nobody has looked at. Workers do, within a second; more says that none does, or that each fails (crossover_queue_errors_total, give_turns).",
            )?,
        })
    }

    /// Shows how much waits.
    pub fn show(&self, counts: &TurnCounts) {
        self.waiting.set(counts.waiting);
        self.oldest_seconds.set(counts.oldest_seconds);
        self.unsettled_seconds.set(counts.unsettled_seconds);
    }
}
