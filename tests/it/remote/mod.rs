//! Facts about remote workers, on the real servers: what they are handed, what keeps it theirs, and what becomes of it without them.

mod bad_input;
mod examples;
mod handing_out;
mod leases;
mod polls;

use std::time::Duration;

use crossover::interaction::Stage;
use serde_json::{Value, json};

use crate::bridge::until;
use crate::bridge::world::{ALL, Answer, Node, ROUTER, WORKER, World, with};

const GROUP: &str = "remote.mail";

/// A request for the group of remote workers.
fn mail(world: &World, key: &str) -> Value {
    with(world.request(key), json!({ "group": GROUP }))
}

/// What a worker says of the group.
async fn ask(node: &Node, what: &str, body: Value) -> Answer {
    node.call("POST", &format!("/v1/groups/{GROUP}/{what}"), Some(&body)).await
}

/// What is there now.
async fn dequeue(node: &Node, max: u64) -> Vec<Value> {
    dequeued(node, json!({ "worker": "w", "max": max })).await
}

async fn dequeued(node: &Node, body: Value) -> Vec<Value> {
    let answer = ask(node, "dequeue", body).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body["items"].as_array().unwrap().clone()
}

/// The next item, as soon as there is one.
async fn next(node: &Node, lease: Duration) -> Value {
    let lease_ms = lease.as_millis() as u64;
    until("there is work", async || {
        let body = json!({ "worker": "w", "max": 1, "wait_ms": 1_000, "lease_ms": lease_ms });
        dequeued(node, body).await.pop()
    })
    .await
}

fn keys(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["key"].as_str().unwrap()).collect()
}

/// An item as reports name it, with what is said of it.
fn about(item: &Value, more: Value) -> Value {
    with(json!({ "id": item["id"], "fence": item["fence"] }), more)
}

/// What is answered of one item.
async fn report(node: &Node, what: &str, item: &Value, more: Value) -> String {
    let answer = ask(node, what, json!({ "worker": "w", "items": [about(item, more)] })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.body["items"][0]["id"], item["id"]);
    answer.body["items"][0]["answer"].as_str().unwrap().to_owned()
}

async fn complete(node: &Node, item: &Value) -> String {
    report(node, "complete", item, json!({ "result": { "sent": item["key"] } })).await
}

/// A counter of a process, all its labels summed up that hold `label`.
async fn counted(node: &Node, name: &str, label: &str) -> f64 {
    let shown = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    let ours = shown.lines().filter(|line| line.starts_with(name) && line.contains(label));
    ours.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}
