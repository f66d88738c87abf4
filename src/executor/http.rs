//! The executor call over HTTP: one POST an attempt.

use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde::Serialize;

use super::{Answer, Call, Executor, clean};
use crate::interaction::{Payload, Side};
use crate::policy::{Doubt, Failure};
use crate::telemetry;

/// A result may have so many bytes: what fits through Temporal, so that both sides take the same.
const MAX_RESULT: usize = 3 << 19;
/// A runner may ask for a pause of so long.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(86_400);
/// With 202 Accepted: the runner takes the attempt away, and is silent for so many seconds at most.
const DETACHED: &str = "Crossover-Detached";

/// Calls a runner.
pub struct HttpExecutor {
    client: Client,
    url: Url,
}

/// The runner's address can't be used.
#[derive(Debug, thiserror::Error)]
pub enum HttpExecutorError {
    /// Not a URL.
    #[error("runner.url is no http(s) URL: {0}")]
    Url(String),
    /// The client could not be set up.
    #[error("the HTTP client can't start: {0}")]
    Client(#[source] reqwest::Error),
}

#[derive(Serialize)]
struct Body<'a> {
    id: uuid::Uuid,
    account: &'a str,
    kind: &'a str,
    key: &'a str,
    series: Option<&'a str>,
    payload: &'a Payload,
    side: Side,
    epoch: i32,
    attempt: i32,
}

impl HttpExecutor {
    /// An executor that posts to `url`. Redirects are not followed: a runner is one address.
    pub fn new(url: &str, connect_timeout: Duration) -> Result<Self, HttpExecutorError> {
        let parsed: Url = url.parse().map_err(|e| HttpExecutorError::Url(format!("{e}")))?;
        if !matches!(parsed.scheme(), "http" | "https") {
            return Err(HttpExecutorError::Url(format!("its scheme is {}", parsed.scheme())));
        }
        let client = Client::builder()
            .connect_timeout(connect_timeout)
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(Duration::from_secs(30))
            .build()
            .map_err(HttpExecutorError::Client)?;
        Ok(Self { client, url: parsed })
    }

    async fn post(&self, call: &Call) -> Result<Response, reqwest::Error> {
        let body = Body {
            id: call.id,
            account: &call.account,
            kind: &call.kind,
            key: &call.key,
            series: call.series.as_deref(),
            payload: &call.payload,
            side: call.side,
            epoch: call.fence.epoch,
            attempt: call.fence.attempt,
        };
        self.client
            .post(self.url.clone())
            .header("Idempotency-Key", call.id.to_string())
            .header("Crossover-Side", call.side.as_str())
            .header("Crossover-Fence", call.fence.to_string())
            .header("traceparent", telemetry::traceparent(&tracing::Span::current(), call.id))
            .json(&body)
            .send()
            .await
    }
}

#[async_trait]
impl Executor for HttpExecutor {
    async fn execute(&self, call: &Call) -> Answer {
        let response = match self.post(call).await {
            Ok(response) => response,
            // Nothing was sent.
            Err(error) if error.is_connect() || error.is_builder() => {
                return Answer::retryable(format!("the runner can't be reached: {}", chain(&error)));
            }
            Err(error) => {
                let error = format!("the runner did not answer: {}", chain(&error));
                return Answer::unknown(Doubt::Connection, error);
            }
        };
        let (status, headers) = (response.status(), response.headers().clone());
        let body = match read(response).await {
            Ok(Some(body)) => body,
            // It had its effect; another call would answer as much.
            Ok(None) => {
                return Answer::permanent(format!("the runner's answer ({status}) is longer than {MAX_RESULT} bytes"));
            }
            Err(error) => {
                return Answer::unknown(Doubt::Connection, format!("the runner's answer ({status}) {error}"));
            }
        };
        answer(status, &headers, body, Utc::now())
    }
}

