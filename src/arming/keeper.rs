//! Keeps this process's copy of the accounts' states current, on disk, and acknowledges what barriers wait for. In this
//! order: memory, so that nothing begins that must not; disk, so that a restart knows it; and then Postgres hears of it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::{info, warn};
use uuid::Uuid;

use super::armed::Armed;
use super::disk::{Left, Registration, RegistrationError};
use super::storage::ArmingStore;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

/// Behind the reading of changes, all is read so often.
const ALL_EVERY: Duration = Duration::from_secs(60);
/// Acknowledgements in one call.
const ACKS: usize = 5_000;
/// Between two writes to the disk there is so many times the length of the last one.
const REST: u32 = 3;
/// The disk is told that Postgres has heard of this process so often, or ten times while that holds.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// So long after a change the next one is near.
const HURRY: Duration = Duration::from_secs(5);

/// What a process says of itself with each beat.
#[derive(Debug, Clone)]
pub struct Report {
    /// Whether it may start work without a pin while Postgres is away, or has such work to write.
    pub fails_open: bool,
    /// Its starts without a pin whose outcome is in doubt.
    pub in_doubt: usize,
    /// Its starts that are not written yet.
    pub spooled: u64,
    /// What hinders it.
    pub trouble: Option<String>,
    /// For so long after this it may start again without Postgres.
    pub disk_valid: Duration,
}

/// What a keeper is told of its process.
#[derive(Debug, Clone, Copy)]
pub struct KeeperOptions {
    /// A start that an earlier process had sent when it was cut off has arrived or not after so long.
    pub echo: Duration,
    /// The copy on disk holds for so long after the last beat.
    pub disk_valid: Duration,
}

/// Keeps one process's copy.
pub struct Keeper {
    armed: Armed,
    registration: Arc<Registration>,
    store: ArmingStore,
    metrics: Arc<Metrics>,
    /// From where changes are read; absent: all are.
    since: Option<i64>,
    read_all: Instant,
    changed: Instant,
    /// Whether the disk holds what the memory does.
    kept: bool,
    /// Not before that, so that many accounts on their way don't keep the disk busy.
    keep_after: Instant,
    /// When the disk was last told that Postgres has heard of this process.
    noted: Option<Instant>,
    /// When Postgres last did, this process or the one before it.
    heard: (Instant, DateTime<Utc>),
    trouble: Option<String>,
    /// A process before this one was cut off: what it had sent may still arrive until then.
    echo_until: Option<Instant>,
    options: KeeperOptions,
}

impl Keeper {
    /// Takes up the registration in `dir`. `of` names the database and the flags.
    pub fn open(
        dir: &std::path::Path,
        of: &str,
        armed: Armed,
        store: ArmingStore,
        metrics: Arc<Metrics>,
        options: KeeperOptions,
    ) -> Result<Self, RegistrationError> {
        let (registration, left) = Registration::open(dir, of, options.disk_valid)?;
        let unknowing = |why| {
            armed.not_ready_for(format!(
                "Postgres has to be read once and does not answer, and there is no copy on disk to go by: {why}"
            ));
        };
        let echo_until = match left {
            Left::Nothing(why) => {
                unknowing(why);
                None
            }
            Left::TooOld(why) => {
                unknowing(why);
                Some(Instant::now() + options.echo)
            }
            Left::Standing(accounts) => {
                info!(accounts = accounts.len(), "the accounts' states on disk hold until Postgres answers");
                armed.go_by_disk(accounts);
                Some(Instant::now() + options.echo)
            }
        };
        let now = Instant::now();
        let heard = (now, registration.last_beat().unwrap_or_else(Utc::now));
        Ok(Self {
            armed,
            registration: Arc::new(registration),
            store,
            metrics,
            since: None,
            read_all: now,
            changed: now,
            kept: false,
            keep_after: now,
            noted: None,
            heard,
            trouble: None,
            echo_until,
            options,
        })
    }

    /// The id of the registration.
    pub fn id(&self) -> Uuid {
        self.registration.id()
    }

    /// What to say of this process.
    pub fn report(&self) -> Report {
        let (in_doubt, spooled) = (self.armed.in_doubt(), self.armed.unwritten());
        self.metrics.arming.in_doubt.set(in_doubt as i64);
        let (fails_open, disk_valid) = (self.armed.fails_open(), self.options.disk_valid);
        Report { fails_open, in_doubt, spooled, trouble: self.trouble.clone(), disk_valid }
    }

