//! The path of one copy through Temporal, the same in a workflow of its own and in a series.
//!
//! Who cancels what may be a timer does so in a future, never in a handler that is no `async fn` and never by the workflow's own
//! token: those act while the SDK still goes through what has happened, and where the timer's own firing comes later in it, the
//! SDK finds nobody who waits for that and fails the task, again and again. Futures are polled when all of it is known.

use std::time::{Duration, SystemTime};

use chrono::DateTime;
use serde::{Deserialize, Serialize};
use temporalio_sdk::{
    ActivityCancellationType, ActivityExecutionError, ActivityOptions, LocalActivityOptions, RetryState, TimeoutType,
    TimerOptions, TimerResult, WorkflowCancellationToken, WorkflowContext,
};
use temporalio_workflow::RetryPolicy;

use crate::interaction::{Attempt, Envelope, Outcome, Payload, Side};
use crate::policy::{Backoff, Listed, OnUnknown, Policy};

use super::Terms;
use super::activities::{Activities, Read, Rehearsal, due_by};
use super::ask::{ASK, Asked, Asking, Execution};
use super::ledger::End;
use super::parking::{self, Holds};
use super::wire::Exact;

/// The server's clock and ours may differ; the worker's own time-out must come first.
const GRACE: Duration = Duration::from_secs(5);
/// Once a local activity has failed, its ordinary twin waits at most so long between two attempts.
const SETTLE_EVERY: Duration = Duration::from_secs(30);

/// How a copy ended: the workflow's result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Closed {
    /// Nothing was run; the fields below mirror the real run as far as it was seen.
    pub rehearsal: bool,
    /// Absent where a rehearsal was bounded.
    pub outcome: Option<Outcome>,
    /// The last attempt; 0 where none began.
    pub attempt: i32,
    /// The runner's answer, unless the pin has it.
    pub result: Option<Payload>,
    /// Why it didn't succeed.
    pub reason: Option<String>,
    /// Its pin would not have it run; the reason says why.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub refused: bool,
    /// It came without a pin, asked for one before it ran, and has it.
    #[serde(skip)]
    pub adopted: bool,
    /// It was called off while it waited; nothing of it has begun.
    #[serde(skip)]
    pub(super) unbegun: bool,
    /// The last attempt, as its worker saw it.
    #[serde(skip)]
    pub(super) report: Option<Attempt>,
    /// The last attempt began and left no word; it is `attempt` or a later one.
    #[serde(skip)]
    pub(super) lost: bool,
}

impl Closed {
    pub(super) fn new(rehearsal: bool, outcome: Option<Outcome>, attempt: i32, reason: impl Into<String>) -> Self {
        let reason = Some(reason.into());
        let (refused, adopted, unbegun, lost) = (false, false, false, false);
        Self { rehearsal, outcome, attempt, result: None, reason, refused, adopted, unbegun, report: None, lost }
    }

    pub(super) fn ran(report: Attempt) -> Self {
        Self {
            rehearsal: false,
            outcome: report.outcome,
            attempt: report.fence.attempt,
            result: report.result.clone(),
            reason: report.error.clone(),
            refused: false,
            adopted: false,
            unbegun: false,
            report: Some(report),
            lost: false,
        }
    }

    /// What is to be settled: nothing, for a rehearsal.
    pub fn end(&self, envelope: &Envelope) -> Option<End> {
        let outcome = self.outcome.filter(|_| !self.rehearsal)?;
        Some(End {
            id: envelope.id,
            epoch: envelope.epoch,
            outcome,
            attempt: self.attempt,
            reason: self.reason.clone(),
            attempt_report: self.report.clone(),
            lost: self.lost,
        })
    }
}

/// Takes a copy from its start to its end, which isn't settled yet. `waiting` calls it off for as long as it has not
/// begun; `cancel` ends it at any time.
pub async fn run_copy<W: Holds>(
    ctx: &WorkflowContext<W>,
    envelope: &Envelope,
    terms: &Terms,
    cancel: WorkflowCancellationToken,
    waiting: WorkflowCancellationToken,
) -> Closed {
    let rehearsal = !envelope.executes_on(Side::Temporal);
    let called_off = || Closed {
        unbegun: true,
        ..Closed::new(rehearsal, Some(Outcome::Cancelled), 0, "it was cancelled before it began")
    };
    if envelope.cancelled || !wait_until_due(ctx, envelope, &waiting).await || waiting.is_cancelled() {
        return called_off();
    }
    if rehearsal {
        return rehearse(ctx, envelope, terms, cancel).await;
    }
    if !envelope.behind.is_empty()
        && let Err(error) = wait_behind(ctx, envelope, &waiting).await
        && !waiting.is_cancelled()
    {
        return never_began(envelope, &error);
    }
    if waiting.is_cancelled() {
        return called_off();
    }
    match envelope.policy.on_unknown {
        OnUnknown::Retry => execute(ctx, envelope, terms, cancel, &waiting).await,
        OnUnknown::Park => parking::execute(ctx, envelope, terms, cancel, &waiting).await,
    }
}

