//! What goes over the wire, and how `/openapi.json` describes it.

use axum::http::StatusCode;
use chrono::{DateTime, Utc};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Problem;
use crate::interaction::{Attempt, OnFailure, Outcome, Payload, Side, Stage, When, hex};
use crate::ledger::{Attempted, Detached, Ended, Story, Waits};
use crate::policy::{Failure, Policy};
use crate::queue::remote::Handed;
use crate::report::{Difference, Observation};

/// One unit of work. `router::request` reads it, and names every fault.
#[derive(ToSchema)]
#[schema(example = json!({
    "account": "acme", "kind": "sync", "key": "sync-2026-11-22", "payload": { "since": "2026-11-21" },
    "series": "calendar-7", "priority": 10, "policy": { "max_attempts": 3 }
}))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct NewInteraction {
    /// The tenant; the unit of cutover.
    #[schema(min_length = 1, max_length = 200)]
    account: String,
    /// The type of work, which narrows a cutover further.
    #[schema(min_length = 1, max_length = 100)]
    kind: String,
    /// What must run: any JSON value, passed on byte for byte.
    payload: Value,
    /// The idempotency key, unique within the account. Absent: one is made, and answered.
    #[schema(min_length = 1, max_length = 400)]
    key: Option<String>,
    /// Interactions of one account, kind and series run one at a time, in the order in which they came in.
    #[schema(min_length = 1, max_length = 400)]
    series: Option<String>,
    /// A sub-queue with a concurrency limit of its own.
    #[schema(min_length = 1, max_length = 100)]
    group: Option<String>,
    /// Not before this instant (RFC 3339); at most 30 days ago and 366 days ahead. Absent: now.
    run_at: Option<DateTime<Utc>>,
    /// Higher first; 0 where absent.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i16>,
    /// What must have ended before it starts: a list of ids of the same account, or an object. Only in stage `complete`.
    after: Option<NewAfter>,
    /// Of the account's interactions with the same one, of whatever kind, at most one runs at any time, in any order. What waits for
    /// another attempt lets the others go meanwhile. Only in stage `complete`.
    #[schema(min_length = 1, max_length = 400)]
    exclusive: Option<String>,
    /// Retries and time-outs.
    policy: Option<Policy>,
}

/// What an interaction waits for. A plain list is `ids`.
#[derive(ToSchema)]
#[schema(example = json!({ "keys": ["extract-7", "extract-8"], "when": "all", "on_failure": "skip" }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct NewAfter {
    /// Interactions as their enqueues answered them; with `keys` at most 1,000.
    ids: Option<Vec<Uuid>>,
    /// Interactions by their keys, also of the same batch.
    keys: Option<Vec<String>>,
    /// Whether all of them must have ended, or one success is enough; `all` where absent.
    when: Option<When>,
    /// What becomes of it where they don't succeed: `skip` (it is cancelled, also where absent) or `run`.
    on_failure: Option<OnFailure>,
}

/// The answer to an enqueue.
#[derive(Debug, Serialize, ToSchema)]
#[schema(example = json!({
    "id": "9a2a77af-b0d5-8c76-864e-852f250f1799", "key": "sync-2026-11-22", "owner": "temporal", "stage": "shadow", "epoch": 1
}))]
pub(super) struct Answer {
    /// The interaction, the same for every repetition of its key.
    pub(super) id: Uuid,
    /// The caller's key, or the one that was made.
    pub(super) key: String,
    /// The side that executes it.
    pub(super) owner: Side,
    /// The stage that it was taken in in.
    pub(super) stage: Stage,
    /// Grows when ownership moves.
    pub(super) epoch: i32,
    /// False where it was started without a pin: in stage off, or while Postgres was away. Absent where it has one.
    #[serde(skip_serializing_if = "is_true")]
    #[schema(required = false)]
    pub(super) pinned: bool,
    /// How it ended, where `?wait=` was asked for and it ended in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<End>,
}

/// How an interaction ended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct End {
    /// How.
    outcome: Outcome,
    /// When.
    ended_at: DateTime<Utc>,
    /// The runner's answer, for a success.
    #[schema(value_type = Value)]
    result: Option<Payload>,
    /// Why, where it did not succeed.
    reason: Option<String>,
}

