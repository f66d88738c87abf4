//! What a runner says of an attempt that it took away: `heartbeat`, `complete`, `fail`, each with the fence that the executor
//! call gave it. Any process answers, whoever made the call.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::interactions::id_of;
use super::schema::{Complete, Fail, Heartbeat, Kept, Reported};
use super::{Api, Problem, Shared, body};
use crate::executor::clean;
use crate::interaction::{Fence, Outcome, Payload, Side};
use crate::ledger::{Beat, Ending, LedgerError, Report, is_outage};
use crate::policy::Failure;
use crate::router::request::Fault;

/// As long as a result may be that a runner answers at once.
pub(super) const MAX_RESULT: usize = 3 << 19;
/// Room for that, or for what went wrong.
const BODY_BYTES: usize = MAX_RESULT + (64 << 10);
/// A runner may ask for a pause of so long.
pub(super) const MAX_RETRY_AFTER_MS: u64 = 86_400_000;

/// Keep an attempt that was taken away
///
/// For a runner that answered the executor call with 202 and `Crossover-Detached`. It must come within that time, again and
/// again; three times as often is good practice. `cancel_requested` says that somebody wants it to end: say `fail` once it has,
/// or `complete` if it was too late.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/heartbeat", tag = "work",
    params(("id" = Uuid, Path, description = "As the executor call had it.")),
    request_body(content = Heartbeat),
    responses(
        (status = 200, description = "It is still this runner's.", body = Kept),
        (status = 409, description = "It is no longer this runner's: it was lost, has ended, or another attempt has the work. Stop; what comes of it is refused.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["work"]))
)]
pub(super) async fn heartbeat(State(api): Shared, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let Said { id, fence, .. } = said(&api, &id, &headers, body, &["fence"]).await?;
        let beat = bounded(&api, api.ledger.beat(id, fence)).await?;
        let answer = match beat {
            Beat::Kept { .. } => "taken",
            Beat::Late => "late",
            Beat::NotYet => "not_yet",
        };
        count(&api, "heartbeat", answer);
        match beat {
            Beat::Kept { silence, run_until, cancel_requested } => Ok(Json(Kept {
                id,
                fence: fence.to_string(),
                cancel_requested,
                within_ms: silence.as_millis() as u64,
                run_until,
            })),
            Beat::Late => Err(late(&api, id, fence).await),
            Beat::NotYet => Err(not_yet(id, fence)),
        }
    };
    answered.await.into_response()
}

/// Complete an attempt that was taken away
///
/// Repeating it is safe; the first word stands.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/complete", tag = "work",
    params(("id" = Uuid, Path, description = "As the executor call had it.")),
    request_body(content = Complete),
    responses(
        (status = 200, description = "It has succeeded.", body = Reported),
        (status = 202, description = "Temporal owns it and is being told. It may still refuse, if it was away for longer than its heartbeat time-out.", body = Reported),
        (status = 409, description = "It is no longer this runner's, and the result is refused.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["work"]))
)]
pub(super) async fn complete(State(api): Shared, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let said = said(&api, &id, &headers, body, &["fence", "result"]).await?;
        let result = said.result()?;
        report(&api, "complete", said.id, said.fence, Ending::Done(result)).await
    };
    answered.await.into_response()
}

/// Fail an attempt that was taken away
///
/// The interaction's policy says what follows; after a wish to cancel it, nothing does. Repeating it is safe; the first word
/// stands.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/fail", tag = "work",
    params(("id" = Uuid, Path, description = "As the executor call had it.")),
    request_body(content = Fail),
    responses(
        (status = 200, description = "It has failed, was cancelled, or is tried again.", body = Reported),
        (status = 202, description = "Temporal owns it and is being told.", body = Reported),
        (status = 409, description = "It is no longer this runner's.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["work"]))
)]
pub(super) async fn fail(State(api): Shared, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let said = said(&api, &id, &headers, body, &["fence", "error", "permanent", "retry_after_ms"]).await?;
        let (failure, error) = said.failure()?;
        report(&api, "fail", said.id, said.fence, Ending::Failed { failure, error }).await
    };
    answered.await.into_response()
}

