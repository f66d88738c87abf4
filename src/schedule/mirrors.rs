//! The SQL of what Temporal is to have of schedules, and has.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgPool, Row};
use uuid::Uuid;

use super::mirror::MOST_CARRIED;
use super::storage::{Schedule, read};
use crate::interaction::names;
use crate::ledger::{LedgerError, within};

/// The mirrors in Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Mirrors {
    pool: PgPool,
}

/// What Temporal is to be told of one schedule.
#[derive(Debug)]
pub struct Task {
    /// The schedule.
    pub id: Uuid,
    /// Counts what Temporal was to be told.
    pub wish: i64,
    /// What it is to have; none: nothing. Or why that can't be read.
    pub schedule: Option<Result<Schedule, String>>,
    /// With its payload; a large one is left out.
    pub whole: bool,
    /// What somebody asked for, by token.
    pub triggers: Vec<String>,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Nobody else is told to tell Temporal, until what came of it is said under this.
    pub lease: i64,
}

names! {
    /// Where Temporal stands with a schedule.
    Standing {
        /// It has the schedule as it is.
        InStep = "in_step",
        /// It is to be told of a change.
        Behind = "behind",
        /// It is to forget the schedule.
        Removing = "removing",
    }
}

/// Where Temporal stands with a schedule, for people.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Stand {
    /// Where.
    pub state: Standing,
    /// Since when it is not in step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
    /// When it was last told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub told_at: Option<DateTime<Utc>>,
    /// Why it could not be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How the mirrors stand as a whole.
#[derive(Debug, Clone, Default, Serialize, FromRow)]
pub struct Lag {
    /// Schedules of which Temporal has not what it is to have.
    pub behind: i64,
    /// For how long the longest has been.
    pub oldest_seconds: f64,
    /// Why, where it could not be told.
    pub error: Option<String>,
}

impl Mirrors {
    /// The mirrors behind a pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The accounts and kinds that have schedules.
    pub async fn kinds(&self) -> Result<Vec<(String, String)>, LedgerError> {
        let kinds = sqlx::query_as("select distinct account, kind from crossover.schedules");
        within(kinds.fetch_all(&self.pool)).await
    }

    /// Says of which accounts and kinds Temporal is to have the schedules; at most `limit` of them are changed. How many were.
    pub async fn want(&self, of: &[(String, String, bool)], limit: i32) -> Result<i64, LedgerError> {
        let accounts: Vec<&str> = of.iter().map(|(account, ..)| account.as_str()).collect();
        let kinds: Vec<&str> = of.iter().map(|(_, kind, _)| kind.as_str()).collect();
        let wanted: Vec<bool> = of.iter().map(|(.., wanted)| *wanted).collect();
        let want = sqlx::query_scalar("select crossover.want_schedule_mirrors($1, $2, $3, $4)");
        within(want.bind(accounts).bind(kinds).bind(wanted).bind(limit).fetch_one(&self.pool)).await
    }

    /// Whether all routers that live decide by these flags and overrides.
    pub async fn agreed(&self, revision: &str, overrides: &[i64]) -> Result<bool, LedgerError> {
        let agreed = sqlx::query_scalar("select crossover.routers_agree($1, $2)").bind(revision).bind(overrides);
        within(agreed.fetch_one(&self.pool)).await
    }

    /// Whether there is any.
    pub async fn any(&self) -> Result<bool, LedgerError> {
        let any = sqlx::query_scalar("select exists (select from crossover.schedule_mirrors)");
        within(any.fetch_one(&self.pool)).await
    }

