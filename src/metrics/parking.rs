//! What is parked because nobody knows what came of its last attempt.

use prometheus::{Gauge, IntCounterVec, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauges};
use crate::ledger::ParkedCounts;

/// The metrics of unknown outcomes.
pub struct ParkingMetrics {
    /// Interactions parked, by side and cause.
    pub parked: IntCounterVec,
    /// Answers that Temporal was told, by outcome.
    pub told: IntCounterVec,
    now: IntGaugeVec,
    oldest_seconds: Gauge,
    resolved: IntGaugeVec,
}

impl ParkingMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            parked: counters(
                r,
                "crossover_parked_total",
                "Interactions parked as unknown_outcome because their policy says so, by side and cause: connection (it broke after the request was sent), run_timeout, heartbeat_timeout, worker (it died, stalled or was stopped).",
                &["side", "cause"],
            )?,
            told: counters(
                r,
                "crossover_resolutions_told_total",
                "Answers to parked interactions of Temporal that the relay took, by outcome: told, gone (its workflow had ended), failed (it is told again).",
                &["outcome"],
            )?,
            now: gauges(
                r,
                "crossover_parked",
                "Interactions that are parked as unknown_outcome now, by side. Each waits for a person, and its series behind it: crossover unknown lists them.",
                &["side"],
            )?,
            oldest_seconds: float_gauge(
                r,
                "crossover_parked_oldest_seconds",
                "Seconds for which the oldest interaction has been parked; 0 where none is.",
            )?,
            resolved: gauges(
                r,
                "crossover_resolutions",
                "Parked interactions that people ever resolved, by answer: succeeded, failed, retry. select * from crossover.resolutions says who and why.",
                &["answer"],
            )?,
        })
    }

    /// Shows how much is parked.
    pub fn show(&self, counts: &ParkedCounts) {
        for (side, count) in [("temporal", counts.temporal), ("postgres", counts.postgres)] {
            self.now.with_label_values(&[side]).set(count);
        }
        self.oldest_seconds.set(counts.oldest_seconds);
        for (answer, count) in [("succeeded", counts.succeeded), ("failed", counts.failed), ("retry", counts.retry)] {
            self.resolved.with_label_values(&[answer]).set(count);
        }
    }
}
