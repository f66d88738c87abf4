//! What remote workers hold: they took it from their group over HTTP, keep it with heartbeats and end it, many at a time. A row of
//! `detached` an attempt, as of what a runner took away.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use super::detached::{ROW, detached_of, ms};
use super::{Detached, Ending, Ledger, LedgerError, Report, is_contention, is_outage, within};
use crate::interaction::{Fence, Outcome, Side};
use crate::policy::{Failure, Next};

/// An attempt, by the interaction and the fence.
pub type Attempted = (Uuid, Fence);

/// What came of a remote worker's heartbeat for one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteBeat {
    /// It is still this worker's.
    Held {
        /// For so long, without another.
        lease: Duration,
        /// It may run until then.
        run_until: DateTime<Utc>,
        /// Somebody asked to cancel it.
        cancel: bool,
    },
    /// It was, and is no longer.
    Lost,
    /// No such attempt was taken from this group.
    Unknown,
}

/// What came of one end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteReport {
    /// It was taken; `again` if it had been before.
    Taken {
        /// How the attempt ended.
        outcome: Outcome,
        /// Another attempt follows.
        retried: bool,
        /// This was known before.
        again: bool,
    },
    /// The attempt is no longer this worker's.
    Lost,
    /// No such attempt was taken from this group.
    Unknown,
    /// It can't be stored, for this reason. The attempt is still this worker's.
    Refused(String),
}

/// An end as it goes to Postgres.
struct End<'a> {
    of: Attempted,
    outcome: Outcome,
    failure: Option<&'a Failure>,
    retry: Option<Duration>,
    ending: &'a Ending,
}

/// Of a batch, so many may be held by others, each for as long as a lock is waited for.
const HELD: usize = 3;

