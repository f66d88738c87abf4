//! The SQL of `crossover.latencies`: a row an account, kind, stage and day.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::NaiveDate;
use futures::TryStreamExt;
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{Postgres, Row, Transaction};

use super::latencies::{Sketches, Tallies};
use super::{Latencies, Options, Pair, View};
use crate::interaction::Stage;
use crate::ledger::{Ledger, LedgerError, within};

/// No statement deletes more rows, so that none runs into its time-out.
const FORGET_AT_ONCE: u64 = 1_000;

/// Which pairs. What is absent does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this account.
    pub account: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Pinned in this stage.
    pub stage: Option<Stage>,
    /// Of this day or later.
    pub since_day: Option<NaiveDate>,
}

/// The latencies of an account, kind and stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The stage that it was pinned in.
    pub stage: Stage,
    /// The first day with pairs.
    pub first_day: NaiveDate,
    /// The last.
    pub last_day: NaiveDate,
    /// The numbers, over all of these days.
    #[serde(flatten)]
    pub view: View,
}

/// The primary key; its order is the order in which rows are locked.
type Key = (String, String, Stage, NaiveDate);

/// Adds pairs: two round trips, whatever their number. Rows stay locked until `tx` ends; as they are locked in the
/// order of their keys, two comparators wait for each other but never in a circle. So call it once a transaction, last,
/// with all of its pairs.
pub async fn add(tx: &mut Transaction<'_, Postgres>, pairs: &[Pair], options: &Options) -> Result<(), LedgerError> {
    let mut added: BTreeMap<Key, Latencies> = BTreeMap::new();
    for pair in pairs {
        let key = (pair.account.clone(), pair.kind.clone(), pair.stage, pair.day);
        added.entry(key).or_default().add(&pair.temporal, &pair.postgres, options.margin);
    }
    if added.is_empty() {
        return Ok(());
    }
    for row in lock(tx, &added).await? {
        let (key, kept) = read_row(&row)?;
        added.entry(key).or_default().merge(&kept);
    }
    write(tx, &added).await
}

/// Locks the rows, made where there are none, and reads them.
async fn lock(tx: &mut Transaction<'_, Postgres>, keys: &BTreeMap<Key, Latencies>) -> Result<Vec<PgRow>, LedgerError> {
    let empty = Latencies::default();
    let sql = "insert into crossover.latencies as l (account, kind, stage, day, sketches, test)
        select account, kind, stage, day, $5, $6 from unnest($1::text[], $2::text[], $3::text[], $4::date[])
            k (account, kind, stage, day)
        order by account, kind, stage, day
        on conflict (account, kind, stage, day) do update set updated_at = clock_timestamp()
        returning account, kind, stage, day, sketches, test";
    let (accounts, kinds, stages, days) = columns(keys);
    let query = sqlx::query(sql).bind(accounts).bind(kinds).bind(stages).bind(days);
    within(query.bind(Json(&empty.sketches)).bind(Json(&empty.tallies)).fetch_all(&mut **tx)).await
}

async fn write(tx: &mut Transaction<'_, Postgres>, rows: &BTreeMap<Key, Latencies>) -> Result<(), LedgerError> {
    let sql = "update crossover.latencies l set sketches = n.sketches, test = n.test, updated_at = clock_timestamp()
        from unnest($1::text[], $2::text[], $3::text[], $4::date[], $5::json[], $6::json[])
            n (account, kind, stage, day, sketches, test)
        where l.account = n.account and l.kind = n.kind and l.stage = n.stage and l.day = n.day";
    let (accounts, kinds, stages, days) = columns(rows);
    let sketches: Vec<_> = rows.values().map(|row| Json(&row.sketches)).collect();
    let tallies: Vec<_> = rows.values().map(|row| Json(&row.tallies)).collect();
    let query = sqlx::query(sql).bind(accounts).bind(kinds).bind(stages).bind(days);
    within(query.bind(sketches).bind(tallies).execute(&mut **tx)).await?;
    Ok(())
}

fn columns(rows: &BTreeMap<Key, Latencies>) -> (Vec<&str>, Vec<&str>, Vec<&str>, Vec<NaiveDate>) {
    let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (account, kind, stage, day) in rows.keys() {
        columns.0.push(account.as_str());
        columns.1.push(kind.as_str());
        columns.2.push(stage.as_str());
        columns.3.push(*day);
    }
    columns
}

