//! The router: decides from memory which stage an interaction is in, pins it, delivers its Temporal copy, answers.
//!
//! Between any two of its steps the process may die. Before the pin commits, nothing has happened. After it, the relay
//! delivers what the router did not. The caller who got no answer repeats the key and gets the first answer.

mod after;
pub mod breaker;
mod caps;
mod circuit;
mod deliver;
mod doubt;
mod drain;
mod gather;
pub mod handover;
mod intake;
mod order;
mod outage;
mod pace;
mod relay;
pub mod request;
pub mod resolve;
mod share;
mod task;

use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::{PgConnection, Postgres, Transaction};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, info_span};
use uuid::Uuid;

#[cfg(not(feature = "temporal"))]
pub use deliver::NoTemporal;
pub use deliver::{Deliver, Deliverer, Delivery, DeliveryError};
pub use drain::Drain;
pub use intake::{Intake, IntakeOptions};
pub use outage::{OutageOptions, Outages};
pub use relay::{Relay, RelayOptions};
pub use resolve::Resolver;

use caps::{Caps, Full};
use deliver::Settled;
use doubt::Doubts;
use gather::Gather;
use outage::Pinless;

use crate::arming::{Armed, State, Unpinned, UnpinnedStart};
use crate::faults::{self, Whether};
use crate::flags::Decision;
use crate::flips::{Basis, Decider};
use crate::interaction::{Envelope, Interaction, Side, Stage, hex};
use crate::ledger::{Cancelling, Ledger, LedgerError, Pin, PinRequest, Pinned, Resolving, is_outage};
use crate::metrics::Metrics;
use crate::queue::tasks::{self, Tasks};
use crate::telemetry;

/// Where interactions come in. Cheap to share behind an `Arc`.
pub struct Router {
    ledger: Ledger,
    decider: Arc<Decider>,
    deliverer: Deliverer,
    outages: Outages,
    metrics: Arc<Metrics>,
    options: RouterOptions,
    /// Rung when the Postgres side may have something to do.
    wake_queue: Arc<Notify>,
    /// Rung when it may have a task to do.
    wake_for_tasks: Arc<Notify>,
    /// Rung when the relay may.
    wake_relay: Arc<Notify>,
    /// What may start without a pin.
    armed: Armed,
    /// What did, and Temporal has not answered.
    doubts: Arc<Doubts>,
    /// Where tasks go in.
    gather: Gather,
    /// What may wait.
    caps: Arc<Caps>,
    /// Rung when a schedule may be due earlier than its scheduler knows.
    schedules_bell: Arc<Notify>,
    /// Rung when Temporal is to be told of one.
    mirrors_bell: Arc<Notify>,
}

/// How a router routes.
#[derive(Debug, Clone, Copy)]
pub struct RouterOptions {
    /// A pin takes at most so long; past it the answer is «in doubt».
    pub pin_timeout: Duration,
    /// For how long the router that pinned delivers itself, before the relay does.
    pub grace: Duration,
    /// Whether work in `complete` that only its caller can name becomes a task.
    pub tasks: bool,
    /// A key may be repeated for so long: what it led to may be cleared away after that.
    pub window: Duration,
}

/// The answer to an enqueue.
#[derive(Debug, Clone)]
pub struct Accepted {
    /// The interaction.
    pub id: Uuid,
    /// The caller's key, or the one that the router made.
    pub key: String,
    /// The side that executes it.
    pub owner: Side,
    /// The stage it was pinned in; for an unpinned start, `off`.
    pub stage: Stage,
    /// The pin's epoch.
    pub epoch: i32,
    /// Whether its end will be known here: only Temporal knows of what was started without a pin.
    pub pinned: bool,
    /// Whether it is new, repeated, or new and not started yet.
    pub how: How,
}

/// How an interaction was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Pinned and, where Temporal owns it, started.
    Created,
    /// Its key was pinned before; this is the first answer again.
    Repeated,
    /// Pinned; its owner Temporal has not confirmed the start. The relay sees to it.
    Pending,
    /// Pinned, but Temporal has other work under this key, started without a pin: nothing of it runs.
    Conflict,
}

