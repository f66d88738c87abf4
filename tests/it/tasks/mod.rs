//! Tasks on a real Postgres: what a claim takes, what an end writes, what becomes of a dead worker's work.

mod arrows;
#[cfg(feature = "temporal")]
mod faces;
mod groups;
mod kinds;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use chrono::Utc;
use crossover::executor::{Answer, Call, Executor, HandlerError, Handlers};
use crossover::interaction::{Fence, Interaction, Outcome, Payload, Stage};
use crossover::ledger::{self, Beat, Cancelling, Ending, Ledger, PinRequest, Report, Story};
use crossover::metrics::Metrics;
use crossover::policy::{Backoff, Failure, Listed, Policy};
use crossover::queue::tasks::{self, NewTask, Place, Tasks};
use crossover::queue::{Finish, Queue, Worker, WorkerOptions};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::servers;
use crate::wait::{PATIENCE, until};

/// A database of a test's own, with one account that is armed.
struct World {
    url: String,
    ledger: Ledger,
    tasks: Tasks,
    metrics: Arc<Metrics>,
}

const ACCOUNT: &str = "a";
/// Longer than anything waits on a busy machine.
const LEASE: Duration = Duration::from_millis(2_400);

impl World {
    async fn new() -> Self {
        let url = servers::database().await;
        let ledger = Ledger::new(ledger::pool(&url, 10, Duration::from_secs(10)).unwrap());
        ledger.migrate().await.unwrap();
        let (tasks, metrics) = (Tasks::new(ledger.pool().clone()), Arc::new(Metrics::new().unwrap()));
        let here = Self { url, ledger, tasks, metrics };
        here.arm(ACCOUNT).await;
        here
    }

    /// The first live pin of an account without a past arms it; it is ended at once.
    async fn arm(&self, account: &str) {
        let interaction = Interaction {
            account: account.to_owned(),
            kind: "k".to_owned(),
            key: "first".to_owned(),
            key_made: false,
            after: None,
            exclusive: None,
            payload: Payload::parse("1".to_owned()).unwrap(),
            series: None,
            group: None,
            run_at: None,
            priority: 0,
            policy: Policy::default(),
        };
        let grace = Duration::ZERO;
        let request = PinRequest { interaction: &interaction, stage: Stage::Complete, revision: "test", grace };
        let pinned = self.ledger.pin(request).await.unwrap();
        assert_eq!(pinned.pin.stage, Stage::Complete, "armed on the spot");
        assert_eq!(self.ledger.cancel(pinned.pin.id, "not needed").await.unwrap(), Some(Cancelling::Cancelled));
    }

    async fn enqueue(&self, task: NewTask) -> Uuid {
        assert_eq!(self.tasks.enqueue(std::slice::from_ref(&task)).await.unwrap(), [task.id]);
        task.id
    }

    fn worker(&self, handlers: Handlers) -> Working {
        self.worker_of(Arc::new(handlers))
    }

    fn worker_of(&self, executor: Arc<dyn Executor>) -> Working {
        let options = WorkerOptions {
            slots: 10,
            lease: LEASE,
            poll: Duration::from_millis(20),
            rehearsal_bound: Duration::from_secs(60),
            grace: Duration::from_secs(5),
        };
        let queue = Queue::new(self.ledger.pool().clone());
        let worker = Worker::new(queue, executor, options, self.metrics.clone(), Arc::new(Notify::new()));
        let stop = CancellationToken::new();
        Working { running: tokio::spawn(worker.run(stop.clone())), stop }
    }

    async fn story(&self, id: Uuid) -> Story {
        self.tasks.story(id).await.unwrap().expect("it is known")
    }

    async fn ended(&self, id: Uuid) -> Story {
        until("it has ended", async || Some(self.story(id).await).filter(|story| story.pin.outcome.is_some())).await
    }

    /// A worker that is nothing but its name, and holds a lease for as long as `lease`.
    async fn claimer(&self, lease: Duration) -> Uuid {
        let worker = Uuid::new_v4();
        self.tasks.beat(worker, &[], lease).await.unwrap();
        worker
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.ledger.pool()).await.unwrap()
    }
}