impl Ledger {
    /// Heartbeats for attempts that were taken from `group`, in any order; an answer for each.
    pub async fn beat_remote(
        &self,
        group: &str,
        items: &[Attempted],
    ) -> Result<HashMap<Attempted, RemoteBeat>, LedgerError> {
        let (ids, epochs, attempts) = columns(items.iter());
        let beat = sqlx::query("select * from crossover.beat_remote($1, $2, $3, $4)");
        let rows = within(beat.bind(group).bind(ids).bind(epochs).bind(attempts).fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::postgres::PgRow| {
            let beat = match row.try_get("answer")? {
                "kept" => RemoteBeat::Held {
                    lease: ms(row, "silence_ms")?,
                    run_until: row.try_get("run_until")?,
                    cancel: row.try_get("cancel_requested")?,
                },
                "ended" => RemoteBeat::Lost,
                _ => RemoteBeat::Unknown,
            };
            Ok((attempted(row)?, beat))
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Ends of attempts that were taken from `group`; an answer for each. Repeating them changes nothing, the first word stands.
    pub async fn report_remote(
        &self,
        group: &str,
        items: &[(Attempted, Ending)],
    ) -> Result<HashMap<Attempted, RemoteReport>, LedgerError> {
        let mut answers = HashMap::with_capacity(items.len());
        let mut open: Vec<&(Attempted, Ending)> = items.iter().collect();
        // The second look is for what ended, or was lost, after the first.
        for _ in 0..2 {
            let rows = self.remote_rows(group, open.iter().map(|item| &item.0)).await?;
            let mut ends = Vec::with_capacity(open.len());
            for (of, ending) in open.iter().copied() {
                match rows.get(of) {
                    None => drop(answers.insert(*of, RemoteReport::Unknown)),
                    Some(row) if row.ended_at.is_some() => drop(answers.insert(*of, again(row, ending))),
                    Some(row) => ends.push(End::new(row, ending)),
                }
            }
            self.end_remote(group, &ends, &mut answers).await?;
            open.retain(|item| !answers.contains_key(&item.0));
            if open.is_empty() {
                break;
            }
        }
        answers.extend(open.into_iter().map(|item| (item.0, RemoteReport::Lost)));
        Ok(answers)
    }

    /// All in one transaction; one by one where Postgres refuses one of them for what it is.
    async fn end_remote(
        &self,
        group: &str,
        ends: &[End<'_>],
        answers: &mut HashMap<Attempted, RemoteReport>,
    ) -> Result<(), LedgerError> {
        match self.end_together(group, ends).await {
            Ok(taken) => {
                let ours = ends.iter().filter(|end| taken.contains(&end.of.0));
                answers.extend(ours.map(|end| (end.of, end.taken())));
                Ok(())
            }
            Err(error) if !is_outage(&error) || is_contention(&error) => {
                // What somebody holds just now is asked to be repeated, with all of them: the others have ended by then.
                let mut held = Vec::new();
                for end in ends {
                    match self.end_together(group, std::slice::from_ref(end)).await {
                        Ok(taken) if taken.is_empty() => {}
                        Ok(_) => drop(answers.insert(end.of, end.taken())),
                        Err(error @ LedgerError::Refused(_)) if !is_outage(&error) => {
                            answers.insert(end.of, RemoteReport::Refused(crate::executor::clean(&error.to_string())));
                        }
                        Err(error) if is_contention(&error) && held.len() < HELD => held.push(error),
                        Err(error) => return Err(error),
                    }
                }
                held.pop().map_or(Ok(()), Err)
            }
            Err(error) => Err(error),
        }
    }

    async fn end_together(&self, group: &str, ends: &[End<'_>]) -> Result<HashSet<Uuid>, LedgerError> {
        if ends.is_empty() {
            return Ok(HashSet::new());
        }
        let (ids, epochs, attempts) = columns(ends.iter().map(|end| &end.of));
        let ended = sqlx::query_scalar("select * from crossover.end_remote($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)")
            .bind(group)
            .bind(ids)
            .bind(epochs)
            .bind(attempts)
            .bind(ends.iter().map(|end| end.outcome.as_str()).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.failure.map(|f| *f == Failure::Permanent)).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.failure.and_then(Failure::retry_after_ms)).collect::<Vec<_>>())
            .bind(ends.iter().map(|end| end.retry.map(|wait| wait.as_millis() as i64)).collect::<Vec<_>>())
            .bind(ends.iter().map(End::result).collect::<Vec<_>>())
            .bind(ends.iter().map(End::error).collect::<Vec<_>>());
        Ok(within(ended.fetch_all(&self.pool)).await?.into_iter().collect())
    }

    async fn remote_rows(
        &self,
        group: &str,
        items: impl Iterator<Item = &Attempted>,
    ) -> Result<HashMap<Attempted, Detached>, LedgerError> {
        let (ids, epochs, attempts) = columns(items);
        let sql = format!(
            "select {ROW} from unnest($2::uuid[], $3::integer[], $4::integer[]) as f (id, epoch, attempt)
             join crossover.detached d on d.id = f.id and d.epoch = f.epoch and d.attempt = f.attempt
             where d.grp = $1 and d.remote is not null"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(group).bind(ids).bind(epochs).bind(attempts);
        let rows = within(rows.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(|row| Ok((attempted(row)?, detached_of(row)?))).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Those of `groups` for which a remote worker would find something.
    pub async fn remote_groups_with_work(&self, groups: &[String]) -> Result<Vec<String>, LedgerError> {
        let found = sqlx::query_scalar("select * from crossover.remote_groups_with_work($1)").bind(groups);
        within(found.fetch_all(&self.pool)).await
    }

    /// Puts back what a claim took whose answer was lost, so that nobody has it; how many.
    pub async fn take_claim_from_remote(&self, claim: Uuid) -> Result<i64, LedgerError> {
        let back = sqlx::query_scalar("select crossover.take_claim_from_remote($1)");
        within(back.bind(claim).fetch_one(&self.pool)).await
    }

    /// Puts back what was handed out in an answer that was never sent; how many.
    pub async fn take_from_remote(&self, items: &[Attempted]) -> Result<i64, LedgerError> {
        let (ids, epochs, attempts) = columns(items.iter());
        let back = sqlx::query_scalar("select crossover.take_from_remote($1, $2, $3)");
        within(back.bind(ids).bind(epochs).bind(attempts).fetch_one(&self.pool)).await
    }
}

impl<'a> End<'a> {
    fn new(row: &Detached, ending: &'a Ending) -> Self {
        let (outcome, failure) = match ending {
            Ending::Done(_) => (Outcome::Succeeded, None),
            // Whoever was asked to stop, and says that it has, is believed; no attempt follows.
            Ending::Failed { .. } if row.called_off => (Outcome::Cancelled, None),
            Ending::Failed { failure, .. } => (Outcome::Failed, Some(failure)),
        };
        let retry = failure.map(|failure| row.after(failure)).and_then(Next::wait);
        Self { of: (row.id, row.fence), outcome, failure, retry, ending }
    }

    fn taken(&self) -> RemoteReport {
        RemoteReport::Taken { outcome: self.outcome, retried: self.retry.is_some(), again: false }
    }

    fn result(&self) -> Option<&str> {
        match self.ending {
            Ending::Done(result) => Some(result.get()),
            Ending::Failed { .. } => None,
        }
    }

    fn error(&self) -> Option<&str> {
        match self.ending {
            Ending::Done(_) => None,
            Ending::Failed { error, .. } => Some(error),
        }
    }
}

fn again(row: &Detached, ending: &Ending) -> RemoteReport {
    match row.again(ending) {
        Report::Taken { outcome, retried, again, side: Side::Postgres } => {
            RemoteReport::Taken { outcome, retried, again }
        }
        _ => RemoteReport::Lost,
    }
}

fn attempted(row: &sqlx::postgres::PgRow) -> Result<Attempted, sqlx::Error> {
    Ok((row.try_get("id")?, Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? }))
}

fn columns<'a>(items: impl Iterator<Item = &'a Attempted>) -> (Vec<Uuid>, Vec<i32>, Vec<i32>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new());
    for (id, fence) in items {
        columns.0.push(*id);
        columns.1.push(fence.epoch);
        columns.2.push(fence.attempt);
    }
    columns
}
