//! The SQL of upkeep: whose turn a duty is, partitions of history, pins that go, orphans.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgPool};
use uuid::Uuid;

use super::Retention;
use crate::ledger::{LedgerError, within};

/// Clearing a partition copies what stays of a day; orphans are looked for in all that has not ended.
const UNHURRIED: Duration = Duration::from_secs(900);
/// So often a lock on a whole table is tried for, for 200 ms each, with half a second for the others in between.
const TRIES: i32 = 3;
/// After so many partitions of a table that could not be had, its others wait for the next time: each try makes callers wait.
const BUSY: usize = 2;
/// Pages of the table of pins that one transaction looks at: 4 MB.
const PAGES: i32 = 500;
/// The tables that history is in.
const PARENTS: [&str; 3] = ["tasks", "payloads", "attempts"];

/// What has ended, in the database.
#[derive(Clone)]
pub struct History {
    pool: PgPool,
    /// Statements of its take long, each a transaction by itself: whoever dies or hangs behind one leaves no lock.
    unhurried: PgPool,
}

/// What became of a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clearing {
    /// Its name.
    pub part: String,
    /// `kept`, `cleared`, `dropped`, `busy`, `crowded`, `gone` or `failed`.
    pub answer: String,
    /// Why it failed.
    pub error: Option<String>,
    /// Rows that stay.
    pub stayed: i64,
    /// Rows that went.
    pub went: i64,
}

/// Rows that belong to nothing, by what they are.
pub type Orphans = BTreeMap<String, i64>;

/// How a duty stands.
#[derive(Debug, Clone, FromRow)]
pub struct Done {
    /// Its name.
    pub duty: String,
    /// When it was last done, or first known of.
    pub at: DateTime<Utc>,
    /// Failures in a row since then.
    pub failures: i32,
    /// Why it failed last.
    pub error: Option<String>,
    /// What it counted.
    pub found: Option<Value>,
}

impl History {
    /// On connections of its own, as `pool` makes them, and on one more.
    pub fn new(pool: PgPool) -> Self {
        let patience = format!("{}ms", UNHURRIED.as_millis());
        let options = pool.connect_options().as_ref().clone().options([("statement_timeout", patience)]);
        let unhurried = PgPoolOptions::new().max_connections(1).acquire_timeout(pool.options().get_acquire_timeout());
        // It is needed once an hour.
        let unhurried = unhurried.idle_timeout(Duration::from_secs(60)).connect_lazy_with(options);
        Self { pool, unhurried }
    }

    /// Clears every partition of what has been kept long enough, one after the other, and the default ones. One that fails keeps
    /// none of the others from it.
    pub async fn clear(&self, retention: &Retention) -> Result<Vec<Clearing>, LedgerError> {
        let (kinds, keeps, ended) = of(retention);
        let due =
            sqlx::query_as::<_, (String, String)>("select parent, part from crossover.partitions_to_clear($1, $2)");
        let (mut clearings, mut busy) = (Vec::new(), Vec::new());
        for (parent, part) in within(due.bind(&keeps).bind(ended).fetch_all(&self.pool)).await? {
            if busy.iter().filter(|of| **of == parent).count() >= BUSY {
                continue;
            }
            let one = one_of_many(part.clone(), self.clear_one(&part, retention).await)?;
            if one.answer == "busy" {
                busy.push(parent);
            }
            clearings.push(one);
        }
        for parent in PARENTS {
            let cleared = sqlx::query("select crossover.clear_default($1, $2, $3, $4, $5, $6)");
            let cleared = cleared.bind(parent).bind(&kinds).bind(&keeps).bind(ended).bind(interval(retention.compared));
            if let Err(error) = within(cleared.bind(Utc::now()).execute(&self.pool)).await {
                clearings.push(one_of_many(format!("{parent}_default"), Err(error))?);
            }
        }
        Ok(clearings)
    }

    async fn clear_one(&self, part: &str, retention: &Retention) -> Result<(String, i64, i64), LedgerError> {
        let (kinds, keeps, ended) = of(retention);
        let query =
            sqlx::query_as("select answer, stayed, went from crossover.clear_partition($1, $2, $3, $4, $5, $6, $7)");
        let query = query.bind(part).bind(kinds).bind(keeps).bind(ended).bind(interval(retention.compared));
        patiently(query.bind(TRIES).bind(Utc::now()).fetch_one(&self.unhurried)).await
    }

