//! The SQL of observations, comparators and scores.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, NaiveDate, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::{Class, Verdict};
use crate::ledger::{LedgerError, NewPin, within};

/// The comparator's tables. Cheap to clone.
#[derive(Clone)]
pub struct Rows {
    pool: PgPool,
}

/// Where a comparator stands.
#[derive(Debug, Clone, sqlx::FromRow)]
pub(super) struct Stand {
    /// Pins made until then have a row.
    pub pins_until: DateTime<Utc>,
    /// Sightings written until then are taken notice of.
    pub sightings_until: DateTime<Utc>,
    /// The database's time.
    pub now: DateTime<Utc>,
}

/// A row that is due to be looked at, locked.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub id: Uuid,
    pub account: String,
    pub kind: String,
    pub stage: String,
    pub day: NaiveDate,
    pub looks: i32,
    pub verdict: Verdict,
    pub classes: Vec<Class>,
    pub paired: bool,
}

/// What is written of a row that was looked at.
#[derive(Debug, Default, Serialize)]
pub(super) struct Looked {
    pub id: Uuid,
    pub look_at: Option<DateTime<Utc>>,
    pub looks: i32,
    pub verdict: &'static str,
    pub classes: Vec<&'static str>,
    pub reason: Option<String>,
    pub attempts: Vec<serde_json::Value>,
    pub divergences: Vec<serde_json::Value>,
    pub temporal_delivered_at: Option<DateTime<Utc>>,
    pub temporal_due_at: Option<DateTime<Utc>>,
    pub temporal_dequeued_at: Option<DateTime<Utc>>,
    pub temporal_ended_at: Option<DateTime<Utc>>,
    pub temporal_attempts: i32,
    pub temporal_outcome: Option<&'static str>,
    pub postgres_due_at: Option<DateTime<Utc>>,
    pub postgres_dequeued_at: Option<DateTime<Utc>>,
    pub postgres_ended_at: Option<DateTime<Utc>>,
    pub postgres_attempts: i32,
    pub postgres_outcome: Option<&'static str>,
    pub owner: Option<&'static str>,
    pub epoch: Option<i32>,
    pub paired: bool,
}

/// Of whom the verdicts are counted together.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Cell {
    pub account: String,
    pub kind: String,
    pub stage: String,
    pub day: NaiveDate,
}

/// By how much a cell's counts change.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Change {
    pub verdicts: BTreeMap<&'static str, i64>,
    pub classes: BTreeMap<&'static str, i64>,
}

/// How much is left to do, and how it went today.
#[derive(Debug, Clone, Default, sqlx::FromRow)]
pub(super) struct Progress {
    /// Rows that are looked at again, up to 100,000 of them.
    pub pending: i64,
    /// Of today's interactions, those that were compared: matched or diverged.
    pub compared: i64,
    /// And all that have a verdict.
    pub judged: i64,
}

/// There is one, whichever process is it.
const NAME: &str = "main";
/// Who has not beaten for so long is replaced.
const SILENT: Duration = Duration::from_secs(10);
/// Sightings are with the database so long after what they describe, as a rule.
const SETTLES_WITHIN: Duration = Duration::from_secs(2);

impl Rows {
    /// The rows of the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Takes or keeps the lead for `me`; none while another has it. The first one ever begins `back` ago.
    pub(super) async fn lead(&self, me: Uuid, back: Duration) -> Result<Option<Stand>, LedgerError> {
        let stand = sqlx::query_as(
            "insert into crossover.comparators as c (name, pins_until, sightings_until, holder)
             values ($1, clock_timestamp() - $3 * interval '1 millisecond', clock_timestamp() - $3 * interval '1 millisecond', $2)
             on conflict (name) do update set holder = excluded.holder, beat_at = clock_timestamp(),
                started_at = case when c.holder is distinct from excluded.holder then clock_timestamp() else c.started_at end
             where c.holder is null or c.holder = excluded.holder
                or c.beat_at < clock_timestamp() - $4 * interval '1 millisecond'
             returning pins_until, sightings_until, clock_timestamp() as now",
        );
        let stand = stand.bind(NAME).bind(me).bind(ms(back)).bind(ms(SILENT));
        within(stand.fetch_optional(&self.pool)).await
    }