    /// For how long Postgres has not heard of this process: by either clock, for one stands still while a machine sleeps.
    pub fn unheard(&self) -> Duration {
        let (since, at) = self.heard;
        let unheard = since.elapsed().max((Utc::now() - at).to_std().unwrap_or_default());
        self.metrics.arming.unheard_seconds.set(unheard.as_secs_f64());
        unheard
    }

    /// Whether that is so long that a restart would not be ready without Postgres.
    pub fn may_be_forgotten(&self) -> bool {
        self.unheard() >= self.options.disk_valid
    }

    /// Whether the next beat should come soon: somebody may wait for it.
    pub fn hurries(&self) -> bool {
        self.armed.unacknowledged() > 0 || self.changed.elapsed() < HURRY
    }

    /// Reads what has changed, keeps it and acknowledges it. `began`: when the beat was sent that Postgres has heard;
    /// `fresh`: it did not know this process, so all is read.
    pub async fn follow(&mut self, began: (Instant, DateTime<Utc>), fresh: bool) -> Result<(), LedgerError> {
        if fresh {
            self.armed.start_over();
        }
        if fresh || self.read_all.elapsed() >= ALL_EVERY {
            self.since = None;
        }
        let mut fetched = self.store.fetch(self.since).await.inspect_err(|_| self.failed("fetch"))?;
        if self.since.is_some_and(|since| fetched.until < since) {
            warn!("Postgres was put back to an earlier time; all accounts' states are read again");
            self.since = None;
            fetched = self.store.fetch(None).await.inspect_err(|_| self.failed("fetch"))?;
        }
        let changed = match self.since {
            None => {
                self.read_all = Instant::now();
                self.armed.take_all(fetched.accounts)
            }
            Some(_) => self.armed.take_changes(fetched.accounts),
        };
        self.since = Some(fetched.until);
        self.heard = began;
        if changed {
            self.changed = Instant::now();
            self.kept = false;
        }
        self.keep().await;
        self.acknowledge().await
    }

    /// The states first, and then when they were read: a crash between leaves a copy that seems older than it is.
    async fn keep(&mut self) {
        let began = Instant::now();
        let note = self.noted.is_none_or(|noted| noted.elapsed() >= NOTE_EVERY.min(self.options.disk_valid / 10));
        if self.kept && !note || began < self.keep_after {
            return;
        }
        let (registration, accounts) = (self.registration.clone(), (!self.kept).then(|| self.armed.snapshot()));
        let heard = note.then_some(self.heard.1);
        let keep = move || {
            accounts.map_or(Ok(()), |accounts| registration.keep(accounts))?;
            heard.map_or(Ok(()), |at| registration.heard(at))
        };
        let kept = tokio::task::spawn_blocking(keep).await;
        let kept = kept.map_err(|error| error.to_string()).and_then(|kept| kept.map_err(|error| error.to_string()));
        self.keep_after = Instant::now() + began.elapsed() * REST;
        match kept {
            Ok(()) => {
                (self.kept, self.trouble) = (true, None);
                self.noted = if note { Some(began) } else { self.noted };
            }
            Err(error) => {
                self.kept = false;
                self.failed("disk");
                let trouble = format!("it can't keep the accounts' states in its state_dir: {error}");
                if self.trouble.as_ref() != Some(&trouble) {
                    warn!(
                        error,
                        "accounts' states can't be kept on disk; no change of one is acknowledged until they can"
                    );
                }
                self.trouble = Some(trouble);
            }
        }
    }

    async fn acknowledge(&mut self) -> Result<(), LedgerError> {
        if !self.kept || self.echo_until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        self.echo_until = None;
        let acks = self.armed.acknowledgeable(ACKS);
        if acks.is_empty() {
            return Ok(());
        }
        self.store.acknowledge(self.id(), &acks).await.inspect_err(|_| self.failed("acknowledge"))?;
        self.armed.acknowledged(&acks);
        Ok(())
    }

    /// Whether this process may deregister: it owes nothing, nor does the one before it, and its disk says that it has gone.
    pub async fn may_leave(&mut self) -> bool {
        if self.armed.owes() || self.echo_until.is_some_and(|until| Instant::now() < until) {
            return false;
        }
        let registration = self.registration.clone();
        let left = tokio::task::spawn_blocking(move || registration.leave()).await;
        matches!(left, Ok(Ok(()))) || {
            self.failed("disk");
            false
        }
    }

    fn failed(&self, call: &str) {
        self.metrics.arming.errors.with_label_values(&[call]).inc();
    }
}
