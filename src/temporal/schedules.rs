//! Schedules on Temporal: what it has of ours, which are launchers at the times of each.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde::Deserialize;
use temporalio_client::tonic::{Code, Status};
use temporalio_common::protos::temporal::api::common::v1::{Payloads, WorkflowType};
use temporalio_common::protos::temporal::api::enums::v1::{
    ScheduleOverlapPolicy, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use temporalio_common::protos::temporal::api::schedule::v1::schedule_action::Action;
use temporalio_common::protos::temporal::api::schedule::v1::{
    IntervalSpec, Range, Schedule, ScheduleAction, ScheduleListEntry, SchedulePolicies, ScheduleSpec, ScheduleState,
    StructuredCalendarSpec,
};
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::workflow::v1::NewWorkflowExecutionInfo;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    CreateScheduleRequest, DeleteScheduleRequest, DescribeScheduleRequest, ListSchedulesRequest,
    StartWorkflowExecutionRequest, UpdateScheduleRequest,
};

use super::client::TemporalClient;
use super::deliver::DeliverError;
use super::launcher::queue_of;
use super::wire::{from_json, to_json};
use crate::schedule::mirror::{Launch, Mirror, Reflect, Reflected, Row, Ticks};
use crate::schedule::reflect::name_on_temporal;
use uuid::Uuid;

/// So many looks and changes until somebody else's changes are left to the next try.
const TRIES: u32 = 4;
/// The name of what our schedules start.
const LAUNCHER: &str = "LauncherWorkflow";
/// Schedules of one page, and pages, until nothing of ours is taken to be there.
const PAGE: i32 = 1_000;
const PAGES: usize = 100;
/// Temporal may show a change a moment after it took it.
const SHOWN_WITHIN: Duration = Duration::from_millis(100);

/// What Temporal has of a schedule.
#[derive(Debug, Clone)]
pub struct Seen {
    /// What it starts; absent where that is none of ours, or of a version that writes it otherwise.
    pub launch: Option<Launch>,
    /// Which wish of ours it is of; every version writes that alike.
    pub wish: Option<i64>,
    /// Whether it is paused there.
    pub paused: bool,
    /// Its next times there, as far as it tells.
    pub next: Vec<DateTime<Utc>>,
    token: Vec<u8>,
}

#[async_trait]
impl Reflect for TemporalClient {
    async fn reflect(&self, mirror: &Mirror) -> Result<Reflected, String> {
        for tries in 0..TRIES {
            let seen = self.schedule(mirror.launch.schedule).await.map_err(told)?;
            match &seen {
                Some(seen) if is(seen, mirror) => return Ok(Reflected::InStep),
                Some(Seen { wish: Some(there), .. }) if *there > mirror.launch.wish => {
                    return Ok(Reflected::Later(*there));
                }
                _ => {}
            }
            let is_new = seen.is_none();
            if self.write(mirror, seen).await.map_err(told)? && is_new {
                return Ok(Reflected::InStep);
            }
            // The last word is a look: a change that Temporal took may lose against another.
            tokio::time::sleep(SHOWN_WITHIN * 2u32.pow(tries)).await;
        }
        match self.schedule(mirror.launch.schedule).await.map_err(told)? {
            Some(seen) if is(&seen, mirror) => Ok(Reflected::InStep),
            _ => Err("Temporal took the change, and shows something else".to_owned()),
        }
    }

