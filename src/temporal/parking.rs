//! Executions whose policy parks them where an effect is unknown. Temporal's own retry machine would make another attempt
//! after a lost worker, so here each attempt is an activity of its own, and the workflow decides what follows. A parked copy
//! holds neither a slot nor a worker: its workflow waits for a signal.

use std::time::Duration;

use temporalio_sdk::{
    ActivityExecutionError, ActivityOptions, TimeoutType, TimerOptions, TimerResult, WaitConditionOptions,
    WorkflowCancellationToken, WorkflowContext,
};
use temporalio_workflow::RetryPolicy;

use crate::executor::PARKED;
use crate::interaction::{Envelope, Fence, Outcome};
use crate::ledger::{Resolution, Resolved};
use crate::policy::Doubt;

use super::Terms;
use super::activities::{Activities, OVER};
use super::copy::{Closed, ask, attempt, failed, first, report_of, wants_to_ask};
use super::ledger::Parking;
use super::wire::Exact;

/// While the ledger is away, it is told at least so often.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// What a workflow remembers of a wait for a person.
#[derive(Debug, Default)]
pub struct Held {
    parked: Option<(uuid::Uuid, Fence)>,
    resolution: Option<Resolution>,
}

impl Held {
    /// Takes an answer, if it is about the attempt that is parked: one that comes again, or late, is not.
    pub fn resolve(&mut self, resolution: Resolution) {
        if self.parked == Some((resolution.id, resolution.fence)) && self.resolution.is_none() {
            self.resolution = Some(resolution);
        }
    }
}

/// A workflow that can wait for a person.
pub trait Holds {
    /// Whether what it runs has a pin: else the ledger knows nothing of it.
    fn is_pinned(&self) -> bool;
    /// Whether it waits.
    fn held(&self) -> &Held;
    /// The same.
    fn held_mut(&mut self) -> &mut Held;
}

/// What follows an attempt that did not succeed.
enum After {
    Ended(Closed),
    Again(Duration),
    Parked(Parking),
}

/// Executes a copy to its end, attempt by attempt.
pub(super) async fn execute<W: Holds>(
    ctx: &WorkflowContext<W>,
    envelope: &Envelope,
    terms: &Terms,
    cancel: WorkflowCancellationToken,
    waiting: &WorkflowCancellationToken,
) -> Closed {
    let mut execution = first(ctx, envelope);
    loop {
        let adopted = execution.is_adopted(envelope);
        let error = match attempt(ctx, &execution, terms, cancel.clone()).await {
            Ok(report) => return Closed { adopted, ..Closed::ran(report) },
            Err(error) => error,
        };
        if let Some(before) = wants_to_ask(&error) {
            if let Err(closed) = ask(ctx, &mut execution, before, waiting).await {
                return closed;
            }
            continue;
        }
        execution.asking.before += 1;
        let made = execution.asking.before;
        match after(envelope, made, &error) {
            After::Ended(closed) => return Closed { adopted, ..closed },
            After::Again(wait) => {
                let timer = TimerOptions::builder(wait).cancellation_token(cancel.clone()).build();
                if !matches!(ctx.timer(timer).await, TimerResult::Fired) {
                    let why = "it was cancelled, and its last attempt failed";
                    return Closed { adopted, ..cancelled(made, why) };
                }
            }
            After::Parked(parking) => {
                if let Some(closed) = hold(ctx, parking, adopted, &cancel).await {
                    return Closed { adopted, ..closed };
                }
            }
        }
    }
}

