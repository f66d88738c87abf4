//! Reads bodies: of the right type, not too long, not too slowly.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use futures::StreamExt;

use super::Problem;

/// So much of a body that is too long is read before it is answered.
const READ_ON: usize = 16 << 20;

/// Reads a JSON body of up to `limit` bytes that arrives within `time`.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize, time: Duration) -> Result<Vec<u8>, Problem> {
    json(headers)?;
    let slow = || {
        let detail = format!("the body did not arrive within {time:?}; nothing was done");
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    };
    tokio::time::timeout(time, collect(body, limit)).await.unwrap_or_else(|_| Err(slow()))
}

/// A body is JSON, or does not say what it is.
fn json(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if essence == "application/json" || essence.starts_with("application/") && essence.ends_with("+json") {
        return Ok(());
    }
    let detail = format!(
        "the body must be JSON, with `Content-Type: application/json`; it says `{}`",
        crate::executor::clean(text)
    );
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

/// What is too long is read on for a while all the same: a caller who is cut off in the middle of its request does not
/// read the answer.
async fn collect(body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
    let mut chunks = body.into_data_stream();
    let (mut kept, mut length) = (Vec::new(), 0);
    while let Some(chunk) = chunks.next().await {
        let broken = |e| Problem::new(StatusCode::BAD_REQUEST, format!("the body broke off after {length} bytes: {e}"));
        let chunk = chunk.map_err(broken)?;
        length += chunk.len();
        if length <= limit {
            kept.extend_from_slice(&chunk);
        } else if length > limit + READ_ON {
            break;
        }
    }
    if length > limit {
        let detail = format!("the body has {length} bytes or more, the limit is {limit}");
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    Ok(kept)
}
