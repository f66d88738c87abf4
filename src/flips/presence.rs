//! Keeps a router registered: a beat each second, one at once when what it decides by has changed, and a goodbye. A
//! beat brings back the flips that commands wait for, and the router acknowledges those whose every kind its flags decide
//! as asked; what an override says meanwhile says nothing of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::decider::Decider;
use super::storage::{Asked, Beat, FlipStore};
use crate::arming::Keeper;
use crate::flags::Health;
use crate::interaction::Stage;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

const EVERY: Duration = Duration::from_secs(1);
/// A beat that a change has caused is tried so often in a row; the next regular one follows anyway.
const TRIES: u32 = 3;

/// While something has just changed, or is to be acknowledged.
const HURRIED: Duration = Duration::from_millis(200);
/// At the end, so long for starts that have no answer yet.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A process's entry in the registry.
pub struct Presence {
    name: String,
    roles: Vec<&'static str>,
    store: FlipStore,
    /// Absent in a process that decides nothing.
    decider: Option<Arc<Decider>>,
    keeper: Keeper,
    metrics: Arc<Metrics>,
}

impl Presence {
    /// The entry of a process with these roles, which decides by `decider` and holds the accounts' states by `keeper`;
    /// `name` is for operators.
    pub fn new(
        name: String,
        roles: Vec<&'static str>,
        store: FlipStore,
        decider: Option<Arc<Decider>>,
        keeper: Keeper,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { name, roles, store, decider, keeper, metrics }
    }

    /// Its id in the registry.
    pub fn id(&self) -> Uuid {
        self.keeper.id()
    }

    /// Registers, before any traffic is taken. Without Postgres the process goes by what it has on disk, if it has that,
    /// and registers later.
    pub async fn register(&mut self) {
        match self.beat().await {
            Ok(()) => {
                info!(id = %self.id(), name = self.name, "this process is registered");
                if let Err(error) = self.store.tidy().await {
                    warn!(%error, "old routers and flips are not tidied away; the next start tries again");
                }
            }
            Err(error) => warn!(%error, "this process is not registered; it tries again each second"),
        }
    }

    /// Beats until `stop`, and deregisters then, if nobody has to wait for what it started.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut flags = self.decider.as_ref().map(|decider| decider.flags().changed());
        let mut overrides = self.decider.as_ref().map(|decider| decider.overrides().changed());
        let (mut failing, mut warned) = (false, false);
        loop {
            let pause = if self.keeper.hurries() && !failing { HURRIED } else { EVERY };
            let tries = tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => 1,
                () = change(&mut flags) => TRIES,
                () = change(&mut overrides) => TRIES,
            };
            // Never broken off: a beat that arrives after the goodbye would undo it. Each is bounded.
            let beaten = self.beat_repeatedly(tries).await;
            match &beaten {
                Err(error) if !failing => warn!(%error, "this process can't report to its registry; it goes on trying"),
                Ok(()) if failing => info!("this process reports to its registry again"),
                _ => {}
            }
            failing = beaten.is_err();
            let forgotten = self.keeper.may_be_forgotten();
            if forgotten && !warned {
                // It lives, so it goes on by what it holds: whoever forgets it has been told to see that it is stopped.
                warn!(
                    "Postgres has not heard of this process for router.disk_valid; it goes on as it did, but started again it is \
                     not ready before Postgres answers"
                );
            }
            warned = forgotten;
        }
        self.leave(failing).await;
    }

    /// What is in doubt, or not written, must not be forgotten by a goodbye; and where Postgres would not hear it, the
    /// registration stands, so that a restart may go by the disk.
    async fn leave(&mut self, failing: bool) {
        let since = Instant::now();
        let mut heard = !failing && self.beat().await.is_ok();
        while heard && !self.keeper.may_leave().await {
            if since.elapsed() > LAST_ANSWERS {
                warn!(
                    id = %self.id(),
                    "this process stays registered: work that it started without a pin has no answer or is not written. Start it \
                     again on the same state_dir, or accounts can't be armed until `crossover routers --forget`"
                );
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            heard = self.beat().await.is_ok();
        }
        let left = match heard {
            true => self.store.deregister(self.id()).await.map(drop).inspect_err(|_| self.failed("deregister")),
            false => {
                return warn!(id = %self.id(), "Postgres does not answer, so this process stays registered; start it again on the same state_dir");
            }
        };
        if let Err(error) = left {
            warn!(%error, "this process could not deregister; `crossover routers --forget {} --yes` does it", self.id());
        }
    }

    async fn beat_repeatedly(&mut self, tries: u32) -> Result<(), LedgerError> {
        let mut beaten = self.beat().await;
        for n in 1..tries {
            if beaten.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50) * n).await;
            beaten = self.beat().await;
        }
        beaten
    }

    async fn beat(&mut self) -> Result<(), LedgerError> {
        // Before it decides anything for the answer: what it then says of a flip is by this revision or a later one.
        let (revision, good_at, overrides) = match &self.decider {
            Some(decider) => {
                let Health { revision, good_at, .. } = decider.flags().health();
                (revision, good_at, decider.overrides().ids())
            }
            None => (String::new(), chrono::Utc::now(), Vec::new()),
        };
        let beat = Beat {
            id: self.id(),
            name: &self.name,
            roles: &self.roles,
            revision: &revision,
            good_at,
            overrides: &overrides,
            report: self.keeper.report(),
        };
        let began = (Instant::now(), chrono::Utc::now());
        let (fresh, asked) = self.store.beat(beat).await.inspect_err(|_| self.failed("beat"))?;
        self.keeper.follow(began, fresh).await?;
        let seen: Vec<Uuid> = asked.iter().filter(|flip| self.decides_as(flip)).map(|flip| flip.id).collect();
        if !seen.is_empty() {
            let took = self.store.acknowledge(self.id(), &seen, &revision).await;
            let took = took.inspect_err(|_| self.failed("acknowledge"))?;
            took.into_iter().for_each(|seconds| self.metrics.flips.flip_seconds.observe(seconds));
        }
        Ok(())
    }

    fn decides_as(&self, flip: &Asked) -> bool {
        let Some(decider) = &self.decider else { return false };
        // One document for all kinds: between two there may be a flip.
        let flags = decider.flags().document();
        let there = |wanted| flip.kinds.iter().all(|kind| flags.stage(&flip.account, kind) == wanted);
        flip.to_stage.parse::<Stage>().is_ok_and(there)
    }

    fn failed(&self, call: &str) {
        self.metrics.flips.errors.with_label_values(&[call]).inc();
    }
}

/// The next change; without anything that changes, none ever.
async fn change<T>(changed: &mut Option<tokio::sync::watch::Receiver<T>>) {
    if let Some(changed) = changed
        && changed.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}
