//! The Temporal half of arming.

use prometheus::{IntCounter, IntCounterVec};

use super::{Registering, counters, register};

/// Its metrics.
pub struct ReconciliationMetrics {
    /// Looks at what an account has open, by outcome.
    pub passes: IntCounterVec,
    /// Pins made for copies without one.
    pub pinned: IntCounter,
    /// Copies that asked their pin before they began, by its answer.
    pub asked: IntCounterVec,
    /// Starts that the namespace would not have with the search attribute.
    pub unlisted: IntCounter,
}

impl ReconciliationMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            passes: counters(
                r,
                "crossover_reconciliation_passes_total",
                "Looks at what an account that is being armed has open on Temporal without a pin, by outcome: again (it is looked at once more), done, failed (`crossover status` says why; it is repeated).",
                &["outcome"],
            )?,
            pinned: register(
                r,
                IntCounter::new(
                    "crossover_reconciliation_pins_total",
                    "Pins made for copies that Temporal had without one.",
                )?,
            )?,
            asked: counters(
                r,
                "crossover_copies_asked_total",
                "Copies on Temporal that asked their pin before they ran (without a pin in an account that is being armed, or made by a reset), by its answer. own runs. another runs without a pin, beside the one of its key, which holds other work and is held. ended, moved, other, held and gone never run there: the reason is in the log and in the workflow's result. Another, other and held want a person: see crossover why.",
                &["answer"],
            )?,
            unlisted: register(
                r,
                IntCounter::new(
                    "crossover_unlisted_starts_total",
                    "Copies started or signalled without the search attribute temporal.account_attribute, because the namespace lacks it. They run; arming has to look through all open workflows for them. `crossover doctor` says how to add it.",
                )?,
            )?,
        })
    }
}
