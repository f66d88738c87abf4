//! What the comparator says of itself and of the sides.

use prometheus::{Gauge, Histogram, HistogramVec, IntCounterVec, IntGauge};

use super::{Registering, counters, float_gauge, gauge, histogram, histograms};
use crate::comparator::facts::Instant;
use crate::comparator::latency::Pair;
use crate::interaction::Side;

/// The comparator's metrics.
pub struct ComparatorMetrics {
    /// New verdicts.
    pub verdicts: IntCounterVec,
    /// New divergences, by class and side.
    pub divergences: IntCounterVec,
    /// How far it is behind.
    pub lag_seconds: Gauge,
    /// Interactions without a final verdict.
    pub pending: IntGauge,
    /// What share was compared.
    pub coverage_ratio: Gauge,
    /// From due to dequeued, of interactions that both sides have begun.
    pub paired_start_seconds: HistogramVec,
    /// One pass.
    pub pass_seconds: Histogram,
    /// Failed passes, by step.
    pub errors: IntCounterVec,
}

impl ComparatorMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            verdicts: counters(
                r,
                "crossover_verdicts_total",
                "Verdicts of the comparator on interactions (matched, diverged, dropped, not_comparable, incomplete). One that is judged again and otherwise counts again.",
                &["verdict"],
            )?,
            divergences: counters(
                r,
                "crossover_divergences_total",
                "Differences between rehearsal and real run, by class and the side that they were seen on. Any is worth a look before a cutover; owner_conflict and unclaimed_effect are worth waking somebody.",
                &["class", "side"],
            )?,
            lag_seconds: float_gauge(
                r,
                "crossover_comparator_lag_seconds",
                "Seconds by which the comparator is behind with new pins and sightings. Over a minute: see whether it runs, and whether a transaction was left open.",
            )?,
            pending: gauge(
                r,
                "crossover_comparator_pending",
                "Interactions that the comparator will look at again, at most 100000. Most are in flight; growing without traffic means that a side does not settle its work.",
            )?,
            coverage_ratio: float_gauge(
                r,
                "crossover_comparator_coverage_ratio",
                "Share of the interactions judged today that could be compared (matched or diverged), times comparator.sample. Low: see the reasons of dropped, not_comparable and incomplete ones.",
            )?,
            paired_start_seconds: histograms(
                r,
                "crossover_paired_start_seconds",
                "Seconds from due to dequeued of the same interactions on both sides, by side. `crossover report` has them by account and kind, with a verdict.",
                &["side"],
            )?,
            pass_seconds: histogram(
                r,
                "crossover_comparator_pass_seconds",
                "Seconds that one pass of the comparator took.",
            )?,
            errors: counters(
                r,
                "crossover_comparator_errors_total",
                "Passes of the comparator that failed, by call (lead, begin, pins, sightings, look, keep_house; panic: a fault of ours). They are repeated; verdicts wait meanwhile.",
                &["call"],
            )?,
        })
    }

    /// Shows the start latency of both sides of these interactions.
    pub fn paired(&self, pairs: &[Pair]) {
        for pair in pairs {
            for (side, timing) in [(Side::Temporal, pair.temporal), (Side::Postgres, pair.postgres)] {
                self.paired_start_seconds.with_label_values(&[side.as_str()]).observe(timing.start.max(0.0));
            }
        }
    }

    /// Shows how far it is behind.
    pub fn behind(&self, now: Instant, until: Instant) {
        self.lag_seconds.set((now - until).as_seconds_f64().max(0.0));
    }
}
