//! Gives turns to what excludes others (`exclusive`). Every worker looks and one at a time does it; what one look leaves, the next
//! takes. Nothing here has to be right for the exclusion to hold, only awake for the next to go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use super::worker::Shared;
use crate::ledger::{self, Ledger};

/// Notes of one look.
const BATCH: i32 = 500;
/// While anything excludes others, turns that other processes gave up are looked for so often; own ends ring.
const LOOK: Duration = Duration::from_millis(100);
/// Whoever was rung and found somebody else at it comes again so soon.
const BUSY: Duration = Duration::from_millis(3);
/// Ends come in handfuls.
const FEW: Duration = Duration::from_millis(1);
/// Between two looks for what was overlooked.
const SWEEP: Duration = Duration::from_secs(20);

/// Whether anything excludes others, as far as is known here, and the bell of own ends.
#[derive(Default)]
pub(super) struct Turns {
    waiting: AtomicBool,
    rung: Notify,
}

impl Turns {
    /// Something has ended here, or has come in.
    pub(super) fn ring(&self) {
        if self.waiting.load(Ordering::Relaxed) {
            self.rung.notify_one();
        }
    }

    /// Something runs here whose turn another will want.
    pub(super) fn expect(&self) {
        self.waiting.store(true, Ordering::Relaxed);
    }
}

/// Gives turns until `stop`.
pub(super) async fn give(shared: Arc<Shared>, stop: CancellationToken) {
    let ledger = Ledger::new(shared.queue.pool().clone());
    let (mut wait, mut limit) = (Duration::ZERO, BATCH);
    loop {
        let rung = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.turns.rung.notified() => true,
            () = tokio::time::sleep(wait) => false,
        };
        let Some(turns) = stop.run_until_cancelled(ledger.give_turns(limit)).await else { return };
        wait = match turns {
            Ok(turns) => {
                limit = (limit * 2).min(BATCH);
                after(&shared, &turns, rung)
            }
            Err(error) => {
                // One row of it may be what it fails at: fewer at a time, and others first, so that it holds up only itself.
                limit = (limit / 2).max(1);
                shared.failed("give_turns", &error);
                warn!(%error, "turns of what excludes others can't be given; trying again");
                if let Some(Err(error)) = stop.run_until_cancelled(ledger.put_turns_off()).await {
                    shared.failed("give_turns", &error);
                }
                shared.options.poll
            }
        };
        if stop.run_until_cancelled(tokio::time::sleep(FEW)).await.is_none() {
            return;
        }
    }
}

/// When to come again.
fn after(shared: &Shared, turns: &ledger::Turns, rung: bool) -> Duration {
    shared.turns.waiting.store(turns.waiting, Ordering::Relaxed);
    shared.metrics.turns.given.inc_by(turns.given.max(0) as u64);
    if turns.given > 0 {
        shared.wake.notify_one();
    }
    // What is due and was not given now is somebody else's for the moment.
    let soonest = if turns.given > 0 { 0.0 } else { 10.0 };
    let next = turns.next_ms.map(|ms| Duration::from_secs_f64(ms.clamp(soonest, 1e6) / 1_000.0));
    match turns {
        ledger::Turns { busy: true, .. } if rung => BUSY,
        ledger::Turns { more: true, .. } => Duration::ZERO,
        ledger::Turns { waiting: true, .. } => LOOK.min(shared.options.poll).min(next.unwrap_or(LOOK)),
        _ => shared.options.poll,
    }
}

/// Looks for turns that were overlooked, a part of the keys at a time.
pub(super) async fn find_overlooked(shared: Arc<Shared>, stop: CancellationToken) {
    let (ledger, mut from) = (Ledger::new(shared.queue.pool().clone()), None);
    while stop.run_until_cancelled(tokio::time::sleep(SWEEP)).await.is_some() {
        let Some(found) = stop.run_until_cancelled(ledger.find_overlooked_turns(from, BATCH)).await else { return };
        match found {
            Ok((overlooked, next)) => {
                from = next;
                if overlooked > 0 {
                    shared.metrics.turns.overlooked.inc_by(overlooked as u64);
                    error!(
                        overlooked,
                        "turns of what excludes others were overlooked; they are given now. Please report this"
                    );
                }
            }
            Err(error) => {
                shared.failed("find_overlooked_turns", &error);
                warn!(%error, "turns of what excludes others can't be looked at; trying again");
            }
        }
    }
}
