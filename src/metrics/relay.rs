//! A Temporal that is away, and what waits for it.

use prometheus::{IntCounter, IntGauge};

use super::{Registering, gauge, register};

/// See the module.
pub struct RelayMetrics {
    /// 1 while it does not answer.
    pub temporal_away: IntGauge,
    /// Deliveries that were not even tried.
    pub spared: IntCounter,
    /// Rehearsals among the undelivered.
    pub outbox_rehearsals: IntGauge,
    /// Rehearsals that were left out.
    pub rehearsals_dropped: IntCounter,
}

impl RelayMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            temporal_away: gauge(
                r,
                "crossover_temporal_away",
                "1 while this process knows that Temporal does not answer: nobody waits for it, what it owns is accepted with 202 and waits in the outbox, and the way back from live is closed. See crossover status.",
            )?,
            spared: register(
                r,
                IntCounter::new(
                    "crossover_deliveries_spared_total",
                    "Deliveries that were not tried because Temporal was known to be away. The relay makes up for each when it is back.",
                )?,
            )?,
            outbox_rehearsals: gauge(
                r,
                "crossover_outbox_rehearsals",
                "Rehearsals among crossover_outbox_rows. Where they are more than relay.rehearsal_backlog, the oldest are dropped.",
            )?,
            rehearsals_dropped: register(
                r,
                IntCounter::new(
                    "crossover_rehearsals_dropped_total",
                    "Rehearsals that Temporal will never get because more waited for it than relay.rehearsal_backlog allows. Their interactions run on Postgres and are judged not_comparable; coverage falls.",
                )?,
            )?,
        })
    }
}
