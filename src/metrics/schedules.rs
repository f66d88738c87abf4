//! Schedules.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauge, gauges, register};
use crate::schedule::storage::Counts;

/// What schedules do.
pub struct ScheduleMetrics {
    /// Runs enqueued, by what asked for them.
    pub fired: IntCounterVec,
    /// Times that did not run, by reason.
    pub skipped: IntCounterVec,
    /// Runs that were refused for good, by reason.
    pub failed: IntCounterVec,
    /// From the time that a run was due to its enqueue.
    pub late_seconds: Histogram,
    /// Looks that came to nothing.
    pub errors: IntCounter,
    due: IntGauge,
    oldest_seconds: Gauge,
    stand: IntGaugeVec,
}

/// A schedule may be found late by hours.
const LATE: [f64; 14] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];

impl ScheduleMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            fired: counters(
                r,
                "crossover_schedule_fired_total",
                "Runs that schedules enqueued, by how: schedule (its time had come), trigger (somebody asked for it).",
                &["how"],
            )?,
            skipped: counters(
                r,
                "crossover_schedule_skipped_total",
                "Times of schedules that did not run, by reason: overlap (an earlier run had not ended), queue_full (1,000 of its runs wait), missed (found later than its catch-up window allows), superseded (a later one was found with it, and only the latest runs), paused. Of more than 100 times by a clock that are skipped at once, 100 are counted.",
                &["reason"],
            )?,
            failed: counters(
                r,
                "crossover_schedule_failed_total",
                "Runs of schedules that could not be enqueued, by why: refused (for good: the run is recorded as failed in crossover.schedule_runs with its reason, and the schedule goes on), postponed (it is tried again, later each time; crossover.schedules.trouble says why).",
                &["why"],
            )?,
            late_seconds: register(
                r,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "crossover_schedule_late_seconds",
                        "Seconds from when a run was due, its jitter included, to its enqueue. Over a few seconds without an outage: too few routers for so many schedules, or Postgres is slow.",
                    )
                    .buckets(LATE.to_vec()),
                )?,
            )?,
            errors: register(
                r,
                IntCounter::new(
                    "crossover_schedule_errors_total",
                    "Looks at due schedules that came to nothing, because Postgres was away or refused. They are repeated, and nothing is lost or enqueued twice by them.",
                )?,
            )?,
            due: gauge(
                r,
                "crossover_schedules_due",
                "Schedules that are due and that no router has looked at yet. A number that stays: see whether routers run, and crossover_schedule_errors_total.",
            )?,
            oldest_seconds: float_gauge(
                r,
                "crossover_schedules_oldest_seconds",
                "Seconds for which the longest overdue schedule has been due; 0 where none is.",
            )?,
            stand: gauges(
                r,
                "crossover_schedules",
                "Schedules that do not fire, by state: paused (somebody paused them; pause_reason says why), troubled (they can't be fired for now and are tried again; trouble says why).",
                &["state"],
            )?,
        })
    }

    /// Shows how the schedules stand.
    pub fn show(&self, counts: &Counts) {
        self.due.set(counts.due);
        self.oldest_seconds.set(counts.oldest_seconds);
        self.stand.with_label_values(&["paused"]).set(counts.paused);
        self.stand.with_label_values(&["troubled"]).set(counts.troubled);
    }
}
