//! Postgres or Temporal goes away while a run is away with its runner, or as it is taken away.

use crossover::provision;

use super::*;
use crate::servers;

async fn own_postgres() -> provision::Postgres {
    provision::postgres(&servers::options()).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn outlives_postgres_on(side: Side, silence: f64) {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, stage_of(side)).await;
    let node = world.node_with(ALL, short).await;
    world.runner.rule("long", Rule::Away(silence));
    node.accepts(&with(world.request("long"), retries()), 201).await;
    until_away(&node, &world, "long").await;
    let keeper = Keeper::of(&node, &world, "long", "1.1");
    if side == Side::Temporal {
        until("Temporal has heard of it", async || {
            (counted(&node, "crossover_detached_forwarded_total", "told").await > 0.0).then_some(())
        })
        .await;
    }
    postgres.server.kill().await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let away = report(&node, &world, "long", "heartbeat", json!({ "fence": "1.1" })).await;
    assert!(away.status == 503 && away.headers.contains_key("retry-after"), "{away:?}");
    postgres.server.restart().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(keeper);
    let answer = completed(&node, &world, "long", "1.1").await;
    assert!(matches!(answer.status, 200 | 202), "{answer:?}");
    let story = world.succeeded("long").await;
    assert_eq!((story.pin.attempts, world.runner.of("long").len()), (1, 1), "{story:#?}");
    node.stop().await;
}

/// The heartbeat time-out is over when Postgres is back, and the runner has it again.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_postgres_that_is_away_outlives_a_restart_of_postgres() {
    outlives_postgres_on(Side::Postgres, 6.0).await;
}

/// The outage is far longer than Temporal waits for a heartbeat.
#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_temporal_that_is_away_outlives_an_outage_of_postgres() {
    outlives_postgres_on(Side::Temporal, 40.0).await;
}

/// The runner says that it takes it away while Postgres can't be told.
async fn is_recorded_later_on(side: Side) {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, stage_of(side)).await;
    let node = world.node().await;
    world.runner.rule("long", Rule::HoldThenAway(20.0));
    node.accepts(&world.request("long"), 201).await;
    world.runner.nth("long", 1).await;
    postgres.server.kill().await.unwrap();
    world.runner.rule("long", Rule::Away(20.0));
    until("the runner has answered", async || world.runner.of("long")[0].ended).await;
    let early = report(&node, &world, "long", "heartbeat", json!({ "fence": "1.1" })).await;
    assert_eq!(early.status, 503, "{early:?}");
    postgres.server.restart().await.unwrap();
    let kept = reported(&node, &world, "long", "heartbeat", json!({ "fence": "1.1" })).await;
    assert_eq!(kept.status, 200, "{kept:?}");
    completed(&node, &world, "long", "1.1").await;
    let story = world.succeeded("long").await;
    assert_eq!((story.pin.attempts, world.runner.of("long").len()), (1, 1), "{story:#?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runner_takes_away_of_postgres_during_an_outage_is_recorded_after_it() {
    is_recorded_later_on(Side::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runner_takes_away_of_temporal_during_an_outage_of_postgres_is_recorded_after_it() {
    is_recorded_later_on(Side::Temporal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_temporal_cant_be_told_is_told_when_it_is_back() {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let address = temporal.address.clone();
    let world = World::with(None, Some(address), Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.worker.lease = Duration::from_secs(30)).await;
    world.runner.rule("long", Rule::Away(60.0));
    node.accepts(&world.request("long"), 201).await;
    until_away(&node, &world, "long").await;
    temporal.server.kill().await.unwrap();
    assert_eq!(completed(&node, &world, "long", "1.1").await.status, 202);
    until("a try has failed", async || {
        (counted(&node, "crossover_detached_forwarded_total", "failed").await > 0.0
            || world.scalar::<i64>("select count(*) from crossover.detached where tries > 1").await > 0)
            .then_some(())
    })
    .await;
    temporal.server.restart().await.unwrap();
    let story = world.succeeded("long").await;
    assert_eq!((story.pin.attempts, world.runner.of("long").len()), (1, 1), "{story:#?}");
    node.stop().await;
}
