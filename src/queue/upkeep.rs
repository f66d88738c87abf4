//! Upkeep that any worker does and none must: making due work ready, and taking over what a dead worker held.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::storage::{Claimed, Finish};
use super::worker::Shared;
use super::{faulty, finisher};
use crate::interaction::Outcome;
use crate::ledger::{LedgerError, SILENT, TOO_LONG};
use crate::policy::{Doubt, Failure};

/// The error of an attempt that was taken over from a dead worker. The other side's attempt of the same number need not
/// have failed: it is no divergence of the queue.
pub const LOST: &str = "its worker stopped reporting; whether it had an effect is unknown";

pub(super) const BATCH: i32 = 1_000;

/// Makes due work ready: when the next is due, and at the latest every poll, for what others have scheduled since.
pub(super) async fn promote(shared: Arc<Shared>, stop: CancellationToken) {
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        faulty::hasten(&shared).await;
        let Some(promoted) = stop.run_until_cancelled(shared.queue.promote_due(BATCH)).await else { return };
        wait = until_next(&shared, promoted);
    }
}

/// How long to wait after so many of [`BATCH`] were made ready, and before the next is due.
pub(super) fn until_next(shared: &Shared, promoted: Result<(i64, Option<Duration>), LedgerError>) -> Duration {
    let poll = shared.options.poll;
    match promoted {
        Ok((promoted, next)) => {
            if promoted > 0 {
                shared.wake.notify_one();
            }
            if promoted == i64::from(BATCH) { Duration::ZERO } else { next.unwrap_or(poll).min(poll) }
        }
        Err(error) => {
            shared.failed("promote", &error);
            warn!(%error, "due work can't be made ready; trying again");
            poll
        }
    }
}

/// Takes over what was held by workers whose lease ran out: such an attempt has failed, and the policy says what follows.
pub(super) async fn take_over(shared: Arc<Shared>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(shared.options.lease / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // A worker of its own: what it takes over, it never runs.
    let reaper = uuid::Uuid::new_v4();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let Some(reaped) = stop.run_until_cancelled(reap(&shared, reaper)).await else { return };
        if let Err(error) = reaped {
            shared.failed("take_over", &error);
            warn!(%error, "work of dead workers can't be taken over; trying again");
        }
    }
}

async fn reap(shared: &Shared, reaper: uuid::Uuid) -> Result<(), crate::ledger::LedgerError> {
    let lost = shared
        .queue
        .take_over(reaper, (shared.id, &shared.held.keys()), i64::from(BATCH), shared.options.lease, shared.calm())
        .await?;
    if lost.is_empty() {
        return Ok(());
    }
    info!(attempts = lost.len(), "took over attempts whose worker stopped reporting");
    shared.metrics.taken_over.inc_by(lost.len() as u64);
    for cause in lost.iter().filter_map(|lost| lost.lapsed) {
        let labels = [crate::interaction::Side::Postgres.as_str(), cause.as_str()];
        shared.metrics.detached.lost.with_label_values(&labels).inc();
    }
    let mut ends: Vec<Finish> = lost.iter().map(after_loss).collect();
    // A batch is small enough to be reported well within the reaper's own lease.
    finisher::report(shared, reaper, &mut ends).await;
    shared.wake.notify_one();
    Ok(())
}

pub(super) fn after_loss(lost: &Claimed) -> Finish {
    let why = lost.lapsed.map_or(LOST, |cause| if cause == Doubt::RunTimeout { TOO_LONG } else { SILENT });
    if let Some(wish) = lost.called_off.as_ref().filter(|_| !lost.rehearsal) {
        let error = Some(crate::executor::clean(&format!("{wish}; {why}")));
        return Finish { error, ..Finish::of(lost, Some(Outcome::Cancelled)) };
    }
    // A rehearsal had no effect that could be unknown.
    let failure = match lost.rehearsal {
        true => Failure::RETRYABLE,
        false => Failure::Unknown { cause: lost.lapsed.unwrap_or(Doubt::Worker) },
    };
    Finish::failed(lost, failure, why.to_owned(), lost.age)
}
