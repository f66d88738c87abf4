//! What a copy does to the world: call the runner, and write to the ledger.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use temporalio_macros::activities;
use temporalio_sdk::ApplicationFailure;
use temporalio_sdk::activities::{ActivityContext, ActivityError, ActivityInfo};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info_span};
use uuid::Uuid;

use crate::executor::{self, Answer, Call, Executor};
use crate::faults::{self, Whether};
use crate::interaction::{Attempt, Envelope, Fence, Outcome, Payload, Side};
use crate::metrics::Metrics;
use crate::observer::{self, DEFAULT_GROUP, Dequeue, Observer, Seen, Sighting, hashed};
use crate::policy::{Doubt, Failure, Next, OnUnknown};
use crate::telemetry;

use super::ask::{ASK, Asked, Asking, Execution, MustAsk, Resets};
use super::late::Watch;
use super::ledger::{End, Ledger, LedgerError, OpenRehearsal, Parking};
use super::mirror::Unrecorded;
use super::wire::Exact;
use super::words;

/// A ledger that answers later than this doesn't answer: a slow Postgres must not hold the slots of executions.
pub(super) const LEDGER_WITHIN: Duration = Duration::from_secs(2);
/// An attempt that failed before another began has its record after so long, or never.
const LOST_AFTER: Duration = Duration::from_secs(3);
/// The longest wait between two looks at what is behind.
const BEHIND_AT_MOST: Duration = Duration::from_secs(2);

/// The failure by which a workflow hears that nobody will say what came of its attempt.
pub(super) const OVER: &str = "over";

/// What a rehearsal needs to know of its interaction.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rehearsal {
    /// The interaction.
    pub id: Uuid,
    /// The pin's epoch.
    pub epoch: i32,
    /// How long it occupies at most.
    pub bound_ms: u64,
    /// When the interaction was due, where that is known better than by Temporal's schedule.
    pub due_at: Option<DateTime<Utc>>,
    /// The copy, as far as the comparator looks at it. Absent in histories of an older version.
    #[serde(default)]
    pub read: Option<Read>,
}

/// What this side read of a copy that it does not run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Read {
    kind: String,
    group: Option<String>,
    payload_hash: [u8; 32],
    /// The payload's text, only where its hash is not the promised one.
    payload: Option<String>,
}

impl Read {
    /// What `envelope` says. Pure, so that a replay comes to the same.
    pub fn of(envelope: &Envelope) -> Self {
        let (payload_hash, other) = hashed(envelope.payload.clone(), &envelope.payload_hash);
        let payload = other.map(|payload| payload.get().to_owned());
        Self { kind: envelope.kind.clone(), group: envelope.group.clone(), payload_hash, payload }
    }

    fn dequeued(self, due_at: DateTime<Utc>) -> Seen {
        Seen::Dequeued {
            due_at,
            kind: self.kind,
            group: self.group.unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
            payload_hash: self.payload_hash,
            payload: self.payload.and_then(|text| Payload::parse(text).ok()),
        }
    }
}

/// The activities and what they reach.
pub struct Activities {
    /// Runs the interaction.
    pub executor: Arc<dyn Executor>,
    /// Where ends are written.
    pub ledger: Arc<dyn Ledger>,
    /// Rehearsals that the ledger hasn't heard of yet.
    pub unrecorded: Arc<Unrecorded>,
    /// Sees what is done here.
    pub observer: Observer,
    /// Set when this worker is to end.
    pub stopping: CancellationToken,
    /// Where what comes too late is counted.
    pub metrics: Option<Arc<Metrics>>,
    /// Whether unpinned copies of an account ask their pin.
    pub must_ask: MustAsk,
    /// Which runs were made by a reset.
    pub resets: Resets,
}

#[activities]
impl Activities {
    /// Runs the interaction once. A failure says when to try again, or that there is no point, so that both sides
    /// wait alike.
    #[activity(name = "execute")]
    pub async fn execute(
        self: Arc<Self>,
        ctx: ActivityContext,
        input: Exact<Execution>,
    ) -> Result<Exact<Attempt>, ActivityError> {
        let Exact(execution) = input;
        if self.must_ask(&execution, ctx.info()).await {
            return Err(asks_first(&execution, ctx.info()));
        }
        let Execution { envelope, asking } = execution;
        self.run(&ctx, envelope, &asking).await
    }

