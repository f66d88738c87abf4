//! What a router does while Postgres can't be reached.
//!
//! What it asks Postgres for is bounded by a time and by a circuit breaker. Work of an account that may not be Postgres'
//! yet goes to Temporal without a pin, with the same workflow id and the same owner that its pin would have had; an entry
//! in the spool says so before it is started, and is pinned later. That is safe whatever became of a pin that gave no
//! answer: if it was made, its delivery finds the workflow and adopts it, for both name the same owner, epoch and payload.

use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, warn};
use uuid::Uuid;

use super::breaker::{Breaker, BreakerOptions, Permit, Position};
use super::deliver::{Deliverer, Delivery, DeliveryError};
use super::doubt::Doubts;
use super::order::{Order, Turn};
use super::{Accepted, EnqueueError, How};
use crate::arming::{Armed, Unpinned, UnpinnedStart, Unwritten};
use crate::flags::Decision;
use crate::interaction::{Envelope, Interaction, Side, Stage};
use crate::ledger::{Ledger, LedgerError, is_contention, is_outage};
use crate::metrics::Metrics;
use crate::spool::{Entry, Kept, Spool, SpoolError};

/// How long Postgres is waited for.
#[derive(Debug, Clone, Copy)]
pub struct OutageOptions {
    /// Work that may start without a pin waits so long for one.
    pub pin_budget: Duration,
    /// Other work waits so long; past it the answer is «in doubt».
    pub pin_timeout: Duration,
    /// When nobody asks Postgres any more.
    pub breaker: BreakerOptions,
}

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Outages {
    armed: Armed,
    spool: Arc<Spool>,
    pub(super) order: Arc<Order>,
    /// For callers who go on without Postgres.
    hasty: Breaker,
    /// For callers who can't.
    patient: Breaker,
    ledger: Ledger,
    options: OutageOptions,
    metrics: Arc<Metrics>,
}

impl Unwritten for Spool {
    fn any_of(&self, account: &str) -> bool {
        self.holds(account)
    }

    fn count(&self) -> u64 {
        self.len()
    }
}

