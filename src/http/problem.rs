//! Problem details for HTTP APIs (RFC 9457).

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::router::EnqueueError;
use crate::router::request::{Fault, RequestError};

/// An error answer.
#[derive(Debug, Serialize)]
pub struct Problem {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    /// Each bad field, for a 422.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Fault>,
    /// The key to repeat, where the outcome is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip)]
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
            retry_after: None,
        }
    }

    /// The status that it answers with.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Away for now: come back in a second.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, detail) }
    }

    fn invalid(errors: Vec<Fault>) -> Self {
        let detail = format!("{} field(s) are not right", errors.len());
        Self { errors, ..Self::new(StatusCode::UNPROCESSABLE_ENTITY, detail) }
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
            EnqueueError::Unavailable { key, .. } | EnqueueError::InDoubt { key, .. } => {
                Self { key: Some(key), ..Self::unavailable(detail) }
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = retry {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        response
    }
}
