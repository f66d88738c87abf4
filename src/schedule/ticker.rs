//! Fires what is due. Every router has a ticker, and any number of them is safe.
//!
//! One transaction takes schedules that are due (what another ticker has is left out), pins their runs through the router,
//! and writes down when each is looked at next. Between any two lines the process may die, a person may change or delete the
//! schedule, the clock may jump: then all of that has happened or nothing, and a change comes before or after. Time is the
//! database's. Of what is found, a look takes on what one statement can do in time and leaves the rest; after one that came to
//! nothing, half as much, so that neither a long backlog nor one bad schedule holds up the others for ever.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{PgPool, Postgres, Transaction};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use super::mirrors::Mirrors;
use super::plan::{Due, Overlap, Plan};
use super::storage::{RunRow, Schedules, Settled, Taken};
use super::times::{Spec, Times, jittered};
use crate::executor::clean;
use crate::interaction::{Interaction, Side};
use crate::ledger::{LedgerError, is_contention, is_outage};
use crate::metrics::Metrics;
use crate::router::request::Fault;
use crate::router::{EnqueueError, Router, Ticket};

/// How the ticker looks.
#[derive(Debug, Clone, Copy)]
pub struct TickerOptions {
    /// How often it looks where nothing is known to be due.
    pub poll: Duration,
    /// Schedules in one look.
    pub batch: i32,
    /// Looks under way at once.
    pub parallel: usize,
    /// What became of times is kept so long.
    pub keep: Duration,
}

/// Fires schedules.
pub struct Ticker {
    pub(super) schedules: Schedules,
    pub(super) mirrors: Mirrors,
    pub(super) router: Arc<Router>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) off_plan: Seldom,
    options: TickerOptions,
}

/// For what is worth a line in the log now and then.
#[derive(Default)]
pub(super) struct Seldom(Mutex<Option<Instant>>);

impl Seldom {
    /// Whether so long has passed since it last was.
    pub(super) fn is_time(&self, every: Duration) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = last.is_none_or(|last| last.elapsed() >= every);
        if is_time {
            *last = Some(Instant::now());
        }
        is_time
    }
}

/// What was overtaken or not had is looked at again after so long, at the soonest.
const BREATH: Duration = Duration::from_millis(50);
/// A look takes no longer; its transaction is given up then.
const LOOK: Duration = Duration::from_secs(20);
/// Runs that one look enqueues at most; all of them are pinned by one statement.
const MOST_RUNS: usize = 500;
/// Bytes of payloads in one look, of what is taken and of its runs; one run may be larger.
const MOST_BYTES: usize = 8 << 20;
/// After `stop`, so long for a look under way.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Specs that are kept read.
const MOST_READ: usize = 20_000;
/// Rows that are forgotten in one statement.
const FORGOTTEN: i32 = 5_000;

/// Specs that were read before.
pub(super) type Read = HashMap<Spec, Times>;

/// Why a look came to nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the look took longer than {LOOK:?}")]
    Late,
    #[error("the schedule can't be fired for now: {0}")]
    PutOff(String),
}

/// How much one look takes on.
#[derive(Debug, Clone, Copy)]
struct Load {
    schedules: i32,
    runs: usize,
}

impl Load {
    fn halved(self) -> Self {
        Self { schedules: (self.schedules / 2).max(1), runs: (self.runs / 2).max(1) }
    }

    fn doubled(self, most: Self) -> Self {
        let schedules = self.schedules.saturating_mul(2).min(most.schedules);
        Self { schedules, runs: (self.runs * 2).min(most.runs) }
    }
}

/// What came of a look.
#[derive(Default)]
pub(super) struct Looked {
    /// How many schedules were found.
    pub(super) found: usize,
    /// Those whose last runs are to be cancelled.
    pub(super) cancel: Vec<Taken>,
    /// Something of them is due now, and was left for another look.
    pub(super) more: bool,
    /// Why one of them can't be fired for now.
    pub(super) put_off: Option<String>,
}

/// What one look does, once its plans are made.
#[derive(Default)]
struct Look {
    runs: Vec<Interaction>,
    /// Whose each run is, and when it was due.
    of: Vec<(usize, Due, DateTime<Utc>)>,
    plans: Vec<Plan>,
    /// The time after now: where a run was refused whose end the next one would have counted from.
    otherwise: Vec<Option<DateTime<Utc>>>,
}

impl Ticker {
    /// A ticker of the schedules behind a pool, that enqueues through `router`, and hears its bell.
    pub fn new(pool: PgPool, router: Arc<Router>, metrics: Arc<Metrics>, options: TickerOptions) -> Self {
        let (schedules, mirrors) = (Schedules::new(pool.clone()), Mirrors::new(pool));
        Self { schedules, mirrors, router, metrics, off_plan: Seldom::default(), options }
    }