impl Outages {
    /// With what an earlier process left in the spool.
    pub fn new(armed: Armed, spool: Arc<Spool>, ledger: Ledger, options: OutageOptions, metrics: Arc<Metrics>) -> Self {
        armed.keep_unwritten(spool.clone());
        let breaker = |callers: &'static str| {
            let metrics = metrics.clone();
            metrics.outage.breaker.with_label_values(&[callers]).set(0);
            Breaker::new(options.breaker, move |position| moved(&metrics, callers, position))
        };
        let (hasty, patient) = (breaker("fail_open"), breaker("pinned"));
        Self { armed, spool, order: Arc::new(Order::new()), hasty, patient, ledger, options, metrics }
    }

    /// What is held of the accounts' states.
    pub fn armed(&self) -> &Armed {
        &self.armed
    }

    /// Whether work may go on without Postgres here, as far as its account allows it.
    pub fn may_fail_open(&self) -> bool {
        self.armed.may_fail_open()
    }

    /// Whether Postgres is not being asked now.
    pub fn is_open(&self) -> bool {
        self.hasty.position() != Position::Closed
    }

    /// How long a question is worth that can go on without Postgres.
    pub fn budget(&self) -> Duration {
        self.options.pin_budget
    }

    /// The spool.
    pub fn spool(&self) -> &Arc<Spool> {
        &self.spool
    }

    /// Looks after series, breakers and gauges until `stop`.
    pub async fn follow(self, stop: CancellationToken) {
        let look = async {
            let mut tick = tokio::time::interval(LOOK);
            tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            while stop.run_until_cancelled(tick.tick()).await.is_some() {
                self.spool.show();
                // Also without callers: whoever comes next is to find it as it is.
                for hasty in [true, false] {
                    drop(self.leave(hasty));
                }
            }
        };
        tokio::join!(self.order.follow(&self.ledger, &self.spool, stop.clone()), look);
    }

    /// Leave to ask Postgres. The one try that an open breaker allows now and then is no caller's: it would cost him the
    /// whole of his time.
    fn leave(&self, hasty: bool) -> Result<Permit, Duration> {
        let (breaker, patience) = self.breaker(hasty);
        let permit = breaker.ask()?;
        if !permit.is_probe() {
            return Ok(permit);
        }
        let ledger = self.ledger.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(patience, ledger.takes_writes()).await {
                Ok(Ok(true)) => permit.succeeded(),
                _ => permit.failed(),
            }
        });
        Err(patience)
    }

    fn breaker(&self, hasty: bool) -> (&Breaker, Duration) {
        match hasty {
            true => (&self.hasty, self.options.pin_budget),
            false => (&self.patient, self.options.pin_timeout),
        }
    }

    /// Begins an enqueue that may go on without a pin; absent: it may not.
    pub(super) fn begin(&self, account: &str) -> Option<UnpinnedStart> {
        self.armed.begin_unpinned(account, Unpinned::FailOpen)
    }

    /// Whether the next member of its series has to go the way of those before it, which are not pinned yet.
    pub(super) fn follows_unpinned(&self, interaction: &Interaction) -> bool {
        interaction.series_id().is_some_and(|series| self.spool.holds_series(series))
    }

    /// Asks Postgres, in a hurry where the caller can go on without.
    pub(super) async fn ask<T>(
        &self,
        hasty: bool,
        call: impl Future<Output = Result<T, LedgerError>>,
    ) -> Result<T, LedgerError> {
        let permit = self.leave(hasty).map_err(|_| shut())?;
        let (_, patience) = self.breaker(hasty);
        let late = |_| Err(LedgerError::InDoubt(format!("no answer within {patience:?}")));
        let answer = tokio::time::timeout(patience, call).await.unwrap_or_else(late);
        match &answer {
            Err(error) if is_contention(error) => drop(permit),
            Err(error) if is_outage(error) => permit.failed(),
            _ => {
                permit.succeeded();
                if hasty {
                    self.patient.close();
                }
            }
        }
        answer
    }

    /// Takes note of a pin that may or may not be there: something of its series may wait.
    pub(super) fn in_doubt(&self, interaction: &Interaction) {
        interaction.series_id().into_iter().for_each(|series| self.order.waits(series));
    }

    /// Takes note of where the members of a series are after an enqueue.
    pub(super) fn delivered(&self, interaction: &Interaction, accepted: &Accepted) {
        match (interaction.series_id(), accepted.how, accepted.owner) {
            (Some(series), How::Created, Side::Temporal) => self.order.delivered(series),
            (Some(series), How::Pending, _) => self.order.waits(series),
            // What Postgres owns is of an armed account, which never goes on without a pin.
            _ => {}
        }
    }

    /// Starts work without the pin that Postgres could not be asked for, if that is allowed.
    pub(super) async fn start(
        &self,
        (deliverer, doubts): (&Deliverer, &Arc<Doubts>),
        interaction: &Interaction,
        envelope: Envelope,
        decision: &Decision,
        Pinless { start, why }: Pinless,
    ) -> Result<Accepted, EnqueueError> {
        let refuse = |reason, because: String| {
            self.metrics.outage.refused.with_label_values(&[reason]).inc();
            if matches!(why, Some(LedgerError::InDoubt(_))) {
                self.in_doubt(interaction);
            }
            refused(interaction, why.as_ref(), &because)
        };
        let Some(start) = start else { return Err(refuse("armed", String::new())) };
        let series = interaction.series_id();
        let turn = match series {
            Some(series) => Some(self.order.turn(series).await.ok_or_else(|| refuse("series", EARLIER.to_owned()))?),
            None => None,
        };
        let stage = decision.stage.min(Stage::Shadow);
        let entry = Entry::of(interaction, stage, &decision.revision, Utc::now());
        let unpinned = UnpinnedWork { start, entry, series, _turn: turn };
        let accepted = |how| Accepted {
            id: envelope.id,
            key: interaction.key.clone(),
            owner: Side::Temporal,
            stage,
            epoch: 1,
            pinned: false,
            how,
        };
        // A caller who hangs up must not leave a start behind whose answer nobody hears.
        let (this, deliverer, doubts, copy) = (self.clone(), deliverer.clone(), doubts.clone(), envelope.clone());
        let work = async move { this.write_and_start(&deliverer, &doubts, &copy, unpinned).await };
        let answer = tokio::spawn(work.in_current_span()).await;
        let answer =
            answer.unwrap_or_else(|error| Err(NotStarted::Temporal(DeliveryError::InDoubt(error.to_string()))));
        match answer {
            Ok(Delivery::Started) => Ok(accepted(How::Created)),
            Ok(Delivery::AlreadyThere | Delivery::Ended { .. }) => Ok(accepted(How::Repeated)),
            Err(NotStarted::Unwritten(error)) => {
                let late = matches!(error, SpoolError::Late { .. });
                let refusal = refuse("spool", format!("it can't be started without a pin either: {error}"));
                Err(if late { doubtful(interaction, refusal.to_string()) } else { refusal })
            }
            Err(NotStarted::Temporal(DeliveryError::OwnerConflict(_))) => Err(super::conflict(interaction, "payload")),
            Err(NotStarted::Temporal(error)) => {
                // A pin that may have been made keeps it in doubt, whatever Temporal said.
                let pin_in_doubt = matches!(why, Some(LedgerError::InDoubt(_)));
                match error {
                    DeliveryError::Refused { reason, .. } if !pin_in_doubt => {
                        Err(super::unavailable(interaction, reason))
                    }
                    other => {
                        self.in_doubt(interaction);
                        Err(doubtful(interaction, format!("Postgres is away, and {other}")))
                    }
                }
            }
        }
    }

    async fn write_and_start(
        &self,
        deliverer: &Deliverer,
        doubts: &Doubts,
        envelope: &Envelope,
        mut work: UnpinnedWork,
    ) -> Result<Delivery, NotStarted> {
        let kept = self.spool.keep(&work.entry).await.map_err(NotStarted::Unwritten)?;
        let _answered = Answered { spool: &self.spool, kept };
        work.start.sent();
        let answer = deliverer.start(envelope).await;
        match (&answer, kept) {
            (Err(DeliveryError::InDoubt(_)), _) => {
                // Before the turn is over: what follows in the series must not be started.
                work.series.into_iter().for_each(|series| self.order.waits(series));
                doubts.keep(envelope.clone(), work.start);
                return answer.map_err(NotStarted::Temporal);
            }
            (Ok(_), _) => self.metrics.outage.failed_open.inc(),
            (Err(_), Kept::Entry(no)) => self.withdraw(no).await,
            (Err(_), Kept::Dropped) => {}
        }
        work.start.settled();
        answer.map_err(NotStarted::Temporal)
    }

    /// It was not started after all. An entry that stays is pinned and started later, as if its outcome had been in doubt.
    async fn withdraw(&self, no: u64) {
        match self.spool.done(vec![no]).await {
            Ok(()) => self.metrics.outage.spool_drained.with_label_values(&["withdrawn"]).inc(),
            Err(error) => {
                warn!(%error, "an entry that was not started can't be taken out of the spool; it will be started")
            }
        }
    }
}