impl Answer {
    /// Adds the end that was waited for.
    pub(super) fn end(&mut self, end: Option<Ended>) {
        self.end = end.map(|Ended { outcome, ended_at, result, reason, .. }| End { outcome, ended_at, result, reason });
    }
}

/// Many units of work.
#[derive(ToSchema)]
#[schema(example = json!({ "interactions": [{ "account": "acme", "kind": "sync", "payload": 1 }] }))]
#[allow(dead_code, reason = "it documents what is read item by item")]
pub(super) struct Batch {
    /// Taken in each for itself; those of one series in this order.
    interactions: Vec<NewInteraction>,
}

/// An answer for each interaction of a batch.
#[derive(Serialize, ToSchema)]
pub(super) struct BatchAnswer {
    /// In the order of the request.
    pub(super) answers: Vec<ItemAnswer>,
}

/// What a single request would have been answered.
#[derive(Serialize, ToSchema)]
pub(super) struct ItemAnswer {
    /// The status.
    #[schema(example = 201)]
    status: u16,
    /// The body.
    body: ItemBody,
}

/// The body of one answer: that of an enqueue, or a problem.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum ItemBody {
    Accepted(Answer),
    Refused(Problem),
}

impl From<Result<(StatusCode, Answer), Problem>> for ItemAnswer {
    fn from(answered: Result<(StatusCode, Answer), Problem>) -> Self {
        match answered {
            Ok((status, answer)) => Self { status: status.as_u16(), body: ItemBody::Accepted(answer) },
            Err(problem) => Self { status: problem.status().as_u16(), body: ItemBody::Refused(problem) },
        }
    }
}

/// What came of a wish to cancel.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({ "id": "9a2a77af-b0d5-8c76-864e-852f250f1799", "state": "cancelled" }))]
pub(super) struct Cancelled {
    /// The interaction.
    pub(super) id: Uuid,
    /// `cancelled`; or `asked`, while it is not known whether that came in time.
    pub(super) state: &'static str,
}

/// What came of handing it over.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({ "id": "9a2a77af-b0d5-8c76-864e-852f250f1799", "state": "moved" }))]
pub(super) struct HandoverAnswer {
    /// The interaction.
    pub(super) id: Uuid,
    /// `moved`, by this request; or `temporal`, which owned it already.
    pub(super) state: &'static str,
}

/// What came of an attempt whose effect is unknown.
#[derive(ToSchema)]
#[schema(example = json!({ "as": "succeeded", "result": { "sent": true }, "reason": "the bank has it" }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct Resolve {
    /// What came of it: it had its effect, it failed, or it is to run again.
    #[schema(rename = "as")]
    answer: crate::ledger::Resolved,
    /// The result, for a success; null where absent.
    result: Option<Value>,
    /// Why, for those who look it up later.
    #[schema(max_length = 1000)]
    reason: Option<String>,
}

/// What came of saying so.
#[derive(Serialize, ToSchema)]
#[schema(example = json!({ "id": "9a2a77af-b0d5-8c76-864e-852f250f1799", "state": "succeeded" }))]
pub(super) struct ResolveAnswer {
    /// The interaction.
    pub(super) id: Uuid,
    /// `succeeded` or `failed`, as which it has ended; `retry`, where it runs again; or `asked`, while Temporal is told.
    pub(super) state: &'static str,
}

/// What is known of an interaction.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum LookedUp {
    /// It has a pin.
    Pinned(Box<Found>),
    /// It was started without one.
    Unpinned(Unpinned),
}

/// What goes without saying.
fn is_true(it: &bool) -> bool {
    *it
}

/// An interaction that was started without a pin, in stage off or while Postgres was away; or any that Temporal has, as
/// long as Postgres can't be asked.
#[derive(Serialize, ToSchema)]
pub(super) struct Unpinned {
    /// The interaction.
    pub(super) id: Uuid,
    /// `running`, or how it ended; `accepted` for a member of a series while Postgres is away.
    pub(super) state: &'static str,
    /// Null.
    pub(super) pin: (),
}

