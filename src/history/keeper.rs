//! The keeper: upkeep that any worker does and one at a time does, duty by duty.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::{Done, History, Retention};
use crate::comparator::latency;
use crate::config::Config;
use crate::ledger::{Ledger, LedgerError};
use crate::metrics::Metrics;
use crate::observer::Log;

/// How often it looks whether a duty is due.
const LOOK: Duration = Duration::from_secs(30);
/// Whoever takes longer has died. Longer than anything takes that a duty does in one statement.
const LEASE: Duration = Duration::from_secs(3_600);
/// A duty that failed once is tried again after so long, and twice as long after each failure that follows, up to 32 times.
const AGAIN: Duration = Duration::from_secs(60);
/// A shutdown waits so long for Postgres.
const FAREWELL: Duration = Duration::from_secs(2);
/// Between a few pages of pins and the next.
const PAUSE: Duration = Duration::from_millis(50);
/// A runner that repeats its last report is known for so long.
const REPEATED_FOR: Duration = Duration::from_secs(86_400);

/// What has to be done now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Partitions of the coming days.
    Partitions,
    /// Partitions of what has been kept long enough.
    History,
    /// Pins of what has been kept long enough.
    Pins,
    /// Rows that belong to nothing.
    Orphans,
    /// What was seen long ago.
    Sightings,
    /// What runners took away and ended long ago.
    Runners,
    /// Latencies of long ago.
    Latencies,
}

impl Duty {
    /// All of them.
    pub const ALL: [Duty; 7] =
        [Duty::Partitions, Duty::History, Duty::Pins, Duty::Orphans, Duty::Sightings, Duty::Runners, Duty::Latencies];

    /// As metrics and the table name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Duty::Partitions => "partitions",
            Duty::History => "history",
            Duty::Pins => "pins",
            Duty::Orphans => "orphans",
            Duty::Sightings => "sightings",
            Duty::Runners => "runners",
            Duty::Latencies => "latencies",
        }
    }

    fn every(self) -> Duration {
        // It reads the whole table.
        let hours = if self == Duty::Pins { 6 } else { 1 };
        Duration::from_secs(hours * 3_600)
    }
}

/// Does what is due.
pub struct Keeper {
    history: History,
    ledger: Ledger,
    log: Log,
    retention: Retention,
    keep_sightings: Duration,
    keep_latencies: Duration,
    metrics: Arc<Metrics>,
    id: Uuid,
}

impl Keeper {
    /// A keeper of these tables.
    pub fn new(history: History, ledger: Ledger, log: Log, config: &Config, metrics: Arc<Metrics>) -> Self {
        Self {
            history,
            ledger,
            log,
            retention: Retention::of(config),
            keep_sightings: config.observer.keep,
            keep_latencies: config.latency.keep,
            metrics,
            id: Uuid::new_v4(),
        }
    }