async fn report(
    api: &Api,
    what: &'static str,
    id: Uuid,
    fence: Fence,
    ending: Ending,
) -> Result<(StatusCode, Json<Reported>), Problem> {
    let reported = bounded(api, api.ledger.report(id, fence, &ending)).await?;
    let (side, outcome, retried, again) = match reported {
        Report::Taken { side, outcome, retried, again } => (side, outcome, retried, again),
        Report::Late => {
            count(api, what, "late");
            return Err(late(api, id, fence).await);
        }
        Report::NotYet => {
            count(api, what, "not_yet");
            return Err(not_yet(id, fence));
        }
    };
    count(api, what, if again { "again" } else { "taken" });
    if !again {
        tracing::info!(%id, %fence, %side, %outcome, retried, "a runner ended what it took away");
        if side == Side::Postgres {
            api.metrics.attempted(side, false, Some(outcome), retried);
        }
    }
    let state = match (side, outcome) {
        (Side::Temporal, _) => "accepted",
        (_, Outcome::Failed) if retried => "retried",
        (_, outcome) => outcome.as_str(),
    };
    let status = if side == Side::Temporal { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(Reported { id, fence: fence.to_string(), state })))
}

/// Asks the ledger, for as long as a request may take.
async fn bounded<T>(api: &Api, call: impl Future<Output = Result<T, LedgerError>>) -> Result<T, Problem> {
    let late = || LedgerError::InDoubt(format!("no answer within {:?}", api.request_timeout));
    let answer = tokio::time::timeout(api.request_timeout, call).await.unwrap_or_else(|_| Err(late()));
    answer.map_err(|error| match error {
        // What can't be stored won't be at the next try either.
        LedgerError::Refused(_) if !is_outage(&error) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
        }
        error => Problem::unavailable(format!(
            "{error}; repeat it, nothing is lost if that is within its heartbeat time-out"
        )),
    })
}

fn count(api: &Api, report: &'static str, answer: &'static str) {
    api.metrics.detached.reports.with_label_values(&[report, answer]).inc();
}

async fn late(api: &Api, id: Uuid, fence: Fence) -> Problem {
    // Whose it was, as far as that can be told.
    let side = match api.ledger.detached(id, fence).await {
        Ok(Some(row)) => row.side.as_str(),
        _ => "unknown",
    };
    api.metrics.late_results.with_label_values(&[side]).inc();
    tracing::warn!(%id, %fence, side, "a runner reported on an attempt that it no longer has; it was refused");
    let detail = format!(
        "attempt {fence} of {id} is no longer this runner's: it was lost, has ended, or another attempt has the work; stop it, and look the interaction up"
    );
    Problem::new(StatusCode::CONFLICT, detail)
}

fn not_yet(id: Uuid, fence: Fence) -> Problem {
    Problem::unavailable(format!(
        "nothing is recorded of attempt {fence} of {id} as taken away; its worker records it as soon as Postgres lets it, so repeat this for as long as the heartbeat time-out"
    ))
}

/// What a runner sent, its fields still unread but for the fence.
#[derive(Debug)]
struct Said {
    id: Uuid,
    fence: Fence,
    fields: HashMap<String, Box<RawValue>>,
}

async fn said(api: &Api, id: &str, headers: &HeaderMap, body: Body, known: &[&str]) -> Result<Said, Problem> {
    let id = id_of(id)?;
    let body = body::read(headers, body, BODY_BYTES, api.request_timeout).await?;
    read(id, &body, known)
}

fn read(id: Uuid, body: &[u8], known: &[&str]) -> Result<Said, Problem> {
    let fields: HashMap<String, Box<RawValue>> =
        serde_json::from_slice(body).map_err(|error| Problem::no_object(&error))?;
    let mut faults: Vec<Fault> = Vec::new();
    for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
        faults.push(fault(name, format!("is no field; the fields are {}", known.join(", "))));
    }
    let text = fields.get("fence").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
    match text.as_deref().unwrap_or_default().parse() {
        Ok(fence) if faults.is_empty() => Ok(Said { id, fence, fields }),
        Ok(_) => Err(Problem::invalid(faults)),
        Err(error) => {
            faults.push(fault("fence", error.to_string()));
            Err(Problem::invalid(faults))
        }
    }
}

pub(super) fn fault(field: &str, message: impl Into<String>) -> Fault {
    Fault { field: clean(field), message: message.into() }
}