/// Each account, kind and stage that the filter leaves, over all days, in the order of their names; the first
/// `limit` of them.
pub async fn read(
    ledger: &Ledger,
    filter: &Filter,
    options: &Options,
    limit: u32,
) -> Result<Vec<Summary>, LedgerError> {
    let mut summaries = Vec::new();
    let mut current: Option<(Key, NaiveDate, Latencies)> = None;
    let summarise = |((account, kind, stage, first_day), last_day, all): (Key, NaiveDate, Latencies)| Summary {
        account,
        kind,
        stage,
        first_day,
        last_day,
        view: all.view(options),
    };
    each(ledger, filter, Some(limit), |key, kept| match &mut current {
        Some((at, last_day, all)) if (&at.0, &at.1, at.2) == (&key.0, &key.1, key.2) => {
            *last_day = key.3;
            all.merge(&kept);
        }
        _ => {
            let day = key.3;
            summaries.extend(current.replace((key, day, kept)).map(summarise));
        }
    })
    .await?;
    summaries.extend(current.map(summarise));
    Ok(summaries)
}

/// Everything that the filter leaves, as one: sketches and counts of all accounts, kinds, stages and days added up.
/// A good account may hide a bad one here.
pub async fn total(ledger: &Ledger, filter: &Filter, options: &Options) -> Result<View, LedgerError> {
    let mut all = Latencies::default();
    each(ledger, filter, None, |_, kept| all.merge(&kept)).await?;
    Ok(all.view(options))
}

/// Forgets days older than `keep`, by the database's clock in UTC; how many rows that were.
pub async fn forget(ledger: &Ledger, keep: Duration) -> Result<u64, LedgerError> {
    let days = i32::try_from(keep.as_secs() / 86_400).unwrap_or(i32::MAX / 2);
    let sql = "delete from crossover.latencies where ctid = any (array(
        select ctid from crossover.latencies where day < (clock_timestamp() at time zone 'utc')::date - $1 limit $2))";
    let mut forgotten = 0;
    loop {
        let query = sqlx::query(sql).bind(days).bind(FORGET_AT_ONCE as i64);
        let rows = within(query.execute(ledger.pool())).await?.rows_affected();
        forgotten += rows;
        if rows < FORGET_AT_ONCE {
            return Ok(forgotten);
        }
    }
}

/// Hands over row after row in the order of their keys, so that not all of them are in memory at once; of at most
/// `limit` accounts, kinds and stages.
async fn each(
    ledger: &Ledger,
    filter: &Filter,
    limit: Option<u32>,
    mut take: impl FnMut(Key, Latencies),
) -> Result<(), LedgerError> {
    let sql = "select account, kind, stage, day, sketches, test
        from (
            select distinct account, kind, stage from crossover.latencies
            where ($1::text is null or account = $1) and ($2::text is null or kind = $2)
                and ($3::text is null or stage = $3) and ($4::date is null or day >= $4)
            order by account, kind, stage limit $5) named
        join crossover.latencies using (account, kind, stage)
        where $4::date is null or day >= $4
        order by account, kind, stage, day";
    let (account, kind) = (filter.account.as_deref(), filter.kind.as_deref());
    let query = sqlx::query(sql).bind(account).bind(kind).bind(filter.stage.map(Stage::as_str)).bind(filter.since_day);
    let query = query.bind(limit.map(i64::from));
    within(async {
        let mut rows = query.fetch(ledger.pool());
        while let Some(row) = rows.try_next().await? {
            let (key, kept) = read_row(&row)?;
            take(key, kept);
        }
        Ok(())
    })
    .await
}

/// An error names the row, for nothing that this program writes is unreadable.
fn read_row(row: &PgRow) -> Result<(Key, Latencies), sqlx::Error> {
    let (account, kind): (String, String) = (row.try_get("account")?, row.try_get("kind")?);
    let (stage, day): (&str, NaiveDate) = (row.try_get("stage")?, row.try_get("day")?);
    let read = || -> Result<(Stage, Latencies), sqlx::Error> {
        let stage = stage.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        let Json(sketches) = row.try_get::<Json<Sketches>, _>("sketches")?;
        let Json(tallies) = row.try_get::<Json<Tallies>, _>("test")?;
        Ok((stage, Latencies { sketches, tallies }))
    };
    let (stage, kept) = read().map_err(|error| {
        let row = format!("account {account:?}, kind {kind:?}, stage {stage}, day {day}");
        sqlx::Error::Decode(format!("crossover.latencies, {row}: {error}; delete this row to begin it anew").into())
    })?;
    Ok(((account, kind, stage, day), kept))
}
