//! What a process does beside its work: partitions ahead, the sweep, gauges.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Parts;
use crate::flags::Flags;
#[cfg(feature = "temporal")]
use crate::metrics::Metrics;
use crate::queue::Queue;

/// Makes partitions ahead, and again every hour.
pub(super) async fn keep_house(parts: Parts, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(3_600));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(made) = stop.run_until_cancelled(parts.ledger.make_partitions()).await else { return };
        match made {
            Ok(made) => info!(made, "partitions are made ahead"),
            Err(error) => {
                parts.metrics.queue_errors.with_label_values(&["make_partitions"]).inc();
                warn!(%error, "partitions can't be made ahead; rows go to the default partition meanwhile");
                tick.reset_after(Duration::from_secs(60));
            }
        }
    }
}

/// Looks after what Temporal owns and does not end: lost with its server, or ended there by hand.
pub(super) async fn sweep(parts: Parts, after: Duration, stop: CancellationToken) {
    let mut tick = tokio::time::interval((after / 10).max(Duration::from_millis(500)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(swept) = stop.run_until_cancelled(parts.ledger.sweep(after, 1_000)).await else { return };
        match swept {
            Ok(0) => {}
            Ok(swept) => {
                parts.metrics.swept.inc_by(swept as u64);
                info!(swept, "work that Temporal should long have ended is delivered again");
            }
            Err(error) => {
                parts.metrics.ledger_errors.with_label_values(&["sweep"]).inc();
                warn!(%error, "the sweep failed; it comes again");
            }
        }
    }
}

/// Keeps the gauges current.
pub(super) async fn gauge(parts: Parts, flags: Option<Arc<Flags>>, stop: CancellationToken) {
    let queue = Queue::new(parts.ledger.pool().clone());
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let m = &parts.metrics;
        let looks = async { (queue.depth().await, parts.ledger.outbox_depth().await) };
        let Some((depth, outbox)) = stop.run_until_cancelled(looks).await else { return };
        if let Ok(depth) = depth {
            for (place, rows) in [("ready", depth.ready), ("scheduled", depth.scheduled), ("running", depth.running)] {
                m.queue_rows.with_label_values(&[place]).set(rows);
            }
            m.queue_oldest_seconds.set(depth.oldest_seconds);
        }
        if let Ok(outbox) = outbox {
            m.outbox_rows.set(outbox.rows);
            m.outbox_oldest_seconds.set(outbox.oldest_seconds);
        }
        let pool = parts.ledger.pool();
        let idle = pool.num_idle() as f64;
        m.pool_connections.with_label_values(&["idle"]).set(idle);
        m.pool_connections.with_label_values(&["busy"]).set((f64::from(pool.size()) - idle).max(0.0));
        if let Some(flags) = &flags {
            let health = flags.health();
            m.flags_healthy.set(i64::from(health.error.is_none()));
            m.flags.from_last_good.set(i64::from(health.from_last_good));
            m.flags.age_seconds.set(health.age(Utc::now()).as_secs_f64());
        }
    }
}

/// Shows what the Temporal side could not have recorded.
#[cfg(feature = "temporal")]
pub(super) async fn unrecorded_gauges(
    unrecorded: Arc<crate::temporal::mirror::Unrecorded>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    use std::sync::atomic::Ordering::Relaxed;
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let lost = |count: &std::sync::atomic::AtomicU64| count.load(Relaxed) as i64;
        metrics.unrecorded.with_label_values(&["attempts"]).set(lost(&unrecorded.lost_attempts));
        metrics.unrecorded.with_label_values(&["rehearsals"]).set(lost(&unrecorded.lost_rehearsals));
    }
}
