//! Workers that are lost with an attempt whose policy parks it, and answers that Temporal can't be told yet.

use super::*;
use crate::bridge::proxy::black_hole;

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
