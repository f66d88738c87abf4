//! What was started without a pin because Postgres was away: kept on disk until it is pinned after all.
//!
//! An entry is on disk before its work is started, so that whatever dies next, no unpinned start is forgotten. Entries
//! and bytes are bounded; beyond that the work is started all the same and only the fact is kept, once an account, because
//! an account with a gap in its pins must not be armed before a whole window has passed. Where not even that can be
//! written down, nothing is started.
//!
//! `log` is the file and the one thread that writes it, `record` its format.

mod log;
mod record;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::{Notify, mpsc, oneshot};
use uuid::Uuid;

pub use record::Entry;

use crate::metrics::Metrics;
use log::{Ask, Job};

/// How much a spool may hold.
#[derive(Debug, Clone, Copy)]
pub struct SpoolOptions {
    /// Interactions.
    pub entries: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is older is not written any more: its key may be forgotten everywhere.
    pub keep: Duration,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is on disk under this number.
    Entry(u64),
    /// There was no room. That its account has a gap is on disk.
    Dropped,
}

/// Why nothing could be written down.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// The disk refused; nothing is there.
    #[error("{path}: can't be written ({reason}); make room or mend the disk, or set router.fail_open = false", path = .path.display())]
    Disk {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The disk gave no answer in time; it may be there.
    #[error("{path}: the disk gave no answer within {waited:?}", path = .path.display())]
    Late {
        /// The file.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// Another process has it.
    #[error("{path} belongs to another process; give each router a state_dir of its own", path = .path.display())]
    Taken {
        /// The file.
        path: PathBuf,
    },
}

/// The spool of a router. Cheap to share behind an `Arc`.
pub struct Spool {
    path: PathBuf,
    held: Arc<Mutex<Held>>,
    jobs: mpsc::Sender<Job>,
    options: SpoolOptions,
    metrics: Arc<Metrics>,
    /// Rung when there is something to drain.
    pub(crate) filled: Arc<Notify>,
}

/// An account whose unpinned work is not all in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The account; absent: any of them, for a damaged spool no longer tells.
    pub account: Option<String>,
    /// The newest drop that it stands for.
    pub no: u64,
}

/// Appends that wait for the disk at most; a caller beyond that waits for room.
const WAITING: usize = 1_024;
/// A disk that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);

impl Spool {
    /// Opens the spool in `state_dir`, or makes it. What an earlier process left in it is there again.
    pub fn open(state_dir: &Path, options: SpoolOptions, metrics: Arc<Metrics>) -> Result<Self, SpoolError> {
        let held = Arc::new(Mutex::new(Held::default()));
        let (jobs, receiver) = mpsc::channel(WAITING);
        let log = log::Log::open(&state_dir.join("spool"), options, held.clone(), metrics.clone())?;
        let path = log.path().to_owned();
        std::thread::Builder::new()
            .name("spool".to_owned())
            .spawn(move || log.run(receiver))
            .map_err(|error| SpoolError::Disk { path: path.clone(), reason: error.to_string() })?;
        let spool = Self { path, held, jobs, options, metrics, filled: Arc::default() };
        spool.show();
        Ok(spool)
    }

    /// Writes an entry down, before its work is started. Say [`Spool::answered`] when that has its answer.
    pub async fn keep(&self, entry: &Entry) -> Result<Kept, SpoolError> {
        let bytes = record::entry(entry).map_err(|error| self.failed(error.to_string()))?;
        let about = About::of(entry);
        let kept = self.ask(|answer| Ask::Keep { about, bytes, answer }).await;
        match &kept {
            Ok(Kept::Entry(_)) => {}
            Ok(Kept::Dropped) => {
                self.metrics.outage.spool_dropped.with_label_values(&["full"]).inc();
                self.filled.notify_one();
            }
            Err(error) => {
                self.metrics.outage.spool_errors.inc();
                tracing::error!(%error, "an unpinned start can't be written down, so it is refused");
            }
        }
        self.show();
        kept
    }

    /// Takes entries out: they are pinned, or were never started.
    pub async fn done(&self, nos: Vec<u64>) -> Result<(), SpoolError> {
        let done = self.ask(|answer| Ask::Done { nos, answer }).await;
        self.show();
        done
    }

    /// Takes an entry out that can never be pinned. That its account has a gap is on disk first.
    pub async fn give_up(&self, no: u64, why: &'static str) -> Result<(), SpoolError> {
        self.ask(|answer| Ask::GiveUp { no, answer }).await?;
        self.metrics.outage.spool_dropped.with_label_values(&[why]).inc();
        self.show();
        Ok(())
    }

    /// Takes note that Postgres knows of a gap, unless it has grown meanwhile.
    pub async fn told(&self, gap: Gap) -> Result<(), SpoolError> {
        self.ask(|answer| Ask::Told { gap, answer }).await
    }

    /// An entry as it was written.
    pub async fn read(&self, no: u64) -> Result<Option<Entry>, SpoolError> {
        self.ask(|answer| Ask::Read { no, answer }).await
    }

    /// Takes note that the start of an entry has its answer: from now on it may be drained.
    pub fn answered(&self, no: u64) {
        self.held().flying.remove(&no);
        self.filled.notify_one();
    }

