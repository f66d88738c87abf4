//! The SQL of the schedules and of what became of their times.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::postgres::types::PgInterval;
use sqlx::{FromRow, PgConnection, PgPool, Postgres, Row, Transaction};
use uuid::Uuid;

use super::definition::Definition;
use super::plan::{Skipped, Standing, passed_over};
use super::times::{Spec, Times, jittered};
use crate::interaction::{Payload, Side};
use crate::ledger::{LedgerError, within};
use crate::policy::Policy;

/// The schedules in Postgres. Cheap to clone.
#[derive(Clone)]
pub struct Schedules {
    pool: PgPool,
}

/// A schedule and what has become of it.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Which.
    pub id: Uuid,
    /// What it is.
    pub definition: Definition,
    /// Counts what people changed.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub changed_at: DateTime<Utc>,
    /// By whom.
    pub changed_by: String,
    /// Since when it is paused.
    pub paused: Option<Pause>,
    /// When a scheduler looks at it next.
    pub wake_at: Option<DateTime<Utc>>,
    /// The next nominal time, where it is known.
    pub nominal: Option<DateTime<Utc>>,
    /// The last nominal time that was enqueued.
    pub last_nominal: Option<DateTime<Utc>>,
    /// The last run.
    pub last_run: Option<Uuid>,
    /// When that was enqueued.
    pub last_run_at: Option<DateTime<Utc>>,
    /// Runs that had not ended when it was last looked at.
    pub unended: Vec<Uuid>,
    /// What was triggered and is not enqueued yet.
    pub triggers: Vec<String>,
    /// Why it can't be fired, for so many tries.
    pub trouble: Option<String>,
    /// How many tries.
    pub failures: i32,
}

/// Why a schedule does not fire.
#[derive(Debug, Clone, Serialize, utoipa::ToSchema)]
pub struct Pause {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Who paused it.
    pub by: String,
    /// Why.
    pub reason: String,
}

/// A schedule that is due, locked until the transaction ends.
#[derive(Debug)]
pub struct Taken {
    /// The schedule.
    pub schedule: Schedule,
    /// The database's clock.
    pub now: DateTime<Utc>,
    /// Its runs that have not ended.
    pub unended: Vec<Uuid>,
    /// Those of them that nobody has cancelled.
    pub uncancelled: Vec<Uuid>,
    /// When the last one ended, where times count from that.
    pub last_end: Option<DateTime<Utc>>,
}

/// What became of a schedule that was taken.
#[derive(Debug, Serialize)]
pub struct Settled {
    /// Which.
    pub id: Uuid,
    /// When to look again.
    pub wake_at: Option<DateTime<Utc>>,
    /// The next nominal time.
    pub nominal_at: Option<DateTime<Utc>>,
    /// The last one that was enqueued, where one was.
    pub last_nominal_at: Option<DateTime<Utc>>,
    /// Its interaction.
    pub last_run: Option<Uuid>,
    /// Its unended runs.
    pub unended: Vec<Uuid>,
    /// Triggers that wait on.
    pub triggers: Vec<String>,
}

/// What became of a nominal time, of several in a row, or of a trigger.
#[derive(Debug, Clone, Serialize, FromRow, utoipa::ToSchema)]
pub struct RunRow {
    /// Of which schedule.
    pub schedule_id: Uuid,
    /// When that was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<DateTime<Utc>>,
    /// The nominal time, or the first of several; absent for a trigger.
    pub nominal_at: Option<DateTime<Utc>>,
    /// The last of several.
    pub nominal_to: Option<DateTime<Utc>>,
    /// How many; by a clock, 100 may be more.
    pub times: i64,
    /// `enqueued`, `skipped` or `failed`.
    pub outcome: String,
    /// Why, where it was not enqueued.
    pub reason: Option<String>,
    /// The run, where it was.
    pub interaction: Option<Uuid>,
    /// Its key.
    pub key: Option<String>,
    /// Whose scheduler came first with it, `postgres` or `temporal`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ticked_by: Option<String>,
    /// When Temporal's scheduler came with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal_at: Option<DateTime<Utc>>,
}

