//! A worker: claims what there is room for, runs it, reports the ends. Everything it holds is kept alive by one
//! heartbeat; what it loses it gives up at once.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use rand::RngExt;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, info, info_span, warn};
use uuid::Uuid;

use super::dependents::{self, Dependents};
use super::detach::{self, Taken};
use super::floor::Floor;
use super::gate::{self, Gate};
use super::groups::Groups;
use super::held::{Held, Key, Signals, Stop};
use super::kinds::{Chose, Kinds, Running, Walk};
use super::reach::Reach;
use super::storage::{Claim, Claimed, CopyPlace, Finish, Queue};
use super::tasks::{self, Place, TaskPlace, Tasks};
use super::turns::{self, Turns};
use super::{faulty, finisher, rehearsal, upkeep};
use crate::executor::{self, Answer, Call, Executor};
use crate::interaction::{Fence, Outcome, Side};
use crate::ledger::{LedgerError, is_outage};
use crate::metrics::Metrics;
use crate::observer::{Dequeue, Observer, Seen, Sighting};
use crate::policy::Doubt;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct WorkerOptions {
    /// So many at once.
    pub slots: usize,
    /// Without a heartbeat for so long, its work is taken over. It beats three times as often.
    pub lease: Duration,
    /// How often it looks when nothing woke it.
    pub poll: Duration,
    /// A rehearsal ends by itself so long after the run time-out of what it rehearses.
    pub rehearsal_bound: Duration,
    /// At shutdown, what runs may run on for so long.
    pub grace: Duration,
}

/// The Postgres side's worker.
pub struct Worker {
    shared: Shared,
    executor: Arc<dyn Executor>,
}

/// What the worker's parts share.
pub(super) struct Shared {
    pub id: Uuid,
    pub queue: Queue,
    pub tasks: Tasks,
    pub groups: Groups,
    pub options: WorkerOptions,
    pub held: Held,
    pub metrics: Arc<Metrics>,
    pub observer: Observer,
    /// Something may have become ready.
    pub wake: Arc<Notify>,
    /// A task may, and nothing else.
    pub wake_for_tasks: Arc<Notify>,
    /// Something has become ready that finds no room here.
    pub overflow: Arc<Notify>,
    /// A slot has become free.
    pub room: Notify,
    /// By the end of a copy: it may have made another one ready.
    pub copy_ended: AtomicBool,
    /// What runs of kinds that have capacities.
    pub kinds: Arc<Kinds>,
    /// Groups with limits.
    pub gate: Gate,
    /// How far its claims of tasks have come in virtual time.
    pub vt: AtomicI64,
    /// Whether anything waits for ends.
    pub dependents: Dependents,
    /// Whether anything excludes others.
    pub turns: Turns,
    /// When Postgres last did not answer this worker, or it began.
    pub trouble: Mutex<Instant>,
}

impl Worker {
    /// A worker of `queue`; `wake` is rung by whoever makes work ready in this process.
    pub fn new(
        queue: Queue,
        executor: Arc<dyn Executor>,
        options: WorkerOptions,
        metrics: Arc<Metrics>,
        wake: Arc<Notify>,
    ) -> Self {
        let held = Held::new(options.slots);
        let (id, room, observer, tasks) = (Uuid::new_v4(), Notify::new(), Observer::none(), queue.tasks());
        let (vt, trouble, overflow) = (AtomicI64::new(0), Mutex::new(Instant::now()), Arc::default());
        let kinds = Arc::default();
        let (groups, gate) = (queue.groups_with_limits(), Gate::default());
        let shared = Shared {
            id,
            queue,
            tasks,
            groups,
            options,
            held,
            metrics,
            observer,
            wake,
            overflow,
            room,
            copy_ended: AtomicBool::default(),
            wake_for_tasks: Arc::default(),
            gate,
            kinds,
            vt,
            dependents: Dependents::default(),
            turns: Turns::default(),
            trouble,
        };
        Self { shared, executor }
    }

    /// The same, and `bell` is rung where only tasks may have become ready.
    pub fn woken_for_tasks_by(mut self, bell: Arc<Notify>) -> Self {
        self.shared.wake_for_tasks = bell;
        self
    }

