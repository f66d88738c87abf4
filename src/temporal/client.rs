//! Speaks to Temporal without the SDK's patience: every call is bounded, none is repeated. What it delivers is in
//! [`super::deliver`].

use std::sync::Arc;
use std::time::Duration;

use temporalio_client::grpc::{OperatorService, WorkflowService};
use temporalio_client::tonic::{Code, Request, Response, Status};
use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, RetryOptions, Url};
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::enums::v1::WorkflowExecutionStatus;
use temporalio_common::protos::temporal::api::query::v1::WorkflowQuery;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    DescribeNamespaceRequest, DescribeWorkflowExecutionRequest, QueryWorkflowRequest,
};
use temporalio_common::telemetry::metrics::TemporalMeter;
use tokio::sync::OnceCell;

use crate::metrics::Metrics;

use super::Terms;
use super::attribute::{ACCOUNT_ATTRIBUTE, AccountAttribute};
use super::deliver::DeliverError;
use super::meter::meter;
use super::series::SeriesStatus;
use super::wire::{Memo, Target, from_json, series_workflow_id};

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
    pub(super) settings: Arc<ClientSettings>,
    url: Url,
    pub(super) target: Target,
    connection: Arc<OnceCell<Connection>>,
    meter: Option<TemporalMeter>,
    pub(super) attribute: Arc<AccountAttribute>,
    metrics: Option<Arc<Metrics>>,
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
        let attribute = Arc::new(AccountAttribute::named(ACCOUNT_ATTRIBUTE));
        let (settings, connection) = (Arc::new(settings), Arc::default());
        Ok(Self { settings, url, target, connection, meter: None, attribute, metrics: None })
    }

    /// The same, measured: its calls show in `metrics`.
    pub fn metered(mut self, metrics: &Arc<Metrics>) -> Self {
        self.meter = Some(meter(metrics));
        self.metrics = Some(metrics.clone());
        self
    }

    /// The same, and what it starts can be listed by the search attribute `name`, see [`super::attribute`].
    pub fn listed_by(mut self, name: &str) -> Self {
        self.attribute = Arc::new(AccountAttribute::named(name));
        self
    }

    /// The same, and each call may take so long.
    pub fn waiting(mut self, timeout: Duration) -> Self {
        self.settings = Arc::new(ClientSettings { timeout, ..(*self.settings).clone() });
        self
    }

    /// The name of that search attribute.
    pub fn attribute(&self) -> &str {
        self.attribute.name()
    }

    /// Whether a start was refused for its search attribute, so that it is to be repeated without.
    pub(super) fn refused_attribute(&self, status: &Status) -> bool {
        let missing = self.attribute.is_missing(status);
        if missing {
            let (name, error) = (self.attribute.name(), status.message());
            tracing::warn!(name, error, "the namespace does not take the search attribute; workflows start without it");
        }
        missing
    }

    /// Counts a start that carries no search attribute.
    pub(super) fn unlisted(&self) {
        if let Some(metrics) = &self.metrics {
            metrics.reconciliation.unlisted.inc();
        }
    }

    /// What Temporal says of a workflow; absent where it knows none of that id.
    pub async fn describe(&self, workflow_id: &str) -> Result<Option<Description>, DeliverError> {
        self.bounded(self.describe_now(workflow_id)).await
    }

    pub(super) async fn describe_now(&self, workflow_id: &str) -> Result<Option<Description>, DeliverError> {
        let request = DescribeWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }),
        };
        let answer = self.service().await?.describe_workflow_execution(self.request(request)).await;
        let Some(answer) = found(answer)? else { return Ok(None) };
        let info = answer.workflow_execution_info.unwrap_or_default();
        Ok(Some(Description {
            open: is_open(info.status()),
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

    pub(super) async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<T, DeliverError>>,
    ) -> Result<T, DeliverError> {
        let late = || DeliverError::InDoubt(format!("no answer within {:?}", self.settings.timeout));
        tokio::time::timeout(self.settings.timeout, call).await.unwrap_or_else(|_| Err(late()))
    }

    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.timeout);
        request
    }

    /// The raw service: the SDK's own client retries, and would hide an outage for ten seconds.
    pub(super) async fn service(&self) -> Result<Box<dyn WorkflowService>, DeliverError> {
        let connection = self.connection.get_or_try_init(|| self.connect()).await;
        connection.map(Connection::workflow_service).map_err(|error| DeliverError::Refused {
            retryable: true,
            reason: format!("no connection to {}: {error}", self.settings.address),
        })
    }

    /// The SDK's client over the same connection, for what has a token.
    pub(super) async fn sdk(&self) -> Result<Client, DeliverError> {
        self.service().await?;
        let none = || DeliverError::InDoubt("the connection is gone".to_owned());
        let connection = self.connection.get().ok_or_else(none)?.clone();
        let options = ClientOptions::new(self.settings.namespace.clone()).build();
        Client::new(connection, options).map_err(|error| DeliverError::InDoubt(error.to_string()))
    }

    /// The service of operators, over the same connection.
    pub(super) async fn operator(&self) -> Result<Box<dyn OperatorService>, DeliverError> {
        self.service().await?;
        let none = || DeliverError::InDoubt("the connection is gone".to_owned());
        self.connection.get().map(Connection::operator_service).ok_or_else(none)
    }

    /// A connection with the SDK's patience, for a worker.
    pub(super) async fn worker_connection(&self) -> Result<Connection, Box<dyn std::error::Error + Send + Sync>> {
        let options = ConnectionOptions::new(self.url.clone())
            .identity(self.settings.identity.clone())
            .connect_timeout(Duration::from_secs(2))
            .dns_load_balancing(None)
            .build();
        Ok(Connection::connect(options).await?)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let timeout = self.settings.timeout;
        let options = ConnectionOptions::new(self.url.clone())
            .identity(self.settings.identity.clone())
            .connect_timeout(timeout)
            .retry_options(RetryOptions::no_retries())
            .dns_load_balancing(None)
            .maybe_metrics_meter(self.meter.clone())
            .build();
        let connecting = tokio::time::timeout(timeout, Connection::connect(options));
        connecting.await.map_err(|_| "it took too long".to_owned())?.map_err(|error| error.to_string())
    }
}

fn found<T>(answer: Rpc<T>) -> Result<Option<T>, DeliverError> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::NotFound => Ok(None),
        Err(status) => Err(status.into()),
    }
}

/// Whether a workflow may still run: a paused one may, and so may one in a state that this program does not know.
pub(super) fn is_open(status: WorkflowExecutionStatus) -> bool {
    use WorkflowExecutionStatus as Status;
    !matches!(status, Status::Completed | Status::Failed | Status::Canceled | Status::Terminated | Status::TimedOut)
}
