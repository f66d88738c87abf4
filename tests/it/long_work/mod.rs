//! Facts about attempts that their runners take away, on the real servers: they hold no slot, outlive the processes that began
//! them, and are lost with their runner and not otherwise.

mod lost;
mod outages;
mod rehearsals;
mod reports;
mod slots;

use std::time::Duration;

use crossover::config::Config;
use crossover::interaction::{Side, Stage};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::bridge::child::Child;
use crate::bridge::runner::Rule;
use crate::bridge::until;
use crate::bridge::world::{ALL, Answer, Node, World, with};

/// The stages in which one side executes and the other rehearses, by who executes.
fn stage_of(side: Side) -> Stage {
    match side {
        Side::Temporal => Stage::Shadow,
        Side::Postgres => Stage::Live,
    }
}

/// Temporal hears of what is away within this.
fn short(config: &mut Config) {
    config.worker.lease = Duration::from_secs(3);
}

/// A policy that tries again soon.
fn retries() -> Value {
    json!({ "policy": { "max_attempts": 3, "backoff": { "delays_ms": [100] } } })
}

/// What `key`'s runner reports.
async fn report(node: &Node, world: &World, key: &str, what: &str, body: Value) -> Answer {
    let url = format!("{}/v1/interactions/{}/{what}", node.base, world.id(key));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = http.post(url).body(body.to_string()).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

/// The same, until Postgres takes it.
async fn reported(node: &Node, world: &World, key: &str, what: &str, body: Value) -> Answer {
    until(&format!("{what} of {key} is taken"), async || {
        let answer = report(node, world, key, what, body.clone()).await;
        (answer.status != 503).then_some(answer)
    })
    .await
}

async fn completed(node: &Node, world: &World, key: &str, fence: &str) -> Answer {
    reported(node, world, key, "complete", json!({ "fence": fence, "result": { "long": key } })).await
}

/// Waits until `key` is away with its runner; what a look at it says.
async fn until_away(node: &Node, world: &World, key: &str) -> Value {
    until(&format!("{key} is away"), async || {
        let found = look_up(node, world, key).await;
        found["away"].is_object().then(|| found["away"].clone())
    })
    .await
}

async fn look_up(node: &Node, world: &World, key: &str) -> Value {
    node.get(&format!("/v1/interactions/{}", world.id(key))).await.body
}

/// A runner that reports every fifth of a second, until it is dropped.
struct Keeper(JoinHandle<()>);

impl Keeper {
    fn of(node: &Node, world: &World, key: &str, fence: &str) -> Self {
        let url = format!("{}/v1/interactions/{}/heartbeat", node.base, world.id(key));
        let body = json!({ "fence": fence }).to_string();
        Self(tokio::spawn(async move {
            let http = reqwest::Client::builder().no_proxy().build().unwrap();
            loop {
                // Whoever restarts is asked again.
                let _ = http.post(&url).body(body.clone()).send().await;
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The comparator's verdict on `key`.
async fn verdict(node: &Node, world: &World, key: &str) -> (String, Value) {
    until(&format!("{key} is judged"), async || {
        let found = look_up(node, world, key).await;
        let verdict = found["observation"]["verdict"].as_str().unwrap_or("in_flight").to_owned();
        (verdict != "in_flight").then_some((verdict, found))
    })
    .await
}

async fn matched(node: &Node, world: &World, key: &str) {
    let (verdict, found) = verdict(node, world, key).await;
    assert_eq!(verdict, "matched", "{found:#}");
}

/// A counter of a process, all its labels summed up that hold `label`.
async fn counted(node: &Node, name: &str, label: &str) -> f64 {
    let shown = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    let ours = shown.lines().filter(|line| line.starts_with(name) && line.contains(label));
    ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}
