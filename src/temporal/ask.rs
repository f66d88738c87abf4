//! Which executions ask their pin before they begin, and what they take with them to know it.
//!
//! A pinned envelope runs on its own authority. Two don't: a copy without a pin, once its account is being armed, because
//! its key may have been pinned for Postgres meanwhile; and whatever a reset runs again, because its pin may have ended or moved.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use temporalio_client::Connection;
use temporalio_client::tonic::Request;
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::workflowservice::v1::GetWorkflowExecutionHistoryRequest;
use temporalio_sdk::activities::ActivityInfo;
use uuid::Uuid;

use crate::interaction::Envelope;

/// Whether unpinned copies of an account must ask, from memory.
pub type MustAsk = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// The failure by which an execution says that it has to ask first. Nothing of it has run.
pub const ASK: &str = "ask";

/// The input of an execution: the envelope, with what says whether it has to ask beside the envelope's own fields, so that
/// a worker of an older version reads it as well.
#[derive(Debug, Clone, Serialize)]
pub struct Execution {
    /// What to run.
    #[serde(flatten)]
    pub envelope: Envelope,
    /// See there.
    #[serde(flatten)]
    pub asking: Asking,
}

impl Execution {
    /// Whether it has a pin that the copy in `envelope` came without.
    pub fn is_adopted(&self, envelope: &Envelope) -> bool {
        self.envelope.pinned && !envelope.pinned
    }
}

/// What an execution knows of its past.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// The first run of its workflow, when it was scheduled. A reset makes a run with another id. Absent in histories of an
    /// older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_run: Option<String>,
    /// The run in which its pin was asked, and let it run. Another run was made by a reset, and asks again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_in: Option<String>,
    /// Attempts that were made before this was scheduled, so that fences grow.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub before: i32,
    /// When it was first to run, by the server's clock, where its envelope doesn't say: another activity is scheduled anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<DateTime<Utc>>,
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// In two readings: a flattened document can't hold a payload byte for byte.
impl<'de> Deserialize<'de> for Execution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let wrong = serde::de::Error::custom::<serde_json::Error>;
        Ok(Self {
            envelope: serde_json::from_str(text.get()).map_err(wrong)?,
            asking: serde_json::from_str(text.get()).map_err(wrong)?,
        })
    }
}

/// What a pin answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asked {
    /// It is this copy's: it may run, once nothing is `behind` it.
    Run {
        /// Earlier members of its series that Postgres owns.
        behind: Vec<Uuid>,
        /// Attempts that have ended, or may be under way in an earlier run.
        attempts: i32,
        /// The run in which it was asked: a reset takes the answer along, and its run has to ask for itself. Absent in what an
        /// older version answered.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<String>,
    },
    /// The pin holds other work, which can't be beside this copy. It is held, and the copy runs without one.
    Beside {
        /// As above.
        attempts: i32,
        /// As above.
        run: Option<String>,
    },
    /// It never runs.
    Never(String),
}

/// Knows which runs were made by a reset.
#[derive(Default)]
pub struct Resets {
    connection: Option<Connection>,
    namespace: String,
    known: Mutex<HashMap<String, bool>>,
}

/// More runs aren't remembered; they are looked at again.
const REMEMBER: usize = 1_000;
const WITHIN: Duration = Duration::from_secs(2);

impl Resets {
    /// Looks over `connection`.
    pub fn over(connection: Connection, namespace: &str) -> Self {
        Self { connection: Some(connection), namespace: namespace.to_owned(), known: Mutex::default() }
    }

    /// Whether the run that `info` belongs to was made by a reset. A workflow of its own never continues as new, so a run that
    /// isn't its first is one. A run of a series mostly is not its first, so the server is asked, once a run; where it can't
    /// say, the execution asks its pin, which is always safe.
    pub async fn made(&self, execution: &Execution, info: &ActivityInfo) -> bool {
        let (Some(first), Some(run)) = (&execution.asking.first_run, &info.workflow_run_id) else { return false };
        if first == run {
            return false;
        }
        if execution.envelope.series.is_none() {
            return true;
        }
        if let Some(known) = self.known().get(run) {
            return *known;
        }
        let Some(original) = self.original(info.workflow_id.as_deref().unwrap_or_default(), run).await else {
            return true;
        };
        let mut known = self.known();
        if known.len() >= REMEMBER {
            known.clear();
        }
        known.insert(run.clone(), original != *run);
        original != *run
    }

    fn known(&self) -> std::sync::MutexGuard<'_, HashMap<String, bool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run that wrote the first event of `run`: a reset copies it.
    async fn original(&self, workflow_id: &str, run: &str) -> Option<String> {
        let mut request = Request::new(GetWorkflowExecutionHistoryRequest {
            namespace: self.namespace.clone(),
            execution: Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run.to_owned() }),
            maximum_page_size: 1,
            ..Default::default()
        });
        request.set_timeout(WITHIN);
        let mut service = self.connection.as_ref()?.workflow_service();
        let answer = tokio::time::timeout(WITHIN, service.get_workflow_execution_history(request)).await.ok()?.ok()?;
        match answer.into_inner().history?.events.into_iter().next()?.attributes? {
            Attributes::WorkflowExecutionStartedEventAttributes(started) => Some(started.original_execution_run_id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::{Payload, Side, interaction_id};
    use crate::policy::Policy;

    fn envelope() -> Envelope {
        Envelope {
            id: interaction_id("a", "k"),
            account: "a".into(),
            kind: "k".into(),
            key: "k".into(),
            series: None,
            series_no: None,
            group: None,
            run_at: None,
            policy: Policy::default(),
            owner: Side::Temporal,
            epoch: 1,
            pinned: false,
            cancelled: false,
            payload_hash: String::new(),
            behind: vec![],
            payload: Payload::parse(r#"{"b":123456789012345678901234567890.10,"a":"\u0000"}"#.into()).unwrap(),
        }
    }

    #[test]
    fn an_execution_keeps_every_digit_and_is_an_envelope_to_an_older_worker() {
        let asking = Asking { first_run: Some("run".into()), asked_in: Some("another".into()), before: 2, since: None };
        let text = serde_json::to_string(&Execution { envelope: envelope(), asking: asking.clone() }).unwrap();
        let back: Execution = serde_json::from_str(&text).unwrap();
        assert_eq!(back.asking, asking);
        assert_eq!(back.envelope.payload.get(), envelope().payload.get());
        let older: Envelope = serde_json::from_str(&text).unwrap();
        assert_eq!(older.payload.get(), envelope().payload.get());
    }

    #[test]
    fn an_envelope_of_an_older_version_is_an_execution_that_knows_no_past() {
        let text = serde_json::to_string(&envelope()).unwrap();
        let read: Execution = serde_json::from_str(&text).unwrap();
        assert_eq!(read.asking, Asking::default());
    }
}