async fn wait_until_due<W>(ctx: &WorkflowContext<W>, envelope: &Envelope, cancel: &WorkflowCancellationToken) -> bool {
    let now = ctx.workflow_time().unwrap_or(SystemTime::UNIX_EPOCH);
    let wait = envelope.run_at.and_then(|at| SystemTime::from(at).duration_since(now).ok());
    let Some(duration) = wait.filter(|wait| !wait.is_zero()) else { return true };
    let timer = TimerOptions::builder(duration).cancellation_token(cancel.clone()).build();
    matches!(ctx.timer(timer).await, TimerResult::Fired)
}

/// The wait is many short activities rather than a long one, so that it holds no slot: the server keeps the time
/// between two looks, and a Postgres outage only makes it longer.
async fn wait_behind<W>(
    ctx: &WorkflowContext<W>,
    envelope: &Envelope,
    cancel: &WorkflowCancellationToken,
) -> Result<(), ActivityExecutionError> {
    let mut options = ActivityOptions::start_to_close_timeout(Duration::from_secs(10));
    options.retry_policy = Some(RetryPolicy::builder().maximum_interval(Duration::from_secs(5)).build());
    options.cancellation_token = Some(cancel.clone());
    ctx.execute_activity(Activities::behind, envelope.behind.clone(), options).await
}

async fn execute<W>(
    ctx: &WorkflowContext<W>,
    envelope: &Envelope,
    terms: &Terms,
    cancel: WorkflowCancellationToken,
    waiting: &WorkflowCancellationToken,
) -> Closed {
    let mut execution = first(ctx, envelope);
    loop {
        let error = match attempt(ctx, &execution, terms, cancel.clone()).await {
            Ok(report) => return Closed { adopted: execution.is_adopted(envelope), ..Closed::ran(report) },
            Err(error) => error,
        };
        let Some(before) = wants_to_ask(&error) else {
            return Closed { adopted: execution.is_adopted(envelope), ..failed(envelope, &error) };
        };
        if let Err(closed) = ask(ctx, &mut execution, before, waiting).await {
            return closed;
        }
    }
}

/// An execution that knows in which run it was scheduled, and since when it is to run.
pub(super) fn first<W>(ctx: &WorkflowContext<W>, envelope: &Envelope) -> Execution {
    let since = ctx.workflow_time().map(DateTime::from);
    let asking = Asking { first_run: Some(ctx.info().first_execution_run_id().to_owned()), since, ..Asking::default() };
    Execution { envelope: envelope.clone(), asking }
}

/// Asks the pin, which may take as long as Postgres is away, or runs an earlier member of its series: the wait is many short activities rather than a long one, and no
/// attempt is counted. `Err`: it does not run.
pub(super) async fn ask<W>(
    ctx: &WorkflowContext<W>,
    execution: &mut Execution,
    before: i32,
    waiting: &WorkflowCancellationToken,
) -> Result<(), Closed> {
    let envelope = execution.envelope.clone();
    let mut options = ActivityOptions::start_to_close_timeout(Duration::from_secs(10));
    options.retry_policy = Some(RetryPolicy::builder().maximum_interval(Duration::from_secs(5)).build());
    options.cancellation_token = Some(waiting.clone());
    execution.asking.before = before;
    let asked = ctx.execute_activity(Activities::ask, Exact(execution.clone()), options).await;
    // The run that asked, and not this one: a reset may have taken the answer along.
    let (pinned, attempts, run) = match asked {
        Ok(Asked::Run { attempts, run, .. }) => (true, attempts, run),
        Ok(Asked::Beside { attempts, run }) => (false, attempts, run),
        Ok(Asked::Never(why)) => return Err(Closed { refused: true, ..Closed::new(false, None, before, why) }),
        Err(error) => return Err(Closed { unbegun: waiting.is_cancelled(), ..never_began(&envelope, &error) }),
    };
    execution.envelope.pinned |= pinned;
    execution.asking.asked_in = run;
    execution.asking.before = before.max(attempts);
    Ok(())
}

