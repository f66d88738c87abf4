//! What people say came of parked attempts: what they may say, and how Temporal is told.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::deliver::{Deliverer, DeliveryError};
use super::relay::RelayOptions;
use super::request::Fault;
use crate::executor::clean;
use crate::interaction::{Outcome, Payload};
use crate::ledger::{Ledger, LedgerError, Resolved, Resolving, Untold};
use crate::metrics::Metrics;

/// A result that is given by hand may have so many bytes, as one of a runner.
const MAX_RESULT: usize = 3 << 19;
const MAX_REASON: usize = 1_000;

/// What somebody says came of a parked attempt, checked.
#[derive(Debug, Clone)]
pub struct Wish {
    /// What.
    pub answer: Resolved,
    /// The result of a success; null where none is given.
    pub result: Option<Payload>,
    /// Why.
    pub reason: Option<String>,
}

impl Wish {
    /// Checks what was said; an error names every fault.
    pub fn parse(answer: Option<&str>, result: Option<&str>, reason: Option<&str>) -> Result<Self, Vec<Fault>> {
        let mut faults = Vec::new();
        let mut fault = |field: &str, message: String| faults.push(Fault { field: field.to_owned(), message });
        let known = answer.and_then(|text| text.parse::<Resolved>().ok());
        if known.is_none() {
            let found = answer.map_or("is missing".to_owned(), |text| format!("is `{}`", clean(text)));
            fault("as", format!("{found}; it must be succeeded, failed or retry"));
        }
        if result.is_some() && known.is_some_and(|answer| answer != Resolved::Succeeded) {
            fault("result", "only what succeeded has a result".to_owned());
        }
        let parsed = match result.filter(|text| text.len() <= MAX_RESULT).map(|text| Payload::parse(text.to_owned())) {
            Some(Err(error)) => {
                fault("result", format!("is no JSON document: {error}"));
                None
            }
            parsed => parsed.and_then(Result::ok),
        };
        if let Some(long) = result.filter(|text| text.len() > MAX_RESULT) {
            fault("result", format!("has {} bytes, the limit is {MAX_RESULT}", long.len()));
        }
        if let Some(reason) = reason {
            let length = reason.chars().count();
            if length > MAX_REASON {
                fault("reason", format!("has {length} characters, the limit is {MAX_REASON}"));
            }
            if reason.chars().any(char::is_control) {
                fault("reason", "holds a control character".to_owned());
            }
        }
        match known {
            Some(answer) if faults.is_empty() => {
                Ok(Self { answer, result: parsed, reason: reason.filter(|text| !text.is_empty()).map(str::to_owned) })
            }
            _ => Err(faults),
        }
    }

    /// Says it to the ledger.
    pub async fn ask(&self, ledger: &Ledger, id: Uuid, who: &str) -> Result<Resolving, LedgerError> {
        ledger.resolve(id, self.answer, self.result.as_ref(), self.reason.as_deref(), who).await
    }
}

/// Tells Temporal what people said, again and again until it is known to have heard it. Several may run: a workflow takes
/// an answer once.
pub struct Resolver {
    ledger: Ledger,
    deliverer: Deliverer,
    metrics: Arc<Metrics>,
    options: RelayOptions,
}

/// Told at once.
const PARALLEL: usize = 8;
/// People answer rarely: the outbox' pace would only cost.
const POLL: Duration = Duration::from_millis(500);

impl Resolver {
    /// A resolver beside a relay with these options.
    pub fn new(ledger: Ledger, deliverer: Deliverer, metrics: Arc<Metrics>, options: RelayOptions) -> Self {
        Self { ledger, deliverer, metrics, options }
    }

    /// Tells until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(self.options.poll.max(POLL))).await.is_some() {
            match self.ledger.take_untold(i64::from(self.options.batch), self.options.lease).await {
                Ok(untold) => {
                    stream::iter(untold).for_each_concurrent(PARALLEL, |untold| self.tell(untold)).await;
                }
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["take_untold"]).inc();
                    warn!(%error, "answers to parked interactions can't be read; trying again");
                }
            }
        }
    }

    async fn tell(&self, untold: Untold) {
        let (id, told) = (untold.resolution.id, self.deliverer.resolve(&untold).await);
        let outcome = match &told {
            Ok(true) => "told",
            Ok(false) => "gone",
            Err(_) => "failed",
        };
        self.metrics.parking.told.with_label_values(&[outcome]).inc();
        let recorded = match told {
            Ok(true) => {
                info!(%id, answer = %untold.resolution.answer, "Temporal was told what came of a parked attempt");
                self.ledger.told(&untold.resolution).await
            }
            Ok(false) => self.without_workflow(&untold).await,
            Err(error) => self.later(&untold, error).await,
        };
        if let Err(error) = recorded {
            self.metrics.ledger_errors.with_label_values(&["told"]).inc();
            warn!(%id, %error, "what Temporal was told can't be recorded; it is told again");
        }
    }

    /// Its workflow was ended from outside: what a person said is its end. It can't run again there.
    async fn without_workflow(&self, untold: &Untold) -> Result<(), LedgerError> {
        let resolution = &untold.resolution;
        let (outcome, reason) = match resolution.answer {
            Resolved::Succeeded => (Outcome::Succeeded, resolution.reason.clone()),
            Resolved::Failed => (Outcome::Failed, resolution.reason.clone()),
            Resolved::Retry => {
                (Outcome::Failed, Some("it was to run again, but its workflow is gone from Temporal".into()))
            }
        };
        warn!(id = %resolution.id, %outcome, "the workflow of a parked interaction is gone; it ends as was said");
        let settled =
            self.ledger.settle(resolution.id, resolution.fence, outcome, reason.as_deref(), None, false).await;
        settled.map(drop)
    }

    async fn later(&self, untold: &Untold, error: DeliveryError) -> Result<(), LedgerError> {
        let id = untold.resolution.id;
        warn!(%id, %error, tries = untold.tries, "Temporal can't be told yet what came of a parked attempt");
        let wait = Duration::from_millis(250 << untold.tries.clamp(0, 7));
        self.ledger.untold(id, wait, &clean(&error.to_string())).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(answer: Option<&str>, result: Option<&str>, reason: Option<&str>) -> Vec<String> {
        Wish::parse(answer, result, reason).unwrap_err().into_iter().map(|fault| fault.field).collect()
    }

    #[test]
    fn every_fault_of_an_answer_is_named_at_once() {
        assert_eq!(faults(None, Some("{"), Some("a\0b")), ["as", "result", "reason"]);
        assert_eq!(faults(Some("done"), None, None), ["as"]);
        assert_eq!(faults(Some("retry"), Some("1"), Some(&"x".repeat(1_001))), ["result", "reason"]);
        assert_eq!(faults(Some("succeeded"), Some(&"1".repeat(MAX_RESULT + 1)), None), ["result"]);
    }

    #[test]
    fn a_result_is_kept_digit_by_digit() {
        let wish = Wish::parse(Some("succeeded"), Some("1.10"), Some("")).unwrap();
        assert_eq!((wish.result.unwrap().get(), wish.reason), ("1.10", None));
    }
}