/// Reads a body; none where it is too long.
async fn read(mut response: Response) -> Result<Option<Vec<u8>>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| format!("broke off: {}", chain(&e)))? {
        if body.len() + chunk.len() > MAX_RESULT {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Judges a runner's answer: 2xx with JSON is the result, 429 and 5xx are worth another try, the rest is final.
fn answer(status: StatusCode, headers: &HeaderMap, body: Vec<u8>, now: DateTime<Utc>) -> Answer {
    if status == StatusCode::ACCEPTED
        && let Some(silence) = headers.get(DETACHED)
    {
        return detached(silence.to_str().unwrap_or_default());
    }
    if status.is_success() {
        if body.is_empty() {
            return Payload::parse("null".to_owned()).map_or_else(|e| Answer::retryable(e.to_string()), Answer::Done);
        }
        let text = String::from_utf8(body).map_err(|_| "invalid UTF-8".to_owned());
        return match text.and_then(|text| Payload::parse(text).map_err(|e| e.to_string())) {
            Ok(result) => Answer::Done(result),
            Err(error) => Answer::retryable(format!("the runner answered {status}, but not with JSON: {error}")),
        };
    }
    let text = String::from_utf8_lossy(&body);
    let error = clean(&format!("the runner answered {status}: {}", text.chars().take(500).collect::<String>()));
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        return Answer::Failed { failure: Failure::Retryable { retry_after: retry_after(headers, now) }, error };
    }
    Answer::permanent(error)
}

/// The runner goes on without us, unless it says something that can't be meant.
fn detached(silence: &str) -> Answer {
    let seconds = silence.trim().parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    match seconds {
        Some(silence) => Answer::detached(silence),
        None => {
            Answer::retryable(format!("the runner took it away, but {DETACHED} is no number of seconds: {silence}"))
        }
    }
}

/// `Retry-After` in seconds or as a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: DateTime<Utc>) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match value.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => (DateTime::parse_from_rfc2822(value).ok()?.to_utc() - now).to_std().unwrap_or_default(),
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// An error with its causes, without the URL, which may hold a secret.
fn chain(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() { "time-out".to_owned() } else { "request failed".to_owned() };
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(status: u16, retry: Option<&str>, body: &[u8]) -> Answer {
        let mut headers = HeaderMap::new();
        if let Some(value) = retry {
            headers.insert(RETRY_AFTER, value.parse().unwrap());
        }
        answer(StatusCode::from_u16(status).unwrap(), &headers, body.to_vec(), DateTime::UNIX_EPOCH)
    }

    fn failure(answer: Answer) -> Failure {
        match answer {
            Answer::Failed { failure, .. } => failure,
            other => panic!("not a failure: {other:?}"),
        }
    }

    #[test]
    fn json_is_the_result_and_no_body_is_null() {
        assert!(matches!(judge(200, None, b" {\"a\":1} "), Answer::Done(p) if p.get().trim() == "{\"a\":1}"));
        assert!(matches!(judge(204, None, b""), Answer::Done(p) if p.get() == "null"));
    }

    #[test]
    fn only_202_with_a_time_out_takes_an_attempt_away() {
        let judge = |status: u16, silence: &str| {
            let headers = HeaderMap::from_iter([("crossover-detached".parse().unwrap(), silence.parse().unwrap())]);
            answer(StatusCode::from_u16(status).unwrap(), &headers, b"{}".to_vec(), DateTime::UNIX_EPOCH)
        };
        let taken = |answer| matches!(answer, Answer::Detached { silence } if silence == Duration::from_millis(1_500));
        assert!(taken(judge(202, "1.5")));
        assert!(matches!(judge(200, "1.5"), Answer::Done(_)), "the header alone says nothing");
        let plain = answer(StatusCode::ACCEPTED, &HeaderMap::new(), Vec::new(), DateTime::UNIX_EPOCH);
        assert!(matches!(plain, Answer::Done(_)), "202 alone is a result like any 2xx");
        for silence in ["", "soon", "-1", "NaN", "0.5", "86401", "1e300"] {
            assert_eq!(failure(judge(202, silence)), Failure::Retryable { retry_after: None }, "{silence}");
        }
    }

    #[test]
    fn garbage_behind_a_200_is_tried_again() {
        assert_eq!(failure(judge(200, None, b"<html>")), Failure::Retryable { retry_after: None });
        assert_eq!(failure(judge(200, None, b"\"\xff\"")), Failure::Retryable { retry_after: None });
    }

    #[test]
    fn retry_after_is_read_in_seconds_and_as_a_date() {
        let wait = |seconds| Failure::Retryable { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(failure(judge(429, Some("7"), b"")), wait(7));
        assert_eq!(failure(judge(503, Some("Thu, 01 Jan 1970 00:00:09 GMT"), b"")), wait(9));
        assert_eq!(failure(judge(500, Some("soon"), b"")), Failure::Retryable { retry_after: None });
        assert_eq!(failure(judge(500, Some("99999999999"), b"")), wait(86_400));
    }

    #[test]
    fn any_other_status_is_final() {
        for status in [301, 400, 404, 422] {
            assert_eq!(failure(judge(status, Some("7"), b"")), Failure::Permanent, "{status}");
        }
    }
}