/// Why an interaction was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// It can't be accepted as it is.
    #[error("not accepted: {}", .0.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<request::Fault>),
    /// The key came before with other work.
    #[error("key `{key}` of account `{account}` came before with another {what}; use a new key for new work")]
    Conflict {
        /// The tenant.
        account: String,
        /// The key.
        key: String,
        /// `account`, `kind` or `payload`.
        what: &'static str,
    },
    /// As much of its group waits as may.
    #[error(
        "not accepted: {waiting} interactions of group `{group}` wait, and its max_waiting is {most}; come back when fewer do"
    )]
    Full {
        /// The group.
        group: String,
        /// Its cap.
        most: i64,
        /// What waits, as of a second ago.
        waiting: i64,
        /// The key to repeat.
        key: String,
    },
    /// Nothing was written; try again.
    #[error("not accepted: {reason}")]
    Unavailable {
        /// What is away.
        reason: String,
        /// The key to repeat.
        key: String,
    },
    /// It may have been written; repeat the same key to learn it.
    #[error("it is unknown whether this was accepted ({reason}); repeat it with key `{key}`")]
    InDoubt {
        /// What happened.
        reason: String,
        /// The key to repeat.
        key: String,
    },
}

/// What a caller of [`Router::enqueue_in`] hands back after its commit, so that the router delivers at once. Dropped,
/// the relay delivers.
#[must_use = "pass it to Router::deliver after your commit; the relay delivers it otherwise, a little later"]
#[derive(Debug)]
pub struct Ticket {
    /// The answer, valid once the caller's transaction has committed.
    pub accepted: Accepted,
    delivery: Option<Box<Envelope>>,
    /// Its series, where that waits for it, until then.
    waits: Option<(Uuid, order::Mark)>,
}

impl Router {
    /// A router over these parts; `wake` are rung when there is something to run, a task to run, or something to relay. It takes nothing in before
    /// it knows the accounts' states.
    pub fn new(
        ledger: Ledger,
        decider: Arc<Decider>,
        deliverer: Deliverer,
        outages: Outages,
        metrics: Arc<Metrics>,
        options: RouterOptions,
        wake: [Arc<Notify>; 3],
    ) -> Self {
        let doubts = Arc::new(Doubts::new(deliverer.clone()));
        let armed = outages.armed().clone();
        let [wake_queue, wake_for_tasks, wake_relay] = wake;
        let gather = Gather::new(Tasks::new(ledger.pool().clone()));
        let caps = Arc::new(Caps::new(gather.tasks().groups(), metrics.clone()));
        let (schedules_bell, mirrors_bell) = (Arc::default(), Arc::default());
        Self {
            caps,
            gather,
            ledger,
            decider,
            deliverer,
            outages,
            metrics,
            options,
            wake_queue,
            wake_for_tasks,
            wake_relay,
            armed,
            doubts,
            schedules_bell,
            mirrors_bell,
        }
    }

    /// Repeats unpinned starts whose outcome is in doubt, until `stop`.
    pub fn repeat_what_is_in_doubt(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let doubts = self.doubts.clone();
        async move { doubts.repeat(stop).await }
    }

    /// Keeps in mind what waits in groups with a cap, until `stop`.
    pub fn follow_caps(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let caps = self.caps.clone();
        async move { caps.follow(stop).await }
    }

    /// Refuses work that Postgres would own where too much of its group waits. What was accepted before is no more work, and what is due
    /// later does not wait yet. Whether it was counted as one more.
    async fn within_caps(&self, interaction: &Interaction, decision: &Decision) -> Result<bool, EnqueueError> {
        let (account, group) = (&interaction.account, interaction.group.as_deref());
        if interaction.run_at.is_some_and(|at| at > chrono::Utc::now()) || !self.is_capped(account, decision.stage) {
            return Ok(false);
        }
        let Some(Full { most, waiting }) = self.caps.full(group) else { return Ok(true) };
        // Where that can't be read, coming back later is the answer that is never wrong.
        if !interaction.key_made && self.bounded(self.ledger.is_pinned(interaction.id())).await.unwrap_or(false) {
            return Ok(false);
        }
        self.metrics.groups.refused.inc();
        let group = group.unwrap_or("default").to_owned();
        Err(EnqueueError::Full { group, most, waiting, key: interaction.key.clone() })
    }

