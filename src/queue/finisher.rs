//! Reports ends in batches: whatever has ended while the last batch was on its way goes together. While Postgres is
//! away the ends wait here and keep their slots, so that nothing more is claimed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{error, warn};

use super::storage::Finish;
use super::worker::Shared;
use crate::ledger::LedgerError;

const BATCH: usize = 500;
const PAUSE: Duration = Duration::from_millis(250);

/// Runs until every sender is gone and everything that was sent is reported.
pub(super) async fn run(shared: Arc<Shared>, mut ends: mpsc::Receiver<Finish>) {
    let mut batch = Vec::with_capacity(BATCH);
    while ends.recv_many(&mut batch, BATCH).await > 0 {
        report(&shared, &mut batch).await;
        batch.clear();
    }
}

async fn report(shared: &Shared, batch: &mut [Finish]) {
    loop {
        match shared.queue.finish(shared.id, batch).await {
            Ok(kept) => return settle(shared, batch, &kept),
            Err(LedgerError::Refused(error)) if !transient(&error) => {
                // One of them can't be stored. Alone, each shows whether it is the one.
                for end in batch.iter_mut() {
                    report_alone(shared, end).await;
                }
                return;
            }
            Err(error) => {
                shared.metrics.queue_errors.with_label_values(&["finish"]).inc();
                warn!(%error, ends = batch.len(), "ends can't be reported yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn report_alone(shared: &Shared, end: &mut Finish) {
    loop {
        match shared.queue.finish(shared.id, std::slice::from_ref(end)).await {
            Ok(kept) => return settle(shared, std::slice::from_ref(end), &kept),
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
                warn!(id = %end.id, %error, "the end can't be reported yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether the same statement may be accepted another time: deadlocks, lock and statement time-outs, no room,
/// read-only while it fails over.
fn transient(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| {
        let class = code.get(..2).unwrap_or_default();
        matches!(class, "40" | "53" | "55" | "57" | "58") || code == "25006"
    })
}

fn settle(shared: &Shared, batch: &[Finish], kept: &[uuid::Uuid]) {
    for end in batch {
        let rehearsal = shared.held.is_rehearsal(end.key());
        if kept.contains(&end.id) {
            shared.metrics.ended(rehearsal, end);
        } else if !rehearsal {
            shared.metrics.late_results.with_label_values(&["postgres"]).inc();
            warn!(id = %end.id, attempt = end.attempt, "a late result was refused: another worker has taken over");
        }
        shared.held.drop(end.key());
    }
    shared.room.notify_one();
}
