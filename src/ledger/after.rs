//! What waits for other work to end. Speaks the SQL of `dependents`, `dependencies` and `ended_upstreams`.

use serde::Serialize;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, PgExecutor, Row};
use utoipa::ToSchema;
use uuid::Uuid;

use super::lent::Lent;
use super::pins::{Bound, pinned_of};
use super::{Ledger, LedgerError, PinRequest, Pinned, within};
use crate::interaction::{After, OnFailure, When};

/// Why work can't wait for what it names. Nothing was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterFault {
    /// Only what Postgres alone has may wait: the account is not in `complete`, or not armed.
    Stage,
    /// The account has no work with these ids.
    Unknown(Vec<Uuid>),
    /// Only what Postgres alone has may exclude others.
    Exclusive,
}

/// What an interaction waits for before it may start.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Waits {
    /// The member of its series whose turn it is, and where that stands.
    pub behind: Option<Awaited>,
    /// How many interactions it was to run after; 0 where it need not wait for any (longer).
    pub named: i32,
    /// How many of them have not ended, as far as that was settled.
    pub unended: i32,
    /// Whether one is enough.
    pub when: Option<When>,
    /// What becomes of it where they don't succeed.
    pub on_failure: Option<OnFailure>,
    /// The first hundred of those that have not ended.
    pub after: Vec<Awaited>,
    /// The `exclusive` in whose line it is.
    pub exclusive: Option<String>,
    /// Whose turn it is there; null where it is about to be given.
    pub turn: Option<Awaited>,
}

/// Work that other work waits for.
#[derive(Debug, Clone, PartialEq, Eq, FromRow, Serialize, ToSchema)]
pub struct Awaited {
    /// The interaction.
    pub id: Uuid,
    /// Where it stands.
    pub state: String,
    /// Why it is there.
    pub reason: Option<String>,
}

/// What a look at ended work came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, FromRow)]
pub struct Settled {
    /// So many may run now.
    pub released: i32,
    /// So many were cancelled, because what they were to run after did not succeed.
    pub skipped: i32,
    /// Whether anything waits for others.
    pub waiting: bool,
    /// Whether there is more to settle now.
    pub more: bool,
}

/// How much waits for others.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromRow)]
pub struct WaitingCounts {
    /// Interactions, of a hundred thousand at most.
    pub waiting: i64,
    /// For how long the longest of them, of those that were counted.
    pub oldest_seconds: f64,
    /// For how long the oldest end is unsettled.
    pub unsettled_seconds: f64,
}

/// What came of a wish to let work run without what it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Releasing {
    /// It waits for nothing but, maybe, this earlier member of its series.
    Released {
        /// Whose turn it is in its series.
        behind: Option<Uuid>,
    },
    /// It waits for its series, and for nothing else: an order that is not broken.
    Behind(Uuid),
    /// It waits for its turn among those of its `exclusive`, and for nothing else; who has it, if somebody does just now.
    Excluded(Option<Uuid>),
    /// It does not wait.
    NotWaiting,
    /// It has ended.
    Ended,
}

impl Releasing {
    /// Why nothing was released, to be put after its name.
    pub const NOT_WAITING: &str = "waits for no other work";
    /// The same.
    pub const ENDED: &str = "has ended";

    /// The same.
    pub fn behind(head: Uuid) -> String {
        format!(
            "waits for {head}, which is before it in its series, and for nothing else; an order is not broken: see what that one waits for, or cancel it"
        )
    }

    /// The same of what waits for its turn.
    pub fn excluded(turn: Option<Uuid>) -> String {
        let whose =
            turn.map_or_else(|| "that is free and about to be given".to_owned(), |id| format!("that is {id}'s"));
        format!(
            "waits for its turn among those of its `exclusive`, and for nothing else; {whose}: see what that one waits for, or cancel it"
        )
    }
}

impl Ledger {
    /// Pins work that runs after other work, in a transaction of its own.
    pub async fn pin_after(
        &self,
        request: PinRequest<'_>,
        after: &After,
    ) -> Result<Result<Pinned, AfterFault>, LedgerError> {
        within(async {
            let mut lent = Lent::of(&self.pool).await?;
            let pinned = pin_after(&mut **lent.connection()?, request, after).await;
            lent.give_back();
            pinned
        })
        .await
    }

    /// The same in the caller's transaction.
    pub async fn pin_after_in(
        &self,
        connection: &mut sqlx::PgConnection,
        request: PinRequest<'_>,
        after: &After,
    ) -> Result<Result<Pinned, AfterFault>, LedgerError> {
        within(pin_after(connection, request, after)).await
    }

    /// Settles what has ended with what waits for it: at most `limit` at a time, and only one process does it.
    pub async fn settle_dependents(&self, limit: i32) -> Result<Settled, LedgerError> {
        let settled = sqlx::query_as("select released, skipped, waiting, more from crossover.settle_dependents($1)");
        within(settled.bind(limit).fetch_one(&self.pool)).await
    }