/// The attempts made before, where the execution has not begun because it must ask its pin first.
pub(super) fn wants_to_ask(error: &ActivityExecutionError) -> Option<i32> {
    match error.reason() {
        Some(temporalio_common::error::IncomingError::Application(failure)) if failure.type_name() == Some(ASK) => {
            Some(failure.details::<i32>().ok().flatten().unwrap_or(0))
        }
        _ => None,
    }
}

pub(super) async fn attempt<W>(
    ctx: &WorkflowContext<W>,
    execution: &Execution,
    terms: &Terms,
    cancel: WorkflowCancellationToken,
) -> Result<Attempt, ActivityExecutionError> {
    let envelope = &execution.envelope;
    let mut options = ActivityOptions::start_to_close_timeout(envelope.policy.run_timeout() + GRACE);
    options.schedule_to_start_timeout = envelope.policy.start_timeout_ms.map(Duration::from_millis);
    options.heartbeat_timeout = Some(terms.heartbeat());
    let left = Policy {
        max_attempts: (envelope.policy.max_attempts - execution.asking.before).max(1),
        ..envelope.policy.clone()
    };
    options.retry_policy = Some(match envelope.policy.on_unknown {
        OnUnknown::Retry => native_retries(&left, &[]),
        // Temporal would make another attempt after a lost worker; the workflow makes them.
        OnUnknown::Park => RetryPolicy::builder().maximum_attempts(1).build(),
    });
    options.cancellation_token = Some(cancel);
    // What has begun may have effects: its own word counts, not the wish to end it. What has not, or waits for another
    // attempt, the server ends at once.
    options.cancellation_type = ActivityCancellationType::WaitCancellationCompleted;
    ctx.execute_activity(Activities::execute, Exact(execution.clone()), options).await.map(|Exact(report)| report)
}

async fn rehearse<W>(
    ctx: &WorkflowContext<W>,
    envelope: &Envelope,
    terms: &Terms,
    cancel: WorkflowCancellationToken,
) -> Closed {
    // The real attempt may begin as late as the bound, and run as long as its policy says. Without word of it, the heartbeats
    // of `mirror`, the bound is all.
    let mut options = ActivityOptions::start_to_close_timeout(terms.rehearsal_bound() + envelope.policy.run_timeout());
    options.heartbeat_timeout = Some(terms.rehearsal_bound());
    options.schedule_to_start_timeout = envelope.policy.start_timeout_ms.map(Duration::from_millis);
    // A real attempt that nobody reports must not be rehearsed again and again: these time-outs are final.
    let bounded = ["TemporalTimeout:StartToClose", "TemporalTimeout:Heartbeat"];
    options.retry_policy = Some(native_retries(&envelope.policy, &bounded));
    options.cancellation_token = Some(cancel);
    let rehearsal = Rehearsal {
        id: envelope.id,
        epoch: envelope.epoch,
        bound_ms: terms.rehearsal_bound_ms,
        due_at: due_by(envelope),
        read: Some(Read::of(envelope)),
    };
    match ctx.execute_activity(Activities::rehearse, rehearsal, options).await {
        Ok(attempt) => Closed { reason: None, ..Closed::new(true, Some(Outcome::Succeeded), attempt, "") },
        Err(error) => match error.as_timeout().map(|timeout| timeout.timeout_type()) {
            Some(TimeoutType::StartToClose | TimeoutType::Heartbeat) => {
                Closed::new(true, None, 0, "its real attempt's end wasn't seen in time")
            }
            _ => Closed { rehearsal: true, ..failed(envelope, &error) },
        },
    }
}

/// What Temporal retries by itself, after a worker was lost. A failure that a worker reports brings its own delay.
fn native_retries(policy: &Policy, final_errors: &[&str]) -> RetryPolicy {
    let (first, factor, most) = match &policy.backoff {
        Backoff::Exponential(e) => (e.initial_ms, e.factor, e.max_ms),
        Backoff::Listed(Listed { delays_ms }) => {
            let first = delays_ms.first().copied().unwrap_or(0);
            (first, 1.0, first)
        }
    };
    RetryPolicy::builder()
        .initial_interval(Duration::from_millis(first.max(1)))
        .backoff_coefficient(factor.max(1.0))
        .maximum_interval(Duration::from_millis(most.max(first).max(1)))
        .maximum_attempts(policy.max_attempts.max(1).unsigned_abs())
        .non_retryable_error_types(final_errors.iter().copied())
        .build()
}

/// Reads an outcome from what became of the activity.
pub(super) fn failed(envelope: &Envelope, error: &ActivityExecutionError) -> Closed {
    match retry_state(error) {
        // It would have been tried again, had not somebody asked to cancel it.
        Some(RetryState::CancelRequested) => called_off(error),
        _ => ended(envelope, error),
    }
}

