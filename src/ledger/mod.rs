//! The record that both sides answer to: who owns what (pins), what has to reach Temporal (outbox), what each attempt
//! came to. Speaks the SQL of those tables; the queue's own tables belong to [`crate::queue`].
//!
//! Each step that must be atomic is a function in `migrations/`, so that it is one round trip.

mod after;
mod cancel;
mod compare;
mod detached;
mod ends;
mod handover;
mod intake;
mod lent;
mod outbox;
mod parked;
mod pins;
mod reconcile;
mod remote;
mod schema;
mod spool;
mod summary;
mod turns;

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgPool};

pub use after::{AfterFault, Awaited, Releasing, Settled, WaitingCounts, Waits};
pub use cancel::{Cancelling, Ended};
pub use compare::{ComparedPin, NewPin};
pub(crate) use compare::{compared_attempts, compared_pins, open_rehearsals};
pub use detached::{Beat, Detached, DetachedCounts, Detaching, Ending, Report, SILENT, TOO_LONG};
pub use ends::{FinishedRehearsal, OpenRehearsal, RecordedRehearsal};
pub use handover::{Candidates, HandedOver, HandoverCounts, Scope};
pub use intake::{IntakeDepth, IntakeItem, IntakeRow, Taken};
pub(crate) use outbox::LEFT_OUT;
pub use outbox::{OutboxDepth, Take, Undelivered};
pub use parked::{Noted, Parked, ParkedCounts, Parking, Resolution, Resolved, Resolving, Untold};
pub use pins::{AccountMarks, Pin, PinRequest, Pinned, StageCount, Story};
pub(crate) use pins::{ENVELOPE, attempt_of, envelope_of, failure as failure_of, named, payload as payload_of};
pub use reconcile::{Answered, Pass, Question, Reconciliation, Verdict};
pub use remote::{Attempted, RemoteBeat, RemoteReport};
pub use schema::SchemaError;
pub use summary::AttemptSummary;
pub use turns::{TurnCounts, Turns};

/// The Postgres ledger. Cheap to clone.
#[derive(Clone)]
pub struct Ledger {
    pool: PgPool,
}

/// Postgres did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Nothing was sent: no connection could be had.
    #[error(
        "Postgres can't be reached, nothing was written ({0}); see whether it runs and whether the pool is large enough"
    )]
    Unreachable(#[source] sqlx::Error),
    /// The connection broke or the time was up after something was sent.
    #[error("Postgres did not answer, so whether it was written is unknown ({0}); repeat with the same key")]
    InDoubt(String),
    /// Postgres said no and rolled back.
    #[error("Postgres refused, nothing was written: {0}")]
    Refused(#[source] sqlx::Error),
}

impl From<sqlx::Error> for LedgerError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::Error as E;
        match error {
            E::PoolTimedOut | E::PoolClosed | E::Tls(_) | E::Configuration(_) => Self::Unreachable(error),
            E::Io(ref io) if io.kind() == std::io::ErrorKind::ConnectionRefused => Self::Unreachable(error),
            // Class 57: the server is going down or starting up. A commit may have happened before it went.
            E::Database(ref e) if !e.code().is_some_and(|code| code.starts_with("57P")) => Self::Refused(error),
            E::RowNotFound | E::ColumnNotFound(_) | E::ColumnDecode { .. } | E::Decode(_) | E::Encode(_) => {
                Self::Refused(error)
            }
            other => Self::InDoubt(other.to_string()),
        }
    }
}

impl Ledger {
    /// A ledger on a pool that connects when it is first needed.
    pub fn new(pool: PgPool) -> Self {
        Self { pool }
    }

    /// The pool, for the queue's tables and for `enqueue_in`.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Whether Postgres answers, within the pool's time-out.
    pub async fn ping(&self) -> Result<(), LedgerError> {
        sqlx::query("select 1").execute(&self.pool).await?;
        Ok(())
    }
}

/// A call that takes longer is given up as in doubt. Shorter than a lease, so that a Postgres that hangs is noticed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bounds a call of Postgres.
pub(crate) async fn within<T>(call: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, LedgerError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LedgerError::InDoubt(format!("no answer within {PATIENCE:?}"))),
    }
}

/// Whether the same statement may be accepted another time: deadlocks, lock and statement time-outs, no room,
/// read-only while it fails over.
pub(crate) fn transient(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| {
        let class = code.get(..2).unwrap_or_default();
        matches!(class, "40" | "53" | "55" | "57" | "58") || code == "25006"
    })
}

/// Whether Postgres itself is in trouble, rather than what it was asked.
pub(crate) fn is_outage(error: &LedgerError) -> bool {
    match error {
        LedgerError::Unreachable(_) | LedgerError::InDoubt(_) => true,
        LedgerError::Refused(error) => transient(error),
    }
}

/// Whether callers were in each other's way (a deadlock, a lock that was not had in time): that says nothing of Postgres.
pub(crate) fn is_contention(error: &LedgerError) -> bool {
    let LedgerError::Refused(error) = error else { return false };
    let code = error.as_database_error().and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code.starts_with("40") || code == "55P03")
}

/// A lazy pool with the limits of this program: bounded, with a time-out on waiting, a statement time-out and a name
/// that an operator finds in `pg_stat_activity`.
pub fn pool(url: &str, max: u32, patience: Duration) -> Result<PgPool, sqlx::Error> {
    let options: PgConnectOptions = url.parse()?;
    let options = options.application_name("crossover").options([
        ("statement_timeout", "30s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "60s"),
        // Short statements with disabled plans look dear enough to be compiled, which takes longer than they do.
        ("jit", "off"),
    ]);
    let pool = PgPoolOptions::new().max_connections(max).acquire_timeout(patience);
    // A connection that was used just now is as good as one that was asked just now, and spares the round trip.
    let pool = pool.test_before_acquire(false).before_acquire(|connection, its| {
        Box::pin(async move {
            if its.idle_for >= UNTESTED {
                connection.ping().await?;
            }
            Ok(true)
        })
    });
    Ok(pool.connect_lazy_with(options))
}

/// A connection that was idle for less is used without asking whether it lives.
const UNTESTED: Duration = Duration::from_secs(1);
