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

/// What a relay has taken, and whether there is more to look at.
#[derive(Debug)]
pub struct Take {
    /// The copies, oldest first.
    pub copies: Vec<Undelivered>,
    /// It did not see all that is due.
    pub more: bool,
}

/// How much waits in the outbox.
#[derive(Debug, Clone, Default, sqlx::FromRow, serde::Serialize)]
pub struct OutboxDepth {
    /// Rows.
    pub rows: i64,
    /// Of these, rehearsals.
    pub rehearsals: i64,
    /// Seconds since the oldest was pinned.
    pub oldest_seconds: f64,
    /// The newest failure, where there was one.
    pub last_error: Option<String>,
}

/// Why a rehearsal was dropped. The comparator knows it by this, see `comparator::judge`.
pub(crate) const LEFT_OUT: &str = "left out: more rehearsals waited for Temporal than relay.rehearsal_backlog allows";

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
    /// that the chain reaches Temporal in order. Looks at `scan` rows at most, and parks those that can't go yet.
    pub async fn take_undelivered(&self, limit: i32, scan: i32, lease: Duration) -> Result<Take, LedgerError> {
        let take =
            sqlx::query_as("select looked, ids from crossover.take_outbox($1, $2, $3 * interval '1 millisecond')");
        let take = take.bind(limit).bind(scan).bind(lease.as_millis() as i64);
        let (looked, ids): (i32, Vec<Uuid>) = within(take.fetch_one(&self.pool)).await?;
        let sql = format!(
            "select {ENVELOPE}, o.series_id, o.created_at, o.tries, o.behind, p.ended_at is not null as ended,
                {CANCELLED} as cancelled
             from crossover.outbox o join crossover.pins p on p.id = o.id
             join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
             where o.id = any ($1) order by o.created_at"
        );
        let copies = match ids.is_empty() {
            true => Vec::new(),
            false => self.undelivered(sqlx::query(sqlx::AssertSqlSafe(sql)).bind(ids), false).await?,
        };
        Ok(Take { more: looked >= scan, copies })
    }

    /// Gives back what was taken and not tried: it is due again, in its old place.
    pub async fn hand_back(&self, ids: &[Uuid]) -> Result<(), LedgerError> {
        let query = sqlx::query("update crossover.outbox set due_at = created_at where id = any ($1)");
        within(query.bind(ids).execute(&self.pool)).await?;
        Ok(())
    }

    /// Brings back what was parked and may go now. Looks at `limit` series after `after`; where the next look goes on.
    pub async fn unpark(&self, after: Option<Uuid>, limit: i32) -> Result<(i32, Option<Uuid>), LedgerError> {
        let query = sqlx::query_as("select woken, last from crossover.unpark_outbox($1, $2)");
        within(query.bind(after).bind(limit).fetch_one(&self.pool)).await
    }

    /// Drops the oldest rehearsals where more than `most` wait for Temporal, `limit` at most, and writes that down for the
    /// comparator; how many.
    pub async fn drop_rehearsals(&self, most: i64, limit: i32) -> Result<i64, LedgerError> {
        let query = sqlx::query_scalar("select crossover.drop_rehearsals($1, $2, $3)");
        within(query.bind(most).bind(limit).bind(LEFT_OUT).fetch_one(&self.pool)).await
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
            "select count(*) as rows, count(*) filter (where rehearsal) as rehearsals,
                coalesce(extract(epoch from clock_timestamp() - min(created_at)), 0)::float8 as oldest_seconds,
                (select last_error from crossover.outbox where last_error is not null order by due_at desc limit 1) as last_error
             from crossover.outbox",
        );
        within(row.fetch_one(&self.pool)).await
    }
}
