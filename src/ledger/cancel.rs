//! Cancelling, and how interactions ended: what a caller asks for after the enqueue.

use chrono::{DateTime, Utc};
use sqlx::Row;
use uuid::Uuid;

use super::pins::{named, payload};
use super::{Ledger, LedgerError, within};
use crate::interaction::{Outcome, Payload};

/// What came of a wish to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelling {
    /// It has ended as cancelled, now or before; nothing of it ran or will.
    Cancelled,
    /// It is with a worker or with Temporal, which are told; whether that comes in time is not known yet. If it does not
    /// succeed by itself before, it ends as cancelled, and no attempt follows.
    Asked,
    /// It ended otherwise.
    Ended,
}

impl Cancelling {
    /// The answer that a SQL function gives by this name.
    pub(crate) fn named(name: &str) -> Self {
        match name {
            "cancelled" => Cancelling::Cancelled,
            "asked" => Cancelling::Asked,
            _ => Cancelling::Ended,
        }
    }

    /// The name in a metric and in a log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Cancelling::Cancelled => "cancelled",
            Cancelling::Asked => "asked",
            Cancelling::Ended => "ended",
        }
    }
}

/// How an interaction ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The interaction.
    pub id: Uuid,
    /// How.
    pub outcome: Outcome,
    /// When.
    pub ended_at: DateTime<Utc>,
    /// Why, where it did not succeed.
    pub reason: Option<String>,
    /// The runner's answer, for a success.
    pub result: Option<Payload>,
}

impl Ledger {
    /// Asks to cancel `id`, in one transaction. None: it was never pinned. Repeating it changes nothing.
    pub async fn cancel(&self, id: Uuid, reason: &str) -> Result<Option<Cancelling>, LedgerError> {
        let query = sqlx::query_scalar("select answer from crossover.cancel($1, $2)").bind(id).bind(reason);
        let answer: Option<String> = within(query.fetch_one(&self.pool)).await?;
        Ok(answer.map(|answer| Cancelling::named(&answer)))
    }

    /// Those of `ids` that have ended.
    pub async fn ended(&self, ids: &[Uuid]) -> Result<Vec<Ended>, LedgerError> {
        let query = sqlx::query(
            "select p.id, p.outcome, p.ended_at, p.reason, a.result
             from crossover.pins p left join lateral (
                select a.result::text as result from crossover.attempts a
                where a.id = p.id and a.ended_at >= p.created_at and not a.rehearsal and a.outcome = 'succeeded'
                    and p.outcome = 'succeeded'
                order by a.epoch desc, a.attempt desc limit 1) a on true
             where p.id = any ($1) and p.ended_at is not null",
        );
        let rows = within(query.bind(ids).fetch_all(&self.pool)).await?;
        let read = |row: &sqlx::postgres::PgRow| {
            Ok(Ended {
                id: row.try_get("id")?,
                outcome: named(row, "outcome")?.ok_or_else(|| sqlx::Error::ColumnNotFound("outcome".to_owned()))?,
                ended_at: row.try_get("ended_at")?,
                reason: row.try_get("reason")?,
                result: payload(row, "result")?,
            })
        };
        Ok(rows.iter().map(read).collect::<Result<_, sqlx::Error>>()?)
    }
}
