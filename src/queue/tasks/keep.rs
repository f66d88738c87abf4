//! What a worker does for its tasks beside running them: it keeps its lease, makes due ones ready, and takes over what
//! workers held that stopped reporting.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::super::finisher;
use super::super::upkeep::{self, BATCH};
use super::super::worker::Shared;
use crate::interaction::Side;
use crate::ledger::LedgerError;

/// Keeps the worker's lease until `stop`, calls off what somebody asked to cancel, and gives up what another has taken
/// over. While no heartbeat gets through, what runs runs on: should another take it over, its result is late.
pub(in super::super) async fn beat(shared: Arc<Shared>, stop: CancellationToken) {
    let lease = shared.options.lease;
    let mut tick = tokio::time::interval(lease / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let held = shared.held.tasks();
        let beat = tokio::time::timeout(lease / 3, shared.tasks.beat(shared.id, &held, lease)).await;
        match beat.unwrap_or_else(|_| Err(LedgerError::InDoubt("the heartbeat took too long".to_owned()))) {
            Ok(beat) => {
                for (key, wish) in &beat.wishes {
                    shared.held.call_off(*key, wish);
                }
                let kept: HashSet<(Uuid, i32)> = beat.kept.into_iter().collect();
                held.into_iter().map(|h| (h.0, h.1)).filter(|key| !kept.contains(key)).for_each(|key| shared.lost(key));
            }
            Err(error) => {
                shared.failed("heartbeat", &error);
                warn!(%error, "the heartbeat for tasks did not get through; the lease runs on");
            }
        }
    }
}

/// Takes over what was held by workers whose lease ran out: such an attempt has failed, and the policy says what follows.
pub(in super::super) async fn take_over(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(shared.options.lease / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A worker of its own: what it takes over, it never runs.
    let mut reaper = Uuid::new_v4();
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        if let Err(error) = reap(&shared, reaper).await {
            shared.failed("take_over", &error);
            warn!(%error, "tasks of dead workers can't be taken over; trying again");
            // What an answer that was lost took over is taken over again from the one who has it.
            reaper = Uuid::new_v4();
        }
    }
    if let Err(error) = shared.tasks.leave(reaper).await {
        warn!(%error, "the one who takes tasks over could not say goodbye; its lease ends by itself");
    }
}

async fn reap(shared: &Shared, reaper: Uuid) -> Result<(), LedgerError> {
    let lease = shared.options.lease;
    // Its own worker first: after a stall of the whole process it is alive, and must not be taken for dead by this one.
    for alive in [shared.id, reaper] {
        shared.tasks.beat(alive, &[], lease).await?;
    }
    loop {
        let mut lost = shared.tasks.take_over(reaper, BATCH, lease).await?;
        lost.extend(shared.tasks.take_over_lapsed(reaper, BATCH, shared.calm()).await?);
        if lost.is_empty() {
            return Ok(());
        }
        for cause in lost.iter().filter_map(|lost| lost.lapsed) {
            let labels = [Side::Postgres.as_str(), cause.as_str()];
            shared.metrics.detached.lost.with_label_values(&labels).inc();
        }
        info!(attempts = lost.len(), "took over tasks whose worker stopped reporting");
        shared.metrics.taken_over.inc_by(lost.len() as u64);
        let mut ends: Vec<_> = lost.iter().map(upkeep::after_loss).collect();
        // A batch is small enough to be reported well within the reaper's own lease.
        finisher::report(shared, reaper, &mut ends).await;
        shared.wake.notify_one();
    }
}

/// Makes due tasks ready: when the next is due, and at the latest every poll, for what others have scheduled since.
pub(in super::super) async fn promote(shared: Arc<Shared>, stop: CancellationToken) {
    let mut wait = Duration::ZERO;
    while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        let Some(promoted) = stop.run_until_cancelled(shared.tasks.promote_due(BATCH)).await else { return };
        wait = upkeep::until_next(&shared, promoted);
    }
}

/// Says now and then how far claims have come in virtual time, so that routers stamp what is new accordingly.
pub(in super::super) async fn tell_virtual_time(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut told = 0;
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let vt = shared.vt.load(std::sync::atomic::Ordering::Relaxed);
        if vt <= told {
            continue;
        }
        match stop.run_until_cancelled(shared.tasks.virtual_time(vt)).await {
            Some(Ok(_)) => told = vt,
            Some(Err(error)) => {
                shared.failed("virtual_time", &error);
                warn!(%error, "virtual time can't be told; accounts share by what was told before");
            }
            None => return,
        }
    }
}
