//! The workflow of a series: one at a time, in order of arrival, for as long as there is work or a key to remember.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use temporalio_macros::{workflow, workflow_methods};
use temporalio_sdk::{
    ContinueAsNewOptions, SyncWorkflowContext, TimerOptions, WaitConditionOptions, WorkflowCancellationToken,
    WorkflowContext, WorkflowContextView, WorkflowResult, workflows,
};

use crate::interaction::Envelope;
use crate::ledger::Resolution;

use super::Terms;
use super::backlog::{Among, Work};
pub use super::backlog::{Backlog, Member, SeriesStatus, name};
use super::copy::{run_copy, settle};
use super::parking::{Held, Holds};
use super::wire::Exact;
use super::workflow::CANCEL_BEGUN;

/// The next run's input must fit into two megabytes, the remembered keys included.
const CARRY_AT_MOST: usize = 1_800_000;

/// The workflow's input: how to run, and what the run before handed over.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Series {
    /// The bounds of each copy.
    pub terms: Terms,
    /// A repeat is known for so long after the end.
    pub window_ms: u64,
    /// After so many the history is cut off.
    pub items_a_run: u32,
    /// Empty at first.
    #[serde(default)]
    pub backlog: Backlog,
}

/// What a series is told and asked when its account is being armed.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Adopt {
    /// Members that have a pin now.
    pub ids: Vec<uuid::Uuid>,
    /// Members that can't get one; they come first in the answer's order, and are left out.
    pub skip: u32,
}

/// What it answers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Unpinned {
    /// Members without a pin, in the order in which they run. None: there are none.
    pub members: Vec<Envelope>,
    /// Keys that it knows of what has ended.
    pub remembered: u64,
}

/// An answer must fit into two megabytes, and a member alone does.
const ANSWER_AT_MOST: usize = 1_000_000;

/// See the module.
#[workflow]
pub struct SeriesWorkflow {
    series: Series,
    /// Ends the wait of the member whose turn it is, for as long as that has not begun.
    waiting: WorkflowCancellationToken,
    /// Ends the member whose turn it is once it has begun.
    ending: WorkflowCancellationToken,
    /// An earlier member came after it and goes first.
    gives_way: bool,
    /// Whether the member whose turn it is waits for a person.
    held: Held,
}

impl Holds for SeriesWorkflow {
    fn is_pinned(&self) -> bool {
        self.series.backlog.running_is_pinned()
    }

    fn held(&self) -> &Held {
        &self.held
    }

    fn held_mut(&mut self) -> &mut Held {
        &mut self.held
    }
}

/// Histories without it know no handover.
const HANDOVER: &str = "handover";
/// Histories without it look for the place of what is handed over among what was called off as well.
const IN_TURN: &str = "handover-in-turn";

#[workflow_methods]
impl SeriesWorkflow {
    #[init]
    fn new(_: &WorkflowContextView, series: Exact<Series>) -> Self {
        let (waiting, ending) = (WorkflowCancellationToken::new(), WorkflowCancellationToken::new());
        Self { series: series.0, waiting, ending, gives_way: false, held: Held::default() }
    }

    /// Ends when it was idle for a whole window; the next delivery starts another. A cancellation isn't heeded: it
    /// would end all members at once, and each of them is somebody's interaction.
    #[run(name = "SeriesWorkflow")]
    pub async fn run(ctx: &mut WorkflowContext<Self>) -> WorkflowResult<()> {
        let mut done = 0;
        loop {
            let (window_ms, items) = ctx.state(|s| (s.series.window_ms, s.series.items_a_run));
            let long = done > 0 && (done >= items || ctx.continue_as_new_suggested());
            if long {
                // Before it is weighed: what is not forgotten could keep it too heavy to be carried for ever.
                let now = unix_ms(ctx);
                ctx.state_mut(|s| s.series.backlog.forget(now - window_ms as i64));
            }
            if long && Self::may_carry(ctx) {
                ctx.continue_as_new(Exact(ctx.state(|s| s.series.clone())), ContinueAsNewOptions::default())?;
            }
            match ctx.state_mut(|s| s.series.backlog.begin()) {
                Some(work) => Self::work(ctx, work).await,
                None if Self::idle(ctx, Duration::from_millis(window_ms)).await => return Ok(()),
                None => continue,
            }
            done += 1;
        }
    }

