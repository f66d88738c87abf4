//! Keeps a router registered: a beat each second, one at once when what it decides by has changed, and a goodbye. A
//! beat brings back the flips that commands wait for, and the router acknowledges those whose every kind its flags decide
//! as asked; what an override says meanwhile says nothing of them.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::decider::Decider;
use super::storage::{Asked, FlipStore};
use crate::flags::Health;
use crate::interaction::Stage;
use crate::ledger::LedgerError;
use crate::metrics::Metrics;

const EVERY: Duration = Duration::from_secs(1);
/// A beat that a change has caused is tried so often in a row; the next regular one follows anyway.
const TRIES: u32 = 3;

/// A router's entry in the registry.
pub struct Presence {
    id: Uuid,
    name: String,
    store: FlipStore,
    decider: Arc<Decider>,
    metrics: Arc<Metrics>,
}

impl Presence {
    /// The entry of the router that decides by `decider`; `name` is for operators.
    pub fn new(name: String, store: FlipStore, decider: Arc<Decider>, metrics: Arc<Metrics>) -> Self {
        Self { id: Uuid::new_v4(), name, store, decider, metrics }
    }

    /// Its id in the registry.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Registers, before any traffic is taken. Without Postgres the router serves what needs none and registers later.
    pub async fn register(&self) {
        match self.beat().await {
            Ok(()) => {
                info!(id = %self.id, name = self.name, "this router is registered");
                if let Err(error) = self.store.tidy().await {
                    warn!(%error, "old routers and flips are not tidied away; the next start tries again");
                }
            }
            Err(error) => warn!(%error, "this router is not registered; it tries again each second"),
        }
    }

    /// Beats until `stop`, and deregisters then.
    pub async fn run(self, stop: CancellationToken) {
        let (mut flags, mut overrides) = (self.decider.flags().changed(), self.decider.overrides().changed());
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut failing = false;
        loop {
            let tries = tokio::select! {
                () = stop.cancelled() => break,
                _ = tick.tick() => 1,
                Ok(()) = flags.changed() => TRIES,
                Ok(()) = overrides.changed() => TRIES,
            };
            // Never broken off: a beat that arrives after the goodbye would undo it. Each is bounded.
            let beaten = self.beat_repeatedly(tries).await;
            match &beaten {
                Err(error) if !failing => warn!(%error, "this router can't report to its registry; it goes on trying"),
                Ok(()) if failing => info!("this router reports to its registry again"),
                _ => {}
            }
            failing = beaten.is_err();
        }
        if let Err(error) = self.store.deregister(self.id).await {
            self.failed("deregister");
            warn!(%error, "this router could not deregister; `crossover routers --forget {} --yes` does it", self.id);
        }
    }

    async fn beat_repeatedly(&self, tries: u32) -> Result<(), LedgerError> {
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

    async fn beat(&self) -> Result<(), LedgerError> {
        // Before it decides anything for the answer: what it then says of a flip is by this revision or a later one.
        let Health { revision, good_at, .. } = self.decider.flags().health();
        let overrides = self.decider.overrides().ids();
        let asked = self
            .store
            .beat(self.id, &self.name, &revision, good_at, &overrides)
            .await
            .inspect_err(|_| self.failed("beat"))?;
        let seen: Vec<Uuid> = asked.iter().filter(|flip| self.decides_as(flip)).map(|flip| flip.id).collect();
        if !seen.is_empty() {
            let took = self.store.acknowledge(self.id, &seen, &revision).await;
            let took = took.inspect_err(|_| self.failed("acknowledge"))?;
            took.into_iter().for_each(|seconds| self.metrics.flips.flip_seconds.observe(seconds));
        }
        Ok(())
    }

    fn decides_as(&self, flip: &Asked) -> bool {
        // One document for all kinds: between two there may be a flip.
        let flags = self.decider.flags().document();
        let there = |wanted| flip.kinds.iter().all(|kind| flags.stage(&flip.account, kind) == wanted);
        flip.to_stage.parse::<Stage>().is_ok_and(there)
    }

    fn failed(&self, call: &str) {
        self.metrics.flips.errors.with_label_values(&[call]).inc();
    }
}
