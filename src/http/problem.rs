//! Problem details for HTTP APIs (RFC 9457).

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::config::tokens::Scope;
use crate::router::EnqueueError;
use crate::router::request::{Fault, RequestError};

/// An error answer: problem details (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// Always `about:blank`: the status says which kind of problem it is.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The status in words.
    #[schema(example = "Unprocessable Entity")]
    title: &'static str,
    /// The status.
    #[schema(example = 422)]
    status: u16,
    /// What happened, to what, and what to do next.
    #[schema(example = "1 field(s) are not right")]
    detail: String,
    /// Each bad field, for a 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<Fault>,
    /// The key to repeat, where the outcome is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    /// The scope that the token lacks, for a 403.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    /// In how many seconds to come back; the header `Retry-After` says the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after: Option<u32>,
}

impl Problem {
    /// A problem that its status says enough of.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("error"),
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
            key: None,
            scope: None,
            retry_after: None,
        }
    }

    /// A body that can't be read at all.
    pub(super) fn no_object(error: &serde_json::Error) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("the body is no JSON object: {error}"))
    }

    /// The status that it answers with.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// Away for now: come back in a second.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    /// Every bad field at once.
    pub fn invalid(errors: Vec<Fault>) -> Self {
        let detail = format!("{} field(s) are not right", errors.len());
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
    }

    /// Nobody that is known.
    pub fn unauthorized(detail: &str) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, detail)
    }

    /// Known, but not allowed.
    pub fn forbidden(name: &str, scope: Scope) -> Self {
        let detail = format!("token `{name}` lacks the scope `{scope}`; ask for one that has it");
        Self { scope: Some(scope), ..Self::new(StatusCode::FORBIDDEN, detail) }
    }

    /// Too often.
    pub fn too_many(seconds: u32) -> Self {
        let detail = format!("more requests than http.rate allows; come back in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
    }
}

impl From<RequestError> for Problem {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Syntax(_) => Self::new(StatusCode::BAD_REQUEST, error.to_string()),
            RequestError::TooLarge { .. } => Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            RequestError::Invalid(faults) => Self::invalid(faults),
        }
    }
}

impl From<EnqueueError> for Problem {
    fn from(error: EnqueueError) -> Self {
        let detail = error.to_string();
        match error {
            EnqueueError::Invalid(faults) => Self::invalid(faults),
            EnqueueError::Conflict { key, .. } => Self { key: Some(key), ..Self::new(StatusCode::CONFLICT, detail) },
            EnqueueError::Full { key, .. } => {
                Self { key: Some(key), retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, detail) }
            }
            EnqueueError::Unavailable { key, .. } | EnqueueError::InDoubt { key, .. } => {
                Self { key: Some(key), ..Self::unavailable(detail) }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry, scope) = (self.status(), self.retry_after, self.scope);
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        let challenge = match (status, scope) {
            (StatusCode::UNAUTHORIZED, _) => Some("Bearer realm=\"crossover\"".to_owned()),
            (_, Some(scope)) => {
                Some(format!("Bearer realm=\"crossover\", error=\"insufficient_scope\", scope=\"{scope}\""))
            }
            _ => None,
        };
        if let Some(challenge) = challenge.and_then(|text| text.parse().ok()) {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        response
    }
}
