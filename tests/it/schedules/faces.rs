//! Schedules over HTTP, and on the command line.

use std::process::{Command, Output};

use super::*;
use crate::bridge::child::Child;
use crate::bridge::world::Node;

async fn at(node: &Node, method: &str, path: &str, body: Value, status: u16) -> Value {
    let body = (!body.is_null()).then_some(body);
    let answer = node.call(method, &format!("/v1/schedules{path}"), body.as_ref()).await;
    assert_eq!(answer.status, status, "{method} {path} {body:?}: {answer:?}");
    answer.body
}

fn fields(problem: &Value) -> Vec<&str> {
    problem["errors"].as_array().unwrap().iter().map(|fault| fault["field"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_is_made_looked_at_changed_paused_triggered_and_deleted_over_http() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let spec = json!({ "cron": "30 2 * * *", "time_zone": "Europe/Berlin" });
    let body = json!({ "account": here.world.account, "name": "nightly", "kind": "sync", "payload": { "n": 1.50 }, "spec": spec });
    let made = at(&node, "POST", "", body.clone(), 201).await;
    let path = format!("/{}", made["id"].as_str().unwrap());
    assert_eq!((&made["state"], &made["overlap"], &made["version"]), (&json!("active"), &json!("skip"), &json!(1)));
    at(&node, "POST", "", body, 409).await;

    let found = at(&node, "GET", &format!("{path}?next=5"), Value::Null, 200).await;
    let next = found["next"].as_array().unwrap();
    assert_eq!((next.len(), &found["spec"], &found["runs"]), (5, &spec, &json!([])));
    assert!(
        next[4]["local"].as_str().unwrap().contains("02:30:00")
            || next[4]["local"].as_str().unwrap().contains("03:00:00")
    );

    let changed =
        at(&node, "PATCH", &path, json!({ "spec": { "every_ms": 60_000 }, "group": "nights", "version": 1 }), 200)
            .await;
    assert_eq!(
        (&changed["spec"]["every_ms"], &changed["group"], &changed["version"]),
        (&json!(60_000), &json!("nights"), &json!(2))
    );
    at(&node, "PATCH", &path, json!({ "priority": 3, "version": 1 }), 409).await;

    at(&node, "POST", &format!("{path}/pause"), json!({ "reason": "" }), 422).await;
    let paused = at(&node, "POST", &format!("{path}/pause"), json!({ "reason": "their API is down" }), 200).await;
    assert_eq!(
        (&paused["state"], &paused["reason"], &paused["next"]),
        (&json!("paused"), &json!("their API is down"), &json!([]))
    );
    let list = at(&node, "GET", &format!("?account={}&paused=true", here.world.account), Value::Null, 200).await;
    assert_eq!(list["schedules"].as_array().unwrap().len(), 1);

    let asked = at(&node, "POST", &format!("{path}/trigger"), json!({ "token": "t" }), 202).await;
    let run = asked["id"].as_str().unwrap().to_owned();
    until("it has run", async || {
        Some(node.get(&format!("/v1/interactions/{run}")).await.body["state"] == "succeeded").filter(|yes| *yes)
    })
    .await;
    assert_eq!(at(&node, "POST", &format!("{path}/trigger"), json!({ "token": "t" }), 200).await["id"], json!(run));

    let resumed = at(&node, "POST", &format!("{path}/resume"), Value::Null, 200).await;
    assert_eq!(resumed["state"], "active");
    let found = at(&node, "GET", &path, Value::Null, 200).await;
    assert_eq!(found["runs"][0]["interaction"], json!(run), "{found}");
    at(&node, "DELETE", &path, Value::Null, 204).await;
    at(&node, "DELETE", &path, Value::Null, 404).await;
    at(&node, "GET", &path, Value::Null, 404).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_input_is_answered_with_every_fault_and_leaves_nothing() {
    let here = Place::new().await;
    let node = here.world.node().await;
    let bad = json!({ "account": here.world.account, "name": "", "kind": "sync", "payload": 1, "overlap": "twice", "catch_up_window_ms": 0,
        "spec": { "cron": "0 0 30 2 *", "time_zone": "Mars/Olympus" }, "priority": 1_000 });
    let problem = at(&node, "POST", "", bad, 422).await;
    let mut found = fields(&problem);
    found.sort_unstable();
    assert_eq!(found, ["catch_up_window_ms", "name", "overlap", "priority", "spec.time_zone"]);
    let with_spec =
        |spec: Value| json!({ "account": here.world.account, "name": "n", "kind": "sync", "payload": 1, "spec": spec });
    for (spec, field) in [
        (json!({ "every_ms": 0 }), "spec.every_ms"),
        (json!({ "every_ms": -1 }), "spec.every_ms"),
        (json!({ "cron": "0 0 30 2 *" }), "spec.cron"),
        (json!({ "at": "2020-01-01T00:00:00Z" }), "spec.at"),
        (json!({}), "spec"),
        (json!(null), "spec"),
    ] {
        assert_eq!(fields(&at(&node, "POST", "", with_spec(spec), 422).await), [field]);
    }
    assert_eq!(fields(&at(&node, "GET", "?limit=1000000&acount=a", Value::Null, 422).await), ["acount", "limit"]);
    at(&node, "GET", "/nonsense", Value::Null, 422).await;
    at(&node, "PATCH", &format!("/{}", Uuid::new_v4()), json!({ "priority": 1 }), 404).await;
    at(&node, "PATCH", &format!("/{}", Uuid::new_v4()), json!({ "series": "s" }), 422).await;
    assert!(
        here.schedules
            .list(&crossover::schedule::Page { limit: 10, ..Default::default() })
            .await
            .unwrap()
            .schedules
            .is_empty()
    );
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_schedules_follow_each_other() {
    let here = Place::new().await;
    let node = here.world.node().await;
    for n in 0..5 {
        here.create(&format!("s{n}"), json!({})).await;
    }
    let (mut names, mut after) = (Vec::new(), String::new());
    loop {
        let page = at(&node, "GET", &format!("?limit=2{after}"), Value::Null, 200).await;
        names.extend(page["schedules"].as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap().to_owned()));
        match page["after"].as_str() {
            Some(id) => after = format!("&after={id}"),
            None => break,
        }
    }
    assert_eq!(names, ["s0", "s1", "s2", "s3", "s4"]);
    node.stop().await;
}

/// Runs the program on this world's servers.
async fn command(here: &Place, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(["schedule"]).args(arguments).arg("--json").envs(here.world.variables());
    command.env("CROSSOVER_STATE_DIR", here.world.fresh("command"));
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn says(here: &Place, arguments: &[&str], code: i32) -> Value {
    let output = command(here, arguments).await;
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_does_the_same_and_nothing_without_yes() {
    let here = Place::new().await;
    let child = Child::serve(&here.world, "router,worker,relay", &[]).await;
    let file = here.world.fresh("schedule.json");
    let body = json!({ "account": here.world.account, "name": "hourly", "kind": "sync", "payload": 1, "spec": { "every_ms": 3_600_000 } });
    std::fs::write(&file, body.to_string()).unwrap();
    let file = file.to_str().unwrap();
    let asked = says(&here, &["create", file], 2).await;
    assert_eq!(asked["done"], false);
    assert!(asked["would"].as_str().unwrap().contains("every 1h"), "{asked}");
    let made = says(&here, &["create", file, "--yes"], 0).await["schedule"].clone();
    let named = format!("{}/hourly", here.world.account);
    assert_eq!(says(&here, &["list"], 0).await["schedules"][0]["id"], made["id"]);

    let run = says(&here, &["trigger", &named, "--yes"], 0).await["id"].as_str().unwrap().to_owned();
    until("it has run", async || {
        Some(child.node.get(&format!("/v1/interactions/{run}")).await.body["state"] == "succeeded").filter(|yes| *yes)
    })
    .await;
    assert_eq!(
        says(&here, &["pause", &named, "--reason", "holidays", "--yes"], 0).await["schedule"]["reason"],
        "holidays"
    );
    assert_eq!(says(&here, &["resume", &named, "--yes"], 0).await["schedule"]["state"], "active");
    let shown = says(&here, &["show", &named], 0).await;
    assert_eq!((&shown["runs"][0]["interaction"], shown["next"].as_array().unwrap().len()), (&json!(run), 10));
    assert_eq!(says(&here, &["delete", &named], 2).await["done"], false);
    assert_eq!(says(&here, &["delete", &named, "--yes"], 0).await["done"], true);
    assert!(says(&here, &["show", &named], 1).await["error"].as_str().unwrap().contains("there is no schedule"));
    drop(child);
}

#[test]
fn the_times_of_a_spec_are_printed_without_a_server() {
    let next = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(["schedule", "next", "--json"]).args(arguments);
        let output = command.output().unwrap();
        (output.status.code(), serde_json::from_slice::<Value>(&output.stdout).unwrap())
    };
    let spring = ["--cron", "30 2 * * *", "--time-zone", "Europe/Berlin", "--after", "2027-03-27T00:00:00Z", "-n", "3"];
    let (code, printed) = next(&spring);
    let at: Vec<&str> = printed["next"].as_array().unwrap().iter().map(|fire| fire["at"].as_str().unwrap()).collect();
    assert_eq!((code, at), (Some(0), vec!["2027-03-27T01:30:00Z", "2027-03-28T01:00:00Z", "2027-03-29T00:30:00Z"]));
    let (code, printed) = next(&["--cron", "0 0 30 2 *"]);
    assert_eq!(code, Some(1));
    assert!(printed["error"].as_str().unwrap().contains("it would never fire"), "{printed}");
}
