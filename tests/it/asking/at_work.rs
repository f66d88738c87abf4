//! The questions while the bridge works.

use std::process::Output;

use crossover::interaction::Stage;
use serde_json::{Value, json};

use crate::bridge::until;
use crate::bridge::world::{ROUTER, World, with};

async fn ask(world: &World, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(arguments).arg("--json").envs(world.variables()).env("CROSSOVER_STATE_DIR", world.fresh("asks"));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn asked(world: &World, arguments: &[&str]) -> Value {
    let output = ask(world, arguments).await;
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle_of_it_why_says_what_runs_and_who_waits_for_whom() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("first");
    node.accepts(&world.member("s", "first"), 201).await;
    node.accepts(&world.member("s", "second"), 201).await;
    world.runner.nth("first", 1).await;
    let first = asked(&world, &["why", &world.id("first").to_string()]).await;
    assert_eq!(first["standing"]["state"], "running");
    let held = first["places"]
        .as_array()
        .unwrap()
        .iter()
        .find(|p| p["place"] == "running")
        .unwrap_or_else(|| panic!("{first}"));
    assert!(held["rehearsal"] == false && held["attempt"] == 1 && held["worker"].is_string(), "{held}");
    let second = asked(&world, &["why", "--account", &world.account, "--key", "second"]).await;
    assert_eq!((&second["standing"]["state"], &second["series"]["no"]), (&json!("waiting"), &json!(2)));
    let waits = second["waits_for"].as_str().unwrap();
    assert!(waits.contains("number 1 of series «s»") && waits.contains("postgres, running"), "{waits}");
    world.runner.release("first");
    world.succeeded("second").await;
    let second = asked(&world, &["why", &world.id("second").to_string()]).await;
    assert_eq!((&second["standing"]["state"], &second["waits_for"]), (&json!("succeeded"), &Value::Null));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_temporal_says_how_often_it_was_tried_and_why_it_failed() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_towards("127.0.0.1:1", ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 202).await;
    let story = asked(&world, &["why", &world.id("one").to_string()]).await;
    assert_eq!(story["standing"]["state"], "waiting");
    assert!(story["waits_for"].as_str().unwrap().starts_with("its delivery to Temporal"), "{story}");
    assert!(story["outbox"]["created_at"].is_string(), "{story}");
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_work_without_a_pin_only_temporal_knows_and_why_asks_it() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    node.accepts(&world.request("one"), 201).await;
    let story = until("it has ended", async || {
        Some(asked(&world, &["why", &world.id("one").to_string()]).await).filter(|s| s["state"] == "succeeded")
    })
    .await;
    assert!(story["pin"].is_null() && story["note"].as_str().unwrap().contains("without a pin"), "{story}");
    let output = ask(&world, &["why", "--account", &world.account, "--key", "never"]).await;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.code() == Some(1) && said.contains("without a pin since") && said.contains("nothing is known"),
        "{said}"
    );
    // A series' members are one workflow there: even a member that ran can't be looked up.
    node.accepts(&with(world.request("two"), json!({ "series": "s" })), 201).await;
    assert!(!ask(&world, &["why", &world.id("two").to_string()]).await.status.success());
    node.stop().await;
}
