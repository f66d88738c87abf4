//! What the comparator reads of pins, attempts, outbox and rehearsals. Reads only, and a batch at a time.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use super::ends::{OpenRehearsal, open_of};
use super::pins::{attempt_of, payload, pin_of};
use super::{Ledger, LedgerError, Pin, within};
use crate::interaction::{Attempt, Payload};

/// A pin as the comparator takes notice of it.
#[derive(Debug, Clone, sqlx::FromRow)]
pub struct NewPin {
    /// The interaction.
    pub id: Uuid,
    /// When it was pinned.
    pub created_at: DateTime<Utc>,
    /// When it was to run.
    pub run_at: DateTime<Utc>,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The series' name.
    pub series: Option<String>,
    /// Its number in the series.
    pub series_no: Option<i64>,
    /// The stage that it was pinned in.
    pub stage: String,
    /// Who executes it.
    pub owner: String,
    /// Since how many moves of ownership.
    pub epoch: i32,
    /// Whether Temporal was to have a copy.
    pub on_temporal: bool,
    /// Whether Postgres was to have one.
    pub on_postgres: bool,
}

/// A pin, and where its copies stand as far as the ledger knows.
#[derive(Debug, Clone)]
pub struct ComparedPin {
    /// The pin.
    pub pin: Pin,
    /// The tenant.
    pub account: String,
    /// The series' name.
    pub series: Option<String>,
    /// The series.
    pub series_id: Option<Uuid>,
    /// The sub-queue.
    pub group: String,
    /// Higher first.
    pub priority: i16,
    /// Whether Temporal was to have a copy.
    pub on_temporal: bool,
    /// Whether Postgres was to have one.
    pub on_postgres: bool,
    /// It was delivered once more because it should long have ended.
    pub swept: bool,
    /// Its Postgres copy is not placed before earlier members of its series have ended.
    pub behind_head: bool,
    /// Its Temporal copy waits to be delivered.
    pub undelivered: bool,
}

const NEW: &str =
    "id, created_at, run_at, account, kind, series, series_no, stage, owner, epoch, on_temporal, on_postgres";

impl Ledger {
    /// Up to when every pin is visible.
    pub async fn pins_complete_until(&self) -> Result<DateTime<Utc>, LedgerError> {
        // A writer that ends just now leaves a lock without a time for a moment, which would be minus infinity.
        let until = sqlx::query_scalar("select greatest(crossover.complete_until('crossover.pins'), to_timestamp(0))");
        within(until.fetch_one(&self.pool)).await
    }

    /// The pins of `shadow` and `live` made after `after` and until `until`, oldest first. At most `limit`, and then all
    /// that were made in the same moment as the last.
    pub async fn pins_between(
        &self,
        after: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<NewPin>, LedgerError> {
        let sql = format!(
            "select {NEW} from crossover.pins
             where created_at > $1 and created_at <= $2 and stage in ('shadow', 'live')
             order by created_at fetch first $3 rows with ties"
        );
        let pins = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(after).bind(until).bind(limit);
        within(pins.fetch_all(&self.pool)).await
    }

    /// Those of `ids` that are pinned.
    pub async fn pinned(&self, ids: &[Uuid]) -> Result<Vec<NewPin>, LedgerError> {
        let sql = format!("select {NEW} from crossover.pins where id = any ($1)");
        within(sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(ids).fetch_all(&self.pool)).await
    }

    /// The members right before and right after each of `ids` in its series.
    pub async fn neighbours(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let beside = sqlx::query_scalar(
            "select n.id from crossover.pins p
             join crossover.pins n on n.series_id = p.series_id and n.series_no in (p.series_no - 1, p.series_no + 1)
             where p.id = any ($1) and p.series_id is not null",
        );
        within(beside.bind(ids).fetch_all(&self.pool)).await
    }

    /// Payloads as they were pinned, of those (id, pinned at).
    pub async fn payloads(&self, of: &[(Uuid, DateTime<Utc>)]) -> Result<Vec<(Uuid, Payload)>, LedgerError> {
        let rows = sqlx::query(
            "select y.id, y.payload::text as payload from unnest($1::uuid[], $2::timestamptz[]) as w (id, created_at)
             join crossover.payloads y on y.id = w.id and y.created_at = w.created_at",
        );
        let (ids, pinned): (Vec<Uuid>, Vec<DateTime<Utc>>) = of.iter().copied().unzip();
        let rows = within(rows.bind(ids).bind(pinned).fetch_all(&self.pool)).await?;
        // One that can't be read is as good as gone: the hashes differ all the same.
        let read = |row: &PgRow| Some((row.try_get("id").ok()?, payload(row, "payload").ok()??));
        Ok(rows.iter().filter_map(read).collect())
    }
}

/// The pins of `ids`, in the caller's snapshot.
pub(crate) async fn compared_pins(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<ComparedPin>, sqlx::Error> {
    let rows = sqlx::query(
        "select p.*, o.id is not null as undelivered,
            coalesce(p.ended_at is null and p.conflict is null and p.series_no > s.head_no, false) as behind_head
         from crossover.pins p left join crossover.outbox o on o.id = p.id
         left join crossover.series s on s.series_id = p.series_id
         where p.id = any ($1)",
    );
    let rows = rows.bind(ids).fetch_all(tx).await?;
    rows.iter().map(compared_of).collect()
}

/// What both sides' attempts at `ids` came to, in the caller's snapshot. None of them ended before `since`. Results are
/// left out.
pub(crate) async fn compared_attempts(
    tx: &mut PgConnection,
    ids: &[Uuid],
    since: DateTime<Utc>,
) -> Result<Vec<Attempt>, sqlx::Error> {
    let rows = sqlx::query(
        "select id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent, unknown, retry_after_ms, retry_ms,
            side, outcome, error, null::text as result_text
         from crossover.attempts where id = any ($1) and ended_at >= $2",
    );
    let rows = rows.bind(ids).bind(since).fetch_all(tx).await?;
    rows.iter().map(attempt_of).collect()
}

/// Rehearsals of `ids` that Temporal holds, in the caller's snapshot.
pub(crate) async fn open_rehearsals(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<OpenRehearsal>, sqlx::Error> {
    let rows = sqlx::query("select * from crossover.rehearsals where id = any ($1)").bind(ids).fetch_all(tx).await?;
    rows.iter().map(open_of).collect()
}

fn compared_of(row: &PgRow) -> Result<ComparedPin, sqlx::Error> {
    Ok(ComparedPin {
        pin: pin_of(row)?,
        account: row.try_get("account")?,
        series: row.try_get("series")?,
        series_id: row.try_get("series_id")?,
        group: row.try_get("grp")?,
        priority: row.try_get("priority")?,
        on_temporal: row.try_get("on_temporal")?,
        on_postgres: row.try_get("on_postgres")?,
        swept: row.try_get::<Option<DateTime<Utc>>, _>("swept_at")?.is_some(),
        behind_head: row.try_get("behind_head")?,
        undelivered: row.try_get("undelivered")?,
    })
}
