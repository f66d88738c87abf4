//! The Temporal side on the real ledger, and behind the router's delivery.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use uuid::Uuid;

use super::client::TemporalClient;
use super::deliver::{DeliverError, Delivered};
use super::ledger::{
    Asked, ClosedRehearsal, Detaching, End, FinishedRehearsal, Ledger, LedgerError, OpenRehearsal, Parking, Step,
};
use super::reconcile;
use crate::interaction::{Attempt, Envelope, Fence, Outcome, Side};
use crate::ledger::{self, Answered, Ledger as Postgres, Noted, Untold, Verdict};
use crate::metrics::Metrics;
use crate::observer::{self, Observer, Seen, Sighting};
use crate::policy::{Failure, Next};
use crate::router::{Deliver, Delivery, DeliveryError};

/// The ledger, with what passes through counted.
pub struct OnPostgres {
    /// Where it is written.
    pub ledger: Postgres,
    /// Where it is counted.
    pub metrics: Arc<Metrics>,
    /// Rung when an end may have made the next of a series ready on the Postgres side.
    pub wake_queue: Arc<Notify>,
    /// Sees what is refused, how rehearsals end, and that Postgres is away.
    pub observer: Observer,
}

impl OnPostgres {
    fn told<T>(&self, call: &str, answer: Result<T, ledger::LedgerError>) -> Result<T, LedgerError> {
        answer.map_err(|error| {
            self.metrics.ledger_errors.with_label_values(&[call]).inc();
            if ledger::is_outage(&error) {
                self.observer.disturbed(Side::Postgres, "the ledger does not answer the Temporal side");
            }
            error.into()
        })
    }

    fn see(&self, id: Uuid, fence: Fence, rehearsal: bool, at: DateTime<Utc>, what: Seen) {
        self.observer.see(Sighting { id, side: Side::Temporal, fence, rehearsal, at, what });
    }

    fn attempted(&self, attempt: &Attempt) {
        self.metrics.dequeued(Side::Temporal, false, attempt.started_at - attempt.due_at);
        self.metrics.attempted(Side::Temporal, false, attempt.outcome, attempt.retry_ms.is_some());
    }
}

#[async_trait]
impl Ledger for OnPostgres {
    async fn settle(&self, end: &End) -> Result<(), LedgerError> {
        let fence = Fence { epoch: end.epoch, attempt: end.attempt };
        let report = end.attempt_report.as_ref();
        let settled = self.ledger.settle(end.id, fence, end.outcome, end.reason.as_deref(), report, end.lost).await;
        if self.told("settle", settled)? {
            self.wake_queue.notify_one();
            match report {
                Some(attempt) => self.attempted(attempt),
                // No attempt could tell: none began, or the last one was lost with its worker.
                None => {
                    let what = observer::ended(Some(end.outcome), None, end.reason.as_deref());
                    self.see(end.id, fence, false, Utc::now(), what);
                }
            }
        } else if self.told("settle", self.ledger.ended_otherwise(end.id, fence, end.outcome).await)? {
            tracing::warn!(id = %end.id, %fence, outcome = %end.outcome, "an end was refused: its pin has another one, or is not Temporal's under this epoch");
            self.see(end.id, fence, false, Utc::now(), Seen::Refused);
        }
        Ok(())
    }

    async fn record_attempt(&self, attempt: &Attempt) -> Result<(), LedgerError> {
        self.attempted(attempt);
        self.told("record_attempt", self.ledger.record_attempt(attempt).await)
    }

    async fn over_before(&self, id: Uuid, fence: Fence) -> Result<(), LedgerError> {
        self.told("over_before", self.ledger.over_before(id, fence).await)
    }

    async fn park(&self, parking: &Parking) -> Result<bool, LedgerError> {
        let noted = self.told("park", self.ledger.park(parking).await)?;
        if noted == Noted::Parked {
            self.metrics.parked(Side::Temporal, parking.cause);
            self.metrics.attempted(Side::Temporal, false, Some(Outcome::Failed), true);
            match (parking.started_at, parking.due_at) {
                (Some(started), Some(due)) => self.metrics.dequeued(Side::Temporal, false, started - due),
                // An attempt that was lost with its worker had nobody to see its end.
                _ => {
                    let what = observer::ended(Some(Outcome::Failed), None, Some(&parking.error));
                    self.see(parking.id, parking.fence, false, Utc::now(), what);
                }
            }
        }
        Ok(noted != Noted::Over)
    }

    async fn ask(&self, envelope: &Envelope, anew: Option<i32>) -> Result<Asked, LedgerError> {
        let answer = self.told("ask", reconcile::ask(&self.ledger, envelope).await)?;
        let Answered { verdict, mut attempts, behind, reason, .. } = answer;
        if !behind.is_empty() {
            return Ok(Asked::Run { behind, attempts, run: None });
        }
        let why = reason.unwrap_or_default();
        let runs = matches!(verdict, Verdict::Own | Verdict::Another);
        if let Some(before) = anew.filter(|_| runs) {
            let counted = self.ledger.count_anew(envelope.id, envelope.epoch, before).await;
            match self.told("ask", counted)? {
                Some(counted) => attempts = counted,
                // Nothing counts the attempts of a copy beside a pin that has ended.
                None if verdict == Verdict::Another => return Ok(Asked::Never(format!("it was reset, and {why}"))),
                None => return Err("its pin has changed while it was asked".into()),
            }
        }
        self.metrics.reconciliation.asked.with_label_values(&[verdict.as_str()]).inc();
        match verdict {
            Verdict::Own => return Ok(Asked::Run { behind, attempts, run: None }),
            Verdict::Another => {
                tracing::error!(id = %envelope.id, account = envelope.account, why, "a copy came without a pin, and its key is pinned with other work: the copy runs, and the pin is held");
                return Ok(Asked::Beside { attempts, run: None });
            }
            _ => {}
        }
        tracing::warn!(id = %envelope.id, account = envelope.account, epoch = envelope.epoch, why, "a copy asked its pin and does not run");
        Ok(Asked::Never(format!("it did not run: {why}")))
    }