    /// Gives the lead back, so that another need not wait.
    pub(super) async fn resign(&self, me: Uuid) -> Result<(), LedgerError> {
        let resigned = sqlx::query("update crossover.comparators set holder = null where name = $1 and holder = $2");
        within(resigned.bind(NAME).bind(me).execute(&self.pool)).await?;
        Ok(())
    }

    /// Makes the rows of `pins`, which are all there are until `until`. With `why`, they are incomplete from the start.
    pub(super) async fn take_in(
        &self,
        me: Uuid,
        pins: &[&NewPin],
        until: DateTime<Utc>,
        why: Option<&str>,
    ) -> Result<(), LedgerError> {
        within(async {
            let mut tx = self.pool.begin().await?;
            let fresh = insert(&mut tx, pins, why).await?;
            if why.is_some() {
                score(&mut tx, &incomplete(&fresh)).await?;
            }
            let moved = sqlx::query("update crossover.comparators set pins_until = $3 where name = $1 and holder = $2");
            let moved = moved.bind(NAME).bind(me).bind(until).execute(&mut *tx).await?;
            if moved.rows_affected() == 1 { tx.commit().await } else { tx.rollback().await }
        })
        .await
    }

    /// Those of `ids` that are looked at only once they are due, which is later.
    pub(super) async fn not_due(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let later = sqlx::query_scalar(
            "select id from crossover.observations
             where id = any ($1) and run_at > clock_timestamp() and look_at > clock_timestamp() + $2 * interval '1 millisecond'",
        );
        within(later.bind(ids).bind(ms(SETTLES_WITHIN)).fetch_all(&self.pool)).await
    }

