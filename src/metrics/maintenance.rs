//! Upkeep: whether it is done, and what it found.

use prometheus::{GaugeVec, IntCounter, IntCounterVec, IntGaugeVec};

use super::{Registering, counters, float_gauges, gauges, register};
use crate::history::{Done, Duty};

/// The metrics of upkeep.
pub struct MaintenanceMetrics {
    /// Failures of this process, by duty.
    pub failures: IntCounterVec,
    /// Partitions that were looked at, by what became of them.
    pub partitions: IntCounterVec,
    /// Pins that were forgotten.
    pub pins: IntCounter,
    done: GaugeVec,
    orphans: IntGaugeVec,
}

impl MaintenanceMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        let failures = counters(
            r,
            "crossover_maintenance_failures_total",
            "Times that this process failed at upkeep, by duty. It is tried again after a minute, and twice as long after each failure that follows (32 minutes at most), by whoever comes first; select * from crossover.maintenance says why it failed.",
            &["duty"],
        )?;
        // So that a rate sees the first.
        for duty in Duty::ALL {
            failures.with_label_values(&[duty.as_str()]).inc_by(0);
        }
        Ok(Self {
            failures,
            partitions: counters(
                r,
                "crossover_history_partitions_total",
                "Partitions of history that retention was applied to, by answer: dropped, cleared (what stays was copied), kept (nothing was to go), busy (no lock was to be had; it is tried again), crowded (the default partition holds too much), failed, gone.",
                &["answer"],
            )?,
            pins: register(
                r,
                IntCounter::new(
                    "crossover_pins_forgotten_total",
                    "Pins that were deleted because what they stood for ended longer ago than its retention.",
                )?,
            )?,
            done: float_gauges(
                r,
                "crossover_maintenance_done_timestamp_seconds",
                "When upkeep was last done by any process, or first known of, by duty, in seconds since 1970: partitions (ahead), history (retention), pins, orphans, sightings, runners, latencies. Pins every six hours, the others every hour.",
                &["duty"],
            )?,
            orphans: gauges(
                r,
                "crossover_orphans",
                "Rows that belong to nothing, as upkeep last counted them, by what. outbox, rehearsals and parked were taken away; tasks_without_record fail when they are claimed; pins_in_no_place would never run and are a fault.",
                &["what"],
            )?,
        })
    }

    /// Shows how upkeep stands, whoever does it.
    pub fn show(&self, done: &[Done]) {
        for duty in done {
            self.done.with_label_values(&[&duty.duty]).set(duty.at.timestamp_millis() as f64 / 1_000.0);
            let found = duty.found.as_ref().and_then(serde_json::Value::as_object);
            for what in found.into_iter().flat_map(serde_json::Map::keys) {
                self.orphans.with_label_values(&[what]).set(duty.counted(what).unwrap_or(0));
            }
        }
    }
}
