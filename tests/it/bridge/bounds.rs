//! What one piece of work must not do to the others, and what must not be lost beside the straight way.

use crossover::interaction::Outcome;
use crossover::queue::{Claim, Queue};
use uuid::Uuid;

use super::world::with;
use super::*;

async fn execute(world: &World, sql: &'static str) {
    sqlx::query(sql).execute(world.pool()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cant_be_read_fails_alone_and_holds_nobody_back() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for key in ["before", "poison", "after"] {
        router.accepts(&world.request(key), 201).await;
    }
    let poison = "update crossover.payloads set policy = '{\"max_attempts\": \"x\"}'
        where id = (select id from crossover.pins where key = 'poison')";
    execute(&world, poison).await;
    let worker = world.node_with(WORKER, |_| {}).await;
    world.succeeded("before").await;
    world.succeeded("after").await;
    let story = world.ended("poison").await;
    assert_eq!(story.state, "failed");
    assert!(story.pin.reason.unwrap().contains("can't be read"));
    assert!(world.runner.of("poison").is_empty());
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn temporal_is_given_only_so_much_of_a_series_at_a_time_and_all_of_it_in_the_end() {
    const MEMBERS: usize = 130;
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let keys: Vec<String> = (0..MEMBERS).map(|n| format!("m{n}")).collect();
    for key in &keys {
        assert!(matches!(router.post(&world.member("s", key)).await.status, 201 | 202));
    }
    let relay = world.node_with(crossover::app::Roles { router: false, worker: false, relay: true }, |_| {}).await;
    let left = MEMBERS as i64 - 100;
    let outbox = "select count(*) from crossover.outbox";
    until("the first hundred are delivered", async || (world.scalar::<i64>(outbox).await == left).then_some(())).await;
    let worker = world.node_with(WORKER, |_| {}).await;
    for key in &keys {
        world.succeeded(key).await;
    }
    let ran: Vec<String> = world.in_turn(&keys).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, keys);
    for node in [worker, relay, router] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_member_of_a_series_goes_to_temporal_alone() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for n in 0..3 {
        let big = with(world.member("s", &format!("big{n}")), json!({ "payload": "x".repeat(400_000) }));
        assert!(matches!(router.post(&big).await.status, 201 | 202));
    }
    let relay = world.node_with(WORKER, |_| {}).await;
    for n in 0..3 {
        world.succeeded(&format!("big{n}")).await;
    }
    relay.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_whose_workflow_was_ended_by_hand_ends_as_failed() {
    let world = World::new(Stage::Shadow).await;
    world.runner.hold("ended");
    let node = world.node_with(ALL, |config| config.relay.sweep_after = Duration::from_secs(1)).await;
    node.accepts(&world.request("ended"), 201).await;
    world.runner.nth("ended", 1).await;
    let id = format!("{}:1", world.id("ended"));
    let temporal = crate::servers::cli(&["workflow", "terminate", "--workflow-id", &id, "--reason", "by hand"]).await;
    assert!(temporal, "the workflow is there to be ended");
    let story = world.ended("ended").await;
    assert_eq!(story.pin.outcome, Some(Outcome::Failed));
    assert!(story.pin.reason.unwrap().contains("Terminated"));
    world.runner.release("ended");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_leaves_alone_what_still_runs() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.relay.sweep_after = Duration::from_secs(1)).await;
    for request in [world.request("single"), world.member("s", "member")] {
        world.runner.hold(request["key"].as_str().unwrap());
        node.accepts(&request, 201).await;
    }
    let swept = "select count(*) from crossover.pins where swept_at is not null";
    until("both were swept", async || (world.scalar::<i64>(swept).await == 2).then_some(())).await;
    let outbox = "select count(*) from crossover.outbox";
    until("both were delivered again", async || (world.scalar::<i64>(outbox).await == 0).then_some(())).await;
    for key in ["single", "member"] {
        world.runner.release(key);
        world.succeeded(key).await;
        assert_eq!(world.runner.of(key).len(), 1, "{key} ran once");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_work_under_a_key_that_ran_unpinned_is_refused_and_never_runs() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    let (single, member) = (world.request("single"), world.member("s", "member"));
    for request in [&single, &member] {
        node.accepts(request, 201).await;
        world.runner.nth(request["key"].as_str().unwrap(), 1).await;
    }
    world.flip(Stage::Shadow, &[&node]).await;
    let other = json!({ "payload": "other" });
    node.accepts(&with(single, other.clone()), 409).await;
    assert_eq!(world.story("single").await.unwrap().state, "held");
    node.accepts(&with(world.request("single"), other.clone()), 409).await;
    node.accepts(&with(member, other), 201).await;
    assert_eq!(world.ended("member").await.state, "failed");
    assert_eq!((world.runner.of("single").len(), world.runner.of("member").len()), (1, 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_follower_waits_behind_its_series_without_expiring() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("head");
    node.accepts(&world.member("s", "head"), 201).await;
    world.runner.nth("head", 1).await;
    let hurried = with(world.member("s", "follower"), json!({ "policy": { "start_timeout_ms": 1000 } }));
    node.accepts(&hurried, 201).await;
    let late = "select count(*) from crossover.pins where key = 'follower' and created_at < now() - interval '1500 ms'";
    until("the time-out has passed", async || (world.scalar::<i64>(late).await == 1).then_some(())).await;
    world.runner.release("head");
    world.succeeded("follower").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_answer_was_lost_uses_up_no_attempt() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for key in ["known", "unknown"] {
        router.accepts(&world.request(key), 201).await;
    }
    let (queue, worker) = (Queue::new(world.pool().clone()), Uuid::new_v4());
    let claim = Claim { worker, limit: 1, executions_only: false, lease: Duration::from_secs(60) };
    let known = queue.claim(claim).await.unwrap();
    assert_eq!(queue.claim(claim).await.unwrap().len(), 1);
    let held: Vec<_> = known.iter().map(|c| (c.envelope.id, c.fence.attempt)).collect();
    assert_eq!(queue.release_unknown(worker, &held).await.unwrap(), 1);
    let again = queue.claim(claim).await.unwrap();
    assert_eq!((again[0].envelope.key.as_str(), again[0].fence.attempt), ("unknown", 1));
    let kept = queue.heartbeat(worker, &held, Duration::from_secs(60)).await.unwrap();
    assert_eq!(kept.iter().map(|kept| (kept.id, kept.attempt)).collect::<Vec<_>>(), held);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_in_a_default_partition_keeps_no_other_day_from_its_partition() {
    let world = World::new(Stage::Shadow).await;
    let stray = "insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side)
        values (gen_random_uuid(), now(), now(), current_date + interval '9 days', 1, 1, false, 'temporal')";
    execute(&world, stray).await;
    let made: i32 = world.scalar("select crossover.make_partitions(12)").await;
    assert_eq!(made, 19, "five days of payloads, sightings and tasks, and four of attempts");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_to_off_lets_nothing_overtake_what_waits_to_be_delivered() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let keys: Vec<String> = (0..104).map(|n| format!("m{n}")).collect();
    for key in &keys[..102] {
        router.post(&world.member("s", key)).await;
    }
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.outbox").await, 2);
    world.flip(Stage::Off, &[&router]).await;
    for key in &keys[102..] {
        router.accepts(&world.member("s", key), 202).await;
    }
    let single = router.accepts(&world.request("single"), 201).await;
    assert_eq!(single.body["stage"], "off", "what is in no series need not wait for one");
    let worker = world.node_with(WORKER, |_| {}).await;
    for key in &keys {
        world.succeeded(key).await;
    }
    let ran: Vec<String> = world.in_turn(&keys).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, keys);
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_series_whose_lease_may_have_run_out_is_called_again_with_a_higher_fence() {
    let mut postgres = crossover::provision::postgres(&crate::servers::options()).await.unwrap();
    let world = World::with(Some(postgres.url.clone()), None, Stage::Live).await;
    let node = world.node_with(ALL, |config| config.worker.lease = Duration::from_millis(1_500)).await;
    world.runner.hold("member");
    node.accepts(&world.member("s", "member"), 201).await;
    world.runner.nth("member", 1).await;
    postgres.server.kill().await.unwrap();
    until("the run is given up", async || {
        let shown = node.get("/metrics").await.body;
        shown.as_str()?.contains("crossover_lost_leases_total 1").then_some(())
    })
    .await;
    postgres.server.restart().await.unwrap();
    let again = world.runner.nth("member", 2).await;
    assert_eq!(again.fence, (1, 2));
    world.runner.release("member");
    assert_eq!(world.succeeded("member").await.pin.attempts, 2);
    node.stop().await;
}
