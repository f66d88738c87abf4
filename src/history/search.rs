//! Searching what Postgres knows: pins and tasks in one answer, newest first, a page at a time.
//!
//! A page is bounded by its time: tasks are read from the partitions of that time in the order of their ids, pins by
//! `pins_of_account` where an account is named. What can't be found within [`BUDGET`] is given up, so that a search never costs
//! production more than that on one of its few connections.

mod show;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Datelike, TimeDelta, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

pub use show::{Shown, ShownAttempt};

use crate::interaction::series_id;
use crate::ledger::LedgerError;

/// A page has at most so many.
pub const MOST: u32 = 500;
/// A search that takes longer is given up.
const BUDGET: Duration = Duration::from_secs(5);
/// How far back a search goes that does not say so.
const BACK: TimeDelta = TimeDelta::days(1);

/// Where an interaction stands, as people ask for it. docs/task-states.md has the picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(&'static str);

impl State {
    /// All that may be asked for.
    pub const ALL: [State; 10] = [
        State("scheduled"),
        State("waiting"),
        State("ready"),
        State("running"),
        State("held"),
        State("unknown_outcome"),
        State("succeeded"),
        State("failed"),
        State("cancelled"),
        State("expired"),
    ];
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(|state| state.0).join(", ");
        Self::ALL.into_iter().find(|state| state.0 == text).ok_or_else(|| format!("is no state; one of {} is", names()))
    }
}

/// What is asked for. What is absent does not narrow.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this account.
    pub account: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// In this state.
    pub state: Option<State>,
    /// Of this series.
    pub series: Option<String>,
    /// Of this group.
    pub group: Option<String>,
    /// Accepted at this instant or later. Absent: a day before `until`.
    pub since: Option<DateTime<Utc>>,
    /// Accepted before this instant. Absent: now.
    pub until: Option<DateTime<Utc>>,
}

/// Where the next page begins: behind the last of this one. What comes in meanwhile is newer, so it moves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    at: DateTime<Utc>,
    id: Uuid,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.at.timestamp_micros(), self.id.simple())
    }
}

impl FromStr for Cursor {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (at, id) = text.split_once('.')?;
            let at = DateTime::from_timestamp_micros(at.parse().ok()?)?;
            // Beyond these, neither what is reckoned with it nor Postgres holds.
            let at = (1970..=9999).contains(&at.year()).then_some(at)?;
            Some(Self { at, id: Uuid::try_parse(id).ok()? })
        };
        read().ok_or("is no cursor; take `next` of the page before")
    }
}

/// One interaction of a page.
#[derive(Debug, Clone, FromRow, Serialize, ToSchema)]
#[schema(as = Searched)]
pub struct Found {
    /// Its name.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The idempotency key.
    pub key: String,
    /// The series.
    pub series: Option<String>,
    /// Its number there.
    pub series_no: Option<i64>,
    /// The sub-queue.
    #[sqlx(rename = "grp")]
    pub group: String,
    /// -100 to 100, higher first.
    pub priority: i16,
    /// scheduled, waiting, ready, running, held, unknown_outcome, succeeded, failed, cancelled or expired.
    pub state: String,
    /// Why it is there.
    pub reason: Option<String>,
    /// The stage it was accepted in.
    pub stage: String,
    /// Who runs it.
    pub owner: String,
    /// Attempts that have ended.
    pub attempts: i32,
    /// When it was accepted.
    pub created_at: DateTime<Utc>,
    /// Not before this instant.
    pub run_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A page, newest first.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = SearchedPage)]
pub struct Page {
    /// What was found.
    pub items: Vec<Found>,
    /// Where the next page begins; absent where this was the last.
    pub next: Option<String>,
    /// How far back was looked.
    pub since: DateTime<Utc>,
}

/// Why there is no page.
#[derive(Debug, thiserror::Error)]
pub enum SearchError {
    /// It would read too much.
    #[error(
        "nothing is told: the search was given up after {BUDGET:?}, so as not to be in the way of the work; name an account, or a shorter time"
    )]
    TooMuch,
    /// Postgres did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<sqlx::Error> for SearchError {
    fn from(error: sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
        if code.is_some_and(|code| code == "57014") { Self::TooMuch } else { Self::Ledger(error.into()) }
    }
}

/// Searches, on connections of its own.
#[derive(Clone)]
pub struct Search {
    pool: PgPool,
}

