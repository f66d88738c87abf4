//! What there is to count of arming.

use prometheus::{Gauge, IntCounterVec, IntGauge, IntGaugeVec};

use super::{Registering, counters, float_gauge, gauge, gauges};

/// Metrics of arming.
pub struct ArmingMetrics {
    /// Accounts, by state.
    pub accounts: IntGaugeVec,
    /// How long the oldest barrier waits.
    pub barrier_oldest_seconds: Gauge,
    /// How long the oldest reconciliation lasts.
    pub reconciling_oldest_seconds: Gauge,
    /// Starts without a pin that are in doubt here.
    pub in_doubt: IntGauge,
    /// How long Postgres has not heard of this process.
    pub unheard_seconds: Gauge,
    /// Changes of state that this process made, by the state changed to.
    pub moves: IntCounterVec,
    /// Failed calls, by call.
    pub errors: IntCounterVec,
}

impl ArmingMetrics {
    pub(super) fn new(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            accounts: gauges(
                r,
                "crossover_arming_accounts",
                "Accounts that were ever seen, by state: open, pinning, window, closing, reconciling, armed, disarming. `crossover status` says what each on its way waits for.",
                &["state"],
            )?,
            barrier_oldest_seconds: float_gauge(
                r,
                "crossover_arming_barrier_oldest_seconds",
                "Seconds that the oldest account in pinning, closing or disarming waits for a process's acknowledgement. It takes a second or two; a process that is gone for good has to be forgotten: `crossover status` names it.",
            )?,
            reconciling_oldest_seconds: float_gauge(
                r,
                "crossover_arming_reconciling_oldest_seconds",
                "Seconds that the oldest account in reconciling has been there.",
            )?,
            in_doubt: gauge(
                r,
                "crossover_unpinned_in_doubt",
                "Starts without a pin whose outcome Temporal has left in doubt. This process repeats each until it has an answer, and acknowledges no barrier of the account before.",
            )?,
            unheard_seconds: float_gauge(
                r,
                "crossover_unheard_seconds",
                "Seconds since Postgres last heard of this process. Past router.disk_valid the process goes on as it did, but must not be restarted before Postgres answers: it would not be ready.",
            )?,
            moves: counters(
                r,
                "crossover_arming_moves_total",
                "Accounts that this process has moved on, by the state moved to.",
                &["to"],
            )?,
            errors: counters(
                r,
                "crossover_arming_errors_total",
                "Failed calls of arming, by call: fetch, disk, acknowledge, due, step, reconcile, tidy, census; busy: pins of the account were under way. All are tried again.",
                &["call"],
            )?,
        })
    }
}
