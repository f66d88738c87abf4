//! What looks like a divergence and is none.

use crossover::interaction::Stage;
use serde_json::json;

use super::*;
use crate::bridge::runner::Rule;
use crate::bridge::world::{ALL, ROUTER, WORKER, with};

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_long_is_in_flight_until_it_ends() {
    let world = World::new(Stage::Shadow).await;
    let node = node(&world).await;
    world.runner.hold("long");
    node.accepts(&world.request("long"), 201).await;
    node.post(&world.member("series", "head")).await;
    node.post(&world.member("series", "next")).await;
    let looked = until("it was looked at again and again", async || {
        row(&world, world.id("long")).await.filter(|judged| judged.looks >= 4 || judged.verdict != "in_flight")
    });
    assert_eq!(looked.await.verdict, "in_flight");
    world.runner.release("long");
    for key in ["long", "head", "next"] {
        matched(&world, key).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_was_handed_back_at_a_shutdown_is_no_duplicate() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, quick).await;
    let worker = world.node_with(WORKER, quick).await;
    router.accepts(&world.request("before"), 201).await;
    matched(&world, "before").await;
    world.runner.hold("handed");
    router.accepts(&world.request("handed"), 201).await;
    let rehearsing = "select count(*) from crossover.running where not execute";
    until("it is rehearsed", async || (world.scalar::<i64>(rehearsing).await == 1).then_some(())).await;
    world.runner.nth("handed", 1).await;
    let other = world.node_with(WORKER, quick).await;
    worker.stop().await;
    world.runner.release("handed");
    world.succeeded("handed").await;
    let judged = judged(&world, "handed").await;
    // Its run on Temporal was interrupted as well, and made again.
    assert!(judged.divergences.is_empty() && judged.verdict != "dropped", "{judged:#?}");
    router.accepts(&world.request("after"), 201).await;
    matched(&world, "after").await;
    router.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_side_that_is_late_as_a_whole_is_not_late_one_by_one() {
    let world = World::new(Stage::Shadow).await;
    let strict = |config: &mut Config| {
        quick(config);
        config.comparator.late = Duration::from_millis(400);
    };
    let node = world.node_with(ALL, strict).await;
    let keys: Vec<String> = (0..8).map(|n| format!("slow-{n}")).collect();
    // Nothing can be claimed meanwhile; it ends before anybody takes it for an outage.
    let mut lock = world.pool().begin().await.unwrap();
    sqlx::query("lock table crossover.running in share mode").execute(&mut *lock).await.unwrap();
    for key in &keys {
        node.accepts(&world.request(key), 201).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    lock.rollback().await.unwrap();
    for key in &keys {
        matched(&world, key).await;
    }
    let late = "select count(*) from crossover.observations
        where postgres_dequeued_at > temporal_dequeued_at + interval '400 milliseconds'";
    assert!(world.scalar::<i64>(late).await > 0, "it was late");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_alike_on_both_sides_matches() {
    let world = World::new(Stage::Live).await;
    let node = node(&world).await;
    let policy = json!({ "max_attempts": 3, "backoff": { "delays_ms": [150, 300] } });
    world.runner.rule("recovers", Rule::Fail(2));
    world.runner.rule("gives up", Rule::Fail(9));
    world.runner.rule("refused", Rule::Refuse);
    for key in ["recovers", "gives up", "refused"] {
        node.accepts(&with(world.request(key), json!({ "policy": policy })), 201).await;
    }
    for (key, attempts) in [("recovers", 3), ("gives up", 3), ("refused", 1)] {
        let row = matched(&world, key).await.row;
        assert_eq!((&row["temporal_attempts"], &row["postgres_attempts"]), (&json!(attempts), &json!(attempts)));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ended_before_temporal_could_have_it_is_dropped() {
    let world = World::new(Stage::Live).await;
    let alone = world.node_towards("127.0.0.1:9", ALL, quick).await;
    for key in ["ended", "ended too"] {
        alone.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
    }
    alone.stop().await;
    let node = node(&world).await;
    for key in ["ended", "ended too"] {
        verdict(&world, key, "dropped").await;
    }
    node.accepts(&world.request("after"), 201).await;
    matched(&world, "after").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_long_before_it_was_due_is_dropped_at_once_in_either_stage() {
    for stage in [Stage::Shadow, Stage::Live] {
        let world = World::new(stage).await;
        let node = node(&world).await;
        let due = chrono::Utc::now() + chrono::TimeDelta::hours(1);
        node.accepts(&with(world.request("one"), json!({ "run_at": due })), 201).await;
        let path = format!("{}/v1/interactions/{}/cancel", node.base, world.id("one"));
        let answer = reqwest::Client::new().post(path).send().await.unwrap();
        assert!(answer.status().is_success(), "{stage}: {answer:?}");
        let cancelled = world.ended("one").await;
        assert_eq!(cancelled.state, "cancelled", "{stage}");
        verdict(&world, "one", "dropped").await;
        node.stop().await;
    }
}
