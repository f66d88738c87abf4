//! The workflow of an interaction without a series.

use serde::{Deserialize, Serialize};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    SyncWorkflowContext, WorkflowCancellationToken, WorkflowContext, WorkflowContextView, WorkflowResult,
};

use crate::interaction::Envelope;

use super::Terms;
use super::copy::{Closed, run_copy, settle};
use super::wire::Exact;

/// The workflow's input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Copy {
    /// What to run, or to rehearse.
    pub envelope: Envelope,
    /// By which bounds.
    pub terms: Terms,
}

/// Runs or rehearses one interaction and closes.
#[workflow]
pub struct InteractionWorkflow {
    copy: Copy,
    /// The envelope was pinned, or a router that pinned a repeat of its key said so before the end.
    pinned: bool,
    /// Ends its wait: for as long as it has not begun, it can be called off.
    waiting: WorkflowCancellationToken,
}

#[workflow_methods]
impl InteractionWorkflow {
    #[init]
    fn new(_: &WorkflowContextView, copy: Exact<Copy>) -> Self {
        let Exact(copy) = copy;
        Self { pinned: copy.envelope.pinned, waiting: WorkflowCancellationToken::new(), copy }
    }

    /// The whole life of the copy. An unpinned one is settled only if it was adopted meanwhile.
    #[run(name = "InteractionWorkflow")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<Exact<Closed>> {
        let Copy { envelope, terms } = ctx.state(|s| s.copy.clone());
        // A cancellation of the workflow itself ends the wait as well.
        let waiting = ctx.cancellation_token().child_token();
        ctx.state_mut(|s| {
            if s.waiting.is_cancelled() {
                waiting.cancel();
            }
            s.waiting = waiting.clone();
        });
        let mut closed = run_copy(ctx, &envelope, &terms, ctx.cancellation_token(), waiting).await;
        if let Some(end) = closed.end(&envelope)
            && ctx.state(|s| s.pinned)
        {
            settle(ctx, end).await;
            closed.result = None;
        }
        Ok(Exact(closed))
    }

    /// The interaction has a pin after all: its end must be settled.
    #[signal(name = "adopt")]
    pub fn adopt(&mut self, _: &mut SyncWorkflowContext<Self>) {
        self.pinned = true;
    }

    /// Somebody calls it off. What has begun is not touched.
    #[signal(name = "cancel")]
    pub fn cancel(&mut self, _: &mut SyncWorkflowContext<Self>) {
        self.waiting.cancel();
    }
}
