//! What happens while Postgres is away.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauge, gauges, register};

/// The metrics of an outage of Postgres.
pub struct OutageMetrics {
    /// Where the breakers stand, by the callers that they are for.
    pub breaker: IntGaugeVec,
    /// How often they opened.
    pub breaker_opened: IntCounterVec,
    /// Starts without a pin because Postgres was away.
    pub failed_open: IntCounter,
    /// Enqueues refused because they could not be pinned, by why they were not started without.
    pub refused: IntCounterVec,
    /// What waits in the spool.
    pub spool_entries: IntGauge,
    /// Its bytes.
    pub spool_bytes: IntGauge,
    /// Accounts with a gap that Postgres does not know of.
    pub spool_gaps: IntGauge,
    /// Since when the oldest entry waits.
    pub spool_oldest_seconds: Gauge,
    /// Entries that will never be pinned, by why.
    pub spool_dropped: IntCounterVec,
    /// Entries taken out, by what became of them.
    pub spool_drained: IntCounterVec,
    /// Writes that the disk refused.
    pub spool_errors: IntCounter,
}

impl OutageMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            breaker: gauges(
                r,
                "crossover_breaker_state",
                "Where a router's circuit breaker before Postgres stands: 0 closed (all is well), 1 one caller tries, 2 open (nobody asks Postgres for a second). By the callers it is for: fail_open (accounts whose work may start without a pin; it gives up after router.pin_budget), pinned (all others, who are answered 503 while it is open).",
                &["callers"],
            )?,
            breaker_opened: counters(
                r,
                "crossover_breaker_opened_total",
                "How often a router's circuit breaker before Postgres opened, by the callers it is for. A steady rise: Postgres is away, or slower than router.pin_budget.",
                &["callers"],
            )?,
            failed_open: register(
                r,
                IntCounter::new(
                    "crossover_failed_open_total",
                    "Enqueues answered by Temporal alone because they could not be pinned. Each waits in the spool, or was dropped from it, until Postgres is back.",
                )?,
            )?,
            refused: counters(
                r,
                "crossover_unpinnable_total",
                "Enqueues answered 503 because they could not be pinned, by why they were not started without a pin: armed (Postgres may own this account's work, or soon may, or router.fail_open is off), series (something earlier of its series may not be with Temporal yet), spool (it can't be written down).",
                &["reason"],
            )?,
            spool_entries: gauge(
                r,
                "crossover_spool_entries",
                "Interactions started without a pin that wait on this router's disk to be pinned. Falls to 0 soon after Postgres is back; beyond router.spool_entries further ones are dropped.",
            )?,
            spool_bytes: gauge(
                r,
                "crossover_spool_bytes",
                "Bytes of the interactions that wait in this router's spool. Beyond router.spool_bytes further ones are dropped.",
            )?,
            spool_gaps: gauge(
                r,
                "crossover_spool_gaps",
                "Accounts with dropped entries of which Postgres does not know yet. Once it does, their arming starts its window again.",
            )?,
            spool_oldest_seconds: float_gauge(
                r,
                "crossover_spool_oldest_seconds",
                "Seconds since the oldest interaction in this router's spool was started. Grows while Postgres is away.",
            )?,
            spool_dropped: counters(
                r,
                "crossover_spool_dropped_total",
                "Interactions that run on Temporal and will never be pinned, by why: full (no room in the spool), old (older than window.idempotency), refused (Postgres refuses the pin for good), damaged (the spool's file was damaged; counts once, whatever was lost). They run and end; their accounts' way to live starts again.",
                &["reason"],
            )?,
            spool_drained: counters(
                r,
                "crossover_spool_drained_total",
                "Interactions taken out of the spool, by outcome: pinned, repeated (somebody else had pinned it), conflict (its key is pinned with other work: see the log), withdrawn (Temporal had refused the start).",
                &["outcome"],
            )?,
            spool_errors: register(
                r,
                IntCounter::new(
                    "crossover_spool_errors_total",
                    "Unpinned starts refused because they could not be written down: the disk is full, broken or slow. Callers are answered 503.",
                )?,
            )?,
        })
    }
}
