//! What Temporal lists of an account: its open workflows, and whether they came without a pin.

use std::time::Duration;

use chrono::{DateTime, Utc};
use temporalio_client::tonic::{Code, Request, Status};
use temporalio_common::protos::temporal::api::common::v1::{Payloads, WorkflowExecution, WorkflowType};
use temporalio_common::protos::temporal::api::enums::v1::{
    UpdateWorkflowExecutionLifecycleStage, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
};
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::update::v1::{Input, Meta, Request as Update, WaitPolicy, outcome};
use temporalio_common::protos::temporal::api::workflow::v1::WorkflowExecutionInfo;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, ListWorkflowExecutionsRequest, StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest, UpdateWorkflowExecutionRequest,
};
use uuid::Uuid;

use super::attribute::AccountAttribute;
use super::client::TemporalClient;
use super::deliver::DeliverError;
use super::series::{Adopt, Unpinned};
use super::wire::{About, Memo, from_json, to_json};
use super::workflow::Copy;

/// Workflows a page, the most that servers give by default.
const PAGE: i32 = 1_000;
/// A series that has no worker doesn't answer; one that has answers within its workflow task.
const UPDATE_WITHIN: Duration = Duration::from_secs(5);
/// A marker ends by itself after so long.
const MARKER_FOR: Duration = Duration::from_secs(3_600);

/// An open workflow.
#[derive(Debug, Clone)]
pub struct Open {
    /// Its id.
    pub workflow_id: String,
    /// Its run.
    pub run_id: String,
    /// When it was started.
    pub started_at: Option<DateTime<Utc>>,
    /// What it is.
    pub what: What,
}

/// What an open workflow says of itself.
#[derive(Debug, Clone)]
pub enum What {
    /// The copy of an interaction.
    Copy(Memo),
    /// A series.
    Series(About),
    /// Somebody else's.
    Other,
}

impl TemporalClient {
    /// A page of the open workflows on this task queue that `condition` holds for, and the token of the next.
    pub async fn open(&self, condition: &str, page: Vec<u8>) -> Result<(Vec<Open>, Vec<u8>), DeliverError> {
        let queue = self.target.task_queue.replace('\'', "''");
        let request = ListWorkflowExecutionsRequest {
            namespace: self.target.namespace.clone(),
            page_size: PAGE,
            next_page_token: page,
            // Whatever states a server knows, what has no end is open.
            query: format!("TaskQueue = '{queue}' AND CloseTime IS NULL AND {condition}"),
        };
        self.bounded(async {
            let answer = self.service().await?.list_workflow_executions(self.request(request)).await?.into_inner();
            Ok((answer.executions.into_iter().map(open).collect(), answer.next_page_token))
        })
        .await
    }

    /// The conditions under which all workflows of `account` are found: those that carry its attribute, and those that carry
    /// none, which were started by an older version or while the namespace lacked it; their memo says whose they are. A
    /// namespace without the attribute is searched whole.
    pub async fn conditions(&self, account: &str) -> Result<Vec<String>, DeliverError> {
        let name = self.attribute.name();
        Ok(match self.has_attribute().await? {
            true => vec![format!("{name} = '{}'", AccountAttribute::value(account)), format!("{name} IS NULL")],
            false => vec!["WorkflowType IN ('InteractionWorkflow', 'SeriesWorkflow')".to_owned()],
        })
    }

