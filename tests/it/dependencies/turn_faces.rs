//! `exclusive` over HTTP and on the command line, with routers and workers.

use std::process::Command;

use chrono::{TimeDelta, Utc};
use crossover::interaction::Stage;
use serde_json::{Value, json};

use super::faces::complete;
use crate::bridge::runner::Rule;
use crate::bridge::world::{World, with};
use crate::wait::until;

fn exclusive(world: &World, key: &str) -> Value {
    with(world.request(key), json!({ "exclusive": "connection-7" }))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_excludes_runs_one_at_a_time_and_a_retry_lets_the_others_go() {
    let (world, node) = complete().await;
    world.runner.pace(std::time::Duration::from_millis(20));
    world.runner.rule("0", Rule::Fail(1));
    let keys: Vec<String> = (0..6).map(|n| n.to_string()).collect();
    let mut items: Vec<Value> = keys.iter().map(|key| exclusive(&world, key)).collect();
    items[0]["policy"] = json!({ "backoff": { "delays_ms": [150] }, "max_attempts": 3 });
    let mut keyless = exclusive(&world, "x");
    keyless.as_object_mut().unwrap().remove("key");
    items.push(keyless);
    let answer = node.call("POST", "/v1/interactions/batch", Some(&json!({ "interactions": items }))).await;
    let answers = answer.body["answers"].as_array().unwrap();
    assert!(answers.iter().all(|answer| answer["status"] == 201), "{answer:?}");
    assert!(!answers[6]["body"]["key"].as_str().unwrap_or_default().starts_with("task_"), "{answer:?}");
    for key in &keys {
        world.succeeded(key).await;
    }
    until("the one without a key has run", async || (world.runner.calls().len() >= 9).then_some(())).await;
    let mut calls = world.runner.calls();
    calls.retain(|call| call.key != "first");
    calls.sort_by_key(|call| call.began);
    for two in calls.windows(2) {
        assert!(two[0].ended.is_some_and(|ended| ended <= two[1].began), "{two:?} overlap");
    }
    assert_eq!(calls.iter().filter(|call| call.key == "0").count(), 2);
    assert_ne!(calls[1].key, "0", "what waits for another attempt let the next go: {calls:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_its_turn_says_whose_it_is() {
    let (world, node) = complete().await;
    world.runner.rule("holder", Rule::Hold);
    node.accepts(&exclusive(&world, "holder"), 201).await;
    world.runner.nth("holder", 1).await;
    node.accepts(&exclusive(&world, "next"), 201).await;
    let later = with(exclusive(&world, "later"), json!({ "run_at": Utc::now() + TimeDelta::hours(1) }));
    node.accepts(&later, 201).await;
    let found = node.get(&format!("/v1/interactions/{}", world.id("next"))).await;
    assert_eq!(found.body["state"], "waiting", "{found:?}");
    let turn = json!({ "id": world.id("holder"), "state": "running", "reason": null });
    assert_eq!(
        (&found.body["waits_for"]["exclusive"], &found.body["waits_for"]["turn"]),
        (&json!("connection-7"), &turn)
    );

    let folder = tempfile::tempdir().unwrap();
    let run = async |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(arguments).current_dir(folder.path()).env("CROSSOVER_POSTGRES_URL", &world.postgres);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.code().unwrap(), text)
    };
    let (_, shown) = run(&["tasks", "show", &world.id("next").to_string()]).await;
    let says = format!(
        "its turn, for no two of exclusive «connection-7» run at once; it is that of {} (running)",
        world.id("holder")
    );
    assert!(shown.contains(&says), "{shown}");
    let (_, shown) = run(&["tasks", "show", &world.id("later").to_string()]).await;
    assert!(shown.contains("its time, ") && shown.contains("connection-7"), "{shown}");
    let (_, listed) = run(&["tasks", "--state", "waiting"]).await;
    assert!(listed.contains("no two of exclusive connection-7 run at once"), "{listed}");
    for arguments in [&["tasks", "release"][..], &["tasks", "release", "--yes"]] {
        let (code, said) = run(&[arguments, &[world.id("next").to_string().as_str()]].concat()).await;
        assert!(code == 1 && said.contains("waits for its turn among those of its `exclusive`"), "{code} {said}");
    }
    let path = format!("/v1/interactions/{}/release", world.id("next"));
    assert_eq!(node.call("POST", &path, None).await.status, 409);

    world.runner.release("holder");
    world.succeeded("next").await;
    let (_, shown) = run(&["--json", "tasks", "show", &world.id("next").to_string()]).await;
    let shown: Value = serde_json::from_str(&shown).unwrap_or_else(|_| panic!("{shown}"));
    assert_eq!(shown["exclusive"], "connection-7");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_exclude_is_answered_with_the_field() {
    let (world, node) = complete().await;
    let field = async |request: &Value| {
        let answer = node.post(request).await;
        assert_eq!(answer.status, 422, "{answer:?}");
        answer.body["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect::<Vec<_>>()
    };
    for bad in [json!(""), json!("x".repeat(401)), json!("a\u{0}b"), json!(7), json!(["a"]), json!({ "key": "a" })] {
        assert_eq!(field(&with(world.request("a"), json!({ "exclusive": bad }))).await, ["exclusive"], "{bad}");
    }
    node.accepts(&with(world.request("b"), json!({ "exclusive": null })), 201).await;
    // Where Temporal has a copy.
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(field(&exclusive(&world, "c")).await, ["exclusive"]);
    assert!(world.story("c").await.is_none());
    node.stop().await;
}
