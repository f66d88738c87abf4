//! Callers who wait for a result. One look at Postgres serves all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, SemaphorePermit, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use crate::ledger::{Ended, Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::queue::tasks::{self, Tasks};

/// The pause between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// The pause after a look that failed.
const TROUBLE: Duration = Duration::from_secs(1);

type Ends = HashMap<Uuid, Vec<(u64, oneshot::Sender<Ended>)>>;

/// Everybody who waits here.
pub(super) struct Waiters {
    ledger: Ledger,
    metrics: Arc<Metrics>,
    room: Semaphore,
    waiting: Mutex<(u64, Ends)>,
    arrived: Notify,
    stop: CancellationToken,
}

impl Waiters {
    pub(super) fn new(ledger: Ledger, metrics: Arc<Metrics>, room: usize, stop: CancellationToken) -> Self {
        Self { ledger, metrics, room: Semaphore::new(room), waiting: Mutex::default(), arrived: Notify::new(), stop }
    }

    /// The end of `id`, if it comes within `time`, before this process is stopped, and if there is room to wait.
    /// A caller who goes away leaves its place.
    pub(super) async fn wait(&self, id: Uuid, time: Duration) -> Option<Ended> {
        let _place = self.place()?;
        let (_waiter, ended) = self.register(id);
        tokio::select! {
            ended = ended => ended.ok(),
            () = tokio::time::sleep(time) => None,
            () = self.stop.cancelled() => None,
        }
    }

    /// Room to wait, if there is any; remote workers who wait for work take of the same.
    pub(super) fn place(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.room.try_acquire().ok();
        if place.is_none() {
            self.metrics.http.refused.with_label_values(&["waiters"]).inc();
        }
        place
    }

    fn register(&self, id: Uuid) -> (Waiter<'_>, oneshot::Receiver<Ended>) {
        let (end, ended) = oneshot::channel();
        let mut waiting = self.lock();
        waiting.0 += 1;
        let number = waiting.0;
        waiting.1.entry(id).or_default().push((number, end));
        self.arrived.notify_one();
        (Waiter { all: self, id, number }, ended)
    }

    /// Looks for ends for as long as anybody waits. Runs until it is dropped.
    pub(super) async fn look(&self) {
        loop {
            let ids: Vec<Uuid> = self.lock().1.keys().copied().collect();
            if ids.is_empty() {
                self.arrived.notified().await;
                continue;
            }
            let pause = match self.ended(&ids).await {
                Ok(ended) => {
                    ended.into_iter().for_each(|end| self.tell(end));
                    LOOK
                }
                Err(error) => {
                    self.metrics.ledger_errors.with_label_values(&["ended"]).inc();
                    warn!(%error, waiting = ids.len(), "callers wait for results that can't be read; trying again");
                    TROUBLE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn ended(&self, ids: &[Uuid]) -> Result<Vec<Ended>, LedgerError> {
        let (tasks, pinned): (Vec<Uuid>, Vec<Uuid>) = ids.iter().partition(|id| tasks::named_at(**id).is_some());
        let mut ended = Tasks::new(self.ledger.pool().clone()).ended(&tasks).await?;
        if !pinned.is_empty() {
            ended.extend(self.ledger.ended(&pinned).await?);
        }
        Ok(ended)
    }

    fn tell(&self, ended: Ended) {
        for (_, waiter) in self.lock().1.remove(&ended.id).into_iter().flatten() {
            // Who has gone away is not told.
            let _ = waiter.send(ended.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, (u64, Ends)> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A caller's place, which it leaves whatever becomes of it.
struct Waiter<'a> {
    all: &'a Waiters,
    id: Uuid,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.all.lock();
        if let Some(waiters) = waiting.1.get_mut(&self.id) {
            waiters.retain(|(number, _)| *number != self.number);
            if waiters.is_empty() {
                waiting.1.remove(&self.id);
            }
        }
    }
}
