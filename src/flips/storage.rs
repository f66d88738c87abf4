//! The SQL of routers, flips, overrides, standings and decisions.

use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgPool, Row};
use uuid::Uuid;

use crate::arming::Report;
use crate::interaction::Stage;
use crate::ledger::LedgerError;

/// Where flips, routers and decisions are kept. Cheap to clone.
#[derive(Clone)]
pub struct FlipStore {
    pool: PgPool,
}

/// What a process says of itself.
pub(super) struct Beat<'a> {
    pub(super) id: Uuid,
    pub(super) name: &'a str,
    pub(super) roles: &'a [&'static str],
    pub(super) revision: &'a str,
    pub(super) good_at: DateTime<Utc>,
    pub(super) overrides: &'a [i64],
    pub(super) report: Report,
}

/// A flip that a router has not acknowledged.
#[derive(Debug, Clone, FromRow)]
pub struct Asked {
    /// The flip.
    pub id: Uuid,
    /// The account.
    pub account: String,
    /// The kinds that have to stand there; an empty one is every kind without a name of its own.
    pub kinds: Vec<String>,
    /// The stage that it waits for.
    pub to_stage: String,
}

/// Where an account and kind stands; an empty kind is every kind without a row.
#[derive(Debug, Clone)]
pub(super) struct Standing {
    pub(super) account: String,
    pub(super) kind: String,
    pub(super) stage: Stage,
    pub(super) override_id: Option<i64>,
    pub(super) revision: String,
}

pub(super) struct Change {
    pub(super) before: Standing,
    pub(super) after: Standing,
}

/// What an operator asks for.
#[derive(Debug, Clone)]
pub struct NewFlip {
    /// The account.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// Where it stands.
    pub from: Stage,
    /// Every kind that is meant, and where it stands; an empty one is every kind without a name of its own.
    pub kinds: Vec<(String, Stage)>,
    /// Where it is to stand.
    pub to: Stage,
    /// What the change will be called, where that is known.
    pub revision: Option<String>,
    /// Who asks.
    pub who: String,
    /// Why.
    pub why: Option<String>,
    /// Routers acknowledge it for so long.
    pub within: Duration,
}

/// A router in the registry.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct RouterRow {
    /// Its id.
    pub id: Uuid,
    /// Its name: machine, process, address.
    pub name: String,
    /// Since when.
    pub started_at: DateTime<Utc>,
    /// Seconds since its last beat.
    pub silent_seconds: f64,
    /// The flags in force there.
    pub revision: String,
    /// Since when.
    pub seen_at: DateTime<Utc>,
    /// Seconds since their source last confirmed them.
    pub flags_age_seconds: f64,
    /// The overrides in force there.
    pub overrides: Vec<i64>,
    /// What the process does: `router`, `worker`.
    pub roles: Vec<String>,
    /// While Postgres is away it may start work without a pin, or it still has such work to write.
    pub fails_open: bool,
    /// Its starts without a pin whose outcome is in doubt.
    pub in_doubt: i32,
    /// Its starts that are not written yet.
    pub spooled: i64,
    /// Why it can't acknowledge the accounts' states.
    pub trouble: Option<String>,
    /// Seconds until its disk is too old for it to start again without Postgres, if it stays silent; negative: it is. Absent:
    /// a version that goes by its disk for ever.
    pub disk_holds_seconds: Option<f64>,
    /// Milliseconds from the flip to this router's acknowledgement, where it was asked for one and has given it.
    pub acknowledged_ms: Option<f64>,
}

impl RouterRow {
    /// Whether it decides stages; other processes are registered because they run work on Temporal.
    pub fn decides(&self) -> bool {
        self.roles.iter().any(|role| role == "router")
    }
}

/// What came of forgetting a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgetting {
    /// It is taken out.
    Forgotten,
    /// There is none, or it has ended.
    Unknown,
    /// Nothing was changed: it could start again by its disk.
    DiskHolds,
}