impl Search {
    /// On this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The newest `limit` (at most [`MOST`]) of what `filter` leaves, behind `after`.
    pub async fn page(&self, filter: &Filter, after: Option<Cursor>, limit: u32) -> Result<Page, SearchError> {
        let limit = limit.clamp(1, MOST);
        let before = filter.until.unwrap_or_else(Utc::now);
        let since = filter.since.or_else(|| before.checked_sub_signed(BACK)).unwrap_or(DateTime::UNIX_EPOCH);
        // The database's clock may go before this one.
        let until = filter.until.unwrap_or(before + TimeDelta::hours(1));
        let reading = async {
            let mut tx = self.begin().await?;
            // A little first: where much is done it fills the page, and where little is done all of it is soon read.
            let top = after.map_or(until, |after| until.min(after.at + TimeDelta::milliseconds(1)));
            let mut items = Vec::new();
            for back in [TimeDelta::minutes(2), TimeDelta::hours(2), TimeDelta::MAX] {
                let from = top.min(before).checked_sub_signed(back).map_or(since, |from| from.max(since));
                items = filter.read(&mut tx, (from, until), after, limit).await?;
                if from == since || items.len() == limit as usize {
                    break;
                }
            }
            Ok::<_, SearchError>(items)
        };
        let items = bounded(reading).await?;
        let full = items.len() == limit as usize;
        let next = items.last().filter(|_| full).map(|last| Cursor { at: last.created_at, id: last.id }.to_string());
        Ok(Page { items, next, since })
    }

    /// A read-only transaction whose statements are given up in time.
    async fn begin(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, sqlx::Error> {
        let mut tx = self.pool.begin().await?;
        sqlx::query("set transaction read only").execute(&mut *tx).await?;
        let budget = format!("set local statement_timeout = {}", BUDGET.as_millis());
        sqlx::query(sqlx::AssertSqlSafe(budget)).execute(&mut *tx).await?;
        Ok(tx)
    }
}

impl Filter {
    async fn read(
        &self,
        connection: &mut PgConnection,
        (from, until): (DateTime<Utc>, DateTime<Utc>),
        after: Option<Cursor>,
        limit: u32,
    ) -> Result<Vec<Found>, sqlx::Error> {
        let series = self.account.as_ref().zip(self.kind.as_ref()).zip(self.series.as_ref());
        let narrower = match self.state {
            Some(State("waiting")) => AT_A_GATE,
            Some(state) if RARE.contains(&state.0) => ENDED_SO,
            _ => "",
        };
        let mut sql = page_of(PINS, "");
        if !self.state.is_some_and(|state| NEVER_OF_TASKS.contains(&state.0)) {
            let tasks = page_of(TASKS, narrower);
            sql = format!("{sql} union all {tasks} order by created_at desc, id desc limit $9");
        }
        // Unnamed, so that it is planned for what is asked: a plan for all questions reads everything.
        let query = sqlx::query_as(sqlx::AssertSqlSafe(sql)).persistent(false);
        let query = query
            .bind(&self.account)
            .bind(&self.kind)
            .bind(&self.series)
            .bind(series.map(|((account, kind), series)| series_id(account, kind, series)))
            .bind(&self.group)
            .bind(self.state.map(|state| state.0))
            .bind(from)
            .bind(until)
            .bind(i64::from(limit))
            .bind(after.map(|after| after.at))
            .bind(after.map(|after| after.id));
        query.fetch_all(connection).await
    }
}

/// Where Postgres itself does not answer.
async fn bounded<T>(reading: impl Future<Output = Result<T, SearchError>>) -> Result<T, SearchError> {
    tokio::time::timeout(BUDGET * 3, reading).await.unwrap_or(Err(SearchError::TooMuch))
}

/// One engine's part of a page, in the order of the page.
fn page_of((rows, narrow, order): (&str, &str, &str), more: &str) -> String {
    format!(
        "(select * from (select {rows} where ($1::text is null or x.account = $1) and ($2::text is null or x.kind = $2)
            and ($5::text is null or x.grp = $5) and x.created_at >= $7 and x.created_at < $8
            and ($10::timestamptz is null or (x.created_at, x.id) < ($10, $11::uuid)) and {narrow} {more}) found
          where $6::text is null or found.state = $6 order by {order} limit $9)"
    )
}

