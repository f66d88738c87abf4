//! Before a request is looked at: who asks, how often, and whether there is room.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, InsufficientCapacity, Quota, RateLimiter};
use tokio::sync::Semaphore;

use super::auth::Auth;
use super::{Api, Problem};
use crate::config;
use crate::config::tokens::{Scope, Token};
use crate::metrics::Metrics;

/// The bounds of all callers together and of each.
pub(super) struct Guard {
    pub(super) auth: Auth,
    rate: Option<DefaultKeyedRateLimiter<Caller>>,
    burst: NonZeroU32,
    room: Semaphore,
}

/// Whose requests are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    Token(String),
    Address(Option<IpAddr>),
}

/// The token that a request came with; absent where none is asked for.
#[derive(Debug, Clone)]
pub(super) struct Who(pub(super) Option<Token>);

impl Who {
    /// As records name who asked.
    pub(super) fn name(&self) -> &str {
        self.0.as_ref().map_or("the API", |token| token.name.as_str())
    }
}

/// Callers that are remembered before those that have long been silent are forgotten.
const CALLERS: usize = 10_000;

impl Guard {
    pub(super) fn new(http: &config::Http) -> Self {
        let burst = NonZeroU32::new(http.burst).unwrap_or(NonZeroU32::MIN);
        let quota = |rate| Quota::per_second(rate).allow_burst(burst);
        Self {
            auth: Auth::new(http.tokens.clone()),
            rate: NonZeroU32::new(http.rate).map(|rate| RateLimiter::keyed(quota(rate))),
            burst,
            room: Semaphore::new(http.max_requests),
        }
    }

    /// Whether this caller may come now, with what counts as `n` requests.
    fn on_time(&self, caller: &Caller, n: NonZeroU32) -> Result<(), Problem> {
        let Some(rate) = &self.rate else { return Ok(()) };
        if rate.len() > CALLERS {
            rate.retain_recent();
        }
        match rate.check_key_n(caller, n) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(early)) => {
                let wait = early.wait_time_from(DefaultClock::default().now());
                Err(Problem::too_many(u32::try_from(wait.as_secs() + 1).unwrap_or(u32::MAX)))
            }
            Err(InsufficientCapacity(most)) => Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("counts as more requests than http.burst ({most}) allows at once; send smaller batches"),
            )),
        }
    }

    /// Whether the caller of a batch may send `items` at once; its request was counted as one of them.
    pub(super) fn charge(&self, caller: &Caller, items: usize, metrics: &Metrics) -> Result<(), Problem> {
        let all = NonZeroU32::new(u32::try_from(items).unwrap_or(u32::MAX)).unwrap_or(NonZeroU32::MIN);
        let Some(more) = NonZeroU32::new(all.get() - 1) else { return Ok(()) };
        // What is larger than a burst never finds the room, however long its caller waits.
        let n = if all > self.burst { all } else { more };
        self.on_time(caller, n).inspect_err(|_| metrics.http.refused.with_label_values(&["rate"]).inc())
    }
}

/// Lets a request through that has `scope`.
pub(super) async fn guard(State((api, scope)): State<(Arc<Api>, Scope)>, mut request: Request, next: Next) -> Response {
    let guard = &api.guard;
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    let who = guard.auth.who(request.headers());
    // Guesses are counted as well, by address.
    let caller = match &who {
        Ok(Some(token)) => Caller::Token(token.name.clone()),
        Ok(None) | Err(_) => Caller::Address(address),
    };
    if let Err(problem) = guard.on_time(&caller, NonZeroU32::MIN) {
        return refused(&api.metrics, "rate", problem);
    }
    let token = match who {
        Ok(token) => token.cloned(),
        Err(problem) => return refused(&api.metrics, "token", problem),
    };
    if let Some(token) = &token {
        tracing::Span::current().record("token", &token.name);
    }
    if let Err(problem) = Auth::may(token.as_ref(), scope) {
        return refused(&api.metrics, "scope", problem);
    }
    request.extensions_mut().insert(Who(token));
    request.extensions_mut().insert(caller);
    next.run(request).await
}

/// Lets a request through while there is room for it.
pub(super) async fn room(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let Ok(_place) = api.guard.room.try_acquire() else {
        let detail = "as many requests as http.max_requests allows are being worked on; come back in a second";
        return refused(&api.metrics, "busy", Problem::unavailable(detail));
    };
    next.run(request).await
}

fn refused(metrics: &Metrics, reason: &str, problem: Problem) -> Response {
    metrics.http.refused.with_label_values(&[reason]).inc();
    problem.into_response()
}
