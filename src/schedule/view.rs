//! A schedule as people and programs see it, over HTTP and on the command line. No I/O.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::mirrors::Stand;
use super::plan::{CatchUp, Overlap};
use super::storage::{Pause, RunRow, Schedule};
use super::times::{Spec, Times, jittered};
use crate::interaction::{Payload, names};
use crate::policy::Policy;

names! {
    /// Where a schedule stands.
    State {
        /// It fires.
        Active = "active",
        /// It does not, until somebody resumes it.
        Paused = "paused",
        /// It can't be fired for now, and is tried again.
        Troubled = "troubled",
        /// No time of it is left.
        Ended = "ended",
    }
}

/// A schedule.
#[derive(Debug, Serialize, ToSchema)]
pub struct View {
    /// Names it.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// Unique within the account.
    pub name: String,
    /// The type of work.
    pub kind: String,
    /// Where it stands.
    pub state: State,
    /// Why it is not active, where it is paused or troubled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When it fires.
    pub spec: Spec,
    /// If a run is under way.
    pub overlap: Overlap,
    /// If nobody was there.
    pub catch_up: CatchUp,
    /// How late a time may be found and still run.
    pub catch_up_window_ms: i64,
    /// By how much runs are delayed at most.
    pub jitter_ms: i64,
    /// What each run gets.
    #[schema(value_type = serde_json::Value)]
    pub payload: Payload,
    /// The series of its runs.
    pub series: String,
    /// Their group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Their priority.
    pub priority: i16,
    /// Their retries and time-outs.
    pub policy: Policy,
    /// Counts what people changed; a change may name the one that it is about.
    pub version: i64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub changed_at: DateTime<Utc>,
    /// By whom.
    pub changed_by: String,
    /// Since when it is paused, by whom and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Pause>,
    /// The last nominal time that was enqueued.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_nominal_at: Option<DateTime<Utc>>,
    /// The last run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run: Option<Uuid>,
    /// Runs that had not ended when it was last looked at.
    pub unended: usize,
    /// Triggers that are not enqueued yet.
    pub triggers: usize,
    /// When it fires next. Empty: never, as it stands, or once its last run has ended.
    pub next: Vec<Fire>,
    /// Where Temporal stands with it. Absent: it is on Postgres alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temporal: Option<Stand>,
    /// What became of its last times, latest first; where one schedule is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs: Option<Vec<RunRow>>,
}

/// A time at which a schedule fires.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Fire {
    /// Its name: the run's key has it.
    pub nominal_at: DateTime<Utc>,
    /// The same and its jitter.
    pub at: DateTime<Utc>,
    /// The nominal time by the schedule's own clock, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<String>,
}

impl View {
    /// How a schedule looks, with its next `n` times.
    pub fn of(schedule: Schedule, n: usize, runs: Option<Vec<RunRow>>) -> Self {
        let next = next_of(&schedule, n);
        let state = match () {
            () if schedule.paused.is_some() => State::Paused,
            () if schedule.trouble.is_some() => State::Troubled,
            () if schedule.nominal.is_none() && schedule.wake_at.is_none() => State::Ended,
            () => State::Active,
        };
        let reason = schedule.paused.as_ref().map(|pause| pause.reason.clone()).or(schedule.trouble);
        let d = schedule.definition;
        Self {
            id: schedule.id,
            series: d.series.unwrap_or_else(|| super::series_of(schedule.id)),
            account: d.account,
            name: d.name,
            kind: d.kind,
            state,
            reason,
            spec: d.spec,
            overlap: d.overlap,
            catch_up: d.catch_up,
            catch_up_window_ms: d.catch_up_window_ms,
            jitter_ms: d.jitter_ms,
            payload: d.payload,
            group: d.group,
            priority: d.priority,
            policy: d.policy,
            version: schedule.version,
            created_at: schedule.created_at,
            changed_at: schedule.changed_at,
            changed_by: schedule.changed_by,
            paused: schedule.paused,
            last_nominal_at: schedule.last_nominal,
            last_run: schedule.last_run,
            unended: schedule.unended.len(),
            triggers: schedule.triggers.len(),
            next,
            temporal: None,
            runs,
        }
    }

    /// The same, and where Temporal stands with it.
    pub fn mirrored(self, temporal: Option<Stand>) -> Self {
        Self { temporal, ..self }
    }
}

/// The next `n` times of a spec after `now`; `jittered` by the hash of `id`.
pub fn next_times(
    spec: &Spec,
    times: &Times,
    first: Option<DateTime<Utc>>,
    (id, jitter): (Uuid, TimeDelta),
    n: usize,
) -> Vec<Fire> {
    let next = std::iter::successors(first, |last| times.after(*last)).take(n);
    next.map(|nominal_at| Fire { nominal_at, at: jittered(id, nominal_at, jitter), local: spec.local(nominal_at) })
        .collect()
}

fn next_of(schedule: &Schedule, n: usize) -> Vec<Fire> {
    let spec = &schedule.definition.spec;
    if schedule.paused.is_some() {
        return Vec::new();
    }
    let jitter = TimeDelta::milliseconds(schedule.definition.jitter_ms);
    // Of what counts from the end of a run, only the next is known.
    let n = if schedule.definition.overlap == Overlap::AfterLast { n.min(1) } else { n };
    spec.read()
        .map_or_else(|_| Vec::new(), |times| next_times(spec, &times, schedule.nominal, (schedule.id, jitter), n))
}
