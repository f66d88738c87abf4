//! Where copies are, for the comparator. Reads only.

use chrono::{DateTime, Utc};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

/// A copy that the queue has.
#[derive(Debug, Clone)]
pub struct Placed {
    /// The interaction.
    pub id: Uuid,
    /// Where it is.
    pub place: QueuePlace,
    /// When it is due.
    pub due_at: DateTime<Utc>,
    /// The attempt that it is, or is to be.
    pub attempt: i32,
    /// Whether it runs for real.
    pub execute: bool,
    /// Of one that a worker holds: its epoch, and when it was claimed.
    pub claimed: Option<(i32, DateTime<Utc>)>,
}

/// One of the queue's places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueuePlace {
    /// Due later.
    Scheduled,
    /// Can start, or can as soon as its group has a free place.
    Ready,
    /// Held by a worker.
    Running,
}

/// Where the copies of `ids` are, in the caller's snapshot; those that are nowhere are left out.
pub(crate) async fn places(tx: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<Placed>, sqlx::Error> {
    let rows = sqlx::query(
        "select id, 'scheduled' as place, due_at, attempt, execute, null::integer as epoch, null::timestamptz as started_at
         from crossover.scheduled where id = any ($1)
         union all select id, 'ready', due_at, attempt, execute, null, null from crossover.ready where id = any ($1)
         union all select id, 'ready', due_at, attempt, execute, null, null from crossover.gate where id = any ($1)
         union all select id, 'running', due_at, attempt, execute, epoch, started_at from crossover.running where id = any ($1)",
    );
    rows.bind(ids).fetch_all(tx).await?.iter().map(placed_of).collect()
}

fn placed_of(row: &PgRow) -> Result<Placed, sqlx::Error> {
    let (epoch, started): (Option<i32>, Option<DateTime<Utc>>) = (row.try_get("epoch")?, row.try_get("started_at")?);
    let place = match row.try_get("place")? {
        "scheduled" => QueuePlace::Scheduled,
        "ready" => QueuePlace::Ready,
        _ => QueuePlace::Running,
    };
    Ok(Placed {
        id: row.try_get("id")?,
        place,
        due_at: row.try_get("due_at")?,
        attempt: row.try_get("attempt")?,
        execute: row.try_get("execute")?,
        claimed: epoch.zip(started),
    })
}
