//! The way from open to armed, and back.

use super::*;
use crate::bridge::child::Child;
use crate::bridge::world::{ALL, ROUTER};

#[tokio::test(flavor = "multi_thread")]
async fn live_of_an_unarmed_account_executes_on_temporal_and_status_says_what_it_waits_for() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, |config| {
        arming(config);
        config.window.idempotency = Duration::from_secs(3_600);
    });
    let node = node.await;
    unpinned(&world, &node, "before").await;
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(stage_of(&world, &node, "live").await, are(Stage::Shadow, "temporal"));
    world.succeeded("live").await;
    assert_eq!(world.runner.sides("live"), ["temporal"]);
    until_state(&world, "window").await;

    let hour = [&ARMING[..1], &[("CROSSOVER_WINDOW_IDEMPOTENCY", "1h")]].concat();
    let (_, status) = run_with(&world, &["status"], &hour).await;
    let line = &status["arming"]["under_way"][0];
    assert_eq!((&line["state"], &line["wanted"]), (&Value::from("window"), &Value::from(true)), "{status}");
    let said = line["waits_for"].as_str().unwrap();
    assert!(
        said.contains("until every key that a caller may repeat has a pin")
            && (said.contains("59m") || said.contains("1h")),
        "{said}"
    );
    assert_eq!(status["accounts"][0]["stage"], "shadow", "{status}");

    let (code, said) = run_with(&world, &["cutover", &world.account, "--yes"], &hour).await;
    assert_eq!((code, &said["arming"]["state"]), (4, &Value::from("window")), "it says so and does not wait: {said}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn from_off_through_shadow_to_live_a_key_of_off_that_is_repeated_runs_once() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, arming).await;
    let other = world.node_with(ROUTER, arming).await;
    unpinned(&world, &node, "first").await;
    unpinned(&world, &other, "again").await;
    world.flip(Stage::Shadow, &[&node, &other]).await;
    assert_eq!(stage_of(&world, &other, "shadowed").await, are(Stage::Shadow, "temporal"));
    // Two processes drive, and each step was made once.
    assert_eq!(until_state(&world, "window").await, 2);
    world.flip(Stage::Live, &[&node, &other]).await;
    for key in ["first", "again"] {
        let repeated = other.post(&world.request(key)).await;
        assert_eq!(repeated.body["owner"], "temporal", "{repeated:?}");
    }
    assert_eq!(until_state(&world, "armed").await, 5);
    // The armed set reaches every router, but the pin goes by the account, so nobody has to wait for that.
    assert_eq!(stage_of(&world, &node, "live").await, are(Stage::Live, "postgres"));
    for key in ["first", "again"] {
        assert_eq!(other.accepts(&world.request(key), 200).await.body["owner"], "temporal");
        world.succeeded(key).await;
        assert_eq!(world.runner.sides(key), ["temporal"], "{key}");
    }
    world.each_ran_on_its_owner(&["live".into(), "shadowed".into()]).await;

    // Armed, so also in off everything is pinned.
    world.flip(Stage::Off, &[&node, &other]).await;
    assert_eq!(stage_of(&world, &other, "off").await, are(Stage::Off, "temporal"));
    assert!(world.story("off").await.is_some());
    other.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_armed_ahead_is_live_with_its_first_pin_after_the_cutover() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, arming).await;
    let (code, said) = run(&world, &["arm", &world.account]).await;
    assert_eq!((code, &said["done"]), (2, &Value::Bool(false)), "not without --yes: {said}");
    assert!(state(&world).await.is_none());
    let (code, said) = run(&world, &["arm", &world.account, "--yes"]).await;
    assert_eq!((code, &said["to"]), (0, &Value::from("pinning")), "{said}");
    assert_eq!(stage_of(&world, &node, "shadowed").await, are(Stage::Shadow, "temporal"));
    until_state(&world, "armed").await;
    assert_eq!(stage_of(&world, &node, "still").await, are(Stage::Shadow, "temporal"));
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(stage_of(&world, &node, "live").await, are(Stage::Live, "postgres"));
    let (code, said) = run(&world, &["cutover", &world.account, "--yes"]).await;
    assert_eq!((code, &said["arming"]), (0, &Value::Null), "{said}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_nobody_wants_live_stays_in_its_window() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, arming).await;
    stage_of(&world, &node, "shadowed").await;
    let generation = until_state(&world, "window").await;
    let (_, said) = until_it_waits_for(&world, "crossover arm").await;
    assert!(said.contains("wanted live"), "{said}");
    assert_eq!(state(&world).await, Some(("window".to_owned(), generation)));
    // Back to off: it stays pinned until it is disarmed, and that is at once.
    world.flip(Stage::Off, &[&node]).await;
    assert_eq!(stage_of(&world, &node, "off").await, are(Stage::Off, "temporal"));
    assert!(world.story("off").await.is_some(), "it is pinned");
    until("the flip to off is noted", async || {
        let live = "select count(*) from crossover.standings where stage <> 'off'";
        (world.scalar::<i64>(live).await == 0).then_some(())
    })
    .await;
    let (code, said) = run(&world, &["disarm", &world.account, "--yes"]).await;
    assert_eq!((code, &said["from"], &said["to"]), (0, &Value::from("window"), &Value::from("open")), "{said}");
    until_open_again(&world, &node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn disarming_ends_in_open_a_window_after_what_postgres_owned_has_ended() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, arming).await;
    unpinned(&world, &node, "before").await;
    world.flip(Stage::Live, &[&node]).await;
    stage_of(&world, &node, "first").await;
    until_state(&world, "armed").await;
    world.runner.hold("owned");
    assert_eq!(stage_of(&world, &node, "owned").await, are(Stage::Live, "postgres"));
    world.runner.nth("owned", 1).await;
    let (code, said) = run(&world, &["disarm", &world.account, "--yes"]).await;
    assert!(code == 1 && said["error"].as_str().unwrap().contains("live or complete"), "{code} {said}");

    world.flip(Stage::Off, &[&node]).await;
    until("the flip to off is noted", async || {
        let live = "select count(*) from crossover.standings where stage <> 'off'";
        (world.scalar::<i64>(live).await == 0).then_some(())
    })
    .await;
    let (code, said) = run(&world, &["disarm", &world.account, "--yes"]).await;
    assert_eq!((code, &said["to"]), (0, &Value::from("disarming")), "{said}");
    let (_, said) = until_it_waits_for(&world, "1 interactions that Postgres owns").await;
    assert!(said.contains("a whole window"), "{said}");
    stage_of(&world, &node, "meanwhile").await;
    assert!(world.story("meanwhile").await.is_some(), "it is pinned until then");
    world.runner.release("owned");
    world.succeeded("owned").await;
    until_state(&world, "open").await;
    until_open_again(&world, &node).await;
    // What was repeated on the way ran once, where it was owned.
    world.each_ran_on_its_owner(&["owned".into(), "meanwhile".into(), "first".into()]).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_is_killed_between_two_steps_is_taken_over() {
    let world = World::new(Stage::Off).await;
    let home = world.fresh("home");
    std::fs::create_dir_all(&home).unwrap();
    let settled = [&ARMING[..], &[("CROSSOVER_STATE_DIR", home.to_str().unwrap())]].concat();
    let mut first = Child::serve(&world, "router,worker,relay", &settled).await;
    unpinned(&world, &first.node, "before").await;
    crate::bridge::world::document(Stage::Live).write_to(&world.flags).unwrap();
    until("it is pinned", async || {
        let answer = first.node.post(&world.request("pinned")).await;
        (answer.body["stage"] == "shadow").then_some(())
    })
    .await;
    until_state(&world, "window").await;
    first.kill();
    let (state_then, _) = state(&world).await.unwrap();
    assert_ne!(state_then, "armed");
    let second = Child::serve(&world, "router,worker,relay", &settled).await;
    assert_eq!(until_state(&world, "armed").await, 5, "no step was made twice");
    let registered = "select count(*) from crossover.routers where ended_at is null";
    assert_eq!(world.scalar::<i64>(registered).await, 1, "it has taken up the registration on its disk");
    assert_eq!(stage_of(&world, &second.node, "live").await, are(Stage::Live, "postgres"));
    world.each_ran_on_its_owner(&["pinned".into(), "live".into()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_flags_want_live_begins_its_way_before_its_next_enqueue() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, arming).await;
    unpinned(&world, &node, "before").await;
    until("the account is known", async || {
        (world.scalar::<i64>("select count(*) from crossover.standings").await > 0).then_some(())
    })
    .await;
    world.flip(Stage::Live, &[&node]).await;
    until_state(&world, "armed").await;
    assert_eq!(stage_of(&world, &node, "live").await, are(Stage::Live, "postgres"));
    node.stop().await;
}