    /// Does what is due, now and again, until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            for duty in Duty::ALL {
                let Some(did) = self.step(duty, &stop).await else { break };
                // Others may take hours, and what was done shows meanwhile.
                if did {
                    self.show(&stop).await;
                }
                if stop.is_cancelled() {
                    return;
                }
            }
            self.show(&stop).await;
        }
    }

    async fn show(&self, stop: &CancellationToken) {
        match stop.run_until_cancelled(self.history.done()).await {
            Some(Ok(done)) => self.metrics.maintenance.show(&done),
            Some(Err(error)) => warn!(%error, "how upkeep stands can't be read; its metrics are old"),
            None => {}
        }
    }

    /// Does `duty` if it is due and nobody is at it; whether it did.
    pub async fn turn(&self, duty: Duty, stop: &CancellationToken) -> bool {
        self.step(duty, stop).await.unwrap_or(false)
    }

    /// None: Postgres does not answer, so the others need not be tried.
    async fn step(&self, duty: Duty, stop: &CancellationToken) -> Option<bool> {
        let name = duty.as_str();
        match stop.run_until_cancelled(self.history.begin(name, self.id, LEASE)).await {
            Some(Ok(true)) => {}
            Some(Ok(false)) => return Some(false),
            Some(Err(error)) => {
                self.failed(duty, &error.to_string());
                return None;
            }
            None => {
                self.leave(duty).await;
                return None;
            }
        }
        let Some(served) = stop.run_until_cancelled(self.serve(duty)).await else {
            self.leave(duty).await;
            return Some(true);
        };
        let (again, how) = match served {
            Ok(found) => (duty.every(), Ok(found)),
            Err(error) => {
                self.failed(duty, &error);
                (AGAIN, Err(error))
            }
        };
        if let Err(error) = self.history.end(name, self.id, again, how).await {
            warn!(%error, duty = name, "how a duty went can't be written; it is done again when its lease ends");
        }
        Some(true)
    }

    /// The process stops: another does it at once, or when the lease ends where that can't be said.
    async fn leave(&self, duty: Duty) {
        let why = Err("the process that was at it was stopped".to_owned());
        let left = self.history.end(duty.as_str(), self.id, Duration::ZERO, why);
        if !matches!(tokio::time::timeout(FAREWELL, left).await, Ok(Ok(()))) {
            warn!(duty = duty.as_str(), "nobody can be told that a duty is left; it is free when its lease ends");
        }
    }

    fn failed(&self, duty: Duty, error: &str) {
        self.metrics.maintenance.failures.with_label_values(&[duty.as_str()]).inc();
        warn!(
            error,
            duty = duty.as_str(),
            "upkeep failed; it is tried again after a minute, and later after each failure that follows"
        );
    }

    async fn serve(&self, duty: Duty) -> Result<Option<serde_json::Value>, String> {
        let said = |error: LedgerError| error.to_string();
        match duty {
            Duty::Partitions => {
                let made = self.ledger.make_partitions().await.map_err(said)?;
                info!(made, "partitions are made ahead");
            }
            Duty::History => return self.clear().await,
            Duty::Pins => {
                let pins = self.history.forget_pins(&self.retention, PAUSE).await.map_err(said)?;
                self.metrics.maintenance.pins.inc_by(pins.unsigned_abs());
                info!(pins, "pins of what ended long ago are forgotten");
            }
            Duty::Orphans => {
                let found = self.history.orphans().await.map_err(said)?;
                return Ok(Some(json!(found)));
            }
            Duty::Sightings => {
                let days = self.log.retain(self.keep_sightings).await.map_err(said)?;
                info!(days, "old sightings are dropped");
            }
            Duty::Runners => drop(self.ledger.forget_detached(REPEATED_FOR).await.map_err(said)?),
            Duty::Latencies => {
                let rows = latency::storage::forget(&self.ledger, self.keep_latencies).await.map_err(said)?;
                info!(rows, "old latencies are forgotten");
            }
        }
        Ok(None)
    }

    async fn clear(&self) -> Result<Option<serde_json::Value>, String> {
        let cleared = self.history.clear(&self.retention).await.map_err(|error| error.to_string())?;
        for one in &cleared {
            self.metrics.maintenance.partitions.with_label_values(&[&one.answer]).inc();
            info!(part = one.part, answer = one.answer, stayed = one.stayed, went = one.went, "history was looked at");
        }
        let with = |answer: &str| {
            let found: Vec<&str> =
                cleared.iter().filter(|one| one.answer == answer).map(|one| one.part.as_str()).collect();
            (!found.is_empty()).then(|| found.join(", "))
        };
        let mut faults = Vec::new();
        if let Some(parts) = with("failed") {
            let why = cleared.iter().find_map(|one| one.error.as_deref()).unwrap_or_default();
            faults.push(format!("{parts} could not be cleared; of the first: {why}"));
        }
        if let Some(parts) = with("busy") {
            faults.push(format!(
                "no lock was to be had for {parts}; a long transaction reads these tables (pg_stat_activity says whose)"
            ));
        }
        if let Some(parts) = with("crowded") {
            faults.push(format!(
                "{parts} must wait: the default partition beside it holds more than 64 MB, which would be read while all wait; `vacuum` it when nothing of it is kept any more"
            ));
        }
        if faults.is_empty() { Ok(None) } else { Err(faults.join("; ")) }
    }
}

impl Done {
    /// What it counted under `name`.
    pub fn counted(&self, name: &str) -> Option<i64> {
        self.found.as_ref()?.get(name)?.as_i64()
    }
}