    /// Whether caps are for such work: Postgres would own it.
    fn is_capped(&self, account: &str, stage: Stage) -> bool {
        matches!(stage, Stage::Live | Stage::Complete) && self.armed.state(account) == State::Armed
    }

    /// Why a run of a schedule is put off, where too much of its group waits; else one more is on its way in.
    pub fn put_off(&self, account: &str, kind: &str, group: Option<&str>) -> Option<String> {
        if !self.is_capped(account, self.stage(account, kind)) {
            return None;
        }
        let Full { most, waiting } = self.caps.full(group)?;
        let group = group.unwrap_or("default");
        Some(format!(
            "{waiting} interactions of group `{group}` wait, and its max_waiting is {most}; its runs are put off until fewer do"
        ))
    }

    /// Accepts an interaction: the whole protocol, decide to answer.
    pub async fn enqueue(&self, interaction: &Interaction) -> Result<Accepted, EnqueueError> {
        let (asked_in, id) = (Span::current(), interaction.id());
        let span = info_span!("enqueue", %id, account = interaction.account, kind = interaction.kind);
        telemetry::link(&span, &asked_in);
        let accepted = self.accept(interaction).instrument(span.clone()).await;
        accepted.inspect_err(|_| telemetry::join(&span, id))
    }

    async fn accept(&self, interaction: &Interaction) -> Result<Accepted, EnqueueError> {
        valid(interaction, chrono::Utc::now())?;
        if let Some(why) = self.armed.not_ready() {
            return Err(unavailable(interaction, format!("this router is not ready: {why}")));
        }
        let decision = self.decider.decide(&interaction.account, &interaction.kind);
        if !interaction.key_made
            && let Some(accepted) = self.repeat_task(interaction, &decision).await?
        {
            return Ok(accepted);
        }
        let counted = self.within_caps(interaction, &decision).await?;
        let accepted = self.take_in(interaction, decision).await;
        if counted && !accepted.as_ref().is_ok_and(|accepted| matches!(accepted.how, How::Created | How::Pending)) {
            self.caps.give_back(interaction.group.as_deref());
        }
        accepted
    }

    /// The same for what no cap is in the way of.
    async fn take_in(&self, interaction: &Interaction, decision: Decision) -> Result<Accepted, EnqueueError> {
        if let Some(accepted) = self.accept_task(interaction, &decision).await? {
            return Ok(accepted);
        }
        if interaction.after.is_some() || interaction.exclusive.is_some() {
            return self.accept_waiting(interaction, &decision).await;
        }
        // Held all along: what the account is now, it is until this has its answer.
        let unpinned = self.doubts.have_room().then(|| self.outages.begin(&interaction.account)).flatten();
        if decision.stage == Stage::Off {
            match self.may_skip_the_pin(interaction, unpinned.is_some()).await {
                Ok(Some(start)) => return self.start_unpinned(interaction, start).await,
                Ok(None) => {}
                Err(error) => {
                    // The mark may be set, the interaction is not: nothing was started.
                    let error = LedgerError::Unreachable(sqlx::Error::Io(std::io::Error::other(error.to_string())));
                    return self.start_for_want_of_a_pin(interaction, &decision, unpinned, Some(error)).await;
                }
            }
        }
        self.armed.forget_mark(&interaction.account);
        if unpinned.is_some() && self.outages.follows_unpinned(interaction) {
            return self.start_for_want_of_a_pin(interaction, &decision, unpinned, None).await;
        }
        let pinned = match self.pin(interaction, &decision, unpinned.is_some()).await {
            Ok(pinned) => pinned,
            Err(error) => return self.start_for_want_of_a_pin(interaction, &decision, unpinned, Some(error)).await,
        };
        // Only one enqueue makes the pin, so a trace has one root.
        match pinned.created {
            true => telemetry::begin(&Span::current(), pinned.pin.id),
            false => telemetry::join(&Span::current(), pinned.pin.id),
        }
        let ticket = self.ticket(interaction, pinned)?;
        match self.deliver(ticket).await {
            Accepted { how: How::Conflict, .. } => Err(conflict(interaction, "payload")),
            accepted => {
                self.outages.delivered(interaction, &accepted);
                Ok(accepted)
            }
        }
    }