/// Everything recorded of a pinned interaction.
#[derive(Serialize, ToSchema)]
pub(super) struct Found {
    /// The interaction.
    id: Uuid,
    /// The tenant.
    account: String,
    /// The type of work.
    kind: String,
    /// The idempotency key.
    key: String,
    /// The series.
    series: Option<String>,
    /// `scheduled` (due later), `waiting` (for others, or to be delivered), `ready`, `running`, `held` (Temporal has other
    /// work under this id), `unknown_outcome` (parked until somebody resolves it), or how it ended.
    state: String,
    /// Why it ended so, where it did not succeed.
    reason: Option<String>,
    /// What it waits for: the member of its series whose turn it is, what it runs after, who has the turn of its `exclusive`; null where
    /// it waits for none of them.
    waits_for: Option<Waits>,
    /// The runner's answer, for a success.
    #[schema(value_type = Value)]
    result: Option<Payload>,
    /// The decision.
    pin: FoundPin,
    /// Which side does what.
    sides: Sides,
    /// Attempts of both sides that have ended, oldest first.
    attempts: Vec<FoundAttempt>,
    /// The attempt that its runner took away and has not ended; null where there is none.
    away: Option<FoundAway>,
    /// What the comparator makes of it; null where it has not taken notice of it yet, or keeps it no longer.
    observation: Option<FoundObservation>,
}

/// What the comparator makes of an interaction. docs/divergences.md explains each verdict and class.
#[derive(Serialize, ToSchema)]
struct FoundObservation {
    /// `in_flight` (not judged yet), `matched`, `diverged`, `dropped`, `not_comparable` or `incomplete`.
    verdict: String,
    /// The classes of what differs, each once.
    classes: Vec<String>,
    /// What differs.
    divergences: Vec<FoundDivergence>,
    /// Why it is neither matched nor diverged.
    reason: Option<String>,
    /// When it was judged.
    judged_at: Option<DateTime<Utc>>,
}

/// One difference between the sides.
#[derive(Serialize, ToSchema)]
struct FoundDivergence {
    /// Its class.
    class: String,
    /// The side that is off.
    side: Option<String>,
    /// What was seen.
    detail: Option<String>,
}

impl From<Observation> for FoundObservation {
    fn from(o: Observation) -> Self {
        let mut classes: Vec<_> = o.divergences.iter().map(|difference| difference.class.clone()).collect();
        classes.sort();
        classes.dedup();
        let found = |Difference { class, side, detail, .. }| FoundDivergence { class, side, detail };
        let divergences = o.divergences.into_iter().map(found).collect();
        Self { verdict: o.verdict, classes, divergences, reason: o.reason, judged_at: o.judged_at }
    }
}

/// The recorded decision which side owns an interaction.
#[derive(Serialize, ToSchema)]
struct FoundPin {
    /// The side that executes.
    owner: Side,
    /// The stage at that moment.
    stage: Stage,
    /// Grows when ownership moves.
    epoch: i32,
    /// The flags that decided.
    flag_revision: String,
    /// Its number in the series.
    series_no: Option<i64>,
    /// SHA-256 of the payload, in hexadecimal.
    payload_hash: String,
    /// When it was decided.
    created_at: DateTime<Utc>,
    /// When it was to run.
    run_at: DateTime<Utc>,
    /// When it ended.
    ended_at: Option<DateTime<Utc>>,
    /// Whether the Temporal copy still waits to be delivered.
    undelivered: bool,
    /// What Temporal has under this id, where that is other work.
    conflict: Option<String>,
    /// When somebody first asked to cancel it.
    cancel_requested_at: Option<DateTime<Utc>>,
}

/// What each side does with an interaction.
#[derive(Serialize, ToSchema)]
struct Sides {
    /// The legacy side.
    temporal: Part,
    /// The queue that stays.
    postgres: Part,
}

/// One side's part.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Part {
    /// It runs it.
    Executes,
    /// It queues it for real and runs nothing.
    Rehearses,
    /// It has no copy.
    Nothing,
}

