//! Facts about the API, over real HTTP on the real servers.

mod auth;
mod batch;
mod cancel;
mod collector;
mod limits;
mod look_up;
mod openapi;
mod page;
mod telemetry;
mod wait;

use std::time::Duration;

use crossover::interaction::Stage;
use reqwest::Method;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Value, json};

use crate::bridge::until;
use crate::bridge::world::{ALL, Answer, Node, ROUTER, WORKER, World, with};

const PATIENCE: Duration = Duration::from_secs(60);

/// Asks, and reads the answer whole.
async fn ask(node: &Node, method: Method, path: &str, headers: &[(&str, &str)], body: Option<Vec<u8>>) -> Answer {
    let named = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let headers: HeaderMap = headers.iter().map(named).collect();
    let mut request = http.request(method, format!("{}{path}", node.base)).headers(headers);
    if let Some(body) = body {
        request = request.body(body);
    }
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let text = response.text().await.unwrap();
    Answer { status, headers, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) }
}

pub async fn post(node: &Node, path: &str, body: &Value) -> Answer {
    ask(node, Method::POST, path, &[("content-type", "application/json")], Some(body.to_string().into_bytes())).await
}

async fn cancel(node: &Node, world: &World, key: &str) -> Answer {
    ask(node, Method::POST, &format!("/v1/interactions/{}/cancel", world.id(key)), &[], None).await
}

/// An hour from now.
fn later() -> Value {
    json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::hours(1) })
}

/// A problem says what happened in the way of RFC 9457.
fn is_problem(answer: &Answer, status: u16) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{answer:?}");
    assert_eq!(answer.body["status"], status, "{answer:?}");
    assert!(!answer.detail().is_empty() && answer.headers.contains_key("x-request-id"), "{answer:?}");
}
