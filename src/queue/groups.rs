//! The SQL of groups with limits, their gate, and `account_weights`: limits, rates, pauses, what waits for them, and how much
//! accounts count.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use sqlx::PgPool;
use uuid::Uuid;

use super::tasks::Place;
use crate::ledger::{LedgerError, within};

/// Groups and their gate. Cheap to clone.
#[derive(Clone)]
pub struct Groups {
    pool: PgPool,
}

/// A group that has, or had, limits.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, serde::Serialize, utoipa::ToSchema)]
pub struct Group {
    /// Its name.
    #[sqlx(rename = "grp")]
    pub name: String,
    /// At most so many attempts at once.
    pub max_running: Option<i32>,
    /// At most so many of one account.
    pub max_per_account: Option<i32>,
    /// So many may start in a second.
    pub rate: Option<f64>,
    /// So many at once after a quiet time; none: the starts of a second.
    pub burst: Option<i32>,
    /// The same for each account.
    pub account_rate: Option<f64>,
    /// The same for each account.
    pub account_burst: Option<i32>,
    /// A failure that says when to come back holds the rest of its account back until then.
    pub heed_retry_after: bool,
    /// More of it is refused while so much waits.
    pub max_waiting: Option<i32>,
    /// Since when nothing of it starts.
    pub paused_since: Option<DateTime<Utc>>,
    /// Why.
    pub paused_reason: Option<String>,
    /// When it was last changed.
    pub changed_at: DateTime<Utc>,
    /// By whom.
    pub changed_by: String,
    /// Places that are taken.
    pub held: i64,
    /// What waits at its gate, counted up to 10,000.
    pub waiting: i64,
}

/// What an account counts among those that wait.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow, serde::Serialize, utoipa::ToSchema)]
pub struct Weight {
    /// The account.
    pub account: String,
    /// Its share, where an account without a weight has 1.
    pub weight: f64,
    /// When that was last changed.
    pub changed_at: DateTime<Utc>,
    /// By whom.
    pub changed_by: String,
}

/// What a pass at the gate is to do.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// It admits at most so many of a group.
    pub most: i32,
    /// It looks for what goes by its group's limits, too.
    pub look: bool,
    /// It forgets what rates and holds no longer need.
    pub tidy: bool,
    /// It goes on behind this group, which an earlier one came to.
    pub from: Option<String>,
}

/// What a pass at the gate came to.
#[derive(Debug, Clone, Default, PartialEq, sqlx::FromRow)]
pub struct Pass {
    /// Somebody else is at it; nothing was done.
    pub busy: bool,
    /// Some group has limits, or something is still at the gate.
    pub gates: bool,
    /// What may start from now on.
    pub admitted: i64,
    /// What was ready though its group has limits, and was taken to the gate.
    pub strays: i64,
    /// Of what was admitted, in the place of a rehearsal whose real run had not begun.
    pub gave_way: i64,
    /// By a rate, more may be let in after so many milliseconds.
    pub wait_ms: Option<f64>,
    /// It took long enough; another one goes on behind this group.
    pub go_on: Option<String>,
}

/// An attempt that was told to come back later.
#[derive(Debug, Clone, Copy)]
pub struct Told {
    /// The interaction.
    pub id: Uuid,
    /// The attempt.
    pub attempt: i32,
    /// Where its row is, of a task.
    pub task: Option<Place>,
    /// In so many milliseconds.
    pub wait_ms: i64,
}

/// A group with a cap on what may wait.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Capped {
    /// Its name.
    pub grp: String,
    /// The cap.
    pub max_waiting: i32,
    /// What waits; not counted much beyond the cap.
    pub waiting: i64,
}

impl Group {
    /// The limits that it has, by name.
    pub fn limits(&self) -> Vec<(&'static str, String)> {
        let whole = |limit: Option<i32>| limit.map(|limit| limit.to_string());
        let rate = |rate: Option<f64>| rate.map(|rate| rate.to_string());
        let all = [
            ("max_running", whole(self.max_running)),
            ("max_per_account", whole(self.max_per_account)),
            ("rate", rate(self.rate)),
            ("burst", whole(self.burst)),
            ("account_rate", rate(self.account_rate)),
            ("account_burst", whole(self.account_burst)),
            ("heed_retry_after", self.heed_retry_after.then(|| "true".to_owned())),
            ("max_waiting", whole(self.max_waiting)),
        ];
        all.into_iter().filter_map(|(name, limit)| Some((name, limit?))).collect()
    }
}

/// So many weights are read.
const WEIGHTS: i64 = 100_000;
/// And so many groups at once, each with what it counts.
const PAGE: u32 = 100;
const SHOWN: &str = "select g.*, crossover.places_held(g.grp) as held,
        (select count(*) from (select from crossover.gate w where w.grp = g.grp limit 10000) w) as waiting
    from crossover.groups g";

impl Groups {
    /// The groups of the database behind `pool`.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Admits what there is room for.
    pub async fn admit(&self, asked: Asked) -> Result<Pass, LedgerError> {
        let pass = sqlx::query_as("select * from crossover.admit($1, $2, $3, $4)");
        within(pass.bind(asked.most).bind(asked.look).bind(asked.tidy).bind(asked.from).fetch_one(&self.pool)).await
    }

