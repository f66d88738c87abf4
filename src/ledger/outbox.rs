//! The outbox: Temporal copies that are pinned but not delivered yet.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::Row;
use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::pins::{ENVELOPE, envelope_of};
use super::{Ledger, LedgerError, within};
use crate::executor::clean;
use crate::interaction::Envelope;

/// A copy that a relay has taken to deliver.
#[derive(Debug, Clone)]
pub struct Undelivered {
    /// What to deliver.
    pub envelope: Envelope,
    /// The series it is a member of.
    pub series_id: Option<Uuid>,
    /// When it was pinned.
    pub created_at: DateTime<Utc>,
    /// Whether its pin has ended meanwhile: then there is nothing left to deliver.
    pub ended: bool,
    /// Deliveries that failed before.
    pub tries: i32,
}

/// How much waits in the outbox.
#[derive(Debug, Clone, Default, sqlx::FromRow, serde::Serialize)]
pub struct OutboxDepth {
    /// Rows.
    pub rows: i64,
    /// Seconds since the oldest was pinned.
    pub oldest_seconds: f64,
    /// The newest failure, where there was one.
    pub last_error: Option<String>,
}

/// A copy that can't be read is looked at again after so long.
const UNREADABLE: Duration = Duration::from_secs(60);

/// Whether a copy is delivered as cancelled. A rehearsal is only where its execution is known to be off: one that runs
/// may end otherwise.
const CANCELLED: &str = "o.cancel or (p.owner = 'temporal' and p.cancel_requested_at is not null)";

fn undelivered_of(row: &PgRow) -> Result<Undelivered, sqlx::Error> {
    let behind = row.try_get("behind")?;
    Ok(Undelivered {
        envelope: Envelope { behind, cancelled: row.try_get("cancelled")?, ..envelope_of(row)? },
        series_id: row.try_get("series_id")?,
        created_at: row.try_get("created_at")?,
        ended: row.try_get("ended")?,
        tries: row.try_get("tries")?,
    })
}

impl Ledger {
    /// Takes up to `limit` due copies for `lease`, oldest first; of a series only the first that is undelivered, so
    /// that the chain reaches Temporal in order.
    pub async fn take_undelivered(&self, limit: i64, lease: Duration) -> Result<Vec<Undelivered>, LedgerError> {
        let sql = format!(
            "with due as materialized (
                select o.id from crossover.outbox o
                left join crossover.series s on s.series_id = o.series_id
                where o.due_at <= clock_timestamp() and crossover.deliverable(o.series_id, o.series_no, s.head_no)
                    and not exists (
                        select from crossover.outbox e where e.series_id = o.series_id and e.series_no < o.series_no)
                order by o.due_at limit $1 for update of o skip locked),
             taken as (
                update crossover.outbox o set due_at = clock_timestamp() + $2 * interval '1 millisecond'
                from due where o.id = due.id returning o.*)
             select {ENVELOPE}, o.series_id, o.created_at, o.tries, o.behind, p.ended_at is not null as ended,
                {CANCELLED} as cancelled
             from taken o join crossover.pins p on p.id = o.id
             join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
             order by o.created_at"
        );
        self.undelivered(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(limit).bind(lease.as_millis() as i64), false).await
    }

    /// The undelivered copies of a series in chain order, whoever has taken them: two relays that deliver the same
    /// chain both keep its order, and Temporal drops the repetition.
    pub async fn undelivered_of_series(&self, series: Uuid, limit: i64) -> Result<Vec<Undelivered>, LedgerError> {
        let sql = format!(
            "select {ENVELOPE}, o.series_id, o.created_at, o.tries, o.behind, p.ended_at is not null as ended,
                {CANCELLED} as cancelled
             from crossover.outbox o join crossover.pins p on p.id = o.id
             join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
             join crossover.series s on s.series_id = o.series_id
             where o.series_id = $1 and crossover.deliverable(o.series_id, o.series_no, s.head_no) order by o.series_no limit $2"
        );
        self.undelivered(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(series).bind(limit), true).await
    }

    async fn undelivered(
        &self,
        query: sqlx::query::Query<'_, sqlx::Postgres, sqlx::postgres::PgArguments>,
        in_order: bool,
    ) -> Result<Vec<Undelivered>, LedgerError> {
        let rows = within(query.fetch_all(&self.pool)).await?;
        let mut copies = Vec::with_capacity(rows.len());
        for row in &rows {
            match undelivered_of(row) {
                Ok(copy) => copies.push(copy),
                // The others are delivered all the same; only what follows it in its series waits.
                Err(error) => {
                    let copy: (Uuid, i32) = (row.try_get("id")?, row.try_get("epoch")?);
                    let error = clean(&format!("the stored copy can't be read: {error}"));
                    tracing::error!(id = %copy.0, error, "a copy can't be delivered; see crossover.payloads");
                    self.undeliverable(copy, UNREADABLE, &error).await?;
                    if in_order {
                        break;
                    }
                }
            }
        }
        Ok(copies)
    }

    /// Takes delivered copies out of the outbox, each by its epoch: one that was handed over meanwhile has another to be
    /// delivered. But for those that were cancelled meanwhile: they go again, as such.
    pub async fn delivered(&self, copies: &[(Uuid, i32)]) -> Result<(), LedgerError> {
        // The mark is in the row itself, so that it is seen even where this waits for the transaction that sets it.
        self.take_out(copies, "and not o.cancel").await
    }

    /// Takes out of the outbox what has nothing left to be delivered under its epoch, a cancellation included.
    pub async fn nothing_left(&self, copies: &[(Uuid, i32)]) -> Result<(), LedgerError> {
        self.take_out(copies, "").await
    }

    async fn take_out(&self, copies: &[(Uuid, i32)], but: &str) -> Result<(), LedgerError> {
        let (ids, epochs): (Vec<Uuid>, Vec<i32>) = copies.iter().copied().unzip();
        let sql = format!(
            "delete from crossover.outbox o using unnest($1::uuid[], $2::integer[]) as c (id, epoch)
             where o.id = c.id and o.epoch = c.epoch {but}"
        );
        within(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids).bind(epochs).execute(&self.pool)).await?;
        Ok(())
    }

    /// Records a failed delivery; the copy is due again after `wait`.
    pub async fn undeliverable(&self, copy: (Uuid, i32), wait: Duration, error: &str) -> Result<(), LedgerError> {
        within(
            sqlx::query(
                "update crossover.outbox set tries = tries + 1, last_error = $4,
                due_at = clock_timestamp() + $3 * interval '1 millisecond' where id = $1 and epoch = $2",
            )
            .bind(copy.0)
            .bind(copy.1)
            .bind(wait.as_millis() as i64)
            .bind(error)
            .execute(&self.pool),
        )
        .await?;
        Ok(())
    }

    /// Has work delivered again that Temporal should have ended `after` ago; how much that was.
    pub async fn sweep(&self, after: Duration, limit: i32) -> Result<i64, LedgerError> {
        let swept = sqlx::query_scalar("select crossover.sweep($1 * interval '1 millisecond', $2)");
        within(swept.bind(after.as_millis() as i64).bind(limit).fetch_one(&self.pool)).await
    }

    /// How much waits.
    pub async fn outbox_depth(&self) -> Result<OutboxDepth, LedgerError> {
        let row = sqlx::query_as(
            "select count(*) as rows,
                coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest_seconds,
                (select last_error from crossover.outbox where last_error is not null order by due_at desc limit 1) as last_error
             from crossover.outbox",
        );
        within(row.fetch_one(&self.pool)).await
    }
}
