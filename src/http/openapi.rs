//! `/openapi.json`, made of the handlers themselves: a route is served if and only if it is described.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::OpenApi;

use super::{Problem, Shared};
use crate::interaction::hex;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Crossover",
        description = "Takes interactions in and runs each on exactly one side, whatever flips, crashes or outages happen \
                       meanwhile. Errors are problem details (RFC 9457) that name every fault at once.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    tags(
        (name = "interactions", description = "Work in, results out."),
        (name = "schedules", description = "Work that comes again and again."),
        (name = "work", description = "For runners that took an attempt away."),
        (name = "remote workers", description = "For programs that take work of a group whose name begins with `remote.`."),
        (name = "groups", description = "Limits, pauses, weights."),
        (name = "health", description = "For balancers and Prometheus.")
    ),
    components(schemas(Problem))
)]
pub(super) struct Description;

/// This description
///
/// Open to everybody.
#[utoipa::path(
    get, path = "/openapi.json", tag = "health",
    responses((status = 200, description = "OpenAPI 3.1.", body = Value))
)]
pub(super) async fn openapi(State(api): Shared) -> Response {
    let text = api.description.get().cloned().unwrap_or_default();
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

/// What every route that asks for a scope may answer beside its own.
const GUARDED: [(&str, &str); 5] = [
    ("401", "A token is needed, or this one is not known."),
    ("403", "The token lacks the scope; `scope` names it."),
    (
        "429",
        "More requests than http.rate allows, or more work of a group waits than its max_waiting allows; `Retry-After` says when to come back.",
    ),
    ("500", "A fault of crossover."),
    (
        "503",
        "Something is away, full or being stopped; `Retry-After` says when to come back. With a `key`, repeat that one.",
    ),
];
/// And every route that reads a body.
const WITH_BODY: [(&str, &str); 5] = [
    ("400", "The body is no JSON object, or broke off."),
    ("408", "The body did not arrive in time; nothing was done."),
    ("413", "The body or the payload is too long."),
    ("415", "The body is not JSON."),
    ("422", "Fields are missing, unknown or bad; `errors` names each."),
];

/// The description as it is served: with what all routes have in common, and its own SHA-256, by which a generated
/// client knows whether it has changed.
pub(super) fn document(api: utoipa::openapi::OpenApi) -> Result<String, serde_json::Error> {
    let mut document = serde_json::to_value(api)?;
    document["components"]["securitySchemes"]["token"] = json!({ "type": "http", "scheme": "bearer", "description": "As `crossover token new` makes them. The scopes stand beside each route." });
    let paths = document["paths"].as_object_mut().into_iter().flatten().map(|(_, path)| path);
    for operation in paths.filter_map(Value::as_object_mut).flatten().map(|(_, operation)| operation) {
        let (guarded, body) = (operation.get("security").is_some(), operation.get("requestBody").is_some());
        let more = GUARDED.iter().filter(|_| guarded).chain(WITH_BODY.iter().filter(|_| body));
        let more: Vec<_> =
            more.chain(WITH_BODY.last().filter(|_| guarded && operation.get("parameters").is_some())).collect();
        let Some(responses) = operation.get_mut("responses").and_then(Value::as_object_mut) else { continue };
        for (status, description) in more {
            responses.entry(*status).or_insert_with(|| problem(description));
        }
    }
    let hash = hex(&Sha256::digest(serde_json::to_vec(&document)?));
    document["info"]["x-sha256"] = hash.into();
    serde_json::to_string(&document)
}

fn problem(description: &str) -> Value {
    let schema = json!({ "$ref": "#/components/schemas/Problem" });
    json!({ "description": description, "content": { "application/problem+json": { "schema": schema } } })
}
