//! What an interaction runs: a call of the runner over HTTP, or a handler in this process. Both sides come here with
//! the same [`Call`] and get the same [`Answer`], so that what they do differs in nothing but the side.

mod handlers;
mod http;
mod remote_only;

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::FutureExt;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use handlers::{Context, HandlerError, HandlerOptions, Handlers};
pub use http::{HttpExecutor, HttpExecutorError};
pub use remote_only::RemoteOnly;

use crate::interaction::{Envelope, Fence, Payload, Side};
use crate::policy::{Doubt, Failure, Policy};

/// One execution of an interaction.
#[derive(Debug, Clone)]
pub struct Call {
    /// The interaction; the idempotency key of the effect.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The caller's key.
    pub key: String,
    /// The series.
    pub series: Option<String>,
    /// What must run.
    pub payload: Payload,
    /// The side that runs it.
    pub side: Side,
    /// A later fence makes this one's result late.
    pub fence: Fence,
    /// Where a handler reports progress.
    pub heartbeat: Heartbeat,
    /// Cancelled when nobody waits for the call any longer: it was answered, cancelled, cut at a time-out, or its worker
    /// lost it. The handler's future is dropped then; this is for what it spawned.
    pub over: CancellationToken,
}

impl Call {
    /// The call that `envelope` asks for on `side`.
    pub fn new(envelope: &Envelope, side: Side, attempt: i32) -> Self {
        Self {
            id: envelope.id,
            account: envelope.account.clone(),
            kind: envelope.kind.clone(),
            key: envelope.key.clone(),
            series: envelope.series.clone(),
            payload: envelope.payload.clone(),
            side,
            fence: Fence { epoch: envelope.epoch, attempt },
            heartbeat: Heartbeat::default(),
            over: CancellationToken::new(),
        }
    }
}

/// Reports that a long execution makes progress.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Notify>);

impl Heartbeat {
    /// Progress was made.
    pub fn beat(&self) {
        self.0.notify_one();
    }
}

/// What came of a call.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It succeeded with this result.
    Done(Payload),
    /// It did not.
    Failed {
        /// Whether another attempt is worth it.
        failure: Failure,
        /// What went wrong, for a person.
        error: String,
    },
    /// The runner took it away: it keeps it with heartbeats and ends it over the API, and no worker holds it meanwhile.
    Detached {
        /// Without a heartbeat for so long it is lost.
        silence: Duration,
    },
}

/// How long a runner that took an attempt away may be silent.
pub const SILENCE: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(86_400);

impl Answer {
    /// The attempt is taken away by a runner that reports every `silence` or more often.
    pub fn detached(silence: Duration) -> Self {
        if SILENCE.contains(&silence) {
            return Self::Detached { silence };
        }
        let (least, most) = (SILENCE.start().as_secs(), SILENCE.end().as_secs());
        Self::retryable(format!(
            "the runner took it away, but its heartbeat time-out is {silence:?}; it must be {least} to {most} seconds"
        ))
    }

    /// A failure worth another attempt.
    pub fn retryable(error: impl Into<String>) -> Self {
        Self::Failed { failure: Failure::RETRYABLE, error: clean(&error.into()) }
    }

    /// A failure of which nobody knows whether it had its effect.
    pub fn unknown(cause: Doubt, error: impl Into<String>) -> Self {
        Self::Failed { failure: Failure::Unknown { cause }, error: clean(&error.into()) }
    }

    /// A failure that would repeat itself.
    pub fn permanent(error: impl Into<String>) -> Self {
        Self::Failed { failure: Failure::Permanent, error: clean(&error.into()) }
    }
}

/// Runs interactions.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Runs one call to its answer. Dropping the future gives the call up.
    async fn execute(&self, call: &Call) -> Answer;

    /// How many calls of `kind` may run at once in this process; none: as many as there are slots.
    fn capacity(&self, _kind: &str) -> Option<usize> {
        None
    }

    /// Whether it runs anything at all.
    fn runs_anything(&self) -> bool {
        true
    }

    /// Whether any kind has a capacity of its own.
    fn has_capacities(&self) -> bool {
        false
    }

    /// Waits until there is room for a call of `kind`, which is taken until what this returns is dropped.
    async fn room(&self, _kind: &str) -> Option<OwnedSemaphorePermit> {
        None
    }
}