/// What a person wants of a schedule.
#[derive(Debug, Clone)]
pub enum Wish {
    /// It fires no more until it is resumed.
    Pause(String),
    /// It fires again.
    Resume,
    /// It is another from now on.
    Become(Box<Definition>),
}

impl Wish {
    /// For logs, which must not hold payloads.
    pub fn name(&self) -> &'static str {
        match self {
            Wish::Pause(_) => "pause",
            Wish::Resume => "resume",
            Wish::Become(_) => "change",
        }
    }
}

/// Which schedules are listed.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Of this account.
    pub account: Option<String>,
    /// Of this kind.
    pub kind: Option<String>,
    /// Paused or not.
    pub paused: Option<bool>,
    /// After this account and name.
    pub after: Option<(String, String)>,
    /// At most so many.
    pub limit: i64,
}

/// A page of schedules.
#[derive(Debug, Default)]
pub struct Listed {
    /// By account and name.
    pub schedules: Vec<Schedule>,
    /// Those among them that can't be read.
    pub unreadable: Vec<Unreadable>,
    /// The last of both, where more may follow.
    pub last: Option<Uuid>,
}

/// A schedule that this version can't read: somebody wrote it by hand, or another version did. It is not fired.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct Unreadable {
    /// Names it.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// Unique within the account.
    pub name: String,
    /// The type of work.
    pub kind: String,
    /// What is wrong with it.
    pub reason: String,
}

/// How the schedules stand as a whole.
#[derive(Debug, Clone, Copy, Default, FromRow)]
pub struct Counts {
    /// Overdue by now.
    pub due: i64,
    /// Paused.
    pub paused: i64,
    /// In trouble.
    pub troubled: i64,
    /// By how much the longest overdue one is.
    pub oldest_seconds: f64,
}

/// What came of making a schedule.
#[derive(Debug)]
pub enum Made {
    /// It is there now.
    Created(Schedule),
    /// There is one of this name in the account.
    Exists(Schedule),
}

/// What came of a wish.
#[derive(Debug)]
pub enum Granted {
    /// So it stands now.
    Done(Box<Schedule>),
    /// Somebody else changed it: this is its version.
    Version(i64),
    /// There is none.
    Unknown,
}

/// So many triggers wait at most.
const MOST_TRIGGERS: i32 = 100;

impl Schedules {
    /// The schedules behind a pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// What the database's clock says.
    pub async fn now(&self) -> Result<DateTime<Utc>, LedgerError> {
        within(sqlx::query_scalar("select clock_timestamp()").fetch_one(&self.pool)).await
    }

