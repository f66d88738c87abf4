//! The SQL of sightings, observers and disturbances. Times are the database's, but for a sighting's `side_at`.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::windows::{Trouble, Window};
use super::{Seen, Sighting};
use crate::executor::clean;
use crate::interaction::{Fence, Outcome, Payload, Side};
use crate::ledger::{LedgerError, named, payload_of, within};

/// What was seen, as it is stored. Cheap to clone.
#[derive(Clone)]
pub struct Log {
    pool: PgPool,
}

/// A sighting, and when the database got it.
#[derive(Debug, Clone)]
pub struct Recorded {
    /// By the database's clock.
    pub seen_at: DateTime<Utc>,
    /// Who saw it: what one saw is by one clock.
    pub observer: Uuid,
    /// What was seen.
    pub sighting: Sighting,
}

/// A time in which sightings may have been lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// What was seen before is written.
    pub from: DateTime<Utc>,
    /// And what was seen after.
    pub until: DateTime<Utc>,
    /// Who lost them.
    pub observer: Uuid,
    /// How many; none for a process that died, which nobody knows of.
    pub dropped: Option<i64>,
}

/// A time in which a side could not work as it should.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disturbance {
    /// The side.
    pub side: Side,
    /// When it was first noticed.
    pub began_at: DateTime<Utc>,
    /// When it was last noticed.
    pub ended_at: DateTime<Utc>,
    /// What was noticed.
    pub what: String,
}

/// An observer's sign of life.
#[derive(Debug, Clone, Copy)]
pub(super) struct Beat<'a> {
    pub observer: Uuid,
    pub name: &'a str,
    /// What it saw before is written.
    pub clear: Instant,
    /// Sightings that it ever dropped.
    pub dropped: u64,
    /// Nothing more will come.
    pub last: bool,
}

/// An observer that was silent for so long without an end has died.
const SILENT: Duration = Duration::from_secs(10);

impl Log {
    /// The log in the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Everything seen of these interactions, in the order in which it was written.
    pub async fn of(&self, ids: &[Uuid]) -> Result<Vec<Recorded>, LedgerError> {
        let rows = sqlx::query(
            "select *, payload::text as payload_text from crossover.sightings where id = any ($1) order by seen_at",
        );
        let rows = within(rows.bind(ids).fetch_all(&self.pool)).await?;
        Ok(rows.iter().map(recorded_of).collect::<Result<_, _>>()?)
    }

