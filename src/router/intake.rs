//! The intake: pins what `crossover.enqueue` accepted from SQL.
//!
//! SQL can't ask the flags, so the function leaves a row in the caller's own transaction, and a router takes it out,
//! decides, and pins in one transaction. Whatever dies between two lines, a row is there or its pin is, never both and
//! never neither. Two routers share the work by skipping what the other has locked; of a series nothing is taken while
//! something before it is there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::request::{self, Fault};
use super::{EnqueueError, How, Router};
use crate::executor::clean;
use crate::interaction::Interaction;
use crate::ledger::{IntakeItem, IntakeRow, Ledger, LedgerError, Taken};
use crate::metrics::Metrics;
use crate::policy::Policy;

/// How the intake is drained.
#[derive(Debug, Clone, Copy)]
pub struct IntakeOptions {
    /// How often it looks when the last look found nothing.
    pub poll: Duration,
    /// Rows in one look.
    pub batch: i64,
    /// Pins under way at once.
    pub parallel: usize,
}

/// Drains the intake. Every router has one; any number of them is safe.
pub struct Intake {
    ledger: Ledger,
    router: Arc<Router>,
    metrics: Arc<Metrics>,
    options: IntakeOptions,
}

/// What was looked at and could not be pinned is looked at again after so long, at the soonest.
const BREATH: Duration = Duration::from_millis(250);

/// After `stop`, so long for pins under way.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What became of a row.
#[derive(Debug, PartialEq, Eq)]
enum Done {
    /// It is pinned (or was), or is kept aside: the next of its series may go.
    Settled,
    /// It stays, and so does what is behind it.
    Stays,
}

impl Intake {
    /// An intake that pins through `router`.
    pub fn new(ledger: Ledger, router: Arc<Router>, metrics: Arc<Metrics>, options: IntakeOptions) -> Self {
        Self { ledger, router, metrics, options }
    }

    /// Drains until `stop`. What is under way may finish, for a moment: what is cut off then is there or pinned, as after a crash.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            let cut_off = async {
                stop.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            let passed = tokio::select! {
                passed = self.pass(&stop) => passed,
                () = cut_off => break,
            };
            wait = match passed {
                Ok((_, settled)) if settled > 0 => Duration::ZERO,
                Ok((0, _)) => self.options.poll,
                Ok(_) => self.options.poll.max(BREATH),
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["intake_due"]).inc();
                    warn!(%error, "the intake can't be read; trying again");
                    self.options.poll.max(BREATH)
                }
            };
        }
        info!("the intake has stopped");
    }

    /// One look; how many rows were due, and how many were settled.
    async fn pass(&self, stop: &CancellationToken) -> Result<(usize, usize), LedgerError> {
        let (mut rows, mut after) = (0, i64::MIN);
        loop {
            let due = self.ledger.intake_due(after, self.options.batch).await?;
            let full = due.len() as i64 >= self.options.batch;
            (rows, after) = (rows + due.len(), due.last().map_or(after, |row| row.no));
            let chains =
                stream::iter(chains(due)).map(|chain| self.chain(chain, stop)).buffer_unordered(self.options.parallel);
            let settled = chains.fold(0, |sum, n| async move { sum + n }).await;
            // A page that somebody else's transaction holds must not hide what comes after it.
            if settled > 0 || !full || stop.is_cancelled() {
                return Ok((rows, settled));
            }
        }
    }

    /// Pins the rows of a series in their order, up to the first that has to stay.
    async fn chain(&self, rows: Vec<IntakeRow>, stop: &CancellationToken) -> usize {
        let mut settled = 0;
        for row in rows {
            if stop.is_cancelled() || self.one(&row).await == Done::Stays {
                break;
            }
            settled += 1;
        }
        settled
    }

    async fn one(&self, row: &IntakeRow) -> Done {
        let (outcome, reason) = match self.pin(row.no).await {
            Ok(None) => return Done::Settled,
            Ok(Some(outcome)) if outcome == BUSY => return Done::Stays,
            Ok(Some(outcome)) => {
                self.metrics.intake.taken.with_label_values(&[outcome]).inc();
                return Done::Settled;
            }
            Err(error @ (EnqueueError::Invalid(_) | EnqueueError::Conflict { .. })) => ("refused", error),
            Err(error) => ("failed", error),
        };
        self.metrics.intake.taken.with_label_values(&[outcome]).inc();
        let (account, reason) = (&row.account, clean(&reason.to_string()));
        warn!(account, no = row.no, outcome, reason, "a row of the intake can't be pinned; see crossover.intake");
        let kept = match outcome {
            "refused" => self.ledger.refuse_intake(row.no, &reason).await.map(|()| Done::Settled),
            _ => self.ledger.postpone_intake(row.no, &reason).await.map(|()| Done::Stays),
        };
        kept.unwrap_or_else(|error| {
            self.metrics.ledger_errors.with_label_values(&["intake"]).inc();
            warn!(%error, no = row.no, "what became of a row of the intake can't be written down; it is tried again");
            Done::Stays
        })
    }

    /// Takes a row out and pins it, both or neither. None: somebody else did.
    async fn pin(&self, no: i64) -> Result<Option<&'static str>, EnqueueError> {
        let away = |error: LedgerError| EnqueueError::Unavailable { reason: error.to_string(), key: String::new() };
        let mut transaction = self.ledger.begin().await.map_err(away)?;
        let item = match self.ledger.take_intake(&mut transaction, no).await.map_err(away)? {
            Taken::Item(item) => item,
            Taken::Busy => return Ok(Some(BUSY)),
            Taken::Gone => return Ok(None),
        };
        let created_at = item.created_at;
        let interaction = read(*item).map_err(EnqueueError::Invalid)?;
        super::valid(&interaction, created_at)?;
        let ticket = self.router.pin_in(&mut transaction, &interaction).await?;
        let how = ticket.accepted.how;
        transaction.commit().await.map_err(|error| away(error.into()))?;
        self.router.deliver_later(ticket);
        Ok(Some(if how == How::Repeated { "repeated" } else { "pinned" }))
    }
}

