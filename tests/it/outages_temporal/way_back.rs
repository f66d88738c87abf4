//! What an operator is told while Temporal is away.

use std::process::Command;

use crossover::flags::DocumentBuilder;
use crossover::interaction::Stage;
use serde_json::Value;

use super::valve::{Flow, Valve};
use super::*;
use crate::bridge::PATIENCE;
use crate::bridge::world::ALL;

/// The program, as an operator runs it in this world, and what it prints.
async fn run(world: &World, temporal: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(arguments).envs(world.variables()).env("CROSSOVER_TEMPORAL_ADDRESS", temporal);
    command.env("CROSSOVER_STATE_DIR", world.fresh("operator")).current_dir(world.flags.parent().unwrap());
    command.env("CROSSOVER_TEMPORAL_START_TIMEOUT", "1s");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Puts this world's account, and nobody else, into `stage`.
async fn stands_in(world: &World, stage: Stage, node: &Node) {
    let document = DocumentBuilder::default().account(stage, &world.account).build().unwrap();
    document.write_to(&world.flags).unwrap();
    let mut changed = node.flags.as_ref().unwrap().changed();
    let known = changed.wait_for(|revision| revision == document.revision());
    tokio::time::timeout(PATIENCE, known).await.expect("the flip is seen").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn while_temporal_is_away_status_and_rollback_say_that_the_way_back_is_closed_since_when_and_what_waits() {
    let world = World::new(Stage::Shadow).await;
    let valve = Valve::before(&world.temporal).await;
    let node = world.node_towards(&valve.address, ALL, |_| {}).await;
    stands_in(&world, Stage::Shadow, &node).await;
    let status = async || -> Value {
        let said = run(&world, &valve.address, &["status", "--json"]).await;
        serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
    };
    let before = status().await;
    assert_eq!(
        (&before["way_back"]["open"], &before["way_back"]["since"]),
        (&Value::Bool(true), &Value::Null),
        "{before}"
    );
    let away = chrono::Utc::now();
    valve.set(Flow::Silent);
    node.accepts(&world.request("execution"), 202).await;
    knows(&node, true).await;
    stands_in(&world, Stage::Live, &node).await;
    // Held, so that nothing but Temporal keeps its rehearsal from being delivered.
    world.runner.hold("rehearsal");
    node.accepts(&world.request("rehearsal"), 201).await;
    let closed = until("since when is written down", async || {
        Some(status().await["way_back"].clone()).filter(|way_back| way_back["since"].is_string())
    })
    .await;
    assert_eq!((&closed["open"], &closed["accounts"]), (&Value::Bool(false), &Value::from(1)), "{closed}");
    assert_eq!((&closed["executions"], &closed["rehearsals"]), (&Value::from(1), &Value::from(1)), "{closed}");
    let since: chrono::DateTime<chrono::Utc> = closed["since"].as_str().unwrap().parse().unwrap();
    assert!((since - away).num_seconds().abs() < 30, "{since} {away}");
    let text = run(&world, &valve.address, &["status"]).await;
    assert!(text.contains("WAY BACK    CLOSED since") && text.contains("1 executions and 1 rehearsals wait"), "{text}");

    let account = world.account.as_str();
    let planned = run(&world, &valve.address, &["rollback", account, "--json"]).await;
    assert!(planned.contains("THE WAY BACK IS CLOSED since") && planned.contains("accepted with 202"), "{planned}");
    let onward = run(&world, &valve.address, &["preview", account, "--to", "complete", "--json"]).await;
    assert!(!onward.contains("THE WAY BACK"), "{onward}");

    valve.set(Flow::Open);
    world.runner.release("rehearsal");
    until("the way back is open", async || status().await["way_back"]["open"].as_bool().filter(|open| *open)).await;
    world.each_ran_on_its_owner(&["execution".into(), "rehearsal".into()]).await;
    node.stop().await;
}
