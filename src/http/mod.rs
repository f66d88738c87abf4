//! The HTTP face: interactions in and out, health, metrics. Errors are problem details (RFC 9457).
//!
//! A request passes `observe` (id, log, count, panics), `guard` (who, how often, whether there is room) and then its
//! handler, which reads it and asks [`crate::router`] or [`crate::ledger`]. Every route is described by `openapi`.

mod auth;
mod batch;
mod body;
mod connections;
mod groups;
mod guard;
mod handover;
mod health;
mod interactions;
mod observe;
mod openapi;
mod problem;
mod release;
mod remote;
mod resolve;
mod schedules;
mod schema;
mod search;
mod wait;
mod work;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router as Routes;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{info, warn};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use problem::Problem;
pub(crate) use schedules::mirrored;

use guard::Guard;
use wait::Waiters;

use crate::arming::Armed;
use crate::config;
use crate::config::tokens::Scope;
use crate::flags::Flags;
use crate::history::Search;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::observer::Observer;
use crate::queue::remote::Remote;
use crate::router::Router;

/// What the routes need.
pub struct Api {
    /// Absent in a process without the role `router`.
    router: Option<Arc<Router>>,
    /// The flags in force, where there is a router.
    flags: Option<Arc<Flags>>,
    /// What this process holds of the accounts' states, where it needs to.
    armed: Option<Armed>,
    ledger: Ledger,
    search: Search,
    metrics: Arc<Metrics>,
    /// Once cancelled, nothing new is taken in and nobody waits any longer.
    stop: CancellationToken,
    guard: Guard,
    waiters: Waiters,
    remote: Arc<Remote>,
    connections: connections::Bounds,
    max_payload: usize,
    max_batch: usize,
    max_batch_bytes: usize,
    max_wait: Duration,
    request_timeout: Duration,
    description: OnceLock<String>,
}

type Shared = State<Arc<Api>>;

impl Api {
    #[allow(clippy::too_many_arguments, reason = "they are what the routes need")]
    /// The API of a process; `router` and `flags` are absent where it has no such role. `stop` drains it.
    pub fn new(
        router: Option<Arc<Router>>,
        flags: Option<Arc<Flags>>,
        armed: Option<Armed>,
        ledger: Ledger,
        search: Search,
        metrics: Arc<Metrics>,
        observer: Observer,
        http: &config::Http,
        stop: CancellationToken,
    ) -> Self {
        Self {
            router,
            flags,
            armed,
            guard: Guard::new(http),
            waiters: Waiters::new(ledger.clone(), metrics.clone(), http.max_waiters, stop.clone()),
            remote: Remote::new(ledger.clone(), metrics.clone(), observer),
            connections: connections::Bounds { most: http.max_connections, head: http.header_timeout },
            ledger,
            search,
            metrics,
            stop,
            max_payload: http.max_payload_bytes,
            max_batch: http.max_batch,
            max_batch_bytes: http.max_batch_bytes,
            max_wait: http.max_wait,
            request_timeout: http.request_timeout,
            description: OnceLock::new(),
        }
    }
}

/// Serves until the API's `stop`, then answers what has come in, for as long as `grace`.
pub async fn serve(listener: TcpListener, api: Arc<Api>, grace: Duration) {
    let stop = api.stop.clone();
    let stopped = stop.clone();
    let server = connections::serve(listener, routes(api.clone()), api.connections, api.metrics.clone(), stopped);
    let late = async move {
        stop.cancelled().await;
        tokio::time::sleep(grace).await;
    };
    tokio::select! {
        () = server => {}
        () = api.waiters.look() => {}
        () = api.remote.look() => {}
        () = late => warn!(?grace, "callers that did not finish are cut off"),
    }
    info!("the HTTP server has stopped");
}

/// Every route, by the scope that it asks for.
fn routes(api: Arc<Api>) -> Routes {
    let with = |scope| from_fn_with_state((api.clone(), scope), guard::guard);
    let room = from_fn_with_state(api.clone(), guard::room);
    let enqueue = OpenApiRouter::new()
        .routes(routes!(interactions::enqueue))
        .routes(routes!(batch::batch))
        .routes(routes!(schedules::create))
        .routes(routes!(schedules::trigger));
    let read = OpenApiRouter::new()
        .routes(routes!(interactions::look_up))
        .routes(routes!(search::search))
        .routes(routes!(schedules::list))
        .routes(routes!(schedules::show))
        .routes(routes!(groups::list))
        .routes(routes!(groups::weights));
    let watch = OpenApiRouter::new().routes(routes!(health::metrics));
    let operate = OpenApiRouter::new()
        .routes(routes!(interactions::cancel))
        .routes(routes!(resolve::resolve))
        .routes(routes!(release::release))
        .routes(routes!(handover::hand_over))
        .routes(routes!(schedules::change))
        .routes(routes!(schedules::delete))
        .routes(routes!(schedules::pause))
        .routes(routes!(schedules::resume))
        .routes(routes!(groups::set, groups::unset))
        .routes(routes!(groups::pause))
        .routes(routes!(groups::resume))
        .routes(routes!(groups::weigh));
    let work = OpenApiRouter::new()
        .routes(routes!(work::heartbeat))
        .routes(routes!(work::complete))
        .routes(routes!(work::fail))
        .routes(routes!(remote::dequeue))
        .routes(routes!(remote::heartbeat))
        .routes(routes!(remote::complete))
        .routes(routes!(remote::fail));
    let (routes, description) = OpenApiRouter::with_openapi(openapi::Description::openapi())
        .merge(enqueue.route_layer(room.clone()).route_layer(with(Scope::Enqueue)))
        .merge(read.route_layer(room.clone()).route_layer(with(Scope::Read)))
        .merge(operate.route_layer(room.clone()).route_layer(with(Scope::Operate)))
        .merge(work.route_layer(room).route_layer(with(Scope::Work)))
        // However busy it is, it can be seen.
        .merge(watch.route_layer(with(Scope::Read)))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(openapi::openapi))
        .split_for_parts();
    match openapi::document(description) {
        Ok(document) => drop(api.description.set(document)),
        Err(error) => warn!(%error, "/openapi.json can't be written"),
    }
    routes
        .fallback(|uri: Uri| async move {
            let detail = format!("there is nothing at {}; /openapi.json lists what there is", uri.path());
            Problem::new(StatusCode::NOT_FOUND, detail)
        })
        .method_not_allowed_fallback(|method: Method, uri: Uri| async move {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
        })
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(api.clone(), observe::observe))
        .with_state(api)
}