    /// What a workflow of its own was started with; none where Temporal has forgotten it.
    pub async fn copy_of(&self, of: &Open) -> Result<Option<Copy>, DeliverError> {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(execution(of)),
            maximum_page_size: 1,
            ..Default::default()
        };
        self.bounded(async {
            let answer = self.service().await?.get_workflow_execution_history(self.request(request)).await;
            let Some(answer) = unless_gone(answer)? else { return Ok(None) };
            let first = answer.into_inner().history.and_then(|history| history.events.into_iter().next());
            let input = match first.and_then(|event| event.attributes) {
                Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => started.input,
                _ => None,
            };
            let copy = input.and_then(|input| input.payloads.first().and_then(from_json::<Copy>));
            copy.map(Some)
                .ok_or_else(|| DeliverError::InDoubt(format!("the input of {} can't be read", of.workflow_id)))
        })
        .await
    }

    /// Tells a series which of its members have a pin now, and asks it for those that have none; none where it has ended.
    pub async fn reconcile_series(&self, of: &Open, adopt: Adopt) -> Result<Option<Unpinned>, DeliverError> {
        let unwritable = |error: serde_json::Error| DeliverError::InDoubt(error.to_string());
        let request = UpdateWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_execution: Some(execution(of)),
            wait_policy: Some(WaitPolicy { lifecycle_stage: UpdateWorkflowExecutionLifecycleStage::Completed.into() }),
            request: Some(Update {
                meta: Some(Meta { update_id: Uuid::new_v4().to_string(), identity: self.target.identity.clone() }),
                input: Some(Input {
                    name: "reconcile".to_owned(),
                    args: Some(Payloads { payloads: vec![to_json(&adopt).map_err(unwritable)?] }),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut message = Request::new(request);
        // Later than ours, whose word says more.
        message.set_timeout(UPDATE_WITHIN + Duration::from_secs(1));
        let asked = async {
            let answer = self.service().await?.update_workflow_execution(message).await;
            let Some(answer) = unless_gone(answer)? else { return Ok(None) };
            let unreadable = |why: String| DeliverError::InDoubt(format!("{} did not answer: {why}", of.workflow_id));
            match answer.into_inner().outcome.and_then(|outcome| outcome.value) {
                Some(outcome::Value::Success(payloads)) => {
                    let first = payloads.payloads.first().and_then(from_json);
                    first.map(Some).ok_or_else(|| unreadable("what it said can't be read".into()))
                }
                Some(outcome::Value::Failure(failure)) => Err(unreadable(failure.message)),
                None => Err(unreadable("it has not come to it; see whether a worker of this version runs".into())),
            }
        };
        let late = |_| {
            Err(DeliverError::InDoubt(format!(
                "{} did not answer within {UPDATE_WITHIN:?}; see whether a worker of this version runs",
                of.workflow_id
            )))
        };
        tokio::time::timeout(UPDATE_WITHIN, asked).await.unwrap_or_else(late)
    }

    /// Starts a workflow that nobody works on, so that its listing shows how far Temporal's lists lag. Repeating it changes
    /// nothing.
    pub async fn mark(&self, account: &str, generation: i64) -> Result<(), DeliverError> {
        let request = StartWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_id: marker_id(account, generation),
            workflow_type: Some(WorkflowType { name: "CrossoverMarker".to_owned() }),
            task_queue: Some(TaskQueue { name: format!("{}-markers", self.target.task_queue), ..Default::default() }),
            identity: self.target.identity.clone(),
            request_id: Uuid::new_v4().to_string(),
            workflow_execution_timeout: MARKER_FOR.try_into().ok(),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::AllowDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            ..Default::default()
        };
        self.bounded(async {
            self.service().await?.start_workflow_execution(self.request(request)).await?;
            Ok(())
        })
        .await
    }

    /// Whether the marker is listed.
    pub async fn is_marked(&self, account: &str, generation: i64) -> Result<bool, DeliverError> {
        let request = ListWorkflowExecutionsRequest {
            namespace: self.target.namespace.clone(),
            page_size: 1,
            query: format!("WorkflowId = '{}' AND CloseTime IS NULL", marker_id(account, generation)),
            ..Default::default()
        };
        self.bounded(async {
            let answer = self.service().await?.list_workflow_executions(self.request(request)).await?;
            Ok(!answer.into_inner().executions.is_empty())
        })
        .await
    }

    /// Ends the marker; it would end by itself.
    pub async fn unmark(&self, account: &str, generation: i64) -> Result<(), DeliverError> {
        let workflow_id = marker_id(account, generation);
        let request = TerminateWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_execution: Some(WorkflowExecution { workflow_id, run_id: String::new() }),
            reason: "the reconciliation that it was started for is done".to_owned(),
            identity: self.target.identity.clone(),
            ..Default::default()
        };
        self.bounded(async {
            unless_gone(self.service().await?.terminate_workflow_execution(self.request(request)).await)?;
            Ok(())
        })
        .await
    }
}

fn marker_id(account: &str, generation: i64) -> String {
    format!("crossover-marker:{}:{generation}", AccountAttribute::value(account))
}

fn open(info: WorkflowExecutionInfo) -> Open {
    let about = || About::read(info.memo.as_ref());
    let what = match info.r#type.as_ref().map(|kind| kind.name.as_str()) {
        Some("InteractionWorkflow") => Memo::read(info.memo.as_ref()).map(What::Copy),
        Some("SeriesWorkflow") => about().map(What::Series),
        _ => None,
    };
    let started_at = info.start_time.and_then(|at| DateTime::from_timestamp(at.seconds, at.nanos.unsigned_abs()));
    let WorkflowExecution { workflow_id, run_id } = info.execution.unwrap_or_default();
    Open { workflow_id, run_id, started_at, what: what.unwrap_or(What::Other) }
}

/// Of a workflow of its own the run that was listed; of a series whichever runs now.
fn execution(of: &Open) -> WorkflowExecution {
    let run_id = if matches!(of.what, What::Series(_)) { String::new() } else { of.run_id.clone() };
    WorkflowExecution { workflow_id: of.workflow_id.clone(), run_id }
}

fn unless_gone<T>(answer: Result<T, Status>) -> Result<Option<T>, DeliverError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}
