//! Facts about fences, on the real servers: what comes too late is refused and counted, and what nobody knows the outcome of
//! is tried again under the same key, or parked until somebody has said what came of it.

mod answers;
mod late;
mod lost;
mod unknown;

use std::time::Duration;

use crossover::app::Roles;
use crossover::interaction::{Attempt, Fence, Outcome, Side, Stage};
use crossover::policy::{Doubt, Failure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::bridge::child::Child;
use crate::bridge::runner::Rule;
use crate::bridge::until;
use crate::bridge::world::{Answer, Node, World, with};

const TAKES_IN: Roles = Roles { router: true, worker: false, relay: true };
const ONLY_WORKS: Roles = Roles { router: false, worker: true, relay: false };

/// The stages in which one side executes and the other rehearses, by who executes.
fn stage_of(side: Side) -> Stage {
    match side {
        Side::Temporal => Stage::Shadow,
        Side::Postgres => Stage::Live,
    }
}

/// A policy that parks.
fn parks() -> Value {
    json!({ "policy": { "on_unknown": "park", "max_attempts": 3, "backoff": { "delays_ms": [50] } } })
}

/// One that tries again soon, and again.
fn retries() -> Value {
    json!({ "policy": { "max_attempts": 100, "backoff": { "delays_ms": [50] } } })
}

async fn ask(node: &Node, path: &str, body: &Value) -> Answer {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.request(Method::POST, format!("{}{path}", node.base));
    let response = request.body(body.to_string().into_bytes()).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

async fn resolve(node: &Node, world: &World, key: &str, body: &Value) -> Answer {
    ask(node, &format!("/v1/interactions/{}/resolve", world.id(key)), body).await
}

async fn look_up(node: &Node, world: &World, key: &str) -> Value {
    node.get(&format!("/v1/interactions/{}", world.id(key))).await.body
}

/// Waits until `key` is parked.
async fn until_parked(world: &World, key: &str) {
    world.until_story(key, "it is parked", |story| (story.state == "unknown_outcome").then_some(())).await;
}

/// Why the outcome of the real attempts of `key` is unknown, one by one.
async fn doubts(world: &World, key: &str) -> Vec<Option<Doubt>> {
    let story = world.story(key).await.unwrap();
    let real = story.attempts.iter().filter(|a| !a.rehearsal);
    real.map(|a| a.failure.as_ref().and_then(Failure::doubt)).collect()
}

/// A counter of a process, all its labels summed up that hold `label`.
async fn counted(node: &Node, name: &str, label: &str) -> f64 {
    let shown = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    let ours = shown.lines().filter(|line| line.starts_with(name) && line.contains(label));
    ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// The comparator has judged `key`, and it is no divergence.
async fn never_diverged(node: &Node, world: &World, key: &str) {
    let verdict = until(&format!("{key} is judged"), async || {
        let found = look_up(node, world, key).await;
        let verdict = found["observation"]["verdict"].as_str().unwrap_or("in_flight").to_owned();
        (verdict != "in_flight").then_some((verdict, found))
    })
    .await;
    assert_ne!(verdict.0, "diverged", "{:#}", verdict.1);
}