    /// The same, and `others` is rung when there is more to do than it has room for.
    pub fn overflowing(mut self, others: Arc<Notify>) -> Self {
        self.shared.overflow = others;
        self
    }

    /// The same, and `observer` sees what it does.
    pub fn seen_by(mut self, observer: Observer) -> Self {
        self.shared.observer = observer;
        self
    }

    /// Works until `stop`, then drains: claims nothing more, lets what runs end within the grace, hands rehearsals
    /// back, and reports every end.
    pub async fn run(self, stop: CancellationToken) {
        let shared = Arc::new(self.shared);
        info!(worker = %shared.id, slots = shared.options.slots, "the Postgres worker works");
        let (ends, receiver) = mpsc::channel(shared.options.slots * 2);
        let beating = CancellationToken::new();
        let (parts, running, finishing) = (TaskTracker::new(), TaskTracker::new(), TaskTracker::new());
        finishing.spawn(finisher::run(shared.clone(), receiver));
        finishing.spawn(beat(shared.clone(), beating.clone()));
        finishing.spawn(tasks::beat(shared.clone(), beating.clone()));
        parts.spawn(rehearsal::run(shared.clone(), ends.clone(), stop.clone()));
        parts.spawn(upkeep::promote(shared.clone(), stop.clone()));
        parts.spawn(upkeep::take_over(shared.clone(), stop.clone()));
        parts.spawn(dependents::settle(shared.clone(), stop.clone()));
        parts.spawn(dependents::find_overlooked(shared.clone(), stop.clone()));
        parts.spawn(turns::give(shared.clone(), stop.clone()));
        parts.spawn(turns::find_overlooked(shared.clone(), stop.clone()));
        parts.spawn(gate::admit(shared.clone(), stop.clone()));
        parts.spawn(tasks::promote(shared.clone(), stop.clone()));
        parts.spawn(tasks::take_over(shared.clone(), stop.clone()));
        parts.spawn(tasks::tell_virtual_time(shared.clone(), stop.clone()));

        let (executor, running_here) = (self.executor, running.clone());
        let starting = Starting { shared: shared.clone(), executor, ends, running: running_here };
        let mut lost = claim_until(starting, &stop).await;

        let grace = shared.options.grace;
        parts.close();
        running.close();
        if tokio::time::timeout(grace, async { tokio::join!(parts.wait(), running.wait()) }).await.is_err() {
            let runs = shared.held.interrupt();
            warn!(runs, "the grace is over; what still runs is given up and will be run again");
        }
        beating.cancel();
        finishing.close();
        let last_words = async {
            running.wait().await;
            let (_, put_back, _) = tokio::join!(hand_back(&shared), lost.put_back_tasks(&shared), finishing.wait());
            if put_back.is_ok()
                && shared.held.tasks().is_empty()
                && let Err(error) = shared.tasks.leave(shared.id).await
            {
                warn!(%error, "the worker could not say goodbye; its lease ends by itself");
            }
        };
        if tokio::time::timeout(LAST_WORDS, last_words).await.is_err() {
            warn!(worker = %shared.id, "Postgres does not take the last ends; these attempts are run again");
        }
        info!(worker = %shared.id, "the Postgres worker has drained");
    }
}

/// A claim takes at most so many tasks, so that their ends come back while the next ones are claimed.
const TASKS: usize = 500;
/// The pause after a failed call.
const TROUBLE: Duration = Duration::from_millis(250);
/// At shutdown, Postgres has so long to take the last ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Puts back what this worker claimed and will not end: its rehearsals, and what a claim took that was cut off.
async fn hand_back(shared: &Shared) {
    let rehearsals: Vec<Claimed> = shared.held.rehearsals().into_iter().map(|r| r.claimed).collect();
    let handed_back: HashSet<Key> = rehearsals.iter().map(Claimed::key).collect();
    let ending: Vec<Key> = shared.held.keys().into_iter().filter(|key| !handed_back.contains(key)).collect();
    match shared.queue.release_unknown(shared.id, &ending).await {
        Ok(_) => rehearsals.iter().for_each(|r| shared.see((r.envelope.id, r.fence, true), Utc::now(), Seen::Released)),
        Err(error) => {
            shared.failed("release", &error);
            warn!(%error, "what is not ended here can't be handed back; it is taken over when its lease ends");
        }
    }
    handed_back.into_iter().for_each(|key| shared.held.drop(key));
}

