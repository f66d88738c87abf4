//! Arming on the real servers: the way from off to armed and back, and what a barrier waits for.

mod barrier;
mod disk;
mod gate;
mod steps;
mod way;

use std::process::Command;
use std::time::Duration;

use crossover::config::Config;
use crossover::interaction::Stage;
use serde_json::Value;

use crate::bridge::until;
use crate::bridge::world::{Node, World};

/// As in production, with a window of seconds.
fn arming(config: &mut Config) {
    config.router.fail_open = true;
    config.window.idempotency = Duration::from_secs(2);
    config.temporal.start_timeout = Duration::from_millis(500);
}

/// The same for a child or a command.
const ARMING: [(&str, &str); 3] = [
    ("CROSSOVER_ROUTER_FAIL_OPEN", "true"),
    ("CROSSOVER_WINDOW_IDEMPOTENCY", "2s"),
    ("CROSSOVER_TEMPORAL_START_TIMEOUT", "500ms"),
];

/// The program, as an operator runs it in this world: its exit code and what it says.
async fn run(world: &World, arguments: &[&str]) -> (i32, Value) {
    run_with(world, arguments, &ARMING).await
}

async fn run_with(world: &World, arguments: &[&str], set: &[(&str, &str)]) -> (i32, Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(arguments).arg("--json").envs(world.variables()).env("CROSSOVER_STATE_DIR", world.fresh("operator"));
    command.envs(set.iter().copied()).current_dir(world.flags.parent().unwrap());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code().unwrap(), said)
}

async fn state(world: &World) -> Option<(String, i64)> {
    let row = sqlx::query_as("select state, generation from crossover.accounts where account = $1");
    row.bind(&world.account).fetch_optional(world.pool()).await.unwrap()
}

/// Waits until the account is in `wanted`; the generation.
async fn until_state(world: &World, wanted: &str) -> i64 {
    until(&format!("the account is {wanted}"), async || {
        state(world).await.filter(|(state, _)| state == wanted).map(|(_, generation)| generation)
    })
    .await
}

/// What status says of the account on its way: its state, and what it waits for.
async fn waits_for(world: &World) -> (String, String) {
    let (_, status) = run(world, &["status"]).await;
    let lines = status["arming"]["under_way"].as_array().unwrap().clone();
    let line = lines.iter().find(|line| line["account"] == world.account.as_str());
    let line = line.unwrap_or_else(|| panic!("{status}"));
    (line["state"].as_str().unwrap().to_owned(), line["waits_for"].as_str().unwrap().to_owned())
}

/// Waits until status names a process that is missing, and says so of it.
async fn until_it_waits_for(world: &World, words: &str) -> (String, String) {
    until(&format!("status says {words}"), async || {
        Some(waits_for(world).await).filter(|(_, said)| said.contains(words))
    })
    .await
}

/// Starts something without a pin. A Temporal that is slow leaves it in doubt, and then it is repeated.
async fn unpinned(world: &World, node: &Node, key: &str) {
    let answer = until("it is started", async || {
        Some(node.post(&world.request(key)).await).filter(|answer| matches!(answer.status, 200 | 201))
    })
    .await;
    assert_eq!((&answer.body["stage"], &answer.body["owner"]), (&Value::from("off"), &Value::from("temporal")));
    assert!(world.story(key).await.is_none(), "it has no pin");
}

/// Work of the account starts without a pin.
async fn until_open_again(world: &World, node: &Node) {
    until("work starts without a pin again", async || {
        let key = format!("open-{}", uuid::Uuid::new_v4());
        let started = matches!(node.post(&world.request(&key)).await.status, 200 | 201);
        (started && world.story(&key).await.is_none()).then_some(())
    })
    .await;
}

async fn stage_of(world: &World, node: &Node, key: &str) -> (String, String) {
    let answer = node.post(&world.request(key)).await;
    let of = |field: &str| answer.body[field].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    (of("stage"), of("owner"))
}

fn are(stage: Stage, owner: &str) -> (String, String) {
    (stage.as_str().to_owned(), owner.to_owned())
}
