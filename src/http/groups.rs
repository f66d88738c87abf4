//! `/v1/groups` and `/v1/weights`: limits and pauses of groups, and how much accounts count.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::guard::Who;
use super::{Api, Problem, Shared, body};
use crate::ledger::LedgerError;
use crate::queue::groups::{Group, Groups, Weight};

const BODY_BYTES: usize = 64 << 10;

/// Limits to set. Those that are left out stay, null takes one away.
#[derive(ToSchema)]
#[schema(example = json!({ "max_running": 10, "max_per_account": 2 }))]
#[expect(dead_code, reason = "it describes what the database checks")]
pub(super) struct Limits {
    /// At most so many attempts at once, in all workers together.
    max_running: Option<i32>,
    /// At most so many of one account.
    max_per_account: Option<i32>,
    /// So many may start in a second.
    rate: Option<f64>,
    /// So many at once after a quiet time; without it the starts of a second.
    burst: Option<i32>,
    /// The same for each account.
    account_rate: Option<f64>,
    /// The same for each account.
    account_burst: Option<i32>,
    /// Whether a failure that says when to come back holds the rest of its account back until then.
    heed_retry_after: Option<bool>,
    /// More is refused with 429 while about so much waits.
    max_waiting: Option<i32>,
}

/// Why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "reason": "their API is down" }))]
pub(super) struct Pause {
    /// Shown to everybody who asks what its work waits for.
    reason: String,
}

/// How much an account counts.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({ "weight": 3.0 }))]
pub(super) struct Weighing {
    /// 0.001 to 1000; null: 1, as any other.
    weight: Option<f64>,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(super) struct AllGroups {
    groups: Vec<Group>,
}

/// All of them.
#[derive(Serialize, ToSchema)]
pub(super) struct AllWeights {
    weights: Vec<Weight>,
}

/// Show the groups that have limits
#[utoipa::path(
    get, path = "/v1/groups", tag = "groups",
    responses((status = 200, description = "Their limits, the places taken, what waits.", body = AllGroups)),
    security(("token" = ["read"]))
)]
pub(super) async fn list(State(api): Shared) -> Response {
    groups(&api).list(None).await.map(|groups| Json(AllGroups { groups })).map_err(problem).into_response()
}

/// Set limits of a group
///
/// In force in every worker when it is answered. What runs goes on.
#[utoipa::path(
    patch, path = "/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path, description = "Its name.")),
    request_body(content = Limits),
    responses((status = 200, description = "As it is now.", body = Group)),
    security(("token" = ["operate"]))
)]
pub(super) async fn set(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let who = who.name();
    let set = async {
        let limits: Map<String, Value> = read(&api, &headers, body).await?;
        groups(&api).set(&group, &limits, who).await.map_err(problem)?;
        tracing::info!(group, ?limits, who, "limits of a group were set");
        now(&api, &group).await
    };
    set.await.map(Json).into_response()
}

/// Let nothing of a group start until it is resumed
///
/// What runs goes on.
#[utoipa::path(
    post, path = "/v1/groups/{group}/pause", tag = "groups",
    params(("group" = String, Path, description = "Its name.")),
    request_body(content = Pause),
    responses((status = 200, description = "As it is now.", body = Group)),
    security(("token" = ["operate"]))
)]
pub(super) async fn pause(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let who = who.name();
    let paused = async {
        let Pause { reason } = read(&api, &headers, body).await?;
        groups(&api).pause(&group, &reason, who).await.map_err(problem)?;
        tracing::info!(group, reason, who, "a group was paused");
        now(&api, &group).await
    };
    paused.await.map(Json).into_response()
}

/// Let a paused group go on
#[utoipa::path(
    post, path = "/v1/groups/{group}/resume", tag = "groups",
    params(("group" = String, Path, description = "Its name.")),
    responses(
        (status = 200, description = "As it is now.", body = Group),
        (status = 404, description = "It has no limits and no pause.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn resume(State(api): Shared, Extension(who): Extension<Who>, Path(group): Path<String>) -> Response {
    let who = who.name();
    let resumed = async {
        groups(&api).resume(&group, who).await.map_err(problem)?;
        tracing::info!(group, who, "a group was resumed");
        now(&api, &group).await
    };
    resumed.await.map(Json).into_response()
}

/// Take all limits and the pause of a group away
#[utoipa::path(
    delete, path = "/v1/groups/{group}", tag = "groups",
    params(("group" = String, Path, description = "Its name.")),
    responses(
        (status = 204, description = "It has none any more."),
        (status = 404, description = "It had none.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn unset(State(api): Shared, Extension(who): Extension<Who>, Path(group): Path<String>) -> Response {
    let who = who.name();
    match groups(&api).unset(&group).await {
        Ok(true) => {
            tracing::info!(group, who, "the limits of a group were taken away");
            StatusCode::NO_CONTENT.into_response()
        }
        Ok(false) => without_limits(&group).into_response(),
        Err(error) => problem(error).into_response(),
    }
}

/// Show the accounts that have a weight
#[utoipa::path(
    get, path = "/v1/weights", tag = "groups",
    responses((status = 200, description = "The latest first, at most 100,000.", body = AllWeights)),
    security(("token" = ["read"]))
)]
pub(super) async fn weights(State(api): Shared) -> Response {
    groups(&api).weights().await.map(|weights| Json(AllWeights { weights })).map_err(problem).into_response()
}

/// Say how much an account counts among those that wait
///
/// Routers know it within a second, for what they take in from then on.
#[utoipa::path(
    put, path = "/v1/weights/{account}", tag = "groups",
    params(("account" = String, Path, description = "The account.")),
    request_body(content = Weighing),
    responses((status = 200, description = "It counts so much.", body = Weighing)),
    security(("token" = ["operate"]))
)]
pub(super) async fn weigh(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(account): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let who = who.name();
    let weighed = async {
        let weighing: Weighing = read(&api, &headers, body).await?;
        groups(&api).weigh(&account, weighing.weight, who).await.map_err(problem)?;
        Ok::<_, Problem>(Json(weighing))
    };
    weighed.await.into_response()
}

fn groups(api: &Api) -> Groups {
    Groups::new(api.ledger.pool().clone())
}

async fn read<T: serde::de::DeserializeOwned>(api: &Api, headers: &HeaderMap, body: Body) -> Result<T, Problem> {
    let body = body::read(headers, body, BODY_BYTES, api.request_timeout).await?;
    let document: Map<String, Value> = serde_json::from_slice(&body).map_err(|error| Problem::no_object(&error))?;
    serde_json::from_value(Value::Object(document))
        .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, crate::executor::clean(&error.to_string())))
}

async fn now(api: &Api, group: &str) -> Result<Group, Problem> {
    groups(api).list(Some(group)).await.map_err(problem)?.pop().ok_or_else(|| without_limits(group))
}

fn without_limits(group: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("group `{group}` has no limits and no pause"))
}

/// What the database finds wrong it says in words for whoever asked.
fn problem(error: LedgerError) -> Problem {
    let LedgerError::Refused(refused) = &error else { return Problem::unavailable(error.to_string()) };
    match refused.as_database_error() {
        Some(said) if said.code().as_deref() == Some("22023") => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, said.message())
        }
        _ => Problem::unavailable(error.to_string()),
    }
}
