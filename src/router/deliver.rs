//! Delivery of Temporal copies. A start can be repeated, so whatever is in doubt is simply delivered again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use chrono::Utc;
use rand::RngExt;
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, error, info_span, warn};
use uuid::Uuid;

use super::circuit::{self, Circuit, jittered};
use crate::executor::clean;
use crate::interaction::{Attempt, Envelope, Fence, Outcome, Side};
use crate::ledger::{Ledger, LedgerError, Untold};
use crate::metrics::Metrics;
use crate::observer::{Observer, Seen, Sighting};
use crate::telemetry;

/// Brings copies to Temporal.
#[async_trait]
pub trait Deliver: Send + Sync {
    /// Starts (or signals) the copy. Repeating it is always safe.
    async fn deliver(&self, envelope: &Envelope) -> Result<Delivery, DeliveryError>;

    /// Tells the copy that waits for it what came of its parked attempt. Repeating it is always safe. False: Temporal has no
    /// such copy any more.
    async fn resolve(&self, untold: &Untold) -> Result<bool, DeliveryError>;

    /// Where the copy of `id` in its first epoch stands, as a state's name; none where Temporal has none.
    async fn look_up(&self, id: Uuid) -> Result<Option<&'static str>, DeliveryError>;
}

/// A build without Temporal has nobody to deliver to: whatever is not `complete` waits in the outbox.
#[cfg(not(feature = "temporal"))]
pub struct NoTemporal;

#[cfg(not(feature = "temporal"))]
#[async_trait]
impl Deliver for NoTemporal {
    async fn deliver(&self, _: &Envelope) -> Result<Delivery, DeliveryError> {
        let reason =
            "this crossover is built without Temporal; only accounts in stage complete can be served".to_owned();
        Err(DeliveryError::Refused { retryable: true, reason })
    }

    async fn resolve(&self, _: &Untold) -> Result<bool, DeliveryError> {
        let reason = "this crossover is built without Temporal".to_owned();
        Err(DeliveryError::Refused { retryable: true, reason })
    }

    async fn look_up(&self, _: Uuid) -> Result<Option<&'static str>, DeliveryError> {
        Ok(None)
    }
}

/// What a delivery found or did.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// It was started.
    Started,
    /// The same copy was there.
    AlreadyThere,
    /// A copy without a pin had run to its end before the pin was made: this is the end.
    Ended {
        /// How it ended.
        outcome: Outcome,
        /// Its last attempt.
        last: Box<Attempt>,
    },
}

/// Why a copy is not known to be with Temporal.
#[derive(Debug, thiserror::Error)]
pub enum DeliveryError {
    /// Temporal has another copy under this id.
    #[error("Temporal has another copy under this id: {0}")]
    OwnerConflict(String),
    /// It may be there or not.
    #[error("the outcome is in doubt: {0}")]
    InDoubt(String),
    /// It is not there.
    #[error("Temporal refused: {reason}")]
    Refused {
        /// Whether the same delivery may be accepted later.
        retryable: bool,
        /// What Temporal said.
        reason: String,
    },
}

/// Delivers, and records what came of it.
#[derive(Clone)]
pub struct Deliverer {
    target: Arc<dyn Deliver>,
    metrics: Arc<Metrics>,
    observer: Observer,
    circuit: Arc<Circuit>,
    delivered: mpsc::Sender<(Uuid, i32)>,
    /// Bounds the deliveries that no caller waits for; the relay does what finds no place.
    later: Arc<Semaphore>,
}

const LATER: usize = 256;
const UNRECORDED: usize = 4_096;

impl Deliverer {
    /// A deliverer to `target`. Spawns the task that takes delivered copies out of the outbox, as many at once as have
    /// gathered; it ends with the last clone.
    pub fn new(target: Arc<dyn Deliver>, ledger: Ledger, metrics: Arc<Metrics>) -> Self {
        let (delivered, receiver) = mpsc::channel(UNRECORDED);
        tokio::spawn(record(ledger, metrics.clone(), receiver));
        let (circuit, later) = (Arc::new(Circuit::new(metrics.clone())), Arc::new(Semaphore::new(LATER)));
        Self { target, metrics, observer: Observer::none(), circuit, delivered, later }
    }

    /// The same, and `observer` sees what it does.
    pub fn seen_by(mut self, observer: Observer) -> Self {
        self.observer = observer;
        self
    }

    pub(super) fn observer(&self) -> &Observer {
        &self.observer
    }

