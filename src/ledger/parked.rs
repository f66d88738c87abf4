//! What is parked because nobody knows what came of its last attempt, and what people say came of it.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::pins::{named, payload};
use super::{Ledger, LedgerError, within};
use crate::interaction::{Fence, Payload, Side, names};
use crate::policy::Doubt;

names! {
    /// What a person says came of a parked attempt.
    Resolved {
        /// It had its effect: the interaction has succeeded.
        Succeeded = "succeeded",
        /// It had none, or a bad one, and none is wanted any more: the interaction has failed.
        Failed = "failed",
        /// It had none, or one that may be had again: another attempt follows.
        Retry = "retry",
    }
}

/// An answer to a parked attempt, on its way to Temporal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Resolution {
    /// The interaction.
    pub id: Uuid,
    /// The attempt that it is about: an answer to an earlier one says nothing of it.
    pub fence: Fence,
    /// What came of it.
    pub answer: Resolved,
    /// The result of a success.
    pub result: Option<Payload>,
    /// Who says so, and why.
    pub reason: Option<String>,
}

/// A resolution that a relay has taken to tell.
#[derive(Debug, Clone)]
pub struct Untold {
    /// What to tell.
    pub resolution: Resolution,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The series.
    pub series: Option<String>,
    /// How often it could not be told.
    pub tries: i32,
}

/// An interaction whose outcome is unknown.
#[derive(Debug, Clone, Serialize)]
pub struct Parked {
    /// The interaction.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The idempotency key.
    pub key: String,
    /// The series, which waits behind it.
    pub series: Option<String>,
    /// Who executes it.
    pub side: Side,
    /// The attempt in question.
    pub fence: Fence,
    /// Since when.
    pub since: DateTime<Utc>,
    /// Why its effect is unknown.
    pub cause: Doubt,
    /// The same, for a person.
    pub error: Option<String>,
    /// What somebody said came of it, where Temporal is still to be told.
    pub answer: Option<Resolved>,
    /// Why Temporal could not be told yet.
    pub last_error: Option<String>,
}

/// What came of saying what came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolving {
    /// It has ended, or runs again.
    Done,
    /// Temporal owns it and is told by the relay.
    Asked,
    /// Somebody said otherwise before, and Temporal is being told that.
    Otherwise,
    /// Temporal has other work under its key, so nothing of it runs: it can be ended, and not tried again.
    Held,
    /// It has ended.
    Ended,
    /// It is not parked.
    NotParked,
    /// Nothing is recorded of it.
    Unpinned,
}

impl Resolving {
    /// Why what is held is not tried again, and what can be done; to be put after its id.
    pub const HELD: &str = "is held, because Temporal has other work under its key, so nothing of it may run: say `succeeded` \
                            or `failed`, or cancel it, and enqueue the work under a new key if its effect is missing";
}

names! {
    /// What the ledger says to a workflow that is about to wait for a person.
    Noted {
        /// It shows that it waits.
        Parked = "parked",
        /// It did before, or somebody has said what came of it.
        Known = "known",
        /// Its pin has ended, or is another's: nobody will ever answer.
        Over = "over",
    }
}

/// What a Temporal workflow tells of an attempt after which it waits for a person.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Parking {
    /// The interaction.
    pub id: Uuid,
    /// The attempt in question.
    pub fence: Fence,
    /// Why its effect is unknown.
    pub cause: Doubt,
    /// The same, for a person.
    pub error: String,
    /// When it was due; absent where it was lost with its worker.
    pub due_at: Option<DateTime<Utc>>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
}

/// How much is parked, and how often people answered.
#[derive(Debug, Clone, Default, sqlx::FromRow, Serialize)]
pub struct ParkedCounts {
    /// Parked by Temporal's workflows.
    pub temporal: i64,
    /// Parked on Postgres.
    pub postgres: i64,
    /// Seconds for which the oldest has been parked.
    pub oldest_seconds: f64,
    /// Resolved as succeeded, ever.
    pub succeeded: i64,
    /// Resolved as failed, ever.
    pub failed: i64,
    /// Run again, ever.
    pub retry: i64,
}

/// What was told and has not taken effect is told again after so long.
const AGAIN: Duration = Duration::from_secs(60);

impl Ledger {
    /// What is parked, of one account or of all, the oldest first; at most `limit`.
    pub async fn parked(&self, account: Option<&str>, limit: i64) -> Result<Vec<Parked>, LedgerError> {
        let rows = sqlx::query(
            "select k.*, p.account, p.kind, p.key, p.series from crossover.parked k join crossover.pins p on p.id = k.id
             where $1::text is null or p.account = $1 order by k.since limit $2",
        );
        let rows = within(rows.bind(account).bind(limit).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(parked_of).collect::<Result<_, sqlx::Error>>()?)
    }

    /// `id`, where it is parked.
    pub async fn parked_one(&self, id: Uuid) -> Result<Option<Parked>, LedgerError> {
        let row = sqlx::query(
            "select k.*, p.account, p.kind, p.key, p.series from crossover.parked k join crossover.pins p on p.id = k.id
             where k.id = $1",
        );
        let row = within(row.bind(id).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(parked_of).transpose()?)
    }