    /// Pins, within the time that the caller has.
    async fn pin(&self, interaction: &Interaction, decision: &Decision, hasty: bool) -> Result<Pinned, LedgerError> {
        let request =
            PinRequest { interaction, stage: decision.stage, revision: &decision.revision, grace: self.options.grace };
        let began = Instant::now();
        let pinned =
            self.outages.ask(hasty, self.ledger.pin(request)).await.inspect_err(|error| self.disturbed(error))?;
        self.metrics.pin_seconds.observe(began.elapsed().as_secs_f64());
        Ok(pinned)
    }

    /// Starts work on Temporal alone, if its account may go on so while Postgres is away.
    async fn start_for_want_of_a_pin(
        &self,
        interaction: &Interaction,
        decision: &Decision,
        start: Option<UnpinnedStart>,
        why: Option<LedgerError>,
    ) -> Result<Accepted, EnqueueError> {
        let envelope = envelope(interaction, None, Side::Temporal, 1);
        telemetry::join(&Span::current(), envelope.id);
        let pinless = Pinless { start, why };
        self.outages.start((&self.deliverer, &self.doubts), interaction, envelope, decision, pinless).await
    }

    /// Whether Postgres answers, in the time that work of `account` has for it: little where it can go on without.
    pub async fn asks_postgres(&self, account: &str) -> Result<(), LedgerError> {
        let hasty = self.outages.begin(account).is_some();
        match self.outages.ask(hasty, self.ledger.takes_writes()).await? {
            true => Ok(()),
            false => Err(LedgerError::Unreachable(sqlx::Error::Io(std::io::Error::other("it takes no writes now")))),
        }
    }

    /// Whether work of `account` may go on here while Postgres is away.
    pub fn goes_on_without_postgres(&self, account: &str) -> bool {
        self.outages.begin(account).is_some()
    }

    /// Starts work that Postgres was to be asked about, and could not be: without a pin, if its account may go on so. Nothing is pinned.
    pub async fn start_without_postgres(
        &self,
        interaction: &Interaction,
        why: LedgerError,
    ) -> Result<Accepted, EnqueueError> {
        valid(interaction, chrono::Utc::now())?;
        if let Some(why) = self.armed.not_ready() {
            return Err(unavailable(interaction, format!("this router is not ready: {why}")));
        }
        let decision = self.decider.decide(&interaction.account, &interaction.kind);
        let unpinned = self.doubts.have_room().then(|| self.outages.begin(&interaction.account)).flatten();
        self.start_for_want_of_a_pin(interaction, &decision, unpinned, Some(why)).await
    }

    /// Pins in the caller's transaction: the interaction exists if and only if it commits. Pass the ticket to
    /// [`Router::deliver`] afterwards.
    pub async fn enqueue_in(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        interaction: &Interaction,
    ) -> Result<Ticket, EnqueueError> {
        valid(interaction, chrono::Utc::now())?;
        if let Some(series) = interaction.series_id() {
            self.outages.order.may_wait(series);
        }
        self.pin_in(transaction, interaction).await
    }

    /// The same for what has been checked.
    async fn pin_in(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        interaction: &Interaction,
    ) -> Result<Ticket, EnqueueError> {
        if tasks::of_key(&interaction.key).is_some() {
            return Err(task::not_a_callers_key());
        }
        let decision = self.decider.decide(&interaction.account, &interaction.kind);
        // Its Temporal copy may wait in the outbox for a while, and nothing of its series may overtake it.
        self.armed.forget_mark(&interaction.account);
        let request =
            PinRequest { interaction, stage: decision.stage, revision: &decision.revision, grace: self.options.grace };
        let pinned = match (&interaction.after, &interaction.exclusive) {
            (None, None) => self.ledger.pin_in(transaction, request).await.map(Ok),
            (Some(after), None) => self.ledger.pin_after_in(transaction, request, after).await,
            (_, Some(_)) => self.ledger.pin_exclusive_in(transaction, request).await,
        };
        let pinned = pinned.map_err(|error| not_pinned(interaction, error))?;
        let pinned = pinned.map_err(|fault| after::refused(interaction, &fault))?;
        self.outages.in_doubt(interaction);
        self.ticket(interaction, pinned)
    }

