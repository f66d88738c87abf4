//! Rehearsals of long runs: they stay for as long as their runs are heard of, and end with them.

use super::*;

fn bounded_soon(config: &mut Config) {
    short(config);
    config.rehearsal.bound = Duration::from_secs(2);
}

const OPEN: &str = "select count(*) from crossover.rehearsals";

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_temporal_stays_beyond_its_bound_while_the_runner_is_heard_of() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ALL, bounded_soon).await;
    world.runner.rule("long", Rule::Away(3.0));
    node.accepts(&world.request("long"), 201).await;
    until_away(&node, &world, "long").await;
    let keeper = Keeper::of(&node, &world, "long", "1.1");
    until("it is rehearsed", async || (world.scalar::<i64>(OPEN).await == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(6)).await;
    let observed = look_up(&node, &world, "long").await["observation"]["verdict"].clone();
    assert_eq!(observed, "in_flight");
    drop(keeper);
    assert_eq!(completed(&node, &world, "long", "1.1").await.status, 200);
    world.succeeded("long").await;
    let rehearsal = &world.rehearsed("long", 1).await[0];
    assert_eq!(rehearsal.outcome.map(|o| o.as_str()), Some("succeeded"), "{rehearsal:#?}");
    matched(&node, &world, "long").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_temporal_stays_beyond_its_bound_while_a_worker_runs_the_real_one() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ALL, bounded_soon).await;
    world.runner.hold("long");
    node.accepts(&world.request("long"), 201).await;
    world.runner.nth("long", 1).await;
    until("it is rehearsed", async || (world.scalar::<i64>(OPEN).await == 1).then_some(())).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    world.runner.release("long");
    world.succeeded("long").await;
    let rehearsal = &world.rehearsed("long", 1).await[0];
    assert_eq!(rehearsal.outcome.map(|o| o.as_str()), Some("succeeded"), "{rehearsal:#?}");
    matched(&node, &world, "long").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_postgres_holds_no_slot_while_its_run_is_away_and_ends_with_it() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.worker.slots = 1).await;
    let keys: Vec<String> = (0..12).map(|n| format!("long-{n}")).collect();
    for key in &keys {
        world.runner.rule(key, Rule::Away(60.0));
        node.accepts(&world.request(key), 201).await;
    }
    // More than wait for one slot otherwise.
    let rehearsing = "select count(*) from crossover.running where not execute";
    until("all are rehearsed", async || (world.scalar::<i64>(rehearsing).await == 12).then_some(())).await;
    for key in &keys {
        assert_eq!(completed(&node, &world, key, "1.1").await.status, 202);
    }
    for key in &keys {
        world.succeeded(key).await;
        matched(&node, &world, key).await;
    }
    node.stop().await;
}
