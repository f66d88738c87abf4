//! Settles ended work with what waits for it. Every worker looks and one at a time does it; what one look leaves, the next takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::worker::Shared;
use crate::ledger::Ledger;

/// Edges of one look.
const BATCH: i32 = 500;
/// While anything waits, ends of other processes are looked for so often; own ends ring.
const LOOK: Duration = Duration::from_millis(100);
/// Between two looks for ends that were overlooked.
const SWEEP: Duration = Duration::from_secs(20);
/// Between two looks of a worker that ends much.
const WINDOW: Duration = Duration::from_millis(5);

/// Whether anything waits for other work, as of the last look, and the bell of own ends.
#[derive(Default)]
pub(super) struct Dependents {
    waiting: AtomicBool,
    ended: Notify,
}

impl Dependents {
    /// Something has ended here.
    pub(super) fn ring(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.ended.notify_one();
        }
    }
}

/// Settles until `stop`.
pub(super) async fn settle(shared: Arc<Shared>, stop: CancellationToken) {
    let ledger = Ledger::new(shared.queue.pool().clone());
    let (mut wait, mut limit) = (Duration::ZERO, BATCH);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = shared.dependents.ended.notified() => tokio::time::sleep(WINDOW).await,
        }
        let Some(settled) = stop.run_until_cancelled(ledger.settle_dependents(limit)).await else { return };
        wait = match settled {
            Ok(settled) => {
                limit = (limit * 2).min(BATCH);
                shared.dependents.waiting.store(settled.waiting, Ordering::Relaxed);
                shared.metrics.dependents.settled(&settled);
                if settled.released > 0 {
                    shared.wake.notify_one();
                }
                match settled {
                    s if s.more => WINDOW,
                    s if s.waiting => LOOK.min(shared.options.poll),
                    _ => shared.options.poll,
                }
            }
            Err(error) => {
                // One row of it may be what it fails at: fewer at a time, and others first, so that it holds up only itself.
                limit = (limit / 2).max(1);
                shared.failed("settle_dependents", &error);
                warn!(%error, "what waits for ended work can't be looked at; trying again");
                if let Some(Err(error)) = stop.run_until_cancelled(ledger.put_settlement_off()).await {
                    shared.failed("settle_dependents", &error);
                }
                shared.options.poll
            }
        };
    }
}

/// Looks for ends that were overlooked, a part of what waits at a time.
pub(super) async fn find_overlooked(shared: Arc<Shared>, stop: CancellationToken) {
    let (ledger, mut from) = (Ledger::new(shared.queue.pool().clone()), None);
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
        let Some(found) = stop.run_until_cancelled(ledger.find_overlooked(from, BATCH)).await else { return };
        match found {
            Ok((overlooked, next)) => {
                from = next;
                if overlooked > 0 {
                    shared.metrics.dependents.overlooked.inc_by(overlooked as u64);
                    error!(
                        overlooked,
                        "ends were overlooked that other work waits for; they are settled now. Please report this"
                    );
                }
            }
            Err(error) => {
                shared.failed("find_overlooked", &error);
                warn!(%error, "what waits for other work can't be looked at; trying again");
            }
        }
    }
}
