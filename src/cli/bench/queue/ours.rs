//! Ours: the router's way in, the worker's way out, with handlers in this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use futures::future::try_join_all;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::ground::Ground;
use super::{Failure, Round};
use crate::app::{App, Roles, Servers};
use crate::executor::Handlers;
use crate::flags::DocumentBuilder;
use crate::interaction::{Interaction, Payload, Stage};
use crate::ledger::{Ledger, PinRequest};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::queue::tasks::{self, NewTask, Tasks};
use crate::queue::{Queue, Worker, WorkerOptions};

const KIND: &str = "noop";
const BATCH: usize = 1_000;
pub(super) const SLOTS: usize = 2_000;
/// Nothing takes longer than this, or the measurement is broken.
const PATIENCE: Duration = Duration::from_secs(1_200);

/// Runs `tasks` that wait.
pub(super) async fn burn_down(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    fill(ground, 0..tasks).await?;
    ground.settle(&["crossover.tasks_ready", "crossover.tasks", "crossover.attempts"]).await?;
    until_run(ground, tasks, "crossover").await
}

/// The same in a group that may run 10,000 at once, and 100 of each account.
pub(super) async fn limited(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    sqlx::query("select crossover.set_group('default', '{\"max_running\": 10000, \"max_per_account\": 100}')")
        .execute(&ground.pool)
        .await?;
    fill(ground, 0..tasks).await?;
    ground.settle(&["crossover.gate", "crossover.tasks_ready", "crossover.tasks", "crossover.attempts"]).await?;
    let round = until_run(ground, tasks, "limited").await;
    sqlx::query("select crossover.unset_group('default')").execute(&ground.pool).await?;
    round
}

/// Runs the first 20,000 of `waiting`, or half of them.
pub(super) async fn first_of(ground: &Ground, waiting: u32, who: &'static str) -> Result<Round, Failure> {
    ground.sweep().await?;
    fill(ground, 0..waiting).await?;
    ground.settle(&["crossover.tasks_ready", "crossover.tasks", "crossover.attempts"]).await?;
    until_run(ground, waiting.min(20_000), who).await
}

/// Runs what is pinned, as work of accounts that migrate is.
pub(super) async fn pinned(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let ledger = Ledger::new(ground.pool.clone());
    for from in (0..tasks).step_by(16) {
        try_join_all((from..(from + 16).min(tasks)).map(|n| pin(&ledger, n))).await?;
    }
    ground.settle(&["crossover.ready", "crossover.pins", "crossover.payloads", "crossover.attempts"]).await?;
    until_run(ground, tasks, "pinned").await
}

async fn pin(ledger: &Ledger, n: u32) -> Result<(), Failure> {
    let interaction = Interaction { key: n.to_string(), key_made: false, ..interaction(n)? };
    let request =
        PinRequest { interaction: &interaction, stage: Stage::Complete, revision: "bench", grace: Duration::ZERO };
    ledger.pin(request).await?;
    Ok(())
}

/// A worker runs until `tasks` have ended.
async fn until_run(ground: &Ground, tasks: u32, who: &'static str) -> Result<Round, Failure> {
    let (before, run) = (ground.cost().await?, Arc::new(Run::default()));
    let (worker, stop) = (worker(ground, &run)?, CancellationToken::new());
    let began = Instant::now();
    let working = tokio::spawn(worker.run(stop.clone()));
    let took = tokio::time::timeout(PATIENCE, async {
        run.reached(tasks).await;
        while ended(ground).await? < i64::from(tasks) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok::<_, Failure>(began.elapsed())
    })
    .await??;
    let cost = ground.cost().await?.since(before);
    stop.cancel();
    working.await?;
    Ok(Round::of(who, tasks, took, cost))
}

async fn ended(ground: &Ground) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("select count(*) from crossover.attempts").fetch_one(&ground.pool).await?)
}

/// Puts `tasks` in, 1,000 at a time.
pub(super) async fn enqueue_batch(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (before, began) = (ground.cost().await?, Instant::now());
    tokio::try_join!(fill(ground, 0..tasks / 2), fill(ground, tasks / 2..tasks))?;
    let took = began.elapsed();
    Ok(Round::of("crossover", tasks, took, ground.cost().await?.since(before)))
}

