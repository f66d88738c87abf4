//! Cancelling: what waits never runs, once that is said; what runs is called off and not tried again.

use crossover::interaction::Outcome;
use crossover::queue::{Claim, Queue};
use crossover::temporal::Terms;
use crossover::temporal::client::{ClientSettings, TemporalClient};
use sqlx::Executor;
use uuid::Uuid;

use super::*;
use crate::bridge::child::Child;
use crate::bridge::proxy::black_hole;
use crate::bridge::runner::Rule;

/// Nothing of it is left to be run anywhere.
async fn leaves_nothing(world: &World, key: &str) {
    let story = world.ended(key).await;
    assert_eq!((story.pin.outcome, world.runner.of(key).len()), (Some(Outcome::Cancelled), 0), "{story:#?}");
    let left = "select (select count(*) from crossover.ready) + (select count(*) from crossover.scheduled)
        + (select count(*) from crossover.outbox)";
    until("no copy is left", async || (world.scalar::<i64>(left).await == 0).then_some(())).await;
}

async fn workflow_is_open(world: &World, key: &str) -> Option<bool> {
    let settings = ClientSettings {
        address: format!("http://{}", world.temporal),
        namespace: "default".to_owned(),
        task_queue: "unused".to_owned(),
        timeout: PATIENCE,
        identity: "test".to_owned(),
        terms: Terms::default(),
        window: PATIENCE,
        series_items_a_run: 100,
    };
    let client = TemporalClient::lazy(settings).unwrap();
    client.describe(&format!("{}:1", world.id(key))).await.unwrap().map(|found| found.open)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_owns_and_waits_is_cancelled_at_once_and_its_rehearsal_ends() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&with(world.request("one"), later()), 201).await;
    until("the rehearsal is there", async || workflow_is_open(&world, "one").await).await;
    for _ in 0..2 {
        let answer = cancel(&node, &world, "one").await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
    }
    leaves_nothing(&world, "one").await;
    until("the rehearsal has ended", async || (workflow_is_open(&world, "one").await == Some(false)).then_some(()))
        .await;
    let found = node.get(&format!("/v1/interactions/{}", world.id("one"))).await;
    assert_eq!((&found.body["state"], &found.body["reason"]), (&json!("cancelled"), &json!("cancelled over the API")));
    assert!(found.body["pin"]["cancel_requested_at"].is_string());
    node.accepts(&world.request("one"), 200).await;
    assert_eq!(world.ended("one").await.pin.outcome, Some(Outcome::Cancelled), "its key stays used");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timer_of_temporals_is_cancelled_and_the_rehearsal_on_postgres_goes() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    node.accepts(&with(world.request("one"), later()), 201).await;
    let answer = cancel(&node, &world, "one").await;
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
    leaves_nothing(&world, "one").await;
    assert_eq!(cancel(&node, &world, "one").await.status, 200);
    node.stop().await;
}