    /// Forgets pins that ended long enough ago, with a pause of `pause` after every few pages. How many went.
    pub async fn forget_pins(&self, retention: &Retention, pause: Duration) -> Result<i64, LedgerError> {
        let (kinds, keeps, ended) = of(retention);
        let (mut from, mut forgotten) = (0, 0);
        loop {
            let query =
                sqlx::query_as("select forgotten, next_block from crossover.forget_pins($1, $2, $3, $4, $5, $6, $7)");
            let query = query.bind(from).bind(PAGES).bind(&kinds).bind(&keeps).bind(ended);
            let query = query.bind(interval(retention.compared)).bind(Utc::now());
            let (went, next): (i64, Option<i64>) = within(query.fetch_one(&self.pool)).await?;
            forgotten += went;
            let Some(next) = next else { return Ok(forgotten) };
            from = next;
            tokio::time::sleep(pause).await;
        }
    }

    /// Takes away what belongs to nothing and is of no use, and counts what should not be.
    pub async fn orphans(&self) -> Result<Orphans, LedgerError> {
        let query = sqlx::query_as::<_, (String, i64)>("select what, found from crossover.orphans()");
        Ok(patiently(query.fetch_all(&self.unhurried)).await?.into_iter().collect())
    }

    /// Takes `duty` for as long as `lease`, where it is due and nobody is at it.
    pub async fn begin(&self, duty: &str, holder: Uuid, lease: Duration) -> Result<bool, LedgerError> {
        let begun = sqlx::query_scalar("select crossover.begin_duty($1, $2, $3)");
        within(begun.bind(duty).bind(holder).bind(interval(lease)).fetch_one(&self.pool)).await
    }

    /// Says how it went, and when it is due again.
    pub async fn end(
        &self,
        duty: &str,
        holder: Uuid,
        again: Duration,
        how: Result<Option<Value>, String>,
    ) -> Result<(), LedgerError> {
        let (found, error) = match how {
            Ok(found) => (found, None),
            Err(error) => (None, Some(error)),
        };
        let ended = sqlx::query("select crossover.end_duty($1, $2, $3, $4, $5)");
        let ended = ended.bind(duty).bind(holder).bind(interval(again)).bind(error).bind(found);
        within(ended.execute(&self.pool)).await?;
        Ok(())
    }

    /// How every duty stands, whoever does it.
    pub async fn done(&self) -> Result<Vec<Done>, LedgerError> {
        let rows = sqlx::query_as(
            "select duty, coalesce(succeeded_at, known_since) as at, failures, error, found from crossover.maintenance order by duty",
        );
        within(rows.fetch_all(&self.pool)).await
    }
}

async fn patiently<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    let late = |_| LedgerError::InDoubt(format!("no answer within {UNHURRIED:?}"));
    Ok(tokio::time::timeout(UNHURRIED + Duration::from_secs(5), call).await.map_err(late)??)
}

/// What became of one of many, where the others are gone on with unless Postgres is not there.
fn one_of_many(part: String, cleared: Result<(String, i64, i64), LedgerError>) -> Result<Clearing, LedgerError> {
    match cleared {
        Ok((answer, stayed, went)) => Ok(Clearing { part, answer, error: None, stayed, went }),
        Err(error @ LedgerError::Unreachable(_)) => Err(error),
        Err(error) => {
            let (answer, error) = ("failed".to_owned(), Some(error.to_string()));
            Ok(Clearing { part, answer, error, stayed: 0, went: 0 })
        }
    }
}

fn of(retention: &Retention) -> (Vec<String>, Vec<PgInterval>, PgInterval) {
    let (kinds, keeps) = retention.kinds.iter().map(|(kind, keep)| (kind.clone(), interval(*keep))).unzip();
    (kinds, keeps, interval(retention.ended))
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: i64::try_from(duration.as_micros()).unwrap_or(i64::MAX) }
}
