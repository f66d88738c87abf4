//! What `resolve` answers to those who ask for what can't be, and the commands.

use std::process::Output;

use super::*;

async fn run(world: &World, arguments: &[&str]) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"));
    let state = world.fresh("command");
    std::fs::create_dir_all(&state).unwrap();
    command.args(arguments).current_dir(&state).envs(world.variables()).env("CROSSOVER_STATE_DIR", &state);
    command.env("CROSSOVER_OPERATOR", "night shift");
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it prints for a machine, and its exit code.
async fn machine(world: &World, arguments: &[&str]) -> (Value, i32) {
    let output = run(world, &[arguments, &["--json"]].concat()).await;
    let (said, wrong) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let said = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}{wrong}"));
    (said, output.status.code().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_faults_is_told_each_of_them_and_one_that_fits_nothing_why() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let bad = resolve(&node, &world, "one", &json!({ "as": "done", "why": 1, "reason": "a\u{7}" })).await;
    let mut fields: Vec<_> = bad.body["errors"].as_array().unwrap().iter().map(|e| e["field"].clone()).collect();
    fields.sort_by_key(Value::to_string);
    assert_eq!((bad.status, fields), (422, vec![json!("as"), json!("reason"), json!("why")]), "{bad:?}");
    let bad = resolve(&node, &world, "one", &json!({ "as": "retry", "result": 1 })).await;
    assert_eq!((bad.status, &bad.body["errors"][0]["field"]), (422, &json!("result")), "{bad:?}");
    let nobody = resolve(&node, &world, "unheard of", &json!({ "as": "retry" })).await;
    assert_eq!(nobody.status, 404, "{nobody:?}");

    world.runner.hold("one");
    node.accepts(&world.request("one"), 201).await;
    world.runner.nth("one", 1).await;
    let early = resolve(&node, &world, "one", &json!({ "as": "failed" })).await;
    assert!(early.status == 409 && early.detail().contains("not in state unknown_outcome"), "{early:?}");
    world.runner.release("one");
    world.succeeded("one").await;
    let late = resolve(&node, &world, "one", &json!({ "as": "failed" })).await;
    assert!(late.status == 409 && late.detail().contains("has ended"), "{late:?}");

    let refused = node.post(&with(world.request("two"), json!({ "policy": { "on_unknown": "ask" } }))).await;
    assert_eq!((refused.status, &refused.body["errors"][0]["field"]), (422, &json!("policy.on_unknown")));
    let by_sql =
        "select array(select f from crossover.policy_faults('{\"on_unknown\":\"ask\"}') f where f is not null)";
    assert_eq!(world.scalar::<Vec<String>>(by_sql).await, ["policy.on_unknown: must be retry or park, is \"ask\""]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_is_not_run_again_and_can_be_ended() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.rule("one", Rule::HangUp(1));
    node.accepts(&with(world.request("one"), parks()), 201).await;
    until_parked(&world, "one").await;
    world.ledger.hold((world.id("one"), 1), "Temporal has another payload").await.unwrap();
    let refused = resolve(&node, &world, "one", &json!({ "as": "retry" })).await;
    assert!(refused.status == 409 && refused.detail().contains("is held"), "{refused:?}");
    let (by_command, code) =
        machine(&world, &["resolve", &world.id("one").to_string(), "--as", "retry", "--yes"]).await;
    assert!(code == 1 && by_command["error"].as_str().unwrap().contains("is held"), "{by_command}");
    assert!(world.ledger.parked_one(world.id("one")).await.unwrap().is_some(), "it is where it was");
    let ended = resolve(&node, &world, "one", &json!({ "as": "failed" })).await;
    assert_eq!(ended.status, 200, "{ended:?}");
    assert_eq!((world.ended("one").await.state.as_str(), world.runner.of("one").len()), ("failed", 1));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_list_what_is_parked_and_say_what_they_will_do_before_they_do_it() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    assert_eq!(machine(&world, &["unknown"]).await, (json!({ "parked": [], "more": false }), 0));
    world.runner.rule("one", Rule::HangUp(1));
    node.accepts(&with(world.request("one"), parks()), 201).await;
    until_parked(&world, "one").await;
    let id = world.id("one").to_string();

    let (listed, _) = machine(&world, &["unknown", &world.account]).await;
    let parked = &listed["parked"][0];
    assert_eq!((&parked["id"], &parked["kind"], &parked["cause"]), (&json!(id), &json!("sync"), &json!("connection")));
    assert!(machine(&world, &["unknown", "another"]).await.0["parked"].as_array().unwrap().is_empty());
    let shown = run(&world, &["unknown"]).await;
    assert!(String::from_utf8_lossy(&shown.stdout).contains(&id), "{shown:?}");

    let (faulty, code) = machine(&world, &["resolve", &id, "--as", "gone", "--result", "{"]).await;
    let error = faulty["error"].as_str().unwrap();
    assert!(code == 1 && error.contains("--as") && error.contains("--result"), "{faulty}");
    let (plan, code) = machine(&world, &["resolve", &id, "--as", "succeeded", "--result", "7"]).await;
    assert_eq!((code, &plan["answer"], &plan["says"]), (2, &Value::Null, &json!("succeeded")), "{plan}");
    assert_eq!(world.story("one").await.unwrap().state, "unknown_outcome", "nothing was changed");
    let reason = ["--reason", "seen in the bank's list"];
    let asked = [["resolve", &id, "--as", "succeeded", "--result", "7", "--yes"].as_slice(), &reason].concat();
    let (done, code) = machine(&world, &asked).await;
    assert_eq!((code, &done["answer"]), (0, &json!("done")), "{done}");
    let story = world.succeeded("one").await;
    assert_eq!(story.pin.reason.as_deref(), Some("resolved as succeeded by night shift: seen in the bank's list"));
    let (again, code) = machine(&world, &asked).await;
    assert!(code == 1 && again["error"].as_str().unwrap().contains("is succeeded"), "{again}");
    until("the answer is counted", async || {
        (counted(&node, "crossover_resolutions{", "succeeded").await == 1.0).then_some(())
    })
    .await;
    assert_eq!(counted(&node, "crossover_parked{", "postgres").await, 0.0);
    node.stop().await;
}