    /// Fires until `stop`. A look under way may finish, for a moment; what is cut off then has not happened.
    pub async fn run(self, stop: CancellationToken) {
        let cut_off = async {
            stop.cancelled().await;
            tokio::time::sleep(LAST_WORDS).await;
        };
        let looks = (0..self.options.parallel).map(|n| self.look_again_and_again(n, &stop));
        tokio::select! {
            _ = futures::future::join(futures::future::join_all(looks), self.forget(&stop)) => {}
            () = cut_off => {}
        }
        info!("schedules are no longer fired here");
    }

    async fn look_again_and_again(&self, n: usize, stop: &CancellationToken) {
        let mut read = Read::new();
        let mut wait = Duration::ZERO;
        let most = Load { schedules: self.options.batch.max(1), runs: MOST_RUNS };
        let mut load = most;
        while !stop.is_cancelled() {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                // The first of them is enough: who finds much to do leaves the rest to the others.
                () = self.router.schedules_bell().notified(), if n == 0 => {}
            }
            let mut taken = Vec::new();
            let looked = tokio::time::timeout(LOOK, self.look(load, &mut read, &mut taken)).await;
            wait = match looked.unwrap_or(Err(Lost::Late)) {
                Ok(Looked { found: 0, .. }) => self.until_next().await,
                Ok(looked) => {
                    load = load.doubled(most);
                    for taken in &looked.cancel {
                        self.cancel(taken).await;
                    }
                    Duration::ZERO
                }
                Err(error) => {
                    self.metrics.schedules.errors.inc();
                    warn!(%error, ?load, "due schedules can't be fired; trying again");
                    // Whatever it looks like, it may be for what was taken: the next look would take the same.
                    if let [alone] = taken.as_slice() {
                        self.postpone(*alone, &error).await;
                    }
                    if !taken.is_empty() {
                        load = load.halved();
                    }
                    if error.is_outage() { self.options.poll.max(BREATH) } else { BREATH }
                }
            };
        }
    }

    /// How long to sleep where nothing was found.
    async fn until_next(&self) -> Duration {
        match self.schedules.next_in().await {
            // Somebody else is at it.
            Ok(Some(Duration::ZERO)) => BREATH,
            Ok(next) => next.unwrap_or(self.options.poll).min(self.options.poll),
            Err(_) => self.options.poll,
        }
    }

    /// One look. What it takes on is told in `held` before anything is done with it.
    async fn look(&self, load: Load, read: &mut Read, held: &mut Vec<Uuid>) -> Result<Looked, Lost> {
        let mut transaction = self.schedules.begin().await?;
        let found = self.schedules.take(&mut transaction, load.schedules, MOST_BYTES as i64).await?;
        if found.is_empty() {
            return Ok(Looked::default());
        }
        self.fire(transaction, found, load.runs, read, held, Side::Postgres).await
    }

    /// Does what the plans of what was taken say, and commits; `by`: whose scheduler came with it.
    pub(super) async fn fire(
        &self,
        mut transaction: Transaction<'static, Postgres>,
        found: Vec<Result<Taken, (Uuid, String)>>,
        runs: usize,
        read: &mut Read,
        held: &mut Vec<Uuid>,
        by: Side,
    ) -> Result<Looked, Lost> {
        let count = found.len();
        let (taken, mut troubled): (Vec<Taken>, Vec<(Uuid, String)>) =
            found.into_iter().fold((Vec::new(), Vec::new()), |(mut taken, mut troubled), found| {
                match found {
                    Ok(found) => taken.push(found),
                    Err(trouble) => troubled.push(trouble),
                }
                (taken, troubled)
            });
        let taken = self.within_caps(taken, &mut troubled);
        let (taken, look) = Look::of(taken, runs, read, &mut troubled);
        held.extend(taken.iter().map(|taken| taken.schedule.id));
        let pinned = self.router.pin_runs(&mut transaction, &look.runs).await?;
        let (settled, rows, tickets) = outcome(&taken, &look, pinned, by);
        self.schedules.settle(&mut transaction, &settled, &rows).await?;
        if !troubled.is_empty() {
            self.schedules.postpone(&mut transaction, &troubled).await?;
        }
        transaction.commit().await.map_err(LedgerError::from)?;
        self.router.deliver_runs(tickets);
        self.count(&rows, &look, &taken);
        troubled.iter().for_each(|(id, why)| self.told(*id, why));
        let left = |(taken, plan): (&Taken, &Plan)| plan.wake_at.is_some_and(|wake_at| wake_at <= taken.now);
        let more = taken.iter().zip(&look.plans).any(left);
        let cancel = taken.into_iter().zip(&look.plans).filter(|(_, plan)| plan.cancel).map(|(taken, _)| taken);
        let put_off = troubled.pop().map(|(_, why)| why);
        Ok(Looked { found: count, cancel: cancel.collect(), more, put_off })
    }

    /// Leaves out schedules whose group takes no more: they are looked at again later, and what of their times is then still run is
    /// what `catch_up` says, as after an outage.
    fn within_caps(&self, taken: Vec<Taken>, troubled: &mut Vec<(Uuid, String)>) -> Vec<Taken> {
        let mut within = Vec::with_capacity(taken.len());
        for taken in taken {
            let definition = &taken.schedule.definition;
            match self.router.put_off(&definition.account, &definition.kind, definition.group.as_deref()) {
                Some(why) => troubled.push((taken.schedule.id, why)),
                None => within.push(taken),
            }
        }
        within
    }

    /// Cancels what a later run takes the place of. What can't be cancelled now is tried again with the next look.
    pub(super) async fn cancel(&self, taken: &Taken) {
        for id in &taken.uncancelled {
            let reason =
                format!("the next run of schedule `{}` takes its place", clean(&taken.schedule.definition.name));
            if let Err(error) = self.router.cancel(*id, &reason).await {
                self.metrics.schedules.errors.inc();
                warn!(%error, %id, schedule = %taken.schedule.id, "the last run can't be cancelled; trying again");
            }
        }
    }

    /// What Postgres refuses alone is looked at later.
    async fn postpone(&self, id: Uuid, error: &Lost) {
        let trouble = clean(&error.to_string());
        match self.schedules.postpone_one(id, &trouble).await {
            Ok(()) => self.told(id, &trouble),
            Err(error) => warn!(%error, %id, "a schedule that can't be fired can't be put off either; trying again"),
        }
    }

    fn told(&self, id: Uuid, trouble: &str) {
        warn!(schedule = %id, trouble, "a schedule can't be fired; it is tried again, later each time");
        self.metrics.schedules.failed.with_label_values(&["postponed"]).inc();
    }

    fn count(&self, rows: &[RunRow], look: &Look, taken: &[Taken]) {
        let metrics = &self.metrics.schedules;
        for row in rows {
            match (row.outcome.as_str(), row.reason.as_deref()) {
                ("skipped", Some(reason)) => {
                    metrics.skipped.with_label_values(&[reason]).inc_by(row.times.unsigned_abs())
                }
                ("failed", _) => metrics.failed.with_label_values(&["refused"]).inc(),
                _ => {
                    let how = if row.nominal_at.is_some() { "schedule" } else { "trigger" };
                    metrics.fired.with_label_values(&[how]).inc();
                }
            }
        }
        for (of, due, at) in &look.of {
            if matches!(due, Due::Time(_)) {
                let late = (taken[*of].now - *at).num_milliseconds().max(0);
                metrics.late_seconds.observe(late as f64 / 1_000.0);
            }
        }
    }

    /// Forgets what became of times long ago, each minute.
    async fn forget(&self, stop: &CancellationToken) {
        let mut tick = tokio::time::interval(Duration::from_secs(60));
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(tick.tick()).await.is_some() {
            loop {
                match self.schedules.forget_runs(self.options.keep, FORGOTTEN).await {
                    Ok(forgotten) if forgotten >= FORGOTTEN.into() && !stop.is_cancelled() => {}
                    Ok(_) => break,
                    Err(error) => {
                        self.metrics.schedules.errors.inc();
                        warn!(%error, "what became of schedules' times can't be forgotten; it stays for another minute");
                        break;
                    }
                }
            }
        }
    }
}

