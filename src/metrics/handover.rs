//! What was handed over from Postgres to Temporal.

use prometheus::IntGaugeVec;

use super::{Registering, gauges};
use crate::ledger::HandoverCounts;

/// The handovers' metrics. The command is a process of its own, so what it did is read from Postgres.
pub struct HandoverMetrics {
    interactions: IntGaugeVec,
}

impl HandoverMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            interactions: gauges(
                r,
                "crossover_handover_interactions",
                "Interactions that were asked to be handed over from Postgres to Temporal, ever, by outcome: moved, refused (claimed, cancelled or in conflict; they stayed where they were). select * from crossover.handovers says who asked.",
                &["outcome"],
            )?,
        })
    }

    /// Shows how much it was.
    pub fn show(&self, counts: HandoverCounts) {
        self.interactions.with_label_values(&["moved"]).set(counts.moved);
        self.interactions.with_label_values(&["refused"]).set(counts.refused);
    }
}
