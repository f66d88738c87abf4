//! What a delivery looks like on the wire: the requests, and the memo by which a copy is recognised.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use temporalio_common::data_converters::{
    PayloadConversionError, SerializationContext, TemporalDeserializable, TemporalSerializable,
};
use temporalio_common::protos::temporal::api::common::v1::{
    Header, Memo as ProtoMemo, Payload as ProtoPayload, Payloads, WorkflowType,
};
use temporalio_common::protos::temporal::api::enums::v1::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy};
use temporalio_common::protos::temporal::api::taskqueue::v1::TaskQueue;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    SignalWithStartWorkflowExecutionRequest, StartWorkflowExecutionRequest,
};
use uuid::Uuid;

use crate::interaction::{Envelope, Side, series_id};

use super::series::Series;
use super::workflow::Copy;

/// The field of memo and header.
pub const FIELD: &str = "crossover";

/// What a workflow says about itself before anybody opens its input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memo {
    /// The interaction.
    pub id: Uuid,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The caller's key.
    pub key: String,
    /// The side that executes.
    pub owner: Side,
    /// The pin's epoch.
    pub epoch: i32,
    /// Hex SHA-256 of the payload.
    pub payload_hash: String,
    /// False for a copy that was started in `off`.
    pub pinned: bool,
    /// The number in the series' chain.
    pub series_no: Option<i64>,
}

impl Memo {
    /// Reads it from a description or a history.
    pub fn read(memo: Option<&ProtoMemo>) -> Option<Self> {
        memo?.fields.get(FIELD).and_then(from_json)
    }

    /// Whether both speak of the same decision.
    pub fn agrees(&self, other: &Memo) -> bool {
        (self.owner, self.epoch, &self.payload_hash) == (other.owner, other.epoch, &other.payload_hash)
    }
}

impl From<&Envelope> for Memo {
    fn from(e: &Envelope) -> Self {
        Self {
            id: e.id,
            account: e.account.clone(),
            kind: e.kind.clone(),
            key: e.key.clone(),
            owner: e.owner,
            epoch: e.epoch,
            payload_hash: e.payload_hash.clone(),
            pinned: e.pinned,
            series_no: e.series_no,
        }
    }
}

/// What the workflow of a series says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The series.
    pub series: String,
}

impl About {
    /// Reads it from a description or a list.
    pub fn read(memo: Option<&ProtoMemo>) -> Option<Self> {
        memo?.fields.get(FIELD).and_then(from_json)
    }
}

/// Writes a value as Temporal's SDKs do.
pub fn to_json<T: Serialize>(value: &T) -> Result<ProtoPayload, serde_json::Error> {
    Ok(ProtoPayload {
        metadata: [("encoding".to_owned(), b"json/plain".to_vec())].into(),
        data: serde_json::to_vec(value)?,
        ..Default::default()
    })
}

/// A value that crosses Temporal byte for byte. The SDK would read it through `serde_json::Value`, which rounds long
/// numbers and sorts keys; its converter asks a wrapper like this one first.
#[derive(Debug, Clone)]
pub struct Exact<T>(pub T);

impl<T: Serialize> TemporalSerializable for Exact<T> {
    fn to_payload(&self, _: &SerializationContext<'_>) -> Result<ProtoPayload, PayloadConversionError> {
        to_json(&self.0).map_err(|error| PayloadConversionError::EncodingError(error.into()))
    }
}

impl<T: DeserializeOwned> TemporalDeserializable for Exact<T> {
    fn from_payload(_: &SerializationContext<'_>, payload: ProtoPayload) -> Result<Self, PayloadConversionError> {
        let read = serde_json::from_slice(&payload.data);
        read.map(Self).map_err(|error| PayloadConversionError::EncodingError(error.into()))
    }
}

/// Reads a value; one that isn't ours is absent.
pub fn from_json<T: DeserializeOwned>(payload: &ProtoPayload) -> Option<T> {
    serde_json::from_slice(&payload.data).ok()
}

/// The workflow id of an envelope's series.
pub fn series_workflow_id(account: &str, kind: &str, series: &str) -> String {
    format!("series:{}", series_id(account, kind, series))
}

/// The same for a repetition of the same decision, another for another: the server answers the one with the first
/// answer and the other with what it has.
fn request_id(memo: &Memo, cancelled: bool) -> String {
    let what = if cancelled { ":cancelled" } else { "" };
    let text = format!("{}:{}:{}:{}:{}{what}", memo.id, memo.epoch, memo.owner, memo.pinned, memo.payload_hash);
    Sha256::digest(text).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Where deliveries go.
#[derive(Debug, Clone)]
pub struct Target {
    /// The namespace.
    pub namespace: String,
    /// The task queue.
    pub task_queue: String,
    /// Who delivers, for the history.
    pub identity: String,
}

impl Target {
    fn queue(&self) -> Option<TaskQueue> {
        Some(TaskQueue { name: self.task_queue.clone(), ..Default::default() })
    }

    /// Starts a workflow of its own. A closed id is never used again.
    pub fn start(&self, copy: &Copy) -> Result<StartWorkflowExecutionRequest, serde_json::Error> {
        let memo = Memo::from(&copy.envelope);
        let field = to_json(&memo)?;
        Ok(StartWorkflowExecutionRequest {
            namespace: self.namespace.clone(),
            workflow_id: copy.envelope.workflow_id(),
            workflow_type: Some(WorkflowType { name: "InteractionWorkflow".to_owned() }),
            task_queue: self.queue(),
            input: Some(Payloads { payloads: vec![to_json(copy)?] }),
            identity: self.identity.clone(),
            request_id: request_id(&memo, copy.envelope.cancelled),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::RejectDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            memo: Some(ProtoMemo { fields: [(FIELD.to_owned(), field.clone())].into() }),
            header: Some(Header { fields: [(FIELD.to_owned(), field)].into() }),
            ..Default::default()
        })
    }

    /// Feeds a series. It may have ended when it was idle, so its id is used again.
    pub fn enqueue(
        &self,
        envelope: &Envelope,
        series: &str,
        first: &Series,
    ) -> Result<SignalWithStartWorkflowExecutionRequest, serde_json::Error> {
        let (account, kind, series) = (envelope.account.clone(), envelope.kind.clone(), series.to_owned());
        let about = About { account, kind, series };
        Ok(SignalWithStartWorkflowExecutionRequest {
            namespace: self.namespace.clone(),
            workflow_id: series_workflow_id(&about.account, &about.kind, &about.series),
            workflow_type: Some(WorkflowType { name: "SeriesWorkflow".to_owned() }),
            task_queue: self.queue(),
            input: Some(Payloads { payloads: vec![to_json(first)?] }),
            identity: self.identity.clone(),
            request_id: request_id(&Memo::from(envelope), envelope.cancelled),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::AllowDuplicate.into(),
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting.into(),
            signal_name: "enqueue".to_owned(),
            signal_input: Some(Payloads { payloads: vec![to_json(envelope)?] }),
            memo: Some(ProtoMemo { fields: [(FIELD.to_owned(), to_json(&about)?)].into() }),
            header: Some(Header { fields: [(FIELD.to_owned(), to_json(&Memo::from(envelope))?)].into() }),
            ..Default::default()
        })
    }
}
