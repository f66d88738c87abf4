//! Groups with limits: what may run at once, judged by what the runner saw, and what becomes of the rest.

use std::collections::HashMap;
use std::sync::Mutex;

use crossover::queue::groups::{Asked, Group, Groups, Pass, Told};
use crossover::queue::{Claim, Claimed};

use super::*;

mod changes;
mod giving_way;
mod races;
mod random;
mod rates;

const GROUP: &str = "mail";

impl World {
    fn groups(&self) -> Groups {
        Groups::new(self.ledger.pool().clone())
    }

    async fn set(&self, limits: Value) {
        self.groups().set(GROUP, limits.as_object().unwrap(), "test").await.unwrap();
    }

    async fn group(&self) -> Group {
        self.groups().list(Some(GROUP)).await.unwrap().remove(0)
    }

    /// A pass that looks everywhere; how much it admitted.
    async fn admit(&self) -> i64 {
        self.pass().await.admitted
    }

    async fn pass(&self) -> Pass {
        let asked = Asked { most: 1_000, look: true, tidy: true, from: None };
        self.groups().admit(asked).await.unwrap()
    }

    /// A pinned interaction of the group.
    async fn pin(&self, account: &str, key: &str, stage: Stage, policy: Policy) -> Uuid {
        let payload = Payload::parse("1".to_owned()).unwrap();
        let (account, kind, key) = (account.to_owned(), "k".to_owned(), key.to_owned());
        let (series, group) = (None, Some(GROUP.to_owned()));
        let interaction = Interaction {
            account,
            kind,
            key,
            key_made: false,
            after: None,
            exclusive: None,
            payload,
            series,
            group,
            run_at: None,
            priority: 0,
            policy,
        };
        let request = PinRequest { interaction: &interaction, stage, revision: "test", grace: Duration::ZERO };
        self.ledger.pin(request).await.unwrap().pin.id
    }

    async fn pinned(&self, key: &str) -> Uuid {
        self.pin(ACCOUNT, key, Stage::Complete, Policy::default()).await
    }

    async fn claim_copies(&self, worker: Uuid, limit: i64) -> Vec<Claimed> {
        let claim = Claim { worker, limit, executions_only: false, lease: PATIENCE };
        Queue::new(self.ledger.pool().clone()).claim(claim).await.unwrap()
    }

    async fn standing(&self, id: Uuid) -> (String, Option<String>) {
        let asked = sqlx::query_as("select state, reason from crossover.interactions where id = $1");
        asked.bind(id).fetch_one(self.ledger.pool()).await.unwrap()
    }

    /// The real run of what is rehearsed here was seen to begin.
    async fn real_run_begins(&self, id: Uuid) {
        let seen = "insert into crossover.sightings (side_at, id, observer, epoch, attempt, rehearsal, side, what)
            values (clock_timestamp(), $1, gen_random_uuid(), 1, 1, false, 'temporal', 'dequeued')";
        sqlx::query(seen).bind(id).execute(self.ledger.pool()).await.unwrap();
    }

    async fn unended(&self) -> i64 {
        self.count(
            "select (select count(*) from crossover.pins where ended_at is null)
                + (select count(*) from crossover.tasks t
                   where not exists (select from crossover.attempts a where a.id = t.id and a.retry_ms is null))",
        )
        .await
    }
}

fn mail(n: usize) -> NewTask {
    NewTask { group: Some(GROUP.to_owned()), vt: n as i64, ..task(json!(n)) }
}

/// Counts what runs at once, in all and by account.
#[derive(Default)]
struct Watch {
    now: Mutex<HashMap<String, usize>>,
    most: Mutex<HashMap<String, usize>>,
    began: AtomicUsize,
}

struct Watched(Arc<Watch>, String);

impl Watch {
    fn begin(self: &Arc<Self>, account: &str) -> Watched {
        self.began.fetch_add(1, Ordering::SeqCst);
        let (mut now, mut most) = (self.now.lock().unwrap(), self.most.lock().unwrap());
        for name in ["all", account] {
            let running = now.entry(name.to_owned()).or_default();
            *running += 1;
            let seen = most.entry(name.to_owned()).or_default();
            *seen = (*seen).max(*running);
        }
        Watched(self.clone(), account.to_owned())
    }

    fn running(&self) -> usize {
        self.now.lock().unwrap().get("all").copied().unwrap_or(0)
    }