    /// Pins runs of schedules in the scheduler's transaction, all or none: one answer each, in the order given. Pass the
    /// tickets to [`Router::deliver_runs`] after the commit.
    pub async fn pin_runs(
        &self,
        connection: &mut PgConnection,
        runs: &[Interaction],
    ) -> Result<Vec<Result<Ticket, EnqueueError>>, LedgerError> {
        let now = chrono::Utc::now();
        let checked: Vec<_> = runs.iter().map(|run| valid(run, now)).collect();
        // In one order everywhere, so that two schedulers never wait for each other's series.
        let mut order: Vec<usize> = (0..runs.len()).filter(|n| checked[*n].is_ok()).collect();
        order.sort_by_key(|n| runs[*n].series_id());
        let decisions: Vec<_> = order.iter().map(|n| self.decider.decide(&runs[*n].account, &runs[*n].kind)).collect();
        let requests = order.iter().zip(&decisions).map(|(n, decision)| {
            let interaction = &runs[*n];
            // Its Temporal copy may wait in the outbox for a while, and nothing of its series may overtake it.
            self.armed.forget_mark(&interaction.account);
            PinRequest { interaction, stage: decision.stage, revision: &decision.revision, grace: self.options.grace }
        });
        let requests: Vec<_> = requests.collect();
        let pinned = match requests.is_empty() {
            true => Vec::new(),
            false => self.ledger.pin_many_in(connection, &requests).await.inspect_err(|error| self.disturbed(error))?,
        };
        let mut answers: Vec<Option<Result<Ticket, EnqueueError>>> =
            checked.into_iter().map(|c| c.err().map(Err)).collect();
        for (n, pinned) in order.into_iter().zip(pinned) {
            let waits = self.run_waits(&runs[n], &pinned);
            answers[n] = Some(self.ticket(&runs[n], pinned).map(|ticket| Ticket { waits, ..ticket }));
        }
        // Postgres answers each run that it is asked for.
        Ok(answers.into_iter().flatten().collect())
    }

    /// Takes note that the series of a run may wait for it to reach Temporal. What Postgres owns is of an armed account, which never goes on
    /// without a pin, and must take no room from those that do.
    fn run_waits(&self, run: &Interaction, pinned: &Pinned) -> Option<(Uuid, order::Mark)> {
        let series = run.series_id().filter(|_| pinned.pin.owner == Side::Temporal)?;
        if !pinned.created {
            self.outages.order.waits(series);
            return None;
        }
        Some((series, self.outages.order.run_waits(series)))
    }

    /// Delivers what was pinned for schedules behind their backs; the relay does what finds no room.
    pub fn deliver_runs(&self, tickets: Vec<Ticket>) {
        tickets.into_iter().for_each(|ticket| self.deliver_later(ticket));
    }

    /// The stage in which work of an account and kind is taken in now.
    pub fn stage(&self, account: &str, kind: &str) -> Stage {
        self.decider.stage(account, kind)
    }

    /// What stages are decided by now.
    pub fn basis(&self) -> Basis {
        self.decider.basis()
    }

    /// Rung when a schedule was made, changed or triggered.
    pub fn schedules_bell(&self) -> &Arc<Notify> {
        &self.schedules_bell
    }

    /// Rung when Temporal may have to be told of a schedule.
    pub fn mirrors_bell(&self) -> &Arc<Notify> {
        &self.mirrors_bell
    }

    /// A schedule was made, changed, triggered or deleted.
    pub fn schedule_changed(&self) {
        self.schedules_bell.notify_one();
        self.mirrors_bell.notify_one();
    }

    /// What this router goes by while Postgres is away.
    pub fn outages(&self) -> &Outages {
        &self.outages
    }

    /// Delivers what a ticket names. An execution on Temporal is waited for; a rehearsal never delays the caller.
    pub async fn deliver(&self, ticket: Ticket) -> Accepted {
        let Ticket { mut accepted, delivery, .. } = ticket;
        if accepted.how == How::Repeated {
            return accepted;
        }
        self.wake_queue.notify_one();
        match (delivery, accepted.owner) {
            (Some(envelope), Side::Temporal) => match self.deliverer.deliver_now(&self.ledger, &envelope).await {
                Settled::Later | Settled::Away => accepted.how = How::Pending,
                Settled::Conflict => accepted.how = How::Conflict,
                Settled::Delivered | Settled::Done => {}
            },
            (Some(envelope), Side::Postgres) => self.deliverer.deliver_later(&self.ledger, *envelope),
            (None, Side::Temporal) => {
                // Something earlier of its series is undelivered: the relay keeps the chain's order.
                self.wake_relay.notify_one();
                accepted.how = How::Pending;
            }
            (None, Side::Postgres) => self.wake_relay.notify_one(),
        }
        accepted
    }