/// Where what was claimed is started.
#[derive(Clone)]
pub(super) struct Starting {
    pub shared: Arc<Shared>,
    executor: Arc<dyn Executor>,
    ends: mpsc::Sender<Finish>,
    running: TaskTracker,
}

/// Claims until it is stopped. What a claim may have taken whose answer was lost is left to the caller.
async fn claim_until(starting: Starting, stop: &CancellationToken) -> Lost {
    let shared = &starting.shared;
    let mut pause = Duration::ZERO;
    let (mut lost, mut pace, mut walks) = (Lost::default(), Pace::default(), Walks::default());
    loop {
        let nap = pause.mul_f64(rand::rng().random_range(0.8..1.2));
        let mut rung = false;
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = shared.wake.notified() => {
                pace.ring();
                shared.gate.ring();
                shared.turns.ring();
                rung = true;
            }
            () = shared.gate.admitted.notified() => {
                pace.ring();
                rung = true;
            }
            // An end may have made the next of its series ready.
            () = shared.room.notified() => pace.copies.rung |= shared.copy_ended.swap(false, Ordering::Relaxed),
            // One more of its kind may begin.
            () = shared.kinds.freed.notified() => pace.ring(),
            // The last of them: while tasks flow it rings all the time.
            () = shared.wake_for_tasks.notified() => {
                pace.tasks.rung = true;
                shared.gate.ring();
                rung = true;
            }
            () = tokio::time::sleep(nap) => {}
        }
        if shared.held.room().limit == 0 {
            if rung {
                shared.overflow.notify_one();
            }
            pause = shared.options.poll;
            continue;
        }
        match stop.run_until_cancelled(lost.put_back(shared)).await {
            Some(Ok(())) => {}
            Some(Err(())) => {
                pause = TROUBLE.max(shared.options.poll);
                continue;
            }
            None => break,
        }
        // Both kinds may flow: each goes first in turn, and leaves the other half of the room.
        pace.turn = !pace.turn;
        for tasks in [pace.turn, !pace.turn] {
            let half = pace.copies.is_due() && pace.tasks.is_due();
            if tasks && pace.tasks.is_due() {
                // Not cut off: what a claim of tasks has taken is found again only by reading all that is ready.
                starting.claim_tasks(&mut lost, &mut pace.tasks, (half, &mut walks)).await;
            } else if !tasks && pace.copies.is_due() {
                let claim = starting.claim_copies(&mut lost, &mut pace.copies, (half, &mut walks.copies));
                let Some(()) = stop.run_until_cancelled(claim).await else { break };
            }
        }
        pause = pace.copies.pause().min(pace.tasks.pause());
    }
    lost
}

/// When to claim next of each kind. What flows is claimed in handfuls: a claim for every ring would be one for every task.
/// Who rings while a claim is on its way is heard by the next one.
#[derive(Default)]
struct Pace {
    copies: Next,
    tasks: Next,
    /// Tasks go first.
    turn: bool,
}

impl Pace {
    fn ring(&mut self) {
        (self.copies.rung, self.tasks.rung) = (true, true);
    }
}

/// Claims of one kind: at one instant if somebody has rung, and at a later one though nobody has.
#[derive(Default)]
struct Next {
    rung: bool,
    /// The last claim found all that it asked for.
    full: bool,
    times: Option<(Instant, Instant)>,
    claimed_at: Option<Instant>,
    /// What is owed to the lowest priority.
    floor: Floor,
}

/// What comes one by one is claimed at once, and what comes more often than that, so late.
const FEW: Duration = Duration::from_millis(1);
/// What flows, so late: there will be a handful.
const SEVERAL: Duration = Duration::from_millis(5);
/// So many in [`SEVERAL`] come one by one, and fewer than the second do not flow.
const ONE_BY_ONE: f64 = 4.0;
const HANDFUL: f64 = 10.0;

