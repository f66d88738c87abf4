//! Brings copies to Temporal, and says exactly what is known afterwards.

use std::time::Duration;

use temporalio_client::tonic::{Code, Status};
use temporalio_common::protos::temporal::api::common::v1::{Payloads, WorkflowExecution};
use temporalio_common::protos::temporal::api::enums::v1::HistoryEventFilterType;
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, SignalWorkflowExecutionRequest,
};

use crate::interaction::{Envelope, Fence, Outcome, Payload, Side};
use crate::ledger::Untold;

use super::backlog::Backlog;
use super::client::{Description, TemporalClient, is_open};
use super::copy::Closed;
use super::series::Series;
use super::wire::{Memo, from_json, series_workflow_id, to_json};
use super::workflow::Copy;

/// The pause before a workflow that is about to end is signalled again.
const CLOSING: Duration = Duration::from_millis(20);

/// What a delivery found or did.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// It was started (or signalled), by this delivery or by an earlier one of the same decision.
    Started,
    /// An equal copy was there. An unpinned one that was still open has been adopted.
    AlreadyThere,
    /// The copy had ended before, unpinned or by somebody's hand: the caller ends the pin, if it has not ended.
    Ended {
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
    #[error("owner conflict: Temporal has this workflow id with {}", found.as_deref().map_or("no memo of ours".to_owned(), describe_memo))]
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

fn describe_memo(memo: &Memo) -> String {
    format!("owner {}, epoch {}, payload {:.12}…", memo.owner, memo.epoch, memo.payload_hash)
}

impl TemporalClient {
    /// Brings a copy to Temporal. Repeating it is always safe.
    pub async fn deliver(&self, envelope: &Envelope) -> Result<Delivered, DeliverError> {
        let delivery = async {
            match &envelope.series {
                Some(series) => self.enqueue(envelope, series).await,
                None => {
                    let delivered = self.start(envelope).await?;
                    self.stand_aside(envelope).await?;
                    Ok(delivered)
                }
            }
        };
        self.bounded(delivery).await
    }

    async fn start(&self, envelope: &Envelope) -> Result<Delivered, DeliverError> {
        let copy = Copy { envelope: envelope.clone(), terms: self.settings.terms };
        let mut message = self.target.start(&copy).map_err(unwritable)?;
        message.search_attributes = self.attribute.of(&envelope.account);
        let mut service = self.service().await?;
        let mut answer = service.start_workflow_execution(self.request(message.clone())).await;
        if message.search_attributes.is_some() && answer.as_ref().is_err_and(|status| self.refused_attribute(status)) {
            message.search_attributes = None;
            answer = service.start_workflow_execution(self.request(message.clone())).await;
        }
        if message.search_attributes.is_none() {
            self.unlisted();
        }
        match answer {
            // A repetition answers `started` as well, also where that workflow has closed since.
            Ok(answer) if answer.get_ref().started && is_open(answer.get_ref().status()) => Ok(Delivered::Started),
            Ok(_) => self.compare(envelope).await,
            Err(status) if status.code() == Code::AlreadyExists => self.compare(envelope).await,
            Err(status) => Err(status.into()),
        }
    }

    /// Tells the copies of earlier epochs, all rehearsals, that another has taken their place. One that is delivered later
    /// still is ended by the mirror.
    async fn stand_aside(&self, envelope: &Envelope) -> Result<(), DeliverError> {
        for epoch in 1..envelope.epoch {
            let old = Envelope { epoch, ..envelope.clone() };
            let request = self.signalling(&old, String::new(), "cancel");
            match self.service().await?.signal_workflow_execution(self.request(request)).await {
                Err(status) if status.code() != Code::NotFound && !is_closing(&status) => return Err(status.into()),
                _ => {}
            }
        }
        Ok(())
    }

    async fn enqueue(&self, envelope: &Envelope, series: &str) -> Result<Delivered, DeliverError> {
        let first = Series {
            terms: self.settings.terms,
            window_ms: self.settings.window.as_millis() as u64,
            items_a_run: self.settings.series_items_a_run,
            backlog: Backlog::default(),
        };
        let mut message = self.target.enqueue(envelope, series, &first).map_err(unwritable)?;
        message.search_attributes = self.attribute.of(&envelope.account);
        if message.search_attributes.is_none() {
            self.unlisted();
        }
        let mut service = self.service().await?;
        loop {
            match service.signal_with_start_workflow_execution(self.request(message.clone())).await {
                Err(status) if is_closing(&status) => tokio::time::sleep(CLOSING).await,
                Err(status) if message.search_attributes.is_some() && self.refused_attribute(&status) => {
                    message.search_attributes = None;
                    self.unlisted();
                }
                answer => return answer.map(|_| Delivered::Started).map_err(Into::into),
            }
        }
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
            // A pinned execution closes after its end is in the pin, unless somebody ended its workflow from outside.
            Some(memo) if memo.pinned && ours.pinned && !found.open && envelope.executes_on(Side::Temporal) => {
                self.ended(envelope, &found).await
            }
            Some(memo) if memo.pinned || !ours.pinned => self.there(envelope, &found).await,
            Some(_) if found.open => match self.signal(envelope, &found, "adopt").await? {
                Delivered::AlreadyThere => self.there(envelope, &found).await,
                ended => Ok(ended),
            },
            Some(_) => self.ended(envelope, &found).await,
        }
    }

    /// An equal copy is there; one that is open is told where it was called off meanwhile.
    async fn there(&self, envelope: &Envelope, found: &Description) -> Result<Delivered, DeliverError> {
        match envelope.cancelled && found.open {
            true => self.signal(envelope, found, "cancel").await,
            false => Ok(Delivered::AlreadyThere),
        }
    }

    async fn signal(&self, envelope: &Envelope, found: &Description, name: &str) -> Result<Delivered, DeliverError> {
        let request = self.signalling(envelope, found.run_id.clone(), name);
        let mut service = self.service().await?;
        loop {
            match service.signal_workflow_execution(self.request(request.clone())).await {
                Ok(_) => return Ok(Delivered::AlreadyThere),
                Err(status) if is_closing(&status) => tokio::time::sleep(CLOSING).await,
                // It closed between the two calls.
                Err(status) if status.code() == Code::NotFound && envelope.executes_on(Side::Temporal) => {
                    return self.ended(envelope, found).await;
                }
                Err(status) if status.code() == Code::NotFound => return Ok(Delivered::AlreadyThere),
                Err(status) => return Err(status.into()),
            }
        }
    }

    /// Tells the workflow that waits for it what came of a parked attempt. False: it is gone.
    pub async fn resolve(&self, untold: &Untold) -> Result<bool, DeliverError> {
        let (resolution, series) = (&untold.resolution, untold.series.as_deref());
        let Fence { epoch, .. } = resolution.fence;
        let workflow_id = match series {
            Some(series) => series_workflow_id(&untold.account, &untold.kind, series),
            None => format!("{}:{epoch}", resolution.id),
        };
        let input = to_json(resolution).map_err(unwritable)?;
        let request = SignalWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_execution: Some(WorkflowExecution { workflow_id, run_id: String::new() }),
            signal_name: "resolve".to_owned(),
            identity: self.target.identity.clone(),
            // The workflow knows a repetition; the server would answer it as if the workflow were still there.
            request_id: uuid::Uuid::new_v4().to_string(),
            input: Some(Payloads { payloads: vec![input] }),
            ..Default::default()
        };
        self.bounded(async {
            match self.service().await?.signal_workflow_execution(self.request(request)).await {
                Ok(_) => Ok(true),
                Err(status) if status.code() == Code::NotFound => Ok(false),
                Err(status) => Err(status.into()),
            }
        })
        .await
    }

    fn signalling(&self, envelope: &Envelope, run_id: String, name: &str) -> SignalWorkflowExecutionRequest {
        SignalWorkflowExecutionRequest {
            namespace: self.target.namespace.clone(),
            workflow_execution: Some(WorkflowExecution { workflow_id: envelope.workflow_id(), run_id }),
            signal_name: name.to_owned(),
            identity: self.target.identity.clone(),
            request_id: format!("{name}:{}", envelope.workflow_id()),
            ..Default::default()
        }
    }

    async fn ended(&self, envelope: &Envelope, found: &Description) -> Result<Delivered, DeliverError> {
        let lost = Some(format!("its workflow ended as {:?}", found.status));
        Ok(match self.closed(&envelope.workflow_id(), found).await? {
            Some(Closed { outcome: Some(outcome), attempt, result, reason, .. }) => {
                Delivered::Ended { outcome, attempt, result, error: reason }
            }
            _ => Delivered::Ended { outcome: Outcome::Failed, attempt: 0, result: None, error: lost },
        })
    }

    /// How the copy `workflow_id` ended, absent while it is open; `None` where Temporal knows none. One whose workflow
    /// was ended from outside has failed.
    pub async fn outcome(&self, workflow_id: &str) -> Result<Option<Option<Outcome>>, DeliverError> {
        self.bounded(async {
            let Some(found) = self.describe_now(workflow_id).await? else { return Ok(None) };
            if found.open {
                return Ok(Some(None));
            }
            let closed = self.closed(workflow_id, &found).await?;
            Ok(Some(Some(closed.and_then(|closed| closed.outcome).unwrap_or(Outcome::Failed))))
        })
        .await
    }

    /// What a closed workflow said last; absent where it was ended from outside.
    async fn closed(&self, workflow_id: &str, found: &Description) -> Result<Option<Closed>, DeliverError> {
        let request = GetWorkflowExecutionHistoryRequest {
            namespace: self.target.namespace.clone(),
            execution: Some(execution(workflow_id, found)),
            history_event_filter_type: HistoryEventFilterType::CloseEvent.into(),
            ..Default::default()
        };
        let answer = self.service().await?.get_workflow_execution_history(self.request(request)).await?;
        let last = answer.into_inner().history.and_then(|mut history| history.events.pop()).and_then(|e| e.attributes);
        Ok(match last {
            Some(Attributes::WorkflowExecutionCompletedEventAttributes(done)) => {
                done.result.and_then(|r| r.payloads.first().and_then(from_json::<Closed>))
            }
            _ => None,
        })
    }
}

