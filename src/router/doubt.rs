//! Unpinned starts whose outcome Temporal left in doubt. Each is repeated until there is an answer, because until then no
//! barrier of its account may be acknowledged; a start can be repeated, so nothing runs twice.

use std::collections::{HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::deliver::{Deliverer, DeliveryError};
use crate::arming::UnpinnedStart;
use crate::interaction::Envelope;

/// So many are kept, and so many bytes; past it nothing starts without a pin, for Temporal hangs anyway.
const MOST: usize = 10_000;
const MOST_BYTES: usize = 64 << 20;
/// So many are repeated at once, after such a pause; while none is answered the pause grows.
const AT_ONCE: usize = 16;
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What is in doubt here.
pub(super) struct Doubts {
    deliverer: Deliverer,
    kept: Mutex<Kept>,
    more: Notify,
}

#[derive(Default)]
struct Kept {
    starts: VecDeque<(Envelope, UnpinnedStart)>,
    ids: HashSet<Uuid>,
    bytes: usize,
}

impl Doubts {
    pub(super) fn new(deliverer: Deliverer) -> Self {
        Self { deliverer, kept: Mutex::default(), more: Notify::new() }
    }

    /// Whether another one could be kept.
    pub(super) fn have_room(&self) -> bool {
        let kept = self.kept();
        kept.ids.len() < MOST && kept.bytes < MOST_BYTES
    }

    /// Keeps a start until it is answered. One of the same id that is kept already stands for both.
    pub(super) fn keep(&self, envelope: Envelope, mut start: UnpinnedStart) {
        let mut kept = self.kept();
        if !kept.ids.insert(envelope.id) {
            drop(kept);
            return start.settled();
        }
        start.doubt();
        kept.bytes += weight(&envelope);
        kept.starts.push_back((envelope, start));
        drop(kept);
        self.more.notify_one();
    }

    /// Repeats them until `stop`. What is still in doubt then stays so: this process does not deregister.
    pub(super) async fn repeat(&self, stop: CancellationToken) {
        let mut pause = PAUSE;
        loop {
            let due = async {
                while self.kept().starts.is_empty() {
                    self.more.notified().await;
                }
                tokio::time::sleep(pause).await;
            };
            if stop.run_until_cancelled(due).await.is_none() {
                return;
            }
            let Some(answered) = stop.run_until_cancelled(self.repeat_some()).await else { return };
            pause = if answered > 0 { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
        }
    }

    /// How many were answered.
    async fn repeat_some(&self) -> usize {
        let some: Vec<_> = {
            let mut kept = self.kept();
            let count = kept.starts.len().min(AT_ONCE);
            kept.starts.drain(..count).collect()
        };
        let repeats = some.into_iter().map(|(envelope, start)| async move {
            let definite = is_definite(self.deliverer.start(&envelope).await);
            (envelope, start, definite)
        });
        let mut answered = 0;
        for (envelope, start, definite) in join_all(repeats).await {
            let mut kept = self.kept();
            if definite {
                kept.ids.remove(&envelope.id);
                kept.bytes -= weight(&envelope);
                drop(kept);
                start.settled();
                answered += 1;
            } else {
                kept.starts.push_back((envelope, start));
            }
        }
        answered
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal that may pass says nothing of the start before it, which may still arrive.
fn is_definite<T>(answer: Result<T, DeliveryError>) -> bool {
    match answer {
        Ok(_) | Err(DeliveryError::OwnerConflict(_) | DeliveryError::Refused { retryable: false, .. }) => true,
        Err(DeliveryError::InDoubt(_) | DeliveryError::Refused { retryable: true, .. }) => false,
    }
}

fn weight(envelope: &Envelope) -> usize {
    1_000 + envelope.payload.get().len()
}