/// A new override.
#[derive(Debug, Clone)]
pub struct NewOverride {
    /// The account.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// Where it is to stand.
    pub stage: Stage,
    /// For how long, at most a day.
    pub lasts: Duration,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// An override in force.
#[derive(Debug, Clone, Serialize)]
pub struct OverrideRow {
    /// Its id.
    pub id: i64,
    /// The account.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// The stage.
    pub stage: Stage,
    /// When it ends.
    pub until_at: DateTime<Utc>,
    /// Milliseconds left by the database's clock.
    pub remaining_ms: i64,
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// A change of a stage.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct DecisionRow {
    /// When a router saw it first.
    pub at: DateTime<Utc>,
    /// The account.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// The stage before.
    #[serde(rename = "from")]
    pub from_stage: String,
    /// The stage since.
    #[serde(rename = "to")]
    pub to_stage: String,
    /// The flags or the override that say so.
    pub revision: String,
    /// `file`, `unleash` or `override`.
    pub source: String,
    /// The router that wrote it.
    pub router: Option<String>,
    /// Who, where it was a command.
    pub who: Option<String>,
    /// Why, where it was said.
    pub why: Option<String>,
}

/// Which decisions.
#[derive(Debug, Clone, Default)]
pub struct DecisionFilter {
    /// Of one account.
    pub account: Option<String>,
    /// So young.
    pub since: Option<Duration>,
    /// At most so many, the latest.
    pub limit: i64,
}

/// An interaction, as decisions bear on it: the last of its account and kind before its pin, and those until its end.
#[derive(Debug, Clone, Copy)]
pub struct Bearing<'a> {
    /// Its account.
    pub account: &'a str,
    /// Its kind.
    pub kind: &'a str,
    /// The flags that it was pinned by.
    pub revision: &'a str,
    /// When that was.
    pub pinned_at: DateTime<Utc>,
    /// When it ended, if it has.
    pub ended_at: Option<DateTime<Utc>>,
}

/// A call that takes longer is given up: the next one comes soon.
const PATIENCE: Duration = Duration::from_secs(2);

/// For thousands of rows at once.
const PATIENCE_FOR_MANY: Duration = Duration::from_secs(20);

async fn within<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    bounded(PATIENCE, call).await
}

async fn bounded<T>(patience: Duration, call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LedgerError::InDoubt(format!("no answer within {patience:?}"))),
    }
}

fn stage_of(text: &str) -> Result<Stage, sqlx::Error> {
    text.parse().map_err(|error| sqlx::Error::Decode(Box::new(error)))
}

impl FlipStore {
    /// On this pool.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// Registers a process or keeps it alive. Whether Postgres did not know it (so), and the flips that it has to acknowledge.
    pub(super) async fn beat(&self, beat: Beat<'_>) -> Result<(bool, Vec<Asked>), LedgerError> {
        let rows = sqlx::query(
            "select fresh, id, account, kinds, to_stage from crossover.process_beat($1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                $11 * interval '1 millisecond')",
        );
        let rows = rows
            .bind(beat.id)
            .bind(beat.name)
            .bind(beat.roles)
            .bind(beat.report.fails_open)
            .bind(beat.report.in_doubt.min(i32::MAX as usize) as i32)
            .bind(beat.report.spooled.min(i64::MAX as u64) as i64)
            .bind(beat.report.trouble)
            .bind(beat.revision)
            .bind(beat.good_at)
            .bind(beat.overrides)
            .bind(beat.report.disk_valid.as_millis() as i64)
            .fetch_all(&self.pool);
        let rows = within(rows).await?;
        let mut beaten = (false, Vec::new());
        for row in &rows {
            beaten.0 |= row.try_get::<bool, _>("fresh").map_err(LedgerError::from)?;
            if row.try_get::<Option<Uuid>, _>("id").map_err(LedgerError::from)?.is_some() {
                beaten.1.push(Asked::from_row(row).map_err(LedgerError::from)?);
            }
        }
        Ok(beaten)
    }