/// One attempt of one side.
#[derive(Serialize, ToSchema)]
struct FoundAttempt {
    /// Who made it.
    side: Side,
    /// True where nothing was run.
    rehearsal: bool,
    /// The epoch of the copy.
    epoch: i32,
    /// Counted from 1.
    attempt: i32,
    /// When it was to start.
    due_at: DateTime<Utc>,
    /// When the side took it from its queue.
    started_at: DateTime<Utc>,
    /// When its end was recorded.
    ended_at: DateTime<Utc>,
    /// How it ended; absent where a rehearsal was bounded.
    outcome: Option<Outcome>,
    /// Whether a failure was worth another attempt.
    retryable: Option<bool>,
    /// Another attempt followed after so many milliseconds.
    retry_ms: Option<i64>,
    /// What went wrong.
    error: Option<String>,
}

impl From<Attempt> for FoundAttempt {
    fn from(a: Attempt) -> Self {
        Self {
            side: a.side,
            rehearsal: a.rehearsal,
            epoch: a.fence.epoch,
            attempt: a.fence.attempt,
            due_at: a.due_at,
            started_at: a.started_at,
            ended_at: a.ended_at,
            outcome: a.outcome,
            retryable: a.failure.map(|failure| failure != Failure::Permanent),
            retry_ms: a.retry_ms,
            error: a.error,
        }
    }
}

impl Found {
    /// What the ledger and the comparator know.
    pub(super) fn new(
        story: Story,
        waits_for: Option<Waits>,
        away: Option<Detached>,
        observation: Option<Observation>,
    ) -> Self {
        let Story { pin, account, key, series, state, undelivered, attempts } = story;
        let result = attempts.iter().rev().find(|a| !a.rehearsal && a.result.is_some()).and_then(|a| a.result.clone());
        let part = |side| match (pin.stage.writes_to(side), pin.owner == side) {
            (false, _) => Part::Nothing,
            (true, true) => Part::Executes,
            (true, false) => Part::Rehearses,
        };
        Self {
            id: pin.id,
            account,
            key,
            series,
            state,
            waits_for,
            result,
            sides: Sides { temporal: part(Side::Temporal), postgres: part(Side::Postgres) },
            attempts: attempts.into_iter().map(FoundAttempt::from).collect(),
            away: away.map(FoundAway::from),
            observation: observation.map(FoundObservation::from),
            kind: pin.kind,
            reason: pin.reason,
            pin: FoundPin {
                owner: pin.owner,
                stage: pin.stage,
                epoch: pin.epoch,
                flag_revision: pin.flag_revision,
                series_no: pin.series_no,
                payload_hash: hex(&pin.payload_hash),
                created_at: pin.created_at,
                run_at: pin.run_at,
                ended_at: pin.ended_at,
                undelivered,
                conflict: pin.conflict,
                cancel_requested_at: pin.cancel_requested_at,
            },
        }
    }
}

/// It waits for no other work.
#[derive(Serialize, ToSchema)]
pub(super) struct Released {
    /// The interaction.
    pub(super) id: Uuid,
    /// Whose turn it is in its series before it; null where it is its own.
    pub(super) behind: Option<Uuid>,
}

/// A runner is still at work.
#[derive(ToSchema)]
#[schema(example = json!({ "fence": "1.1" }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct Heartbeat {
    /// As the executor call had it in `Crossover-Fence`.
    fence: String,
}

/// A runner has ended what it took away.
#[derive(ToSchema)]
#[schema(example = json!({ "fence": "1.1", "result": { "rows": 7 } }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct Complete {
    /// As the executor call had it in `Crossover-Fence`.
    fence: String,
    /// Any JSON, kept byte for byte. Absent: null.
    result: Option<Value>,
}

/// A runner could not do what it took away.
#[derive(ToSchema)]
#[schema(example = json!({ "fence": "1.1", "error": "the calendar is locked", "retry_after_ms": 60000 }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct Fail {
    /// As the executor call had it in `Crossover-Fence`.
    fence: String,
    /// What went wrong, for a person.
    error: Option<String>,
    /// True: another attempt would fail again. Absent: the policy decides.
    permanent: Option<bool>,
    /// Another attempt comes after so long at the earliest; at most a day.
    #[schema(minimum = 0, maximum = 86_400_000)]
    retry_after_ms: Option<u64>,
}

/// A runner still has an attempt.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Kept {
    /// The interaction.
    pub(super) id: Uuid,
    /// The attempt.
    pub(super) fence: String,
    /// Somebody asked to cancel it: end it, and say `fail`.
    pub(super) cancel_requested: bool,
    /// The next heartbeat must come within so long.
    pub(super) within_ms: u64,
    /// It may run until then.
    pub(super) run_until: DateTime<Utc>,
}