    /// Of whom something was written after `after` and until `until`, in that order; an interaction as often as it was seen. At
    /// most `limit` rows, and then all that came in the same moment as the last, so that one can go on from there.
    pub async fn ids_between(
        &self,
        after: DateTime<Utc>,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<(Uuid, DateTime<Utc>)>, LedgerError> {
        let rows = sqlx::query_as(
            "select id, seen_at from crossover.sightings where seen_at > $1 and seen_at <= $2
             order by seen_at fetch first $3 rows with ties",
        );
        within(rows.bind(after).bind(until).bind(limit).fetch_all(&self.pool)).await
    }

    /// Up to when everything that was written is visible.
    pub async fn complete_until(&self) -> Result<DateTime<Utc>, LedgerError> {
        // A writer that ends just now leaves a lock without a time for a moment, which would be minus infinity.
        let until =
            sqlx::query_scalar("select greatest(crossover.complete_until('crossover.sightings'), to_timestamp(0))");
        within(until.fetch_one(&self.pool)).await
    }

    /// Up to when everything that was seen is written and visible, or lies in a gap. Who observes and has not written it yet
    /// holds it back.
    pub async fn seen_until(&self) -> Result<DateTime<Utc>, LedgerError> {
        // After a start of Postgres every observer has a while to report first, as in `gaps`. The observers first: what one says that it has written was written before.
        let clear = sqlx::query_scalar(
            "select min(clear_at) from crossover.observers
             where ended_at is null
                and greatest(beat_at, pg_postmaster_start_time()) >= clock_timestamp() - $1 * interval '1 millisecond'",
        );
        let clear: Option<DateTime<Utc>> = within(clear.bind(SILENT.as_millis() as i64).fetch_one(&self.pool)).await?;
        let visible = self.complete_until().await?;
        Ok(clear.map_or(visible, |clear| clear.min(visible)))
    }

    /// Those of `ids` that `side` was seen to begin.
    pub async fn begun_on(&self, side: Side, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let begun = sqlx::query_scalar(
            "select distinct id from crossover.sightings where id = any ($1) and side = $2 and what = 'dequeued'",
        );
        within(begun.bind(ids).bind(side.as_str()).fetch_all(&self.pool)).await
    }

    /// When sightings may have been lost, as far as that was after `since`: an observer had no room, or it died. One that
    /// died while Postgres was away may have lived until it came back.
    pub async fn gaps(&self, since: DateTime<Utc>) -> Result<Vec<Gap>, LedgerError> {
        let rows = sqlx::query(
            "with died as (
                select o.id, o.clear_at, o.beat_at + $2 * interval '1 millisecond' as until from crossover.observers o
                where o.ended_at is null and o.beat_at < clock_timestamp() - $2 * interval '1 millisecond'
                    and pg_postmaster_start_time() < clock_timestamp() - $2 * interval '1 millisecond'),
             gaps as (
                select d.id as observer, d.clear_at as began_at, greatest(d.until, (
                    select max(a.ended_at) from crossover.disturbances a
                    where a.side = 'postgres' and a.began_at <= d.until and a.ended_at >= d.clear_at)) as ended_at,
                    null::bigint as dropped
                from died d
                union all select observer, began_at, ended_at, dropped from crossover.lost_sightings)
             select * from gaps where ended_at >= $1 order by began_at, observer",
        );
        let rows = within(rows.bind(since).bind(SILENT.as_millis() as i64).fetch_all(&self.pool)).await?;
        let gap = |row: &PgRow| {
            Ok(Gap {
                from: row.try_get("began_at")?,
                until: row.try_get("ended_at")?,
                observer: row.try_get("observer")?,
                dropped: row.try_get("dropped")?,
            })
        };
        Ok(rows.iter().map(gap).collect::<Result<_, sqlx::Error>>()?)
    }