fn after(envelope: &Envelope, made: i32, error: &ActivityExecutionError) -> After {
    let parked = |cause, error: &str| {
        After::Parked(Parking {
            id: envelope.id,
            fence: Fence { epoch: envelope.epoch, attempt: made },
            cause,
            error: error.to_owned(),
            due_at: None,
            started_at: None,
        })
    };
    match error.as_timeout().map(|timeout| timeout.timeout_type()) {
        Some(TimeoutType::Heartbeat) => {
            return parked(Doubt::Worker, &format!("{PARKED}its worker stopped answering"));
        }
        Some(TimeoutType::StartToClose) => {
            let error = format!("{PARKED}its worker neither ended it nor reported a time-out");
            return parked(Doubt::Worker, &error);
        }
        _ => {}
    }
    let Some(report) = report_of(error).filter(|_| error.as_cancelled().is_none()) else {
        // Its retries are counted here, and not by the server.
        let closed = failed(envelope, error);
        let attempt = if closed.lost || closed.attempt > made { made } else { closed.attempt };
        return After::Ended(Closed { attempt, lost: false, ..closed });
    };
    match (report.failure.as_ref().and_then(|failure| failure.doubt()), report.retry_ms) {
        (_, Some(ms)) => After::Again(Duration::from_millis(ms.max(1).unsigned_abs())),
        (Some(cause), None) => After::Parked(Parking {
            id: report.id,
            fence: report.fence,
            cause,
            error: report.error.unwrap_or_default(),
            due_at: Some(report.due_at),
            started_at: Some(report.started_at),
        }),
        (None, None) => After::Ended(Closed::ran(report)),
    }
}

/// Waits for a person, and tells the ledger that it does as soon as there is a pin. None: it runs again.
async fn hold<W: Holds>(
    ctx: &WorkflowContext<W>,
    parking: Parking,
    adopted: bool,
    cancel: &WorkflowCancellationToken,
) -> Option<Closed> {
    let attempt = parking.fence.attempt;
    ctx.state_mut(|s| *s.held_mut() = Held { parked: Some((parking.id, parking.fence)), resolution: None });
    let mut told = false;
    let resolution = loop {
        if !told && (adopted || ctx.state(Holds::is_pinned)) {
            if !tell(ctx, &parking).await {
                ctx.state_mut(|s| *s.held_mut() = Held::default());
                let why = "nobody can say what came of its last attempt: its pin has ended, or is another's";
                return Some(Closed { refused: true, ..Closed::new(false, None, attempt, why) });
            }
            told = true;
        }
        let options = WaitConditionOptions::builder().cancellation_token(cancel.clone()).build();
        let answered = |s: &W| s.held().resolution.is_some() || (!told && s.is_pinned());
        if ctx.wait_condition_with_options(answered, options).await.is_err() {
            break None;
        }
        if let Some(resolution) = ctx.state_mut(|s| s.held_mut().resolution.take()) {
            break Some(resolution);
        }
    };
    ctx.state_mut(|s| *s.held_mut() = Held::default());
    let Some(Resolution { answer, result, reason, .. }) = resolution else {
        return Some(cancelled(attempt, "it was cancelled while it was parked: whether it had an effect is unknown"));
    };
    let outcome = match answer {
        Resolved::Retry => return None,
        Resolved::Succeeded => Outcome::Succeeded,
        Resolved::Failed => Outcome::Failed,
    };
    let reason = reason.unwrap_or_else(|| format!("resolved as {outcome}"));
    Some(Closed { result, ..Closed::new(false, Some(outcome), attempt, reason) })
}

/// However long the ledger is away. A cancellation is not heeded before: nobody can answer what the ledger does not show.
/// False: nobody ever will.
async fn tell<W>(ctx: &WorkflowContext<W>, parking: &Parking) -> bool {
    let mut options = ActivityOptions::start_to_close_timeout(Duration::from_secs(10));
    let retries = RetryPolicy::builder().initial_interval(Duration::from_millis(250)).maximum_interval(TELL_EVERY);
    options.retry_policy = Some(retries.build());
    options.cancellation_token = Some(WorkflowCancellationToken::new());
    while let Err(error) = ctx.execute_activity(Activities::park, Exact(parking.clone()), options.clone()).await {
        if is_over(&error) {
            return false;
        }
        // As with an end that is settled: only an operator's `activity fail` gets here.
        ctx.timer(TELL_EVERY).await;
    }
    true
}

fn is_over(error: &ActivityExecutionError) -> bool {
    matches!(error.reason(),
        Some(temporalio_common::error::IncomingError::Application(failure)) if failure.type_name() == Some(OVER))
}

fn cancelled(attempt: i32, why: &str) -> Closed {
    Closed::new(false, Some(Outcome::Cancelled), attempt, why)
}