/// What a runner said was taken.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Reported {
    /// The interaction.
    pub(super) id: Uuid,
    /// The attempt.
    pub(super) fence: String,
    /// `succeeded`, `failed`, `cancelled`, `retried`; `accepted` where Temporal is being told.
    pub(super) state: &'static str,
}

/// An attempt that is away with its runner.
#[derive(Debug, Serialize, ToSchema)]
struct FoundAway {
    /// Who owns it.
    side: Side,
    /// The remote worker that took it from its group; null where a runner that was called took it away.
    worker: Option<String>,
    /// The attempt.
    fence: String,
    /// Since when.
    since: DateTime<Utc>,
    /// When its runner was last heard of.
    last_heartbeat: DateTime<Utc>,
    /// It is lost where no heartbeat comes within so long.
    within_ms: u64,
    /// It may run until then.
    run_until: DateTime<Utc>,
}

impl From<Detached> for FoundAway {
    fn from(away: Detached) -> Self {
        Self {
            side: away.side,
            worker: away.remote,
            fence: away.fence.to_string(),
            since: away.detached_at,
            last_heartbeat: away.beat_at,
            within_ms: away.silence.as_millis() as u64,
            run_until: away.run_until,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::request::{FIELDS, POLICY};
    use utoipa::PartialSchema;

    fn properties<T: PartialSchema>() -> Vec<String> {
        let schema = serde_json::to_value(T::schema()).unwrap();
        let mut names: Vec<_> = schema["properties"].as_object().unwrap().keys().cloned().collect();
        names.sort();
        names
    }

    #[test]
    fn what_is_described_is_what_is_read() {
        let sorted = |names: &[&str]| {
            let mut names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(properties::<NewInteraction>(), sorted(&FIELDS));
        assert_eq!(properties::<Policy>(), sorted(&POLICY));
    }
}

/// A remote worker asks for work.
#[derive(ToSchema)]
#[schema(example = json!({ "worker": "mailer-1", "max": 20, "wait_ms": 30000, "lease_ms": 30000 }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct Dequeue {
    /// The worker's name for itself, for people who look where work is.
    #[schema(min_length = 1, max_length = 100)]
    worker: String,
    /// At most so many items. Absent: 10.
    #[schema(minimum = 1, maximum = 1000)]
    max: Option<u64>,
    /// Where there is nothing, wait so long for something (bounded by http.max_wait). Absent: 0.
    #[schema(minimum = 0, maximum = 60000)]
    wait_ms: Option<u64>,
    /// Without a heartbeat for so long an item is lost to this worker. Absent: 30000.
    #[schema(minimum = 1000, maximum = 86_400_000)]
    lease_ms: Option<u64>,
}

/// What a remote worker is to run.
#[derive(Serialize, ToSchema)]
pub(super) struct HandedOut<'a> {
    /// The most urgent first.
    pub(super) items: Vec<RemoteWork<'a>>,
}

/// One attempt, as an executor call has it, and its lease.
#[derive(Serialize, ToSchema)]
pub(super) struct RemoteWork<'a> {
    /// The interaction; the idempotency key of the effect.
    id: Uuid,
    account: &'a str,
    kind: &'a str,
    /// The caller's key.
    key: &'a str,
    /// The series, where it has one.
    series: Option<&'a str>,
    group: &'a str,
    /// What must run, byte for byte.
    #[schema(value_type = Value)]
    payload: &'a Payload,
    /// Always `postgres`.
    side: Side,
    epoch: i32,
    /// Which attempt this is.
    attempt: i32,
    /// `epoch.attempt`, to be given back with every word about it.
    fence: String,
    /// When it became due.
    due_at: DateTime<Utc>,
    /// Without a heartbeat for so long it is lost. Less than was asked for where its policy says so (`heartbeat_timeout_ms`).
    lease_ms: u64,
    /// It may run until then, whatever its heartbeats say: its policy's `run_timeout_ms`.
    run_until: DateTime<Utc>,
}

