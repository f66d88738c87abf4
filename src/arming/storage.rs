//! The SQL of accounts' states and of acknowledgements. Each step is a function in `migrations/0008_arming.sql`.

use std::collections::HashMap;
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgPool, Row};
use uuid::Uuid;

use super::armed::{Held, State};
use crate::ledger::LedgerError;

/// Where accounts' states are kept. Cheap to clone.
#[derive(Clone)]
pub struct ArmingStore {
    pool: PgPool,
}

/// An account on its way, and what it waits for.
#[derive(Debug, Clone, Serialize)]
pub struct Waiting {
    /// The account.
    pub account: String,
    /// Where it is.
    pub state: State,
    /// Which one that is.
    pub generation: i64,
    /// Since when.
    pub since: DateTime<Utc>,
    /// For so many seconds.
    pub for_seconds: f64,
    /// Work of it was started without a pin.
    pub unpinned: bool,
    /// Somebody wants it armed: the flags, a pin, or an operator.
    pub wanted: bool,
    /// The operator who asked ahead.
    pub asked_by: Option<String>,
    /// Seconds until the window is over, where it waits for that.
    pub window_seconds: Option<f64>,
    /// Unended work that Postgres owns, where it waits for that.
    pub postgres_owns: Option<i64>,
    /// Workflows without a pin that reconciliation still found.
    pub left_to_reconcile: Option<i32>,
    /// Why the last step failed.
    pub trouble: Option<String>,
    /// The processes whose acknowledgement is missing, where it waits for them.
    pub routers: Vec<WaitsOn>,
}

/// A process that has not acknowledged.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct WaitsOn {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Seconds since its last beat.
    pub silent_seconds: f64,
    /// Its starts without a pin whose outcome is in doubt.
    pub in_doubt: i32,
    /// Its starts that are not written yet.
    pub spooled: i64,
    /// What hinders it.
    pub trouble: Option<String>,
}

/// An account's state.
#[derive(Debug, Clone, Serialize)]
pub struct Standing {
    /// The account.
    pub account: String,
    /// Where it is.
    pub state: State,
    /// Which one that is.
    pub generation: i64,
    /// Work of it was started without a pin.
    pub unpinned: bool,
}

/// How many accounts are where, and how long the oldest barrier has been up.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Accounts by state.
    pub accounts: Vec<(String, i64)>,
    /// Seconds that the oldest barrier waits for an acknowledgement.
    pub oldest_barrier_seconds: f64,
    /// Seconds that the oldest reconciliation lasts.
    pub oldest_reconciliation_seconds: f64,
}

/// What a fetch brings.
pub(super) struct Fetched {
    pub(super) accounts: HashMap<String, Held>,
    /// The next fetch asks from here.
    pub(super) until: i64,
}

/// A call that takes longer is given up: the next one comes soon.
const PATIENCE: Duration = Duration::from_secs(2);
/// For a read of all accounts.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(20);

async fn within<T>(patience: Duration, call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LedgerError::InDoubt(format!("no answer within {patience:?}"))),
    }
}

fn interval(duration: Duration) -> PgInterval {
    PgInterval { months: 0, days: 0, microseconds: duration.as_micros() as i64 }
}

fn state_of(text: &str) -> Result<State, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

impl ArmingStore {
    /// On this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The accounts that are not open, or, since an earlier fetch, all whose state changed. A transaction that was under way
    /// at that fetch has a later number than it says, so nothing is missed.
    pub(super) async fn fetch(&self, since: Option<i64>) -> Result<Fetched, LedgerError> {
        let rows = sqlx::query(
            "select s.until, a.account, a.state, a.generation
             from (select pg_snapshot_xmin(pg_current_snapshot())::text::bigint as until) s
             left join crossover.accounts a on a.generation > 0
                and case when $1::bigint is null then a.state <> 'open' else a.changed >= $1 end",
        );
        let patience = if since.is_some() { PATIENCE } else { PATIENCE_FOR_ALL };
        let rows = within(patience, rows.bind(since).fetch_all(&self.pool)).await?;
        let mut fetched = Fetched { accounts: HashMap::new(), until: 0 };
        for row in &rows {
            fetched.until = row.try_get("until").map_err(LedgerError::from)?;
            let Some(account) = row.try_get::<Option<String>, _>("account").map_err(LedgerError::from)? else {
                continue;
            };
            let state = state_of(row.try_get("state").map_err(LedgerError::from)?).map_err(LedgerError::from)?;
            let generation = row.try_get("generation").map_err(LedgerError::from)?;
            fetched.accounts.insert(account, Held { state, generation });
        }
        Ok(fetched)
    }

    /// Acknowledges states; one that has passed meanwhile needs none.
    pub(super) async fn acknowledge(&self, router: Uuid, acks: &[(String, i64)]) -> Result<(), LedgerError> {
        let (accounts, generations): (Vec<&str>, Vec<i64>) = acks.iter().map(|(a, g)| (a.as_str(), *g)).unzip();
        let acked = sqlx::query(
            "insert into crossover.arming_acks (account, generation, router)
             select a.account, a.generation, $1 from unnest($2::text[], $3::bigint[]) k (account, generation)
             join crossover.accounts a on a.account = k.account and a.generation = k.generation
             where a.state in ('pinning', 'closing', 'disarming') on conflict do nothing",
        );
        within(PATIENCE, acked.bind(router).bind(accounts).bind(generations).execute(&self.pool)).await.map(drop)
    }

