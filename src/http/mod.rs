//! The HTTP face: interactions in and out, health, metrics. Errors are problem details (RFC 9457).

mod interactions;
mod problem;

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router as Routes};
use serde::Serialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

pub use problem::Problem;

use crate::flags::Flags;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::router::Router;

/// What the routes need.
pub struct Api {
    /// Absent in a process without the role `router`.
    pub router: Option<Arc<Router>>,
    /// The flags in force, where there is a router.
    pub flags: Option<Arc<Flags>>,
    /// Looks interactions up.
    pub ledger: Ledger,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// `http.max_payload_bytes`.
    pub max_payload: usize,
    /// Once cancelled, `/readyz` says no.
    pub stop: CancellationToken,
}

type Shared = State<Arc<Api>>;

/// Serves until the API's `stop`, then answers what has come in, for as long as `grace`.
pub async fn serve(listener: TcpListener, api: Arc<Api>, grace: Duration) -> std::io::Result<()> {
    let stop = api.stop.clone();
    let stopped = stop.clone();
    let server = axum::serve(listener, routes(api)).with_graceful_shutdown(async move { stopped.cancelled().await });
    let late = async move {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        served = server.into_future() => served?,
        () = late => warn!(?grace, "callers that did not finish are cut off"),
    }
    info!("the HTTP server has stopped");
    Ok(())
}

fn routes(api: Arc<Api>) -> Routes {
    Routes::new()
        .route("/v1/interactions", post(interactions::enqueue))
        .route("/v1/interactions/{id}", get(interactions::look_up))
        .route("/healthz", get(|| async { Json(serde_json::json!({ "status": "ok" })) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .fallback(|uri: Uri| async move {
            Problem::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
        })
        .with_state(api)
}

#[derive(Serialize)]
struct Readiness {
    ready: bool,
    postgres: String,
    flags: Option<String>,
    stopping: bool,
}

/// Ready: Postgres answers, and it is not being stopped. Flags are there, or the process would not have started.
async fn ready(State(api): Shared) -> Response {
    let postgres = match tokio::time::timeout(Duration::from_secs(2), api.ledger.ping()).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some("Postgres gave no answer within 2s".to_owned()),
    };
    let stopping = api.stop.is_cancelled();
    let ready = postgres.is_none() && !stopping;
    let flags = api.flags.as_ref().map(|flags| {
        let health = flags.health();
        health
            .error
            .map_or_else(|| format!("ok, revision {}", health.revision), |e| format!("last good ones in force: {e}"))
    });
    let body = Readiness { ready, postgres: postgres.unwrap_or_else(|| "ok".to_owned()), flags, stopping };
    (if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(body)).into_response()
}

async fn metrics(State(api): Shared) -> Response {
    match api.metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