/// How often the breakers are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// An enqueue that has no pin.
pub(super) struct Pinless {
    /// Leave to go on without; absent: it must have one.
    pub(super) start: Option<UnpinnedStart>,
    /// Why it has none; absent: it follows others without one in its series.
    pub(super) why: Option<LedgerError>,
}

/// What a start without a pin holds until it has its answer.
struct UnpinnedWork {
    start: UnpinnedStart,
    entry: Entry,
    series: Option<Uuid>,
    _turn: Option<Turn>,
}

/// Whatever becomes of the start, its entry must not stay undrained for ever.
struct Answered<'a> {
    spool: &'a Spool,
    kept: Kept,
}

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        if let Kept::Entry(no) = self.kept {
            self.spool.answered(no);
        }
    }
}

/// Why it was not started, or may not have been.
enum NotStarted {
    Unwritten(SpoolError),
    Temporal(DeliveryError),
}

const EARLIER: &str = "something earlier of its series may not be with Temporal yet, and only Postgres knows, so it can't be started without a pin";

fn refused(interaction: &Interaction, why: Option<&LedgerError>, because: &str) -> EnqueueError {
    let parts: Vec<String> = why.map(ToString::to_string).into_iter().chain([because.to_owned()]).collect();
    let reason = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    match why {
        Some(LedgerError::InDoubt(_)) => doubtful(interaction, reason),
        _ => super::unavailable(interaction, reason),
    }
}

fn doubtful(interaction: &Interaction, reason: String) -> EnqueueError {
    EnqueueError::InDoubt { reason, key: interaction.key.clone() }
}

/// What a caller is told whom the breaker keeps from asking.
fn shut() -> LedgerError {
    LedgerError::Unreachable(sqlx::Error::Io(std::io::Error::other(
        "it has failed again and again, and is not asked until it answers",
    )))
}

fn moved(metrics: &Metrics, callers: &'static str, position: Position) {
    let state = match position {
        Position::Closed => 0,
        Position::HalfOpen => 1,
        Position::Open => 2,
    };
    let before = metrics.outage.breaker.with_label_values(&[callers]);
    let was = before.get();
    before.set(state);
    match position {
        // From one probe to the next it is the same outage.
        Position::Open if was == 0 => {
            metrics.outage.breaker_opened.with_label_values(&[callers]).inc();
            warn!(callers, "Postgres does not answer in time; callers no longer wait for it");
        }
        Position::Closed => info!(callers, "Postgres answers in time again"),
        Position::Open | Position::HalfOpen => {}
    }
}