    /// Takes notice that something was seen of `ids` until `until`: what has a verdict, or is to be looked at much later, is
    /// looked at again. Of what is not due only those that have `ended`: a delivery is no reason to look.
    pub(super) async fn seen(
        &self,
        me: Uuid,
        ids: &[Uuid],
        ended: &[Uuid],
        until: DateTime<Utc>,
    ) -> Result<(), LedgerError> {
        within(async {
            let mut tx = self.pool.begin().await?;
            sqlx::query(
                "with again as (
                    select id from crossover.observations
                    where id = any ($1) and (look_at is null
                        or look_at > clock_timestamp() + $2 * interval '1 millisecond'
                            and (run_at <= clock_timestamp() or id = any ($3)))
                    order by id for update)
                 update crossover.observations o set look_at = clock_timestamp() + $2 * interval '1 millisecond', looks = 0
                 from again where o.id = again.id",
            )
            .bind(ids)
            .bind(ms(SETTLES_WITHIN))
            .bind(ended)
            .execute(&mut *tx)
            .await?;
            let moved =
                sqlx::query("update crossover.comparators set sightings_until = $3 where name = $1 and holder = $2");
            let moved = moved.bind(NAME).bind(me).bind(until).execute(&mut *tx).await?;
            if moved.rows_affected() == 1 { tx.commit().await } else { tx.rollback().await }
        })
        .await
    }

    /// Those of `ids` that are members of series and have a verdict.
    pub(super) async fn judged_members(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let judged = sqlx::query_scalar(
            "select id from crossover.observations where id = any ($1) and look_at is null and series_no is not null",
        );
        within(judged.bind(ids).fetch_all(&self.pool)).await
    }

    /// Those of `ids` that have no row.
    pub(super) async fn unknown(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        let unknown = sqlx::query_scalar(
            "select s.id from unnest($1::uuid[]) as s (id)
             where not exists (select from crossover.observations o where o.id = s.id)",
        );
        within(unknown.bind(ids).fetch_all(&self.pool)).await
    }

    /// Makes rows of what a side has that should not: pinned in a stage without a copy there, or not at all.
    pub(super) async fn add_extra(&self, pinned: &[&NewPin], unpinned: &[Uuid]) -> Result<(), LedgerError> {
        within(async {
            let mut tx = self.pool.begin().await?;
            insert(&mut tx, pinned, None).await?;
            sqlx::query(
                "insert into crossover.observations (id, pinned_at, run_at, look_at, epoch, account, kind, stage, owner)
                 select s.id, clock_timestamp(), clock_timestamp(), clock_timestamp(), 0, '', '', 'none', 'none'
                 from unnest($1::uuid[]) as s (id) on conflict (id) do nothing",
            )
            .bind(unpinned)
            .execute(&mut *tx)
            .await?;
            tx.commit().await
        })
        .await
    }

    /// Takes rows that are due to be looked at; they are this transaction's until it ends. Answers the database's time too.
    pub(super) async fn take_due(
        &self,
        limit: i64,
    ) -> Result<(Transaction<'static, Postgres>, Vec<Taken>, DateTime<Utc>), LedgerError> {
        within(async {
            let mut tx = self.pool.begin().await?;
            let rows = sqlx::query(
                "select id, account, kind, stage, (pinned_at at time zone 'UTC')::date as day, looks, verdict, classes, paired
                 from crossover.observations where look_at <= clock_timestamp()
                 order by look_at limit $1 for update skip locked",
            );
            let rows = rows.bind(limit).fetch_all(&mut *tx).await?;
            let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *tx).await?;
            let taken = rows.iter().map(taken_of).collect::<Result<_, _>>()?;
            Ok((tx, taken, now))
        })
        .await
    }

    /// Which of `ids` have a row without a verdict.
    pub(super) async fn unsettled(&self, ids: &[Uuid]) -> Result<std::collections::HashSet<Uuid>, LedgerError> {
        let unsettled =
            sqlx::query_scalar("select id from crossover.observations where id = any ($1) and verdict = 'in_flight'");
        let ids: Vec<Uuid> = within(unsettled.bind(ids).fetch_all(&self.pool)).await?;
        Ok(ids.into_iter().collect())
    }

    /// Gives up on rows without a verdict that were to run before `before`: nobody looked for too long. How many, at most
    /// `limit`.
    pub(super) async fn give_up(&self, before: DateTime<Utc>, why: &str, limit: i64) -> Result<u64, LedgerError> {
        within(async {
            let mut tx = self.pool.begin().await?;
            let rows = sqlx::query(
                "with old as materialized (
                    select id from crossover.observations where look_at is not null and verdict = 'in_flight' and run_at < $1
                    limit $3 for update skip locked)
                 update crossover.observations o set look_at = null, judged_at = clock_timestamp(), verdict = 'incomplete', reason = $2
                 from old where o.id = old.id
                 returning o.account, o.kind, o.stage, (o.pinned_at at time zone 'UTC')::date as day",
            );
            let rows = rows.bind(before).bind(why).bind(limit).fetch_all(&mut *tx).await?;
            let cells = rows.iter().map(cell_of).collect::<Result<Vec<Cell>, _>>()?;
            score(&mut tx, &incomplete(&cells)).await?;
            tx.commit().await?;
            Ok(rows.len() as u64)
        })
        .await
    }

    /// Deletes up to `limit` rows that were pinned `keep` ago and have a verdict; how many.
    pub(super) async fn expire(&self, keep: Duration, limit: i64) -> Result<u64, LedgerError> {
        let deleted = sqlx::query(
            "delete from crossover.observations where id in (
                select id from crossover.observations
                where pinned_at < clock_timestamp() - $1 * interval '1 millisecond' and look_at is null limit $2)",
        );
        Ok(within(deleted.bind(ms(keep)).bind(limit).execute(&self.pool)).await?.rows_affected())
    }

    /// How it goes.
    pub(super) async fn progress(&self) -> Result<Progress, LedgerError> {
        let progress = sqlx::query_as(
            "select (select count(*) from (
                    select from crossover.observations where look_at is not null limit 100000) rows) as pending,
                coalesce(sum((verdicts ->> 'matched')::bigint), 0)::bigint
                    + coalesce(sum((verdicts ->> 'diverged')::bigint), 0)::bigint as compared,
                coalesce(sum((select sum(n::bigint) from jsonb_each_text(verdicts) as v (name, n))), 0)::bigint as judged
             from crossover.scores where day = (clock_timestamp() at time zone 'UTC')::date",
        );
        within(progress.fetch_one(&self.pool)).await
    }

    /// How many interactions pinned until `until` and due by now have no verdict yet; none while the comparator has not come
    /// so far.
    pub(super) async fn left(&self, until: DateTime<Utc>) -> Result<Option<i64>, LedgerError> {
        let left = sqlx::query_scalar(
            "select (select count(*) from crossover.observations
                     where look_at is not null and pinned_at <= $2 and run_at <= clock_timestamp())
             from crossover.comparators where name = $1 and pins_until >= $2",
        );
        within(left.bind(NAME).bind(until).fetch_optional(&self.pool)).await
    }
}