    /// Takes up to `limit` that Temporal is to be told of, for `lease`.
    pub async fn take(&self, limit: i32, lease: Duration) -> Result<Vec<Task>, LedgerError> {
        let rows = sqlx::query(
            "select (t.mirror).schedule_id as mirrored, (t.mirror).wanted, (t.mirror).wish, (t.mirror).triggers as asked, (t.mirror).lease, t.now,
                (t.schedule).*, coalesce((t.schedule).payload::text, 'null') as payload_text, (t.schedule).policy::text as policy_text,
                (t.schedule).spec::text as spec_text, (t.schedule).payload is not null as whole
             from crossover.take_schedule_mirrors($1, $2, $3) t",
        );
        let lease = PgInterval { months: 0, days: 0, microseconds: lease.as_micros() as i64 };
        let rows = within(rows.bind(limit).bind(lease).bind(MOST_CARRIED as i32).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(task).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Temporal has what was taken, and has launched its triggers; at `again` its times run low. False: nobody wants it any longer.
    pub async fn told(&self, task: &Task, again: Option<DateTime<Utc>>) -> Result<bool, LedgerError> {
        let told = sqlx::query_scalar("select crossover.schedule_mirrored($1, $2, $3, $4, $5)").bind(task.id);
        let told = told.bind(task.wish).bind(again).bind(&task.triggers).bind(task.lease);
        within(told.fetch_one(&self.pool)).await
    }

    /// Temporal could not be told of what was taken, or has that of the later wish `has`; it is tried again, later each time, or at once
    /// without an error: nobody has tried.
    pub async fn not_told(&self, task: &Task, has: i64, error: Option<&str>) -> Result<(), LedgerError> {
        let not_told = sqlx::query("select crossover.schedule_not_mirrored($1, $2, $3, $4)");
        let not_told = not_told.bind(task.id).bind(has).bind(error).bind(task.lease);
        within(not_told.execute(&self.pool)).await.map(drop)
    }

    /// It is looked at again what Temporal has.
    pub async fn doubt(&self, id: Uuid) -> Result<(), LedgerError> {
        let doubt = sqlx::query("select crossover.doubt_schedule_mirror($1)").bind(id);
        within(doubt.execute(&self.pool)).await.map(drop)
    }

    /// Where Temporal stands with these schedules; those that it is not to have are absent.
    pub async fn of(&self, ids: &[Uuid]) -> Result<HashMap<Uuid, Stand>, LedgerError> {
        type Found = (Uuid, bool, Option<DateTime<Utc>>, Option<DateTime<Utc>>, Option<String>);
        let found = sqlx::query_as(
            "select schedule_id, wanted, behind_since, told_at, error from crossover.schedule_mirrors
             where schedule_id = any ($1) and (wanted or behind_since is not null)",
        );
        let found: Vec<Found> = within(found.bind(ids).fetch_all(&self.pool)).await?;
        let stand = |(id, wanted, since, told_at, error): Found| {
            let state = match (wanted, since) {
                (false, _) => Standing::Removing,
                (true, Some(_)) => Standing::Behind,
                (true, None) => Standing::InStep,
            };
            (id, Stand { state, since, told_at, error })
        };
        Ok(found.into_iter().map(stand).collect())
    }

    /// How they stand as a whole.
    pub async fn lag(&self) -> Result<Lag, LedgerError> {
        let lag = sqlx::query_as(
            "select count(*) as behind,
                greatest(0, coalesce(extract(epoch from statement_timestamp() - min(behind_since)), 0))::float8 as oldest_seconds,
                (array_agg(error order by behind_since) filter (where error is not null))[1] as error
             from crossover.schedule_mirrors where behind_since is not null",
        );
        within(lag.fetch_one(&self.pool)).await
    }
}

fn task(row: &PgRow) -> Result<Task, sqlx::Error> {
    let there = row.try_get::<Option<Uuid>, _>("id")?.is_some();
    let wanted: bool = row.try_get("wanted")?;
    let schedule = (wanted && there).then(|| read(row).map_err(|error| format!("it can't be read: {error}")));
    Ok(Task {
        id: row.try_get("mirrored")?,
        wish: row.try_get("wish")?,
        schedule,
        triggers: row.try_get("asked")?,
        now: row.try_get("now")?,
        whole: row.try_get("whole")?,
        lease: row.try_get("lease")?,
    })
}
