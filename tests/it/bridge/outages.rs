//! A server that is away, and one that dies in the middle of a run.

use std::time::Instant;

use crossover::interaction::Side;
use crossover::provision;

use super::child::Child;
use super::proxy::black_hole;
use super::*;
use crate::servers;

fn keys(prefix: &str, n: usize) -> Vec<String> {
    (0..n).map(|n| format!("{prefix}{n}")).collect()
}

/// Half of it is under way when the server dies, half waits, and more comes meanwhile.
async fn runs_through(world: &World, node: &Node, down: impl AsyncFnOnce()) {
    world.runner.pace(Duration::from_millis(30));
    let (before, series) = (keys("before", 12), keys("member", 6));
    for key in &before {
        node.accepts(&world.request(key), 201).await;
    }
    for key in &series {
        assert!(matches!(node.post(&world.member("s", key)).await.status, 201 | 202));
    }
    world.runner.hold("held");
    node.accepts(&world.request("held"), 201).await;
    world.runner.nth("held", 1).await;
    down().await;
    world.runner.release("held");
    // A caller that gets no yes repeats the key.
    let during = keys("during", 4);
    for key in &during {
        until("it is accepted", async || {
            matches!(node.post(&world.request(key)).await.status, 200..=202).then_some(())
        })
        .await;
    }
    let all: Vec<String> = [before, series, during, vec!["held".into()]].concat();
    world.each_ran_on_its_owner(&all).await;
}

async fn runs_through_a_postgres_restart_in(stage: Stage) {
    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let world = World::with(Some(postgres.url.clone()), None, stage).await;
    let node = world.node().await;
    runs_through(&world, &node, async || {
        postgres.server.kill().await.unwrap();
        let refused = node.accepts(&world.request("away"), 503).await;
        assert!(refused.body["key"] == "away" && refused.headers["retry-after"] == "1", "{refused:?}");
        assert_eq!(node.get("/readyz").await.status, 503);
        assert_eq!(node.get("/healthz").await.status, 200);
        postgres.server.restart().await.unwrap();
    })
    .await;
    // Refused, so it is for the caller to say whether it shall be.
    node.post(&world.request("away")).await;
    world.succeeded("away").await;
    node.stop().await;
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_killed_in_shadow_loses_nothing_and_is_answered_with_503_meanwhile() {
    runs_through_a_postgres_restart_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_killed_in_live_loses_nothing_and_is_answered_with_503_meanwhile() {
    runs_through_a_postgres_restart_in(Stage::Live).await;
}

async fn runs_through_a_temporal_restart_in(stage: Stage) {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let world = World::with(None, Some(temporal.address.clone()), stage).await;
    let node = world.node_with(ALL, |config| config.temporal.start_timeout = Duration::from_millis(500)).await;
    runs_through(&world, &node, async || {
        temporal.server.kill().await.unwrap();
        let status = if stage == Stage::Shadow { 202 } else { 201 };
        node.accepts(&world.request("away"), status).await;
        temporal.server.restart().await.unwrap();
    })
    .await;
    world.each_ran_on_its_owner(&["away".to_owned()]).await;
    // What had ended before Temporal came back isn't rehearsed there any more.
    until("all is delivered", async || (world.ledger.outbox_depth().await.unwrap().rows == 0).then_some(())).await;
    node.stop().await;
    temporal.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_killed_in_shadow_loses_nothing() {
    runs_through_a_temporal_restart_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_killed_in_live_loses_nothing_and_delays_nothing() {
    runs_through_a_temporal_restart_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_temporal_away_a_pin_in_shadow_is_pending_and_one_in_live_runs() {
    let world = World::new(Stage::Shadow).await;
    let deaf = black_hole().await;
    let node =
        world.node_towards(&deaf, ALL, |config| config.temporal.start_timeout = Duration::from_millis(200)).await;
    node.accepts(&world.request("shadow"), 202).await;
    // The pin is there: a repeat gets the first answer.
    assert_eq!(node.accepts(&world.request("shadow"), 200).await.owner(), Side::Temporal);
    world.flip(Stage::Live, &[&node]).await;
    node.accepts(&world.request("live"), 201).await;
    world.succeeded("live").await;
    assert!(world.runner.of("shadow").is_empty());
    let story = world.story("shadow").await.unwrap();
    assert_eq!((story.state.as_str(), story.undelivered), ("waiting", true));
    node.stop().await;
}

/// A process that is asked to end while its servers are gone must not wait for them for ever.
async fn ends_without(
    stage: Stage,
    within: Duration,
    away: impl AsyncFnOnce(),
    back: impl AsyncFnOnce(),
    world: World,
) {
    let mut child = Child::serve(&world, "router,worker,relay", &[("CROSSOVER_WORKER_SHUTDOWN_GRACE", "1s")]).await;
    world.runner.hold("one");
    assert_eq!(child.node.accepts(&world.request("one"), 201).await.owner(), stage.owner());
    world.runner.nth("one", 1).await;
    away().await;
    let asked = Instant::now();
    child.terminate();
    world.runner.release("one");
    assert_eq!(child.ended().await.code(), Some(0), "{}", child.log());
    assert!(asked.elapsed() < within, "{}", child.log());
    back().await;
    let node = world.node().await;
    world.each_ran_on_its_owner(&["one".to_owned()]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_process_whose_postgres_is_away_and_its_work_goes_on_elsewhere() {
    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let world = World::with(Some(postgres.url.clone()), None, Stage::Live).await;
    let server = tokio::sync::Mutex::new(&mut postgres.server);
    let away = async || server.lock().await.kill().await.unwrap();
    // Three waits of postgres.connect_timeout, and the grace.
    let within = Duration::from_secs(22);
    ends_without(Stage::Live, within, away, async || server.lock().await.restart().await.unwrap(), world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_ends_a_process_whose_temporal_is_away_and_its_work_goes_on_elsewhere() {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let world = World::with(None, Some(temporal.address.clone()), Stage::Shadow).await;
    let server = tokio::sync::Mutex::new(&mut temporal.server);
    let away = async || server.lock().await.kill().await.unwrap();
    let within = Duration::from_secs(12);
    ends_without(Stage::Shadow, within, away, async || server.lock().await.restart().await.unwrap(), world).await;
}
