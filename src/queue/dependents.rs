//! Settles ended work with what waits for it. Every worker looks and one at a time does it; what one look leaves, the next takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::worker::Shared;
use crate::ledger::Ledger;

/// Edges of one look.
const BATCH: i32 = 500;
/// While anything waits, ends of other processes are looked for so often; own ends ring.
const LOOK: Duration = Duration::from_millis(100);
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
    let mut wait = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            () = shared.dependents.ended.notified() => tokio::time::sleep(WINDOW).await,
        }
        let Some(settled) = stop.run_until_cancelled(ledger.settle_dependents(BATCH)).await else { return };
        wait = match settled {
            Ok(settled) => {
                shared.dependents.waiting.store(settled.waiting, Ordering::Relaxed);
                shared.metrics.dependents.settled(&settled);
                if settled.released > 0 {
                    shared.wake.notify_one();
                }
                match settled {
                    // Another may be at it, so not at once.
                    s if s.more => WINDOW,
                    s if s.waiting => LOOK.min(shared.options.poll),
                    _ => shared.options.poll,
                }
            }
            Err(error) => {
                shared.failed("settle_dependents", &error);
                warn!(%error, "what waits for ended work can't be looked at; trying again");
                shared.options.poll
            }
        };
    }
}
