//! What the Temporal side reports: attempts, ends, and its rehearsals.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use super::pins::{named, payload};
use super::{Ledger, LedgerError, transient, within};
use crate::executor::clean;
use crate::interaction::{Attempt, Fence, Outcome, Payload};
use crate::policy::{Doubt, Failure, Policy};

/// A rehearsal on Temporal that was dequeued and occupies its place until its real attempt ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRehearsal {
    /// The interaction.
    pub id: Uuid,
    /// The rehearsal's own epoch and attempt.
    pub fence: Fence,
    /// What Temporal wants to be told to end it.
    pub token: Vec<u8>,
    /// When it was due.
    pub due_at: DateTime<Utc>,
    /// When Temporal's worker took it.
    pub dequeued_at: DateTime<Utc>,
    /// When it ends by itself.
    pub bound_at: DateTime<Utc>,
}

/// A rehearsal on Temporal whose real attempt has ended.
#[derive(Debug, Clone)]
pub struct FinishedRehearsal {
    /// The rehearsal.
    pub rehearsal: OpenRehearsal,
    /// How the real attempt (or the interaction) ended.
    pub outcome: Outcome,
    /// Why it failed, where it did.
    pub failure: Option<Failure>,
    /// Its result.
    pub result: Option<Payload>,
    /// What went wrong.
    pub error: Option<String>,
    /// Whether the interaction has ended with it: no further attempt follows.
    pub last: bool,
    /// The retries of the interaction.
    pub policy: Policy,
    /// How long after it was first due the real attempt ended, by Postgres' clock.
    pub age: Duration,
}

/// A rehearsal on Temporal whose end is recorded.
#[derive(Debug, Clone)]
pub struct RecordedRehearsal {
    /// The interaction.
    pub id: Uuid,
    /// The rehearsed attempt.
    pub fence: Fence,
    /// How it ended; none where it was bounded.
    pub outcome: Option<Outcome>,
    /// Whether another attempt follows the real one.
    pub retried: bool,
    /// What went wrong.
    pub error: Option<String>,
}

