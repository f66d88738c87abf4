//! Delivers copies to Temporal, and says exactly what is known afterwards.

use std::sync::Arc;
use std::time::Duration;

use temporalio_client::grpc::WorkflowService;
use temporalio_client::tonic::{Code, Request, Response, Status};
use temporalio_client::{Connection, ConnectionOptions, Url};
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::enums::v1::{HistoryEventFilterType, WorkflowExecutionStatus};
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::query::v1::WorkflowQuery;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    DescribeNamespaceRequest, DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest,
    QueryWorkflowRequest, SignalWorkflowExecutionRequest,
};
use tokio::sync::OnceCell;

use crate::interaction::{Envelope, Outcome, Payload};

use super::Terms;
use super::backlog::{Backlog, SeriesStatus};
use super::copy::Closed;
use super::series::Series;
use super::wire::{Memo, Target, from_json, series_workflow_id};
use super::workflow::Copy;

/// Where Temporal is, and how long a call may take.
#[derive(Debug, Clone)]
pub struct ClientSettings {
    /// `http://host:port`.
    pub address: String,
    /// The namespace.
    pub namespace: String,
    /// The task queue.
    pub task_queue: String,
    /// A whole delivery takes so long at most. There are no retries within it.
    pub timeout: Duration,
    /// Who we are, in Temporal's histories.
    pub identity: String,
    /// The bounds of each copy.
    pub terms: Terms,
    /// A series knows a repeat for so long.
    pub window: Duration,
    /// A series' history is cut off after so many.
    pub series_items_a_run: u32,
}

/// What a delivery found or did.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// It was started (or signalled), by this delivery or by an earlier one of the same decision.
    Started,
    /// An equal copy was there. An unpinned one that was still open has been adopted.
    AlreadyThere,
    /// An unpinned copy had run to its end before it could be adopted: the caller ends the pin.
    ClosedUnpinned {
        /// How it ended; `Failed` where its workflow was terminated or timed out.
        outcome: Outcome,
        /// The last attempt.
        attempt: i32,
        /// The runner's answer.
        result: Option<Payload>,
        /// Why it didn't succeed.
        error: Option<String>,
    },
}

/// Why a delivery isn't known to be there.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// The id belongs to another decision. Hold the Postgres copy and page somebody.
    #[error("owner conflict: Temporal has this workflow id with {}", found.as_ref().map_or("no memo of ours".to_owned(), describe_memo))]
    OwnerConflict {
        /// What the existing workflow says of itself.
        found: Option<Box<Memo>>,
    },
    /// It may be there or not. Deliver the same again.
    #[error("outcome in doubt: {0}")]
    InDoubt(String),
    /// It isn't there.
    #[error("Temporal refused it: {reason}")]
    Refused {
        /// The same delivery may be accepted later; otherwise never.
        retryable: bool,
        /// For the operator.
        reason: String,
    },
}

fn describe_memo(memo: &Box<Memo>) -> String {
    format!("owner {}, epoch {}, payload {:.12}…", memo.owner, memo.epoch, memo.payload_hash)
}

/// A workflow as Temporal describes it.
#[derive(Debug, Clone)]
pub struct Description {
    /// Still running.
    pub open: bool,
    /// The run.
    pub run_id: String,
    /// Temporal's word for its state.
    pub status: WorkflowExecutionStatus,
    /// What it says of itself.
    pub memo: Option<Memo>,
}

/// Cheap to clone. It connects when it is first used, and again after every outage.
#[derive(Clone)]
pub struct TemporalClient {
    settings: Arc<ClientSettings>,
    url: Url,
    target: Target,
    connection: Arc<OnceCell<Connection>>,
}

type Rpc<T> = Result<Response<T>, Status>;

impl TemporalClient {
    /// Opens nothing yet, so that a router starts while Temporal is down. Fails only for a broken address.
    pub fn lazy(settings: ClientSettings) -> Result<Self, String> {
        let url: Url =
            settings.address.parse().map_err(|e| format!("Temporal's address {:?}: {e}", settings.address))?;
        let target = Target {
            namespace: settings.namespace.clone(),
            task_queue: settings.task_queue.clone(),
            identity: settings.identity.clone(),
        };
        Ok(Self { settings: Arc::new(settings), url, target, connection: Arc::default() })
    }