fn execution(workflow_id: &str, found: &Description) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: found.run_id.clone() }
}

/// A server whose workflow continues as new, or ends, refuses signals for some milliseconds, so that it gets there
/// at all. That is an answer and no outage: asking again within the time-out hides nothing.
fn is_closing(status: &Status) -> bool {
    status.code() == Code::ResourceExhausted && status.message().contains("workflow is closing")
}

fn unwritable(error: serde_json::Error) -> DeliverError {
    DeliverError::Refused { retryable: false, reason: format!("the envelope can't be written: {error}") }
}

/// Only an answer that the server gave on purpose says that nothing was started, and only one about this envelope's
/// size is for ever: what else is refused (a limit reached, a proxy without its route, a namespace missing) passes or
/// can be mended, and then the same copy is taken.
impl From<Status> for DeliverError {
    fn from(status: Status) -> Self {
        let reason = format!("{:?}: {}", status.code(), status.message());
        match status.code() {
            Code::ResourceExhausted | Code::InvalidArgument => {
                // «Workflow history size exceeds limit» is about the workflow: the next delivery starts another.
                let too_large =
                    reason.contains("larger than") || reason.contains("size exceeds") && !reason.contains("Workflow ");
                DeliverError::Refused { retryable: !too_large, reason }
            }
            Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::Unimplemented
            | Code::OutOfRange => DeliverError::Refused { retryable: true, reason },
            _ => DeliverError::InDoubt(reason),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_final(code: Code, message: &str) -> bool {
        matches!(Status::new(code, message).into(), DeliverError::Refused { retryable: false, .. })
    }

    #[test]
    fn only_an_envelope_that_is_too_large_is_refused_for_ever() {
        assert!(is_final(Code::InvalidArgument, "Blob data size exceeds limit."));
        assert!(is_final(Code::ResourceExhausted, "grpc: received message larger than max (5000000 vs. 4194304)"));
        assert!(!is_final(Code::InvalidArgument, "Workflow history size exceeds limit."));
        assert!(!is_final(Code::InvalidArgument, "exceeded workflow execution limit for signal events"));
        assert!(!is_final(Code::ResourceExhausted, "namespace rate limit exceeded"));
        assert!(!is_final(Code::Unimplemented, "grpc-status header missing, mapped from HTTP status code 404"));
    }
}
