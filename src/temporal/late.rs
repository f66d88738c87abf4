//! Whether the server still waits for an attempt. One that has lost its worker is given to another, and what the first one
//! reports afterwards is refused; core keeps that to itself, so a worker that may have stalled asks before it reports.

use std::time::{Duration, Instant, SystemTime};

use temporalio_client::errors::AsyncActivityError;
use temporalio_client::{ActivityIdentifier, RetryOptions, RpcOptions};
use temporalio_common::protos::TaskToken;
use temporalio_sdk::activities::ActivityContext;

/// A server that does not answer sooner is not waited for: it refuses what is late by itself.
const ASKED_WITHIN: Duration = Duration::from_secs(2);

/// The clock of an attempt.
pub(super) struct Watch {
    began: Instant,
    started: Option<SystemTime>,
    patience: Duration,
}

impl Watch {
    /// Of the attempt that begins here and now.
    pub fn new(ctx: &ActivityContext) -> Self {
        let info = ctx.info();
        // Half of what the server waits, so that neither a lost heartbeat nor a clock that is a little off hides anything.
        let patience = info.heartbeat_timeout.unwrap_or(Duration::from_secs(10)) / 2;
        Self { began: Instant::now(), started: info.started_time, patience }
    }

    /// Whether it has taken long enough for the server to have given it up. What is shorter can't have missed a heartbeat,
    /// and costs no question.
    pub fn may_be_late(&self) -> bool {
        let by_the_server = self.started.and_then(|started| SystemTime::now().duration_since(started).ok());
        self.began.elapsed().max(by_the_server.unwrap_or_default()) > self.patience
    }

    /// Asks the server. No answer says nothing.
    pub async fn is_late(&self, ctx: &ActivityContext) -> bool {
        let token = ActivityIdentifier::from_task_token(TaskToken::from(ctx.info().task_token.clone()));
        let once = RpcOptions::builder().timeout(ASKED_WITHIN).retry_options(RetryOptions::no_retries()).build();
        let asked = ctx.client().get_async_activity_handle(token).heartbeat(None::<()>, once).await;
        matches!(asked, Err(AsyncActivityError::NotFound(_)))
    }
}