    /// The oldest `limit` entries behind `after` whose start has its answer, with the series each belongs to.
    pub fn due(&self, after: u64, limit: usize) -> Vec<(u64, Option<Uuid>)> {
        let held = self.held();
        let landed = held.entries.range(after + 1..).filter(|(no, _)| !held.flying.contains(no));
        landed.take(limit).map(|(no, place)| (*no, place.about.series)).collect()
    }

    /// The gaps that Postgres does not know of.
    pub fn gaps(&self) -> Vec<Gap> {
        self.held().gaps.iter().map(|(account, no)| Gap { account: account.clone(), no: *no }).collect()
    }

    /// Whether anything of `account` waits to be written: an entry or a gap.
    pub fn holds(&self, account: &str) -> bool {
        let held = self.held();
        let gap = |account: Option<String>| held.gaps.contains_key(&account);
        held.accounts.contains_key(account) || gap(Some(account.to_owned())) || gap(None)
    }

    /// Whether an entry of this series waits.
    pub fn holds_series(&self, series: Uuid) -> bool {
        self.held().series.contains_key(&series)
    }

    /// Whether an entry of this interaction waits.
    pub fn holds_interaction(&self, id: Uuid) -> bool {
        self.held().ids.contains_key(&id)
    }

    /// Whether nothing waits, gaps included.
    pub fn is_empty(&self) -> bool {
        let held = self.held();
        held.entries.is_empty() && held.gaps.is_empty()
    }

    /// How much waits, gaps included.
    pub fn len(&self) -> u64 {
        let held = self.held();
        (held.entries.len() + held.gaps.len()) as u64
    }

    /// Since when the oldest entry waits.
    pub fn oldest(&self) -> Option<DateTime<Utc>> {
        self.held().entries.values().next().map(|place| place.about.accepted_at)
    }

    /// Entries that are older are given up.
    pub(crate) fn keeps(&self) -> Duration {
        self.options.keep
    }

    /// Brings its gauges up to date.
    pub fn show(&self) {
        let oldest = self.oldest().map_or(0.0, |at| (Utc::now() - at).as_seconds_f64().max(0.0));
        let held = self.held();
        let m = &self.metrics.outage;
        m.spool_entries.set(held.entries.len() as i64);
        m.spool_bytes.set(held.bytes as i64);
        m.spool_gaps.set(held.gaps.len() as i64);
        m.spool_oldest_seconds.set(oldest);
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, String>>) -> Ask) -> Result<T, SpoolError> {
        let (answer, told) = oneshot::channel();
        let asked = async {
            self.jobs.send(Job(ask(answer))).await.ok()?;
            told.await.ok()
        };
        match tokio::time::timeout(PATIENCE, asked).await {
            Ok(Some(answer)) => answer.map_err(|reason| self.failed(reason)),
            Ok(None) => Err(self.failed("its thread has ended".to_owned())),
            Err(_) => Err(SpoolError::Late { path: self.path.clone(), waited: PATIENCE }),
        }
    }

    fn failed(&self, reason: String) -> SpoolError {
        SpoolError::Disk { path: self.path.clone(), reason }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an entry without reading it.
#[derive(Debug, Clone)]
struct About {
    account: String,
    id: Uuid,
    series: Option<Uuid>,
    accepted_at: DateTime<Utc>,
}

impl About {
    fn of(entry: &Entry) -> Self {
        Self {
            account: entry.account.clone(),
            id: entry.id(),
            series: entry.series_id(),
            accepted_at: entry.accepted_at,
        }
    }
}

/// Where an entry lies in the file.
#[derive(Debug, Clone)]
struct Place {
    about: About,
    offset: u64,
    length: u64,
}

/// What the file holds. The thread that writes the file changes it; others look.
#[derive(Debug, Default)]
struct Held {
    entries: BTreeMap<u64, Place>,
    bytes: u64,
    accounts: HashMap<String, usize>,
    series: HashMap<Uuid, usize>,
    ids: HashMap<Uuid, usize>,
    /// Entries whose start has no answer yet.
    flying: HashSet<u64>,
    /// By account, the newest drop.
    gaps: HashMap<Option<String>, u64>,
    /// The newest number of all.
    last: u64,
}

impl Held {
    fn insert(&mut self, no: u64, place: Place) {
        *self.accounts.entry(place.about.account.clone()).or_default() += 1;
        *self.ids.entry(place.about.id).or_default() += 1;
        if let Some(series) = place.about.series {
            *self.series.entry(series).or_default() += 1;
        }
        self.bytes += place.length;
        self.last = self.last.max(no);
        self.entries.insert(no, place);
    }

    fn remove(&mut self, no: u64) -> Option<Place> {
        let place = self.entries.remove(&no)?;
        self.flying.remove(&no);
        self.bytes -= place.length;
        less(&mut self.accounts, &place.about.account);
        less(&mut self.ids, &place.about.id);
        if let Some(series) = &place.about.series {
            less(&mut self.series, series);
        }
        Some(place)
    }
}

/// Counts one less of a key; nothing of it takes no room.
fn less<K: std::hash::Hash + Eq>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
