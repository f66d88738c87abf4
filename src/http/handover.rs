//! `POST /v1/interactions/{id}/handover`: moves what Postgres owns and never began to Temporal.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};

use super::guard::Who;
use super::interactions::{id_of, open};
use super::schema::HandoverAnswer;
use super::{Api, Problem, Shared};
use crate::router::handover::{Handing, stays};

/// Hand an interaction over to Temporal
///
/// Only what Postgres owns and never began moves; a flip moves nothing. There is no way back for it. Repeating it is safe.
/// `crossover handover` moves a whole account.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/handover", tag = "interactions",
    params(("id" = uuid::Uuid, Path, description = "As the enqueue answered it.")),
    responses(
        (status = 200, description = "Temporal owns it, since now or before; the relay delivers its copy.", body = HandoverAnswer),
        (status = 409, description = "It stays on Postgres: it was begun, has ended, is being cancelled or held, or its account is not armed.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is recorded of it.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn hand_over(State(api): Shared, Extension(who): Extension<Who>, Path(id): Path<String>) -> Response {
    answer(&api, &id, who.name()).await.map(Json).into_response()
}

async fn answer(api: &Api, id: &str, who: &str) -> Result<HandoverAnswer, Problem> {
    let (id, router) = (id_of(id)?, open(api)?);
    let answer = router.hand_over(id, who).await.map_err(|error| Problem::unavailable(error.to_string()))?;
    tracing::info!(%id, ?answer, who, "asked to hand an interaction over");
    match answer {
        Handing::Moved => Ok(HandoverAnswer { id, state: "moved" }),
        Handing::Temporal => Ok(HandoverAnswer { id, state: "temporal" }),
        Handing::Stays(why) if why == "busy" => Err(Problem::unavailable(format!("{id} {}", stays(&why)))),
        Handing::Stays(why) => Err(Problem::new(StatusCode::CONFLICT, format!("{id} {}", stays(&why)))),
        Handing::Unpinned => Err(Problem::new(StatusCode::NOT_FOUND, format!("no interaction {id} is pinned"))),
    }
}
