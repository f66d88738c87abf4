//! Workers that are lost with an attempt whose policy parks it, and answers that Temporal can't be told yet.

use crossover::ledger::Cancelling;
use crossover::temporal::client::{ClientSettings, TemporalClient};

use super::*;
use crate::bridge::proxy::black_hole;
use crate::servers;

async fn is_parked_when_its_worker_is_lost(side: Side) {
    let world = World::new(stage_of(side)).await;
    let short = |config: &mut crossover::config::Config| config.worker.lease = Duration::from_secs(1);
    let node = world.node_with(TAKES_IN, short).await;
    let mut child = Child::serve(&world, "worker", &[("CROSSOVER_WORKER_LEASE", "1s")]).await;
    world.runner.hold("one");
    node.accepts(&with(world.request("one"), parks()), 201).await;
    world.runner.nth("one", 1).await;
    child.kill();
    let heir = world.node_with(ONLY_WORKS, short).await;
    until_parked(&world, "one").await;
    let parked = world.ledger.parked_one(world.id("one")).await.unwrap().unwrap();
    assert_eq!((parked.side, parked.cause, parked.fence.attempt), (side, Doubt::Worker, 1), "{parked:?}");
    assert_eq!(world.runner.of("one").len(), 1, "nobody has run it again");
    world.runner.release("one");
    let answer = resolve(&node, &world, "one", &json!({ "as": "retry" })).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    assert_eq!(world.succeeded("one").await.pin.attempts, 2);
    assert_eq!(world.runner.nth("one", 2).await.fence, (1, 2));
    never_diverged(&node, &world, "one").await;
    for node in [node, heir] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_lost_with_its_temporal_worker_is_parked_where_the_policy_says_so() {
    is_parked_when_its_worker_is_lost(Side::Temporal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_lost_with_its_postgres_worker_is_parked_where_the_policy_says_so() {
    is_parked_when_its_worker_is_lost(Side::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_cut_at_its_time_out_is_parked_where_the_policy_says_so() {
    for side in [Side::Temporal, Side::Postgres] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.hold("one");
        let policy = json!({ "policy": { "on_unknown": "park", "run_timeout_ms": 500 } });
        node.accepts(&with(world.request("one"), policy), 201).await;
        until_parked(&world, "one").await;
        assert_eq!(doubts(&world, "one").await, [Some(Doubt::RunTimeout)], "{side}");
        let answer = resolve(&node, &world, "one", &json!({ "as": "failed" })).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        assert_eq!(world.ended("one").await.state, "failed");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_temporal_cant_be_told_is_told_later_and_the_first_one_stands() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(TAKES_IN, |_| {}).await;
    let worker = world.node_with(ONLY_WORKS, |_| {}).await;
    world.runner.rule("one", Rule::HangUp(1));
    node.accepts(&with(world.request("one"), parks()), 201).await;
    until_parked(&world, "one").await;
    node.stop().await;

    let cut_off = world.node_towards(&black_hole().await, TAKES_IN, |_| {}).await;
    let answer = resolve(&cut_off, &world, "one", &json!({ "as": "succeeded", "result": 7 })).await;
    assert_eq!((answer.status, &answer.body["state"]), (202, &json!("asked")), "{answer:?}");
    let failed =
        until("a try has failed", async || world.ledger.parked_one(world.id("one")).await.unwrap()?.last_error).await;
    assert!(!failed.is_empty());
    assert_eq!(world.story("one").await.unwrap().state, "unknown_outcome");
    assert_eq!(resolve(&cut_off, &world, "one", &json!({ "as": "succeeded" })).await.status, 202, "said again");
    let otherwise = resolve(&cut_off, &world, "one", &json!({ "as": "retry" })).await;
    assert_eq!(otherwise.status, 409, "{otherwise:?}");
    cut_off.stop().await;

    let node = world.node_with(TAKES_IN, |_| {}).await;
    let story = world.succeeded("one").await;
    assert_eq!((story.pin.attempts, world.runner.of("one").len()), (1, 1));
    assert_eq!(look_up(&node, &world, "one").await["result"], 7);
    for node in [node, worker] {
        node.stop().await;
    }
}

/// Temporal's worker is killed in the middle of an attempt of "one", and another one comes.
async fn loses_its_temporal_worker(world: &World, lease: u64, before: impl AsyncFnOnce(&Node)) -> (Node, Node) {
    let short = |config: &mut crossover::config::Config| config.worker.lease = Duration::from_secs(lease);
    let node = world.node_with(TAKES_IN, short).await;
    let mut child = Child::serve(world, "worker", &[("CROSSOVER_WORKER_LEASE", &format!("{lease}s"))]).await;
    world.runner.hold("one");
    node.accepts(&with(world.request("one"), parks()), 201).await;
    world.runner.nth("one", 1).await;
    before(&node).await;
    child.kill();
    let heir = world.node_with(ONLY_WORKS, short).await;
    (node, heir)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_whose_failure_was_recorded_and_whose_report_was_lost_is_parked_where_somebody_sees_it() {
    let world = World::new(Stage::Shadow).await;
    let (node, heir) = loses_its_temporal_worker(&world, 1, async |_| {
        let pin = world.story("one").await.unwrap().pin;
        let attempt = Attempt {
            id: pin.id,
            side: Side::Temporal,
            fence: Fence { epoch: 1, attempt: 1 },
            rehearsal: false,
            due_at: pin.created_at,
            started_at: pin.created_at,
            ended_at: pin.created_at,
            outcome: Some(Outcome::Failed),
            failure: Some(Failure::RETRYABLE),
            retry_ms: Some(50),
            result: None,
            error: Some("busy".into()),
        };
        world.ledger.record_attempt(&attempt).await.unwrap();
    })
    .await;
    until_parked(&world, "one").await;
    assert_eq!(doubts(&world, "one").await, [None], "what is known of it stays");
    world.runner.release("one");
    let answer = resolve(&node, &world, "one", &json!({ "as": "retry" })).await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    assert_eq!(world.succeeded("one").await.pin.attempts, 2);
    for node in [node, heir] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_wait_for_a_person_closes_where_its_pin_has_ended() {
    let world = World::new(Stage::Shadow).await;
    let (node, heir) = loses_its_temporal_worker(&world, 1, async |_| {
        let end =
            "select crossover.end_pins('temporal', array[$1], array[1], array[1], array['failed'], array['by hand'])";
        sqlx::query(end).bind(world.id("one")).execute(world.pool()).await.unwrap();
    })
    .await;
    let client = client(&world);
    let workflow = format!("{}:1", world.id("one"));
    until("its workflow has closed", async || client.describe(&workflow).await.ok()??.open.eq(&false).then_some(()))
        .await;
    assert!(world.ledger.parked(None, 10).await.unwrap().is_empty());
    for node in [node, heir] {
        node.stop().await;
    }
}

fn client(world: &World) -> TemporalClient {
    let settings = ClientSettings {
        address: format!("http://{}", world.temporal),
        namespace: "default".to_owned(),
        task_queue: "unused".to_owned(),
        timeout: Duration::from_secs(10),
        identity: "test".to_owned(),
        terms: Default::default(),
        window: Duration::from_secs(60),
        series_items_a_run: 100,
    };
    TemporalClient::lazy(settings).unwrap()
}

/// What runs hears of a cancellation with its heartbeat, a quarter of the lease apart; a worker that dies before never does.
#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_is_lost_with_its_temporal_worker_after_it_was_cancelled_counts_and_is_said_to_be_unknown() {
    let world = World::new(Stage::Shadow).await;
    let lease = |config: &mut crossover::config::Config| config.worker.lease = Duration::from_secs(14);
    let node = world.node_with(TAKES_IN, lease).await;
    let mut child = Child::serve(&world, "worker", &[("CROSSOVER_WORKER_LEASE", "14s")]).await;
    world.runner.hold("one");
    node.accepts(&with(world.request("one"), retries()), 201).await;
    world.runner.nth("one", 1).await;
    // Not over the API: that waits for what comes of it.
    assert_eq!(world.ledger.cancel(world.id("one"), "test").await.unwrap(), Some(Cancelling::Asked));
    let workflow = format!("{}:1", world.id("one"));
    until("Temporal has been told to cancel it", async || {
        let shown = servers::cli_output(&["workflow", "show", "--workflow-id", &workflow]).await;
        shown.contains("ActivityTaskCancelRequested").then_some(())
    })
    .await;
    child.kill();
    let heir = world.node_with(ONLY_WORKS, lease).await;
    let story = world.ended("one").await;
    assert_eq!((story.state.as_str(), story.pin.attempts), ("cancelled", 1), "{story:#?}");
    assert_eq!(world.runner.of("one").len(), 1);
    assert_eq!(doubts(&world, "one").await, [], "its worker has said nothing of it");
    never_diverged(&node, &world, "one").await;
    for node in [node, heir] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_after_an_attempt_was_lost_with_its_temporal_worker_repeats_no_fence() {
    let world = World::new(Stage::Shadow).await;
    let short = |config: &mut crossover::config::Config| config.worker.lease = Duration::from_secs(1);
    let node = world.node_with(TAKES_IN, short).await;
    let mut child = Child::serve(&world, "worker", &[("CROSSOVER_WORKER_LEASE", "1s")]).await;
    world.runner.hold("one");
    node.accepts(&with(world.request("one"), retries()), 201).await;
    world.runner.nth("one", 1).await;
    child.kill();
    let heir = world.node_with(ONLY_WORKS, short).await;
    world.runner.nth("one", 2).await;
    world.until_story("one", "the lost one is counted", |story| (story.pin.attempts == 1).then_some(())).await;
    let workflow = format!("{}:1", world.id("one"));
    let reset = ["workflow", "reset", "--workflow-id", &workflow, "--type", "FirstWorkflowTask", "--reason", "test"];
    assert!(servers::cli(&reset).await);
    world.runner.nth("one", 3).await;
    world.runner.release("one");
    assert_eq!(world.succeeded("one").await.pin.attempts, 3);
    let fences: Vec<_> = world.runner.of("one").iter().map(|call| call.fence).collect();
    assert_eq!(fences, [(1, 1), (1, 2), (1, 3)]);
    never_diverged(&node, &world, "one").await;
    for node in [node, heir] {
        node.stop().await;
    }
}
