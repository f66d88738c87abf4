//! What an interaction runs. Both sides call it in the same way, so that only the side differs.

use std::panic::AssertUnwindSafe;

use async_trait::async_trait;
use futures::FutureExt;
use uuid::Uuid;

use crate::interaction::{Fence, Payload, Side};
use crate::policy::{Failure, Policy};

/// One call of the runner.
#[derive(Debug, Clone)]
pub struct Call {
    /// The interaction; the runner's idempotency key.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The caller's idempotency key.
    pub key: String,
    /// The series' name, where there is one.
    pub series: Option<String>,
    /// What must run.
    pub payload: Payload,
    /// The side that calls.
    pub side: Side,
    /// A runner with effects refuses a fence older than one it has seen.
    pub fence: Fence,
}

/// What the runner made of a call.
#[derive(Debug, Clone)]
pub enum Answer {
    /// It ran; this is its result.
    Done(Payload),
    /// It didn't.
    Failed {
        /// Whether another attempt may help.
        failure: Failure,
        /// For a person.
        error: String,
    },
}

impl Answer {
    /// A failure that another attempt may mend, after the policy's wait.
    pub fn retryable(error: impl Into<String>) -> Self {
        Answer::Failed { failure: Failure::Retryable { retry_after: None }, error: error.into() }
    }
}

/// Runs interactions.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Makes one attempt. [`run`] bounds its time and catches its panics.
    async fn execute(&self, call: &Call) -> Answer;
}

/// Makes one attempt within the policy's run time-out. A panic is a failure like another.
pub async fn run(executor: &dyn Executor, call: &Call, policy: &Policy) -> Answer {
    let limit = policy.run_timeout();
    let attempt = AssertUnwindSafe(executor.execute(call)).catch_unwind();
    match tokio::time::timeout(limit, attempt).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => Answer::retryable(format!("the handler panicked: {}", panic_text(&*panic))),
        Err(_) => Answer::retryable(format!("run timed out after {}", humantime::format_duration(limit))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Handler(&'static str);

    #[async_trait]
    impl Executor for Handler {
        async fn execute(&self, _: &Call) -> Answer {
            match self.0 {
                "hangs" => std::future::pending().await,
                text => panic!("{text}"),
            }
        }
    }

    async fn error_of(handler: Handler) -> String {
        let call = Call {
            id: Uuid::nil(),
            account: "a".into(),
            kind: "k".into(),
            key: "1".into(),
            series: None,
            payload: Payload::parse("{}".into()).unwrap(),
            side: Side::Temporal,
            fence: Fence { epoch: 1, attempt: 1 },
        };
        let policy = Policy { run_timeout_ms: 20, ..Policy::default() };
        match run(&handler, &call, &policy).await {
            Answer::Failed { failure: Failure::Retryable { retry_after: None }, error } => error,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_handler_that_hangs_times_out_and_may_be_tried_again() {
        assert_eq!(error_of(Handler("hangs")).await, "run timed out after 20ms");
    }

    #[tokio::test]
    async fn a_panic_is_a_failure_that_may_be_tried_again() {
        assert_eq!(error_of(Handler("boom")).await, "the handler panicked: boom");
    }
}
