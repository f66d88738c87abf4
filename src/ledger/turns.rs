//! What excludes others (`exclusive`): whose turn it is. Speaks the SQL of `turns` and `turn_notes`.

use sqlx::{FromRow, PgExecutor};
use uuid::Uuid;

use super::after::pinned_or_fault;
use super::lent::Lent;
use super::pins::Bound;
use super::{AfterFault, Ledger, LedgerError, PinRequest, Pinned, within};
use crate::interaction::{OnFailure, When};

/// What a look at turns came to.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromRow)]
pub struct Turns {
    /// So many have their turn now.
    pub given: i32,
    /// Another process was at it.
    pub busy: bool,
    /// Whether anything excludes others.
    pub waiting: bool,
    /// Whether there is more to look at now.
    pub more: bool,
    /// When the next is due, in milliseconds.
    pub next_ms: Option<f64>,
}

/// How much waits for its turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, FromRow)]
pub struct TurnCounts {
    /// Interactions, of a hundred thousand at most.
    pub waiting: i64,
    /// For how long the longest of them, of those that were counted.
    pub oldest_seconds: f64,
    /// For how long the oldest note has not been looked at.
    pub unsettled_seconds: f64,
}

impl Ledger {
    /// Pins work that excludes others, and may run after some, in a transaction of its own.
    pub async fn pin_exclusive(&self, request: PinRequest<'_>) -> Result<Result<Pinned, AfterFault>, LedgerError> {
        within(async {
            let mut lent = Lent::of(&self.pool).await?;
            let pinned = pin_exclusive(&mut **lent.connection()?, request).await;
            lent.give_back();
            pinned
        })
        .await
    }

    /// The same in the caller's transaction.
    pub async fn pin_exclusive_in(
        &self,
        connection: &mut sqlx::PgConnection,
        request: PinRequest<'_>,
    ) -> Result<Result<Pinned, AfterFault>, LedgerError> {
        within(pin_exclusive(connection, request)).await
    }

    /// Gives turns, by at most `limit` notes at a time; only one process does it.
    pub async fn give_turns(&self, limit: i32) -> Result<Turns, LedgerError> {
        let turns = sqlx::query_as("select given, busy, waiting, more, next_ms from crossover.give_turns($1)");
        within(turns.bind(limit).fetch_one(&self.pool)).await
    }

    /// What failed to be looked at takes its turn behind the others.
    pub async fn put_turns_off(&self) -> Result<(), LedgerError> {
        within(sqlx::query("select crossover.put_turns_off()").execute(&self.pool)).await?;
        Ok(())
    }

    /// Looks for turns that were overlooked, among the next `limit` keys behind `from`: how many, and where the next look begins.
    pub async fn find_overlooked_turns(
        &self,
        from: Option<Uuid>,
        limit: i32,
    ) -> Result<(i32, Option<Uuid>), LedgerError> {
        let found = sqlx::query_as("select overlooked, next_from from crossover.find_overlooked_turns($1, $2)");
        within(found.bind(from).bind(limit).fetch_one(&self.pool)).await
    }

    /// How much waits for its turn.
    pub async fn turn_counts(&self) -> Result<TurnCounts, LedgerError> {
        let counts = sqlx::query_as(
            "select count(*) as waiting,
                coalesce(extract(epoch from clock_timestamp() - min(t.since)), 0)::float8 as oldest_seconds,
                coalesce((select extract(epoch from clock_timestamp() - min(n.noted_at))
                    from (select noted_at from crossover.turn_notes limit 10000) n), 0)::float8 as unsettled_seconds
             from (select since from crossover.turns where state = 'waits' limit 100000) t",
        );
        within(counts.fetch_one(&self.pool)).await
    }
}

async fn pin_exclusive(
    executor: impl PgExecutor<'_>,
    request: PinRequest<'_>,
) -> Result<Result<Pinned, AfterFault>, sqlx::Error> {
    let (bound, interaction) = (Bound::of(request)?, request.interaction);
    let after = interaction.after.as_ref();
    let sql = "select (f.pin).*, f.created, f.direct, f.behind, f.fault, f.fault_ids
         from crossover.pin_exclusive($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12::json, $13::json, $14, $15, $16, $17, $18,
            $19, $20) f";
    let row = bound
        .bind_to(sqlx::query(sql))
        .bind(after.map(|after| &after.ids))
        .bind(after.is_some_and(|after| after.when == When::Any))
        .bind(after.is_some_and(|after| after.on_failure == OnFailure::Run))
        .bind(&interaction.exclusive)
        .bind(interaction.exclusive_id())
        .fetch_one(executor)
        .await?;
    pinned_or_fault(&row)
}
