//! Schedules.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauge, gauges, register};
use crate::schedule::mirrors::Lag;
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
    /// What became of the times that Temporal's scheduler came with.
    pub ticks: IntCounterVec,
    /// Temporal could not be told of a schedule.
    pub mirror_errors: IntCounter,
    /// Threads of the launchers' worker that panicked.
    pub launcher_deaths: IntCounter,
    due: IntGauge,
    oldest_seconds: Gauge,
    stand: IntGaugeVec,
    mirrors_behind: IntGauge,
    mirrors_oldest_seconds: Gauge,
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
            ticks: counters(
                r,
                "crossover_schedule_ticks_total",
                "Times that Temporal's scheduler came with, by what became of them: first (before our own scheduler: the plan was followed), second (ours had come with it), paused, gone (there is no such schedule any longer), stale (of what the schedule was before a change), off_plan (no time of the plan; what Temporal has of the schedule is looked at again), unreadable, later (it could not be looked at or fired, and comes again), and while Postgres is away: unpinned (started without a pin), overlap (an earlier run had not ended), missed (so late that only Postgres knows whether it has run), refused.",
                &["what"],
            )?,
            mirror_errors: register(
                r,
                IntCounter::new(
                    "crossover_schedule_mirror_errors_total",
                    "Tries to tell Temporal of a schedule that came to nothing, because Temporal or Postgres was away or refused. They are repeated; crossover.schedule_mirrors.error says why.",
                )?,
            )?,
            launcher_deaths: register(
                r,
                IntCounter::new(
                    "crossover_schedule_launcher_deaths_total",
                    "Panics of what runs the launchers of Temporal's schedules, which are faults of ours; the log has where. It starts again after a second.",
                )?,
            )?,
            mirrors_behind: gauge(
                r,
                "crossover_schedule_mirrors_behind",
                "Schedules of accounts that are not complete of which Temporal has not what it is to have: a change, a pause or a deletion that it has not been told of yet.",
            )?,
            mirrors_oldest_seconds: float_gauge(
                r,
                "crossover_schedule_mirrors_oldest_seconds",
                "Seconds for which Temporal has longest not been told of a change of a schedule; 0 where it has all.",
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
    pub fn show(&self, counts: &Counts, lag: &Lag) {
        self.mirrors_behind.set(lag.behind);
        self.mirrors_oldest_seconds.set(lag.oldest_seconds);
        self.due.set(counts.due);
        self.oldest_seconds.set(counts.oldest_seconds);
        self.stand.with_label_values(&["paused"]).set(counts.paused);
        self.stand.with_label_values(&["troubled"]).set(counts.troubled);
    }
}