impl Next {
    fn is_due(&self) -> bool {
        self.pause().is_zero()
    }

    fn pause(&self) -> Duration {
        let at = self.times.map(|(rung, unasked)| if self.rung { rung } else { unasked });
        at.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
    }

    /// Also unasked, in so long at the latest.
    fn no_later(&mut self, than: Option<Duration>) {
        if let (Some(than), Some((_, unasked))) = (than, &mut self.times) {
            *unasked = (*unasked).min(Instant::now() + than.max(FEW));
        }
    }

    /// When to come again, having found so many that came since the last time.
    fn handful(&self, found: usize) -> Duration {
        let since = self.claimed_at.map_or(SEVERAL, |at| at.elapsed()).max(FEW / 4);
        let in_several = found as f64 * SEVERAL.as_secs_f64() / since.as_secs_f64();
        match in_several {
            ..ONE_BY_ONE => Duration::ZERO,
            ONE_BY_ONE..HANDFUL => FEW,
            _ => SEVERAL,
        }
    }

    fn after(&mut self, rung: Duration, unasked: Duration) {
        let now = Instant::now();
        (self.rung, self.times, self.claimed_at) = (false, Some((now + rung, now + unasked.max(rung))), Some(now));
    }
}

/// What came of a claim.
type Answered = Result<Vec<Claimed>, LedgerError>;

/// Where looks for kinds that have room stand.
#[derive(Default)]
struct Walks {
    copies: Walk<CopyPlace>,
    tasks: Walk<TaskPlace>,
    /// Where claims that choose no kinds go on.
    reach: Reach,
}

/// How far a claim has come in virtual time. Where it asked for a share of the lowest priority, what it had of that says nothing: it was
/// not the turn of its accounts, and those that have nothing waiting must not come behind them. Groups with limits have times of their own.
fn come_to(places: impl Iterator<Item = Place> + Clone, shared: bool) -> Option<i64> {
    let places = places.filter(|place| !place.of_a_group());
    let lowest = places.clone().map(|place| place.rank).max().filter(|_| shared);
    let first = places.clone().map(|place| place.rank).min();
    places.filter(|place| Some(place.rank) == first || Some(place.rank) != lowest).map(|place| place.vt).max()
}

/// What a claim whose answer was lost may have taken, which nobody here knows of.
#[derive(Default)]
struct Lost {
    copies: bool,
    tasks: bool,
}

impl Lost {
    /// Puts it back.
    async fn put_back(&mut self, shared: &Shared) -> Result<(), ()> {
        if self.copies {
            let copies = shared.queue.release_unknown(shared.id, &shared.held.keys()).await;
            let copies = copies.map_err(|error| Self::failed(shared, &error))?;
            info!(copies, "put back what a claim took whose answer was lost");
            self.copies = false;
        }
        self.put_back_tasks(shared).await
    }

    /// The tasks alone: at shutdown [`hand_back`] has the copies.
    async fn put_back_tasks(&mut self, shared: &Shared) -> Result<(), ()> {
        if self.tasks {
            let held: Vec<Key> = shared.held.tasks().into_iter().map(|held| (held.0, held.1)).collect();
            let tasks = shared.tasks.release_unknown(shared.id, &held).await;
            let tasks = tasks.map_err(|error| Self::failed(shared, &error))?;
            info!(tasks, "put back the tasks that a claim took whose answer was lost");
            self.tasks = false;
        }
        Ok(())
    }

    fn failed(shared: &Shared, error: &LedgerError) {
        shared.failed("release", error);
        warn!(%error, "what a lost claim took can't be put back yet");
    }
}