async fn fill(ground: &Ground, range: std::ops::Range<u32>) -> Result<(), Failure> {
    let (queue, all): (Tasks, Vec<u32>) = (Tasks::new(ground.pool.clone()), range.collect());
    for batch in all.chunks(BATCH) {
        let tasks = batch.iter().map(|n| task(*n)).collect::<Result<Vec<_>, Failure>>()?;
        if queue.enqueue(&tasks).await?.len() != tasks.len() {
            return Err("tasks were not taken in".into());
        }
    }
    Ok(())
}

fn task(n: u32) -> Result<NewTask, Failure> {
    let Interaction { account, kind, payload, policy, .. } = interaction(n)?;
    Ok(NewTask {
        id: tasks::new_id(Utc::now()),
        account,
        kind,
        group: None,
        run_at: None,
        priority: 0,
        // Odd ones are those of groups with limits.
        vt: 2 * i64::from(n),
        flag_revision: "bench".to_owned(),
        policy,
        payload,
    })
}

pub(in super::super) fn interaction(n: u32) -> Result<Interaction, Failure> {
    Ok(Interaction {
        account: Ground::account(n),
        kind: KIND.to_owned(),
        key: uuid::Uuid::new_v4().to_string(),
        key_made: true,
        after: None,
        exclusive: None,
        payload: Payload::parse(Ground::payload(n))?,
        series: None,
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
    })
}

/// What the handlers have done.
#[derive(Default)]
struct Run {
    count: AtomicU32,
    wanted: AtomicU32,
    done: Notify,
}

impl Run {
    fn one(&self) {
        if self.count.fetch_add(1, Ordering::AcqRel) + 1 == self.wanted.load(Ordering::Acquire) {
            self.done.notify_one();
        }
    }

    async fn reached(&self, wanted: u32) {
        self.wanted.store(wanted, Ordering::Release);
        if self.count.load(Ordering::Acquire) < wanted {
            self.done.notified().await;
        }
    }
}

fn counted(run: &Arc<Run>) -> Handlers {
    let run = run.clone();
    Handlers::new().register(KIND, move |_: String, _| {
        run.one();
        std::future::ready(Ok(()))
    })
}

fn worker(ground: &Ground, run: &Arc<Run>) -> Result<Worker, Failure> {
    let options = WorkerOptions {
        slots: SLOTS,
        lease: Duration::from_secs(30),
        poll: Duration::from_millis(100),
        rehearsal_bound: Duration::from_secs(60),
        grace: Duration::from_secs(5),
    };
    let queue = Queue::new(ground.pool.clone());
    Ok(Worker::new(queue, Arc::new(counted(run)), options, Arc::new(Metrics::new()?), Arc::default()))
}

/// A router of a process whose accounts are all in complete.
pub(in super::super) async fn router(ground: &Ground) -> Result<App, Failure> {
    app(ground, Roles { router: true, worker: false, relay: false }, Handlers::new()).await
}

/// A process that takes work in and runs it, as a program does that has the queue inside.
async fn whole(ground: &Ground, handlers: Handlers) -> Result<App, Failure> {
    app(ground, Roles { router: true, worker: true, relay: false }, handlers).await
}

async fn app(ground: &Ground, roles: Roles, handlers: Handlers) -> Result<App, Failure> {
    let flags = DocumentBuilder::default().everybody(Stage::Complete).build();
    flags
        .map_err(|faults| format!("the bench's flags are not right: {faults:?}"))?
        .write_to(&ground.config.flags.file)?;
    let servers = Servers {
        postgres_url: ground.url.clone(),
        // Nothing of what is measured goes there.
        temporal_address: "127.0.0.1:9".to_owned(),
        postgres: None,
        #[cfg(feature = "temporal")]
        temporal: None,
    };
    Ok(App::start_with(&ground.config, roles, servers, handlers).await?)
}

/// What is measured is what tasks cost, and not pins.
async fn none_was_pinned(ground: &Ground) -> Result<(), Failure> {
    let pins: i64 = sqlx::query_scalar("select count(*) from crossover.pins").fetch_one(&ground.pool).await?;
    if pins > 0 { Err(format!("{pins} were pinned that should have been tasks").into()) } else { Ok(()) }
}