    /// What a step may be due for: account, state, generation.
    pub(super) async fn due(&self, window: Duration, limit: i32) -> Result<Vec<(String, State, i64)>, LedgerError> {
        let rows = sqlx::query_as::<_, (String, String, i64)>("select * from crossover.arming_due($1, $2)");
        let rows = within(PATIENCE_FOR_ALL, rows.bind(interval(window)).bind(limit).fetch_all(&self.pool)).await?;
        rows.into_iter()
            .map(|(account, state, generation)| Ok((account, state_of(&state)?, generation)))
            .collect::<Result<_, sqlx::Error>>()
            .map_err(LedgerError::from)
    }

    /// Tidies away blind spots that no account waits for any more.
    pub(super) async fn forget_blind_spots(&self, window: Duration) -> Result<(), LedgerError> {
        let tidied = sqlx::query("select crossover.forget_blind_spots($1)").bind(interval(window));
        within(PATIENCE, tidied.execute(&self.pool)).await.map(drop)
    }

    /// Begins the way of an account that the flags want live.
    pub(super) async fn begin(&self, account: &str) -> Result<State, LedgerError> {
        let begun = sqlx::query_scalar::<_, String>("select (crossover.begin_arming($1, 'live', null)).state");
        let state = within(PATIENCE, begun.bind(account).fetch_one(&self.pool)).await?;
        state_of(&state).map_err(LedgerError::from)
    }

    /// Moves an account on, if what it waits for has come; where to.
    pub(super) async fn advance(
        &self,
        account: &str,
        generation: i64,
        window: Duration,
    ) -> Result<Option<State>, LedgerError> {
        let moved = sqlx::query_scalar::<_, Option<String>>("select crossover.advance($1, $2, $3)");
        let moved = moved.bind(account).bind(generation).bind(interval(window)).fetch_one(&self.pool);
        let moved = within(PATIENCE, moved).await?;
        moved.map(|state| state_of(&state)).transpose().map_err(LedgerError::from)
    }

    /// Takes an account's reconciliation for so long; false: somebody else has it, or it has passed.
    pub(super) async fn take_reconciliation(
        &self,
        account: &str,
        generation: i64,
        lasts: Duration,
    ) -> Result<bool, LedgerError> {
        let taken = sqlx::query_scalar::<_, Option<bool>>("select crossover.take_reconciliation($1, $2, $3)");
        let taken = taken.bind(account).bind(generation).bind(interval(lasts)).fetch_one(&self.pool);
        Ok(within(PATIENCE, taken).await?.unwrap_or(false))
    }

    /// Writes what came of it: done, or what is left and why. False: it has passed meanwhile.
    pub(super) async fn reconciled(
        &self,
        account: &str,
        generation: i64,
        done: bool,
        left: Option<u64>,
        trouble: Option<&str>,
        again: Duration,
    ) -> Result<bool, LedgerError> {
        let written = sqlx::query_scalar("select crossover.reconciled($1, $2, $3, $4, $5, $6)");
        let left = left.map(|left| left.min(i32::MAX as u64) as i32);
        let written = written.bind(account).bind(generation).bind(done).bind(left).bind(trouble).bind(interval(again));
        within(PATIENCE, written.fetch_one(&self.pool)).await
    }

    /// An operator asks to arm the account ahead.
    pub async fn ask(&self, account: &str, who: &str) -> Result<Standing, LedgerError> {
        let asked = sqlx::query("select (crossover.begin_arming($1, 'shadow', $2)).*");
        let row = within(PATIENCE, asked.bind(account).bind(who).fetch_one(&self.pool)).await?;
        standing(&row).map_err(LedgerError::from)
    }

    /// An operator asks to go back to open; none: the flags want it live.
    pub async fn ask_back(&self, account: &str) -> Result<Option<Standing>, LedgerError> {
        let asked = sqlx::query("select (crossover.begin_disarming($1)).*");
        let row = within(PATIENCE, asked.bind(account).fetch_one(&self.pool)).await?;
        let known: Option<String> = row.try_get("account").map_err(LedgerError::from)?;
        known.map(|_| standing(&row)).transpose().map_err(LedgerError::from)
    }

    /// Where an account is; none where nothing is known of it.
    pub async fn of(&self, account: &str) -> Result<Option<Standing>, LedgerError> {
        let row = sqlx::query("select * from crossover.accounts where account = $1").bind(account);
        let row = within(PATIENCE, row.fetch_optional(&self.pool)).await?;
        row.map(|row| standing(&row)).transpose().map_err(LedgerError::from)
    }

    /// Work of the account was lost that had been started without a pin: its window starts again.
    pub async fn lost_unpinned(&self, account: &str) -> Result<bool, LedgerError> {
        let lost = sqlx::query_scalar("select crossover.lost_unpinned($1)").bind(account).fetch_one(&self.pool);
        within(PATIENCE, lost).await
    }