    async fn launch(&self, launch: &Launch) -> Result<(), String> {
        let token = launch.token.as_deref().unwrap_or_default();
        let start = self.action(launch).map_err(told)?;
        let request = StartWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_id: format!("{}!{token}", name_on_temporal(launch.schedule)),
            workflow_type: start.workflow_type,
            task_queue: start.task_queue,
            input: start.input,
            workflow_execution_timeout: start.workflow_execution_timeout,
            identity: self.target.identity.clone(),
            request_id: Uuid::new_v4().to_string(),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::RejectDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            ..Default::default()
        };
        let started = self.bounded(async {
            match self.service().await?.start_workflow_execution(self.request(request)).await {
                Ok(_) => Ok(()),
                // It was launched before, and has ended.
                Err(status) if status.code() == Code::AlreadyExists => Ok(()),
                Err(status) => Err(status.into()),
            }
        });
        started.await.map_err(told)
    }

    async fn forget(&self, schedule: Uuid) -> Result<(), String> {
        let (namespace, identity) = (self.target.namespace.clone(), self.target.identity.clone());
        let request = DeleteScheduleRequest { namespace, schedule_id: name_on_temporal(schedule), identity };
        let forgotten = self.bounded(async {
            match self.service().await?.delete_schedule(self.request(request)).await {
                Ok(_) => Ok(()),
                Err(status) if status.code() == Code::NotFound => Ok(()),
                Err(status) => Err(status.into()),
            }
        });
        forgotten.await.map_err(told)
    }

    async fn has_any(&self) -> Result<bool, String> {
        let mut next_page_token = Vec::new();
        for _ in 0..PAGES {
            let request = ListSchedulesRequest {
                namespace: self.target.namespace.clone(),
                maximum_page_size: PAGE,
                next_page_token,
                ..Default::default()
            };
            let page = self.bounded(async {
                let mut service = self.service().await?;
                Ok(service.list_schedules(self.request(request)).await?.into_inner())
            });
            let page = page.await.map_err(told)?;
            if page.schedules.iter().any(is_ours) {
                return Ok(true);
            }
            next_page_token = page.next_page_token;
            if next_page_token.is_empty() {
                break;
            }
        }
        Ok(false)
    }
}

impl TemporalClient {
    /// What Temporal has of a schedule; none: nothing.
    pub async fn schedule(&self, schedule: Uuid) -> Result<Option<Seen>, DeliverError> {
        let schedule_id = name_on_temporal(schedule);
        let request = DescribeScheduleRequest { namespace: self.target.namespace.clone(), schedule_id };
        self.bounded(async {
            let answer = match self.service().await?.describe_schedule(self.request(request)).await {
                Ok(answer) => answer.into_inner(),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(status.into()),
            };
            let Schedule { action, state, .. } = answer.schedule.unwrap_or_default();
            let input = match action.and_then(|action| action.action) {
                Some(Action::StartWorkflow(start)) => start.input.unwrap_or_default(),
                None => Payloads::default(),
            };
            let (launch, wish) = started_with(&input);
            let next = answer.info.unwrap_or_default().future_action_times.into_iter();
            let next = next.filter_map(|at| SystemTime::try_from(at).ok()).map(DateTime::from).collect();
            let paused = state.unwrap_or_default().paused;
            Ok(Some(Seen { launch, wish, paused, next, token: answer.conflict_token }))
        })
        .await
    }

    /// Makes or changes it. False: somebody else was first.
    async fn write(&self, mirror: &Mirror, seen: Option<Seen>) -> Result<bool, DeliverError> {
        let (namespace, schedule_id) = (self.target.namespace.clone(), name_on_temporal(mirror.launch.schedule));
        let (identity, request_id) = (self.target.identity.clone(), Uuid::new_v4().to_string());
        let schedule = Some(self.to_temporal(mirror)?);
        self.bounded(async {
            let mut service = self.service().await?;
            let written = match seen {
                None => {
                    let request = CreateScheduleRequest {
                        namespace,
                        schedule_id,
                        schedule,
                        identity,
                        request_id,
                        ..Default::default()
                    };
                    service.create_schedule(self.request(request)).await.map(drop)
                }
                Some(Seen { token: conflict_token, .. }) => {
                    let request = UpdateScheduleRequest {
                        namespace,
                        schedule_id,
                        schedule,
                        conflict_token,
                        identity,
                        request_id,
                        ..Default::default()
                    };
                    service.update_schedule(self.request(request)).await.map(drop)
                }
            };
            match written {
                Err(status) if was_overtaken(&status) => Ok(false),
                written => Ok(written.map(|()| true)?),
            }
        })
        .await
    }

