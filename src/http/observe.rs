//! Around every request: its id, its place in the log, its count, and an answer even where a handler panics.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tracing::{Instrument, debug, error, info_span, warn};
use uuid::Uuid;

use super::{Api, Problem};
use crate::telemetry;

static REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LONGEST_ID: usize = 128;

/// Gives a request its id and its span, and counts its answer.
pub(super) async fn observe(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers());
    let method = known(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let span = info_span!("request", request = %id, method, route, token = tracing::field::Empty);
    telemetry::follow(&span, request.headers());
    let answered = async {
        let response = next.run(request).await;
        let (status, seconds) = (response.status(), began.elapsed().as_secs_f64());
        match status.is_server_error() {
            true => warn!(status = status.as_u16(), seconds, "a request failed"),
            false => debug!(status = status.as_u16(), seconds, "answered"),
        }
        response
    };
    let mut response = answered.instrument(span).await;
    let metrics = &api.metrics.http;
    metrics.requests.with_label_values(&[route.as_str(), method, response.status().as_str()]).inc();
    metrics.seconds.with_label_values(&[route.as_str()]).observe(began.elapsed().as_secs_f64());
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID.clone(), value);
    }
    response
}

/// The caller's id, where it is one that a log line can carry; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let fits = |id: &&str| (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    given.filter(fits).map_or_else(|| Uuid::new_v4().to_string(), str::to_owned)
}

/// A method as a label: callers make up others without end.
fn known(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

/// What is answered where a handler panicked. What it said goes to the log and to nobody else.
pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let said = crate::executor::said(&*panic);
    error!(said, "a handler panicked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "this is a fault of crossover; whether anything was done is unknown: repeat with the same key, and report the request's id",
    )
    .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_kept_where_a_log_can_carry_it() {
        let of = |value: &str| {
            request_id(&HeaderMap::from_iter([(REQUEST_ID.clone(), HeaderValue::from_str(value).unwrap())]))
        };
        assert_eq!(of("a-1:b/c"), "a-1:b/c");
        for bad in ["", "a b", &"x".repeat(129)] {
            assert_eq!(of(bad).len(), 36, "{bad}");
        }
        assert_ne!(request_id(&HeaderMap::new()), request_id(&HeaderMap::new()));
    }
}
