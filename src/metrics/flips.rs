//! What there is to count of flips, routers and overrides.

use prometheus::{Gauge, Histogram, IntCounterVec, IntGauge};

use super::{Registering, counters, float_gauge, gauge, histogram};

/// Metrics of flips.
pub struct FlipMetrics {
    /// Changes of a stage that this router wrote first, by stage and source.
    pub decisions: IntCounterVec,
    /// Overrides in force here.
    pub overrides_active: IntGauge,
    /// When the next of them ends.
    pub override_ends_in_seconds: Gauge,
    /// Routers that have not ended.
    pub routers_registered: IntGauge,
    /// Of these, how many have stopped beating.
    pub routers_silent: IntGauge,
    /// From the command to this router's acknowledgement.
    pub flip_seconds: Histogram,
    /// Failed calls, by call.
    pub errors: IntCounterVec,
}

impl FlipMetrics {
    pub(super) fn new(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            decisions: counters(
                r,
                "crossover_decisions_total",
                "Changes of a stage, by the stage changed to and the source that says so (file, unleash, override). The router that sees a change first counts it; a change of all kinds of an account counts once.",
                &["to", "source"],
            )?,
            overrides_active: gauge(
                r,
                "crossover_overrides_active",
                "Break-glass overrides in force in this router. While it isn't 0, the flags don't say where those accounts stand: see `crossover status`.",
            )?,
            override_ends_in_seconds: float_gauge(
                r,
                "crossover_override_ends_in_seconds",
                "Seconds until the next override ends by itself and the flags count again; 0 without one. Flip the flags to where the account should stay before then.",
            )?,
            routers_registered: gauge(
                r,
                "crossover_routers_registered",
                "Processes with the role router or worker that are registered and have not ended.",
            )?,
            routers_silent: gauge(
                r,
                "crossover_routers_silent",
                "Registered routers and workers that have not reported for 5 seconds. What they decide by is unknown, and accounts are not armed without them; if a process is confirmed to be stopped for good, `crossover routers --forget ID --yes` says so.",
            )?,
            flip_seconds: histogram(
                r,
                "crossover_flip_seconds",
                "Seconds from an operator's command to this router deciding by it.",
            )?,
            errors: counters(
                r,
                "crossover_flip_errors_total",
                "Failed calls beside the router's work, by call: beat, acknowledge, deregister, record, overrides, gauge; note: an account or kind found no room and is noted at a later decision. All are tried again.",
                &["call"],
            )?,
        })
    }
}
