//! The HTTP face.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec};

use super::{Registering, SECONDS, counters, register};

/// What callers asked for, and what they were answered.
pub struct Http {
    /// Answered requests, by route, method and status.
    pub requests: IntCounterVec,
    /// How long they took, by route.
    pub seconds: HistogramVec,
    /// Requests turned away before they were looked at, by reason.
    pub refused: IntCounterVec,
    /// Connections that are over, by how they ended.
    pub connections: IntCounterVec,
    /// Wishes to cancel, by what came of them.
    pub cancels: IntCounterVec,
}

impl Http {
    pub(super) fn new(r: &mut Registering) -> Result<Self, prometheus::Error> {
        register(r, crate::telemetry::spans())?;
        Ok(Self {
            requests: counters(r, "crossover_http_requests_total", "Answered requests by route (as in /openapi.json; none: there is no such route), method and status. 5xx: see the log, whose lines carry the request's id.", &["route", "method", "status"])?,
            seconds: register(r, HistogramVec::new(HistogramOpts::new("crossover_http_seconds", "Seconds from a request's head to its answer, by route. Answers that ?wait= held are in it: look at the route's lower quantiles.").buckets(SECONDS.to_vec()), &["route"])?)?,
            refused: counters(r, "crossover_http_refused_total", "Requests turned away unread, by reason: token (none or unknown), scope (the token lacks it), rate (http.rate), busy (http.max_requests). waiters counts answers that ?wait= did not hold for want of room (http.max_waiters).", &["reason"])?,
            connections: counters(r, "crossover_http_connections_total", "Connections that are over, by how: ended, silent (idle, or its request's head did not come within http.header_timeout), broken (the caller went away in the middle), failed (it could not be taken; see the log, and the limit of open files).", &["how"])?,
            cancels: counters(r, "crossover_cancels_total", "Wishes to cancel by answer: cancelled, asked (a worker or Temporal has it and is told), ended (too late).", &["answer"])?,
        })
    }
}