/// Pins `x` as [`Found`]; the state is that of the view `crossover.interactions`.
const PINS: (&str, &str, &str) = (
    "x.id, x.account, x.kind, x.key, x.series, x.series_no, x.grp, x.priority, w.state,
        coalesce(x.conflict, k.error, case when w.state = 'waiting' and x.series_no > h.head_no
            then format('behind number %s of its series', h.head_no) end, case when d.id is not null
            then format('after %s of %s interactions that have not ended', d.unended, d.named) end, x.reason,
            case when w.state = 'waiting' and g.execute then crossover.gate_reason(x.grp)
                when e.state = 'waits' then crossover.turn_reason(e.exclusive_id, e.exclusive) end) as reason,
        x.stage, x.owner, x.attempts, x.created_at, x.run_at, x.ended_at
     from crossover.pins x
     left join crossover.outbox o on o.id = x.id
     left join crossover.running u on u.id = x.id
     left join crossover.scheduled s on s.id = x.id
     left join crossover.ready r on r.id = x.id
     left join crossover.parked k on k.id = x.id
     left join crossover.gate g on g.id = x.id
     left join crossover.series h on h.series_id = x.series_id
     left join crossover.dependents d on d.id = x.id
     left join crossover.turns e on e.id = x.id
     cross join lateral (select case
            when x.outcome is not null then x.outcome
            when x.conflict is not null then 'held'
            when k.id is not null then 'unknown_outcome'
            when u.execute then 'running'
            when s.execute or e.state = 'later' then 'scheduled'
            when r.execute then 'ready'
            when x.owner = 'temporal' and o.id is null and x.run_at <= clock_timestamp() then 'running'
            when x.owner = 'temporal' and x.run_at > clock_timestamp() then 'scheduled'
            else 'waiting' end as state) w",
    "($3::text is null or x.series = $3) and ($4::uuid is null or x.series_id = $4)",
    "created_at desc, id desc",
);

/// Tasks `x` as [`Found`]. Their ids are in the order of their time; a cursor in the middle of a millisecond is narrowed by the
/// comparison beside this. They have no series.
const TASKS: (&str, &str, &str) = (
    "x.id, x.account, x.kind, 'task_' || replace(x.id::text, '-', '') as key, null::text as series, null::bigint as series_no, x.grp,
        (-x.rank)::smallint as priority, w.state,
        case when w.state = 'waiting' then crossover.gate_reason(x.grp) else coalesce(r.wish, a.error) end as reason, 'complete' as stage, 'postgres' as owner,
        coalesce(r.attempt - 1, s.attempt - 1, g.attempt - 1, a.attempt, 0) as attempts, x.created_at, x.run_at,
        case when r.id is null and s.id is null and g.id is null then a.ended_at end as ended_at
     from crossover.tasks x
     left join crossover.tasks_ready r on r.rank = x.rank and r.vt = x.vt and r.id = x.id
     left join crossover.tasks_scheduled s on s.id = x.id
     left join crossover.gate g on g.id = x.id
     left join lateral (
        select a.outcome, a.ended_at, a.attempt, a.error from crossover.attempts a
        -- Of the days since then and of no partition that was made ahead.
        where a.id = x.id and a.ended_at >= x.created_at - interval '1 hour' and a.ended_at < now() + interval '1 hour'
        order by a.ended_at desc limit 1) a on true
     cross join lateral (select case when s.id is not null then 'scheduled' when r.worker is not null then 'running'
            when r.id is not null then 'ready' when g.id is not null then 'waiting'
            else coalesce(a.outcome, 'forgotten') end as state) w",
    "$3::text is null and x.id >= crossover.lowest_id($7) and x.id < crossover.lowest_id(least($8, $10) + interval '2 milliseconds')",
    // The same order, and that of their key.
    "id desc",
);

/// States that no task has: asking each for its state would read all of the time.
const NEVER_OF_TASKS: [&str; 2] = ["held", "unknown_outcome"];

/// Tasks wait at gates alone, and reading these is quicker than asking each task.
const AT_A_GATE: &str = "and x.id in (select f.id from crossover.gate f where f.task)";

/// Ends that few have: reading all ends of the time is quicker than asking for that of each task.
const RARE: [&str; 3] = ["failed", "cancelled", "expired"];
const ENDED_SO: &str = "and x.id in (
    select f.id from crossover.attempts f
    where f.outcome = $6 and f.retry_ms is null and f.ended_at >= $7 - interval '1 hour' and f.ended_at < now() + interval '1 hour')";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        let cursor = Cursor { at: DateTime::from_timestamp_micros(1_763_800_000_123_456).unwrap(), id: Uuid::new_v4() };
        assert_eq!(cursor.to_string().parse(), Ok(cursor));
        for text in [
            "",
            "1",
            "1.2",
            ".",
            "99999999999999999999.x",
            "x.6fd1a3a08a3e4a4c9c556ad1f3b1f6f1",
            "8210266876799999000.6fd1a3a08a3e4a4c9c556ad1f3b1f6f1",
            "-8000000000000000000.6fd1a3a08a3e4a4c9c556ad1f3b1f6f1",
        ] {
            assert!(text.parse::<Cursor>().is_err(), "{text}");
        }
    }
}