    /// Delivers what a ticket names behind the caller's back; the relay does what finds no room.
    fn deliver_later(&self, ticket: Ticket) {
        if ticket.accepted.how == How::Repeated {
            return;
        }
        self.wake_queue.notify_one();
        match (ticket.delivery, ticket.waits) {
            (Some(envelope), Some((series, mark))) => {
                let order = self.outages.order.clone();
                let delivered = move || order.delivered_of(series, mark);
                self.deliverer.deliver_later_and(&self.ledger, *envelope, delivered);
            }
            (Some(envelope), None) => self.deliverer.deliver_later(&self.ledger, *envelope),
            (None, _) => self.wake_relay.notify_one(),
        }
    }

    /// Begins a start of work in `off` without a pin, where that may be: Temporal only, no Postgres. An account is asked
    /// about once. It has begun before Postgres is asked, so that a barrier that comes between waits for it.
    async fn may_skip_the_pin(
        &self,
        interaction: &Interaction,
        hasty: bool,
    ) -> Result<Option<UnpinnedStart>, LedgerError> {
        let account = &interaction.account;
        if !self.doubts.have_room() {
            return Ok(None);
        }
        let Some(start) = self.armed.begin_unpinned(account, Unpinned::Off) else { return Ok(None) };
        // Members that others have pinned meanwhile go first; each second this router hears which series have any.
        let behind = interaction.series_id().is_some_and(|series| self.outages.order.is_known_to_wait(series));
        if self.armed.is_marked(account) {
            return Ok((!behind).then_some(start));
        }
        let (marked, waiting) = self.outages.ask(hasty, self.ask_unpinned(account)).await?;
        if marked && !waiting {
            self.armed.mark(&start);
        }
        Ok((marked && (!waiting || interaction.series.is_none())).then_some(start))
    }

    /// Whether the account may have unpinned work, and whether its series have copies that wait to be delivered.
    async fn ask_unpinned(&self, account: &str) -> Result<(bool, bool), LedgerError> {
        Ok((self.ledger.mark_unpinned(account).await?, self.ledger.series_undelivered(account).await?))
    }

    /// Starts without a pin. It goes on without its caller, for somebody may wait for its outcome.
    async fn start_unpinned(
        &self,
        interaction: &Interaction,
        mut start: UnpinnedStart,
    ) -> Result<Accepted, EnqueueError> {
        let envelope = envelope(interaction, None, Side::Temporal, 1);
        let accepted = |how| Accepted {
            id: envelope.id,
            key: interaction.key.clone(),
            owner: Side::Temporal,
            stage: Stage::Off,
            epoch: 1,
            pinned: false,
            how,
        };
        telemetry::join(&Span::current(), envelope.id);
        start.sent();
        let (deliverer, doubts, sent) = (self.deliverer.clone(), self.doubts.clone(), envelope.clone());
        let starting = async move {
            let answer = deliverer.start(&sent).await;
            match &answer {
                Err(DeliveryError::InDoubt(_)) => doubts.keep(sent, start),
                _ => start.settled(),
            }
            answer
        };
        let in_doubt = |reason| EnqueueError::InDoubt { reason, key: interaction.key.clone() };
        match tokio::spawn(starting.in_current_span()).await.map_err(|error| in_doubt(error.to_string()))? {
            Ok(Delivery::Started) => Ok(accepted(How::Created)),
            Ok(Delivery::AlreadyThere | Delivery::Ended { .. }) => Ok(accepted(How::Repeated)),
            Err(DeliveryError::OwnerConflict(_)) => Err(conflict(interaction, "payload")),
            Err(DeliveryError::Refused { reason, .. }) => Err(unavailable(interaction, reason)),
            Err(DeliveryError::InDoubt(reason)) => Err(in_doubt(reason)),
        }
    }