impl Starting {
    /// Claims copies of what is pinned, and begins them.
    async fn claim_copies(&self, lost: &mut Lost, next: &mut Next, (half, walk): (bool, &mut Walk<CopyPlace>)) {
        let shared = &self.shared;
        let room = shared.held.room();
        let limit = if half { room.limit.div_ceil(2) } else { room.limit };
        if limit == 0 {
            return;
        }
        let claim = Claim {
            worker: shared.id,
            limit: limit as i64,
            executions_only: room.executions_only,
            lease: shared.options.lease,
        };
        lost.copies = true;
        let low = next.floor.share(limit);
        let answer = match self.executor.has_capacities() {
            false => shared.claimed(shared.queue.claim_sharing(claim, low)).await,
            true => shared.claimed(self.copies_with_room(claim, low, walk)).await,
        };
        lost.copies = answer.is_err();
        self.start_all(answer, (limit, low), (next, walk.chose));
        next.no_later(walk.goes_on());
    }

    /// The same of tasks.
    async fn claim_tasks(&self, lost: &mut Lost, next: &mut Next, (half, walks): (bool, &mut Walks)) {
        let (shared, walk, reach) = (&self.shared, &mut walks.tasks, &mut walks.reach);
        let room = shared.held.room().limit;
        let limit = if half { room.div_ceil(2) } else { room }.min(TASKS);
        if limit == 0 {
            return;
        }
        let (began, by_kinds) = (Instant::now(), self.executor.has_capacities());
        // Groups with limits are claimed from the head, whatever was asked.
        let from = reach.from(began).filter(|_| !by_kinds && !shared.gate.is_needed());
        let low = next.floor.share(limit);
        // While all that is asked for is there, a second claim works while the first one's answer is read.
        let twice = next.full
            && limit == TASKS
            && room >= if half { 4 * TASKS } else { 2 * TASKS }
            && !by_kinds
            && from.is_none();
        let head = |low| shared.claimed(shared.tasks.claim_sharing(shared.id, limit, low));
        let answers = match &from {
            _ if by_kinds => [Some(shared.claimed(self.tasks_with_room(limit, low, walk)).await), None],
            Some(places) => self.claim_on(places, (limit, low)).await,
            None if twice => <[_; 2]>::from(tokio::join!(head(low), head(0))).map(Some),
            None => [Some(head(low).await), None],
        };
        let now = Instant::now();
        if let (None, [Some(Ok(claimed)), _]) = (&from, &answers)
            && !by_kinds
        {
            reach.looked(now.duration_since(began), claimed.len() * if twice { 2 } else { 1 }, now);
        }
        for (answer, low) in answers.into_iter().flatten().zip([low, 0]) {
            lost.tasks |= answer.is_err();
            let places = answer.iter().flatten().filter_map(|claimed| claimed.task);
            if let Some(vt) = come_to(places.clone(), low > 0) {
                shared.vt.fetch_max(vt, Ordering::Relaxed);
            }
            // The share of the lowest priority says nothing of how far that has come.
            let first = places.clone().map(|place| place.rank).min().filter(|_| low > 0);
            reach.found(places.filter(|place| first.is_none_or(|first| place.rank == first)), from.is_none(), now);
            self.start_all(answer, (limit, low), (next, walk.chose));
        }
        next.no_later(walk.goes_on());
    }

    /// Tasks from these places on, first of all what the lowest of these priorities is owed.
    async fn claim_on(&self, places: &[(i16, i64)], (limit, low): (usize, usize)) -> [Option<Answered>; 2] {
        let (shared, lowest) = (&self.shared, places.last().filter(|_| low > 0 && places.len() > 1));
        let claim = |limit, places| shared.claimed(shared.tasks.claim_from(shared.id, limit, places));
        let Some(lowest) = lowest else { return [Some(claim(limit, places).await), None] };
        match claim(low, std::slice::from_ref(lowest)).await {
            Ok(mut owed) => match claim(limit - owed.len().min(limit), places).await {
                Ok(rest) => {
                    owed.extend(rest);
                    [Some(Ok(owed)), None]
                }
                Err(error) => [Some(Ok(owed)), Some(Err(error))],
            },
            Err(error) => [Some(Err(error)), None],
        }
    }

    /// Copies whose kinds have room here; `low` of them are of the lowest priority that waits.
    async fn copies_with_room(
        &self,
        claim: Claim,
        low: usize,
        walk: &mut Walk<CopyPlace>,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let (shared, room) = (&self.shared, |kind: &str| self.shared.kinds.room(&*self.executor, kind));
        let look = |from, most| shared.queue.look_ahead(claim.executions_only, from, most);
        let chosen = walk.choose((claim.limit.unsigned_abs() as usize, low), room, look).await?;
        if chosen.is_empty() { Ok(Vec::new()) } else { shared.queue.claim_named(claim, &chosen).await }
    }

