//! `POST /v1/interactions` and `GET /v1/interactions/{id}`.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use futures::StreamExt;
use serde::Serialize;
use uuid::Uuid;

use super::{Problem, Shared};
use crate::interaction::{Attempt, Payload, Side, Stage, hex};
use crate::ledger::Story;
use crate::router::{Accepted, How, request};

/// Room for everything of a request but its payload.
const ENVELOPE_BYTES: usize = 64 << 10;
/// So much of a body that is too long is read before it is answered.
const READ_ON: usize = 16 << 20;

#[derive(Serialize)]
struct Answer {
    id: Uuid,
    key: String,
    owner: Side,
    stage: Stage,
    epoch: i32,
}

pub(super) async fn enqueue(State(api): Shared, body: Body) -> Response {
    let answered = accept(&api, body).await;
    let (pinned, response) = match answered {
        Ok(accepted) => {
            let status = match accepted.how {
                How::Created => StatusCode::CREATED,
                How::Repeated => StatusCode::OK,
                How::Pending => StatusCode::ACCEPTED,
                How::Conflict => StatusCode::CONFLICT,
            };
            let Accepted { id, key, owner, stage, epoch, .. } = accepted;
            (Some((stage, owner)), (status, Json(Answer { id, key, owner, stage, epoch })).into_response())
        }
        Err(problem) => (None, problem.into_response()),
    };
    api.metrics.enqueued(pinned, response.status().as_u16());
    response
}

async fn accept(api: &super::Api, body: Body) -> Result<Accepted, Problem> {
    let Some(router) = &api.router else {
        return Err(Problem::unavailable("this process has no router; ask one with the role `router`"));
    };
    if api.stop.is_cancelled() {
        return Err(Problem::unavailable("this process is being stopped; ask another, or this one in a moment"));
    }
    let limit = api.max_payload + ENVELOPE_BYTES;
    let body = read(body, limit).await?;
    let interaction = request::parse(&body, api.max_payload, Utc::now())?;
    Ok(router.enqueue(&interaction).await?)
}

/// Reads a body up to `limit`. What is too long is read on for a while all the same: a caller who is cut off in the middle
/// of its request does not read the answer.
async fn read(body: Body, limit: usize) -> Result<Vec<u8>, Problem> {
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

#[derive(Serialize)]
struct Found {
    id: Uuid,
    account: String,
    kind: String,
    key: String,
    series: Option<String>,
    state: String,
    reason: Option<String>,
    result: Option<Payload>,
    pin: FoundPin,
    attempts: Vec<Attempt>,
}

#[derive(Serialize)]
struct FoundPin {
    owner: Side,
    stage: Stage,
    epoch: i32,
    flag_revision: String,
    series_no: Option<i64>,
    payload_hash: String,
    created_at: DateTime<Utc>,
    run_at: DateTime<Utc>,
    ended_at: Option<DateTime<Utc>>,
    /// Whether the Temporal copy still waits in the outbox.
    undelivered: bool,
    conflict: Option<String>,
}

pub(super) async fn look_up(State(api): Shared, Path(id): Path<String>) -> Response {
    let Ok(id) = id.parse::<Uuid>() else {
        let detail = format!("`{}` is no id; ids are UUIDs", crate::executor::clean(&id));
        return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).into_response();
    };
    match api.ledger.story(id).await {
        Ok(Some(story)) => Json(found(story)).into_response(),
        Ok(None) => unknown(&api, id).await,
        Err(error) => Problem::unavailable(error.to_string()).into_response(),
    }
}

/// Not pinned: it may have been started in `off`, where only Temporal knows it.
async fn unknown(api: &super::Api, id: Uuid) -> Response {
    let Some(router) = &api.router else {
        return Problem::new(StatusCode::NOT_FOUND, format!("no interaction {id} is pinned")).into_response();
    };
    match router.look_up_unpinned(id).await {
        Ok(Some(state)) => Json(serde_json::json!({ "id": id, "state": state, "pin": null })).into_response(),
        Ok(None) => Problem::new(
            StatusCode::NOT_FOUND,
            format!("no interaction {id} is pinned, and Temporal has no workflow of it; one of a series in stage off can't be looked up"),
        )
        .into_response(),
        Err(error) => Problem::unavailable(error.to_string()).into_response(),
    }
}

fn found(story: Story) -> Found {
    let Story { pin, account, key, series, state, undelivered, attempts } = story;
    let result = attempts.iter().rev().find(|a| !a.rehearsal && a.result.is_some()).and_then(|a| a.result.clone());
    Found {
        id: pin.id,
        account,
        kind: pin.kind,
        key,
        series,
        state,
        reason: pin.reason,
        result,
        pin: FoundPin {
            owner: pin.owner,
            stage: pin.stage,
            epoch: pin.epoch,
            flag_revision: pin.flag_revision,
            series_no: pin.series_no,
            payload_hash: hex(&pin.payload_hash),
            created_at: pin.created_at,
            run_at: pin.run_at,
            ended_at: pin.ended_at,
            undelivered,
            conflict: pin.conflict,
        },
        attempts,
    }
}