    fn most(&self, name: &str) -> usize {
        self.most.lock().unwrap().get(name).copied().unwrap_or(0)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let mut now = self.0.now.lock().unwrap();
        ["all", &self.1].iter().for_each(|name| *now.get_mut(*name).unwrap() -= 1);
    }
}

/// Runs everything for some milliseconds; one in seven fails and is tried again.
struct Fickle(Arc<Watch>);

#[async_trait::async_trait]
impl Executor for Fickle {
    async fn execute(&self, call: &Call) -> Answer {
        let _running = self.0.begin(&call.account);
        tokio::time::sleep(Duration::from_millis(5)).await;
        match (self.0.began.load(Ordering::SeqCst), call.fence.attempt) {
            (n, 1) if n % 7 == 0 => Answer::retryable("no luck"),
            _ => Answer::Done(Payload::parse("1".to_owned()).unwrap()),
        }
    }
}

/// Runs until it is let go on.
struct Held {
    watch: Arc<Watch>,
    go_on: CancellationToken,
}

#[async_trait::async_trait]
impl Executor for Held {
    async fn execute(&self, call: &Call) -> Answer {
        let _running = self.watch.begin(&call.account);
        self.go_on.cancelled().await;
        Answer::Done(Payload::parse("1".to_owned()).unwrap())
    }
}

fn again_at_once() -> Policy {
    Policy { backoff: Backoff::Listed(Listed { delays_ms: vec![0] }), ..Policy::default() }
}

/// A worker that can be killed: it has threads and connections of its own.
struct Mortal(Option<tokio::runtime::Runtime>);