    /// Before `worker` reports ends of attempts that were told to come back later: where their group heeds it, the rest of their
    /// account is held back.
    pub async fn heed_retry_after(&self, worker: Uuid, told: &[Told]) -> Result<(), LedgerError> {
        let heeded = sqlx::query("select crossover.heed_retry_after($1, $2, $3, $4, $5, $6)")
            .bind(worker)
            .bind(told.iter().map(|told| told.id).collect::<Vec<_>>())
            .bind(told.iter().map(|told| told.attempt).collect::<Vec<_>>())
            .bind(told.iter().map(|told| told.task.map(|place| place.rank)).collect::<Vec<_>>())
            .bind(told.iter().map(|told| told.task.map(|place| place.vt)).collect::<Vec<_>>())
            .bind(told.iter().map(|told| told.wait_ms).collect::<Vec<_>>());
        within(heeded.execute(&self.pool)).await.map(drop)
    }

    /// The groups that have a cap, and what waits in them.
    pub async fn capped(&self) -> Result<Vec<Capped>, LedgerError> {
        within(sqlx::query_as("select * from crossover.capped_groups()").fetch_all(&self.pool)).await
    }

    /// All of them, or one.
    pub async fn list(&self, name: Option<&str>) -> Result<Vec<Group>, LedgerError> {
        if let Some(name) = name {
            let one = sqlx::query_as(sqlx::AssertSqlSafe(format!("{SHOWN} where g.grp = $1")));
            return within(one.bind(name).fetch_all(&self.pool)).await;
        }
        let mut all: Vec<Group> = Vec::new();
        loop {
            let page = self.page(all.last().map_or("", |last| last.name.as_str()), PAGE).await?;
            let last = page.len() < PAGE as usize;
            all.extend(page);
            if last {
                return Ok(all);
            }
        }
    }

    /// At most `limit` of them that come after this name.
    pub async fn page(&self, after: &str, limit: u32) -> Result<Vec<Group>, LedgerError> {
        let groups = sqlx::query_as(sqlx::AssertSqlSafe(format!("{SHOWN} where g.grp > $1 order by g.grp limit $2")));
        within(groups.bind(after).bind(i64::from(limit)).fetch_all(&self.pool)).await
    }

    /// What is wrong with limits, whatever their group is called.
    pub async fn faults(&self, limits: &Map<String, Value>) -> Result<Vec<String>, LedgerError> {
        let limits = Value::Object(limits.clone()).to_string();
        let faults = sqlx::query_scalar("select crossover.group_faults('named', $1::jsonb)").bind(limits);
        within(faults.fetch_all(&self.pool)).await
    }

    /// The groups that have limits, and how far each has come in its virtual time.
    pub async fn virtual_times(&self) -> Result<Vec<(String, i64)>, LedgerError> {
        within(sqlx::query_as("select grp, vt from crossover.groups where gated").fetch_all(&self.pool)).await
    }

    /// Sets the limits that are named, null for none; the others stay. Refused with every fault.
    pub async fn set(&self, name: &str, limits: &Map<String, Value>, who: &str) -> Result<(), LedgerError> {
        let limits = Value::Object(limits.clone()).to_string();
        let set = sqlx::query("select crossover.set_group($1, $2::jsonb, $3)").bind(name).bind(limits).bind(who);
        within(set.execute(&self.pool)).await.map(drop)
    }

    /// Lets nothing of it start.
    pub async fn pause(&self, name: &str, reason: &str, who: &str) -> Result<(), LedgerError> {
        let paused = sqlx::query("select crossover.pause_group($1, $2, $3)").bind(name).bind(reason).bind(who);
        within(paused.execute(&self.pool)).await.map(drop)
    }

    /// Lets it go on.
    pub async fn resume(&self, name: &str, who: &str) -> Result<(), LedgerError> {
        let resumed = sqlx::query("select crossover.resume_group($1, $2)").bind(name).bind(who);
        within(resumed.execute(&self.pool)).await.map(drop)
    }

    /// Takes its limits and its pause away. False: it had none.
    pub async fn unset(&self, name: &str) -> Result<bool, LedgerError> {
        within(sqlx::query_scalar("select crossover.unset_group($1)").bind(name).fetch_one(&self.pool)).await
    }

    /// The weights, the latest first.
    pub async fn weights(&self) -> Result<Vec<Weight>, LedgerError> {
        let weights = sqlx::query_as("select * from crossover.account_weights order by changed_at desc limit $1");
        within(weights.bind(WEIGHTS).fetch_all(&self.pool)).await
    }

    /// Says what an account counts; none: as much as any other.
    pub async fn weigh(&self, account: &str, weight: Option<f64>, who: &str) -> Result<(), LedgerError> {
        let set = sqlx::query("select crossover.set_weight($1, $2, $3)").bind(account).bind(weight).bind(who);
        within(set.execute(&self.pool)).await.map(drop)
    }
}
