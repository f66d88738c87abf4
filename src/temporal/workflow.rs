//! The workflow of an interaction without a series.

use serde::{Deserialize, Serialize};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{SyncWorkflowContext, WorkflowContext, WorkflowContextView, WorkflowResult};

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
}

#[workflow_methods]
impl InteractionWorkflow {
    #[init]
    fn new(_: &WorkflowContextView, copy: Exact<Copy>) -> Self {
        let Exact(copy) = copy;
        Self { pinned: copy.envelope.pinned, copy }
    }

    /// The whole life of the copy. An unpinned one is settled only if it was adopted meanwhile.
    #[run(name = "InteractionWorkflow")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<Exact<Closed>> {
        let Copy { envelope, terms } = ctx.state(|s| s.copy.clone());
        let mut closed = run_copy(ctx, &envelope, &terms, ctx.cancellation_token()).await;
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
}
