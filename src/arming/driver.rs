//! Moves accounts on. Every process that routes or relays has one; each step compares and sets in one transaction, so any
//! number of them is safe, and one that dies between two steps has left nothing half done.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::stream::{self, StreamExt};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::armed::State;
use super::storage::ArmingStore;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

/// Accounts in one look.
const BATCH: i32 = 500;
/// Steps under way at once.
const PARALLEL: usize = 3;
/// A process that reconciles an account keeps it for so long, and then somebody else may go on.
const TAKEN: Duration = Duration::from_secs(10);
/// What was left or failed is looked at again after so long.
const AGAIN: Duration = Duration::from_millis(500);
/// Between two looks there is so many times the length of the last one, but no more than so long.
const REST: u32 = 4;
const LONGEST_REST: Duration = Duration::from_secs(2);

/// Gives what is open on Temporal without a pin its pin.
#[async_trait]
pub trait Reconcile: Send + Sync {
    /// One step for `account`, of some seconds at most; it is asked again until nothing is left. Called with every process
    /// past the barrier: nothing of the account starts without a pin any more, in the state `reconciling` of `generation`.
    async fn reconcile(&self, account: &str, generation: i64) -> Result<Reconciled, ReconcileError>;
}

/// What a step of reconciliation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconciled {
    /// Nothing of the account is open on Temporal without a pin.
    Done,
    /// So many workflows still are.
    Left(u64),
}

/// Why a step failed; it is tried again.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ReconcileError(pub String);

/// Where no Temporal is, nothing is open on it.
pub struct NothingThere;

#[async_trait]
impl Reconcile for NothingThere {
    async fn reconcile(&self, _: &str, _: i64) -> Result<Reconciled, ReconcileError> {
        Ok(Reconciled::Done)
    }
}

/// How accounts are moved on.
#[derive(Debug, Clone, Copy)]
pub struct DriverOptions {
    /// A caller may repeat a key for so long.
    pub window: Duration,
    /// How often it looks.
    pub every: Duration,
}

/// Moves accounts on.
pub struct Driver {
    store: ArmingStore,
    reconcile: Arc<dyn Reconcile>,
    options: DriverOptions,
    metrics: Arc<Metrics>,
}

impl Driver {
    /// A driver on this store.
    pub fn new(
        store: ArmingStore,
        reconcile: Arc<dyn Reconcile>,
        options: DriverOptions,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { store, reconcile, options, metrics }
    }

    /// Drives until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut wait = Duration::ZERO;
        while stop.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            let Some((full, looked)) = stop.run_until_cancelled(self.look()).await else { return };
            wait = if full { Duration::ZERO } else { self.options.every.max((looked * REST).min(LONGEST_REST)) };
        }
    }

    /// One look; whether more is due that it found no room for, and how long it took to see what is due.
    async fn look(&self) -> (bool, Duration) {
        let began = Instant::now();
        let due = match self.store.due(self.options.window, BATCH).await {
            Ok(due) => due,
            Err(error) => {
                self.failed("due");
                warn!(%error, "accounts that are being armed can't be looked at; tried again");
                return (false, Duration::from_millis(100));
            }
        };
        let (looked, full) = (began.elapsed(), due.len() >= BATCH as usize);
        let steps = stream::iter(due).map(|(account, state, generation)| async move {
            match self.step(&account, state, generation).await {
                Ok(moved) => moved,
                Err(error) => {
                    let busy = is_busy(&error);
                    self.failed(if busy { "busy" } else { "step" });
                    if !busy {
                        warn!(%error, account, %state, "an account can't be moved on; tried again");
                    }
                    false
                }
            }
        });
        let moved =
            steps.buffer_unordered(PARALLEL).fold(0, |sum, moved| async move { sum + usize::from(moved) }).await;
        (full && moved > 0, looked)
    }

    /// Whether it moved.
    async fn step(&self, account: &str, state: State, generation: i64) -> Result<bool, LedgerError> {
        let to = match state {
            State::Open => Some(self.store.begin(account).await?).filter(|to| *to != State::Open),
            State::Reconciling => self.reconcile(account, generation).await?,
            _ => self.store.advance(account, generation, self.options.window).await?,
        };
        if let Some(to) = to {
            self.metrics.arming.moves.with_label_values(&[to.as_str()]).inc();
            info!(account, from = %state, %to, "an account has moved on its way to be armed or open");
        }
        Ok(to.is_some())
    }

    async fn reconcile(&self, account: &str, generation: i64) -> Result<Option<State>, LedgerError> {
        if !self.store.take_reconciliation(account, generation, TAKEN).await? {
            return Ok(None);
        }
        let reconciled = tokio::time::timeout(TAKEN, self.reconcile.reconcile(account, generation)).await;
        let (done, left, trouble) = match reconciled {
            Ok(Ok(Reconciled::Done)) => (true, Some(0), None),
            Ok(Ok(Reconciled::Left(left))) => (false, Some(left), None),
            Ok(Err(error)) => (false, None, Some(error.to_string())),
            Err(_) => (false, None, Some(format!("it took longer than {TAKEN:?}"))),
        };
        if let Some(error) = &trouble {
            self.failed("reconcile");
            warn!(account, error, "an account can't be reconciled; tried again");
        }
        let written = self.store.reconciled(account, generation, done, left, trouble.as_deref(), AGAIN).await?;
        Ok((done && written).then_some(State::Armed))
    }

    fn failed(&self, call: &str) {
        self.metrics.arming.errors.with_label_values(&[call]).inc();
    }
}

/// Pins of the account were under way for longer than a step waits.
fn is_busy(error: &LedgerError) -> bool {
    match error {
        LedgerError::Refused(error) => {
            error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == "55P03")
        }
        _ => false,
    }
}
