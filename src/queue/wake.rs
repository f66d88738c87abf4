//! Wake-ups between processes. A process rings its own worker first, which costs nothing. Only where it has none, or that one has
//! no room left, it tells the others, by a NOTIFY outside of anybody's transaction and not more often than each
//! [`WINDOW`]: a NOTIFY in every commit serialises the commits of the whole server. Behind both lies the poll, which finds
//! whatever nobody was told of.

use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgListener, PgPoolOptions};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::storage::Queue;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

/// Between two rings of a process. The first one goes at once.
const WINDOW: Duration = Duration::from_millis(5);
/// After so long without a ring the connection is tried.
const SILENCE: Duration = Duration::from_secs(30);
/// An answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// The pause after a failed call.
const TROUBLE: Duration = Duration::from_secs(1);
const CHANNEL: &str = "crossover_ready";

/// What a process tells the others, and hears of them.
pub struct Wake {
    queue: Queue,
    /// By this it knows its own voice.
    id: String,
    metrics: Arc<Metrics>,
}

impl Wake {
    /// Of the processes on the database of `queue`.
    pub fn new(queue: Queue, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { queue, id: Uuid::new_v4().to_string(), metrics })
    }

    /// Tells the others when `bell` is rung, until `stop`.
    pub async fn tell(self: Arc<Self>, bell: Arc<Notify>, stop: CancellationToken) {
        while stop.run_until_cancelled(bell.notified()).await.is_some() {
            let pause = match self.queue.ring(&self.id).await {
                Ok(()) => {
                    self.metrics.wake_ups.with_label_values(&["told"]).inc();
                    WINDOW
                }
                Err(error) => {
                    self.failed("ring", &error);
                    TROUBLE
                }
            };
            sleep(pause).await;
        }
    }

    /// Rings `worker` when another process tells of work, until `stop`. Takes a connection of its own, because a pooled one would
    /// be held for ever.
    pub async fn hear(self: Arc<Self>, worker: Arc<Notify>, stop: CancellationToken) {
        let options = self.queue.pool().connect_options().as_ref().clone();
        let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(PATIENCE).connect_lazy_with(options);
        while let Some(Err(error)) = stop.run_until_cancelled(self.listen(&pool, &worker)).await {
            self.failed("listen", &LedgerError::from(error));
            if stop.run_until_cancelled(sleep(TROUBLE)).await.is_none() {
                return;
            }
        }
    }

    /// Listens for as long as the connection holds.
    async fn listen(&self, pool: &PgPool, worker: &Notify) -> Result<std::convert::Infallible, sqlx::Error> {
        let mut listener = PgListener::connect_with(pool).await?;
        timeout(PATIENCE, listener.listen(CHANNEL)).await.map_err(|_| sqlx::Error::PoolTimedOut)??;
        info!("this process hears when others have work for its worker");
        // What was told before nobody heard.
        worker.notify_one();
        loop {
            match timeout(SILENCE, listener.try_recv()).await {
                Ok(heard) => {
                    let rung = heard?.ok_or_else(|| std::io::Error::other("the connection was closed"))?;
                    if rung.payload() != self.id {
                        self.metrics.wake_ups.with_label_values(&["heard"]).inc();
                        worker.notify_one();
                    }
                }
                // A connection that nothing passes through any more says nothing of it.
                Err(_) => {
                    let asked = timeout(PATIENCE, sqlx::query("select 1").execute(&mut listener)).await;
                    asked.map_err(|_| sqlx::Error::PoolTimedOut)??;
                }
            }
        }
    }

    fn failed(&self, call: &'static str, error: &LedgerError) {
        self.metrics.queue_errors.with_label_values(&[call]).inc();
        warn!(call, %error, "processes can't wake each other; until they can, work waits for worker.poll");
    }
}