    /// Asks to cancel `id`. What waits on Postgres is decided here and now; what runs there hears of it with its worker's
    /// heartbeat, and what Temporal owns is told by the relay. None: it was never pinned.
    pub async fn cancel(&self, id: Uuid, reason: &str) -> Result<Option<Cancelling>, LedgerError> {
        if tasks::named_at(id).is_some() {
            return self.cancel_task(id, reason).await;
        }
        let answer = self.bounded(self.ledger.cancel(id, reason)).await?;
        if matches!(answer, Some(Cancelling::Cancelled | Cancelling::Asked)) {
            // The next of its series may be ready, and its Temporal copy is to be told.
            self.wake_queue.notify_one();
            self.wake_relay.notify_one();
        }
        Ok(answer)
    }

    /// Says what came of the parked attempt of `id`. What Postgres owns goes on here and now; what Temporal owns is told by
    /// the relay.
    pub async fn resolve(&self, id: Uuid, wish: &resolve::Wish, who: &str) -> Result<Resolving, LedgerError> {
        let answer = self.bounded(wish.ask(&self.ledger, id, who)).await?;
        self.wake_queue.notify_one();
        Ok(answer)
    }

    /// Where an interaction stands that was started without a pin: only Temporal knows. None: it doesn't either.
    pub async fn look_up_unpinned(&self, id: Uuid) -> Result<Option<&'static str>, DeliveryError> {
        self.deliverer.look_up(id).await
    }

    fn disturbed(&self, error: &LedgerError) {
        if is_outage(error) {
            self.deliverer.observer().disturbed(Side::Postgres, "pins fail");
        }
    }

    fn ticket(&self, interaction: &Interaction, pinned: Pinned) -> Result<Ticket, EnqueueError> {
        let Pinned { pin, created, direct, behind } = pinned;
        if pin.conflict.is_some() {
            return Err(conflict(interaction, "payload"));
        }
        if !created {
            if pin.payload_hash != interaction.payload.hash() {
                return Err(conflict(interaction, "payload"));
            }
            if pin.kind != interaction.kind {
                return Err(conflict(interaction, "kind"));
            }
        }
        let how = if created { How::Created } else { How::Repeated };
        let accepted = Accepted {
            id: pin.id,
            key: interaction.key.clone(),
            owner: pin.owner,
            stage: pin.stage,
            epoch: pin.epoch,
            pinned: true,
            how,
        };
        let direct = direct || faults::is(Whether::ExtraCopy, Side::Temporal, pin.id);
        let delivery = (created && direct).then(|| {
            let envelope = envelope(interaction, Some(&pin), pin.owner, pin.epoch);
            Box::new(Envelope { behind, ..envelope })
        });
        Ok(Ticket { accepted, delivery, waits: None })
    }
}

/// The envelope of an interaction, pinned or not.
fn envelope(interaction: &Interaction, pin: Option<&Pin>, owner: Side, epoch: i32) -> Envelope {
    let i = interaction;
    Envelope {
        id: i.id(),
        account: i.account.clone(),
        kind: i.kind.clone(),
        key: i.key.clone(),
        series: i.series.clone(),
        series_no: pin.and_then(|pin| pin.series_no),
        group: i.group.clone(),
        run_at: pin.map(|pin| pin.run_at).or(i.run_at),
        policy: i.policy.clone(),
        owner,
        epoch,
        pinned: pin.is_some(),
        cancelled: false,
        payload_hash: hex(&i.payload.hash()),
        behind: Vec::new(),
        payload: i.payload.clone(),
    }
}

fn valid(interaction: &Interaction, now: chrono::DateTime<chrono::Utc>) -> Result<(), EnqueueError> {
    match request::check(interaction, now) {
        faults if faults.is_empty() => Ok(()),
        faults => Err(EnqueueError::Invalid(faults)),
    }
}

fn conflict(interaction: &Interaction, what: &'static str) -> EnqueueError {
    EnqueueError::Conflict { account: interaction.account.clone(), key: interaction.key.clone(), what }
}

fn unavailable(interaction: &Interaction, reason: String) -> EnqueueError {
    EnqueueError::Unavailable { reason, key: interaction.key.clone() }
}

fn not_pinned(interaction: &Interaction, error: LedgerError) -> EnqueueError {
    match error {
        LedgerError::InDoubt(reason) => EnqueueError::InDoubt { reason, key: interaction.key.clone() },
        other => unavailable(interaction, other.to_string()),
    }
}