impl Ledger {
    /// Whether the pin of `id` has ended in another way than this, or is not Temporal's under this epoch: then what
    /// [`Ledger::settle`] was told is late, and not just told twice.
    pub async fn ended_otherwise(&self, id: Uuid, fence: Fence, outcome: Outcome) -> Result<bool, LedgerError> {
        let otherwise = sqlx::query_scalar(
            "select exists (select from crossover.pins where id = $1
                and not (owner = 'temporal' and epoch = $2 and attempts >= $3 and outcome is not distinct from $4))",
        );
        let otherwise = otherwise.bind(id).bind(fence.epoch).bind(fence.attempt).bind(outcome.as_str());
        within(otherwise.fetch_one(&self.pool)).await
    }

    /// Records the end of an interaction that Temporal owns, with its last attempt where one was made. Repeating it
    /// changes nothing. False: it had ended, or is not Temporal's under this epoch. A result that Postgres can't take is
    /// left out rather than the end. `lost`: its last attempt left no word, and is the one after all that are known.
    pub async fn settle(
        &self,
        id: Uuid,
        fence: Fence,
        outcome: Outcome,
        reason: Option<&str>,
        last: Option<&Attempt>,
        lost: bool,
    ) -> Result<bool, LedgerError> {
        match within(self.settle_once(id, fence, outcome, reason, last, lost)).await {
            Err(LedgerError::Refused(error)) if !transient(&error) && last.is_some_and(|l| l.result.is_some()) => {
                let unstored = clean(&format!("the result can't be stored: {error}"));
                tracing::warn!(%id, error = unstored, "an end is recorded without its result");
                let bare = last.map(|last| Attempt { result: None, error: Some(unstored), ..last.clone() });
                within(self.settle_once(id, fence, outcome, reason, bare.as_ref(), lost)).await
            }
            settled => settled,
        }
    }

    async fn settle_once(
        &self,
        id: Uuid,
        fence: Fence,
        outcome: Outcome,
        reason: Option<&str>,
        last: Option<&Attempt>,
        lost: bool,
    ) -> Result<bool, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        let ended: Option<Uuid> = sqlx::query_scalar(
            // Who asked to cancel it says more than that its workflow was cancelled.
            "select * from crossover.end_pins('temporal', array[$1], array[$2],
                array[case when $6 then greatest($3, (select attempts + 1 from crossover.pins where id = $1)) else $3 end],
                array[$4], array[coalesce((select cancel_reason from crossover.pins where id = $1 and $4 = 'cancelled'), $5)])",
        )
        .bind(id)
        .bind(fence.epoch)
        .bind(fence.attempt)
        .bind(outcome.as_str())
        .bind(reason)
        .bind(lost)
        .fetch_optional(&mut *tx)
        .await?;
        if let (Some(_), Some(attempt)) = (ended, last) {
            insert_attempt(&mut tx, attempt).await?;
        }
        // What had begun is mirrored to its end.
        if ended.is_some() && outcome == Outcome::Cancelled && last.is_none() && fence.attempt == 0 {
            let forget = sqlx::query("select crossover.forget_rehearsals(array[$1])");
            forget.bind(id).execute(&mut *tx).await?;
        }
        tx.commit().await?;
        Ok(ended.is_some())
    }

    /// Records an attempt of Temporal that failed and is followed by another. Repeating it changes nothing.
    pub async fn record_attempt(&self, attempt: &Attempt) -> Result<(), LedgerError> {
        let mut tx = self.pool.begin().await?;
        let counted = sqlx::query(
            "update crossover.pins set attempts = $3
             where id = $1 and epoch = $2 and attempts < $3 and owner = 'temporal' and ended_at is null",
        )
        .bind(attempt.id)
        .bind(attempt.fence.epoch)
        .bind(attempt.fence.attempt)
        .execute(&mut *tx)
        .await?;
        if counted.rows_affected() == 1 {
            insert_attempt(&mut tx, attempt).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Counts the attempts before this one, which has begun on Temporal.
    pub async fn over_before(&self, id: Uuid, fence: Fence) -> Result<(), LedgerError> {
        let counted = sqlx::query(
            "update crossover.pins set attempts = $3
             where id = $1 and epoch = $2 and attempts < $3 and owner = 'temporal' and ended_at is null",
        );
        within(counted.bind(id).bind(fence.epoch).bind(fence.attempt - 1).execute(&self.pool)).await?;
        Ok(())
    }

    /// Which of these have not ended.
    pub async fn still_unended(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let query = sqlx::query_scalar("select id from crossover.pins where id = any ($1) and ended_at is null");
        within(query.bind(ids).fetch_all(&self.pool)).await
    }

    /// Whoever stands in the way of a member with these `behind` it: the first of its series, up to the last of them, that
    /// have not ended, whoever owns them. The names alone are not enough: there may be more than were named, and a member
    /// that waits can be cancelled out of its turn, before those in front of it have ended.
    pub async fn unended_up_to(&self, behind: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let query = sqlx::query_scalar(
            "select p.id from (
                select series_id, max(series_no) as no from crossover.pins
                where id = any ($1) and series_id is not null group by series_id) b
             join crossover.series s using (series_id)
             join crossover.pins p on p.series_id = b.series_id and p.series_no between s.head_no and b.no
             where p.ended_at is null order by p.series_no limit 10",
        );
        within(query.bind(behind).fetch_all(&self.pool)).await
    }

    /// Records that Temporal's worker has dequeued a rehearsal.
    pub async fn rehearsal_dequeued(&self, r: &OpenRehearsal) -> Result<(), LedgerError> {
        within(
            sqlx::query(
                "insert into crossover.rehearsals (id, epoch, attempt, due_at, dequeued_at, bound_at, token, bound, beat_at)
             values ($1, $2, $3, $4, $5, $6, $7, $6 - $5, clock_timestamp() + ($6 - $5) / 4)
             on conflict (id, epoch, attempt) do update set token = excluded.token, bound_at = excluded.bound_at,
                bound = excluded.bound, beat_at = excluded.beat_at",
            )
            .bind(r.id)
            .bind(r.fence.epoch)
            .bind(r.fence.attempt)
            .bind(r.due_at)
            .bind(r.dequeued_at)
            .bind(r.bound_at)
            .bind(&r.token)
            .execute(&self.pool),
        )
        .await?;
        Ok(())
    }

    /// Takes rehearsals whose real attempt goes on, each again after a part of its bound. What Temporal is told of then has its
    /// bound from now on.
    pub async fn living_rehearsals(&self, limit: i64) -> Result<Vec<OpenRehearsal>, LedgerError> {
        let rows = sqlx::query("select * from crossover.beat_rehearsals($1)").bind(limit as i32);
        let rows = within(rows.fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(open_of).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Takes rehearsals whose real attempt of the same number has ended, or whose interaction has, or has been handed over:
    /// then another copy has taken their place. Another mirror gets them after a few seconds, if this one does not close
    /// them.
    pub async fn finished_rehearsals(&self, limit: i64) -> Result<Vec<FinishedRehearsal>, LedgerError> {
        let rows = within(
            sqlx::query(
                "with due as materialized (
                select r.id, r.epoch, r.attempt, p.created_at, p.run_at, p.attempts as made,
                    case when p.epoch = r.epoch then p.outcome else 'cancelled' end as final,
                    case when p.epoch = r.epoch then p.reason else 'it was handed over: another copy runs' end as reason
                from crossover.rehearsals r join crossover.pins p on p.id = r.id and p.epoch >= r.epoch
                where (p.epoch > r.epoch or p.attempts >= r.attempt or p.ended_at is not null)
                    and r.taken_until < clock_timestamp()
                    and not exists (select from crossover.parked k where k.id = r.id and k.epoch = r.epoch)
                limit $1 for update of r skip locked),
             done as (
                update crossover.rehearsals r set taken_until = clock_timestamp() + interval '5 seconds'
                from due d where r.id = d.id and r.epoch = d.epoch and r.attempt = d.attempt
                returning r.*, d.created_at, d.run_at, d.final, d.made, d.reason)
             select d.*, coalesce(a.outcome, d.final, 'failed') as outcome, a.permanent, a.unknown, a.retry_after_ms,
                a.result::text as result, coalesce(a.error, d.reason) as error,
                d.final is not null and d.attempt >= d.made as last, y.policy::text as policy,
                extract(epoch from coalesce(a.ended_at, clock_timestamp()) - d.run_at)::float8 as age
             from done d left join crossover.payloads y on y.id = d.id and y.created_at = d.created_at
             left join lateral (
                select * from crossover.attempts a
                where a.id = d.id and a.ended_at >= d.created_at and a.side = 'postgres' and not a.rehearsal
                    and a.epoch = d.epoch and a.attempt = d.attempt limit 1) a on true",
            )
            .bind(limit)
            .fetch_all(&self.pool),
        )
        .await?;
        let read =
            |row| finished_of(row).inspect_err(|error| tracing::error!(%error, "a rehearsal can't be read")).ok();
        Ok(rows.iter().filter_map(read).collect())
    }

    /// Records how rehearsals of Temporal ended, as (id, fence, whether they mirrored their real attempt; otherwise
    /// Temporal had bounded them before), and forgets their tokens.
    /// Answers those that were not recorded before.
    pub async fn close_rehearsals(
        &self,
        closed: &[(Uuid, Fence, bool)],
    ) -> Result<Vec<RecordedRehearsal>, LedgerError> {
        let rows = within(sqlx::query(
            "with gone as (
                delete from crossover.rehearsals r
                using unnest($1::uuid[], $2::integer[], $3::integer[], $4::boolean[]) as c (id, epoch, attempt, mirrored)
                where r.id = c.id and r.epoch = c.epoch and r.attempt = c.attempt returning r.*, c.mirrored)
             insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
                unknown, retry_after_ms, retry_ms, side, outcome, error)
             select g.id, g.due_at, g.dequeued_at, clock_timestamp(), g.epoch, g.attempt, true, a.permanent,
                a.unknown, a.retry_after_ms, a.retry_ms, 'temporal', case when g.mirrored then coalesce(a.outcome, p.outcome) end,
                case when g.mirrored then a.error else 'gone from Temporal: bounded, or ended by an answer that was lost' end
             from gone g join crossover.pins p on p.id = g.id
             left join lateral (
                select * from crossover.attempts a
                where a.id = g.id and a.ended_at >= p.created_at and a.side = 'postgres' and not a.rehearsal
                    and a.epoch = g.epoch and a.attempt = g.attempt limit 1) a on true
             returning id, epoch, attempt, outcome, retry_ms is not null as retried, error",
        )
        .bind(closed.iter().map(|c| c.0).collect::<Vec<_>>())
        .bind(closed.iter().map(|c| c.1.epoch).collect::<Vec<_>>())
        .bind(closed.iter().map(|c| c.1.attempt).collect::<Vec<_>>())
        .bind(closed.iter().map(|c| c.2).collect::<Vec<_>>())
        .fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(RecordedRehearsal {
                id: row.try_get("id")?,
                fence: Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? },
                outcome: named(row, "outcome")?,
                retried: row.try_get("retried")?,
                error: row.try_get("error")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }
}

async fn insert_attempt(connection: &mut sqlx::PgConnection, a: &Attempt) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, retry_ms, side, outcome, result, error, unknown)
         values ($1, $2, $3, clock_timestamp(), $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13, $14)",
    )
    .bind(a.id)
    .bind(a.due_at)
    .bind(a.started_at)
    .bind(a.fence.epoch)
    .bind(a.fence.attempt)
    .bind(a.rehearsal)
    .bind(a.failure.as_ref().map(|f| *f == Failure::Permanent))
    .bind(a.failure.as_ref().and_then(Failure::retry_after_ms))
    .bind(a.retry_ms)
    .bind(a.side.as_str())
    .bind(a.outcome.map(Outcome::as_str))
    .bind(a.result.as_ref().map(Payload::get))
    .bind(a.error.as_deref())
    .bind(a.failure.as_ref().and_then(Failure::doubt).map(Doubt::as_str))
    .execute(connection)
    .await?;
    Ok(())
}

