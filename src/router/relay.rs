//! The relay: delivers from the outbox what a crash or an outage left behind, in chain order.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::deliver::{Deliverer, Settled};
use crate::interaction::Side;
use crate::ledger::{Ledger, LedgerError, Undelivered};
use crate::metrics::Metrics;

/// How the relay relays.
#[derive(Debug, Clone, Copy)]
pub struct RelayOptions {
    /// How often it looks when nothing woke it.
    pub poll: Duration,
    /// At most so many copies (or series) at a time.
    pub batch: i64,
    /// What it has taken is another relay's after so long.
    pub lease: Duration,
}

/// Delivers from the outbox. Several may run: what two of them deliver, Temporal has once.
pub struct Relay {
    ledger: Ledger,
    deliverer: Deliverer,
    metrics: Arc<Metrics>,
    options: RelayOptions,
    wake: Arc<Notify>,
}

/// Deliveries under way at once.
const PARALLEL: usize = 16;

impl Relay {
    /// A relay; `wake` is rung by a router in this process.
    pub fn new(
        ledger: Ledger,
        deliverer: Deliverer,
        metrics: Arc<Metrics>,
        options: RelayOptions,
        wake: Arc<Notify>,
    ) -> Self {
        Self { ledger, deliverer, metrics, options, wake }
    }

    /// Relays until `stop`; what is under way is finished first.
    pub async fn run(self, stop: CancellationToken) {
        info!("the relay works");
        let mut wait = Duration::ZERO;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return info!("the relay has stopped"),
                () = self.wake.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
            wait = match self.pass(&stop).await {
                Ok(delivered) if delivered > 0 => Duration::ZERO,
                Ok(_) => self.options.poll,
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["take_undelivered"]).inc();
                    warn!(%error, "the outbox can't be read; trying again");
                    self.options.poll.max(Duration::from_millis(250))
                }
            };
        }
    }

    /// One look at the outbox; how many copies were settled.
    async fn pass(&self, stop: &CancellationToken) -> Result<usize, LedgerError> {
        let due = self.ledger.take_undelivered(self.options.batch, self.options.lease).await?;
        let settled = stream::iter(due).map(|head| self.chain(head, stop)).buffer_unordered(PARALLEL);
        Ok(settled.fold(0, |sum, n| async move { sum + n }).await)
    }

    /// Delivers a copy and, where it heads a series, what follows it, stopping at the first that must wait.
    async fn chain(&self, head: Undelivered, stop: &CancellationToken) -> usize {
        let series = head.series_id;
        let mut settled = 0;
        let mut delivered = Vec::new();
        let mut next = vec![head];
        while let Some(copy) = next.pop() {
            if stop.is_cancelled() {
                break;
            }
            let (id, epoch) = copy.envelope.copy();
            match self.one(copy).await {
                Settled::Later => break,
                Settled::Delivered => delivered.push((id, epoch)),
                Settled::Done | Settled::Conflict => {}
            }
            settled += 1;
            if let Some(series) = series.filter(|_| settled == 1) {
                next = self.rest(series, id).await;
            }
        }
        match self.ledger.delivered(&delivered).await {
            Ok(()) => settled,
            Err(error) => {
                self.metrics.ledger_errors.with_label_values(&["delivered"]).inc();
                warn!(%error, "deliveries can't be recorded; they are repeated");
                0
            }
        }
    }

    /// What follows `head` in its series and is undelivered, last first.
    async fn rest(&self, series: Uuid, head: Uuid) -> Vec<Undelivered> {
        match self.ledger.undelivered_of_series(series, self.options.batch).await {
            Ok(members) => members.into_iter().rev().filter(|member| member.envelope.id != head).collect(),
            Err(error) => {
                warn!(%error, %series, "the rest of a series can't be read; it is delivered later");
                Vec::new()
            }
        }
    }

    async fn one(&self, copy: Undelivered) -> Settled {
        // Temporal forgets what has ended; the pin does not. Without this look an old row would run it again. Only a
        // rehearsal of what was cancelled is still told, so that it does not wait for its time.
        let rehearsal = !copy.envelope.executes_on(Side::Temporal);
        if copy.ended && !(rehearsal && copy.envelope.cancelled) {
            self.metrics.relayed.with_label_values(&["ended"]).inc();
            self.deliverer.skipped(&copy.envelope, "its pin had ended before it could be delivered");
            return match self.ledger.nothing_left(&[copy.envelope.copy()]).await {
                Ok(()) => Settled::Done,
                Err(_) => Settled::Later,
            };
        }
        let what = if copy.envelope.cancelled { "cancelled" } else { "delivered" };
        self.metrics.relayed.with_label_values(&[what]).inc();
        self.deliverer.settle(&self.ledger, &copy.envelope, copy.tries).await
    }
}