/// Writes what came of a look.
pub(super) async fn write(tx: &mut PgConnection, looked: &[Looked]) -> Result<(), sqlx::Error> {
    let json = serde_json::to_string(looked).map_err(|e| sqlx::Error::Encode(e.into()))?;
    sqlx::query(
        "update crossover.observations o set look_at = r.look_at, looks = r.looks, verdict = r.verdict, classes = r.classes,
            judged_at = case when r.verdict <> 'in_flight' then clock_timestamp() else o.judged_at end,
            reason = r.reason, attempts = r.attempts, divergences = r.divergences, paired = r.paired,
            temporal_delivered_at = r.temporal_delivered_at, temporal_due_at = r.temporal_due_at,
            temporal_dequeued_at = r.temporal_dequeued_at, temporal_ended_at = r.temporal_ended_at,
            temporal_attempts = r.temporal_attempts, temporal_outcome = r.temporal_outcome,
            postgres_due_at = r.postgres_due_at, postgres_dequeued_at = r.postgres_dequeued_at,
            postgres_ended_at = r.postgres_ended_at, postgres_attempts = r.postgres_attempts,
            postgres_outcome = r.postgres_outcome, owner = coalesce(r.owner, o.owner), epoch = coalesce(r.epoch, o.epoch)
         from json_to_recordset($1::json) as r (id uuid, look_at timestamptz, looks integer, verdict text, classes text[],
            reason text, attempts json, divergences json, paired boolean, temporal_delivered_at timestamptz,
            temporal_due_at timestamptz, temporal_dequeued_at timestamptz, temporal_ended_at timestamptz,
            temporal_attempts integer, temporal_outcome text, postgres_due_at timestamptz, postgres_dequeued_at timestamptz,
            postgres_ended_at timestamptz, postgres_attempts integer, postgres_outcome text, owner text, epoch integer)
         where o.id = r.id",
    )
    .bind(json)
    .execute(tx)
    .await?;
    Ok(())
}

/// Adds to the scores.
pub(super) async fn score(tx: &mut PgConnection, changes: &BTreeMap<Cell, Change>) -> Result<(), sqlx::Error> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        cell: &'a Cell,
        #[serde(flatten)]
        change: &'a Change,
    }
    if changes.is_empty() {
        return Ok(());
    }
    let lines: Vec<_> = changes.iter().map(|(cell, change)| Line { cell, change }).collect();
    let json = serde_json::to_string(&lines).map_err(|e| sqlx::Error::Encode(e.into()))?;
    // In one order everywhere, so that two of these never wait for each other.
    sqlx::query(
        "insert into crossover.scores as s (account, kind, stage, day, verdicts, classes)
         select account, kind, stage, day, verdicts, classes from json_to_recordset($1::json)
            as r (account text, kind text, stage text, day date, verdicts jsonb, classes jsonb)
         order by account, kind, stage, day
         on conflict (account, kind, stage, day) do update set updated_at = clock_timestamp(),
            verdicts = crossover.counts_added(s.verdicts, excluded.verdicts),
            classes = crossover.counts_added(s.classes, excluded.classes)",
    )
    .bind(json)
    .execute(tx)
    .await?;
    Ok(())
}

