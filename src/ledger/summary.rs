//! What attempts came to, over a whole run: for reports that a person reads, not for decisions.

use serde::Serialize;
use sqlx::FromRow;

use super::{Ledger, LedgerError};

/// The attempts of one side, executions or rehearsals.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct AttemptSummary {
    /// `temporal` or `postgres`.
    pub side: String,
    /// Whether nothing was run.
    pub rehearsal: bool,
    /// How many ended.
    pub attempts: i64,
    /// Of these, how many have an outcome; a rehearsal without one was bounded or dropped.
    pub with_outcome: i64,
    /// Milliseconds from due to started, of first and further attempts without a series (the members of one wait for
    /// each other): half were faster.
    pub start_p50_ms: Option<f64>,
    /// 95 of 100 were faster.
    pub start_p95_ms: Option<f64>,
    /// 99 of 100 were faster.
    pub start_p99_ms: Option<f64>,
}

impl Ledger {
    /// Sums up all recorded attempts by side. Reads the whole table; meant for a run of some thousands.
    pub async fn attempt_summary(&self) -> Result<Vec<AttemptSummary>, LedgerError> {
        let rows = sqlx::query_as(
            "select side, rehearsal, count(*) as attempts, count(outcome) as with_outcome,
                percentile_cont(0.5) within group (order by ms) filter (where alone) as start_p50_ms,
                percentile_cont(0.95) within group (order by ms) filter (where alone) as start_p95_ms,
                percentile_cont(0.99) within group (order by ms) filter (where alone) as start_p99_ms
             from (select a.*, p.series_id is null as alone, extract(epoch from a.started_at - a.due_at)::float8 * 1000 as ms
                   from crossover.attempts a join crossover.pins p on p.id = a.id) a
             group by side, rehearsal order by rehearsal, side",
        );
        Ok(rows.fetch_all(&self.pool).await?)
    }
}
