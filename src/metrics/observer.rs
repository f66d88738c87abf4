//! What the recorder of both sides' doings says of itself.

use std::time::Duration;

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::{Registering, counters, gauge, histogram, register};
use crate::observer::Sighting;

/// The observer's metrics.
pub struct ObserverMetrics {
    /// Written sightings, by side and what was seen.
    pub sightings: IntCounterVec,
    /// Sightings that were lost.
    pub dropped: IntCounter,
    /// Sightings that wait to be written.
    pub waiting: IntGauge,
    /// One batch.
    pub write_seconds: Histogram,
    /// Failed calls, by call.
    pub errors: IntCounterVec,
}

impl ObserverMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            sightings: counters(
                r,
                "crossover_sightings_total",
                "Sightings written for the comparator, by side and what was seen (delivered, skipped, dequeued, released, ended, refused).",
                &["side", "what"],
            )?,
            dropped: register(
                r,
                IntCounter::new(
                    "crossover_sightings_dropped_total",
                    "Sightings lost because Postgres was away or slow for longer than observer.buffer lasts. The comparator says incomplete for what they would have shown; the work itself is not touched.",
                )?,
            )?,
            waiting: gauge(
                r,
                "crossover_sightings_waiting",
                "Sightings that wait in this process to be written. Grows while Postgres is away; at observer.buffer they are dropped.",
            )?,
            write_seconds: histogram(
                r,
                "crossover_sightings_write_seconds",
                "Seconds that writing one batch of sightings took. No work waits for it.",
            )?,
            errors: counters(
                r,
                "crossover_observer_errors_total",
                "Failed calls of the observer to Postgres, by call (write, beat). They are repeated; a steady rise means Postgres is away.",
                &["call"],
            )?,
        })
    }

    /// Counts a batch that was written.
    pub fn written(&self, batch: &[&Sighting], took: Duration) {
        self.write_seconds.observe(took.as_secs_f64());
        for sighting in batch {
            self.sightings.with_label_values(&[sighting.side.as_str(), sighting.what.name()]).inc();
        }
    }
}