/// The same for an activity that came before the execution.
fn never_began(envelope: &Envelope, error: &ActivityExecutionError) -> Closed {
    Closed { attempt: 0, lost: false, ..failed(envelope, error) }
}

fn called_off(error: &ActivityExecutionError) -> Closed {
    let cancelled = |attempt, reason: &str| Closed::new(false, Some(Outcome::Cancelled), attempt, reason);
    match (report_of(error), error.as_timeout().map(|timeout| timeout.timeout_type())) {
        (Some(report), _) => cancelled(report.fence.attempt, "it was cancelled, and its last attempt failed"),
        (None, Some(TimeoutType::ScheduleToStart)) => cancelled(0, "it was cancelled while it waited for a worker"),
        (None, _) => {
            let why = "it was cancelled, and its last attempt was lost: whether that had an effect is unknown";
            Closed { lost: true, ..cancelled(1, why) }
        }
    }
}

fn ended(envelope: &Envelope, error: &ActivityExecutionError) -> Closed {
    let lost = |reason: &str| {
        Closed::new(
            false,
            Some(Outcome::Failed),
            envelope.policy.max_attempts,
            format!("{reason}, on its last attempt"),
        )
    };
    if let Some(cancelled) = error.as_cancelled() {
        return match cancelled.details::<Exact<Attempt>>() {
            Ok(Some(Exact(report))) => Closed::ran(report),
            _ => Closed::new(false, Some(Outcome::Cancelled), 0, "it was cancelled while it waited for a worker"),
        };
    }
    match error.as_timeout().map(|timeout| timeout.timeout_type()) {
        Some(TimeoutType::ScheduleToStart) => {
            let ms = envelope.policy.start_timeout_ms.unwrap_or_default();
            return Closed::new(false, Some(Outcome::Expired), 0, format!("it waited longer than {ms} ms to start"));
        }
        Some(TimeoutType::Heartbeat) => return lost("its worker stopped answering"),
        Some(_) => return lost("its worker neither ended it nor reported a time-out"),
        None => {}
    }
    match (report_of(error), error.reason()) {
        (Some(report), _) => Closed::ran(report),
        (None, Some(temporalio_common::error::IncomingError::Application(failure))) => {
            Closed::new(false, Some(Outcome::Failed), used_up(envelope, error), failure.to_string())
        }
        _ => Closed::new(false, Some(Outcome::Failed), used_up(envelope, error), error.to_string()),
    }
}

/// The attempt as its worker reported it with the failure.
pub(super) fn report_of(error: &ActivityExecutionError) -> Option<Attempt> {
    let Some(temporalio_common::error::IncomingError::Application(failure)) = error.reason() else { return None };
    failure.details::<Exact<Attempt>>().ok().flatten().map(|Exact(report)| report)
}

fn used_up(envelope: &Envelope, error: &ActivityExecutionError) -> i32 {
    match retry_state(error) {
        Some(RetryState::MaximumAttemptsReached) => envelope.policy.max_attempts,
        _ => 0,
    }
}

fn retry_state(error: &ActivityExecutionError) -> Option<RetryState> {
    match error {
        ActivityExecutionError::Failed(failure) => Some(failure.retry_state()),
        _ => None,
    }
}

/// Puts an end into its pin, however long Postgres is away. The attempt's result is in Temporal's history by now, so
/// an end is never in the pin without being in the history.
///
/// A local activity is cheap, but its retries grow the history and hold the workflow on one worker. So it tries
/// once; an ordinary activity, whose retries cost the history nothing, does the waiting. A cancelled workflow
/// settles as well: its token isn't heeded here.
pub async fn settle<W>(ctx: &WorkflowContext<W>, end: End) {
    let detached = WorkflowCancellationToken::new();
    let once = LocalActivityOptions::builder()
        .retry_policy(RetryPolicy::builder().maximum_attempts(1).build())
        .start_to_close_timeout(Duration::from_secs(3))
        .cancellation_token(detached.clone())
        .build();
    if ctx.execute_local_activity(Activities::settle, Exact(end.clone()), once).await.is_ok() {
        return;
    }
    let mut options = ActivityOptions::start_to_close_timeout(Duration::from_secs(10));
    let retries = RetryPolicy::builder().initial_interval(Duration::from_millis(250)).maximum_interval(SETTLE_EVERY);
    options.retry_policy = Some(retries.build());
    options.cancellation_token = Some(detached);
    while ctx.execute_activity(Activities::settle, Exact(end.clone()), options.clone()).await.is_err() {
        // Its retries have no end, so only an end given from outside (an operator's `activity fail`) gets here.
        ctx.timer(SETTLE_EVERY).await;
    }
}