    /// What an unended interaction waits for; none where it waits for nothing.
    pub async fn waits(&self, id: Uuid) -> Result<Option<Waits>, LedgerError> {
        let head = sqlx::query_scalar(
            "select p.id from crossover.pins x
             join crossover.series s on s.series_id = x.series_id and s.head_no < x.series_no
             join crossover.pins p on p.series_id = s.series_id and p.series_no = s.head_no
             where x.id = $1 and x.ended_at is null",
        );
        let head: Option<Uuid> = within(head.bind(id).fetch_optional(&self.pool)).await?;
        let behind = self.standing(head.as_slice()).await?.pop();
        let line = sqlx::query_as::<_, (String, Option<Uuid>)>(
            "select t.exclusive, (select h.id from crossover.turns h where h.exclusive_id = t.exclusive_id and h.state = 'turn')
             from crossover.turns t where t.id = $1 and t.state = 'waits'",
        );
        let (exclusive, holder) = within(line.bind(id).fetch_optional(&self.pool)).await?.unzip();
        let turn = self.standing(holder.flatten().as_slice()).await?.pop();
        let row = sqlx::query("select named, unended, any_of, run_on_failure from crossover.dependents where id = $1");
        let Some(row) = within(row.bind(id).fetch_optional(&self.pool)).await? else {
            let waits = behind.is_some() || exclusive.is_some();
            return Ok(waits.then(|| Waits { behind, exclusive, turn, ..Waits::default() }));
        };
        let upstreams =
            sqlx::query_scalar("select upstream from crossover.dependencies where id = $1 order by upstream limit 100");
        let upstreams: Vec<Uuid> = within(upstreams.bind(id).fetch_all(&self.pool)).await?;
        let (any, run): (bool, bool) = (row.try_get("any_of")?, row.try_get("run_on_failure")?);
        Ok(Some(Waits {
            behind,
            named: row.try_get("named")?,
            unended: row.try_get("unended")?,
            when: Some(if any { When::Any } else { When::All }),
            on_failure: Some(if run { OnFailure::Run } else { OnFailure::Skip }),
            after: self.standing(&upstreams).await?,
            exclusive,
            turn,
        }))
    }

    /// Where these stand. By their ids and not by a join, which the view would answer by reading everything.
    async fn standing(&self, ids: &[Uuid]) -> Result<Vec<Awaited>, LedgerError> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        let rows =
            sqlx::query_as("select id, state, reason from crossover.interactions where id = any ($1) order by id");
        within(rows.bind(ids).fetch_all(&self.pool)).await
    }

    /// What failed to be settled takes its turn behind the others.
    pub async fn put_settlement_off(&self) -> Result<(), LedgerError> {
        within(sqlx::query("select crossover.put_settlement_off()").execute(&self.pool)).await?;
        Ok(())
    }

    /// Notes ends that were overlooked, among the next `limit` of what waits behind `from`: how many, and where the next look begins.
    pub async fn find_overlooked(&self, from: Option<Uuid>, limit: i32) -> Result<(i32, Option<Uuid>), LedgerError> {
        let found = sqlx::query_as("select overlooked, next_from from crossover.find_overlooked($1, $2)");
        within(found.bind(from).bind(limit).fetch_one(&self.pool)).await
    }

    /// Lets an interaction run without what it waits for; none where it was never pinned.
    pub async fn release(&self, id: Uuid) -> Result<Option<Releasing>, LedgerError> {
        let row = sqlx::query("select answer, behind from crossover.release($1)").bind(id).fetch_one(&self.pool);
        let row = within(row).await?;
        let behind: Option<Uuid> = row.try_get("behind")?;
        let answer: Option<&str> = row.try_get("answer")?;
        Ok(answer.map(|answer| match (answer, behind) {
            ("released", behind) => Releasing::Released { behind },
            ("behind", Some(behind)) => Releasing::Behind(behind),
            ("excluded", turn) => Releasing::Excluded(turn),
            ("ended", _) => Releasing::Ended,
            _ => Releasing::NotWaiting,
        }))
    }

    /// How much waits for others.
    pub async fn waiting_counts(&self) -> Result<WaitingCounts, LedgerError> {
        let counts = sqlx::query_as(
            "select count(*) as waiting,
                coalesce(extract(epoch from clock_timestamp() - min(d.since)), 0)::float8 as oldest_seconds,
                coalesce((select extract(epoch from clock_timestamp() - u.ended_at) from crossover.ended_upstreams u
                    order by u.ended_at limit 1), 0)::float8 as unsettled_seconds
             from (select since from crossover.dependents limit 100000) d",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}

async fn pin_after(
    executor: impl PgExecutor<'_>,
    request: PinRequest<'_>,
    after: &After,
) -> Result<Result<Pinned, AfterFault>, sqlx::Error> {
    let bound = Bound::of(request)?;
    let sql = "select (f.pin).*, f.created, f.direct, f.behind, f.fault, f.fault_ids
         from crossover.pin_after($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13::json, $14, $15, $16, $17, $18) f";
    let row = bound
        .bind_to(sqlx::query(sql))
        .bind(&after.ids)
        .bind(after.when == When::Any)
        .bind(after.on_failure == OnFailure::Run)
        .fetch_one(executor)
        .await?;
    pinned_or_fault(&row)
}

/// What a pin came to that may be refused for what it waits for.
pub(super) fn pinned_or_fault(row: &PgRow) -> Result<Result<Pinned, AfterFault>, sqlx::Error> {
    match row.try_get::<Option<&str>, _>("fault")? {
        None => pinned_of(row).map(Ok),
        Some("unknown") => Ok(Err(AfterFault::Unknown(row.try_get("fault_ids")?))),
        Some("exclusive") => Ok(Err(AfterFault::Exclusive)),
        Some(_) => Ok(Err(AfterFault::Stage)),
    }
}