    /// Tells the ledger that an interaction waits for a person. A failure of the type `over` says that nobody will answer.
    #[activity(name = "park")]
    pub async fn park(self: Arc<Self>, _: ActivityContext, parking: Exact<Parking>) -> Result<(), ActivityError> {
        let Exact(parking) = parking;
        match self.within(self.ledger.park(&parking)).await {
            Ok(true) => Ok(()),
            Ok(false) => {
                tracing::warn!(id = %parking.id, fence = %parking.fence, "what would be parked has no pin that is open");
                let over = ApplicationFailure::builder("its pin has ended, or is another's").type_name(OVER.to_owned());
                Err(ActivityError::application(over.non_retryable(true).build()))
            }
            Err(error) => {
                tracing::warn!(id = %parking.id, fence = %parking.fence, %error, "the ledger isn't told yet what is parked");
                Err(ApplicationFailure::new(error).into())
            }
        }
    }

    /// Occupies until [`super::mirror`] ends it with the real attempt's end. Runs nothing, and never writes a pin.
    #[activity(name = "rehearse")]
    pub async fn rehearse(self: Arc<Self>, ctx: ActivityContext, rehearsal: Rehearsal) -> Result<i32, ActivityError> {
        if let Some(wait) = faults::hold(Side::Temporal, rehearsal.id) {
            wait.await;
        }
        let info = ctx.info();
        let dequeued_at = at(info.started_time);
        // It ends with the dequeue: nobody here is told when the mirror ends the rehearsal.
        let span = info_span!("rehearse", id = %rehearsal.id, side = "temporal");
        telemetry::join(&span, rehearsal.id);
        let open = OpenRehearsal {
            id: rehearsal.id,
            fence: Fence { epoch: rehearsal.epoch, attempt: number(info) },
            token: info.task_token.clone(),
            due_at: due_at(rehearsal.due_at, info),
            dequeued_at,
            bound_at: dequeued_at + TimeDelta::milliseconds(rehearsal.bound_ms as i64),
        };
        if let Some(read) = rehearsal.read {
            let (id, fence, what) = (open.id, open.fence, read.dequeued(open.due_at));
            self.observer.see(Sighting { id, side: Side::Temporal, fence, rehearsal: true, at: Utc::now(), what });
        }
        // Without the ledger it occupies all the same; the slot is kept free for executions meanwhile.
        if let Err(error) = self.within(self.ledger.rehearsal_dequeued(&open)).instrument(span).await {
            tracing::warn!(id = %open.id, fence = %open.fence, %error, "a rehearsal's dequeue isn't recorded yet");
            self.unrecorded.push(open);
        }
        Err(ActivityError::WillCompleteAsync)
    }

    /// Looks once whether all these pins have ended. "Not yet" is a failure with a delay, which the server waits.
    #[activity(name = "behind")]
    pub async fn behind(self: Arc<Self>, ctx: ActivityContext, ids: Vec<Uuid>) -> Result<(), ActivityError> {
        let why = match self.within(self.ledger.unended_up_to(&ids)).await {
            Ok(open) if open.is_empty() => return Ok(()),
            Ok(open) => format!("waits for {} earlier of its series, first {}", open.len(), open[0]),
            Err(error) => format!("can't ask what is behind: {error}"),
        };
        Err(look_again("behind", why, ctx.info()))
    }

    /// Asks the pin of a copy whether it may run. Where Postgres can't be reached, the server waits and asks again.
    #[activity(name = "ask")]
    pub async fn ask(
        self: Arc<Self>,
        ctx: ActivityContext,
        execution: Exact<Execution>,
    ) -> Result<Asked, ActivityError> {
        let Exact(execution) = execution;
        let envelope = &execution.envelope;
        let anew = self.resets.made(&execution, ctx.info()).await.then_some(execution.asking.before);
        let run = ctx.info().workflow_run_id.clone();
        let why = match self.within(self.ledger.ask(envelope, anew)).await {
            Ok(Asked::Run { behind, .. }) if !behind.is_empty() => {
                format!("waits for what Postgres runs of its series, last {}", behind[0])
            }
            Ok(Asked::Run { behind, attempts, .. }) => return Ok(Asked::Run { behind, attempts, run }),
            Ok(Asked::Beside { attempts, .. }) => return Ok(Asked::Beside { attempts, run }),
            Ok(never) => return Ok(never),
            Err(error) => {
                tracing::warn!(id = %envelope.id, %error, "a copy must ask its pin before it runs, and can't; it waits");
                format!("can't ask its pin: {error}")
            }
        };
        Err(look_again("ask", why, ctx.info()))
    }

