//! Whether this process lives and may be asked, and what it counts.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::{Problem, Shared};
use crate::arming::{Armed, Readiness as Knows};

/// It lives.
#[derive(Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// Whether it may be asked, and what stands against it.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// Whether it may be asked.
    ready: bool,
    /// `ok`, or why Postgres can't be worked with.
    postgres: String,
    /// Where the flags stand, in a process with a router.
    flags: Option<String>,
    /// Whether it knows the accounts' states, in a process that goes by them.
    accounts: Option<String>,
    /// It drains.
    stopping: bool,
}

const READ_ONLY: &str = "Postgres answers and takes no writes: it is a standby, or default_transaction_read_only is on; see where \
                         postgres.url leads to, and whether its disk is full";

/// Whether the process lives
///
/// Open to everybody.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, description = "It lives.", body = Alive)))]
pub(super) async fn alive() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Whether the process may be asked
///
/// It knows its flags and the accounts' states, and it is not being stopped. Postgres takes writes, or `router.fail_open` lets it
/// go on without for accounts that are not armed. Open to everybody.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses(
        (status = 200, description = "It may.", body = Readiness),
        (status = 503, description = "It may not, and why.", body = Readiness),
    )
)]
pub(super) async fn ready(State(api): Shared) -> Response {
    // One that only answers is of no use to anybody here: every pin, every claim and every end is written.
    let postgres = match tokio::time::timeout(Duration::from_secs(2), api.ledger.takes_writes()).await {
        Ok(Ok(true)) => None,
        Ok(Ok(false)) => Some(READ_ONLY.to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("Postgres gave no answer within 2s".to_owned()),
    };
    let stopping = api.stop.is_cancelled();
    let knows = api.armed.as_ref().map(Armed::readiness);
    let goes_on = api.router.is_some() && api.armed.as_ref().is_some_and(Armed::may_fail_open);
    let unknowing = matches!(knows, Some(Knows::Not(_)));
    let ready = (postgres.is_none() || goes_on) && !unknowing && !stopping;
    let accounts = knows.map(|knows| match knows {
        Knows::Ready => "ok".to_owned(),
        Knows::ByDisk => "by the copy on disk until Postgres answers".to_owned(),
        Knows::Not(why) => why,
    });
    let flags = api.flags.as_ref().map(|flags| {
        let health = flags.health();
        health
            .error
            .map_or_else(|| format!("ok, revision {}", health.revision), |e| format!("last good ones in force: {e}"))
    });
    let body = Readiness { ready, postgres: postgres.unwrap_or_else(|| "ok".to_owned()), flags, accounts, stopping };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

/// Metrics, as Prometheus scrapes them
#[utoipa::path(
    get, path = "/metrics", tag = "health",
    responses((status = 200, description = "The text format of Prometheus.", body = String, content_type = "text/plain")),
    security(("token" = ["read"]))
)]
pub(super) async fn metrics(State(api): Shared) -> Response {
    match api.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