    async fn unended_up_to(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        self.told("unended_up_to", self.ledger.unended_up_to(ids).await)
    }

    async fn detach(&self, detaching: &Detaching) -> Result<(), LedgerError> {
        self.told("detach", self.ledger.detach(detaching).await)
    }

    async fn living_rehearsals(&self, limit: i64) -> Result<Vec<OpenRehearsal>, LedgerError> {
        self.told("living_rehearsals", self.ledger.living_rehearsals(limit).await)
    }

    async fn rehearsal_dequeued(&self, rehearsal: &OpenRehearsal) -> Result<(), LedgerError> {
        self.told("rehearsal_dequeued", self.ledger.rehearsal_dequeued(rehearsal).await)?;
        self.metrics.dequeued(Side::Temporal, true, rehearsal.dequeued_at - rehearsal.due_at);
        Ok(())
    }

    async fn finished_rehearsals(&self, limit: i64) -> Result<Vec<FinishedRehearsal>, LedgerError> {
        let finished = self.told("finished_rehearsals", self.ledger.finished_rehearsals(limit).await)?;
        let step = |f: ledger::FinishedRehearsal| {
            let (id, fence) = (f.rehearsal.id, f.rehearsal.fence);
            let step = match (f.outcome, f.last) {
                (Outcome::Succeeded, _) => Step::Succeeded(f.result),
                (Outcome::Failed, false) => {
                    // An attempt that left no record was lost with its worker.
                    let failure = f.failure.unwrap_or(Failure::RETRYABLE);
                    match f.policy.after(id, fence.attempt, &failure, f.age) {
                        Next::Retry(delay) => Step::Retry { delay },
                        // It is told of only once a person let it run again.
                        Next::Park => Step::Retry { delay: Duration::ZERO },
                        Next::GiveUp => Step::Failed(f.error.unwrap_or_default()),
                    }
                }
                (outcome, _) => Step::Failed(f.error.unwrap_or_else(|| outcome.to_string())),
            };
            FinishedRehearsal { token: f.rehearsal.token, id, fence, step }
        };
        Ok(finished.into_iter().map(step).collect())
    }

    async fn close_rehearsals(&self, closed: &[ClosedRehearsal]) -> Result<(), LedgerError> {
        let ends: Vec<_> = closed.iter().map(|c| (c.id, c.fence, c.mirrored)).collect();
        let recorded = self.told("close_rehearsals", self.ledger.close_rehearsals(&ends).await)?;
        for end in recorded {
            self.metrics.attempted(Side::Temporal, true, end.outcome, end.retried);
            let Some(closed) = closed.iter().find(|c| (c.id, c.fence) == (end.id, end.fence)) else { continue };
            let retry_ms = closed.retry_ms.filter(|_| closed.mirrored);
            let what = observer::ended(end.outcome, retry_ms, end.error.as_deref());
            self.see(end.id, end.fence, true, closed.closed_at, what);
        }
        Ok(())
    }
}

/// A Temporal client as the router sees it.
pub struct Delivers(pub TemporalClient);

#[async_trait]
impl Deliver for Delivers {
    async fn deliver(&self, envelope: &Envelope) -> Result<Delivery, DeliveryError> {
        match self.0.deliver(envelope).await? {
            Delivered::Started => Ok(Delivery::Started),
            Delivered::AlreadyThere => Ok(Delivery::AlreadyThere),
            Delivered::Ended { outcome, attempt, result, error } => {
                let now = Utc::now();
                let last = Attempt {
                    id: envelope.id,
                    side: Side::Temporal,
                    fence: Fence { epoch: envelope.epoch, attempt },
                    rehearsal: false,
                    due_at: now,
                    started_at: now,
                    ended_at: now,
                    outcome: Some(outcome),
                    failure: None,
                    retry_ms: None,
                    result,
                    error,
                };
                Ok(Delivery::Ended { outcome, last: Box::new(last) })
            }
        }
    }

    async fn resolve(&self, untold: &Untold) -> Result<bool, DeliveryError> {
        Ok(self.0.resolve(untold).await?)
    }

    async fn look_up(&self, id: Uuid) -> Result<Option<&'static str>, DeliveryError> {
        let found = self.0.outcome(&format!("{id}:1")).await?;
        Ok(found.map(|ended| ended.map_or("running", Outcome::as_str)))
    }
}

impl From<DeliverError> for DeliveryError {
    fn from(error: DeliverError) -> Self {
        match error {
            DeliverError::OwnerConflict { .. } => Self::OwnerConflict(error.to_string()),
            DeliverError::InDoubt(reason) => Self::InDoubt(reason),
            DeliverError::Refused { retryable, reason } => Self::Refused { retryable, reason },
        }
    }
}