impl Mortal {
    fn of(url: String, executor: Arc<dyn Executor>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let pool = ledger::pool(&url, 8, Duration::from_secs(10)).unwrap();
            let options = WorkerOptions {
                slots: 10,
                lease: LEASE,
                poll: Duration::from_millis(20),
                rehearsal_bound: Duration::from_secs(60),
                grace: Duration::from_secs(5),
            };
            let metrics = Arc::new(Metrics::new().unwrap());
            let worker = Worker::new(Queue::new(pool), executor, options, metrics, Arc::new(Notify::new()));
            worker.run(CancellationToken::new()).await;
        });
        Self(Some(runtime))
    }

    fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_the_limit_of_a_group_run_at_once_over_several_workers_kills_and_retries() {
    const TASKS: usize = 240;
    const PINS: usize = 40;
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "max_running": 5, "max_per_account": 3 })).await;
    for n in 0..TASKS {
        let account = if n % 3 == 0 { "b" } else { ACCOUNT }.to_owned();
        here.enqueue(NewTask { account, policy: again_at_once(), ..mail(n) }).await;
    }
    for n in 0..PINS {
        here.pin("b", &n.to_string(), Stage::Complete, again_at_once()).await;
    }
    let (watch, url) = (Arc::new(Watch::default()), here.url.clone());
    let worker = || Mortal::of(url.clone(), Arc::new(Fickle(watch.clone())));
    let (doomed, _one, _other) = (worker(), worker(), worker());
    until("half of it has run", async || (watch.began.load(Ordering::SeqCst) > TASKS / 2).then_some(())).await;
    doomed.kill();
    until("all of it has ended", async || (here.unended().await == 0).then_some(())).await;
    assert!(watch.most("all") <= 5 && watch.most(ACCOUNT) <= 3 && watch.most("b") <= 3, "{:?}", watch.most);
    assert!(watch.began.load(Ordering::SeqCst) > TASKS + PINS, "some were tried again");
    assert_eq!(here.group().await.held, 0, "and every place was given back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_is_changed_is_in_force_at_once_and_what_runs_runs_on() {
    let here = World::new().await;
    here.set(json!({ "max_running": 2 })).await;
    for n in 0..30 {
        here.enqueue(mail(n)).await;
    }
    let (watch, go_on) = (Arc::new(Watch::default()), CancellationToken::new());
    let worker = here.worker_of(Arc::new(Held { watch: watch.clone(), go_on: go_on.clone() }));
    until("two run", async || (watch.running() == 2).then_some(())).await;
    here.set(json!({ "max_running": 6 })).await;
    until("six run", async || (watch.running() == 6).then_some(())).await;
    here.set(json!({ "max_running": 1 })).await;
    assert_eq!(watch.running(), 6, "what runs runs on");
    assert_eq!(here.admit().await, 0, "and nothing comes in the place of the first five that end");
    go_on.cancel();
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    worker.drain().await;
    assert_eq!(watch.most("all"), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_gets_its_first_limit_while_it_runs_counts_what_runs() {
    let here = World::new().await;
    for n in 0..20 {
        here.enqueue(mail(n)).await;
        here.pinned(&n.to_string()).await;
    }
    let (watch, go_on) = (Arc::new(Watch::default()), CancellationToken::new());
    let worker = here.worker_of(Arc::new(Held { watch: watch.clone(), go_on: go_on.clone() }));
    until("all slots are taken", async || (watch.running() == 10).then_some(())).await;
    here.set(json!({ "max_running": 3 })).await;
    until("what runs is counted in", async || (here.group().await.held == 10).then_some(())).await;
    go_on.cancel();
    // What runs after those ten is let through one by one, and so at most three at a time.
    let seen = watch.clone();
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    worker.drain().await;
    assert_eq!((seen.most("all"), here.group().await.held), (10, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_group_starts_nothing_until_it_is_resumed_and_loses_nothing() {
    let here = World::new().await;
    here.set(json!({ "max_running": 4 })).await;
    for n in 0..40 {
        here.enqueue(mail(n)).await;
        here.pinned(&n.to_string()).await;
    }
    let (watch, go_on) = (Arc::new(Watch::default()), CancellationToken::new());
    let worker = here.worker_of(Arc::new(Held { watch: watch.clone(), go_on: go_on.clone() }));
    until("four run", async || (watch.running() == 4).then_some(())).await;
    here.groups().pause(GROUP, "their API is down", "test").await.unwrap();
    go_on.cancel();
    until("what ran has ended", async || (here.group().await.held == 0).then_some(())).await;
    let other = here.enqueue(NewTask { group: None, ..task(json!(0)) }).await;
    here.ended(other).await;
    assert_eq!(
        (here.admit().await, watch.began.load(Ordering::SeqCst)),
        (0, 5),
        "other groups go on, this one does not"
    );
    let told = here.count("select count(*) from crossover.interactions where reason like '%their API is down%'").await;
    assert_eq!(told, 76, "whoever asks is told");
    here.groups().resume(GROUP, "test").await.unwrap();
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    worker.drain().await;
    assert_eq!((watch.began.load(Ordering::SeqCst), watch.most("all")), (81, 4));
}

#[tokio::test]
async fn what_waits_at_the_gate_says_so_and_can_be_cancelled() {
    let here = World::new().await;
    here.groups().pause(GROUP, "enough", "test").await.unwrap();
    let (task, pin) = (here.enqueue(mail(1)).await, here.pinned("p").await);
    for id in [task, pin] {
        let (state, reason) = here.standing(id).await;
        assert_eq!(state, "waiting");
        assert!(reason.as_deref().unwrap().ends_with("enough"), "{reason:?}");
    }
    assert_eq!(here.story(task).await.state, "waiting");
    assert_eq!(here.ledger.story(pin).await.unwrap().unwrap().state, "waiting");
    assert_eq!(here.count("select waiting from crossover.queue_depth where grp = 'mail'").await, 2);
    assert_eq!(here.tasks.cancel(task, "not needed").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.ledger.cancel(pin, "not needed").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!((here.standing(task).await.0.as_str(), here.standing(pin).await.0.as_str()), ("cancelled", "cancelled"));
    assert_eq!(here.count("select count(*) from crossover.gate").await, 0);
}

#[tokio::test]
async fn what_waits_at_the_gate_can_be_handed_over_and_waits_on_as_a_rehearsal() {
    let here = World::new().await;
    here.groups().pause(GROUP, "enough", "test").await.unwrap();
    let id = here.pin(ACCOUNT, "p", Stage::Live, Policy::default()).await;
    let answers = here.ledger.hand_over(0, ACCOUNT, &[id]).await.unwrap();
    assert_eq!(answers[0].answer, "moved");
    assert_eq!(here.count("select count(*) from crossover.gate where not execute").await, 1);
    here.groups().resume(GROUP, "test").await.unwrap();
    assert_eq!(here.admit().await, 1);
    let claimed = here.claim_copies(Uuid::new_v4(), 10).await;
    assert!(claimed[0].rehearsal && claimed[0].fence.epoch == 2, "{claimed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_takes_a_place_of_its_group_until_its_real_run_has_ended() {
    let here = World::new().await;
    here.set(json!({ "max_running": 1 })).await;
    let rehearsed = here.pin("shadowed", "p", Stage::Shadow, Policy::default()).await;
    let worker = here.worker(echo());
    until("it is rehearsed", async || (here.count("select count(*) from crossover.running").await == 1).then_some(()))
        .await;
    here.real_run_begins(rehearsed).await;
    let id = here.enqueue(mail(1)).await;
    assert_eq!((here.admit().await, here.story(id).await.state.as_str()), (0, "waiting"));
    let end = "select crossover.end_pins('temporal', array[$1], array[1], array[1], array['succeeded'], array[null])";
    sqlx::query(end).bind(rehearsed).execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.ended(id).await.state, "succeeded");
    worker.drain().await;
}

#[tokio::test]
async fn limits_of_zero_and_below_are_refused_with_every_fault() {
    let here = World::new().await;
    let limits = json!({ "max_running": 0, "max_per_account": -3, "max_ruining": 1 });
    let refused = here.groups().set(GROUP, limits.as_object().unwrap(), "test").await.unwrap_err().to_string();
    for part in [
        "max_running: must be 1",
        "is 0; to let nothing start, pause the group",
        "max_per_account",
        "is -3",
        "max_ruining: is no field",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(here.groups().list(None).await.unwrap().is_empty());
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(here.groups().weigh(ACCOUNT, Some(weight), "test").await.is_err(), "{weight}");
    }
    assert!(here.groups().weights().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_ready_before_its_group_had_limits_is_not_claimed_beyond_them() {
    let here = World::new().await;
    let (worker, mut ids) = (here.claimer(PATIENCE).await, Vec::new());
    for n in 0..50 {
        ids.push(here.enqueue(mail(n)).await);
        ids.push(here.pinned(&n.to_string()).await);
    }
    here.set(json!({ "max_running": 2 })).await;
    assert!(here.tasks.claim(worker, 10).await.unwrap().is_empty() && here.claim_copies(worker, 10).await.is_empty());
    assert_eq!(here.count("select count(*) from crossover.gate").await, 20, "the claims took them to the gate");
    assert_eq!(here.admit().await, 2);
    assert_eq!(here.count("select count(*) from crossover.gate").await, 98, "and a pass the others");
    let mut seen = Vec::new();
    while seen.len() < ids.len() {
        here.admit().await;
        let (tasks, copies) = (here.tasks.claim(worker, 10).await.unwrap(), here.claim_copies(worker, 10).await);
        assert_eq!(tasks.len() + copies.len(), 2);
        seen.extend(tasks.iter().chain(&copies).map(|claimed| claimed.envelope.id));
        let end = |claimed: &Claimed| Finish::of(claimed, Some(Outcome::Succeeded));
        here.tasks.finish(worker, &tasks.iter().map(end).collect::<Vec<_>>()).await.unwrap();
        let queue = Queue::new(here.ledger.pool().clone());
        queue.finish(worker, &copies.iter().map(end).collect::<Vec<_>>()).await.unwrap();
    }
    seen.sort();
    ids.sort();
    assert_eq!(seen, ids);
}

#[tokio::test]
async fn what_a_worker_gives_back_gives_its_place_back() {
    let here = World::new().await;
    here.set(json!({ "max_running": 2 })).await;
    let (one, other) = (here.claimer(PATIENCE).await, here.claimer(PATIENCE).await);
    here.enqueue(mail(1)).await;
    here.pinned("p").await;
    assert_eq!(here.admit().await, 2);
    assert_eq!((here.tasks.claim(one, 5).await.unwrap().len(), here.claim_copies(one, 5).await.len()), (1, 1));
    here.groups().pause(GROUP, "enough", "test").await.unwrap();
    assert_eq!(here.tasks.release_unknown(one, &[]).await.unwrap(), 1);
    assert_eq!(Queue::new(here.ledger.pool().clone()).release_unknown(one, &[]).await.unwrap(), 1);
    assert!(here.tasks.claim(other, 5).await.unwrap().is_empty() && here.claim_copies(other, 5).await.is_empty());
    here.groups().resume(GROUP, "test").await.unwrap();
    assert_eq!(here.admit().await, 2);
    assert_eq!((here.tasks.claim(other, 5).await.unwrap().len(), here.claim_copies(other, 5).await.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_without_limits_any_more_lets_everything_through() {
    let here = World::new().await;
    here.set(json!({ "max_running": 1 })).await;
    let tasks: Vec<NewTask> = (0..2_500).map(mail).collect();
    here.tasks.enqueue(&tasks).await.unwrap();
    assert!(here.groups().unset(GROUP).await.unwrap());
    let worker = here.worker(echo());
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    worker.drain().await;
}

#[tokio::test]
async fn an_account_that_floods_a_group_leaves_places_to_the_others() {
    let here = World::new().await;
    here.set(json!({ "max_running": 6, "max_per_account": 3 })).await;
    let flood: Vec<NewTask> = (0..1_000).map(mail).collect();
    here.tasks.enqueue(&flood).await.unwrap();
    for account in ["b", "c", "d"] {
        here.arm(account).await;
        here.enqueue(NewTask { account: account.to_owned(), ..mail(5_000) }).await;
    }
    assert_eq!(here.admit().await, 6);
    let worker = here.claimer(PATIENCE).await;
    let mut accounts: Vec<String> =
        here.tasks.claim(worker, 10).await.unwrap().into_iter().map(|c| c.envelope.account).collect();
    accounts.sort();
    assert_eq!(accounts, ["a", "a", "a", "b", "c", "d"]);
}

#[tokio::test]
async fn what_a_claim_asks_of_the_lowest_priority_that_waits_it_gets() {
    let here = World::new().await;
    let of = |n, priority| NewTask { priority, vt: n as i64, ..task(json!(n)) };
    let tasks: Vec<NewTask> = (0..400).map(|n| of(n, 5)).chain((0..100).map(|n| of(n, -5))).collect();
    here.tasks.enqueue(&tasks).await.unwrap();
    let copies = "insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select p.id, now(), 1, case when p.key::integer < 200 then -5 else 5 end, true, p.grp from crossover.pins p where p.key ~ '^[0-9]'";
    for n in 0..250 {
        here.pinned(&n.to_string()).await;
    }
    sqlx::query("delete from crossover.ready").execute(here.ledger.pool()).await.unwrap();
    sqlx::query(copies).execute(here.ledger.pool()).await.unwrap();
    let worker = here.claimer(PATIENCE).await;
    let low = |claimed: &[Claimed], all: &[NewTask]| {
        claimed.iter().filter(|c| all.iter().any(|t| t.id == c.envelope.id && t.priority < 0)).count()
    };
    for _ in 0..5 {
        let claimed = here.tasks.claim_sharing(worker, 40, 2).await.unwrap();
        assert_eq!((claimed.len(), low(&claimed, &tasks)), (40, 2));
        let claim = Claim { worker, limit: 20, executions_only: false, lease: PATIENCE };
        let claimed = Queue::new(here.ledger.pool().clone()).claim_sharing(claim, 1).await.unwrap();
        let of_the_lowest = claimed.iter().filter(|c| c.envelope.key.parse::<usize>().unwrap() >= 200).count();
        assert_eq!((claimed.len(), of_the_lowest), (20, 1));
    }
    let rest = here.tasks.claim_sharing(worker, 1_000, 50).await.unwrap();
    assert_eq!(rest.len(), 300, "a claim that can have all has all");
    for _ in 0..3 {
        here.tasks.enqueue(&[NewTask { vt: 1, ..task(json!(1)) }, NewTask { vt: 2, ..task(json!(2)) }]).await.unwrap();
        let claimed = here.tasks.claim_sharing(worker, 1, 1).await.unwrap();
        assert_eq!(claimed[0].task.unwrap().vt, 1, "among equals the order is kept");
        here.tasks.claim(worker, 10).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_urgent_work_leaves_the_lowest_priority_its_share() {
    let here = World::new().await;
    let of = |n: usize, priority| NewTask { priority, vt: n as i64, ..task(json!(n)) };
    let urgent: Vec<NewTask> = (0..2_000).map(|n| of(n, 5)).collect();
    let low: Vec<NewTask> = (0..20).map(|n| of(n, -5)).collect();
    here.tasks.enqueue(&[urgent, low].concat()).await.unwrap();
    let worker = here.worker(echo());
    let ran = "select count(*) from crossover.attempts a join crossover.tasks t using (id) where t.rank = ";
    until("the last of the lowest has run", async || {
        let low: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(format!("{ran} 5"))).fetch_one(here.ledger.pool()).await.unwrap();
        (low == 20).then_some(())
    })
    .await;
    let waits = here.count("select count(*) from crossover.tasks_ready where rank = -5 and worker is null").await;
    assert!(waits > 500, "{waits} of the urgent ones wait, and they come first");
    worker.drain().await;
}
