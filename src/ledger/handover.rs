//! Handing over to Temporal what Postgres owns and never claimed.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::{Ledger, LedgerError, within};

/// What a handover is about.
#[derive(Debug, Clone, Serialize)]
pub struct Scope {
    /// The tenant.
    pub account: String,
    /// One kind of it; absent for all.
    pub kind: Option<String>,
    /// One interaction; absent for all.
    pub id: Option<Uuid>,
}

/// Work that Postgres owns and that has not ended, counted by kind and by what a handover would do with it.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct Candidates {
    /// The type of work.
    pub kind: String,
    /// `moves`, or why it stays: `claimed`, `cancelled`, `conflict`, `waits`.
    pub what: String,
    /// How many interactions.
    pub interactions: i64,
    /// How many series they are members of.
    pub series: i64,
    /// The first few.
    pub examples: Vec<Uuid>,
}

/// What became of one interaction.
#[derive(Debug, Clone, FromRow)]
pub struct HandedOver {
    /// The interaction.
    pub id: Uuid,
    /// An answer of `crossover.hand_over`.
    pub answer: String,
}

/// How much was ever handed over.
#[derive(Debug, Clone, Copy, Default, FromRow)]
pub struct HandoverCounts {
    /// Interactions that moved.
    pub moved: i64,
    /// Interactions that were asked for and stayed.
    pub refused: i64,
}

/// The work in question: unended, and Postgres'. Its parameters: account, kind, id.
const OWNED: &str = "from crossover.pins p
     left join crossover.running u on u.id = p.id
     left join crossover.ready r on r.id = p.id
     left join crossover.scheduled s on s.id = p.id
     left join crossover.dependents d on d.id = p.id
     left join crossover.gate w on w.id = p.id
     left join crossover.turns e on e.id = p.id
     where p.account = $1 and p.ended_at is null and p.owner = 'postgres'
        and ($2::text is null or p.kind = $2) and ($3::uuid is null or p.id = $3)";

/// What the handover's function would answer.
const WHAT: &str = "case
     when p.conflict is not null then 'conflict'
     when p.cancel_requested_at is not null then 'cancelled'
     when p.attempts > 0 or u.id is not null or r.attempt > 1 or s.attempt > 1 or w.attempt > 1 then 'claimed'
     when d.id is not null then 'waits'
     when e.id is not null then 'exclusive'
     else 'moves' end";

impl Ledger {
    /// What a handover of `scope` would move, and what it would leave, by kind.
    pub async fn handover_candidates(&self, scope: &Scope) -> Result<Vec<Candidates>, LedgerError> {
        let sql = format!(
            "select kind, what, count(*) as interactions, count(distinct series_id) as series,
                (array_agg(id order by created_at, series_no))[1:3] as examples
             from (select p.kind, p.series_id, p.series_no, p.created_at, p.id, {WHAT} as what {OWNED}) owned
             group by kind, what order by kind, what = 'moves' desc, what"
        );
        let rows = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(&scope.account).bind(&scope.kind).bind(scope.id);
        within(rows.fetch_all(&self.pool)).await
    }

    /// Up to `limit` interactions of `scope` that can be handed over, of a series in order; none that is younger than
    /// `until`, so that work which keeps coming in does not keep a handover from ending.
    pub async fn to_hand_over(
        &self,
        scope: &Scope,
        until: DateTime<Utc>,
        limit: i64,
    ) -> Result<Vec<Uuid>, LedgerError> {
        let sql = format!(
            "select p.id {OWNED} and p.created_at <= $4 and {WHAT} = 'moves'
             order by p.series_id nulls first, p.series_no, p.created_at limit $5"
        );
        let ids = sqlx::query_scalar(sqlx::AssertSqlSafe(sql));
        let ids = ids.bind(&scope.account).bind(&scope.kind).bind(scope.id).bind(until).bind(limit);
        within(ids.fetch_all(&self.pool)).await
    }

    /// Writes down that `who` begins a handover; its number, and when that was by the database's clock.
    pub async fn begin_handover(&self, scope: &Scope, who: &str) -> Result<(i64, DateTime<Utc>), LedgerError> {
        let begun = sqlx::query_as(
            "insert into crossover.handovers (account, kind, interaction, who) values ($1, $2, $3, $4) returning id, at",
        );
        within(begun.bind(&scope.account).bind(&scope.kind).bind(scope.id).bind(who).fetch_one(&self.pool)).await
    }

    /// Hands over those of `ids` that may be, in one transaction. Repeating it moves nothing twice.
    pub async fn hand_over(&self, handover: i64, account: &str, ids: &[Uuid]) -> Result<Vec<HandedOver>, LedgerError> {
        let moved = sqlx::query_as("select id, answer from crossover.hand_over($1, $2, $3)");
        within(moved.bind(handover).bind(account).bind(ids).fetch_all(&self.pool)).await
    }

    /// Writes down that a handover has ended, and how much it left where it was.
    pub async fn end_handover(&self, handover: i64, refused: i64) -> Result<(), LedgerError> {
        let ended =
            sqlx::query("update crossover.handovers set ended_at = clock_timestamp(), refused = $2 where id = $1");
        within(ended.bind(handover).bind(refused).execute(&self.pool)).await?;
        Ok(())
    }

    /// How much was ever handed over.
    pub async fn handover_counts(&self) -> Result<HandoverCounts, LedgerError> {
        let counts = sqlx::query_as(
            "select coalesce(sum(moved), 0)::bigint as moved, coalesce(sum(refused), 0)::bigint as refused
             from crossover.handovers",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}