    /// The same of tasks.
    async fn tasks_with_room(
        &self,
        limit: usize,
        low: usize,
        walk: &mut Walk<TaskPlace>,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let (shared, room) = (&self.shared, |kind: &str| self.shared.kinds.room(&*self.executor, kind));
        let look = |from, most| shared.tasks.look_ahead(from, most);
        let chosen = walk.choose((limit, low), room, look).await?;
        if chosen.is_empty() { Ok(Vec::new()) } else { shared.tasks.claim_named(shared.id, &chosen).await }
    }

    fn start_all(
        &self,
        answer: Result<Vec<Claimed>, LedgerError>,
        (limit, low): (usize, usize),
        (next, chose): (&mut Next, Chose),
    ) {
        let poll = self.shared.options.poll;
        match answer {
            Ok(claimed) => {
                let full = claimed.len() == limit;
                next.full = full;
                let Chose { left, low } =
                    if self.executor.has_capacities() { chose } else { Chose { left: full, low } };
                next.floor.claimed(limit, low, claimed.len(), left);
                match full {
                    true => next.after(Duration::ZERO, Duration::ZERO),
                    false => next.after(next.handful(claimed.len()), poll),
                }
                match claimed.first().is_some_and(|first| first.task.is_some()) {
                    true => self.start_tasks(claimed),
                    false => claimed.into_iter().for_each(|c| self.start(c)),
                }
                if full && self.shared.held.room().limit == 0 {
                    self.shared.overflow.notify_one();
                }
            }
            Err(_) => {
                next.full = false;
                next.after(TROUBLE, poll);
            }
        }
    }
}

impl Starting {
    /// Begins an attempt: runs it, or holds it as a rehearsal.
    pub(super) fn start(&self, claimed: Claimed) {
        let Some(claimed) = faulty::begin(self, claimed) else { return };
        let shared = self.shared.clone();
        shared.metrics.dequeued(Side::Postgres, claimed.rehearsal, claimed.started_at - claimed.due_at);
        // Nothing of a task is ever compared.
        if claimed.task.is_none() {
            shared.observer.dequeued(Dequeue {
                envelope: &claimed.envelope,
                side: Side::Postgres,
                attempt: claimed.fence.attempt,
                rehearsal: claimed.rehearsal,
                due_at: claimed.due_at,
            });
        }
        if claimed.rehearsal && !overslept(&claimed) {
            return shared.held.rehearse(claimed);
        }
        let held = self.hold(&claimed);
        self.launch(claimed, held);
    }

    /// Begins tasks, beside whoever claimed them: the next claim is on its way meanwhile.
    fn start_tasks(&self, claimed: Vec<Claimed>) {
        let begun = claimed.into_iter().filter_map(|claimed| faulty::begin(self, claimed));
        // What is claimed is held at once, or it would be put back as what a lost claim took.
        let begun: Vec<_> = begun.map(|claimed| (self.hold(&claimed), claimed)).collect();
        let starting = self.clone();
        self.running.spawn(async move {
            for (held, claimed) in begun {
                starting.shared.metrics.dequeued(Side::Postgres, false, claimed.started_at - claimed.due_at);
                starting.launch(claimed, held);
            }
        });
    }

    /// Takes its slot, and its part of its kind's capacity.
    fn hold(&self, claimed: &Claimed) -> (Signals, Option<Running>) {
        let (shared, kind) = (&self.shared, &claimed.envelope.kind);
        if claimed.exclusive {
            shared.turns.expect();
        }
        let alone = claimed.exclusive || claimed.envelope.series.is_some();
        let signals = shared.held.execute(claimed.key(), alone, claimed.task);
        if let Some(wish) = &claimed.called_off {
            signals.call_off(wish);
        }
        (signals, self.executor.capacity(kind).map(|_| self.shared.kinds.begin(kind)))
    }