    /// Puts an end into its pin.
    #[activity(name = "settle")]
    pub async fn settle(self: Arc<Self>, _: ActivityContext, end: Exact<End>) -> Result<(), ActivityError> {
        let Exact(end) = end;
        let span = info_span!("settle", id = %end.id, outcome = %end.outcome);
        telemetry::join(&span, end.id);
        self.within(self.ledger.settle(&end)).instrument(span).await.map_err(|error| {
            tracing::warn!(id = %end.id, outcome = %end.outcome, %error, "an end isn't in its pin yet");
            ApplicationFailure::new(error).into()
        })
    }
}

impl Activities {
    async fn run(
        &self,
        ctx: &ActivityContext,
        mut envelope: Envelope,
        asking: &Asking,
    ) -> Result<Exact<Attempt>, ActivityError> {
        faults::alter(Side::Temporal, &mut envelope);
        if let Some(wait) = faults::hold(Side::Temporal, envelope.id) {
            wait.await;
        }
        let (number, since) = (asking.before.saturating_add(number(ctx.info())), asking.since);
        let this = Try { envelope: &envelope, info: ctx.info(), number, since, began: Instant::now() };
        let call = Call::new(&envelope, Side::Temporal, this.number);
        let watch = Watch::new(ctx);
        // A worker that wakes up is handed what its open polls were given while it slept.
        if watch.may_be_late() && watch.is_late(ctx).await {
            return Err(self.refused(&this, "it was not begun"));
        }
        self.begins(&this);
        if faults::is(Whether::Twice, Side::Temporal, envelope.id) {
            self.begins(&this);
            executor::run(&*self.executor, &call, &envelope.policy).await;
        }
        let began = Instant::now();
        let answer = if this.too_late() {
            Some(Answer::Failed { failure: Failure::Permanent, error: "gave up: the policy's time had passed".into() })
        } else {
            let span = info_span!("execute", id = %envelope.id, account = envelope.account, kind = envelope.kind,
                side = "temporal", fence = %call.fence);
            telemetry::join(&span, envelope.id);
            tokio::select! {
                answer = executor::run(&*self.executor, &call, &envelope.policy).instrument(span) => Some(answer),
                () = beat(ctx) => unreachable!("a heart doesn't stop by itself"),
                () = self.count_lost(&this) => unreachable!("it goes on for as long as the attempt"),
                () = ctx.cancelled() => None,
            }
        };
        // Before anything is written of it: another attempt may be under way, whose records these would look like.
        if watch.may_be_late() && watch.is_late(ctx).await {
            return Err(self.refused(&this, "its result was not taken"));
        }
        match answer {
            None => Err(self.called_off(&this)),
            Some(Answer::Done(result)) => {
                let report = Attempt { outcome: Some(Outcome::Succeeded), result: Some(result), ..this.report() };
                self.ended(&envelope, &report);
                Ok(Exact(report))
            }
            Some(Answer::Failed { failure, error }) => Err(self.next(&this, failure, error)),
            Some(Answer::Detached { silence }) => tokio::select! {
                ended = self.detach(&this, silence, began.elapsed()) => Err(ended),
                () = beat(ctx) => unreachable!("a heart doesn't stop by itself"),
                () = ctx.cancelled() => Err(self.called_off(&this)),
            },
        }
    }