impl Said {
    /// A field that may be absent, or null.
    fn get<T: serde::de::DeserializeOwned>(&self, name: &str, kind: &str) -> Result<Option<T>, Fault> {
        let Some(raw) = self.fields.get(name).filter(|raw| raw.get() != "null") else { return Ok(None) };
        serde_json::from_str(raw.get()).map(Some).map_err(|_| fault(name, format!("must be {kind}")))
    }

    fn result(&self) -> Result<Payload, Problem> {
        let text = self.fields.get("result").map_or("null", |raw| raw.get());
        let bad = |message: String| Problem::invalid(vec![fault("result", message)]);
        if text.len() > MAX_RESULT {
            return Err(bad(format!("has {} bytes, may have {MAX_RESULT}", text.len())));
        }
        Payload::parse(text.to_owned()).map_err(|error| bad(error.to_string()))
    }

    fn failure(&self) -> Result<(Failure, String), Problem> {
        let error = self.get::<String>("error", "a text");
        let permanent = self.get::<bool>("permanent", "true or false");
        let retry_after = self.get::<u64>("retry_after_ms", "a number of milliseconds").and_then(|ms| match ms {
            Some(ms) if ms > MAX_RETRY_AFTER_MS => {
                Err(fault("retry_after_ms", format!("must be at most {MAX_RETRY_AFTER_MS} (a day), is {ms}")))
            }
            ms => Ok(ms),
        });
        match (error, permanent, retry_after) {
            (Ok(error), Ok(permanent), Ok(retry_after)) => {
                let failure = match permanent {
                    Some(true) => Failure::Permanent,
                    _ => Failure::Retryable { retry_after: retry_after.map(Duration::from_millis) },
                };
                Ok((failure, clean(error.as_deref().unwrap_or("its runner did not say why"))))
            }
            (error, permanent, retry_after) => {
                let faults = [error.err(), permanent.err(), retry_after.err()];
                Err(Problem::invalid(faults.into_iter().flatten().collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAIL: [&str; 4] = ["fence", "error", "permanent", "retry_after_ms"];

    fn failure(body: &str) -> Result<(Failure, String), Problem> {
        read(Uuid::nil(), body.as_bytes(), &FAIL)?.failure()
    }

    #[test]
    fn a_report_names_its_fence_and_nothing_unknown() {
        let read = |body: &str| read(Uuid::nil(), body.as_bytes(), &["fence", "result"]);
        assert_eq!(read(r#"{"fence":"2.1"}"#).unwrap().fence, Fence { epoch: 2, attempt: 1 });
        for body in ["{}", r#"{"fence":2.1}"#, r#"{"fence":"2"}"#, r#"{"fence":"2.1","resutl":1}"#] {
            assert_eq!(read(body).unwrap_err().status(), StatusCode::UNPROCESSABLE_ENTITY, "{body}");
        }
        assert_eq!(read("[]").unwrap_err().status(), StatusCode::BAD_REQUEST);
    }

    #[test]
    fn a_result_is_kept_byte_for_byte_and_null_where_there_is_none() {
        let result = |body: &str| read(Uuid::nil(), body.as_bytes(), &["fence", "result"]).unwrap().result();
        assert_eq!(result(r#"{"fence":"1.1","result":{"b":1.10,"a":2}}"#).unwrap().get(), r#"{"b":1.10,"a":2}"#);
        assert_eq!(result(r#"{"fence":"1.1"}"#).unwrap().get(), "null");
        let long = format!(r#"{{"fence":"1.1","result":"{}"}}"#, "x".repeat(MAX_RESULT));
        assert!(result(&long).is_err());
    }

    #[test]
    fn a_failure_is_worth_another_try_unless_it_says_otherwise() {
        let retry = |ms: Option<u64>| Failure::Retryable { retry_after: ms.map(Duration::from_millis) };
        assert_eq!(failure(r#"{"fence":"1.1","error":"busy"}"#).unwrap(), (retry(None), "busy".to_owned()));
        assert_eq!(failure(r#"{"fence":"1.1","retry_after_ms":7}"#).unwrap().0, retry(Some(7)));
        assert_eq!(failure(r#"{"fence":"1.1","permanent":true}"#).unwrap().0, Failure::Permanent);
        for body in [r#""error":7"#, r#""permanent":"yes""#, r#""retry_after_ms":-1"#, r#""retry_after_ms":86400001"#] {
            assert!(failure(&format!(r#"{{"fence":"1.1",{body}}}"#)).is_err(), "{body}");
        }
    }
}