/// Runs a call within its policy's time-outs. A panic is a failed attempt, not a dead worker.
pub async fn run(executor: &dyn Executor, call: &Call, policy: &Policy) -> Answer {
    // Also where this future is dropped, which is how a call is called off.
    let _over = call.over.clone().drop_guard();
    // Its time begins when it does. Both sides run their calls here, each by claims of its own.
    let _room = executor.room(&call.kind).await;
    let execution = AssertUnwindSafe(executor.execute(call)).catch_unwind();
    tokio::select! {
        biased;
        answer = execution => answer.unwrap_or_else(|panic| Answer::retryable(format!("the handler panicked: {}", said(&*panic)))),
        () = tokio::time::sleep(policy.run_timeout()) => {
            let error = format!("ran longer than its run_timeout_ms of {}", policy.run_timeout_ms);
            Answer::unknown(Doubt::RunTimeout, error)
        }
        ms = silence(&call.heartbeat, policy.heartbeat_timeout_ms) => {
            Answer::unknown(Doubt::HeartbeatTimeout, format!("made no progress for its heartbeat_timeout_ms of {ms}"))
        }
    }
}

/// Ends when no heartbeat came for `limit_ms`; never without a limit.
async fn silence(heartbeat: &Heartbeat, limit_ms: Option<u64>) -> u64 {
    let Some(ms) = limit_ms else { return std::future::pending().await };
    while tokio::time::timeout(Duration::from_millis(ms), heartbeat.0.notified()).await.is_ok() {}
    ms
}

pub(crate) fn said(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it did not say why")
}

/// How the words begin of every attempt that ended because of its worker and not of its work.
pub const OF_ITS_WORKER: &str = "its worker ";

/// How the words begin of every attempt after which its interaction was parked.
pub const PARKED: &str = "its effect is unknown, so it is parked: ";

/// Makes a foreign text fit for a text column and a person: no NUL, no control characters, at most 2,000 characters.
pub fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').take(2_000).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    struct Never;

    #[async_trait]
    impl Executor for Never {
        async fn execute(&self, _: &Call) -> Answer {
            std::future::pending().await
        }
    }

    struct Panics;

    #[async_trait]
    impl Executor for Panics {
        async fn execute(&self, _: &Call) -> Answer {
            panic!("no such luck")
        }
    }

    fn call() -> Call {
        Call {
            id: Uuid::nil(),
            account: "a".into(),
            kind: "k".into(),
            key: "x".into(),
            series: None,
            payload: Payload::parse("1".into()).unwrap(),
            side: Side::Postgres,
            fence: Fence { epoch: 1, attempt: 1 },
            heartbeat: Heartbeat::default(),
            over: Default::default(),
        }
    }

    fn error_of(answer: Answer) -> String {
        match answer {
            Answer::Failed { failure: Failure::Retryable { .. } | Failure::Unknown { .. }, error } => error,
            other => panic!("not a retryable failure: {other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_never_ends_is_cut_at_its_time_out() {
        let policy = Policy { run_timeout_ms: 5_000, ..Policy::default() };
        let error = error_of(run(&Never, &call(), &policy).await);
        assert_eq!(error, "ran longer than its run_timeout_ms of 5000");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_handler_is_cut_at_its_heartbeat_time_out() {
        let policy = Policy { heartbeat_timeout_ms: Some(100), ..Policy::default() };
        let error = error_of(run(&Never, &call(), &policy).await);
        assert_eq!(error, "made no progress for its heartbeat_timeout_ms of 100");
    }

    #[tokio::test]
    async fn a_panic_is_a_failed_attempt() {
        let error = error_of(run(&Panics, &call(), &Policy::default()).await);
        assert_eq!(error, "the handler panicked: no such luck");
    }

    #[test]
    fn a_foreign_text_is_cleaned_for_the_database() {
        assert_eq!(clean("a\0b\x1b[1mc"), "ab[1mc");
        assert_eq!(clean(&"x".repeat(5_000)).len(), 2_000);
    }
}
