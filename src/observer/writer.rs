//! Writes sightings: whatever has gathered within a tenth of a second, or a thousand, goes together. While Postgres is away
//! it waits with what it has, and the buffer fills up behind it.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout, timeout_at};
use tracing::{info, warn};

use super::storage::Beat;
use super::{BEAT, Log, Noted, Shared, Sighting};
use crate::interaction::Side;
use crate::ledger::{LedgerError, transient};

const BATCH: usize = 1_000;
const GATHER: Duration = Duration::from_millis(100);
/// The pause before the same is tried again.
const PAUSE: Duration = Duration::from_millis(250);
/// At the end Postgres has so long to take what is left.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Sightings arrive nearly in the order in which they were seen; none is later than this.
const SLACK: Duration = Duration::from_secs(1);

struct Writer {
    log: Log,
    name: String,
    shared: Arc<Shared>,
    receiver: mpsc::Receiver<Noted>,
    batch: Vec<Noted>,
    number: i64,
    /// What was seen before is written.
    clear: Instant,
    /// So many at the head of the batch are written alone.
    apart: usize,
    /// It has its row in the database.
    known: bool,
    /// The last call failed.
    away: bool,
}

/// Runs until it is stopped, and ends when everything is written.
pub(super) async fn run(log: Log, name: String, shared: Arc<Shared>, receiver: mpsc::Receiver<Noted>) {
    let (stop, batch) = (shared.stop.clone(), Vec::with_capacity(BATCH));
    let clear = Instant::now();
    let mut writer =
        Writer { log, name, shared, receiver, batch, number: 0, clear, apart: 0, known: false, away: false };
    stop.run_until_cancelled(writer.work()).await;
    writer.receiver.close();
    if timeout(LAST_WORDS, writer.drain()).await.is_err() {
        let left = (writer.batch.len() + writer.receiver.len()) as u64;
        writer.shared.dropped(left);
        warn!(sightings = left, "Postgres does not take the last sightings; the comparator says incomplete for them");
    }
    // Without this word it is taken for dead after a while, which says the same.
    let _ = timeout(LAST_WORDS, writer.beat(true)).await;
}

impl Writer {
    async fn work(&mut self) {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = beat.tick() => {
                    self.beat(false).await;
                    // A beat that hangs for longer than a tick must not be followed by the next: batches have their turn.
                    beat.reset();
                }
                received = self.receiver.recv_many(&mut self.batch, BATCH) => {
                    if received == 0 {
                        return;
                    }
                    self.gather().await;
                    self.write().await;
                }
            }
        }
    }

    async fn drain(&mut self) {
        self.write().await;
        while self.receiver.recv_many(&mut self.batch, BATCH).await > 0 {
            self.write().await;
        }
    }

    async fn gather(&mut self) {
        let until = tokio::time::Instant::now() + GATHER;
        while self.batch.len() < BATCH {
            let room = BATCH - self.batch.len();
            match timeout_at(until, self.receiver.recv_many(&mut self.batch, room)).await {
                Ok(n) if n > 0 => {}
                _ => return,
            }
        }
    }

    /// Writes the batch, however long that takes. It may be cut off anywhere and called again.
    async fn write(&mut self) {
        while let Some(first) = self.batch.first() {
            if !self.known {
                self.pause_unless_known().await;
                continue;
            }
            // One of them can't be stored? Alone, each shows whether it is the one.
            let n = if self.apart > 0 { 1 } else { self.batch.len() };
            let batch: Vec<&Sighting> = self.batch[..n].iter().map(|noted| &noted.sighting).collect();
            let began = Instant::now();
            match self.log.write(self.shared.id, self.number + 1, &batch).await {
                Ok(()) => {
                    self.number += 1;
                    self.shared.metrics.observer.written(&batch, began.elapsed());
                    self.take(n);
                }
                Err(LedgerError::Refused(error)) if !transient(&error) && n > 1 => {
                    warn!(%error, "one of these sightings can't be stored; looking for it");
                    self.apart = n;
                }
                Err(LedgerError::Refused(error)) if !transient(&error) => {
                    let Sighting { id, side, what, .. } = &first.sighting;
                    warn!(%id, %side, what = what.name(), %error, "a sighting can't be stored and is dropped");
                    self.shared.dropped(1);
                    self.take(1);
                }
                Err(error) => self.wait("write", &error).await,
            }
        }
    }

    /// The first `n` of the batch are done with.
    fn take(&mut self, n: usize) {
        self.clear = self.batch[n - 1].when;
        self.apart = self.apart.saturating_sub(n);
        self.batch.drain(..n);
    }

    /// Nothing is written for an observer that the database has not heard of.
    async fn pause_unless_known(&mut self) {
        self.beat(false).await;
        if !self.known {
            sleep(PAUSE).await;
        }
    }

    async fn wait(&mut self, call: &str, error: &LedgerError) {
        self.failed(call, error);
        sleep(PAUSE).await;
        self.beat(false).await;
    }

    fn failed(&mut self, call: &str, error: &LedgerError) {
        self.shared.metrics.observer.errors.with_label_values(&[call]).inc();
        self.shared.windows.disturbed(Side::Postgres, "sightings can't be written");
        if !self.away {
            warn!(%error, "sightings can't be written; they wait, and beyond observer.buffer they are dropped");
        }
        self.away = true;
    }

    /// Gives a sign of life, with what has come and gone since the last one.
    async fn beat(&mut self, last: bool) {
        if self.batch.is_empty() && self.receiver.is_empty() {
            self.clear = Instant::now();
        }
        self.shared.metrics.observer.waiting.set((self.batch.len() + self.receiver.len()) as i64);
        let (observer, dropped) = (self.shared.id, self.shared.dropped.load(Relaxed));
        let clear = self.clear.checked_sub(SLACK).unwrap_or(self.clear);
        let told = async {
            self.log.beat(Beat { observer, name: &self.name, clear, dropped, last }).await?;
            self.tell_windows().await
        };
        match told.await {
            Ok(()) => {
                self.known = true;
                if std::mem::take(&mut self.away) {
                    info!("sightings are written again");
                }
            }
            Err(error) => self.failed("beat", &error),
        }
    }

    async fn tell_windows(&self) -> Result<(), LedgerError> {
        let Shared { id, windows, .. } = &*self.shared;
        if let Some(window) = windows.loss() {
            windows.loss_written(window, self.log.lost(*id, window).await?);
        }
        for (trouble, window) in windows.troubles() {
            windows.trouble_written(trouble, window, self.log.disturbed(trouble, window).await?);
        }
        Ok(())
    }
}
