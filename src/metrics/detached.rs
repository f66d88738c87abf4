//! What runners took away.

use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauge, gauges};
use crate::ledger::DetachedCounts;

/// The metrics of long work.
pub struct DetachedMetrics {
    /// Attempts that a runner took away, by side.
    pub taken: IntCounterVec,
    /// What runners reported, by report and answer.
    pub reports: IntCounterVec,
    /// What Temporal was told, by word and outcome.
    pub forwarded: IntCounterVec,
    /// Attempts that were lost with their runner, by side and cause.
    pub lost: IntCounterVec,
    now: IntGaugeVec,
    silent_seconds: Gauge,
    untold: IntGauge,
}

impl DetachedMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            taken: counters(
                r,
                "crossover_detached_total",
                "Attempts that a runner took away from this worker (202 with Crossover-Detached), by side. They hold no slot.",
                &["side"],
            )?,
            reports: counters(
                r,
                "crossover_detached_reports_total",
                "Reports of runners on what they took away, by report (heartbeat, complete, fail) and answer: taken, again (known before), late (refused: another attempt has the work, or it has ended), not_yet (503: its worker has not recorded it).",
                &["report", "answer"],
            )?,
            forwarded: counters(
                r,
                "crossover_detached_forwarded_total",
                "What Temporal was told of attempts that are away, by word (heartbeat, end) and outcome: told, refused (Temporal waits for it no longer), failed (it is told again).",
                &["word", "outcome"],
            )?,
            lost: counters(
                r,
                "crossover_detached_lost_total",
                "Attempts that were lost with their runner, by side and cause: heartbeat_timeout (it fell silent), run_timeout (it took too long), worker (Temporal gave it up).",
                &["side", "cause"],
            )?,
            now: gauges(r, "crossover_detached", "Attempts that are away with their runners now, by side.", &["side"])?,
            silent_seconds: float_gauge(
                r,
                "crossover_detached_silent_seconds",
                "Seconds since the last heartbeat of the runner that was heard of least recently; 0 where nothing is away.",
            )?,
            untold: gauge(
                r,
                "crossover_detached_untold",
                "Ends of such attempts that Temporal has not taken yet. Grows while Temporal is away, or no worker or relay runs.",
            )?,
        })
    }

    /// Shows how much is away.
    pub fn show(&self, counts: &DetachedCounts) {
        for (side, count) in [("temporal", counts.temporal), ("postgres", counts.postgres)] {
            self.now.with_label_values(&[side]).set(count);
        }
        self.silent_seconds.set(counts.silent_seconds);
        self.untold.set(counts.untold);
    }
}
