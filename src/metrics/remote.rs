//! Remote workers.

use prometheus::{IntCounterVec, IntGauge};

use super::{Registering, counters, gauge};

/// The metrics of remote workers.
pub struct RemoteMetrics {
    /// Attempts that were handed out, or put back.
    pub items: IntCounterVec,
    /// What remote workers said of single attempts, by report and answer.
    pub reports: IntCounterVec,
    /// Answered polls, by what they came to.
    pub polls: IntCounterVec,
    waiting: IntGauge,
}

/// A poll that waits, for as long as this lives.
pub struct Waiting<'a>(&'a IntGauge);

impl RemoteMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            items: counters(
                r,
                "crossover_remote_items_total",
                "Attempts for remote workers, by what: handed_out (a worker has them), put_back (it went away before it was answered, and they are ready again).",
                &["what"],
            )?,
            reports: counters(
                r,
                "crossover_remote_reports_total",
                "What remote workers said of single attempts, by report (heartbeat, complete, fail) and answer: held, cancel (held, and somebody wants it to end), taken, again (known before), lost (refused: another attempt has the work, or it has ended), unknown (no such attempt was taken from the group), refused (it can't be stored).",
                &["report", "answer"],
            )?,
            polls: counters(
                r,
                "crossover_remote_polls_total",
                "Answers to dequeue, by what: work, empty, busy (503: as many wait as http.max_waiters allows), failed (503: Postgres did not answer).",
                &["answer"],
            )?,
            waiting: gauge(
                r,
                "crossover_remote_polls_waiting",
                "Polls of remote workers that wait for work in this process.",
            )?,
        })
    }

    /// A poll begins to wait.
    pub fn waiting(&self) -> Waiting<'_> {
        self.waiting.inc();
        Waiting(&self.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}