    /// Runs what is held.
    fn launch(&self, claimed: Claimed, (signals, of_its_kind): (Signals, Option<Running>)) {
        let (shared, id) = (self.shared.clone(), claimed.envelope.id);
        let (executor, ends) = (self.executor.clone(), self.ends.clone());
        let span = info_span!("execute", %id, account = claimed.envelope.account, kind = claimed.envelope.kind,
            side = "postgres", fence = %claimed.fence);
        crate::telemetry::join(&span, id);
        let work = async move {
            let _of_its_kind = of_its_kind;
            let ran = match signals.unless_told(execute(&*executor, &claimed)).await {
                Ok(ran) => ran,
                Err(Stop::Lost) => {
                    warn!("the lease was lost; the run is given up");
                    return;
                }
                Err(Stop::CalledOff) => Ok(called_off(&claimed, signals.wish())),
                Err(Stop::Interrupted) => Ok(finish_of(
                    &claimed,
                    Duration::ZERO,
                    Answer::unknown(
                        Doubt::Worker,
                        "its worker gave it up: it was shut down, or could not prolong its lease",
                    ),
                )),
            };
            let finish = match ran {
                Ok(finish) => finish,
                Err(taken) => match detach::give(&shared, &claimed, taken, &signals).await {
                    Some(finish) => finish,
                    None => return,
                },
            };
            shared.held.reported(finish.key());
            // The finisher outlives every sender, so this fails only when it has panicked; the lease then tells.
            let _ = ends.send(finish).await;
        };
        self.running.spawn(work.instrument(span));
    }
}

/// Its end, unless its runner takes it away.
async fn execute(executor: &dyn Executor, claimed: &Claimed) -> Result<Finish, Taken> {
    if overslept(claimed) {
        let error = Some("was due for longer than its start_timeout_ms before it could start".to_owned());
        return Ok(Finish { error, ..Finish::of(claimed, Some(Outcome::Expired)) });
    }
    let began = Instant::now();
    let call = Call::new(&claimed.envelope, Side::Postgres, claimed.fence.attempt);
    let answer = executor::run(executor, &call, &claimed.envelope.policy).await;
    match answer {
        Answer::Detached { silence } => Err(Taken { silence, took: began.elapsed() }),
        answer => Ok(finish_of(claimed, began.elapsed(), answer)),
    }
}

/// Somebody asked to cancel it: the call was dropped, or never made, and no attempt follows.
pub(super) fn called_off(claimed: &Claimed, wish: Option<&String>) -> Finish {
    let wish = wish.map_or("somebody asked to cancel it", String::as_str);
    let error = Some(crate::executor::clean(&format!("{wish}, while a worker had it")));
    Finish { error, ..Finish::of(claimed, Some(Outcome::Cancelled)) }
}

pub(super) fn overslept(claimed: &Claimed) -> bool {
    let waited = (claimed.started_at - claimed.due_at).to_std().unwrap_or_default();
    claimed.envelope.policy.start_timeout_ms.is_some_and(|ms| waited > Duration::from_millis(ms))
}

pub(super) fn finish_of(claimed: &Claimed, took: Duration, answer: Answer) -> Finish {
    match answer {
        Answer::Detached { .. } => finish_of(claimed, took, Answer::unknown(Doubt::Worker, "its runner took it away")),
        Answer::Done(result) => Finish { result: Some(result), ..Finish::of(claimed, Some(Outcome::Succeeded)) },
        Answer::Failed { failure, error } => Finish::failed(claimed, failure, error, claimed.age + took),
    }
}