    /// How many accounts are where.
    pub async fn census(&self) -> Result<Census, LedgerError> {
        let counts = sqlx::query_as("select state, count(*) from crossover.accounts group by state");
        let accounts = within(PATIENCE_FOR_ALL, counts.fetch_all(&self.pool)).await?;
        let oldest = sqlx::query_as::<_, (f64, f64)>(
            "select coalesce(max(extract(epoch from clock_timestamp() - a.state_since)) filter (
                    where a.state in ('pinning', 'closing') or a.state = 'disarming' and not crossover.all_acknowledged(a.account, a.generation)), 0)::float8,
                coalesce(max(extract(epoch from clock_timestamp() - a.state_since)) filter (where a.state = 'reconciling'), 0)::float8
             from crossover.accounts a where a.state not in ('open', 'armed')",
        );
        let (barrier, reconciliation) = within(PATIENCE_FOR_ALL, oldest.fetch_one(&self.pool)).await?;
        Ok(Census { accounts, oldest_barrier_seconds: barrier, oldest_reconciliation_seconds: reconciliation })
    }

    /// The accounts on their way (one, or all), the longest first, and what each waits for; and how many there are.
    pub async fn under_way(
        &self,
        account: Option<&str>,
        window: Duration,
        limit: i64,
    ) -> Result<(Vec<Waiting>, i64), LedgerError> {
        let rows = sqlx::query(
            "select a.account, a.state, a.generation, coalesce(a.state_since, a.created_at) as since,
                extract(epoch from clock_timestamp() - coalesce(a.state_since, a.created_at))::float8 as for_seconds,
                a.unpinned_at is not null as unpinned, crossover.live_wanted(a) as wanted, a.asked_by, a.left_to_reconcile, a.trouble,
                case when a.state = 'disarming' or a.unpinned_at is not null or b.at is not null then
                    greatest(extract(epoch from greatest(a.window_from, b.at) + $2 - clock_timestamp()), 0)::float8 end as window_seconds,
                case when a.state = 'disarming' then (select count(*) from crossover.pins p
                    where p.account = a.account and p.ended_at is null and p.owner <> 'temporal')
                    + (select count(*) from crossover.tasks_ready r where r.account = a.account)
                    + (select count(*) from crossover.tasks_scheduled s where s.account = a.account)
                    + (select count(*) from crossover.gate g where g.account = a.account and g.task) end as postgres_owns,
                count(*) over () as total
             from crossover.accounts a
             left join (select max(at) as at from crossover.blind_spots) b on a.state = 'window'
             where a.state not in ('open', 'armed') and ($1::text is null or a.account = $1)
             order by coalesce(a.state_since, a.created_at) limit $3",
        );
        let rows = rows.bind(account).bind(interval(window)).bind(limit).fetch_all(&self.pool);
        let rows = within(PATIENCE_FOR_ALL, rows).await?;
        let total = rows.first().map_or(Ok(0), |row| row.try_get("total")).map_err(LedgerError::from)?;
        let mut found = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut waiting = waiting(row).map_err(LedgerError::from)?;
            if waiting.state.is_barrier() {
                waiting.routers = self.missing(&waiting.account, waiting.generation).await?;
            }
            found.push(waiting);
        }
        Ok((found, total))
    }

    /// Whose acknowledgement is missing.
    async fn missing(&self, account: &str, generation: i64) -> Result<Vec<WaitsOn>, LedgerError> {
        let rows = sqlx::query_as(
            "select r.id, r.name, extract(epoch from clock_timestamp() - r.beat_at)::float8 as silent_seconds, r.in_doubt, r.spooled, r.trouble
             from crossover.routers r
             where r.ended_at is null and not exists (
                select from crossover.arming_acks k where k.account = $1 and k.generation = $2 and k.router = r.id)
             order by r.beat_at",
        );
        within(PATIENCE, rows.bind(account).bind(generation).fetch_all(&self.pool)).await
    }
}

fn standing(row: &sqlx::postgres::PgRow) -> Result<Standing, sqlx::Error> {
    Ok(Standing {
        account: row.try_get("account")?,
        state: state_of(row.try_get("state")?)?,
        generation: row.try_get("generation")?,
        unpinned: row.try_get::<Option<DateTime<Utc>>, _>("unpinned_at")?.is_some(),
    })
}

fn waiting(row: &sqlx::postgres::PgRow) -> Result<Waiting, sqlx::Error> {
    Ok(Waiting {
        account: row.try_get("account")?,
        state: state_of(row.try_get("state")?)?,
        generation: row.try_get("generation")?,
        since: row.try_get("since")?,
        for_seconds: row.try_get("for_seconds")?,
        unpinned: row.try_get("unpinned")?,
        wanted: row.try_get("wanted")?,
        asked_by: row.try_get("asked_by")?,
        window_seconds: row.try_get("window_seconds")?,
        postgres_owns: row.try_get("postgres_owns")?,
        left_to_reconcile: row.try_get("left_to_reconcile")?,
        trouble: row.try_get("trouble")?,
        routers: Vec::new(),
    })
}