impl<'a> From<&'a Handed> for RemoteWork<'a> {
    fn from(handed: &'a Handed) -> Self {
        let (envelope, fence) = (&handed.claimed.envelope, handed.claimed.fence);
        Self {
            id: envelope.id,
            account: &envelope.account,
            kind: &envelope.kind,
            key: &envelope.key,
            series: envelope.series.as_deref(),
            group: envelope.group.as_deref().unwrap_or_default(),
            payload: &envelope.payload,
            side: Side::Postgres,
            epoch: fence.epoch,
            attempt: fence.attempt,
            fence: fence.to_string(),
            due_at: handed.claimed.due_at,
            lease_ms: handed.lease.as_millis() as u64,
            run_until: handed.run_until,
        }
    }
}

/// A remote worker still runs these.
#[derive(ToSchema)]
#[schema(example = json!({ "worker": "mailer-1", "items": [{ "id": "01890a5d-ac96-874b-bc35-1a9d2e8c4a01", "fence": "1.1" }] }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteHeartbeats {
    /// The worker's name for itself.
    worker: Option<String>,
    /// At most 1,000, each id once.
    items: Vec<RemoteHeartbeat>,
}

/// An attempt that still runs.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteHeartbeat {
    /// As dequeue gave it.
    id: Uuid,
    /// As dequeue gave it.
    fence: String,
}

/// A remote worker has ended these.
#[derive(ToSchema)]
#[schema(example = json!({ "worker": "mailer-1", "items": [{ "id": "01890a5d-ac96-874b-bc35-1a9d2e8c4a01", "fence": "1.1", "result": { "sent": 1 } }] }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteCompletes {
    /// The worker's name for itself.
    worker: Option<String>,
    /// At most 1,000, each id once.
    items: Vec<RemoteComplete>,
}

/// An attempt that has succeeded.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteComplete {
    /// As dequeue gave it.
    id: Uuid,
    /// As dequeue gave it.
    fence: String,
    /// Any JSON, kept byte for byte. Absent: null.
    result: Option<Value>,
}

/// A remote worker could not do these.
#[derive(ToSchema)]
#[schema(example = json!({ "worker": "mailer-1", "items": [{ "id": "01890a5d-ac96-874b-bc35-1a9d2e8c4a01", "fence": "1.1", "error": "no such address", "permanent": true }] }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteFails {
    /// The worker's name for itself.
    worker: Option<String>,
    /// At most 1,000, each id once.
    items: Vec<RemoteFail>,
}

/// An attempt that has failed.
#[derive(ToSchema)]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct RemoteFail {
    /// As dequeue gave it.
    id: Uuid,
    /// As dequeue gave it.
    fence: String,
    /// What went wrong, for a person.
    error: Option<String>,
    /// True: another attempt would fail again. Absent: the policy decides.
    permanent: Option<bool>,
    /// Another attempt comes after so long at the earliest; at most a day.
    #[schema(minimum = 0, maximum = 86_400_000)]
    retry_after_ms: Option<u64>,
}

/// What became of what a remote worker said.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemoteAnswers {
    /// In the order in which they were named.
    pub(super) items: Vec<RemoteAnswer>,
}

/// What became of what it said of one attempt.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemoteAnswer {
    pub(super) id: Uuid,
    pub(super) fence: String,
    /// `held`: it is this worker's; `cancel`: the same, and somebody wants it to end; `taken`: its end is recorded; `lost`: it is this
    /// worker's no longer, stop it; `unknown`: no such attempt was taken from the group; `refused`: it can't be stored.
    pub(super) answer: &'static str,
    /// Of what is held: without a heartbeat for so long it is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(super) lease_ms: Option<u64>,
    /// Of what is held: it may run until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(super) run_until: Option<DateTime<Utc>>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(required = false)]
    pub(super) error: Option<String>,
    #[serde(skip)]
    pub(super) counted_as: &'static str,
}

impl RemoteAnswer {
    pub(super) fn new((id, fence): &Attempted, answer: &'static str) -> Self {
        let fence = fence.to_string();
        Self { id: *id, fence, answer, lease_ms: None, run_until: None, error: None, counted_as: answer }
    }

    /// The same, counted as something else.
    pub(super) fn counted(self, counted_as: &'static str) -> Self {
        Self { counted_as, ..self }
    }
}