    /// What is known of whether Temporal answers.
    pub(crate) fn circuit(&self) -> &Circuit {
        &self.circuit
    }

    /// Temporal did not answer somebody else of this process.
    pub(crate) fn suspect(&self) {
        circuit::suspect(&self.circuit, &self.target, &self.observer);
    }

    /// Starts a copy and says what Temporal said, also while it seems to be away.
    pub async fn start(&self, envelope: &Envelope) -> Result<Delivery, DeliveryError> {
        let began = Instant::now();
        let span = info_span!("deliver", id = %envelope.id, cancelled = envelope.cancelled);
        telemetry::join(&span, envelope.id);
        let answer = self.target.deliver(envelope).instrument(span).await;
        self.metrics.delivery_seconds.observe(began.elapsed().as_secs_f64());
        let outcome = match &answer {
            Ok(Delivery::Started) => "started",
            Ok(_) => "already_there",
            Err(DeliveryError::OwnerConflict(_)) => "conflict",
            Err(DeliveryError::InDoubt(_)) => "in_doubt",
            Err(DeliveryError::Refused { .. }) => "refused",
        };
        self.metrics.deliveries.with_label_values(&[outcome]).inc();
        match &answer {
            Err(DeliveryError::InDoubt(_) | DeliveryError::Refused { retryable: true, .. }) => {
                self.observer.disturbed(Side::Temporal, "deliveries fail");
                self.suspect();
            }
            _ => self.circuit.answered(),
        }
        answer
    }

    /// Tells Temporal what came of a parked attempt, see [`Deliver::resolve`].
    pub(super) async fn resolve(&self, untold: &Untold) -> Result<bool, DeliveryError> {
        self.target.resolve(untold).await
    }

    /// Where the copy of `id` stands, see [`Deliver::look_up`].
    pub(crate) async fn look_up(&self, id: Uuid) -> Result<Option<&'static str>, DeliveryError> {
        self.target.look_up(id).await
    }

    /// Delivers while the caller waits.
    pub(super) async fn deliver_now(&self, ledger: &Ledger, envelope: &Envelope) -> Settled {
        let settled = self.settle(ledger, envelope, 0).await;
        self.record(ledger, &settled, envelope).await;
        settled
    }

    /// Delivers behind the caller's back, if there is room for it.
    pub(super) fn deliver_later(&self, ledger: &Ledger, envelope: Envelope) {
        self.deliver_later_and(ledger, envelope, || {});
    }

    /// The same, and then `delivered`, where Temporal has it.
    pub(super) fn deliver_later_and(
        &self,
        ledger: &Ledger,
        envelope: Envelope,
        delivered: impl FnOnce() + Send + 'static,
    ) {
        if self.circuit.is_open() {
            return self.metrics.relay.spared.inc();
        }
        let Ok(place) = self.later.clone().try_acquire_owned() else { return };
        let (this, ledger) = (self.clone(), ledger.clone());
        tokio::spawn(async move {
            let settled = this.settle(&ledger, &envelope, 0).await;
            this.record(&ledger, &settled, &envelope).await;
            if settled == Settled::Delivered {
                delivered();
            }
            drop(place);
        });
    }

    /// Takes a delivered copy out of the outbox: soon, with whatever else has gathered; a member of a series now, so
    /// that the next one can be delivered directly.
    async fn record(&self, ledger: &Ledger, settled: &Settled, envelope: &Envelope) {
        if *settled != Settled::Delivered {
            return;
        }
        if envelope.series_no.is_none() || ledger.delivered(&[envelope.copy()]).await.is_err() {
            // A full channel is an outbox row that stays: the relay finds the copy there and takes it out.
            let _ = self.delivered.try_send(envelope.copy());
        }
    }

    /// Delivers, and records what came of it where that is not a delivery: held, ended, or due again later. While
    /// Temporal is known to be away nothing is tried, and nobody waits.
    pub(super) async fn settle(&self, ledger: &Ledger, envelope: &Envelope, tries: i32) -> Settled {
        if self.circuit.is_open() {
            self.metrics.relay.spared.inc();
            return Settled::Away;
        }
        let recorded = match self.start(envelope).await {
            Ok(Delivery::Started | Delivery::AlreadyThere) if envelope.cancelled => {
                self.see(envelope, Seen::Delivered);
                ledger.nothing_left(&[envelope.copy()]).await
            }
            Ok(Delivery::Started | Delivery::AlreadyThere) => {
                self.see(envelope, Seen::Delivered);
                return Settled::Delivered;
            }
            Ok(Delivery::Ended { outcome, last }) => {
                self.skipped(envelope, "its copy had ended on Temporal before its pin was delivered");
                end(ledger, envelope, outcome, &last).await
            }
            Err(DeliveryError::OwnerConflict(found)) => {
                error!(id = %envelope.id, found, "owner conflict: Temporal has another copy under this id; the Postgres copy is held");
                self.metrics.owner_conflicts.inc();
                match ledger.hold(envelope.copy(), &clean(&found)).await {
                    Ok(()) => return Settled::Conflict,
                    Err(error) => Err(error),
                }
            }
            Err(DeliveryError::Refused { retryable: false, reason }) => {
                self.skipped(envelope, &reason);
                refuse(ledger, envelope, &reason).await
            }
            Err(error) => {
                warn!(id = %envelope.id, %error, tries, "not delivered to Temporal yet");
                // Each copy for itself: what is wrong with one is no outage.
                let wait = Duration::from_millis(250 << tries.clamp(0, 7));
                let wait = jittered(wait, rand::rng().random_range(0.0..1.0));
                if let Err(error) = ledger.undeliverable(envelope.copy(), wait, &clean(&error.to_string())).await {
                    self.metrics.ledger_errors.with_label_values(&["undeliverable"]).inc();
                    warn!(id = %envelope.id, %error, "a failed delivery can't be recorded; it is repeated sooner");
                }
                return Settled::Later;
            }
        };
        match recorded {
            Ok(()) => Settled::Done,
            Err(error) => {
                self.metrics.ledger_errors.with_label_values(&["delivery"]).inc();
                warn!(id = %envelope.id, %error, "the outcome of a delivery can't be recorded; it is delivered again");
                Settled::Later
            }
        }
    }
}

