//! What comes in from SQL.

use prometheus::{Gauge, IntCounterVec, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauges};
use crate::ledger::IntakeDepth;

/// The intake's metrics.
pub struct IntakeMetrics {
    /// Rows looked at, by what became of them.
    pub taken: IntCounterVec,
    rows: IntGaugeVec,
    oldest_seconds: Gauge,
}

impl IntakeMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            taken: counters(
                r,
                "crossover_intake_taken_total",
                "Rows that crossover.enqueue left and a router looked at, by outcome: pinned, repeated (its key was pinned before), refused (kept with its reason in crossover.intake), failed (tried again).",
                &["outcome"],
            )?,
            rows: gauges(
                r,
                "crossover_intake_rows",
                "Rows that crossover.enqueue left, by state: accepted (a router pins them soon), refused (they wait until somebody has looked: select * from crossover.intake where refused_at is not null).",
                &["state"],
            )?,
            oldest_seconds: float_gauge(
                r,
                "crossover_intake_oldest_seconds",
                "Seconds since the oldest row that is not pinned yet was accepted from SQL. Over ten seconds: see whether routers run, and crossover.intake.reason.",
            )?,
        })
    }

    /// Shows how much waits.
    pub fn show(&self, depth: &IntakeDepth) {
        self.rows.with_label_values(&["accepted"]).set(depth.rows);
        self.rows.with_label_values(&["refused"]).set(depth.refused);
        self.oldest_seconds.set(depth.oldest_seconds);
    }
}