    /// Acknowledges flips; the seconds since each was asked for.
    pub(super) async fn acknowledge(
        &self,
        router: Uuid,
        flips: &[Uuid],
        revision: &str,
    ) -> Result<Vec<f64>, LedgerError> {
        let acks = sqlx::query_scalar(
            "with acked as (
                insert into crossover.flip_acks (flip, router, revision)
                select id, $1, $3 from crossover.flips where id = any ($2) on conflict do nothing returning flip, at)
             select extract(epoch from a.at - f.at)::float8 from acked a join crossover.flips f on f.id = a.flip",
        );
        within(acks.bind(router).bind(flips).bind(revision).fetch_all(&self.pool)).await
    }

    /// A process says goodbye, owing nothing; false: there is no such one, or it has ended.
    pub async fn deregister(&self, id: Uuid) -> Result<bool, LedgerError> {
        let ended =
            sqlx::query("update crossover.routers set ended_at = clock_timestamp() where id = $1 and ended_at is null");
        Ok(within(ended.bind(id).execute(&self.pool)).await?.rows_affected() > 0)
    }

    /// Takes out a process that did not say goodbye, if its disk is too old to be used, or `disk_gone`. What it may have
    /// started without a pin is not known: accounts that are not armed yet wait for a whole window.
    pub async fn forget(&self, id: Uuid, disk_gone: bool) -> Result<Forgetting, LedgerError> {
        let forgotten = sqlx::query_scalar::<_, String>("select crossover.forget_router($1, $2)");
        let answer = within(forgotten.bind(id).bind(disk_gone).fetch_one(&self.pool)).await?;
        Ok(match answer.as_str() {
            "forgotten" => Forgetting::Forgotten,
            "disk" => Forgetting::DiskHolds,
            _ => Forgetting::Unknown,
        })
    }

    /// The processes that have not ended, and what each says of `flip`.
    pub async fn routers(&self, flip: Option<Uuid>) -> Result<Vec<RouterRow>, LedgerError> {
        let rows = sqlx::query_as(
            "select r.id, r.name, r.started_at, r.revision, r.seen_at, r.overrides, r.roles, r.fails_open, r.in_doubt, r.spooled, r.trouble,
                greatest(extract(epoch from clock_timestamp() - r.good_at), 0)::float8 as flags_age_seconds,
                extract(epoch from clock_timestamp() - r.beat_at)::float8 as silent_seconds,
                extract(epoch from crossover.disk_void_at(r) - clock_timestamp())::float8 as disk_holds_seconds,
                extract(epoch from a.at - f.at)::float8 * 1000 as acknowledged_ms
             from crossover.routers r
             left join crossover.flips f on f.id = $1
             left join crossover.flip_acks a on a.flip = f.id and a.router = r.id
             where r.ended_at is null order by r.started_at",
        );
        within(rows.bind(flip).fetch_all(&self.pool)).await
    }

    /// Forgets routers that ended a week ago and flips of a month ago. Decisions stay.
    pub async fn tidy(&self) -> Result<(), LedgerError> {
        for old in [
            "delete from crossover.flips where until_at < clock_timestamp() - interval '30 days'",
            "delete from crossover.routers where ended_at < clock_timestamp() - interval '7 days'",
        ] {
            within(sqlx::query(old).execute(&self.pool)).await?;
        }
        Ok(())
    }

    /// Writes an operator's intent.
    pub async fn ask(&self, flip: &NewFlip) -> Result<Uuid, LedgerError> {
        let asked = sqlx::query_scalar(
            "insert into crossover.flips (until_at, account, kind, from_stage, to_stage, revision, who, why, kinds, froms)
             values (clock_timestamp() + $1 * interval '1 millisecond', $2, $3, $4, $5, $6, $7, $8, $9, $10) returning id",
        );
        let (kinds, froms): (Vec<&str>, Vec<&str>) =
            flip.kinds.iter().map(|(kind, stage)| (kind.as_str(), stage.as_str())).unzip();
        within(
            asked
                .bind(flip.within.as_millis() as i64)
                .bind(&flip.account)
                .bind(&flip.kind)
                .bind(flip.from.as_str())
                .bind(flip.to.as_str())
                .bind(&flip.revision)
                .bind(&flip.who)
                .bind(&flip.why)
                .bind(kinds)
                .bind(froms)
                .fetch_one(&self.pool),
        )
        .await
    }

    /// Notes where these stand of which nothing is known.
    pub(super) async fn know(&self, standings: &[Standing]) -> Result<(), LedgerError> {
        let c = Columns::of(standings.iter());
        let known = sqlx::query(
            "insert into crossover.standings (account, kind, stage, override, revision)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[]) on conflict do nothing",
        );
        bounded(
            PATIENCE_FOR_MANY,
            known.bind(c.accounts).bind(c.kinds).bind(c.stages).bind(c.overrides).bind(c.revisions).execute(&self.pool),
        )
        .await
        .map(drop)
    }

    /// A page of what is known, by account and kind, behind the pair given.
    pub(super) async fn standings(
        &self,
        account: &str,
        kind: Option<&str>,
        limit: i64,
    ) -> Result<Vec<Standing>, LedgerError> {
        let rows = sqlx::query_as::<_, (String, String, String, Option<i64>, String)>(
            "select account, kind, stage, override, revision from crossover.standings
             where $2::text is null or (account, kind) > ($1, $2) order by account, kind limit $3",
        );
        let rows = bounded(PATIENCE_FOR_MANY, rows.bind(account).bind(kind).bind(limit).fetch_all(&self.pool)).await?;
        rows.into_iter()
            .map(|(account, kind, stage, override_id, revision)| {
                Ok(Standing { account, kind, stage: stage_of(&stage)?, override_id, revision })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(LedgerError::from)
    }

    /// Every account and kind that is known.
    pub async fn known(&self) -> Result<Vec<(String, String)>, LedgerError> {
        bounded(
            PATIENCE_FOR_MANY,
            sqlx::query_as("select account, kind from crossover.standings").fetch_all(&self.pool),
        )
        .await
    }

    /// Writes changes that nobody has written yet; the decisions made of them, by stage and source.
    pub(super) async fn change(
        &self,
        router: Uuid,
        changes: &[Change],
    ) -> Result<Vec<(String, String, i64)>, LedgerError> {
        let (before, after) =
            (Columns::of(changes.iter().map(|c| &c.before)), Columns::of(changes.iter().map(|c| &c.after)));
        let changed = sqlx::query_as("select * from crossover.change_standings($1, $2, $3, $4, $5, $6, $7, $8)");
        bounded(
            PATIENCE_FOR_MANY,
            changed
                .bind(router)
                .bind(before.accounts)
                .bind(before.kinds)
                .bind(before.stages)
                .bind(before.overrides)
                .bind(after.stages)
                .bind(after.overrides)
                .bind(after.revisions)
                .fetch_all(&self.pool),
        )
        .await
    }

    /// The latest decisions first.
    pub async fn decisions(&self, filter: &DecisionFilter) -> Result<Vec<DecisionRow>, LedgerError> {
        let rows = sqlx::query_as(
            "select d.at, d.account, d.kind, d.from_stage, d.to_stage, d.revision, d.source, r.name as router, d.who, d.why
             from crossover.decisions d left join crossover.routers r on r.id = d.router
             where ($1::text is null or d.account = $1)
                and ($2::bigint is null or d.at > clock_timestamp() - $2 * interval '1 millisecond')
             order by d.id desc limit $3",
        );
        let since = filter.since.map(|since| since.as_millis() as i64);
        within(rows.bind(&filter.account).bind(since).bind(filter.limit).fetch_all(&self.pool)).await
    }

    /// The decisions that bear on an interaction, in the order of time, at most `limit` and one.
    pub async fn bearing_on(&self, bearing: &Bearing<'_>, limit: i64) -> Result<Vec<DecisionRow>, LedgerError> {
        let rows = sqlx::query_as(
            "with theirs as not materialized (
                select * from crossover.decisions where account = $1 and (kind is null or kind = $2))
             select d.at, d.account, d.kind, d.from_stage, d.to_stage, d.revision, d.source, r.name as router, d.who, d.why
             from ((select * from theirs where at <= $4 order by at desc, id desc limit 1)
                union
                (select * from theirs where at > $4
                    -- A router goes by new flags a moment before it has written the decision down.
                    and (at <= coalesce($5, 'infinity') or revision = $3 and at <= $4 + interval '1 minute')
                 order by at, id limit $6)) d
             left join crossover.routers r on r.id = d.router order by d.at, d.id",
        );
        let Bearing { account, kind, revision, pinned_at, ended_at } = bearing;
        let rows = rows.bind(account).bind(kind).bind(revision).bind(pinned_at).bind(ended_at).bind(limit);
        within(rows.fetch_all(&self.pool)).await
    }

    /// The overrides in force.
    pub async fn overrides(&self) -> Result<Vec<OverrideRow>, LedgerError> {
        type Row = (i64, String, Option<String>, String, DateTime<Utc>, i64, String, String);
        let rows = sqlx::query_as::<_, Row>(
            "select id, account, kind, stage, until_at,
                (extract(epoch from until_at - clock_timestamp()) * 1000)::bigint, who, why
             from crossover.overrides where ended_at is null and until_at > clock_timestamp() order by id",
        );
        let rows = within(rows.fetch_all(&self.pool)).await?;
        rows.into_iter()
            .map(|(id, account, kind, stage, until_at, remaining_ms, who, why)| {
                Ok(OverrideRow { id, account, kind, stage: stage_of(&stage)?, until_at, remaining_ms, who, why })
            })
            .collect::<Result<_, sqlx::Error>>()
            .map_err(LedgerError::from)
    }

    /// Puts an override in force; none: another one is, for the same account and kind.
    pub async fn begin_override(&self, new: &NewOverride) -> Result<Option<i64>, LedgerError> {
        let begun =
            sqlx::query_scalar("select crossover.begin_override($1, $2, $3, $4 * interval '1 millisecond', $5, $6)");
        let begun = begun
            .bind(&new.account)
            .bind(&new.kind)
            .bind(new.stage.as_str())
            .bind(new.lasts.as_millis() as i64)
            .bind(&new.who)
            .bind(&new.why)
            .fetch_one(&self.pool);
        match within(begun).await {
            Err(LedgerError::Refused(sqlx::Error::Database(error))) if error.is_unique_violation() => Ok(None),
            other => other.map(Some),
        }
    }

    /// Ends the override of an account or of one of its kinds; its id, if there was one in force.
    pub async fn end_override(&self, account: &str, kind: Option<&str>, who: &str) -> Result<Option<i64>, LedgerError> {
        let ended = sqlx::query_scalar(
            "update crossover.overrides set ended_at = clock_timestamp(), ended_by = $3
             where account = $1 and kind is not distinct from $2 and ended_at is null and until_at > clock_timestamp()
             returning id",
        );
        within(ended.bind(account).bind(kind).bind(who).fetch_optional(&self.pool)).await
    }
}

/// Standings, column by column, as Postgres takes many at once.
#[derive(Default)]
struct Columns {
    accounts: Vec<String>,
    kinds: Vec<String>,
    stages: Vec<&'static str>,
    overrides: Vec<Option<i64>>,
    revisions: Vec<String>,
}

impl Columns {
    fn of<'a>(standings: impl Iterator<Item = &'a Standing>) -> Self {
        let mut columns = Self::default();
        for one in standings {
            columns.accounts.push(one.account.clone());
            columns.kinds.push(one.kind.clone());
            columns.stages.push(one.stage.as_str());
            columns.overrides.push(one.override_id);
            columns.revisions.push(one.revision.clone());
        }
        columns
    }
}