impl Deliverer {
    /// Sees that there is nothing to deliver, or never will be.
    pub(super) fn skipped(&self, envelope: &Envelope, why: &str) {
        self.see(envelope, Seen::Skipped { why: why.to_owned() });
    }

    /// Sees what became of a copy that is pinned.
    fn see(&self, envelope: &Envelope, what: Seen) {
        self.observer.see(Sighting {
            id: envelope.id,
            side: Side::Temporal,
            fence: Fence { epoch: envelope.epoch, attempt: 0 },
            rehearsal: !envelope.executes_on(Side::Temporal),
            at: Utc::now(),
            what,
        });
    }
}

/// What became of a delivery, as far as its series is concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// Temporal has it; its outbox row is the caller's to take out.
    Delivered,
    /// Nothing is left to deliver, and the outbox row is gone.
    Done,
    /// Temporal has another copy under this id: the Postgres copy is held, nothing runs.
    Conflict,
    /// It must be delivered again, before anything later of its series.
    Later,
    /// The same, and it was not even tried: Temporal is known to be away.
    Away,
}

/// An unpinned copy had ended before its key was pinned: its end becomes the pin's.
async fn end(ledger: &Ledger, e: &Envelope, outcome: Outcome, last: &Attempt) -> Result<(), LedgerError> {
    ledger.settle(e.id, last.fence, outcome, last.error.as_deref(), Some(last), false).await?;
    ledger.nothing_left(&[e.copy()]).await
}

/// Temporal will never take it. An execution has failed, and says why; a rehearsal is left out.
async fn refuse(ledger: &Ledger, e: &Envelope, reason: &str) -> Result<(), LedgerError> {
    warn!(id = %e.id, reason, "Temporal refused a copy for good");
    if e.owner == Side::Temporal {
        let reason = clean(&format!("Temporal refused it: {reason}"));
        ledger.settle(e.id, Fence { epoch: e.epoch, attempt: 0 }, Outcome::Failed, Some(&reason), None, false).await?;
    }
    ledger.nothing_left(&[e.copy()]).await
}

async fn record(ledger: Ledger, metrics: Arc<Metrics>, mut delivered: mpsc::Receiver<(Uuid, i32)>) {
    let mut copies = Vec::with_capacity(500);
    while delivered.recv_many(&mut copies, 500).await > 0 {
        if let Err(error) = ledger.delivered(&copies).await {
            metrics.ledger_errors.with_label_values(&["delivered"]).inc();
            warn!(%error, copies = copies.len(), "deliveries can't be recorded; the relay finds the copies there later");
        }
        copies.clear();
    }
}