    /// Parks what Temporal owns. Repeating it changes nothing.
    pub async fn park(&self, parking: &Parking) -> Result<Noted, LedgerError> {
        let parked = sqlx::query("select crossover.park_attempt($1, $2, $3, $4, $5, $6, $7) as noted")
            .bind(parking.id)
            .bind(parking.fence.epoch)
            .bind(parking.fence.attempt)
            .bind(parking.cause.as_str())
            .bind(crate::executor::clean(&parking.error))
            .bind(parking.due_at)
            .bind(parking.started_at);
        let row = within(parked.fetch_one(&self.pool)).await?;
        Ok(named(&row, "noted")?.unwrap_or(Noted::Over))
    }

    /// Says what came of the parked attempt of `id`.
    pub async fn resolve(
        &self,
        id: Uuid,
        answer: Resolved,
        result: Option<&Payload>,
        reason: Option<&str>,
        who: &str,
    ) -> Result<Resolving, LedgerError> {
        let said = sqlx::query_scalar("select answer from crossover.resolve($1, $2, $3::json, $4, $5)")
            .bind(id)
            .bind(answer.as_str())
            .bind(result.map(Payload::get))
            .bind(reason)
            .bind(who);
        let said: String = within(said.fetch_one(&self.pool)).await?;
        Ok(match said.as_str() {
            "done" => Resolving::Done,
            "asked" => Resolving::Asked,
            "otherwise" => Resolving::Otherwise,
            "held" => Resolving::Held,
            "ended" => Resolving::Ended,
            "not_parked" => Resolving::NotParked,
            _ => Resolving::Unpinned,
        })
    }

    /// Takes up to `limit` resolutions that Temporal is to be told, for `lease`.
    pub async fn take_untold(&self, limit: i64, lease: Duration) -> Result<Vec<Untold>, LedgerError> {
        let rows = sqlx::query(
            "with due as materialized (
                select id from crossover.parked where answer is not null and side = 'temporal' and due_at <= clock_timestamp()
                order by due_at limit $1 for update skip locked),
             taken as (
                update crossover.parked k set due_at = clock_timestamp() + $2 * interval '1 millisecond'
                from due where k.id = due.id returning k.*)
             select t.*, t.result::text as result_text, p.account, p.kind, p.series
             from taken t join crossover.pins p on p.id = t.id",
        );
        let rows = within(rows.bind(limit).bind(lease.as_millis() as i64).fetch_all(&self.pool)).await?;
        let read = |row: &PgRow| {
            Ok(Untold {
                resolution: Resolution {
                    id: row.try_get("id")?,
                    fence: fence_of(row)?,
                    answer: named(row, "answer")?.unwrap_or(Resolved::Failed),
                    result: payload(row, "result_text")?,
                    reason: row.try_get("reason")?,
                },
                account: row.try_get("account")?,
                kind: row.try_get("kind")?,
                series: row.try_get("series")?,
                tries: row.try_get("tries")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Records that Temporal was told. What runs again is no longer parked; what ends is, until its workflow has said so,
    /// and is told again should that not come.
    pub async fn told(&self, resolution: &Resolution) -> Result<(), LedgerError> {
        let told = sqlx::query(
            "with again as (delete from crossover.parked where id = $1 and attempt = $2 and answer = 'retry' returning id)
             update crossover.parked set due_at = clock_timestamp() + $3 * interval '1 millisecond', last_error = null
             where id = $1 and attempt = $2 and id not in (select id from again)",
        );
        let told = told.bind(resolution.id).bind(resolution.fence.attempt).bind(AGAIN.as_millis() as i64);
        within(told.execute(&self.pool)).await?;
        Ok(())
    }

    /// Records that Temporal could not be told; it is told again after `wait`.
    pub async fn untold(&self, id: Uuid, wait: Duration, error: &str) -> Result<(), LedgerError> {
        let untold = sqlx::query(
            "update crossover.parked set tries = tries + 1, last_error = $3,
                due_at = clock_timestamp() + $2 * interval '1 millisecond' where id = $1",
        );
        within(untold.bind(id).bind(wait.as_millis() as i64).bind(error).execute(&self.pool)).await?;
        Ok(())
    }

    /// How much is parked, and how often people answered.
    pub async fn parked_counts(&self) -> Result<ParkedCounts, LedgerError> {
        let counts = sqlx::query_as(
            "select count(*) filter (where side = 'temporal') as temporal, count(*) filter (where side = 'postgres') as postgres,
                coalesce(extract(epoch from clock_timestamp() - min(since)), 0)::float8 as oldest_seconds,
                (select count(*) from crossover.resolutions where answer = 'succeeded') as succeeded,
                (select count(*) from crossover.resolutions where answer = 'failed') as failed,
                (select count(*) from crossover.resolutions where answer = 'retry') as retry
             from crossover.parked",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}

fn fence_of(row: &PgRow) -> Result<Fence, sqlx::Error> {
    Ok(Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? })
}

fn parked_of(row: &PgRow) -> Result<Parked, sqlx::Error> {
    Ok(Parked {
        id: row.try_get("id")?,
        account: row.try_get("account")?,
        kind: row.try_get("kind")?,
        key: row.try_get("key")?,
        series: row.try_get("series")?,
        side: named(row, "side")?.unwrap_or(Side::Postgres),
        fence: fence_of(row)?,
        since: row.try_get("since")?,
        cause: named(row, "cause")?.unwrap_or(Doubt::Worker),
        error: row.try_get("error")?,
        answer: named(row, "answer")?,
        last_error: row.try_get("last_error")?,
    })
}