    /// Brings a copy to Temporal. Repeating it is always safe.
    pub async fn deliver(&self, envelope: &Envelope) -> Result<Delivered, DeliverError> {
        let delivery = async {
            match &envelope.series {
                Some(series) => self.enqueue(envelope, series).await,
                None => self.start(envelope).await,
            }
        };
        let late = || DeliverError::InDoubt(format!("no answer within {:?}", self.settings.timeout));
        tokio::time::timeout(self.settings.timeout, delivery).await.unwrap_or_else(|_| Err(late()))
    }

    async fn start(&self, envelope: &Envelope) -> Result<Delivered, DeliverError> {
        let copy = Copy { envelope: envelope.clone(), terms: self.settings.terms };
        let request = self.request(self.target.start(&copy).map_err(unwritable)?);
        match self.service().await?.start_workflow_execution(request).await {
            Ok(answer) if answer.get_ref().started => Ok(Delivered::Started),
            Ok(_) => self.compare(envelope).await,
            Err(status) if status.code() == Code::AlreadyExists => self.compare(envelope).await,
            Err(status) => Err(status.into()),
        }
    }

    async fn enqueue(&self, envelope: &Envelope, series: &str) -> Result<Delivered, DeliverError> {
        let first = Series {
            terms: self.settings.terms,
            window_ms: self.settings.window.as_millis() as u64,
            items_a_run: self.settings.series_items_a_run,
            backlog: Backlog::default(),
        };
        let request = self.request(self.target.enqueue(envelope, series, &first).map_err(unwritable)?);
        self.service().await?.signal_with_start_workflow_execution(request).await?;
        Ok(Delivered::Started)
    }

    /// Somebody was there first: is it the same decision?
    async fn compare(&self, envelope: &Envelope) -> Result<Delivered, DeliverError> {
        let found = self.describe_now(&envelope.workflow_id()).await?;
        let Some(found) = found else {
            return Err(DeliverError::InDoubt("the workflow is there, but can't be described yet".to_owned()));
        };
        let ours = Memo::from(envelope);
        match &found.memo {
            Some(memo) if !memo.agrees(&ours) => {
                Err(DeliverError::OwnerConflict { found: Some(Box::new(memo.clone())) })
            }
            None => Err(DeliverError::OwnerConflict { found: None }),
            Some(memo) if memo.pinned || !ours.pinned => Ok(Delivered::AlreadyThere),
            Some(_) if found.open => self.adopt(envelope, &found).await,
            Some(_) => self.closed_unpinned(envelope, &found).await,
        }
    }