    fn to_temporal(&self, mirror: &Mirror) -> Result<Schedule, DeliverError> {
        let spec = match &mirror.ticks {
            Ticks::Every { every, phase, from } => ScheduleSpec {
                interval: vec![IntervalSpec {
                    interval: seconds(*every).try_into().ok(),
                    phase: seconds(*phase).try_into().ok(),
                }],
                start_time: Some(SystemTime::from(*from).into()),
                ..Default::default()
            },
            Ticks::At(rows) => {
                ScheduleSpec { structured_calendar: rows.iter().map(calendar).collect(), ..Default::default() }
            }
        };
        Ok(Schedule {
            spec: Some(spec),
            action: Some(ScheduleAction { action: Some(Action::StartWorkflow(self.action(&mirror.launch)?)) }),
            policies: Some(SchedulePolicies {
                overlap_policy: ScheduleOverlapPolicy::AllowAll.into(),
                catchup_window: seconds(mirror.catch_up.num_seconds()).try_into().ok(),
                ..Default::default()
            }),
            state: Some(ScheduleState {
                notes: mirror.paused.clone().unwrap_or_else(|| "kept by crossover; change it there".to_owned()),
                paused: mirror.paused.is_some(),
                ..Default::default()
            }),
        })
    }

    fn action(&self, launch: &Launch) -> Result<NewWorkflowExecutionInfo, DeliverError> {
        let unwritable =
            |error: serde_json::Error| DeliverError::Refused { retryable: false, reason: error.to_string() };
        Ok(NewWorkflowExecutionInfo {
            workflow_id: name_on_temporal(launch.schedule),
            workflow_type: Some(WorkflowType { name: LAUNCHER.to_owned() }),
            task_queue: Some(TaskQueue { name: queue_of(&self.target.task_queue), ..Default::default() }),
            input: Some(Payloads { payloads: vec![to_json(launch).map_err(unwritable)?] }),
            workflow_execution_timeout: Mirror::longest(launch).try_into().ok(),
            ..Default::default()
        })
    }
}

/// What a launcher is started with, as far as it can be read.
fn started_with(input: &Payloads) -> (Option<Launch>, Option<i64>) {
    #[derive(Deserialize)]
    struct Wished {
        wish: i64,
    }
    let Some(first) = input.payloads.first() else { return (None, None) };
    (from_json(first), from_json::<Wished>(first).map(|wished| wished.wish))
}

/// By its name and by what it starts.
fn is_ours(entry: &ScheduleListEntry) -> bool {
    let starts = entry.info.as_ref().and_then(|info| info.workflow_type.as_ref());
    let named = entry.schedule_id.strip_prefix("schedule:").and_then(|id| id.parse::<Uuid>().ok());
    starts.is_some_and(|starts| starts.name == LAUNCHER) && named.is_some()
}

fn is(seen: &Seen, mirror: &Mirror) -> bool {
    let same = seen.launch.as_ref().is_some_and(|there| there.content == mirror.launch.content);
    same && seen.paused == mirror.paused.is_some()
}

/// It is there already, or was changed since it was looked at, or is there no longer.
fn was_overtaken(status: &Status) -> bool {
    matches!(status.code(), Code::AlreadyExists | Code::NotFound | Code::Aborted)
        || status.code() == Code::FailedPrecondition && status.message().contains("conflict token")
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

fn calendar(row: &Row) -> StructuredCalendarSpec {
    let only = |n: i32| vec![Range { start: n, end: n, step: 1 }];
    let [year, month, day, hour] = row.hour_of_day();
    StructuredCalendarSpec {
        second: only(row.second as i32),
        minute: row.minutes.iter().flat_map(|minute| only(*minute as i32)).collect(),
        hour: only(hour),
        day_of_month: only(day),
        month: only(month),
        year: only(year),
        day_of_week: vec![Range { start: 0, end: 6, step: 1 }],
        ..Default::default()
    }
}

fn told(error: DeliverError) -> String {
    error.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_newer_version_has_told_is_known_to_be_newer() {
        let launch = |policy: serde_json::Value| {
            let definition =
                serde_json::json!({ "account": "a", "name": "n", "kind": "k", "payload": 1, "policy": policy });
            let launch =
                serde_json::json!({ "schedule": Uuid::nil(), "wish": 7, "definition": definition, "more": true });
            Payloads { payloads: vec![to_json(&launch).unwrap()] }
        };
        let (launch, wish) = started_with(&launch(serde_json::json!({ "of_a_later_version": 1 })));
        assert_eq!((launch.is_none(), wish), (true, Some(7)));
        let (launch, wish) = started_with(&Payloads { payloads: vec![to_json(&"somebody else's").unwrap()] });
        assert_eq!((launch.is_none(), wish), (true, None));
    }
}
