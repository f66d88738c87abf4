//! `POST /v1/interactions/{id}/release`: a person lets work run without what it waits for.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::guard::Who;
use super::interactions::{id_of, open};
use super::schema::Released;
use super::{Api, Problem, Shared};
use crate::ledger::Releasing;

/// Let an interaction run without what it waits for
///
/// It no longer waits for the interactions of its `after`. Its turn in its series it does wait for: whoever wants that earlier cancels
/// what is before it. Repeating it is safe.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/release", tag = "interactions",
    params(("id" = uuid::Uuid, Path, description = "As the enqueue answered it.")),
    responses(
        (status = 200, description = "It waits for no other work, unless `behind` names who is before it in its series.", body = Released),
        (status = 409, description = "It does not wait for other work: it has ended, is under way, or waits for its series or its turn alone.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is pinned of it.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn release(State(api): Shared, Extension(who): Extension<Who>, Path(id): Path<String>) -> Response {
    answer(&api, &id, who.name()).await.map(Json).into_response()
}

async fn answer(api: &Api, id: &str, who: &str) -> Result<Released, Problem> {
    let (id, router) = (id_of(id)?, open(api)?);
    let answer = router.release(id).await.map_err(|error| Problem::unavailable(error.to_string()))?;
    tracing::info!(%id, ?answer, who, "somebody asked to let work run without what it waits for");
    let conflict = |detail: String| Err(Problem::new(StatusCode::CONFLICT, format!("{id} {detail}")));
    match answer {
        Some(Releasing::Released { behind }) => Ok(Released { id, behind }),
        Some(Releasing::Behind(head)) => conflict(Releasing::behind(head)),
        Some(Releasing::Excluded(turn)) => conflict(Releasing::excluded(turn)),
        Some(Releasing::NotWaiting) => conflict(Releasing::NOT_WAITING.to_owned()),
        Some(Releasing::Ended) => conflict(Releasing::ENDED.to_owned()),
        None => Err(Problem::new(StatusCode::NOT_FOUND, format!("no interaction {id} is pinned"))),
    }
}
