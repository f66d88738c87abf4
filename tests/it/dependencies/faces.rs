//! `after` over HTTP and on the command line, with routers and workers.

use std::process::Command;

use crossover::app::Roles;
use crossover::interaction::Stage;
use serde_json::{Value, json};

use crate::bridge::runner::Rule;
use crate::bridge::world::{Node, World, with};
use crate::wait::until;

pub(super) async fn complete() -> (World, Node) {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(Roles::ALL, |config| config.router.tasks = true).await;
    node.accepts(&world.request("first"), 201).await;
    world.succeeded("first").await;
    (world, node)
}

fn after(world: &World, key: &str, after: Value) -> Value {
    with(world.request(key), json!({ "after": after }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_runs_in_its_order_and_each_once() {
    let (world, node) = complete().await;
    let batch = json!({ "interactions": [
        after(&world, "load", json!({ "keys": ["left", "right"] })),
        after(&world, "left", json!({ "keys": ["extract"] })),
        after(&world, "right", json!({ "keys": ["extract"] })),
        world.request("extract"),
    ]});
    let answer = node.call("POST", "/v1/interactions/batch", Some(&batch)).await;
    let statuses: Vec<_> = answer.body["answers"].as_array().unwrap().iter().map(|a| a["status"].clone()).collect();
    assert_eq!(statuses, [201, 201, 201, 201], "{answer:?}");
    world.succeeded("load").await;
    let calls: Vec<String> =
        world.runner.calls().iter().map(|call| call.key.clone()).filter(|key| key != "first").collect();
    assert_eq!((calls.len(), calls[0].as_str(), calls[3].as_str()), (4, "extract", "load"), "{calls:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_waited_for_by_its_id_and_by_its_key() {
    let (world, node) = complete().await;
    let mut keyless = world.request("x");
    keyless.as_object_mut().unwrap().remove("key");
    let task = until("the router knows that the account is armed", async || {
        let answer = node.accepts(&keyless, 201).await;
        answer.body["key"].as_str().unwrap().starts_with("task_").then_some(answer)
    })
    .await;
    node.accepts(&after(&world, "by-id", json!([task.body["id"]])), 201).await;
    node.accepts(&after(&world, "by-key", json!({ "keys": [task.body["key"]] })), 201).await;
    world.succeeded("by-id").await;
    world.succeeded("by-key").await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_it_may_not_wait_for_is_answered_with_the_field() {
    let (world, node) = complete().await;
    let field = async |request: &Value| {
        let answer = node.post(request).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        answer.body["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(field(&after(&world, "a", json!([uuid::Uuid::new_v4()]))).await, ["after"]);
    assert_eq!(field(&after(&world, "b", json!({ "keys": ["b"] }))).await, ["after"]);
    assert_eq!(field(&after(&world, "c", json!({ "ids": 7, "when": "some" }))).await, ["after.ids", "after.when"]);
    let circle = json!({ "interactions": [
        after(&world, "d", json!({ "keys": ["e"] })), after(&world, "e", json!({ "keys": ["d"] })), world.request("f")] });
    let answer = node.call("POST", "/v1/interactions/batch", Some(&circle)).await;
    let statuses: Vec<_> = answer.body["answers"].as_array().unwrap().iter().map(|a| a["status"].clone()).collect();
    assert_eq!(statuses, [422, 422, 201], "{answer:?}");
    // Where Temporal has a copy, too.
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(field(&after(&world, "g", json!([world.id("first")]))).await, ["after"]);
    assert!(world.story("g").await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_says_for_what_and_a_person_lets_it_run() {
    let (world, node) = complete().await;
    let later = with(world.request("later"), json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::hours(1) }));
    node.accepts(&later, 201).await;
    node.accepts(&after(&world, "stuck", json!({ "keys": ["later"] })), 201).await;
    let id = world.id("stuck");
    let found = node.get(&format!("/v1/interactions/{id}")).await;
    assert_eq!(found.body["state"], "waiting", "{found:?}");
    let waits = &found.body["waits_for"];
    assert_eq!((&waits["named"], &waits["unended"], &waits["when"]), (&json!(1), &json!(1), &json!("all")));
    assert_eq!(waits["after"], json!([{ "id": world.id("later"), "state": "scheduled", "reason": null }]));

    let folder = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(arguments).current_dir(folder.path()).env("CROSSOVER_POSTGRES_URL", &world.postgres);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    };
    let id = id.to_string();
    let (_, shown) = run(&["tasks", "show", &id]).await;
    assert!(
        shown
            .contains(&format!("each of 1 that have not ended, of 1 it runs after: {} (scheduled)", world.id("later"))),
        "{shown}"
    );
    let (code, said) = run(&["tasks", "release", &id]).await;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("would run without them; nothing was changed, repeat with --yes"), "{said}");
    assert_eq!(world.story("stuck").await.unwrap().state, "waiting");
    let (code, said) = run(&["--json", "tasks", "release", &id, "--yes"]).await;
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!((code, &said["released"], &said["waits"]["named"]), (0, &json!(true), &json!(1)));
    world.succeeded("stuck").await;
    let (code, said) = run(&["tasks", "release", &id, "--yes"]).await;
    assert!(code == 1 && said.contains("has ended"), "{code} {said}");

    node.accepts(&after(&world, "again", json!({ "keys": ["later"] })), 201).await;
    let path = format!("/v1/interactions/{}/release", world.id("again"));
    let answer = node.call("POST", &path, None).await;
    assert_eq!((answer.status, &answer.body["behind"]), (200, &Value::Null), "{answer:?}");
    world.succeeded("again").await;
    assert_eq!(node.call("POST", &path, None).await.status, 409);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_lets_the_rest_be_skipped_or_run_and_the_ends_say_why() {
    let (world, node) = complete().await;
    world.runner.rule("bad", Rule::Refuse);
    node.accepts(&world.request("bad"), 201).await;
    node.accepts(&after(&world, "skipped", json!({ "keys": ["bad"] })), 201).await;
    node.accepts(&after(&world, "anyway", json!({ "keys": ["bad", "skipped"], "on_failure": "run" })), 201).await;
    world.succeeded("anyway").await;
    let skipped = world.ended("skipped").await;
    assert_eq!(skipped.state, "cancelled");
    assert!(skipped.pin.reason.unwrap().contains(&world.id("bad").to_string()));
    node.stop().await;
}