    /// When a side could not work, as far as that was after `since`. Several observers notice the same one.
    pub async fn disturbances(&self, since: DateTime<Utc>) -> Result<Vec<Disturbance>, LedgerError> {
        let rows = sqlx::query(
            "select side, began_at, ended_at, what from crossover.disturbances where ended_at >= $1 order by began_at, what",
        );
        let rows = within(rows.bind(since).fetch_all(&self.pool)).await?;
        let disturbance = |row: &PgRow| {
            Ok(Disturbance {
                side: required(named(row, "side")?, "side")?,
                began_at: row.try_get("began_at")?,
                ended_at: row.try_get("ended_at")?,
                what: row.try_get("what")?,
            })
        };
        Ok(rows.iter().map(disturbance).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Drops the days of sightings that ended longer than `keep` ago, and what else is as old. How many days it dropped; one
    /// that somebody reads just now is dropped another time.
    pub async fn retain(&self, keep: Duration) -> Result<i32, LedgerError> {
        let dropped = sqlx::query_scalar("select crossover.drop_sightings($1 * interval '1 millisecond')");
        within(dropped.bind(keep.as_millis() as i64).fetch_one(&self.pool)).await
    }

    /// Whether Postgres takes writes.
    pub(crate) async fn writable(&self) -> Result<bool, LedgerError> {
        within(sqlx::query_scalar("select not pg_is_in_recovery()").fetch_one(&self.pool)).await
    }

    /// Gives a sign of life.
    pub(super) async fn beat(&self, beat: Beat<'_>) -> Result<(), LedgerError> {
        let beaten = sqlx::query(
            "insert into crossover.observers as o (id, name, clear_at, dropped, dropped_at, ended_at)
             values ($1, $2, clock_timestamp() - $3 * interval '1 millisecond', $4,
                case when $4 > 0 then clock_timestamp() end, case when $5 then clock_timestamp() end)
             on conflict (id) do update set beat_at = clock_timestamp(), clear_at = greatest(o.clear_at, excluded.clear_at),
                dropped = excluded.dropped, ended_at = excluded.ended_at,
                dropped_at = case when o.dropped < excluded.dropped then clock_timestamp() else o.dropped_at end",
        );
        let beaten = beaten.bind(beat.observer).bind(beat.name).bind(ago(beat.clear)).bind(beat.dropped as i64);
        within(beaten.bind(beat.last).execute(&self.pool)).await?;
        Ok(())
    }

    /// Writes a batch. `number` grows with every batch of this observer, so that the same one can be written again where the
    /// answer was lost.
    pub(super) async fn write(&self, observer: Uuid, number: i64, batch: &[&Sighting]) -> Result<(), LedgerError> {
        let of = |column: fn(&Sighting) -> Option<String>| batch.iter().map(|s| column(s)).collect::<Vec<_>>();
        let written = sqlx::query(
            "with fresh as (
                update crossover.observers set written = $2, beat_at = clock_timestamp()
                where id = $1 and written < $2 returning id)
             insert into crossover.sightings (side_at, due_at, id, observer, epoch, attempt, rehearsal, retry_ms, side, what,
                outcome, kind, grp, payload_hash, payload, note)
             select s.side_at, s.due_at, s.id, f.id, s.epoch, s.attempt, s.rehearsal, s.retry_ms, s.side, s.what,
                s.outcome, s.kind, s.grp, s.payload_hash, s.payload::json, s.note
             from fresh f, unnest($3::timestamptz[], $4::timestamptz[], $5::uuid[], $6::integer[], $7::integer[],
                $8::boolean[], $9::bigint[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::bytea[],
                $16::text[], $17::text[])
                as s (side_at, due_at, id, epoch, attempt, rehearsal, retry_ms, side, what, outcome, kind, grp,
                    payload_hash, payload, note)",
        )
        .bind(observer)
        .bind(number)
        .bind(batch.iter().map(|s| s.at).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.what.due_at()).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.id).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.fence.epoch).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.fence.attempt).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.rehearsal).collect::<Vec<_>>())
        .bind(batch.iter().map(|s| s.what.retry_ms()).collect::<Vec<_>>())
        .bind(of(|s| Some(s.side.to_string())))
        .bind(of(|s| Some(s.what.name().to_owned())))
        .bind(of(|s| s.what.outcome().map(|o| o.to_string())))
        .bind(of(|s| s.what.kind().map(str::to_owned)))
        .bind(of(|s| s.what.group().map(str::to_owned)))
        .bind(batch.iter().map(|s| s.what.payload_hash().map(<[u8]>::to_vec)).collect::<Vec<_>>())
        .bind(of(|s| s.what.payload().map(|p| p.get().to_owned())))
        .bind(of(|s| s.what.text().map(clean)));
        within(written.execute(&self.pool)).await?;
        Ok(())
    }

    /// Writes a disturbance, or that it went on; when it began, by the database's clock.
    pub(super) async fn disturbed(&self, (side, what): Trouble, window: Window) -> Result<DateTime<Utc>, LedgerError> {
        let began = sqlx::query_scalar(
            "insert into crossover.disturbances as d (side, began_at, ended_at, what)
             values ($1, coalesce($2, clock_timestamp() - $3 * interval '1 millisecond'),
                clock_timestamp() - $4 * interval '1 millisecond', $5)
             on conflict (side, began_at, what) do update set ended_at = greatest(d.ended_at, excluded.ended_at)
             returning began_at",
        );
        let began = began.bind(side.as_str()).bind(window.began_at).bind(ago(window.began)).bind(ago(window.last));
        within(began.bind(what).fetch_one(&self.pool)).await
    }

    /// Writes when `observer` dropped sightings; when that began, by the database's clock.
    pub(super) async fn lost(&self, observer: Uuid, window: Window) -> Result<DateTime<Utc>, LedgerError> {
        let began = sqlx::query_scalar(
            "insert into crossover.lost_sightings as l (observer, began_at, ended_at, dropped)
             values ($1, coalesce($2, clock_timestamp() - $3 * interval '1 millisecond'),
                clock_timestamp() - $4 * interval '1 millisecond', $5)
             on conflict (observer, began_at) do update set ended_at = greatest(l.ended_at, excluded.ended_at),
                dropped = excluded.dropped
             returning began_at",
        );
        let began = began.bind(observer).bind(window.began_at).bind(ago(window.began)).bind(ago(window.last));
        within(began.bind(window.count as i64).fetch_one(&self.pool)).await
    }
}