    /// Has the attempts before this one counted, should one have been lost with its worker: then nobody else says so before
    /// the end, and a reset meanwhile would use this one's number again. What was reported has its record by then.
    async fn count_lost(&self, this: &Try<'_>) {
        let fence = Fence { epoch: this.envelope.epoch, attempt: this.number };
        if this.info.attempt <= 1 || !this.envelope.pinned {
            return std::future::pending().await;
        }
        loop {
            tokio::time::sleep(LOST_AFTER).await;
            match self.within(self.ledger.over_before(this.envelope.id, fence)).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(id = %this.envelope.id, %fence, %error, "lost attempts aren't counted yet")
                }
            }
        }
        std::future::pending().await
    }

    /// The server has given the attempt up, and to another, or its workflow is gone. It takes nothing of this one any more.
    fn refused(&self, this: &Try<'_>, what: &str) -> ActivityError {
        let report = this.report();
        if let Some(metrics) = &self.metrics {
            metrics.late_results.with_label_values(&["temporal"]).inc();
        }
        tracing::warn!(id = %report.id, fence = %report.fence, what, "an attempt came too late: Temporal no longer waits for it");
        if this.envelope.pinned {
            let Attempt { id, side, fence, ended_at: at, .. } = report;
            self.observer.see(Sighting { id, side, fence, rehearsal: false, at, what: Seen::Refused });
        }
        let late = ApplicationFailure::builder(format!("it came too late: {what}")).type_name("late".to_owned());
        ActivityError::application(late.build())
    }

    /// Words a failed attempt for Temporal's retry machine, or for the workflow that counts.
    pub(super) fn next(&self, this: &Try<'_>, failure: Failure, error: String) -> ActivityError {
        let envelope = this.envelope;
        let report = failed(this.report(), failure.clone(), error);
        match envelope.policy.after(envelope.id, report.fence.attempt, &failure, this.age()) {
            Next::Retry(delay) => self.retry(envelope, report, delay),
            Next::GiveUp => self.give_up(envelope, report),
            Next::Park => self.parked(envelope, report),
        }
    }

    fn give_up(&self, envelope: &Envelope, report: Attempt) -> ActivityError {
        self.ended(envelope, &report);
        ActivityError::application(words::give_up(report))
    }

    fn parked(&self, envelope: &Envelope, report: Attempt) -> ActivityError {
        let (report, failure) = words::park(report);
        self.ended(envelope, &report);
        ActivityError::application(failure)
    }

    fn retry(&self, envelope: &Envelope, report: Attempt, delay: Duration) -> ActivityError {
        let (report, failure) = words::retry(report, delay, envelope.policy.on_unknown);
        self.ended(envelope, &report);
        self.record(report);
        ActivityError::application(failure)
    }

    /// The call was dropped: this worker stops, and another takes over at once; or the workflow was cancelled, and that is
    /// the end.
    fn called_off(&self, this: &Try<'_>) -> ActivityError {
        let (envelope, report) = (this.envelope, this.report());
        if !self.stopping.is_cancelled() {
            let error = Some("its workflow was cancelled while it ran".to_owned());
            let report = Attempt { outcome: Some(Outcome::Cancelled), error, ..report };
            self.ended(envelope, &report);
            return ActivityError::cancelled_with_details(Exact(report));
        }
        let report = failed(report, Failure::Unknown { cause: Doubt::Worker }, "its worker was stopped".to_owned());
        if envelope.policy.on_unknown == OnUnknown::Park {
            return self.parked(envelope, report);
        }
        if report.fence.attempt < envelope.policy.max_attempts {
            return self.retry(envelope, report, Duration::ZERO);
        }
        self.ended(envelope, &report);
        let failure = ApplicationFailure::builder("its worker was stopped, on its last attempt");
        ActivityError::application(failure.non_retryable(true).details(Exact(report)).build())
    }

    /// Whether an execution has to ask its pin before it begins.
    async fn must_ask(&self, execution: &Execution, info: &ActivityInfo) -> bool {
        let Execution { envelope, asking } = execution;
        match &asking.asked_in {
            Some(run) => info.workflow_run_id.as_ref() != Some(run),
            None if !envelope.pinned && (self.must_ask)(&envelope.account) => true,
            None => self.resets.made(execution, info).await,
        }
    }

    /// Sees that an execution begins.
    fn begins(&self, this: &Try<'_>) {
        self.observer.dequeued(Dequeue {
            envelope: this.envelope,
            side: Side::Temporal,
            attempt: this.number,
            rehearsal: false,
            due_at: this.due_at(),
        });
    }

    /// Sees the end of an attempt. What has no pin is compared with nothing.
    fn ended(&self, envelope: &Envelope, report: &Attempt) {
        if envelope.pinned {
            let Attempt { id, side, fence, rehearsal, ended_at: at, .. } = *report;
            let what = observer::ended(report.outcome, report.retry_ms, report.error.as_deref());
            self.observer.see(Sighting { id, side, fence, rehearsal, at, what });
        }
    }

    pub(super) async fn within<T>(&self, call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
        within(&self.observer, call).await
    }

    /// Not awaited: a Postgres outage must not stretch the waits between attempts.
    fn record(&self, report: Attempt) {
        let (ledger, unrecorded, observer) = (self.ledger.clone(), self.unrecorded.clone(), self.observer.clone());
        self.unrecorded.records.spawn(async move {
            if let Err(error) = within(&observer, ledger.record_attempt(&report)).await {
                unrecorded.lost_attempts.fetch_add(1, Relaxed);
                tracing::warn!(id = %report.id, fence = %report.fence, %error, "an attempt's record was lost");
            }
        });
    }
}

