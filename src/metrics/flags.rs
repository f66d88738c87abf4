//! What is measured of the flags' source.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge};

use super::{Registering, counters, float_gauge, gauge, register};

/// The flags' source. Clones count together.
#[derive(Clone)]
pub struct FlagMetrics {
    /// Since when the source has not been good.
    pub age_seconds: Gauge,
    /// 1 while the stored copy is in force.
    pub from_last_good: IntGauge,
    /// Questions to Unleash, by outcome.
    pub fetches: IntCounterVec,
    /// Answers of flags that Unleash was never told of.
    pub counts_lost: IntCounter,
}

impl FlagMetrics {
    pub(super) fn new(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            age_seconds: float_gauge(
                r,
                "crossover_flags_age_seconds",
                "Seconds since the flag source last gave a good answer, also over a restart. More than a few of flags.interval or flags.poll: flips are not seen here; look at the error of /readyz.",
            )?,
            from_last_good: gauge(
                r,
                "crossover_flags_from_last_good",
                "1 while the flags in force are the copy kept on disk, because the source has not been good since the start of this process.",
            )?,
            fetches: counters(
                r,
                "crossover_flags_fetches_total",
                "Questions to Unleash by outcome: good, unchanged, kept (good but for a flag whose last definition stays), and those that change nothing: older, refused, denied (mend flags.token), status, timeout, unreachable, too_large.",
                &["outcome"],
            )?,
            counts_lost: register(
                r,
                IntCounter::new(
                    "crossover_flags_counts_lost_total",
                    "Answers of flags that Unleash's usage figures lack, because it did not take them for an hour or it is unknown whether it did. Decisions are not affected.",
                )?,
            )?,
        })
    }
}
