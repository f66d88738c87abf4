//! Ends rehearsals. A rehearsal is an activity that nobody works on; when its real attempt on Postgres ends, the
//! same end goes through the activity's own retry machine, so that both sides' next steps can be compared.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::Utc;
use futures::StreamExt;
use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{ActivityIdentifier, Client, RetryOptions, RpcOptions};
use temporalio_common::protos::TaskToken;
use temporalio_sdk::ApplicationFailure;
use tokio_util::task::TaskTracker;

use super::ledger::{ClosedRehearsal, FinishedRehearsal, Ledger, LedgerError, OpenRehearsal, Step};

/// More than so many rehearsals aren't kept through a Postgres outage; the rest end at their bound.
const KEEP: usize = 50_000;
/// Rehearsals ended at once.
const AT_ONCE: usize = 16;
const RPC_WITHIN: Duration = Duration::from_secs(2);
/// How often it looks which real runs go on.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// What the ledger couldn't be told.
#[derive(Debug, Default)]
pub struct Unrecorded {
    waiting: Mutex<VecDeque<OpenRehearsal>>,
    /// Rehearsals that Temporal has ended and the ledger has not heard of: asked again, Temporal would know none of them.
    closed: Mutex<Vec<ClosedRehearsal>>,
    /// Records on their way.
    pub(super) records: TaskTracker,
    /// Attempts whose record was lost.
    pub lost_attempts: AtomicU64,
    /// Rehearsals that will end at their bound because the ledger never heard of them.
    pub lost_rehearsals: AtomicU64,
}

impl Unrecorded {
    /// Keeps a rehearsal until the ledger can be told of it.
    pub fn push(&self, rehearsal: OpenRehearsal) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= KEEP {
            self.lost_rehearsals.fetch_add(1, Relaxed);
            return;
        }
        waiting.push_back(rehearsal);
    }

    fn pop(&self) -> Option<OpenRehearsal> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Tells the ledger what has closed, now or when it failed before; as much as a few looks find is kept.
    async fn close(&self, ledger: &dyn Ledger, closed: Vec<ClosedRehearsal>) -> Result<(), LedgerError> {
        let mut all = std::mem::take(&mut *self.closed());
        all.extend(closed);
        if all.is_empty() {
            return Ok(());
        }
        let told = ledger.close_rehearsals(&all).await;
        if told.is_err() {
            let mut kept = self.closed();
            kept.extend(all);
            kept.truncate(KEEP);
        }
        told
    }

    fn closed(&self) -> std::sync::MutexGuard<'_, Vec<ClosedRehearsal>> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the ledger, until it fails or there is nothing left. What is past its bound has ended by itself.
    async fn flush(&self, ledger: &dyn Ledger) -> Result<(), LedgerError> {
        while let Some(rehearsal) = self.pop() {
            if rehearsal.bound_at < Utc::now() {
                self.lost_rehearsals.fetch_add(1, Relaxed);
            } else if let Err(error) = ledger.rehearsal_dequeued(&rehearsal).await {
                self.push(rehearsal);
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The loop that ends rehearsals.
pub struct Mirror {
    /// Speaks to Temporal.
    pub client: Client,
    /// Knows which real attempts have ended.
    pub ledger: Arc<dyn Ledger>,
    /// Rehearsals that it doesn't know yet.
    pub unrecorded: Arc<Unrecorded>,
    /// The pause between two looks.
    pub every: Duration,
    /// Rehearsals a look.
    pub batch: i64,
}

impl Mirror {
    /// Runs until it is dropped. A full batch is followed by the next one at once.
    pub async fn run(self) {
        let mut down = false;
        let mut beaten = Instant::now();
        loop {
            let looked = match self.look().await {
                Ok(found) if beaten.elapsed() >= BEAT_EVERY => {
                    beaten = Instant::now();
                    self.beat().await.map(|()| found)
                }
                looked => looked,
            };
            match &looked {
                Err(error) if !down => tracing::warn!(%error, "rehearsals can't be ended for now"),
                Ok(_) if down => tracing::info!("rehearsals are ended again"),
                _ => {}
            }
            down = looked.is_err();
            if !matches!(looked, Ok(found) if found >= self.batch as usize) {
                tokio::time::sleep(if down { self.every.max(Duration::from_secs(1)) } else { self.every }).await;
            }
        }
    }

    /// Ends one batch; answers how many it ended.
    async fn look(&self) -> Result<usize, LedgerError> {
        self.unrecorded.flush(&*self.ledger).await?;
        self.unrecorded.close(&*self.ledger, Vec::new()).await?;
        let finished = self.ledger.finished_rehearsals(self.batch).await?;
        let closed: Vec<ClosedRehearsal> = futures::stream::iter(finished)
            .map(|f| self.end(f))
            .buffer_unordered(AT_ONCE)
            .filter_map(async |c| c)
            .collect()
            .await;
        let ended = closed.len();
        self.unrecorded.close(&*self.ledger, closed).await?;
        Ok(ended)
    }

    /// Tells Temporal of rehearsals whose real run goes on. What it is not told of, it ends at the bound.
    async fn beat(&self) -> Result<(), LedgerError> {
        let living = self.ledger.living_rehearsals(self.batch).await?;
        let beats = futures::stream::iter(living).map(|rehearsal| async move {
            let OpenRehearsal { id, fence, token, .. } = rehearsal;
            let handle =
                self.client.get_async_activity_handle(ActivityIdentifier::from_task_token(TaskToken::from(token)));
            match handle.heartbeat(None::<()>, once()).await {
                // What is gone is closed with its real run.
                Ok(_) | Err(AsyncActivityError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(%id, %fence, %error, "Temporal isn't told that a real run goes on; it is told again")
                }
            }
        });
        beats.buffer_unordered(AT_ONCE).collect::<()>().await;
        Ok(())
    }

    /// Absent where Temporal couldn't be told; it stays on the ledger's list.
    async fn end(&self, finished: FinishedRehearsal) -> Option<ClosedRehearsal> {
        let FinishedRehearsal { token, id, fence, step } = finished;
        let handle =
            self.client.get_async_activity_handle(ActivityIdentifier::from_task_token(TaskToken::from(token.clone())));
        let retry_ms = match &step {
            Step::Retry { delay } => Some(delay.as_millis() as i64),
            Step::Succeeded(_) | Step::Failed(_) => None,
        };
        let ended = match step {
            Step::Succeeded(_) => handle.complete(Some(fence.attempt), once()).await,
            Step::Retry { delay } => handle.fail(retry(delay), None::<()>, once()).await,
            Step::Failed(error) => handle.fail(ApplicationFailure::non_retryable(error), None::<()>, once()).await,
        };
        let mirrored = match ended {
            Ok(()) => true,
            Err(AsyncActivityError::NotFound(_)) => false,
            Err(error) => {
                tracing::warn!(%id, %fence, %error, "a rehearsal couldn't be ended; it will be tried again");
                return None;
            }
        };
        Some(ClosedRehearsal { token, id, fence, mirrored, retry_ms, closed_at: Utc::now() })
    }
}

fn once() -> RpcOptions {
    RpcOptions::builder().timeout(RPC_WITHIN).retry_options(RetryOptions::no_retries()).build()
}

fn retry(delay: Duration) -> ApplicationFailure {
    let failure = ApplicationFailure::builder("its real attempt failed and is retried").type_name("retry".to_owned());
    failure.next_retry_delay(delay.max(Duration::from_millis(1))).build()
}