/// Milliseconds since then. The clock of a process and the database's need not agree; how long ago something was, they do.
fn ago(then: Instant) -> i64 {
    then.elapsed().as_millis() as i64
}

fn required<T>(value: Option<T>, column: &str) -> Result<T, sqlx::Error> {
    value.ok_or_else(|| sqlx::Error::ColumnNotFound(column.to_owned()))
}

fn recorded_of(row: &PgRow) -> Result<Recorded, sqlx::Error> {
    Ok(Recorded {
        seen_at: row.try_get("seen_at")?,
        observer: row.try_get("observer")?,
        sighting: Sighting {
            id: row.try_get("id")?,
            side: required(named(row, "side")?, "side")?,
            fence: Fence { epoch: row.try_get("epoch")?, attempt: row.try_get("attempt")? },
            rehearsal: row.try_get("rehearsal")?,
            at: row.try_get("side_at")?,
            what: seen_of(row)?,
        },
    })
}

fn seen_of(row: &PgRow) -> Result<Seen, sqlx::Error> {
    let note: Option<String> = row.try_get("note")?;
    Ok(match row.try_get("what")? {
        "delivered" => Seen::Delivered,
        "skipped" => Seen::Skipped { why: note.unwrap_or_default() },
        "dequeued" => Seen::Dequeued {
            due_at: row.try_get("due_at")?,
            kind: row.try_get("kind")?,
            group: row.try_get("grp")?,
            payload_hash: row
                .try_get::<Vec<u8>, _>("payload_hash")?
                .try_into()
                .map_err(|_| sqlx::Error::Decode("a payload's hash has 32 bytes".into()))?,
            payload: payload_of(row, "payload_text")?,
        },
        "released" => Seen::Released,
        "ended" => Seen::Ended { outcome: named(row, "outcome")?, retry_ms: row.try_get("retry_ms")?, error: note },
        "refused" => Seen::Refused,
        other => return Err(sqlx::Error::Decode(format!("`{other}` is nothing that is seen").into())),
    })
}

impl Seen {
    /// Its name in `crossover.sightings`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Skipped { .. } => "skipped",
            Self::Dequeued { .. } => "dequeued",
            Self::Released => "released",
            Self::Ended { .. } => "ended",
            Self::Refused => "refused",
        }
    }

    fn due_at(&self) -> Option<DateTime<Utc>> {
        if let Self::Dequeued { due_at, .. } = self { Some(*due_at) } else { None }
    }

    fn kind(&self) -> Option<&str> {
        if let Self::Dequeued { kind, .. } = self { Some(kind) } else { None }
    }

    fn group(&self) -> Option<&str> {
        if let Self::Dequeued { group, .. } = self { Some(group) } else { None }
    }

    fn payload_hash(&self) -> Option<&[u8]> {
        if let Self::Dequeued { payload_hash, .. } = self { Some(payload_hash) } else { None }
    }

    fn payload(&self) -> Option<&Payload> {
        if let Self::Dequeued { payload, .. } = self { payload.as_ref() } else { None }
    }

    fn outcome(&self) -> Option<Outcome> {
        if let Self::Ended { outcome, .. } = self { *outcome } else { None }
    }

    fn retry_ms(&self) -> Option<i64> {
        if let Self::Ended { retry_ms, .. } = self { *retry_ms } else { None }
    }

    fn text(&self) -> Option<&str> {
        match self {
            Self::Ended { error, .. } => error.as_deref(),
            Self::Skipped { why } => Some(why),
            _ => None,
        }
    }
}