async fn the_series_goes_on_without_it(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node().await;
    world.runner.hold("first");
    for key in ["first", "second", "third"] {
        node.post(&world.member("s", key)).await;
    }
    world.runner.nth("first", 1).await;
    assert!(matches!(cancel(&node, &world, "second").await.status, 200 | 202));
    world.runner.release("first");
    world.succeeded("first").await;
    world.succeeded("third").await;
    leaves_nothing(&world, "second").await;
    assert_eq!(cancel(&node, &world, "first").await.status, 409);
    // The head itself, while it waits for its time.
    node.post(&with(world.member("s", "fourth"), later())).await;
    node.post(&world.member("s", "fifth")).await;
    assert!(matches!(cancel(&node, &world, "fourth").await.status, 200 | 202));
    world.succeeded("fifth").await;
    leaves_nothing(&world, "fourth").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_on_postgres_goes_on_without_its_cancelled_members() {
    the_series_goes_on_without_it(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_on_temporal_goes_on_without_its_cancelled_members() {
    the_series_goes_on_without_it(Stage::Shadow).await;
}

/// Both sides beat three times as often, and that is when a running attempt hears of it.
const LEASE: Duration = Duration::from_secs(3);

async fn what_runs_is_called_off_in(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(ALL, |config| config.worker.lease = LEASE).await;
    for (key, request) in [("one", world.request("one")), ("member", world.member("s", "member"))] {
        world.runner.hold(key);
        node.post(&request).await;
        world.runner.nth(key, 1).await;
        let asked = std::time::Instant::now();
        assert!(matches!(cancel(&node, &world, key).await.status, 200 | 202));
        let story = world.ended(key).await;
        assert_eq!((story.pin.outcome, story.pin.attempts), (Some(Outcome::Cancelled), 1), "{story:#?}");
        assert!(story.pin.reason.as_ref().unwrap().starts_with("cancelled over the API"), "{story:#?}");
        let dropped = until("its call is dropped", async || world.runner.of(key)[0].ended).await;
        let took = dropped - asked;
        println!("{key} in {stage}: called off {took:?} after it was asked");
        assert!(took < LEASE, "{took:?}");
        assert_eq!(cancel(&node, &world, key).await.status, 200);
        let rehearsals = world.rehearsed(key, 1).await;
        assert_eq!((rehearsals.len(), rehearsals[0].outcome), (1, Some(Outcome::Cancelled)), "{rehearsals:#?}");
        assert_eq!(world.runner.of(key).len(), 1);
    }
    // The series goes on.
    node.post(&world.member("s", "next")).await;
    world.succeeded("next").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_postgres_is_called_off_with_the_next_heartbeat_and_its_rehearsal_mirrors_it() {
    what_runs_is_called_off_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_temporal_is_called_off_with_the_next_heartbeat_and_its_rehearsal_mirrors_it() {
    what_runs_is_called_off_in(Stage::Shadow).await;
}

async fn waits_for_another_attempt_in(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node().await;
    let policy = json!({ "policy": { "backoff": { "delays_ms": [3_600_000] } } });
    for request in [world.request("one"), world.member("s", "member")] {
        let key = request["key"].as_str().unwrap().to_owned();
        world.runner.rule(&key, Rule::Fail(1));
        node.post(&with(request, policy.clone())).await;
        world.until_story(&key, "an attempt has failed", |story| (story.pin.attempts == 1).then_some(())).await;
        let answer = cancel(&node, &world, &key).await;
        assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
        let story = world.ended(&key).await;
        assert_eq!((story.pin.outcome, story.pin.attempts), (Some(Outcome::Cancelled), 1), "{story:#?}");
    }
    node.post(&world.member("s", "next")).await;
    world.succeeded("next").await;
    let left = "select (select count(*) from crossover.ready) + (select count(*) from crossover.scheduled)
        + (select count(*) from crossover.running) + (select count(*) from crossover.outbox)";
    until("no copy is left", async || (world.scalar::<i64>(left).await == 0).then_some(())).await;
    assert_eq!(world.runner.calls().len(), 3);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_another_attempt_on_postgres_is_cancelled_at_once() {
    waits_for_another_attempt_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_another_attempt_on_temporal_is_cancelled_at_once() {
    waits_for_another_attempt_in(Stage::Shadow).await;
}

/// The lease is so long that no heartbeat tells the worker in time.
async fn ends_by_itself_first_in(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(ALL, |config| config.worker.lease = Duration::from_secs(300)).await;
    let policy = json!({ "policy": { "backoff": { "delays_ms": [0] } } });
    world.runner.hold("succeeds");
    world.runner.rule("fails", Rule::HoldThenFail);
    for key in ["succeeds", "fails"] {
        node.post(&with(world.request(key), policy.clone())).await;
        world.runner.nth(key, 1).await;
        let answer = cancel(&node, &world, key).await;
        assert_eq!((answer.status, &answer.body["state"]), (202, &json!("asked")), "{answer:?}");
        world.runner.release(key);
    }
    world.succeeded("succeeds").await;
    is_problem(&cancel(&node, &world, "succeeds").await, 409);
    let story = world.ended("fails").await;
    // On Temporal the record of a failed attempt goes its own way, and an end may overtake it.
    assert_eq!(story.pin.outcome, Some(Outcome::Cancelled), "{story:#?}");
    assert_eq!(world.runner.of("fails").len(), 1, "no attempt follows a wish to cancel");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_postgres_that_ends_first_keeps_its_result_and_a_failed_one_is_not_tried_again() {
    ends_by_itself_first_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_on_temporal_that_ends_first_keeps_its_result_and_a_failed_one_is_not_tried_again() {
    ends_by_itself_first_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_free_worker_of_temporals_is_cancelled_and_never_called() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.worker.slots = 1).await;
    world.runner.hold("busy");
    node.post(&world.request("busy")).await;
    world.runner.nth("busy", 1).await;
    node.post(&world.request("one")).await;
    let answer = cancel(&node, &world, "one").await;
    assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelled")), "{answer:?}");
    leaves_nothing(&world, "one").await;
    world.runner.release("busy");
    world.succeeded("busy").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_asked_to_be_cancelled_while_its_worker_died_is_not_tried_again() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    node.accepts(&world.request("one"), 201).await;
    let lost = Claim { worker: Uuid::new_v4(), limit: 1, executions_only: false, lease: Duration::ZERO };
    assert_eq!(Queue::new(world.pool().clone()).claim(lost).await.unwrap().len(), 1);
    assert_eq!(cancel(&node, &world, "one").await.status, 202);
    let worker = world.node_with(WORKER, |config| config.worker.lease = Duration::from_millis(500)).await;
    leaves_nothing(&world, "one").await;
    worker.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_ended_or_is_unknown_can_not_be_cancelled() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&world.request("one"), 201).await;
    world.succeeded("one").await;
    is_problem(&cancel(&node, &world, "one").await, 409);
    is_problem(&cancel(&node, &world, "unheard of").await, 404);
    is_problem(&ask(&node, Method::POST, "/v1/interactions/seven/cancel", &[], None).await, 422);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_and_a_cancellation_exclude_each_other_in_either_order() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let queue = Queue::new(world.pool().clone());
    let claim = Claim { worker: Uuid::new_v4(), limit: 10, executions_only: false, lease: PATIENCE };
    node.accepts(&world.request("cancelled"), 201).await;
    // The cancellation is under way: the claim passes it by, and finds nothing afterwards either.
    let mut open = world.pool().begin().await.unwrap();
    let answer: Option<String> = sqlx::query_scalar("select answer from crossover.cancel($1, 'test')")
        .bind(world.id("cancelled"))
        .fetch_one(&mut *open)
        .await
        .unwrap();
    assert_eq!(answer.as_deref(), Some("cancelled"));
    assert!(queue.claim(claim).await.unwrap().is_empty());
    open.commit().await.unwrap();
    assert!(queue.claim(claim).await.unwrap().is_empty());

    // The claim is under way: the cancellation waits for it, and its worker is told.
    node.accepts(&world.request("claimed"), 201).await;
    let mut open = world.pool().begin().await.unwrap();
    let claimed = "with taken as (delete from crossover.ready returning *)
        insert into crossover.running (id, lease_until, due_at, started_at, epoch, attempt, rank, execute, worker, grp)
        select id, now() + interval '1 minute', due_at, now(), 1, attempt, rank, execute, gen_random_uuid(), grp from taken";
    assert_eq!(open.execute(claimed).await.unwrap().rows_affected(), 1);
    let late = cancel(&node, &world, "claimed");
    let commit = async {
        let waits =
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'";
        until("it waits", async || (world.scalar::<i64>(waits).await > 0).then_some(())).await;
        open.commit().await.unwrap();
    };
    let (late, ()) = tokio::join!(late, commit);
    assert_eq!((late.status, &late.body["state"]), (202, &json!("asked")), "{late:?}");
    node.stop().await;
}

/// Each ends exactly one way: cancelled, and called once at most, or run once.
async fn races_with_its_start(stage: Stage, n: usize) {
    let world = World::new(stage).await;
    let node = world.node().await;
    let keys: Vec<String> = (0..n).map(|n| format!("k{n}")).collect();
    let base = node.base.clone();
    let race = |(n, key): (usize, &String)| {
        let (request, id, base) = (world.request(key), world.id(key), base.clone());
        async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            // On a busy machine so many at once may be asked to come again.
            let sent = async |path: String, body: &Value| {
                let url = format!("{base}/v1/interactions{path}");
                until("it is answered", async || {
                    let status = http.post(&url).json(body).send().await.unwrap().status();
                    (status != 503).then_some(status)
                })
                .await
            };
            let accepted = sent(String::new(), &request).await;
            assert!(accepted.is_success(), "{accepted}");
            // Not a wait for anything: it spreads the wishes over the time in which work begins.
            tokio::time::sleep(Duration::from_millis(3 * (n as u64 % 12))).await;
            sent(format!("/{id}/cancel"), &json!({})).await.as_u16()
        }
    };
    let answers = futures::future::join_all(keys.iter().enumerate().map(race)).await;
    for (key, status) in keys.iter().zip(answers) {
        let (outcome, calls) = (world.ended(key).await.pin.outcome.unwrap(), world.runner.of(key).len());
        let one_way = match status {
            200 => outcome == Outcome::Cancelled && calls <= 1,
            409 => (outcome, calls) == (Outcome::Succeeded, 1),
            202 => matches!((outcome, calls), (Outcome::Cancelled, 0 | 1) | (Outcome::Succeeded, 1)),
            _ => false,
        };
        assert!(one_way, "{key}: {outcome}, {calls} calls");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_races_with_the_claim_and_one_of_them_wins() {
    races_with_its_start(Stage::Live, 120).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelling_races_with_temporals_start_and_one_of_them_wins() {
    races_with_its_start(Stage::Shadow, 30).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_temporal_is_away_a_cancellation_waits_with_the_copy_and_wins() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_towards(&black_hole().await, ROUTER, |_| {}).await;
    for request in [world.request("single"), world.member("s", "first"), world.member("s", "second")] {
        router.accepts(&request, 202).await;
    }
    for key in ["single", "first"] {
        let answer = cancel(&router, &world, key).await;
        assert_eq!((answer.status, &answer.body["state"]), (202, &json!("asked")), "{answer:?}");
    }
    let worker = world.node_with(WORKER, |_| {}).await;
    world.succeeded("second").await;
    for key in ["single", "first"] {
        leaves_nothing(&world, key).await;
        assert_eq!(cancel(&router, &world, key).await.status, 200);
    }
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_dies_after_it_was_asked_has_cancelled() {
    let world = World::new(Stage::Shadow).await;
    let mut router = Child::serve(&world, "router", &[]).await;
    router.node.accepts(&with(world.request("one"), later()), 201).await;
    assert_eq!(cancel(&router.node, &world, "one").await.status, 202, "nobody relays yet");
    router.kill();
    let worker = world.node_with(WORKER, |_| {}).await;
    leaves_nothing(&world, "one").await;
    worker.stop().await;
}
