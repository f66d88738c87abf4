//! What the Temporal side asks of Postgres, and nothing else: where ends, attempts and rehearsals are written down.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use super::ask::Asked;
pub use crate::ledger::{Detaching, OpenRehearsal, Parking};

use crate::interaction::{Attempt, Envelope, Fence, Outcome, Payload};

/// Why the ledger couldn't answer.
pub type LedgerError = Box<dyn std::error::Error + Send + Sync>;

/// The end of an interaction that Temporal owned.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct End {
    /// The interaction.
    pub id: Uuid,
    /// The epoch under which it ran; an older one than the pin's is late.
    pub epoch: i32,
    /// How it ended.
    pub outcome: Outcome,
    /// The last attempt; 0 where none began.
    pub attempt: i32,
    /// Why it didn't succeed.
    pub reason: Option<String>,
    /// The last attempt as its worker saw it. Absent where the worker was lost or no attempt began.
    pub attempt_report: Option<Attempt>,
    /// The last attempt began and left no word; it is `attempt` or a later one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lost: bool,
}

/// A rehearsal whose real attempt has ended.
#[derive(Debug, Clone)]
pub struct FinishedRehearsal {
    /// See [`OpenRehearsal::token`].
    pub token: Vec<u8>,
    /// The interaction.
    pub id: Uuid,
    /// The rehearsed attempt.
    pub fence: Fence,
    /// What came of the real attempt.
    pub step: Step,
}

/// What came of a real attempt, to be repeated by its rehearsal.
#[derive(Debug, Clone)]
pub enum Step {
    /// It succeeded.
    Succeeded(Option<Payload>),
    /// It failed and another follows.
    Retry {
        /// So long after.
        delay: Duration,
    },
    /// It failed (was cancelled, expired) for good.
    Failed(String),
}

/// A rehearsal that needs no more attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClosedRehearsal {
    /// See [`OpenRehearsal::token`].
    pub token: Vec<u8>,
    /// The interaction.
    pub id: Uuid,
    /// The rehearsed attempt.
    pub fence: Fence,
    /// False where Temporal no longer knew it: its bound had passed, its workflow was gone, or an earlier call had
    /// ended it and the answer was lost.
    pub mirrored: bool,
    /// Its own retry machine makes another attempt after so long.
    pub retry_ms: Option<i64>,
    /// When that was known.
    pub closed_at: DateTime<Utc>,
}

/// Postgres as the Temporal side knows it. Every method may fail at any time and is called again.
#[async_trait]
pub trait Ledger: Send + Sync + 'static {
    /// Records an end in its pin. Idempotent: after a crash it comes again. An error means "ask again", so what
    /// will never be accepted (an old epoch) is reported elsewhere and answered with `Ok`.
    async fn settle(&self, end: &End) -> Result<(), LedgerError>;

    /// Records a real attempt that failed and will be followed by another. Best effort.
    async fn record_attempt(&self, attempt: &Attempt) -> Result<(), LedgerError>;

    /// Counts the attempts before this one, which runs: some were lost and left no word. Repeating it changes nothing.
    async fn over_before(&self, id: Uuid, fence: Fence) -> Result<(), LedgerError>;

    /// Records that an interaction is parked after this attempt, with the attempt. Idempotent: after a crash it comes again.
    /// False: its pin has ended or is another's, so nobody will ever say what came of it.
    async fn park(&self, parking: &Parking) -> Result<bool, LedgerError>;

    /// Whether a copy may run, by its pin; one that came without a pin gets one, if its key has none. `anew`: it is in a run
    /// made by a reset, which knows of so many attempts; the answer's number is later than that of any attempt which an earlier
    /// run may still be making.
    async fn ask(&self, envelope: &Envelope, anew: Option<i32>) -> Result<Asked, LedgerError>;

    /// Which of these pins have not ended.
    async fn unended_up_to(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError>;

    /// Records that a runner took an attempt away. Idempotent by token.
    async fn detach(&self, detaching: &Detaching) -> Result<(), LedgerError>;

    /// Open rehearsals whose real attempt goes on, and of which Temporal has not heard for a part of their bound, at most `limit`.
    /// Each is handed to one worker.
    async fn living_rehearsals(&self, limit: i64) -> Result<Vec<OpenRehearsal>, LedgerError>;

    /// Records that a rehearsal was dequeued. Idempotent by token.
    async fn rehearsal_dequeued(&self, rehearsal: &OpenRehearsal) -> Result<(), LedgerError>;

    /// Open rehearsals whose real attempt of the same fence has ended, at most `limit`. Every worker asks: hand each
    /// to one of them for some seconds, or two will end it and one will find it gone.
    async fn finished_rehearsals(&self, limit: i64) -> Result<Vec<FinishedRehearsal>, LedgerError>;

    /// Takes rehearsals off the list of open ones.
    async fn close_rehearsals(&self, closed: &[ClosedRehearsal]) -> Result<(), LedgerError>;
}
