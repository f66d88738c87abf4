//! `POST /v1/interactions/{id}/resolve`: a person says what came of a parked attempt.

use std::collections::HashMap;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde_json::value::RawValue;

use super::guard::Who;
use super::interactions::{id_of, open};
use super::schema::{Resolve, ResolveAnswer};
use super::{Api, Problem, Shared, body};
use crate::ledger::Resolving;
use crate::router::request::Fault;
use crate::router::resolve::Wish;

/// Room for a result as long as a runner may give, and a reason.
const BODY_BYTES: usize = (3 << 19) + (64 << 10);
const FIELDS: [&str; 3] = ["as", "result", "reason"];

/// Say what came of an attempt whose effect is unknown
///
/// Only what is in state `unknown_outcome` waits for it. `succeeded` and `failed` end the interaction; `retry` makes another
/// attempt under the same idempotency key. Repeating it is safe; the first answer stands.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/resolve", tag = "interactions",
    params(("id" = uuid::Uuid, Path, description = "As the enqueue answered it.")),
    request_body(content = Resolve),
    responses(
        (status = 200, description = "It has ended so, or runs again.", body = ResolveAnswer),
        (status = 202, description = "Temporal owns it and is being told. Look it up.", body = ResolveAnswer),
        (status = 409, description = "It is not in state unknown_outcome, has ended, somebody said otherwise before, or it is held and can't run again.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is recorded of it.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn resolve(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let body = body::read(&headers, body, BODY_BYTES, api.request_timeout).await?;
        answer(&api, &id, &body, who.name()).await
    };
    answered.await.map(|(status, answer)| (status, Json(answer))).into_response()
}

async fn answer(api: &Api, id: &str, body: &[u8], who: &str) -> Result<(StatusCode, ResolveAnswer), Problem> {
    let (id, router) = (id_of(id)?, open(api)?);
    let wish = wish(body)?;
    let answer = router.resolve(id, &wish, who).await.map_err(|error| Problem::unavailable(error.to_string()))?;
    tracing::info!(%id, said = %wish.answer, ?answer, who, "somebody said what came of a parked attempt");
    let conflict = |detail: &str| Err(Problem::new(StatusCode::CONFLICT, format!("{id} {detail}")));
    match answer {
        Resolving::Done => Ok((StatusCode::OK, ResolveAnswer { id, state: wish.answer.as_str() })),
        Resolving::Asked => Ok((StatusCode::ACCEPTED, ResolveAnswer { id, state: "asked" })),
        Resolving::Otherwise => conflict("was resolved otherwise before, and Temporal is being told that"),
        Resolving::Held => conflict(Resolving::HELD),
        Resolving::Ended => conflict("has ended; look it up"),
        Resolving::NotParked => conflict("is not in state unknown_outcome: there is nothing to resolve"),
        Resolving::Unpinned => Err(Problem::new(StatusCode::NOT_FOUND, format!("no interaction {id} is pinned"))),
    }
}

/// Reads the body; every fault is named.
fn wish(body: &[u8]) -> Result<Wish, Problem> {
    let fields: HashMap<String, Box<RawValue>> =
        serde_json::from_slice(body).map_err(|error| Problem::no_object(&error))?;
    let mut faults: Vec<Fault> = Vec::new();
    for name in fields.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
        let message = format!("is no field; the fields are {}", FIELDS.join(", "));
        faults.push(Fault { field: crate::executor::clean(name), message });
    }
    let mut text = |name: &str| {
        let raw = fields.get(name).filter(|raw| raw.get() != "null")?;
        serde_json::from_str::<String>(raw.get())
            .map_err(|_| {
                faults.push(Fault { field: name.to_owned(), message: "must be a text".to_owned() });
            })
            .ok()
    };
    let (answer, reason) = (text("as"), text("reason"));
    let badly_typed = faults.iter().any(|fault| fault.field == "as");
    let wish = Wish::parse(answer.as_deref(), fields.get("result").map(|raw| raw.get()), reason.as_deref());
    match wish {
        Ok(wish) if faults.is_empty() => Ok(wish),
        Ok(_) => Err(Problem::invalid(faults)),
        Err(more) => {
            faults.extend(more.into_iter().filter(|fault| !(badly_typed && fault.field == "as")));
            Err(Problem::invalid(faults))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_an_object_with_known_fields_of_the_right_types() {
        assert!(wish(b"[1]").is_err() && wish(b"{").is_err());
        assert!(wish(br#"{"as":"succeeded","result":{"a":1.10},"reason":"seen in the bank's list"}"#).is_ok());
        assert!(wish(br#"{"as":"retry","why":"x"}"#).is_err(), "an unknown field is a fault");
        assert!(wish(br#"{"as":7}"#).is_err());
    }
}
