//! Tells Temporal of attempts that their runners took away: that they live, for as long as their runners are heard of, and how
//! they ended, again and again until it knows. Any process may: what is told is taken from the ledger row by row.

mod memory;

use std::pin::pin;
use std::time::Duration;

use chrono::Utc;
use futures::StreamExt;
use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{ActivityIdentifier, AsyncActivityHandle, Client, RetryOptions, RpcOptions};
use temporalio_common::protos::TaskToken;
use tokio_util::sync::CancellationToken;

use crate::interaction::{Attempt, Outcome, Side};
use crate::ledger::{Detached, LedgerError, SILENT, TOO_LONG, is_outage};
use crate::observer::{self, Seen, Sighting};
use crate::policy::{Doubt, Failure, Next};

use memory::{Key, Memory};

use super::OnPostgres;
use super::client::TemporalClient;
use super::ledger::Ledger as _;
use super::wire::Exact;
use super::words;

const EVERY: Duration = Duration::from_millis(250);
/// Attempts a look.
const BATCH: i32 = 500;
/// Told at once.
const AT_ONCE: usize = 16;
/// An end that could not be told is taken again after so long.
const LEASE: Duration = Duration::from_secs(5);
const RPC_WITHIN: Duration = Duration::from_secs(2);

/// The loop that tells Temporal.
pub struct Forwarder {
    /// Speaks to Temporal.
    pub client: TemporalClient,
    /// Where it stands what is to be told.
    pub on_postgres: OnPostgres,
}

/// What came of telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Heard,
    /// Temporal waits for it no longer.
    Refused,
    /// It is told again.
    Failed,
}

