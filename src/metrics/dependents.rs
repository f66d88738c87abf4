//! What waits for other work to end.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge};

use super::{Registering, counter, counters, float_gauge, gauge};
use crate::ledger::{Settled, WaitingCounts};

/// The metrics of dependencies.
pub struct DependentMetrics {
    /// Ends that were found late.
    pub overlooked: IntCounter,
    settled: IntCounterVec,
    waiting: IntGauge,
    oldest_seconds: Gauge,
    unsettled_seconds: Gauge,
}

impl DependentMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            overlooked: counter(
                r,
                "crossover_dependents_overlooked_total",
                "Ends that something waited for, and that were found only by a later search. Always 0; anything else is a fault of crossover, and its effect was a delay.",
            )?,
            settled: counters(
                r,
                "crossover_dependents_settled_total",
                "Interactions that need not wait for others (`after`) any longer, by what became of them: released (they may run), skipped (cancelled, because what they were to run after did not succeed).",
                &["became"],
            )?,
            waiting: gauge(
                r,
                "crossover_dependents",
                "Interactions that wait for others to end (`after`), counted up to 100,000. crossover tasks --state waiting lists them with what they wait for.",
            )?,
            oldest_seconds: float_gauge(
                r,
                "crossover_dependents_oldest_seconds",
                "Seconds for which the oldest interaction has waited for others to end, of those that were counted; 0 where none does. A day of it may be meant so: look at one with crossover tasks show.",
            )?,
            unsettled_seconds: float_gauge(
                r,
                "crossover_dependents_unsettled_seconds",
                "Seconds since the oldest end that is not settled with what waits for it. Workers settle it, within a second; more says that none does, or that each fails (crossover_queue_errors_total, settle_dependents).",
            )?,
        })
    }

    /// Counts what a look came to.
    pub fn settled(&self, settled: &Settled) {
        for (became, count) in [("released", settled.released), ("skipped", settled.skipped)] {
            self.settled.with_label_values(&[became]).inc_by(count.max(0) as u64);
        }
    }

    /// Shows how much waits.
    pub fn show(&self, counts: &WaitingCounts) {
        self.waiting.set(counts.waiting);
        self.oldest_seconds.set(counts.oldest_seconds);
        self.unsettled_seconds.set(counts.unsettled_seconds);
    }
}