    /// Makes a schedule, unless its account has one of its name; `mirrored`: Temporal is to have it, too.
    pub async fn create(
        &self,
        definition: &Definition,
        times: &Times,
        now: DateTime<Utc>,
        who: &str,
        mirrored: bool,
    ) -> Result<Made, LedgerError> {
        let id = Uuid::new_v4();
        let nominal = times.after(now);
        let wake_at = nominal.map(|nominal| jittered(id, nominal, TimeDelta::milliseconds(definition.jitter_ms)));
        let insert = sqlx::query(
            "with made as (
                insert into crossover.schedules as s (id, nominal_at, wake_at, changed_by, account, name, kind, series, grp, priority,
                    payload, policy, spec, overlap, catch_up, window_ms, jitter_ms)
                values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::json, $12::json, $13::json, $14, $15, $16, $17)
                on conflict (account, name) do nothing
                returning s.*, payload::text as payload_text, policy::text as policy_text, spec::text as spec_text),
             mirrored as (insert into crossover.schedule_mirrors (schedule_id, wanted) select id, true from made where $18)
             select * from made",
        );
        let insert =
            insert.bind(id).bind(nominal).bind(wake_at).bind(who).bind(&definition.account).bind(&definition.name);
        let insert = bind(insert.bind(&definition.kind), definition)?.bind(mirrored);
        if let Some(row) = within(insert.fetch_optional(&self.pool)).await? {
            return Ok(Made::Created(read(&row)?));
        }
        let there = select("s.account = $1 and s.name = $2");
        let there = sqlx::query(sqlx::AssertSqlSafe(there)).bind(&definition.account).bind(&definition.name);
        Ok(Made::Exists(read(&within(there.fetch_one(&self.pool)).await?)?))
    }

    /// One schedule.
    pub async fn get(&self, id: Uuid) -> Result<Option<Schedule>, LedgerError> {
        let row =
            within(sqlx::query(sqlx::AssertSqlSafe(select("s.id = $1"))).bind(id).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(read).transpose()?)
    }

    /// One schedule, by its name.
    pub async fn find(&self, account: &str, name: &str) -> Result<Option<Schedule>, LedgerError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(select("s.account = $1 and s.name = $2")));
        let row = within(row.bind(account).bind(name).fetch_optional(&self.pool)).await?;
        Ok(row.as_ref().map(read).transpose()?)
    }

    /// The account and name of a schedule, which is all that a page needs of the one before.
    pub async fn name(&self, id: Uuid) -> Result<Option<(String, String)>, LedgerError> {
        let named = sqlx::query_as("select account, name from crossover.schedules where id = $1").bind(id);
        within(named.fetch_optional(&self.pool)).await
    }

    /// A page of schedules, by account and name. One that can't be read hides none of the others.
    pub async fn list(&self, page: &Page) -> Result<Listed, LedgerError> {
        let sql = select(
            "($1::text is null or s.account = $1) and ($2::text is null or s.kind = $2)
             and ($3::bool is null or (s.paused_at is not null) = $3)
             and ($4::text is null or (s.account, s.name) > ($4, $5))
             order by s.account, s.name limit $6",
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(&page.account).bind(&page.kind).bind(page.paused);
        let (account, name) = page.after.as_ref().map(|(account, name)| (account, name)).unzip();
        let rows = within(rows.bind(account).bind(name).bind(page.limit).fetch_all(&self.pool)).await?;
        let last = rows.last().filter(|_| rows.len() as i64 == page.limit).map(|row| row.try_get("id")).transpose()?;
        let mut listed = Listed { last, ..Listed::default() };
        for row in &rows {
            match read(row) {
                Ok(schedule) => listed.schedules.push(schedule),
                Err(error) => listed.unreadable.push(unreadable(row, &error)?),
            }
        }
        Ok(listed)
    }

    /// What became of the last `limit` times of a schedule, latest first.
    pub async fn runs(&self, id: Uuid, limit: i64) -> Result<Vec<RunRow>, LedgerError> {
        let rows =
            sqlx::query_as("select * from crossover.schedule_runs where schedule_id = $1 order by no desc limit $2");
        within(rows.bind(id).bind(limit).fetch_all(&self.pool)).await
    }

    /// Grants a wish, unless the schedule has another version than the caller has seen. A scheduler that is at it is waited for.
    pub async fn grant(&self, id: Uuid, version: Option<i64>, wish: &Wish, who: &str) -> Result<Granted, LedgerError> {
        within(async {
            let mut transaction = self.pool.begin().await?;
            let sql = select("s.id = $1 for update of s");
            let Some(row) = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&mut *transaction).await?
            else {
                return Ok(Granted::Unknown);
            };
            let schedule = read(&row)?;
            if version.is_some_and(|version| version != schedule.version) {
                return Ok(Granted::Version(schedule.version));
            }
            let now: DateTime<Utc> =
                sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *transaction).await?;
            let granted = apply(&mut transaction, schedule, wish, who, now).await?;
            transaction.commit().await?;
            Ok(Granted::Done(Box::new(granted)))
        })
        .await
    }

    /// Deletes a schedule; what it has enqueued stays. False: there is none.
    pub async fn delete(&self, id: Uuid) -> Result<bool, LedgerError> {
        let deleted = sqlx::query("delete from crossover.schedules where id = $1").bind(id).execute(&self.pool);
        Ok(within(deleted).await?.rows_affected() > 0)
    }

    /// Asks for a run now, under a token that is taken once. `asked`, `known` or `full`; none: there is no such schedule.
    pub async fn trigger(&self, id: Uuid, token: &str) -> Result<Option<String>, LedgerError> {
        let asked = sqlx::query_scalar("select crossover.trigger_schedule($1, $2, $3)");
        within(asked.bind(id).bind(token).bind(MOST_TRIGGERS).fetch_one(&self.pool)).await
    }

    /// Begins the transaction of a look.
    pub async fn begin(&self) -> Result<Transaction<'static, Postgres>, LedgerError> {
        within(self.pool.begin()).await
    }

    /// Takes up to `limit` schedules that are due, the last of them once `bytes` of payloads are had; of one that can't be read,
    /// its id and why.
    pub async fn take(
        &self,
        connection: &mut PgConnection,
        limit: i32,
        bytes: i64,
    ) -> Result<Vec<Result<Taken, (Uuid, String)>>, LedgerError> {
        let rows = sqlx::query(
            "select (t.schedule).*, (t.schedule).payload::text as payload_text, (t.schedule).policy::text as policy_text,
                (t.schedule).spec::text as spec_text, t.now, t.unended_now, t.uncancelled, t.last_end
             from crossover.take_schedules($1, $2) t",
        );
        let rows = within(rows.bind(limit).bind(bytes).fetch_all(connection)).await?;
        let read = |row: &PgRow| {
            let id = row.try_get("id")?;
            Ok(taken(row).map_err(|error| (id, format!("it can't be read: {error}"))))
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }

    /// Takes one schedule, due or not, and waits for whoever has it; none: there is none. And which wish Temporal is to have of it.
    pub async fn take_one(
        &self,
        connection: &mut PgConnection,
        id: Uuid,
    ) -> Result<Option<(Result<Taken, String>, Option<i64>)>, LedgerError> {
        let row = sqlx::query(
            "select (t.schedule).*, (t.schedule).payload::text as payload_text, (t.schedule).policy::text as policy_text,
                (t.schedule).spec::text as spec_text, t.now, t.unended_now, t.uncancelled, t.last_end, t.wish
             from crossover.take_schedule($1) t",
        );
        let row = within(row.bind(id).fetch_optional(connection)).await?;
        let Some(row) = row else { return Ok(None) };
        let wish = row.try_get("wish").map_err(LedgerError::from)?;
        Ok(Some((taken(&row).map_err(|error| format!("it can't be read: {error}")), wish)))
    }

    /// Notes when Temporal's scheduler came with a time that ours had come with before.
    pub async fn note_tick(&self, id: Uuid, nominal: DateTime<Utc>, at: DateTime<Utc>) -> Result<(), LedgerError> {
        let note = sqlx::query("select crossover.note_schedule_tick($1, $2, $3)").bind(id).bind(nominal).bind(at);
        within(note.execute(&self.pool)).await.map(drop)
    }

    /// Writes down what became of what was taken.
    pub async fn settle(
        &self,
        connection: &mut PgConnection,
        schedules: &[Settled],
        runs: &[RunRow],
    ) -> Result<(), LedgerError> {
        let settled = sqlx::query("select crossover.settle_schedules($1, $2)");
        within(settled.bind(sqlx::types::Json(schedules)).bind(sqlx::types::Json(runs)).execute(connection)).await?;
        Ok(())
    }

    /// Looks at schedules that can't be fired later.
    pub async fn postpone(
        &self,
        connection: &mut PgConnection,
        troubles: &[(Uuid, String)],
    ) -> Result<(), LedgerError> {
        let (ids, troubles): (Vec<Uuid>, Vec<&str>) = troubles.iter().map(|(id, why)| (*id, why.as_str())).unzip();
        let postponed = sqlx::query("select crossover.postpone_schedules($1, $2)").bind(ids).bind(troubles);
        within(postponed.execute(connection)).await?;
        Ok(())
    }

    /// The same in a transaction of its own.
    pub async fn postpone_one(&self, id: Uuid, trouble: &str) -> Result<(), LedgerError> {
        let mut connection = within(self.pool.acquire()).await?;
        self.postpone(&mut connection, &[(id, trouble.to_owned())]).await
    }

    /// In how long the next one is due; none where none is.
    pub async fn next_in(&self) -> Result<Option<Duration>, LedgerError> {
        let seconds: Option<f64> = within(
            sqlx::query_scalar(
                "select extract(epoch from (select min(wake_at) from crossover.schedules where wake_at is not null) - clock_timestamp())::float8",
            )
            .fetch_one(&self.pool),
        )
        .await?;
        Ok(seconds.map(|seconds| Duration::from_secs_f64(seconds.clamp(0.0, 86_400.0))))
    }

    /// Forgets what became of times that are older than `keep`, at most `limit`.
    pub async fn forget_runs(&self, keep: Duration, limit: i32) -> Result<i64, LedgerError> {
        let keep = PgInterval { months: 0, days: 0, microseconds: keep.as_micros() as i64 };
        let forgotten = sqlx::query_scalar("select crossover.forget_schedule_runs($1, $2)").bind(keep).bind(limit);
        within(forgotten.fetch_one(&self.pool)).await
    }

    /// How the schedules stand as a whole.
    pub async fn counts(&self) -> Result<Counts, LedgerError> {
        let counts = sqlx::query_as(
            "select count(*) filter (where wake_at <= statement_timestamp()) as due,
                (select count(*) from crossover.schedules where paused_at is not null) as paused,
                count(*) filter (where failures > 0) as troubled,
                greatest(0, coalesce(extract(epoch from statement_timestamp() - min(wake_at)), 0))::float8 as oldest_seconds
             from crossover.schedules where wake_at <= statement_timestamp() + interval '5 minutes'",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}

impl Taken {
    /// How it stands, for a plan of at most `most` runs.
    pub fn standing<'a>(&'a self, times: &'a Times, most: usize) -> Standing<'a> {
        let schedule = &self.schedule;
        Standing {
            id: schedule.id,
            times,
            overlap: schedule.definition.overlap,
            catch_up: schedule.definition.catch_up,
            window: TimeDelta::milliseconds(schedule.definition.catch_up_window_ms),
            jitter: TimeDelta::milliseconds(schedule.definition.jitter_ms),
            nominal: schedule.nominal,
            triggers: &schedule.triggers,
            unended: self.unended.len(),
            cancelling: self.uncancelled.is_empty(),
            last_at: schedule.last_run_at,
            last_end: self.last_end,
            paused: schedule.paused.is_some(),
            most,
            now: self.now,
        }
    }
}

impl RunRow {
    /// What was skipped; whose scheduler came with it, where one did.
    pub fn skipped(schedule_id: Uuid, skipped: &Skipped, ticked_by: Option<Side>) -> Self {
        Self {
            schedule_id,
            at: None,
            nominal_at: skipped.from,
            nominal_to: skipped.to.filter(|to| Some(*to) != skipped.from),
            times: skipped.times,
            outcome: "skipped".to_owned(),
            reason: Some(skipped.reason.as_str().to_owned()),
            interaction: None,
            key: None,
            ticked_by: ticked_by.map(|side| side.as_str().to_owned()),
            temporal_at: None,
        }
    }
}

/// What a wish does to a schedule whose row is locked.
async fn apply(
    connection: &mut PgConnection,
    schedule: Schedule,
    wish: &Wish,
    who: &str,
    now: DateTime<Utc>,
) -> Result<Schedule, sqlx::Error> {
    let definition = match wish {
        Wish::Become(definition) => definition,
        _ => &schedule.definition,
    };
    let times = definition
        .spec
        .read()
        .map_err(|faults| sqlx::Error::Decode(format!("its spec can't be read: {faults:?}").into()))?;
    let (nominal, skipped) = next_after_wish(&schedule, definition, &times, wish, now);
    let paused = match wish {
        Wish::Pause(reason) => Some((now, who, reason.as_str())),
        Wish::Resume => None,
        Wish::Become(_) => {
            schedule.paused.as_ref().map(|pause| (pause.since, pause.by.as_str(), pause.reason.as_str()))
        }
    };
    let waits = definition.overlap == super::plan::Overlap::AfterLast && nominal.is_none();
    let jitter = TimeDelta::milliseconds(definition.jitter_ms);
    let wake_at = match (paused.is_some(), nominal) {
        _ if !schedule.triggers.is_empty() || (waits && paused.is_none()) => Some(now),
        (true, _) => None,
        (false, nominal) => nominal.map(|nominal| jittered(schedule.id, nominal, jitter)),
    };
    if let Some(skipped) = skipped {
        let runs = [RunRow::skipped(schedule.id, &skipped, None)];
        sqlx::query("select crossover.settle_schedules('[]', $1)")
            .bind(sqlx::types::Json(&runs[..]))
            .execute(&mut *connection)
            .await?;
    }
    let update = sqlx::query(
        "update crossover.schedules s set nominal_at = $2, wake_at = $3, changed_by = $4, changed_at = clock_timestamp(),
            version = version + 1, paused_at = $5, paused_by = $6, pause_reason = $7,
            series = $8, grp = $9, priority = $10, payload = $11::json, policy = $12::json, spec = $13::json, overlap = $14,
            catch_up = $15, window_ms = $16, jitter_ms = $17
         where id = $1 returning s.*, payload::text as payload_text, policy::text as policy_text, spec::text as spec_text",
    );
    let update = update.bind(schedule.id).bind(nominal).bind(wake_at).bind(who);
    let update = update.bind(paused.map(|p| p.0)).bind(paused.map(|p| p.1)).bind(paused.map(|p| p.2));
    read(&bind(update, definition)?.fetch_one(connection).await?)
}

/// The next nominal time once a wish is granted, and what is skipped by that. What was due before a change still runs, as it
/// is now; what passes while it is paused does not.
fn next_after_wish(
    schedule: &Schedule,
    definition: &Definition,
    times: &Times,
    wish: &Wish,
    now: DateTime<Utc>,
) -> (Option<DateTime<Utc>>, Option<Skipped>) {
    match wish {
        Wish::Pause(_) => (schedule.nominal, None),
        Wish::Resume if schedule.paused.is_some() => {
            let (skipped, nominal) = passed_over(times, schedule.nominal, now);
            // It lies further away than the next one where the clock was ahead and has been set back.
            let by_clock = definition.overlap != super::plan::Overlap::AfterLast;
            let nearer = times.after(now).filter(|next| by_clock && nominal.is_some_and(|nominal| nominal > *next));
            (nearer.or(nominal), skipped)
        }
        Wish::Resume => (schedule.nominal, None),
        Wish::Become(_) => {
            let same = definition.spec == schedule.definition.spec && definition.overlap == schedule.definition.overlap;
            let due = schedule.paused.is_none() && schedule.nominal.is_some_and(|nominal| nominal <= now);
            (if same || due { schedule.nominal } else { times.after(now) }, None)
        }
    }
}

fn select(which: &str) -> String {
    format!(
        "select s.*, s.payload::text as payload_text, s.policy::text as policy_text, s.spec::text as spec_text
         from crossover.schedules s where {which}"
    )
}

type Query<'q> = sqlx::query::Query<'q, Postgres, sqlx::postgres::PgArguments>;

/// Binds what all of a definition's writers bind, from `series` on.
fn bind<'q>(query: Query<'q>, definition: &'q Definition) -> Result<Query<'q>, sqlx::Error> {
    let policy = serde_json::to_string(&definition.policy).map_err(|e| sqlx::Error::Encode(e.into()))?;
    let spec = serde_json::to_string(&definition.spec).map_err(|e| sqlx::Error::Encode(e.into()))?;
    let query = query.bind(&definition.series).bind(&definition.group).bind(definition.priority);
    let query = query.bind(definition.payload.get()).bind(policy).bind(spec);
    let query = query.bind(definition.overlap.as_str()).bind(definition.catch_up.as_str());
    Ok(query.bind(definition.catch_up_window_ms).bind(definition.jitter_ms))
}

fn taken(row: &PgRow) -> Result<Taken, sqlx::Error> {
    Ok(Taken {
        schedule: read(row)?,
        now: row.try_get("now")?,
        unended: row.try_get("unended_now")?,
        uncancelled: row.try_get("uncancelled")?,
        last_end: row.try_get("last_end")?,
    })
}

fn unreadable(row: &PgRow, error: &sqlx::Error) -> Result<Unreadable, sqlx::Error> {
    let reason = crate::executor::clean(&format!("it can't be read: {error}"));
    let (id, account) = (row.try_get("id")?, row.try_get("account")?);
    Ok(Unreadable { id, account, name: row.try_get("name")?, kind: row.try_get("kind")?, reason })
}

pub(super) fn read(row: &PgRow) -> Result<Schedule, sqlx::Error> {
    let broken = |error: serde_json::Error| sqlx::Error::Decode(error.into());
    let (policy, spec): (String, String) = (row.try_get("policy_text")?, row.try_get("spec_text")?);
    let policy: Policy = serde_json::from_str(&policy).map_err(broken)?;
    let spec: Spec = serde_json::from_str(&spec).map_err(broken)?;
    let pause = |since| {
        Ok::<_, sqlx::Error>(Pause { since, by: row.try_get("paused_by")?, reason: row.try_get("pause_reason")? })
    };
    Ok(Schedule {
        id: row.try_get("id")?,
        definition: Definition {
            account: row.try_get("account")?,
            name: row.try_get("name")?,
            kind: row.try_get("kind")?,
            payload: Payload::parse(row.try_get("payload_text")?).map_err(broken)?,
            series: row.try_get("series")?,
            group: row.try_get("grp")?,
            priority: row.try_get("priority")?,
            policy,
            spec,
            overlap: crate::ledger::named(row, "overlap")?.ok_or(sqlx::Error::RowNotFound)?,
            catch_up: crate::ledger::named(row, "catch_up")?.ok_or(sqlx::Error::RowNotFound)?,
            catch_up_window_ms: row.try_get("window_ms")?,
            jitter_ms: row.try_get("jitter_ms")?,
        },
        version: row.try_get("version")?,
        created_at: row.try_get("created_at")?,
        changed_at: row.try_get("changed_at")?,
        changed_by: row.try_get("changed_by")?,
        paused: row.try_get::<Option<DateTime<Utc>>, _>("paused_at")?.map(pause).transpose()?,
        wake_at: row.try_get("wake_at")?,
        nominal: row.try_get("nominal_at")?,
        last_nominal: row.try_get("last_nominal_at")?,
        last_run: row.try_get("last_run")?,
        last_run_at: row.try_get("last_run_at")?,
        unended: row.try_get("unended")?,
        triggers: row.try_get("triggers")?,
        trouble: row.try_get("trouble")?,
        failures: row.try_get("failures")?,
    })
}