impl Lost {
    /// Whether it says something of Postgres, and nothing of what was taken.
    fn is_outage(&self) -> bool {
        matches!(self, Lost::Ledger(error) if is_outage(error) && !is_contention(error))
    }
}

impl Look {
    /// Plans what was taken, longest due first, up to `most` runs and their bytes: the rest stays as it is, for the next look.
    /// A schedule that can't be planned goes to the troubled ones.
    fn of(taken: Vec<Taken>, most: usize, read: &mut Read, troubled: &mut Vec<(Uuid, String)>) -> (Vec<Taken>, Self) {
        let (mut look, mut planned, mut bytes) = (Self::default(), Vec::with_capacity(taken.len()), MOST_BYTES);
        for taken in taken {
            let (id, definition) = (taken.schedule.id, &taken.schedule.definition);
            let size = definition.payload.get().len().max(1);
            let room = (most - look.runs.len()).min(bytes / size);
            if room == 0 && !look.runs.is_empty() {
                break;
            }
            // It was checked when it came; another version of this program may read it differently.
            let drafted = catch_unwind(AssertUnwindSafe(|| {
                times_of(&definition.spec, read).map(|times| draft(&taken, &times, room.max(1)))
            }));
            match drafted
                .unwrap_or_else(|_| Err("its plan panics, which is a fault of ours; the log says where".to_owned()))
            {
                Ok((plan, runs, otherwise)) => {
                    bytes = bytes.saturating_sub(size * runs.len());
                    for (run, due, at) in runs {
                        look.runs.push(run);
                        look.of.push((planned.len(), due, at));
                    }
                    look.otherwise.push(otherwise);
                    look.plans.push(plan);
                    planned.push(taken);
                }
                Err(why) => troubled.push((id, why)),
            }
        }
        (planned, look)
    }
}