/// Prolongs the leases of everything held, calls off what somebody asked to cancel, and gives up what another has taken
/// over meanwhile. While no heartbeat gets
/// through, what is not of a series runs on: should another take it over, its result is late. A member of a series, and what excludes
/// others, is given up as soon as its lease may have run out, because the next could start beside it.
async fn beat(shared: Arc<Shared>, stop: CancellationToken) {
    let lease = shared.options.lease;
    let mut tick = tokio::time::interval(lease / 3);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut alive = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let (sent, held) = (Instant::now(), shared.held.keys());
        let answer = match held.is_empty() {
            true => Ok(Vec::new()),
            // An answer that comes after the next beat was due is as good as none.
            false => tokio::time::timeout(lease / 3, shared.queue.heartbeat(shared.id, &held, lease))
                .await
                .unwrap_or_else(|_| Err(LedgerError::InDoubt("the heartbeat took too long".to_owned()))),
        };
        match answer {
            Ok(kept) => {
                alive = sent;
                for (key, wish) in
                    kept.iter().filter_map(|kept| Some(((kept.id, kept.attempt), kept.called_off.as_ref()?)))
                {
                    shared.held.call_off(key, wish);
                }
                let kept: HashSet<Key> = kept.into_iter().map(|kept| (kept.id, kept.attempt)).collect();
                held.into_iter().filter(|key| !kept.contains(key)).for_each(|key| shared.lost(key));
            }
            Err(error) => {
                shared.failed("heartbeat", &error);
                warn!(%error, "the heartbeat did not get through; leases run on");
                if alive.elapsed() + lease / 3 > lease {
                    let runs = shared.held.interrupt_alone();
                    if runs > 0 {
                        shared.metrics.lost_leases.inc_by(runs as u64);
                        warn!(
                            runs,
                            "members of series, and what excludes others, are given up: their leases may have run out"
                        );
                    }
                }
            }
        }
    }
}

impl Shared {
    /// Awaits a claim, measures it and counts its failure.
    async fn claimed(
        &self,
        claim: impl Future<Output = Result<Vec<Claimed>, LedgerError>>,
    ) -> Result<Vec<Claimed>, LedgerError> {
        let began = Instant::now();
        let answer = claim.await;
        match &answer {
            Ok(_) => self.metrics.claim_seconds.observe(began.elapsed().as_secs_f64()),
            Err(error) => {
                self.failed("claim", error);
                warn!(%error, "nothing can be claimed; trying again");
            }
        }
        answer
    }

    /// Ends attempts that `worker` holds, which are all copies or all tasks.
    pub(super) async fn finish(&self, worker: Uuid, ends: &[Finish]) -> Result<Vec<Uuid>, LedgerError> {
        match ends.first().is_some_and(|end| end.task.is_some()) {
            true => self.tasks.finish(worker, ends).await,
            false => self.queue.finish(worker, ends).await,
        }
    }

    /// Counts a failed call of the storage.
    pub(super) fn failed(&self, call: &'static str, error: &LedgerError) {
        self.metrics.queue_errors.with_label_values(&[call]).inc();
        if is_outage(error) {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            self.observer.disturbed(Side::Postgres, "the queue's storage does not answer");
        }
    }

    /// For how long Postgres has answered this worker.
    pub(super) fn calm(&self) -> Duration {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }

    /// Hands in what was seen of an attempt, `at` by this process's clock.
    pub(super) fn see(&self, (id, fence, rehearsal): (Uuid, Fence, bool), at: DateTime<Utc>, what: Seen) {
        self.observer.see(Sighting { id, side: Side::Postgres, fence, rehearsal, at, what });
    }

    pub(super) fn lost(&self, (id, attempt): Key) {
        if self.held.lose((id, attempt)) {
            self.metrics.lost_leases.inc();
            warn!(%id, attempt, "the lease is lost; whatever comes of this attempt is late");
            self.room.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_of_the_lowest_priority_does_not_move_virtual_time() {
        let places = [(-5, 10), (-5, 20), (5, 90_000)].map(|(rank, vt)| Place { rank, vt });
        assert_eq!(come_to(places.iter().copied(), true), Some(20));
        assert_eq!(come_to(places.iter().copied(), false), Some(90_000), "a claim that came so far by itself");
        assert_eq!(
            come_to(places[2..].iter().copied(), true),
            Some(90_000),
            "one priority is the first and the lowest"
        );
        assert_eq!(come_to([].into_iter(), true), None);
        let of_a_group = Place { rank: -5, vt: Place::in_group(70_000) };
        let both = places.into_iter().chain([of_a_group]);
        assert_eq!(come_to(both, true), Some(20), "which has a time of its own");
    }
}
