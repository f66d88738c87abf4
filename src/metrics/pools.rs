//! The pools of connections to Postgres, as a probe beside the work finds them every few seconds.

use std::time::Duration;

use prometheus::{HistogramVec, IntCounterVec, IntGaugeVec};

use super::{Registering, counters, gauges, histograms};

/// How a process stands with its connections, by pool.
pub struct PoolMetrics {
    /// Connections, by pool and state.
    pub connections: IntGaugeVec,
    /// The most that there may be, by pool.
    pub limit: IntGaugeVec,
    /// How long the probe waited for a connection, by pool.
    pub acquire_seconds: HistogramVec,
    /// Times that the probe got none, by pool.
    pub timeouts: IntCounterVec,
}

impl PoolMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            connections: gauges(
                r,
                "crossover_pool_connections",
                "Connections of this process to Postgres, by pool (intake, work) and state (idle, busy). No idle ones for long at the limit: raise postgres.max_connections.",
                &["pool", "state"],
            )?,
            limit: gauges(
                r,
                "crossover_pool_limit",
                "The most connections that a pool of this process opens: postgres.max_connections.",
                &["pool"],
            )?,
            acquire_seconds: histograms(
                r,
                "crossover_pool_acquire_seconds",
                "Seconds that a probe waited for a connection, by pool (intake: callers; work: workers, relay, upkeep). It asks every five seconds as any caller does, so this is a sample of what callers wait.",
                &["pool"],
            )?,
            timeouts: counters(
                r,
                "crossover_pool_timeouts_total",
                "Times that the probe got no connection within postgres.connect_timeout, by pool. Postgres is away, or the pool is exhausted: see crossover_pool_connections.",
                &["pool"],
            )?,
        })
    }

    /// Shows what a pool has now.
    pub fn show(&self, pool: &str, size: u32, idle: usize, limit: u32) {
        let (size, idle) = (i64::from(size), idle as i64);
        self.connections.with_label_values(&[pool, "idle"]).set(idle);
        self.connections.with_label_values(&[pool, "busy"]).set((size - idle).max(0));
        self.limit.with_label_values(&[pool]).set(i64::from(limit));
    }

    /// Counts what the probe came to: how long it waited, and whether it got a connection.
    pub fn probed(&self, pool: &str, waited: Duration, got: bool) {
        self.acquire_seconds.with_label_values(&[pool]).observe(waited.as_secs_f64());
        // Created with its first look, so that a rate sees the first time-out.
        self.timeouts.with_label_values(&[pool]).inc_by(u64::from(!got));
    }
}
