//! The workflow of an interaction without a series.

use std::pin::pin;

use futures::future::{Either, select};
use serde::{Deserialize, Serialize};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    SyncWorkflowContext, WorkflowCancellationToken, WorkflowContext, WorkflowContextView, WorkflowResult,
};

use crate::interaction::Envelope;
use crate::ledger::Resolution;

use super::Terms;
use super::copy::{Closed, run_copy, settle};
use super::parking::{Held, Holds};
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
    /// Ends its wait.
    waiting: WorkflowCancellationToken,
    /// Ends it once it has begun.
    ending: WorkflowCancellationToken,
    /// Whether it waits for a person.
    held: Held,
}

impl Holds for InteractionWorkflow {
    fn is_pinned(&self) -> bool {
        self.pinned
    }

    fn held(&self) -> &Held {
        &self.held
    }

    fn held_mut(&mut self) -> &mut Held {
        &mut self.held
    }
}

/// Histories without it were written when a wish to cancel did not reach what had begun.
pub(super) const CANCEL_BEGUN: &str = "cancel-begun";

#[workflow_methods]
impl InteractionWorkflow {
    #[init]
    fn new(_: &WorkflowContextView, copy: Exact<Copy>) -> Self {
        let Exact(copy) = copy;
        let (waiting, ending) = (WorkflowCancellationToken::new(), WorkflowCancellationToken::new());
        Self { pinned: copy.envelope.pinned, waiting, ending, copy, held: Held::default() }
    }

    /// The whole life of the copy. An unpinned one is settled only if it was adopted meanwhile.
    #[run(name = "InteractionWorkflow")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<Exact<Closed>> {
        let Copy { envelope, terms } = ctx.state(|s| s.copy.clone());
        let (waiting, ending) = ctx.state(|s| (s.waiting.clone(), s.ending.clone()));
        let asked = ctx.cancellation_token();
        let life = pin!(run_copy(ctx, &envelope, &terms, ending.clone(), waiting.clone()));
        let mut closed = match select(pin!(asked.cancelled()), life).await {
            Either::Right((closed, _)) => closed,
            // A cancellation of the workflow itself ends both as well.
            Either::Left(((), life)) => {
                waiting.cancel();
                ending.cancel();
                life.await
            }
        };
        if let Some(end) = closed.end(&envelope)
            && (closed.adopted || ctx.state(|s| s.pinned))
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

    /// A person says what came of its attempt whose effect is unknown.
    #[signal(name = "resolve")]
    pub fn resolve(&mut self, _: &mut SyncWorkflowContext<Self>, resolution: Exact<Resolution>) {
        self.held.resolve(resolution.0);
    }

    /// Somebody calls it off, or another copy takes its place. What is cancelled may be a timer: see the module `copy`.
    #[signal(name = "cancel")]
    pub async fn cancel(ctx: &mut WorkflowContext<Self>) {
        let (waiting, ending) = ctx.state(|s| (s.waiting.clone(), s.ending.clone()));
        waiting.cancel();
        if ctx.patched(CANCEL_BEGUN) {
            ending.cancel();
        }
    }
}
