//! What is away holds no slot, and belongs to no process.

use super::*;

async fn hold_no_slot_on(side: Side) {
    let world = World::new(stage_of(side)).await;
    let node = world.node_with(ALL, |config| config.worker.slots = 1).await;
    let keys: Vec<String> = (0..5).map(|n| format!("long-{n}")).collect();
    for key in &keys {
        world.runner.rule(key, Rule::Away(60.0));
        node.accepts(&world.request(key), 201).await;
    }
    for key in &keys {
        let away = until_away(&node, &world, key).await;
        assert_eq!((&away["side"], &away["fence"]), (&json!(side.as_str()), &json!("1.1")), "{away}");
    }
    node.accepts(&world.request("short"), 201).await;
    world.succeeded("short").await;
    for key in &keys {
        let story = world.story(key).await.unwrap();
        assert!(story.state == "running" && story.attempts.is_empty(), "{story:#?}");
        let why = crossover::report::story(&world.ledger, world.id(key), false).await.unwrap().unwrap();
        assert!(why.waits_for.as_ref().unwrap().contains("the runner that took attempt 1 away"), "{why:#?}");
        let answer = completed(&node, &world, key, "1.1").await;
        assert_eq!(answer.status, if side == Side::Postgres { 200 } else { 202 }, "{answer:?}");
    }
    for key in &keys {
        let story = world.succeeded(key).await;
        assert_eq!((story.pin.attempts, world.runner.of(key).len()), (1, 1));
        assert_eq!(look_up(&node, &world, key).await["result"], json!({ "long": key }));
        matched(&node, &world, key).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_away_hold_no_slot_of_the_postgres_worker() {
    hold_no_slot_on(Side::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runs_that_are_away_hold_no_slot_of_the_temporal_worker() {
    hold_no_slot_on(Side::Temporal).await;
}

async fn outlives_every_process_on(side: Side) {
    let world = World::new(stage_of(side)).await;
    let set = [("CROSSOVER_WORKER_LEASE", "4s")];
    let mut first = Child::serve(&world, "router,worker,relay", &set).await;
    world.runner.rule("long", Rule::Away(10.0));
    first.node.accepts(&world.request("long"), 201).await;
    until_away(&first.node, &world, "long").await;
    // A deploy: each is there before the one that it replaces is gone.
    let mut second = Child::serve(&world, "router,worker,relay", &set).await;
    first.kill();
    let keeper = Keeper::of(&second.node, &world, "long", "1.1");
    tokio::time::sleep(Duration::from_secs(6)).await;
    let third = Child::serve(&world, "router,worker,relay", &set).await;
    drop(keeper);
    second.terminate();
    second.ended().await;
    let kept = reported(&third.node, &world, "long", "heartbeat", json!({ "fence": "1.1" })).await;
    assert_eq!(kept.status, 200, "{kept:?}");
    completed(&third.node, &world, "long", "1.1").await;
    let story = world.succeeded("long").await;
    assert_eq!((story.pin.attempts, world.runner.of("long").len()), (1, 1), "{story:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_postgres_that_is_away_outlives_every_process() {
    outlives_every_process_on(Side::Postgres).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_of_temporal_that_is_away_outlives_every_process() {
    outlives_every_process_on(Side::Temporal).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_a_series_that_is_away_keeps_the_next_waiting() {
    for side in [Side::Postgres, Side::Temporal] {
        let world = World::new(stage_of(side)).await;
        let node = world.node().await;
        world.runner.rule("first", Rule::Away(60.0));
        node.accepts(&world.member("one", "first"), 201).await;
        node.accepts(&world.member("one", "second"), 201).await;
        until_away(&node, &world, "first").await;
        // Another series shows that whoever could have begun it had the time.
        node.accepts(&world.member("another", "witness"), 201).await;
        world.succeeded("witness").await;
        assert!(world.runner.of("second").is_empty(), "{side}");
        completed(&node, &world, "first", "1.1").await;
        let first = world.succeeded("first").await.pin.ended_at.unwrap();
        let second = world.succeeded("second").await.attempts.iter().find(|a| !a.rehearsal).unwrap().started_at;
        assert!(second >= first - chrono::TimeDelta::milliseconds(500), "{side}: {second} {first}");
        for key in ["first", "second"] {
            matched(&node, &world, key).await;
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_away_is_not_delivered_again_however_long_it_takes() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.relay.sweep_after = Duration::from_millis(500)).await;
    world.runner.rule("long", Rule::Away(60.0));
    node.accepts(&world.member("one", "long"), 201).await;
    until_away(&node, &world, "long").await;
    let swept = "select count(*) from crossover.pins where swept_at is not null and key = 'long'";
    let before = world.scalar::<i64>(swept).await;
    world.runner.hold("held");
    node.accepts(&world.request("held"), 201).await;
    // What a worker holds is swept, so the sweep has come by.
    until("the other is swept", async || {
        let other = "select count(*) from crossover.pins where swept_at is not null and key = 'held'";
        (world.scalar::<i64>(other).await == 1).then_some(())
    })
    .await;
    assert_eq!(world.scalar::<i64>(swept).await, before);
    world.runner.release("held");
    completed(&node, &world, "long", "1.1").await;
    world.succeeded("long").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_without_a_pin_may_be_away_as_well() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    world.runner.rule("long", Rule::Away(60.0));
    node.accepts(&world.request("long"), 201).await;
    let id = world.id("long");
    until("it is away", async || world.ledger.away(id).await.unwrap()).await;
    assert_eq!(completed(&node, &world, "long", "1.1").await.status, 202);
    until("Temporal has ended it", async || {
        (look_up(&node, &world, "long").await["state"] == "succeeded").then_some(())
    })
    .await;
    assert_eq!(completed(&node, &world, "long", "1.1").await.status, 202, "said again");
    assert_eq!(world.runner.of("long").len(), 1);
    node.stop().await;
}
