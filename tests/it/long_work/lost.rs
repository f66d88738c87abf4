//! Runners that fall silent, or take too long: their runs are tried again, and what they say afterwards is refused.

use super::*;

async fn is_refused_when_silent_on(side: Side) {
    let world = World::new(stage_of(side)).await;
    let node = world.node_with(ALL, short).await;
    world.runner.rule("long", Rule::Away(1.0));
    node.accepts(&with(world.request("long"), retries()), 201).await;
    until_away(&node, &world, "long").await;
    world.runner.rule("long", Rule::Hold);
    assert_eq!(world.runner.nth("long", 2).await.fence, (1, 2));
    for what in ["heartbeat", "complete", "fail"] {
        let answer = report(&node, &world, "long", what, json!({ "fence": "1.1" })).await;
        assert_eq!(answer.status, 409, "{what}: {answer:?}");
    }
    assert_eq!(counted(&node, "crossover_late_results_total", side.as_str()).await, 3.0);
    world.runner.release("long");
    let story = world.succeeded("long").await;
    assert_eq!(story.pin.attempts, 2);
    let lost = story.attempts.iter().find(|a| !a.rehearsal && a.fence.attempt == 1).unwrap();
    assert!(lost.error.as_ref().unwrap().contains("not heard of"), "{lost:#?}");
    assert_eq!(counted(&node, "crossover_detached_lost_total", side.as_str()).await, 1.0);
    matched(&node, &world, "long").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_runner_loses_its_run_of_postgres_and_its_word() {
    is_refused_when_silent_on(Side::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_runner_loses_its_run_of_temporal_and_its_word() {
    is_refused_when_silent_on(Side::Temporal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_do_not_prolong_a_run_beyond_its_run_time_out() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node_with(ALL, short).await;
        world.runner.rule("long", Rule::Away(60.0));
        let policy = json!({ "policy": { "run_timeout_ms": 3000, "max_attempts": 1 } });
        node.accepts(&with(world.request("long"), policy), 201).await;
        until_away(&node, &world, "long").await;
        let _keeper = Keeper::of(&node, &world, "long", "1.1");
        let story = world.ended("long").await;
        assert_eq!(story.state, "failed", "{side}");
        assert!(story.pin.reason.as_ref().unwrap().contains("run_timeout_ms"), "{side}: {:?}", story.pin);
        assert_eq!(counted(&node, "crossover_detached_lost_total", "run_timeout").await, 1.0);
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_lost_with_its_runner_is_parked_where_the_policy_says_so() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node_with(ALL, short).await;
        world.runner.rule("long", Rule::Away(1.0));
        let policy = json!({ "policy": { "on_unknown": "park" } });
        node.accepts(&with(world.request("long"), policy), 201).await;
        world.until_story("long", "it is parked", |story| (story.state == "unknown_outcome").then_some(())).await;
        let parked = world.ledger.parked_one(world.id("long")).await.unwrap().unwrap();
        assert_eq!((parked.side, parked.cause.as_str()), (side, "heartbeat_timeout"), "{parked:?}");
        let late = completed(&node, &world, "long", "1.1").await;
        assert_eq!(late.status, 409, "{side}: {late:?}");
        let answer = report(&node, &world, "long", "resolve", json!({ "as": "succeeded" })).await;
        assert!(matches!(answer.status, 200 | 202), "{answer:?}");
        world.succeeded("long").await;
        assert_eq!(world.runner.of("long").len(), 1, "{side}");
        node.stop().await;
    }
}