/// Reads a row of `crossover.rehearsals`.
pub(super) fn open_of(row: &sqlx::postgres::PgRow) -> Result<OpenRehearsal, sqlx::Error> {
    Ok(OpenRehearsal {
        id: row.try_get("id")?,
        fence: Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? },
        token: row.try_get("token")?,
        due_at: row.try_get("due_at")?,
        dequeued_at: row.try_get("dequeued_at")?,
        bound_at: row.try_get("bound_at")?,
    })
}

fn finished_of(row: &sqlx::postgres::PgRow) -> Result<FinishedRehearsal, sqlx::Error> {
    // Of what ended so long ago that its payload has gone, only the end is left to be told.
    let policy: Option<&str> = row.try_get("policy")?;
    let policy = policy.map(serde_json::from_str).transpose().map_err(|e| sqlx::Error::Decode(e.into()))?;
    Ok(FinishedRehearsal {
        rehearsal: open_of(row)?,
        outcome: named(row, "outcome")?.unwrap_or(Outcome::Failed),
        failure: super::pins::failure(row)?,
        result: payload(row, "result")?,
        error: row.try_get("error")?,
        last: row.try_get("last")?,
        policy: policy.unwrap_or_default(),
        age: Duration::try_from_secs_f64(row.try_get("age")?).unwrap_or_default(),
    })
}
