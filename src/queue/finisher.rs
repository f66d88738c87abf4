//! Reports ends in batches: whatever has ended while the last batch was on its way goes together. While Postgres is
//! away the ends wait here and keep their slots, so that nothing more is claimed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, warn};
use uuid::Uuid;

use super::faulty;
use super::groups::Told;
use super::held::Key;
use super::storage::Finish;
use super::worker::Shared;
use crate::interaction::Fence;
use crate::ledger::{LedgerError, is_contention, transient};
use crate::observer::{self, Seen};
use crate::policy::Failure;

const BATCH: usize = 500;
const PAUSE: Duration = Duration::from_millis(250);

/// Runs until every sender is gone and everything that was sent is reported.
pub(super) async fn run(shared: Arc<Shared>, mut ends: mpsc::Receiver<Finish>) {
    let mut batch = Vec::with_capacity(BATCH);
    while ends.recv_many(&mut batch, BATCH).await > 0 {
        faulty::misreport(&mut batch);
        batch.sort_by_key(|end| end.task.is_some());
        let pinned = batch.partition_point(|end| end.task.is_none());
        let (copies, tasks) = batch.split_at_mut(pinned);
        for ends in [copies, tasks].into_iter().filter(|ends| !ends.is_empty()) {
            report(&shared, shared.id, ends).await;
        }
        batch.clear();
    }
}

/// Reports what `worker` holds, copies or tasks, until Postgres has taken it.
pub(super) async fn report(shared: &Shared, worker: Uuid, mut batch: &mut [Finish]) {
    heed(shared, worker, batch).await;
    // Whether an earlier answer was lost: then it may be this very report that took them.
    let mut in_doubt = false;
    while !batch.is_empty() {
        match shared.finish(worker, batch).await {
            Ok(kept) => return settle(shared, batch, &kept, in_doubt).await,
            Err(LedgerError::Refused(error)) if !transient(&error) => {
                // One of them can't be stored. Alone, each shows whether it is the one.
                for end in batch.iter_mut() {
                    report_alone(shared, worker, end).await;
                }
                return;
            }
            Err(error) => {
                in_doubt |= matches!(error, LedgerError::InDoubt(_));
                shared.failed("finish", &error);
                warn!(%error, ends = batch.len(), "ends can't be reported yet; trying again");
                tokio::time::sleep(PAUSE).await;
                if is_contention(&error) {
                    let taken = one_by_one(shared, worker, batch).await;
                    batch = &mut std::mem::take(&mut batch)[taken..];
                }
            }
        }
    }
}

/// Somebody holds what one of them needs: the others must not wait for that one. Puts those that were taken first; how many.
async fn one_by_one(shared: &Shared, worker: Uuid, batch: &mut [Finish]) -> usize {
    let mut taken = 0;
    for n in 0..batch.len() {
        if let Ok(kept) = shared.finish(worker, &batch[n..=n]).await {
            settle(shared, &batch[n..=n], &kept, true).await;
            batch.swap(n, taken);
            taken += 1;
        }
    }
    taken
}

/// Holds back accounts that were told to come back later, before the places of those that were told so are free.
async fn heed(shared: &Shared, worker: Uuid, batch: &[Finish]) {
    if !shared.gate.is_needed() {
        return;
    }
    let told = |end: &Finish| {
        let wait_ms = end.failure.as_ref().and_then(Failure::retry_after_ms)?;
        Some(Told { id: end.id, attempt: end.attempt, task: end.task, wait_ms })
    };
    let told: Vec<Told> = batch.iter().filter(|end| !end.rehearsal).filter_map(told).collect();
    if !told.is_empty()
        && let Err(error) = shared.groups.heed_retry_after(worker, &told).await
    {
        shared.failed("heed_retry_after", &error);
        warn!(%error, "what was said of coming back later can't be kept; more of these accounts may start before");
    }
}

async fn report_alone(shared: &Shared, worker: Uuid, end: &mut Finish) {
    let mut in_doubt = false;
    loop {
        match shared.finish(worker, std::slice::from_ref(end)).await {
            Ok(kept) => return settle(shared, std::slice::from_ref(end), &kept, in_doubt).await,
            Err(LedgerError::Refused(error)) if !transient(&error) && end.result.is_some() => {
                warn!(id = %end.id, %error, "the result can't be stored; its end is kept without it");
                end.result = None;
                end.error = Some(crate::executor::clean(&format!("the result can't be stored: {error}")));
            }
            Err(LedgerError::Refused(error)) if !transient(&error) => {
                error!(id = %end.id, %error, "the end can't be stored; another worker takes over when the lease ends");
                shared.metrics.queue_errors.with_label_values(&["finish"]).inc();
                shared.held.drop(end.key());
                return;
            }
            Err(error) => {
                in_doubt |= matches!(error, LedgerError::InDoubt(_));
                shared.failed("finish", &error);
                warn!(id = %end.id, %error, "the end can't be reported yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn settle(shared: &Shared, batch: &[Finish], kept: &[Uuid], in_doubt: bool) {
    shared.dependents.ring();
    shared.turns.ring();
    let kept: HashSet<&Uuid> = kept.iter().collect();
    let before = if in_doubt { taken_before(shared, batch).await } else { HashSet::new() };
    for end in batch {
        let about = (end.id, Fence { epoch: end.epoch, attempt: end.attempt }, end.rehearsal);
        let see = |what| {
            if end.task.is_none() {
                shared.see(about, end.ended_at, what)
            }
        };
        if kept.contains(&end.id) || before.contains(&end.key()) {
            shared.metrics.ended(end.rehearsal, end);
            let retry_ms = end.retry.map(|wait| wait.as_millis() as i64);
            see(observer::ended(end.outcome, retry_ms, end.error.as_deref()));
        } else {
            see(Seen::Refused);
            if !end.rehearsal {
                shared.metrics.late_results.with_label_values(&["postgres"]).inc();
                warn!(id = %end.id, attempt = end.attempt, "a result was not taken: another worker has taken over");
            }
        }
        shared.held.drop(end.key());
    }
    if batch.iter().any(|end| end.task.is_none()) {
        shared.copy_ended.store(true, Ordering::Relaxed);
    }
    shared.room.notify_one();
    shared.gate.ring();
}

/// Of ends whose first answer was lost, those that had been taken all the same.
async fn taken_before(shared: &Shared, batch: &[Finish]) -> HashSet<Key> {
    let recorded = shared.queue.recorded(batch).await.inspect_err(|error| {
        shared.failed("finish", error);
        warn!(%error, "whether ends were taken whose answer was lost can't be read");
    });
    recorded.map(HashSet::from_iter).unwrap_or_default()
}