/// Another router is at it.
const BUSY: &str = "busy";

/// Rows of one series together, in their order; each other row alone. The oldest first.
fn chains(due: Vec<IntakeRow>) -> Vec<Vec<IntakeRow>> {
    let mut places = BTreeMap::new();
    let mut chains: Vec<Vec<IntakeRow>> = Vec::new();
    for row in due {
        let series = row.series.clone().map(|series| (row.account.clone(), row.kind.clone(), series));
        let place = match series {
            Some(series) => *places.entry(series).or_insert(chains.len()),
            None => chains.len(),
        };
        match chains.get_mut(place) {
            Some(chain) => chain.push(row),
            None => chains.push(vec![row]),
        }
    }
    chains
}

/// Makes an interaction of a row. SQL has looked at all of it; what is found here is what SQL can't see.
fn read(item: IntakeItem) -> Result<Interaction, Vec<Fault>> {
    let fault = |field: &str, message: String| vec![Fault { field: field.to_owned(), message }];
    let IntakeItem { account, kind, key, series, group, run_at, priority, policy, payload, after, exclusive, .. } =
        item;
    let payload = payload.map_err(|error| fault("payload", error))?;
    let mut faults = Vec::new();
    let policy = match policy.map(RawValue::from_string).transpose() {
        Ok(raw) => raw.map_or_else(Policy::default, |raw| request::policy(&raw, &mut faults)),
        Err(error) => return Err(fault("policy", error.to_string())),
    };
    let after = match after.map(RawValue::from_string).transpose() {
        Ok(raw) => raw.and_then(|raw| request::after::read(&raw, &account, &mut faults)),
        Err(error) => return Err(fault("after", error.to_string())),
    };
    match faults.is_empty() {
        true => Ok(Interaction {
            account,
            kind,
            key,
            key_made: false,
            payload,
            series,
            group,
            run_at,
            priority,
            policy,
            after,
            exclusive,
        }),
        false => Err(faults),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_a_series_stay_together_and_in_order() {
        let row = |no, series: Option<&str>| IntakeRow {
            no,
            account: "a".into(),
            kind: "k".into(),
            series: series.map(str::to_owned),
        };
        let due = vec![row(1, Some("s")), row(2, None), row(3, Some("t")), row(4, Some("s")), row(5, None)];
        let found: Vec<Vec<i64>> = chains(due).iter().map(|chain| chain.iter().map(|row| row.no).collect()).collect();
        assert_eq!(found, [vec![1, 4], vec![2], vec![3], vec![5]]);
    }
}