async fn within<T>(observer: &Observer, call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, LedgerError> {
    tokio::time::timeout(LEDGER_WITHIN, call).await.unwrap_or_else(|_| {
        observer.disturbed(Side::Postgres, "the ledger does not answer the Temporal side in time");
        Err(format!("the ledger didn't answer within {LEDGER_WITHIN:?}").into())
    })
}

/// One attempt at an interaction.
pub(super) struct Try<'a> {
    pub(super) envelope: &'a Envelope,
    pub(super) info: &'a ActivityInfo,
    /// Its number, counted over everything that was made before.
    number: i32,
    /// See [`Asking::since`].
    since: Option<DateTime<Utc>>,
    began: Instant,
}

impl Try<'_> {
    /// When it was due. An earlier attempt's wait is the server's to know.
    fn due_at(&self) -> DateTime<Utc> {
        let scheduled = at(self.info.current_attempt_scheduled_time.or(self.info.scheduled_time));
        due_by(self.envelope).filter(|_| self.number <= 1).unwrap_or(scheduled)
    }

    /// A retry after a lost worker is Temporal's own and knows nothing of the policy's last hour.
    fn too_late(&self) -> bool {
        let limit = self.envelope.policy.give_up_after_ms.map(|ms| TimeDelta::milliseconds(ms as i64));
        self.info.attempt > 1 && limit.is_some_and(|limit| at(self.info.started_time) - self.first_due() > limit)
    }

    /// How long ago it was first due: by the server's clock until it began, and by how long it took from there. This machine's
    /// clock may be wrong, and says nothing.
    pub(super) fn age(&self) -> Duration {
        let before = at(self.info.started_time) - self.first_due();
        before.to_std().unwrap_or_default() + self.began.elapsed()
    }

    fn first_due(&self) -> DateTime<Utc> {
        self.envelope.run_at.or(self.since).unwrap_or_else(|| at(self.info.scheduled_time))
    }

    pub(super) fn report(&self) -> Attempt {
        Attempt {
            id: self.envelope.id,
            side: Side::Temporal,
            fence: Fence { epoch: self.envelope.epoch, attempt: self.number },
            rehearsal: false,
            due_at: self.due_at(),
            started_at: at(self.info.started_time),
            ended_at: Utc::now(),
            outcome: None,
            failure: None,
            retry_ms: None,
            result: None,
            error: None,
        }
    }
}

fn failed(report: Attempt, failure: Failure, error: String) -> Attempt {
    Attempt { outcome: Some(Outcome::Failed), failure: Some(failure), error: Some(error), ..report }
}

/// Ends an execution that has not begun; its workflow asks the pin and schedules it again. This attempt isn't counted.
fn asks_first(execution: &Execution, info: &ActivityInfo) -> ActivityError {
    let before = execution.asking.before + number(info) - 1;
    let failure = ApplicationFailure::builder("it has to ask its pin before it runs").type_name(ASK.to_owned());
    ActivityError::application(failure.non_retryable(true).details(before).build())
}

/// «Not yet»: the server waits, longer each time, and asks again.
fn look_again(what: &str, why: String, info: &ActivityInfo) -> ActivityError {
    let delay = Duration::from_millis(50).saturating_mul(1 << info.attempt.min(6)).min(BEHIND_AT_MOST);
    ApplicationFailure::builder(why).type_name(what.to_owned()).next_retry_delay(delay).build().into()
}

/// Beats for as long as the call runs. A killed worker is noticed because its beats end.
async fn beat(ctx: &ActivityContext) {
    let every = ctx.info().heartbeat_timeout.unwrap_or(Duration::from_secs(10)) / 4;
    loop {
        if let Err(error) = ctx.record_heartbeat(()).await {
            tracing::warn!(%error, "a heartbeat couldn't be written");
        }
        tokio::time::sleep(every).await;
    }
}

fn number(info: &ActivityInfo) -> i32 {
    info.attempt.try_into().unwrap_or(i32::MAX)
}

/// When an interaction was due, for its first attempt. A member of a series is due when its turn comes, which is when
/// the series' workflow schedules it.
pub(super) fn due_by(envelope: &Envelope) -> Option<DateTime<Utc>> {
    envelope.run_at.filter(|_| envelope.series.is_none())
}

fn due_at(known: Option<DateTime<Utc>>, info: &ActivityInfo) -> DateTime<Utc> {
    let scheduled = at(info.current_attempt_scheduled_time.or(info.scheduled_time));
    known.filter(|_| info.attempt <= 1).unwrap_or(scheduled)
}

fn at(time: Option<SystemTime>) -> DateTime<Utc> {
    time.map_or_else(Utc::now, DateTime::from)
}