    /// A copy arrives, or the word that it is called off. One that was handed over arrives late, and those whose turn comes
    /// after it wait for it: it takes its place by its number, and what has not begun gives way.
    ///
    /// What is cancelled may be a timer: see the module `copy`.
    #[signal(name = "enqueue")]
    pub async fn enqueue(ctx: &mut WorkflowContext<Self>, envelope: Exact<Envelope>) {
        let Exact(envelope) = envelope;
        let (waiting, ending) = ctx.state(|s| (s.waiting.clone(), s.ending.clone()));
        if envelope.cancelled && ctx.state(|s| s.series.backlog.is_running(&envelope)) {
            ctx.state_mut(|s| s.series.backlog.call_off_running());
            waiting.cancel();
            if ctx.patched(CANCEL_BEGUN) {
                ending.cancel();
            }
        }
        if envelope.epoch == 1 || !ctx.patched(HANDOVER) {
            return ctx.state_mut(|s| s.series.backlog.accept(envelope));
        }
        let among = Self::among(ctx);
        if ctx.state_mut(|s| s.series.backlog.hand_over(envelope, among)) {
            ctx.state_mut(|s| s.gives_way = true);
            waiting.cancel();
            if ctx.state(|s| s.series.backlog.is_rehearsing()) {
                ending.cancel();
            }
        }
    }

    /// A person says what came of an attempt whose effect is unknown.
    #[signal(name = "resolve")]
    pub fn resolve(&mut self, _: &mut SyncWorkflowContext<Self>, resolution: Exact<Resolution>) {
        self.held.resolve(resolution.0);
    }

    /// Takes note of pins, and names members that have none. What was signalled before is known here: handlers that don't
    /// wait run in the order in which they were called, and this must not become one that runs before the others.
    #[update(name = "reconcile")]
    pub async fn reconcile(ctx: &mut WorkflowContext<Self>, adopt: Exact<Adopt>) -> Exact<Unpinned> {
        let Exact(Adopt { ids, skip }) = adopt;
        ctx.state_mut(|s| {
            let backlog = &mut s.series.backlog;
            backlog.adopt_all(&ids);
            let members = backlog.unpinned(skip as usize, ANSWER_AT_MOST);
            Exact(Unpinned { members, remembered: backlog.remembers() as u64 })
        })
    }

    /// What it has and had.
    #[query(name = "status")]
    pub fn status(&self, _: &WorkflowContextView) -> SeriesStatus {
        self.series.backlog.status()
    }
}

impl SeriesWorkflow {
    async fn work(ctx: &WorkflowContext<Self>, work: Work) {
        let envelope = match work {
            Work::Run(envelope) => envelope,
            Work::Settle(end) => return settle(ctx, *end).await,
        };
        let terms = ctx.state(|s| s.series.terms);
        let (waiting, ending) = (WorkflowCancellationToken::new(), WorkflowCancellationToken::new());
        ctx.state_mut(|s| (s.waiting, s.ending, s.gives_way) = (waiting.clone(), ending.clone(), false));
        let closed = run_copy(ctx, &envelope, &terms, ending, waiting).await;
        if closed.adopted {
            ctx.state_mut(|s| s.series.backlog.adopt_running());
        }
        if closed.unbegun && ctx.state(|s| s.gives_way) {
            let among = Self::among(ctx);
            if ctx.state_mut(|s| s.series.backlog.put_back(among)) {
                return;
            }
        }
        if let Some(end) = closed.end(&envelope)
            && ctx.state(|s| s.series.backlog.running_is_pinned())
        {
            settle(ctx, end).await;
        }
        let now = unix_ms(ctx);
        ctx.state_mut(|s| s.series.backlog.finish(now, closed.outcome, closed.attempt));
    }

    fn among(ctx: &WorkflowContext<Self>) -> Among {
        if ctx.patched(IN_TURN) { Among::InTurn } else { Among::All }
    }

    /// A heavy backlog is worked off first; it is carried when it has become light enough.
    fn may_carry(ctx: &WorkflowContext<Self>) -> bool {
        ctx.all_handlers_finished() && ctx.state(|s| s.series.backlog.weight()) <= CARRY_AT_MOST
    }

    /// Whether nothing came for a whole window.
    async fn idle(ctx: &WorkflowContext<Self>, window: Duration) -> bool {
        let token = WorkflowCancellationToken::new();
        let options = WaitConditionOptions::builder().cancellation_token(token.clone()).build();
        let mut arrival = ctx.wait_condition_with_options(|s| !s.series.backlog.is_drained(), options);
        let mut timer = ctx.timer(TimerOptions::builder(window).cancellation_token(token.clone()).build());
        workflows::select! {
            _ = arrival => token.cancel(),
            _ = timer => {}
        }
        ctx.state(|s| s.series.backlog.is_drained())
    }
}

fn unix_ms<W>(ctx: &WorkflowContext<W>) -> i64 {
    let now = ctx.workflow_time().unwrap_or(SystemTime::UNIX_EPOCH);
    now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
