//! The intake: what `crossover.enqueue` accepted from SQL and no router has pinned yet.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, Postgres, Row, Transaction};

use super::pins::payload;
use super::{Ledger, LedgerError, within};
use crate::interaction::Payload;

/// A row that is due, without its payload.
#[derive(Debug, Clone, FromRow)]
pub struct IntakeRow {
    /// Its place in the order of acceptance.
    pub no: i64,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The series, whose rows must be pinned in the order of their numbers.
    pub series: Option<String>,
}

/// A row that was taken out, in a transaction that has not committed yet.
#[derive(Debug)]
pub struct IntakeItem {
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The idempotency key.
    pub key: String,
    /// The series.
    pub series: Option<String>,
    /// The sub-queue.
    pub group: Option<String>,
    /// Not before this instant.
    pub run_at: Option<DateTime<Utc>>,
    /// -100 to 100; higher first.
    pub priority: i16,
    /// The policy's JSON.
    pub policy: Option<String>,
    /// What it runs after, as JSON.
    pub after: Option<String>,
    /// The key of those that it never runs beside.
    pub exclusive: Option<String>,
    /// The payload; an error where this program can't read what SQL accepted.
    pub payload: Result<Payload, String>,
}

/// What taking a row out came to.
#[derive(Debug)]
pub enum Taken {
    /// It is this transaction's.
    Item(Box<IntakeItem>),
    /// Another router has it, and nothing behind it in its series may be taken yet.
    Busy,
    /// It has been pinned or refused.
    Gone,
}

/// How much waits in the intake.
#[derive(Debug, Clone, Default, FromRow, Serialize)]
pub struct IntakeDepth {
    /// Rows that no router has pinned yet.
    pub rows: i64,
    /// Seconds since the oldest was accepted.
    pub oldest_seconds: f64,
    /// Rows that were refused and wait for somebody to look.
    pub refused: i64,
    /// The newest reason why one was refused or failed.
    pub last_reason: Option<String>,
}

impl Ledger {
    /// Up to `limit` rows after `after` that are due, in the order of acceptance. Of a series, none behind one that is not
    /// due or stands at `after` or before it; and nothing that runs after what is still in the intake.
    pub async fn intake_due(&self, after: i64, limit: i64) -> Result<Vec<IntakeRow>, LedgerError> {
        let rows = sqlx::query_as(
            "select i.no, i.account, i.kind, i.series from crossover.intake i
             where i.no > $2 and i.refused_at is null and i.due_at <= clock_timestamp() and not exists (
                select from crossover.intake e
                where e.account = i.account and e.kind = i.kind and e.series = i.series and e.no < i.no
                    and e.refused_at is null and (e.due_at > clock_timestamp() or e.no <= $2 or exists (
                        select from crossover.intake u where u.id = any (e.after_ids) and u.refused_at is null)))
                and not exists (select from crossover.intake u where u.id = any (i.after_ids) and u.refused_at is null)
             order by i.no limit $1",
        );
        within(rows.bind(limit).bind(after).fetch_all(&self.pool)).await
    }

    /// Begins a transaction in which a row is taken out and pinned.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, LedgerError> {
        within(self.pool.begin()).await
    }

    /// Takes a row out, unless another router is at it.
    pub async fn take_intake(&self, connection: &mut PgConnection, no: i64) -> Result<Taken, LedgerError> {
        let taken = sqlx::query(
            "delete from crossover.intake where no = (
                select no from crossover.intake where no = $1 and refused_at is null for update skip locked)
             returning *, payload::text as payload_text, policy::text as policy_text, after::text as after_text",
        );
        match within(taken.bind(no).fetch_optional(&mut *connection)).await? {
            Some(row) => Ok(Taken::Item(Box::new(item_of(&row)?))),
            None => {
                let there = "select exists (select from crossover.intake where no = $1 and refused_at is null)";
                let there: bool = within(sqlx::query_scalar(there).bind(no).fetch_one(connection)).await?;
                Ok(if there { Taken::Busy } else { Taken::Gone })
            }
        }
    }

    /// Keeps a row aside with the reason why it can't be accepted.
    pub async fn refuse_intake(&self, no: i64, reason: &str) -> Result<(), LedgerError> {
        let refused = sqlx::query(
            "update crossover.intake set refused_at = clock_timestamp(), reason = $2 where no = $1 and refused_at is null",
        );
        within(refused.bind(no).bind(reason).execute(&self.pool)).await.map(drop)
    }

    /// Looks at a row again after `wait`, and what is behind it in its series not before.
    pub async fn postpone_intake(&self, no: i64, reason: &str) -> Result<(), LedgerError> {
        let later = sqlx::query(
            "update crossover.intake set tries = tries + 1, reason = $2,
                due_at = clock_timestamp() + least(250 * 2 ^ least(tries, 20), $3) * interval '1 millisecond'
             where no = $1 and refused_at is null",
        );
        let longest = LONGEST_WAIT.as_millis() as f64;
        within(later.bind(no).bind(reason).bind(longest).execute(&self.pool)).await.map(drop)
    }

    /// How much waits, and why; counts to fifty thousand.
    pub async fn intake_depth(&self) -> Result<IntakeDepth, LedgerError> {
        let depth = sqlx::query_as(
            "select (select count(*) from (select from crossover.intake where refused_at is null limit 50000) r) as rows,
                coalesce((select extract(epoch from clock_timestamp() - created_at) from crossover.intake
                    where refused_at is null order by no limit 1), 0)::float8 as oldest_seconds,
                (select count(*) from (select from crossover.intake where refused_at is not null limit 50000) r) as refused,
                coalesce((select reason from crossover.intake where refused_at is not null order by refused_at desc limit 1),
                    (select reason from crossover.intake where refused_at is null order by no limit 1)) as last_reason",
        );
        within(depth.fetch_one(&self.pool)).await
    }
}

/// A row that fails again and again is looked at so often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

fn item_of(row: &sqlx::postgres::PgRow) -> Result<IntakeItem, sqlx::Error> {
    let document = match payload(row, "payload_text") {
        Ok(found) => found.ok_or_else(|| "the payload is missing".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Ok(IntakeItem {
        created_at: row.try_get("created_at")?,
        account: row.try_get("account")?,
        kind: row.try_get("kind")?,
        key: row.try_get("key")?,
        series: row.try_get("series")?,
        group: row.try_get("grp")?,
        run_at: row.try_get("run_at")?,
        priority: row.try_get("priority")?,
        policy: row.try_get("policy_text")?,
        after: row.try_get("after_text")?,
        exclusive: row.try_get("exclusive")?,
        payload: document,
    })
}