/// A schedule's plan of at most `most` runs, these with what they are for and when they were due, and the time after now where
/// a refusal needs it.
type Draft = (Plan, Vec<(Interaction, Due, DateTime<Utc>)>, Option<DateTime<Utc>>);

fn draft(taken: &Taken, times: &Times, most: usize) -> Draft {
    let (schedule, definition) = (&taken.schedule, &taken.schedule.definition);
    let (plan, jitter) = (taken.standing(times, most).plan(), TimeDelta::milliseconds(definition.jitter_ms));
    let run = |due: &Due| match due {
        Due::Time(nominal) => {
            (definition.run(schedule.id, *nominal), due.clone(), jittered(schedule.id, *nominal, jitter))
        }
        Due::Trigger(token) => (definition.triggered(schedule.id, token), due.clone(), taken.now),
    };
    let runs = plan.runs.iter().map(run).collect();
    let otherwise = (definition.overlap == Overlap::AfterLast).then(|| times.after(taken.now)).flatten();
    (plan, runs, otherwise)
}

pub(super) fn times_of(spec: &Spec, read: &mut Read) -> Result<Times, String> {
    if let Some(times) = read.get(spec) {
        return Ok(times.clone());
    }
    if read.len() >= MOST_READ {
        read.clear();
    }
    let told =
        |faults: Vec<Fault>| faults.iter().map(|f| format!("{} {}", f.field, f.message)).collect::<Vec<_>>().join("; ");
    let times = spec.read().map_err(told)?;
    read.insert(spec.clone(), times.clone());
    Ok(times)
}

/// What became of what was taken: how it stands, what is told of its times, and what is to be delivered.
fn outcome(
    taken: &[Taken],
    look: &Look,
    pinned: Vec<Result<Ticket, EnqueueError>>,
    by: Side,
) -> (Vec<Settled>, Vec<RunRow>, Vec<Ticket>) {
    let settle = |(taken, plan): (&Taken, &Plan)| Settled {
        id: taken.schedule.id,
        wake_at: plan.wake_at,
        nominal_at: plan.nominal,
        last_nominal_at: None,
        last_run: None,
        unended: taken.unended.clone(),
        triggers: plan.triggers.clone(),
    };
    let mut settled: Vec<Settled> = taken.iter().zip(&look.plans).map(settle).collect();
    let skipped = |(taken, plan): (&Taken, &Plan)| {
        let id = taken.schedule.id;
        plan.skipped.iter().map(move |skipped| RunRow::skipped(id, skipped, Some(by))).collect::<Vec<_>>()
    };
    let mut rows: Vec<RunRow> = taken.iter().zip(&look.plans).flat_map(skipped).collect();
    let mut tickets = Vec::new();
    for (((n, due, _), run), answer) in look.of.iter().zip(&look.runs).zip(pinned) {
        let nominal = match due {
            Due::Time(nominal) => Some(*nominal),
            Due::Trigger(_) => None,
        };
        rows.push(row(settled[*n].id, nominal, run, &answer, by));
        let Ok(ticket) = answer else {
            if let Some(next) = look.otherwise[*n] {
                (settled[*n].nominal_at, settled[*n].wake_at) = (Some(next), Some(next));
            }
            continue;
        };
        settled[*n].last_nominal_at = nominal.or(settled[*n].last_nominal_at);
        settled[*n].last_run = Some(ticket.accepted.id);
        settled[*n].unended.push(ticket.accepted.id);
        tickets.push(ticket);
    }
    (settled, rows, tickets)
}

fn row(
    schedule_id: Uuid,
    nominal_at: Option<DateTime<Utc>>,
    run: &Interaction,
    answer: &Result<Ticket, EnqueueError>,
    by: Side,
) -> RunRow {
    let (outcome, reason, interaction) = match answer {
        Ok(ticket) => ("enqueued", None, Some(ticket.accepted.id)),
        Err(error) => ("failed", Some(clean(&error.to_string())), None),
    };
    let (outcome, key) = (outcome.to_owned(), Some(run.key.clone()));
    let ticked_by = Some(by.as_str().to_owned());
    RunRow {
        schedule_id,
        at: None,
        nominal_at,
        nominal_to: None,
        times: 1,
        outcome,
        reason,
        interaction,
        key,
        ticked_by,
        temporal_at: None,
    }
}
