//! What a process does beside its work: the sweep, a look whether both sides answer, gauges.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Parts;
use crate::flags::Flags;
use crate::interaction::Side;
use crate::ledger::LedgerError;
use crate::metrics::{Metrics, OTHERS, SHOWN};
use crate::observer::NO_ANSWER;
use crate::queue::Queue;
use crate::schedule::{Mirrors, Schedules};

/// A side that takes longer to answer can't work as it should.
const ANSWERS_WITHIN: Duration = Duration::from_secs(2);

/// Asks both sides each second whether they are there. The comparator does not blame a rehearsal for what was late while
/// one was not, and after two questions without an answer in a row nobody waits for Temporal.
pub(super) async fn watch_sides(parts: Parts, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut unanswered = 0;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let asked = async {
            tokio::join!(
                tokio::time::timeout(ANSWERS_WITHIN, parts.log.writable()),
                tokio::time::timeout(ANSWERS_WITHIN, parts.deliverer.look_up(uuid::Uuid::nil()))
            )
        };
        let Some((postgres, temporal)) = stop.run_until_cancelled(asked).await else { return };
        match postgres {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => parts.observer.disturbed(Side::Postgres, "it recovers and takes no writes"),
            Ok(Err(_)) | Err(_) => parts.observer.disturbed(Side::Postgres, NO_ANSWER),
        }
        if matches!(temporal, Ok(Ok(_))) {
            unanswered = 0;
            continue;
        }
        parts.observer.disturbed(Side::Temporal, NO_ANSWER);
        unanswered += 1;
        if unanswered >= 2 {
            parts.deliverer.suspect();
        }
    }
}

/// Rehearsals dropped in one statement.
const DROPPED_AT_A_TIME: i32 = 5_000;

/// Drops the oldest rehearsals where more than `most` wait for Temporal. What comes in between two looks is beyond the bound.
pub(super) async fn bound_rehearsals(parts: Parts, most: u32, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let dropping = parts.ledger.drop_rehearsals(most.into(), DROPPED_AT_A_TIME);
        let Some(dropped) = stop.run_until_cancelled(dropping).await else { return };
        match dropped {
            Ok(0) => {}
            Ok(dropped) => {
                parts.metrics.relay.rehearsals_dropped.inc_by(dropped as u64);
                warn!(
                    dropped,
                    most,
                    "more rehearsals wait for Temporal than relay.rehearsal_backlog allows: the oldest are dropped, and judged not_comparable"
                );
                if dropped >= DROPPED_AT_A_TIME.into() {
                    tick.reset_immediately();
                }
            }
            Err(error) => {
                parts.metrics.ledger_errors.with_label_values(&["drop_rehearsals"]).inc();
                warn!(%error, "the backlog of rehearsals can't be looked at; it is bounded later");
            }
        }
    }
}

/// Looks after what Temporal owns and does not end: lost with its server, or ended there by hand. Not while Temporal is
/// away, nor for as long afterwards: then it is late for that alone.
pub(super) async fn sweep(parts: Parts, after: Duration, stop: CancellationToken) {
    let mut tick = tokio::time::interval((after / 10).max(Duration::from_millis(500)));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if parts.deliverer.circuit().back_for().is_some_and(|back_for| back_for < after) {
            continue;
        }
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

/// How often gauges are read.
const LOOK: Duration = Duration::from_secs(5);

/// Keeps the gauges current that this process knows by itself: a scrape never waits for a server.
pub(super) async fn gauge(parts: Parts, flags: Option<Arc<Flags>>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let m = &parts.metrics;
        for (name, pool) in parts.pools() {
            m.pools.show(name, pool.size(), pool.num_idle(), pool.options().get_max_connections());
        }
        if let Some(flags) = &flags {
            let health = flags.health();
            m.flags_healthy.with_label_values::<&str>(&[]).set(i64::from(health.error.is_none()));
            m.flags.from_last_good.set(i64::from(health.from_last_good));
            m.flags.age_seconds.set(health.age(Utc::now()).as_secs_f64());
        }
    }
}

/// Keeps the gauges current that Postgres is asked for. While it gives no answer they keep their values, and their age grows.
pub(super) async fn gauge_postgres(parts: Parts, stop: CancellationToken) {
    let queue = Queue::new(parts.ledger.pool().clone());
    let schedules = Schedules::new(parts.ledger.pool().clone());
    let mirrors = Mirrors::new(parts.ledger.pool().clone());
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let looks = async {
            let queues = (queue.depth().await?, queue.groups(SHOWN as i64, OTHERS).await?);
            let handovers = parts.ledger.handover_counts().await?;
            parts.metrics.parking.show(&parts.ledger.parked_counts().await?);
            parts.metrics.dependents.show(&parts.ledger.waiting_counts().await?);
            parts.metrics.turns.show(&parts.ledger.turn_counts().await?);
            parts.metrics.detached.show(&parts.ledger.detached_counts().await?);
            parts.metrics.schedules.show(&schedules.counts().await?, &mirrors.lag().await?);
            Ok::<_, LedgerError>((
                queues,
                parts.ledger.outbox_depth().await?,
                parts.ledger.intake_depth().await?,
                handovers,
            ))
        };
        let Some(looked) = stop.run_until_cancelled(looks).await else { return };
        let m = &parts.metrics;
        match looked {
            Ok(((depth, groups), outbox, intake, handovers)) => {
                let places = [("ready", depth.ready), ("scheduled", depth.scheduled), ("running", depth.running)];
                for (place, rows) in places.into_iter().chain([("waiting", depth.waiting)]) {
                    m.queue_rows.with_label_values(&[place]).set(rows);
                }
                m.queue_oldest_seconds.set(depth.oldest_seconds);
                m.groups.show(&groups);
                m.outbox_rows.set(outbox.rows);
                m.outbox_oldest_seconds.set(outbox.oldest_seconds);
                m.relay.outbox_rehearsals.set(outbox.rehearsals);
                m.intake.show(&intake);
                m.handovers.show(handovers);
                m.gauges_updated.set(chrono::Utc::now().timestamp_millis() as f64 / 1_000.0);
            }
            Err(error) => {
                m.queue_errors.with_label_values(&["depth"]).inc();
                warn!(%error, "queue, outbox and intake can't be looked at; their gauges are old");
            }
        }
    }
}

/// Asks a pool for a connection now and then, as a caller does, and notes how long that took.
pub(super) async fn probe_pool(name: &'static str, pool: PgPool, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let began = std::time::Instant::now();
        let Some(got) = stop.run_until_cancelled(pool.acquire()).await else { return };
        metrics.pools.probed(name, began.elapsed(), got.is_ok());
    }
}

/// Sees to it that the namespace has the search attribute by which the workflows of an account are listed. Nothing waits for
/// it: what starts without it runs, and is found by its memo.
#[cfg(feature = "temporal")]
pub(super) async fn ensure_attribute(client: crate::temporal::client::TemporalClient, stop: CancellationToken) {
    use crate::temporal::attribute::Found;
    let mut tick = tokio::time::interval(Duration::from_secs(60));
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(found) = stop.run_until_cancelled(client.ensure_attribute()).await else { return };
        match found {
            Ok(Found::There) => return,
            Ok(Found::Created) => {
                return info!(name = client.attribute(), "the namespace has the search attribute now");
            }
            Err(error) => {
                warn!(%error, name = client.attribute(), "whether the namespace has the search attribute isn't known; workflows start without it where it has not");
            }
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