async fn insert(tx: &mut PgConnection, pins: &[&NewPin], why: Option<&str>) -> Result<Vec<Cell>, sqlx::Error> {
    fn column<'a, T>(pins: &'a [&'a NewPin], of: impl Fn(&'a NewPin) -> T) -> Vec<T> {
        pins.iter().map(|pin| of(pin)).collect()
    }
    let rows = sqlx::query(
        "insert into crossover.observations (id, pinned_at, run_at, look_at, judged_at, series_no, epoch, account, kind,
            series, stage, owner, verdict, reason)
         select p.id, p.created_at, p.run_at,
            case when $11::text is null then greatest(p.created_at, p.run_at) + $12 * interval '1 millisecond' end,
            case when $11 is not null then clock_timestamp() end, p.series_no, p.epoch, p.account, p.kind, p.series, p.stage,
            p.owner, case when $11 is null then 'in_flight' else 'incomplete' end, $11
         from unnest($1::uuid[], $2::timestamptz[], $3::timestamptz[], $4::bigint[], $5::integer[], $6::text[], $7::text[],
            $8::text[], $9::text[], $10::text[])
            as p (id, created_at, run_at, series_no, epoch, account, kind, series, stage, owner)
         on conflict (id) do nothing
         returning account, kind, stage, (pinned_at at time zone 'UTC')::date as day",
    );
    let rows = rows
        .bind(column(pins, |p| p.id))
        .bind(column(pins, |p| p.created_at))
        .bind(column(pins, |p| p.run_at))
        .bind(column(pins, |p| p.series_no))
        .bind(column(pins, |p| p.epoch))
        .bind(column(pins, |p| p.account.as_str()))
        .bind(column(pins, |p| p.kind.as_str()))
        .bind(column(pins, |p| p.series.as_deref()))
        .bind(column(pins, |p| p.stage.as_str()))
        .bind(column(pins, |p| p.owner.as_str()))
        .bind(why)
        .bind(ms(SETTLES_WITHIN))
        .fetch_all(tx)
        .await?;
    rows.iter().map(cell_of).collect()
}

fn incomplete(cells: &[Cell]) -> BTreeMap<Cell, Change> {
    let mut changes: BTreeMap<Cell, Change> = BTreeMap::new();
    for cell in cells {
        *changes.entry(cell.clone()).or_default().verdicts.entry(Verdict::Incomplete.as_str()).or_default() += 1;
    }
    changes
}

fn ms(span: Duration) -> i64 {
    span.as_millis() as i64
}

fn cell_of(row: &PgRow) -> Result<Cell, sqlx::Error> {
    Ok(Cell {
        account: row.try_get("account")?,
        kind: row.try_get("kind")?,
        stage: row.try_get("stage")?,
        day: row.try_get("day")?,
    })
}

fn taken_of(row: &PgRow) -> Result<Taken, sqlx::Error> {
    let Cell { account, kind, stage, day } = cell_of(row)?;
    let classes: Vec<String> = row.try_get("classes")?;
    Ok(Taken {
        id: row.try_get("id")?,
        account,
        kind,
        stage,
        day,
        looks: row.try_get("looks")?,
        verdict: crate::ledger::named(row, "verdict")?.unwrap_or(Verdict::InFlight),
        // A class that a newer program knows is its own to count.
        classes: classes.iter().filter_map(|class| class.parse().ok()).collect(),
        paired: row.try_get("paired")?,
    })
}