impl Forwarder {
    /// Runs until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut memory = Memory::new();
        loop {
            let Some(looked) = stop.run_until_cancelled(self.look(&mut memory)).await else { return };
            let full = looked.is_ok_and(|told| told >= BATCH as usize);
            if !full && stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_none() {
                return;
            }
        }
    }

    /// Tells one batch; how many there were. While Postgres is away, those of before are kept.
    async fn look(&self, memory: &mut Memory) -> Result<usize, LedgerError> {
        let told = match self.take(memory).await {
            Ok(rows) => self.tell(rows, memory).await,
            Err(error) => Err(error),
        };
        match &told {
            Ok(_) => memory.answered(),
            Err(error) => {
                memory.trouble();
                self.on_postgres.metrics.ledger_errors.with_label_values(&["take_detached"]).inc();
                if is_outage(error) {
                    self.on_postgres.observer.disturbed(Side::Postgres, "the ledger does not answer the Temporal side");
                }
                tracing::warn!(%error, "Postgres doesn't say what Temporal is to be told of what runners took away; those of before are kept");
                self.keep(memory).await;
            }
        }
        told
    }

    async fn take(&self, memory: &mut Memory) -> Result<Vec<Detached>, LedgerError> {
        let mut taking = pin!(self.on_postgres.ledger.take_detached(BATCH, LEASE, memory.calm()));
        loop {
            match tokio::time::timeout(memory::HANGS, &mut taking).await {
                Ok(taken) => return taken,
                Err(_) => {
                    memory.trouble();
                    self.keep(memory).await;
                }
            }
        }
    }

    async fn tell(&self, rows: Vec<Detached>, memory: &mut Memory) -> Result<usize, LedgerError> {
        if rows.is_empty() {
            return Ok(0);
        }
        memory.learn(&rows);
        let Some(client) = self.connected().await else { return Ok(0) };
        let (taken, client) = (rows.len(), &client);
        let telling = futures::stream::iter(rows).map(|row| async move { self.forward(client, &row).await });
        let told: Vec<Result<(), LedgerError>> = telling.buffer_unordered(AT_ONCE).collect().await;
        told.into_iter().collect::<Result<(), _>>()?;
        Ok(taken)
    }

    /// Tells Temporal of those that lived when Postgres was last heard of: their runners can't be heard now, and are not to
    /// blame. What has ended meanwhile is refused, and forgotten.
    async fn keep(&self, memory: &mut Memory) {
        let due = memory.due();
        if due.is_empty() {
            return;
        }
        let Some(client) = self.connected().await else { return };
        let client = &client;
        let beats = futures::stream::iter(due).map(|(key, token)| async move {
            let handle = client.get_async_activity_handle(ActivityIdentifier::from_task_token(TaskToken::from(token)));
            let gone = matches!(handle.heartbeat(None::<()>, once()).await, Err(AsyncActivityError::NotFound(_)));
            (key, gone)
        });
        let beaten: Vec<(Key, bool)> = beats.buffer_unordered(AT_ONCE).collect().await;
        memory.beaten(&beaten);
    }

    async fn connected(&self) -> Option<Client> {
        let client = self.client.sdk().await;
        client
            .inspect_err(
                |error| tracing::warn!(%error, "Temporal can't be told of what runners took away; trying again"),
            )
            .ok()
    }

    async fn forward(&self, client: &Client, row: &Detached) -> Result<(), LedgerError> {
        let token = TaskToken::from(row.token.clone().unwrap_or_default());
        let handle = client.get_async_activity_handle(ActivityIdentifier::from_task_token(token));
        let (word, told) = match row.outcome {
            None => ("heartbeat", self.beat(handle, row).await?),
            Some(outcome) => ("end", self.end(handle, row, outcome).await?),
        };
        let outcome = match told {
            Told::Heard => "told",
            Told::Refused => "refused",
            Told::Failed => "failed",
        };
        self.on_postgres.metrics.detached.forwarded.with_label_values(&[word, outcome]).inc();
        Ok(())
    }

    async fn beat(&self, handle: AsyncActivityHandle<Client>, row: &Detached) -> Result<Told, LedgerError> {
        let Detached { id, fence, .. } = *row;
        match handle.heartbeat(None::<()>, once()).await {
            Ok(answer) => {
                if answer.cancel_requested && !row.called_off {
                    self.on_postgres.ledger.call_off_detached(row).await?;
                }
                Ok(Told::Heard)
            }
            Err(AsyncActivityError::NotFound(_)) => {
                if self.on_postgres.ledger.give_up_detached(row).await? {
                    tracing::warn!(%id, %fence, "Temporal no longer waits for an attempt that its runner took away: what comes of it is late");
                    self.lost(Doubt::Worker);
                }
                Ok(Told::Refused)
            }
            Err(error) => {
                tracing::warn!(%id, %fence, %error, "Temporal isn't told that an attempt lives; it is told again");
                Ok(Told::Failed)
            }
        }
    }

    async fn end(
        &self,
        handle: AsyncActivityHandle<Client>,
        row: &Detached,
        outcome: Outcome,
    ) -> Result<Told, LedgerError> {
        let Detached { id, fence, .. } = *row;
        if let Some(cause) = row.failure.as_ref().and_then(Failure::doubt).filter(|_| row.tries <= 1) {
            tracing::warn!(%id, %fence, %cause, "an attempt is lost with the runner that took it away");
            self.lost(cause);
        }
        let mut report = last_words(row, outcome);
        let ended = if report.outcome == Some(Outcome::Succeeded) {
            handle.complete(Some(Exact(report.clone())), once()).await
        } else {
            let failure;
            (report, failure) = self.worded(row, report);
            handle.fail(failure, None::<()>, once()).await
        };
        let told = match ended {
            Ok(()) => Told::Heard,
            // It knows it since the answer to an earlier telling was lost.
            Err(AsyncActivityError::NotFound(_)) if row.tries > 1 => Told::Heard,
            Err(AsyncActivityError::NotFound(_)) => Told::Refused,
            Err(error) => {
                tracing::warn!(%id, %fence, %error, "Temporal isn't told the end of an attempt; it is told again");
                return Ok(Told::Failed);
            }
        };
        self.seen(row, &report, told).await;
        self.on_postgres.ledger.close_detached(row).await?;
        Ok(told)
    }

    /// What the policy says that follows a failure, as Temporal is told it.
    fn worded(&self, row: &Detached, report: Attempt) -> (Attempt, temporalio_sdk::ApplicationFailure) {
        let next = match &report.failure {
            Some(failure) if report.outcome == Some(Outcome::Failed) => row.after(failure),
            _ => Next::GiveUp,
        };
        match next {
            Next::Retry(delay) => words::retry(report, delay, row.policy.on_unknown),
            Next::Park => words::park(report),
            Next::GiveUp => (report.clone(), words::give_up(report)),
        }
    }

    /// Writes down what the attempt's worker would have.
    async fn seen(&self, row: &Detached, report: &Attempt, told: Told) {
        let Attempt { id, side, fence, ended_at: at, .. } = *report;
        let what = match told {
            Told::Refused => {
                tracing::warn!(%id, %fence, "the end of an attempt came too late: Temporal no longer waits for it");
                self.on_postgres.metrics.late_results.with_label_values(&[Side::Temporal.as_str()]).inc();
                Seen::Refused
            }
            _ => observer::ended(report.outcome, report.retry_ms, report.error.as_deref()),
        };
        if row.pinned {
            self.on_postgres.observer.see(Sighting { id, side, fence, rehearsal: false, at, what });
        }
        if report.retry_ms.is_some()
            && told == Told::Heard
            && let Err(error) = self.on_postgres.record_attempt(report).await
        {
            tracing::warn!(%id, %fence, %error, "an attempt's record was lost");
        }
    }

    fn lost(&self, cause: Doubt) {
        let labels = [Side::Temporal.as_str(), cause.as_str()];
        self.on_postgres.metrics.detached.lost.with_label_values(&labels).inc();
    }
}

/// The attempt as it ended. One that was lost although somebody had asked to cancel it is not tried again.
fn last_words(row: &Detached, outcome: Outcome) -> Attempt {
    let report = Attempt { outcome: Some(outcome), ended_at: row.ended_at.unwrap_or_else(Utc::now), ..row.attempt() };
    let why = match row.failure.as_ref().and_then(Failure::doubt) {
        None => return report,
        Some(Doubt::RunTimeout) => TOO_LONG,
        Some(_) => SILENT,
    };
    let outcome = if row.called_off { Outcome::Cancelled } else { outcome };
    Attempt { outcome: Some(outcome), error: Some(why.to_owned()), ..report }
}

fn once() -> RpcOptions {
    RpcOptions::builder().timeout(RPC_WITHIN).retry_options(RetryOptions::no_retries()).build()
}
