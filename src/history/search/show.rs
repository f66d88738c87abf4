//! One interaction with all that is kept of it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::value::RawValue;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use super::{Found, PINS, Search, SearchError, TASKS, bounded};
use crate::ledger::LedgerError;

/// One interaction with all that is kept of it.
#[derive(Debug, Serialize)]
pub struct Shown {
    /// What a page says of it.
    #[serde(flatten)]
    pub found: Found,
    /// The key of those that it never runs beside; absent where there is none, or where it is kept no longer.
    pub exclusive: Option<String>,
    /// Every attempt that is kept, of both sides, rehearsals too.
    pub attempts_made: Vec<ShownAttempt>,
    /// Retries and time-outs; absent where it is kept no longer.
    pub policy: Option<Box<RawValue>>,
    /// What was to run; absent where it is kept no longer.
    pub payload: Option<Box<RawValue>>,
    /// What came of it; absent where nothing did, or where it is kept no longer.
    pub result: Option<Box<RawValue>>,
}

/// One attempt.
#[derive(Debug, Clone, FromRow, Serialize)]
pub struct ShownAttempt {
    /// Who made it.
    pub side: String,
    /// Whether nothing was run.
    pub rehearsal: bool,
    /// The epoch of the copy.
    pub epoch: i32,
    /// Counted from 1.
    pub attempt: i32,
    /// When it was to start.
    pub due_at: DateTime<Utc>,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// How.
    pub outcome: Option<String>,
    /// Another followed after so many milliseconds.
    pub retry_ms: Option<i64>,
    /// What went wrong.
    pub error: Option<String>,
}

impl Search {
    /// All that is kept of `id`; none where nothing is.
    pub async fn show(&self, id: Uuid) -> Result<Option<Shown>, SearchError> {
        bounded(self.read(id)).await
    }

    async fn read(&self, id: Uuid) -> Result<Option<Shown>, SearchError> {
        let mut tx = self.begin().await?;
        let sql = format!(
            "select {} where x.id = $1 union all select {} where x.id = $1 and x.created_at = crossover.named_at($1)",
            PINS.0, TASKS.0
        );
        let found: Option<Found> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).bind(id).fetch_optional(&mut *tx).await?;
        let Some(found) = found else { return Ok(None) };
        let attempts_made = sqlx::query_as(
            "select side, rehearsal, epoch, attempt, due_at, started_at, ended_at, outcome, retry_ms, error from crossover.attempts
             where id = $1 and ended_at >= $2 - interval '1 hour' order by started_at, side",
        );
        let attempts_made = attempts_made.bind(id).bind(found.created_at).fetch_all(&mut *tx).await?;
        let contents = sqlx::query(
            "select payload::text as payload, policy::text as policy, exclusive from crossover.payloads where id = $1 and created_at = $2
             union all
             select payload::text, coalesce(policy, '{}')::text, null from crossover.tasks where id = $1 and created_at = $2",
        );
        let contents = contents.bind(id).bind(found.created_at).fetch_optional(&mut *tx).await?;
        let result: Option<String> = sqlx::query_scalar(
            "select result::text from crossover.attempts
             where id = $1 and ended_at >= $2 - interval '1 hour' and not rehearsal and result is not null
             order by ended_at desc limit 1",
        )
        .bind(id)
        .bind(found.created_at)
        .fetch_optional(&mut *tx)
        .await?;
        let of = |column: &str| -> Result<Option<String>, SearchError> {
            Ok(contents.as_ref().map(|row| row.try_get(column)).transpose()?.flatten())
        };
        let (policy, payload, exclusive) = (raw(of("policy")?)?, raw(of("payload")?)?, of("exclusive")?);
        Ok(Some(Shown { policy, payload, exclusive, result: raw(result)?, found, attempts_made }))
    }
}

fn raw(text: Option<String>) -> Result<Option<Box<RawValue>>, SearchError> {
    let unreadable = |error: serde_json::Error| LedgerError::Refused(sqlx::Error::Decode(error.into()));
    Ok(text.map(RawValue::from_string).transpose().map_err(unreadable)?)
}