struct Working {
    running: JoinHandle<()>,
    stop: CancellationToken,
}

impl Working {
    async fn drain(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.running).await.expect("it drains").unwrap();
    }
}

fn task(payload: Value) -> NewTask {
    NewTask {
        id: tasks::new_id(Utc::now()),
        account: ACCOUNT.to_owned(),
        kind: "k".to_owned(),
        group: None,
        run_at: None,
        priority: 0,
        vt: 0,
        flag_revision: "test".to_owned(),
        policy: Policy::default(),
        payload: Payload::parse(payload.to_string()).unwrap(),
    }
}

fn echo() -> Handlers {
    Handlers::new().register("k", |payload: Value, _| async move { Ok(json!({ "got": payload })) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_runs_once_and_can_be_looked_up_with_its_result() {
    let here = World::new().await;
    let id = here.enqueue(task(json!({ "n": 1 }))).await;
    assert_eq!(here.story(id).await.state, "ready");
    let worker = here.worker(echo());
    let story = here.ended(id).await;
    worker.drain().await;
    assert_eq!((story.state.as_str(), story.attempts.len()), ("succeeded", 1));
    assert_eq!(story.attempts[0].result.as_ref().unwrap().get(), r#"{"got":{"n":1}}"#);
    assert_eq!(here.tasks.ended(&[id]).await.unwrap()[0].outcome, Outcome::Succeeded);
    assert_eq!(here.count("select count(*) from crossover.tasks_ready").await, 0);
    assert_eq!(
        here.count("select count(*) from crossover.workers where lease_until > now()").await,
        0,
        "who drained has said goodbye"
    );
}

#[tokio::test]
async fn nothing_is_taken_of_an_account_that_is_not_armed_and_nothing_twice() {
    let here = World::new().await;
    let (known, strange) = (task(json!(1)), NewTask { account: "stranger".to_owned(), ..task(json!(2)) });
    let both = [strange.clone(), known.clone()];
    assert_eq!(here.tasks.enqueue(&both).await.unwrap(), [known.id]);
    assert_eq!(here.tasks.enqueue(&both).await.unwrap(), [] as [Uuid; 0]);
    assert!(here.tasks.story(strange.id).await.unwrap().is_none());
    assert_eq!(here.count("select count(*) from crossover.tasks_ready").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_attempt_is_tried_again_under_the_next_fence_and_then_fails_for_good() {
    let here = World::new().await;
    let policy =
        Policy { max_attempts: 3, backoff: Backoff::Listed(Listed { delays_ms: vec![0, 30] }), ..Policy::default() };
    let id = here.enqueue(NewTask { policy, ..task(json!(1)) }).await;
    let failing = Handlers::new().register("k", |_: Value, call| async move {
        Err::<(), _>(HandlerError::retryable(format!("no luck under {}", call.fence)))
    });
    let worker = here.worker(failing);
    let story = here.ended(id).await;
    worker.drain().await;
    let words: Vec<&str> = story.attempts.iter().filter_map(|a| a.error.as_deref()).collect();
    assert_eq!(words, ["no luck under 1.1", "no luck under 1.2", "no luck under 1.3"]);
    assert_eq!((story.state.as_str(), story.pin.attempts), ("failed", 3));
    assert_eq!(story.attempts.iter().map(|a| a.retry_ms).collect::<Vec<_>>(), [Some(0), Some(30), None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_waits_for_its_time() {
    let here = World::new().await;
    let run_at = Utc::now() + chrono::TimeDelta::milliseconds(400);
    let id = here.enqueue(NewTask { run_at: Some(run_at), ..task(json!(1)) }).await;
    assert_eq!(here.story(id).await.state, "scheduled");
    let worker = here.worker(echo());
    let story = here.ended(id).await;
    worker.drain().await;
    assert!(story.attempts[0].started_at.timestamp_millis() >= run_at.timestamp_millis(), "{story:?}");
}

#[tokio::test]
async fn what_waits_is_cancelled_at_once_and_is_never_claimed() {
    let here = World::new().await;
    let later = NewTask { run_at: Some(Utc::now() + chrono::TimeDelta::days(1)), ..task(json!(2)) };
    let (ready, scheduled) = (here.enqueue(task(json!(1))).await, here.enqueue(later).await);
    for id in [ready, scheduled] {
        for _ in 0..2 {
            assert_eq!(here.tasks.cancel(id, "so be it").await.unwrap(), Some(Cancelling::Cancelled));
        }
        let story = here.story(id).await;
        assert_eq!((story.state.as_str(), story.pin.reason.as_deref()), ("cancelled", Some("so be it")));
    }
    let worker = here.claimer(LEASE).await;
    assert!(here.tasks.claim(worker, 10).await.unwrap().is_empty());
    assert_eq!(here.tasks.cancel(tasks::new_id(Utc::now()), "who?").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_hears_of_a_cancel_and_is_not_tried_again() {
    let here = World::new().await;
    let begun = Arc::new(Notify::new());
    let says = begun.clone();
    let endless = Handlers::new().register("k", move |_: Value, _| {
        says.notify_one();
        std::future::pending::<Result<(), HandlerError>>()
    });
    let id = here.enqueue(task(json!(1))).await;
    let worker = here.worker(endless);
    tokio::time::timeout(PATIENCE, begun.notified()).await.expect("it begins");
    assert_eq!(here.tasks.cancel(id, "enough").await.unwrap(), Some(Cancelling::Asked));
    let story = here.ended(id).await;
    worker.drain().await;
    assert_eq!((story.state.as_str(), story.attempts.len()), ("cancelled", 1));
    assert_eq!(here.tasks.cancel(id, "again").await.unwrap(), Some(Cancelling::Cancelled));
}

#[tokio::test]
async fn a_cancel_wins_over_the_retry_that_is_on_its_way() {
    let here = World::new().await;
    let id = here.enqueue(task(json!(1))).await;
    let worker = here.claimer(PATIENCE).await;
    let claimed = here.tasks.claim(worker, 1).await.unwrap().remove(0);
    assert_eq!(here.tasks.cancel(id, "enough").await.unwrap(), Some(Cancelling::Asked));
    let end = Finish { retry: Some(Duration::ZERO), ..Finish::of(&claimed, Some(Outcome::Failed)) };
    assert_eq!(here.tasks.finish(worker, &[end]).await.unwrap(), [id]);
    let story = here.story(id).await;
    assert_eq!((story.state.as_str(), story.pin.reason.as_deref()), ("cancelled", Some("enough")));
    assert_eq!(here.count("select count(*) from crossover.tasks_scheduled").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_workers_task_runs_again_and_its_late_result_is_refused() {
    let here = World::new().await;
    let policy = Policy { backoff: Backoff::Listed(Listed { delays_ms: vec![0] }), ..Policy::default() };
    let id = here.enqueue(NewTask { policy, ..task(json!(1)) }).await;
    let dead = here.claimer(LEASE).await;
    let late = here.tasks.claim(dead, 1).await.unwrap().remove(0);
    let worker = here.worker(echo());
    let story = here.ended(id).await;
    worker.drain().await;
    assert_eq!(
        story.attempts.iter().map(|a| a.outcome.unwrap()).collect::<Vec<_>>(),
        [Outcome::Failed, Outcome::Succeeded]
    );
    assert_eq!(story.attempts[1].fence.attempt, 2);
    assert!(here.tasks.finish(dead, &[Finish::of(&late, Some(Outcome::Succeeded))]).await.unwrap().is_empty());
    assert_eq!(here.story(id).await.attempts.len(), 2, "nothing of it is written");
    assert_eq!(here.metrics.taken_over.get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_given_up_gets_nothing_until_it_reports_and_then_holds_nothing_of_before() {
    let here = World::new().await;
    let id = here.enqueue(task(json!(1))).await;
    let stalled = here.claimer(LEASE).await;
    assert!(here.tasks.claim(Uuid::new_v4(), 1).await.unwrap().is_empty(), "who never reported gets nothing");
    let held = here.tasks.claim(stalled, 1).await.unwrap().remove(0);
    let reaper = here.claimer(PATIENCE).await;
    let taken = until("it is taken over", async || {
        Some(here.tasks.take_over(reaper, 10, LEASE).await.unwrap()).filter(|taken| !taken.is_empty())
    })
    .await;
    assert_eq!((taken[0].envelope.id, taken[0].fence.attempt), (id, 1));
    here.enqueue(task(json!(2))).await;
    assert!(here.tasks.claim(stalled, 1).await.unwrap().is_empty());
    let key = (id, held.fence.attempt, held.task.unwrap());
    assert!(here.tasks.beat(stalled, &[key], LEASE).await.unwrap().kept.is_empty());
    assert_eq!(here.tasks.claim(stalled, 1).await.unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_claim_at_once_share_no_task_and_leave_none() {
    const TASKS: usize = 2_000;
    let here = World::new().await;
    let all: Vec<NewTask> = (0..TASKS).map(|n| NewTask { vt: n as i64, ..task(json!(n)) }).collect();
    for batch in all.chunks(500) {
        here.tasks.enqueue(batch).await.unwrap();
    }
    let claims = (0..6).map(|_| async {
        let (worker, mut mine) = (here.claimer(PATIENCE).await, Vec::new());
        loop {
            let claimed = here.tasks.claim(worker, 37).await.unwrap();
            if claimed.is_empty() {
                return mine;
            }
            let ends: Vec<Finish> = claimed.iter().map(|c| Finish::of(c, Some(Outcome::Succeeded))).collect();
            assert_eq!(here.tasks.finish(worker, &ends).await.unwrap().len(), claimed.len());
            mine.extend(claimed.into_iter().map(|c| c.envelope.id));
        }
    });
    let mut taken = futures::future::join_all(claims).await.concat();
    taken.sort();
    let mut wanted: Vec<Uuid> = all.iter().map(|task| task.id).collect();
    wanted.sort();
    assert_eq!(taken, wanted);
}

#[tokio::test]
async fn what_a_statement_reads_does_not_grow_with_what_is_ready_though_its_plan_is_older() {
    const WAITING: i64 = 3_000;
    let here = World::new().await;
    // One connection, whose plans are made while there is nothing.
    let pool = ledger::pool(&here.url, 1, PATIENCE).unwrap();
    sqlx::raw_sql("vacuum analyze crossover.tasks_ready").execute(&pool).await.unwrap();
    let (tasks, worker) = (Tasks::new(pool.clone()), here.claimer(PATIENCE).await);
    let run = async |count: usize| {
        let claimed = tasks.claim(worker, count).await.unwrap();
        let ends: Vec<Finish> = claimed.iter().map(|c| Finish::of(c, Some(Outcome::Succeeded))).collect();
        assert_eq!(tasks.finish(worker, &ends).await.unwrap().len(), count);
    };
    for n in 0..10 {
        tasks.enqueue(&[NewTask { vt: n, ..task(json!(n)) }]).await.unwrap();
        run(1).await;
    }
    let all: Vec<NewTask> = (0..WAITING).map(|n| NewTask { vt: n, ..task(json!(n)) }).collect();
    tasks.enqueue(&all).await.unwrap();
    let read = async || -> i64 {
        // What this connection has read so far, told at once.
        let read = "select pg_stat_force_next_flush(), pg_stat_clear_snapshot();
            select 1";
        sqlx::raw_sql(read).execute(&pool).await.unwrap();
        let read = "select seq_tup_read + idx_tup_fetch from pg_stat_user_tables where relid = 'crossover.tasks_ready'::regclass";
        sqlx::query_scalar(read).fetch_one(&pool).await.unwrap()
    };
    let before = read().await;
    run(100).await;
    let read = read().await - before;
    assert!(read < 1_000, "a hundred were claimed and ended, and {read} rows read");
}

#[tokio::test]
async fn a_claim_goes_by_priority_and_then_by_virtual_time() {
    let here = World::new().await;
    let order = [(0, 5), (0, 3), (7, 9), (-7, 1)];
    let tasks = order.map(|(priority, vt)| NewTask { priority, vt, ..task(json!(1)) });
    here.tasks.enqueue(&tasks).await.unwrap();
    let worker = here.claimer(PATIENCE).await;
    let claimed = here.tasks.claim(worker, 10).await.unwrap();
    let places: Vec<Place> = claimed.iter().filter_map(|c| c.task).collect();
    let wanted = [(-7, 9), (0, 3), (0, 5), (7, 1)].map(|(rank, vt)| Place { rank, vt });
    assert_eq!(places, wanted);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_at_shutdown_ends_first_and_nothing_is_left_behind() {
    let here = World::new().await;
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    let slow = Handlers::new().register("k", move |_: Value, _| {
        let counted = counted.clone();
        async move {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(200)).await;
            Ok(())
        }
    });
    for n in 0..30 {
        here.enqueue(task(json!(n))).await;
    }
    let worker = here.worker(slow);
    until("some run", async || (count.load(Ordering::SeqCst) > 0).then_some(())).await;
    worker.drain().await;
    let run = count.load(Ordering::SeqCst) as i64;
    assert_eq!(here.count("select count(*) from crossover.attempts where outcome = 'succeeded'").await, run);
    assert_eq!(here.count("select count(*) from crossover.tasks_ready where worker is null").await, 30 - run);
    assert_eq!(here.count("select count(*) from crossover.tasks_ready where worker is not null").await, 0);
}

#[tokio::test]
async fn a_task_is_found_in_the_views_wherever_it_is() {
    let here = World::new().await;
    let id = here.enqueue(task(json!(1))).await;
    let state = async || {
        let asked = sqlx::query_scalar::<_, String>("select state from crossover.interactions where id = $1");
        asked.bind(id).fetch_one(here.ledger.pool()).await.unwrap()
    };
    let running = async || here.count("select coalesce(sum(running), 0)::bigint from crossover.queue_depth").await;
    assert_eq!((state().await.as_str(), running().await), ("ready", 0));
    let worker = here.claimer(PATIENCE).await;
    let claimed = here.tasks.claim(worker, 1).await.unwrap();
    assert_eq!((state().await.as_str(), running().await), ("running", 1));
    let depth = Queue::new(here.ledger.pool().clone()).depth().await.unwrap();
    assert_eq!((depth.ready, depth.running, depth.scheduled), (0, 1, 0));
    here.tasks.finish(worker, &[Finish::of(&claimed[0], Some(Outcome::Succeeded))]).await.unwrap();
    assert_eq!((state().await.as_str(), running().await), ("succeeded", 0));
}

/// What a runner does that takes every attempt away.
struct TakesAway(Duration);

#[async_trait::async_trait]
impl Executor for TakesAway {
    async fn execute(&self, _: &Call) -> Answer {
        Answer::Detached { silence: self.0 }
    }
}

impl World {
    async fn away(&self, id: Uuid, attempt: i32) {
        until("its runner has it", async || {
            let away = self.ledger.away(id).await.unwrap()?;
            (away.fence.attempt == attempt).then_some(())
        })
        .await;
    }
}

fn fence(attempt: i32) -> Fence {
    Fence { epoch: 1, attempt }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runner_took_away_of_a_task_holds_no_slot_and_ends_by_its_report() {
    let here = World::new().await;
    let worker = here.worker_of(Arc::new(TakesAway(Duration::from_secs(60))));
    let mut ids = Vec::new();
    for n in 0..15 {
        ids.push(here.enqueue(task(json!(n))).await);
    }
    for id in &ids {
        here.away(*id, 1).await;
    }
    worker.drain().await;
    for id in &ids {
        assert!(matches!(here.ledger.beat(*id, fence(1)).await.unwrap(), Beat::Kept { cancel_requested: false, .. }));
        let done = Ending::Done(Payload::parse("7".to_owned()).unwrap());
        for _ in 0..2 {
            let taken = here.ledger.report(*id, fence(1), &done).await.unwrap();
            assert!(matches!(taken, Report::Taken { outcome: Outcome::Succeeded, .. }), "{taken:?}");
        }
        let story = here.story(*id).await;
        assert_eq!((story.state.as_str(), story.attempts[0].result.as_ref().unwrap().get()), ("succeeded", "7"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_of_a_task_that_falls_silent_loses_it_and_its_report_is_late() {
    let here = World::new().await;
    let policy = Policy { backoff: Backoff::Listed(Listed { delays_ms: vec![0] }), ..Policy::default() };
    let worker = here.worker_of(Arc::new(TakesAway(Duration::from_millis(300))));
    let id = here.enqueue(NewTask { policy, ..task(json!(1)) }).await;
    here.away(id, 2).await;
    let done = Ending::Done(Payload::parse("7".to_owned()).unwrap());
    assert!(matches!(here.ledger.report(id, fence(1), &done).await.unwrap(), Report::Late));
    worker.drain().await;
    let story = here.story(id).await;
    assert!(story.attempts[0].error.as_deref().unwrap().contains("heartbeat"), "{story:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_hears_of_the_cancel_of_the_task_it_took_away() {
    let here = World::new().await;
    let worker = here.worker_of(Arc::new(TakesAway(Duration::from_secs(60))));
    let id = here.enqueue(task(json!(1))).await;
    here.away(id, 1).await;
    assert_eq!(here.tasks.cancel(id, "enough").await.unwrap(), Some(Cancelling::Asked));
    assert!(matches!(here.ledger.beat(id, fence(1)).await.unwrap(), Beat::Kept { cancel_requested: true, .. }));
    let failed = Ending::Failed { failure: Failure::RETRYABLE, error: "stopped".to_owned() };
    here.ledger.report(id, fence(1), &failed).await.unwrap();
    assert_eq!(here.ended(id).await.state, "cancelled");
    worker.drain().await;
}

#[tokio::test]
async fn an_account_with_a_task_is_not_left_until_the_task_has_ended() {
    let here = World::new().await;
    let id = here.enqueue(task(json!(1))).await;
    let disarm =
        sqlx::query("update crossover.accounts set state = 'disarming', window_from = null where account = $1");
    disarm.bind(ACCOUNT).execute(here.ledger.pool()).await.unwrap();
    let advance = async || {
        let asked = sqlx::query_scalar::<_, Option<String>>(
            "select crossover.advance(account, generation, '0 s') from crossover.accounts where account = $1",
        );
        asked.bind(ACCOUNT).fetch_one(here.ledger.pool()).await.unwrap()
    };
    for _ in 0..3 {
        assert_eq!(advance().await, None);
    }
    assert!(here.tasks.enqueue(&[task(json!(2))]).await.unwrap().is_empty(), "nothing new is taken in");
    here.tasks.cancel(id, "not needed").await.unwrap();
    assert_eq!((advance().await, advance().await.as_deref()), (None, Some("open")), "a window after its end");
}

#[tokio::test]
async fn what_is_due_as_it_is_put_in_is_in_one_place() {
    let here = World::new().await;
    for _ in 0..40 {
        // Some are due in the middle of the statement.
        let now = Utc::now();
        let due = |n: i64| Some(now + chrono::TimeDelta::microseconds(n * 20));
        let tasks: Vec<NewTask> = (0..500).map(|n| NewTask { run_at: due(n), vt: n, ..task(json!(n)) }).collect();
        here.tasks.enqueue(&tasks).await.unwrap();
    }
    let both = "select count(*) from crossover.tasks_ready join crossover.tasks_scheduled using (id)";
    assert_eq!(here.count(both).await, 0);
    let all = "select (select count(*) from crossover.tasks_ready) + (select count(*) from crossover.tasks_scheduled)";
    assert_eq!(here.count(all).await, 20_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_holds_that_says_goodbye_is_taken_over_at_once() {
    let here = World::new().await;
    let policy = Policy { backoff: Backoff::Listed(Listed { delays_ms: vec![0] }), ..Policy::default() };
    let id = here.enqueue(NewTask { policy, ..task(json!(1)) }).await;
    // Its claim's answer was lost, and it could not put back what it took.
    let gone = here.claimer(Duration::from_secs(3_600)).await;
    assert_eq!(here.tasks.claim(gone, 1).await.unwrap().len(), 1);
    here.tasks.leave(gone).await.unwrap();
    let worker = here.worker(echo());
    assert_eq!(here.ended(id).await.attempts.len(), 2);
    worker.drain().await;
}

#[tokio::test]
async fn a_wish_to_cancel_outlives_that_its_claim_is_undone() {
    let here = World::new().await;
    let id = here.enqueue(task(json!(1))).await;
    let worker = here.claimer(PATIENCE).await;
    here.tasks.claim(worker, 1).await.unwrap();
    assert_eq!(here.tasks.cancel(id, "enough").await.unwrap(), Some(Cancelling::Asked));
    assert_eq!(here.tasks.release_unknown(worker, &[]).await.unwrap(), 1);
    let again = here.tasks.claim(worker, 1).await.unwrap();
    assert_eq!(again[0].called_off.as_deref(), Some("enough"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_for_what_is_due_reads_nothing_of_what_is_due_later() {
    let world = World::new().await;
    let mut one = world.ledger.pool().begin().await.unwrap();
    let later = "insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        select gen_random_uuid(), clock_timestamp() + interval '1 day', 1, 0, true, 'g' from generate_series(1, 5000);
        insert into crossover.tasks_scheduled (id, due_at, created_at, vt, rank, attempt, account, kind, grp)
        select gen_random_uuid(), clock_timestamp() + interval '1 day', clock_timestamp(), 1, 0, 1, 'a', 'k', 'g' from generate_series(1, 5000);
        analyze crossover.scheduled, crossover.tasks_scheduled";
    sqlx::raw_sql(later).execute(&mut *one).await.unwrap();
    for look in ["select crossover.promote_due(100)", "select crossover.promote_due_tasks(100)"] {
        assert_eq!(sqlx::query_scalar::<_, i64>(look).fetch_one(&mut *one).await.unwrap(), 0);
    }
    let read = "select sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0))::bigint
        from pg_stat_xact_user_tables where relname in ('scheduled', 'tasks_scheduled')";
    let read: i64 = sqlx::query_scalar(read).fetch_one(&mut *one).await.unwrap();
    assert!(read < 100, "{read} rows were read to find none");
}

#[tokio::test]
async fn what_runners_had_is_forgotten_a_part_at_a_time() {
    let here = World::new().await;
    let old = "insert into crossover.detached (id, epoch, attempt, silence_ms, first_due_at, due_at, started_at, run_until, pinned, side,
            policy, beat_at, closed_at)
        select gen_random_uuid(), 1, 1, 1, now(), now(), now(), now(), true, 'postgres', '{}',
            now() - n * interval '1 hour', case when n % 2 = 0 then now() - n * interval '1 hour' end from generate_series(1, 100) n";
    sqlx::query(old).execute(here.ledger.pool()).await.unwrap();
    let round = "select crossover.forget_detached(interval '1 day', 10)";
    let round = async || sqlx::query_scalar::<_, i64>(round).fetch_one(here.ledger.pool()).await.unwrap();
    assert_eq!(round().await, 10);
    assert_eq!(here.ledger.forget_detached(Duration::from_secs(86_400)).await.unwrap(), 38 + 29);
    let left = "select count(*) from crossover.detached where coalesce(closed_at, beat_at) < now() - interval '1 day'";
    assert_eq!(here.count(left).await, 0);
    assert_eq!(here.count("select count(*) from crossover.detached").await, 23);
}