    async fn adopt(&self, envelope: &Envelope, found: &Description) -> Result<Delivered, DeliverError> {
        let request = SignalWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_execution: Some(execution(envelope, found)),
            signal_name: "adopt".to_owned(),
            identity: self.target.identity.clone(),
            request_id: format!("adopt:{}", envelope.workflow_id()),
            ..Default::default()
        };
        match self.service().await?.signal_workflow_execution(self.request(request)).await {
            Ok(_) => Ok(Delivered::AlreadyThere),
            // It closed between the two calls.
            Err(status) if status.code() == Code::NotFound => self.closed_unpinned(envelope, found).await,
            Err(status) => Err(status.into()),
        }
    }

    async fn closed_unpinned(&self, envelope: &Envelope, found: &Description) -> Result<Delivered, DeliverError> {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(execution(envelope, found)),
            history_event_filter_type: HistoryEventFilterType::CloseEvent.into(),
            ..Default::default()
        };
        let answer = self.service().await?.get_workflow_execution_history(self.request(request)).await?;
        let last = answer.into_inner().history.and_then(|mut history| history.events.pop()).and_then(|e| e.attributes);
        let closed = match last {
            Some(Attributes::WorkflowExecutionCompletedEventAttributes(done)) => {
                done.result.and_then(|r| r.payloads.first().and_then(from_json::<Closed>))
            }
            _ => None,
        };
        let found = format!("its workflow ended as {:?}", found.status);
        Ok(match closed {
            Some(Closed { outcome: Some(outcome), attempt, result, reason, .. }) => {
                Delivered::ClosedUnpinned { outcome, attempt, result, error: reason }
            }
            _ => Delivered::ClosedUnpinned { outcome: Outcome::Failed, attempt: 0, result: None, error: Some(found) },
        })
    }

    /// What Temporal says of a workflow; absent where it knows none of that id.
    pub async fn describe(&self, workflow_id: &str) -> Result<Option<Description>, DeliverError> {
        self.bounded(self.describe_now(workflow_id)).await
    }

    async fn describe_now(&self, workflow_id: &str) -> Result<Option<Description>, DeliverError> {
        let request = DescribeWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }),
        };
        let answer = self.service().await?.describe_workflow_execution(self.request(request)).await;
        let Some(answer) = found(answer)? else { return Ok(None) };
        let info = answer.workflow_execution_info.unwrap_or_default();
        Ok(Some(Description {
            open: info.status() == WorkflowExecutionStatus::Running,
            status: info.status(),
            memo: Memo::read(info.memo.as_ref()),
            run_id: info.execution.unwrap_or_default().run_id,
        }))
    }

    /// What a series has and had; absent where it has ended and is no longer retained. Needs a worker to answer.
    pub async fn series_status(
        &self,
        account: &str,
        kind: &str,
        series: &str,
    ) -> Result<Option<SeriesStatus>, DeliverError> {
        let workflow_id = series_workflow_id(account, kind, series);
        let request = QueryWorkflowRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(WorkflowExecution { workflow_id, run_id: String::new() }),
            query: Some(WorkflowQuery { query_type: "status".to_owned(), ..Default::default() }),
            ..Default::default()
        };
        self.bounded(async {
            let Some(answer) = found(self.service().await?.query_workflow(self.request(request)).await)? else {
                return Ok(None);
            };
            let first = answer.query_result.and_then(|mut r| r.payloads.pop());
            let unreadable = || DeliverError::InDoubt("the series' answer can't be read".to_owned());
            first.as_ref().and_then(from_json).map(Some).ok_or_else(unreadable)
        })
        .await
    }

    /// Whether Temporal answers for the namespace; its retention, for `doctor`.
    pub async fn health(&self) -> Result<Duration, DeliverError> {
        let request = DescribeNamespaceRequest { namespace: self.target.namespace.clone(), ..Default::default() };
        self.bounded(async {
            let answer = self.service().await?.describe_namespace(self.request(request)).await?.into_inner();
            let retention = answer.config.and_then(|c| c.workflow_execution_retention_ttl);
            Ok(retention.and_then(|ttl| ttl.try_into().ok()).unwrap_or_default())
        })
        .await
    }

    async fn bounded<T>(&self, call: impl Future<Output = Result<T, DeliverError>>) -> Result<T, DeliverError> {
        let late = || DeliverError::InDoubt(format!("no answer within {:?}", self.settings.timeout));
        tokio::time::timeout(self.settings.timeout, call).await.unwrap_or_else(|_| Err(late()))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.timeout);
        request
    }

    /// The raw service: the SDK's own client retries, and would hide an outage for ten seconds.
    async fn service(&self) -> Result<Box<dyn WorkflowService>, DeliverError> {
        let connection = self.connection.get_or_try_init(|| connect(&self.url, &self.settings)).await;
        connection.map(Connection::workflow_service).map_err(|error| DeliverError::Refused {
            retryable: true,
            reason: format!("no connection to {}: {error}", self.settings.address),
        })
    }
}

async fn connect(url: &Url, settings: &ClientSettings) -> Result<Connection, String> {
    let options = ConnectionOptions::new(url.clone())
        .identity(settings.identity.clone())
        .connect_timeout(settings.timeout)
        .retry_options(temporalio_client::RetryOptions::no_retries())
        .dns_load_balancing(None)
        .build();
    let connecting = tokio::time::timeout(settings.timeout, Connection::connect(options));
    connecting.await.map_err(|_| "it took too long".to_owned())?.map_err(|error| error.to_string())
}

fn execution(envelope: &Envelope, found: &Description) -> WorkflowExecution {
    WorkflowExecution { workflow_id: envelope.workflow_id(), run_id: found.run_id.clone() }
}

fn found<T>(answer: Rpc<T>) -> Result<Option<T>, DeliverError> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

fn unwritable(error: serde_json::Error) -> DeliverError {
    DeliverError::Refused { retryable: false, reason: format!("the envelope can't be written: {error}") }
}

/// Only an answer that the server gave on purpose says that nothing was started.
impl From<Status> for DeliverError {
    fn from(status: Status) -> Self {
        let reason = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::ResourceExhausted => {
                DeliverError::Refused { retryable: !status.message().contains("larger than"), reason }
            }
            // The operator can mend these; the envelope isn't at fault.
            Code::NotFound | Code::PermissionDenied | Code::Unauthenticated | Code::FailedPrecondition => {
                DeliverError::Refused { retryable: true, reason }
            }
            Code::InvalidArgument | Code::Unimplemented | Code::OutOfRange => {
                DeliverError::Refused { retryable: false, reason }
            }
            _ => DeliverError::InDoubt(reason),
        }
    }
}