/// Puts `tasks` in one by one from many callers, while a worker runs them.
pub(super) async fn enqueue(ground: &Ground, tasks: u32, callers: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let run = Arc::new(Run::default());
    let app = whole(ground, counted(&run)).await?;
    let router = app.router().ok_or("a process without a router")?.clone();
    let (before, began, each) = (ground.cost().await?, Instant::now(), tasks / callers);
    let calls = (0..callers).map(|caller| {
        let router = router.clone();
        async move {
            let mut times = Vec::with_capacity(each as usize);
            for n in 0..each {
                let interaction = interaction(caller * each + n)?;
                let began = Instant::now();
                router.enqueue(&interaction).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Failure>(times)
        }
    });
    let calls = calls.map(|call| async { tokio::spawn(call).await? });
    let times = try_join_all(calls).await?;
    let took = began.elapsed();
    tokio::time::timeout(PATIENCE, run.reached(each * callers)).await?;
    let cost = ground.cost().await?.since(before);
    none_was_pinned(ground).await?;
    drop(router);
    app.stop().await;
    Ok(Round::of("crossover", each * callers, took, cost).timed(times.into_iter().flatten().collect()))
}

/// From the call that puts a task in to the begin of its handler, one at a time.
pub(super) async fn latency(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let handlers = Handlers::new().register(KIND, move |_: String, _| {
        let _ = begun.send(Instant::now());
        std::future::ready(Ok(()))
    });
    let app = whole(ground, handlers).await?;
    let router = app.router().ok_or("a process without a router")?;
    let (before, began) = (ground.cost().await?, Instant::now());
    let mut times = Vec::with_capacity(tasks as usize);
    for n in 0..tasks {
        let interaction = interaction(n)?;
        let began = Instant::now();
        router.enqueue(&interaction).await?;
        let begun = tokio::time::timeout(Duration::from_secs(30), begins.recv()).await?.ok_or("the worker ended")?;
        times.push(begun.saturating_duration_since(began));
    }
    let took = began.elapsed();
    let cost = ground.cost().await?.since(before);
    none_was_pinned(ground).await?;
    app.stop().await;
    Ok(Round::of("crossover", tasks, took, cost).timed(times))
}

/// Tasks at a steady pace, of which each is run at once; while a transaction is held open, if `held`. What is timed is the last
/// quarter, when most that is dead lies about.
pub(super) async fn steady(ground: &Ground, (tasks, rate): (u32, u32), held: bool) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (begun, mut begins) = mpsc::unbounded_channel();
    let handlers = Handlers::new().register(KIND, move |n: String, _| {
        let _ = begun.send((n, Instant::now()));
        std::future::ready(Ok(()))
    });
    let app = whole(ground, handlers).await?;
    let router = app.router().ok_or("a process without a router")?.clone();
    let mut holding = ground.pool.begin().await?;
    if held {
        sqlx::raw_sql("set transaction isolation level repeatable read; set local idle_in_transaction_session_timeout = 0; select txid_current()")
            .execute(&mut *holding)
            .await?;
    }
    let first_timed = tasks - tasks / 4;
    let pace = Duration::from_secs(1) / rate;
    let (began, mut sent, mut calls) = (Instant::now(), Vec::with_capacity(tasks as usize), tokio::task::JoinSet::new());
    let mut before = ground.cost().await?;
    for n in 0..tasks {
        tokio::time::sleep_until((began + pace * n).into()).await;
        if n == first_timed {
            before = ground.cost().await?;
        }
        let (router, interaction) = (router.clone(), interaction(n)?);
        sent.push(Instant::now());
        calls.spawn(async move { router.enqueue(&interaction).await.map(drop) });
        while let Some(called) = calls.try_join_next() {
            called??;
        }
    }
    while let Some(called) = calls.join_next().await {
        called??;
    }
    let mut times = Vec::with_capacity(tasks as usize / 4);
    let mut last = began;
    for _ in 0..tasks {
        let (n, begun) = tokio::time::timeout(PATIENCE, begins.recv()).await?.ok_or("the worker ended")?;
        let n: u32 = n.trim_start_matches('0').parse().unwrap_or(0);
        last = last.max(begun);
        if n >= first_timed {
            times.push(begun.saturating_duration_since(sent[n as usize]));
        }
    }
    let cost = ground.cost().await?.since(before);
    let took = last.saturating_duration_since(sent[first_timed as usize]);
    holding.rollback().await?;
    none_was_pinned(ground).await?;
    drop(router);
    app.stop().await;
    Ok(Round::of(if held { "held open" } else { "nothing held" }, tasks / 4, took, cost).timed(times))
}
