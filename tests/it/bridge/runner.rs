//! The runner of a test: an HTTP server that writes every call down and answers as it is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::post};
use serde::Deserialize;
use tokio::sync::Notify;
use uuid::Uuid;

use super::PATIENCE;

/// How a key is answered; a key without one gets `{"ok": key}` at once.
#[derive(Debug, Clone)]
pub enum Rule {
    /// Nothing until it is released.
    Hold,
    /// The same, but for the first so many calls.
    HoldAfter(usize),
    /// Nothing until it is released, and then 503.
    HoldThenFail,
    /// It is taken away, and so many seconds of silence are promised at most.
    Away(f64),
    /// Nothing until it is released, and then the same.
    HoldThenAway(f64),
    /// So many times 503.
    Fail(usize),
    /// 400.
    Refuse,
    /// 200, but no JSON.
    Garbage,
    /// 200 and five megabytes.
    Huge,
    /// So many times the connection ends without an answer.
    HangUp(usize),
    /// So many times the connection ends in the middle of the answer.
    BreakOff(usize),
}

/// A call as the runner saw it.
#[derive(Debug, Clone)]
pub struct Call {
    pub key: String,
    pub side: String,
    pub fence: (i32, i32),
    /// As it came.
    pub payload: String,
    pub traceparent: Option<String>,
    pub began: Instant,
    /// When it was answered, or given up by the caller.
    pub ended: Option<Instant>,
}

#[derive(Deserialize)]
struct Body {
    id: Uuid,
    key: String,
    side: String,
    epoch: i32,
    attempt: i32,
    payload: Box<serde_json::value::RawValue>,
}

#[derive(Default)]
struct Seen {
    calls: Vec<Call>,
    rules: HashMap<String, Rule>,
    pace: Duration,
}

#[derive(Default)]
struct Shared {
    seen: Mutex<Seen>,
    bell: Notify,
}

#[derive(Clone)]
pub struct Runner {
    shared: Arc<Shared>,
    pub url: String,
}

impl Runner {
    pub async fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/run", listener.local_addr().unwrap());
        let routes = Router::new().route("/run", post(run)).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { shared, url }
    }

    pub fn rule(&self, key: &str, rule: Rule) {
        self.shared.change(|seen| seen.rules.insert(key.to_owned(), rule));
    }

    pub fn hold(&self, key: &str) {
        self.rule(key, Rule::Hold);
    }

    pub fn release(&self, key: &str) {
        self.shared.change(|seen| seen.rules.remove(key));
    }

    /// Every call takes so long from now on.
    pub fn pace(&self, pace: Duration) {
        self.shared.change(|seen| seen.pace = pace);
    }

    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().calls.clone()
    }

    pub fn of(&self, key: &str) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.key == key).collect()
    }

    /// The sides that called for `key`, call by call.
    pub fn sides(&self, key: &str) -> Vec<String> {
        self.of(key).into_iter().map(|call| call.side).collect()
    }

    /// The `n`th call for `key`, counted from 1.
    pub async fn nth(&self, key: &str, n: usize) -> Call {
        let wait = async {
            loop {
                let rung = self.shared.bell.notified();
                if let Some(call) = self.of(key).get(n - 1) {
                    return call.clone();
                }
                rung.await;
            }
        };
        let late = |_| panic!("call {n} for {key} never came; there were {:?}", self.calls());
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(late)
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<R>(&self, change: impl FnOnce(&mut Seen) -> R) -> R {
        let result = change(&mut self.lock());
        self.bell.notify_waiters();
        result
    }

    /// Waits until call number `nth` for `key` may be answered.
    async fn until_released(&self, key: &str, nth: usize) {
        loop {
            let rung = self.bell.notified();
            match self.lock().rules.get(key) {
                Some(Rule::Hold | Rule::HoldThenFail | Rule::HoldThenAway(_)) => {}
                Some(Rule::HoldAfter(free)) if nth > *free => {}
                _ => return,
            }
            rung.await;
        }
    }
}

/// Writes the end down, also when the caller hangs up and the handler is dropped.
struct Ending(Arc<Shared>, usize);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.change(|seen| seen.calls[self.1].ended = Some(Instant::now()));
    }
}

async fn run(State(shared): State<Arc<Shared>>, headers: HeaderMap, Json(body): Json<Body>) -> Response {
    let Body { id, key, side, epoch, attempt, payload } = body;
    let header = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(header("Idempotency-Key"), id.to_string());
    assert_eq!(header("Crossover-Side"), side);
    assert_eq!(header("Crossover-Fence"), format!("{epoch}.{attempt}"));
    let traceparent = headers.get("traceparent").map(|value| value.to_str().unwrap().to_owned());
    let began = Instant::now();
    let (at, nth, rule, pace) = shared.change(|seen| {
        let (key, payload) = (key.clone(), payload.get().to_owned());
        let rule = seen.rules.get(&key).cloned();
        seen.calls.push(Call {
            key: key.clone(),
            side,
            fence: (epoch, attempt),
            payload,
            traceparent,
            began,
            ended: None,
        });
        let nth = seen.calls.iter().filter(|call| call.key == key).count();
        match &rule {
            Some(Rule::Fail(1)) => drop(seen.rules.remove(&key)),
            Some(Rule::Fail(n)) => drop(seen.rules.insert(key, Rule::Fail(n - 1))),
            Some(Rule::HangUp(1) | Rule::BreakOff(1)) => drop(seen.rules.remove(&key)),
            Some(Rule::HangUp(n)) => drop(seen.rules.insert(key, Rule::HangUp(n - 1))),
            Some(Rule::BreakOff(n)) => drop(seen.rules.insert(key, Rule::BreakOff(n - 1))),
            _ => {}
        }
        (seen.calls.len() - 1, nth, rule, seen.pace)
    });
    let _ending = Ending(shared.clone(), at);
    if !pace.is_zero() {
        tokio::time::sleep(pace).await;
    }
    match rule {
        Some(Rule::HoldThenFail) => {
            shared.until_released(&key, nth).await;
            (StatusCode::SERVICE_UNAVAILABLE, "busy after all").into_response()
        }
        Some(Rule::Away(silence)) => away(silence),
        Some(Rule::HoldThenAway(silence)) => {
            shared.until_released(&key, nth).await;
            away(silence)
        }
        Some(Rule::Fail(_)) => (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response(),
        Some(Rule::Refuse) => (StatusCode::BAD_REQUEST, "no such thing").into_response(),
        Some(Rule::Garbage) => "<html>\0".into_response(),
        Some(Rule::Huge) => format!("\"{}\"", "x".repeat(5 << 20)).into_response(),
        // The panic of a handler ends its connection; this one says nothing.
        Some(Rule::HangUp(_)) => std::panic::resume_unwind(Box::new("hung up")),
        Some(Rule::BreakOff(_)) => {
            let pieces = [Ok("{\"ok\":"), Err(std::io::Error::other("broken off"))];
            axum::body::Body::from_stream(futures::stream::iter(pieces)).into_response()
        }
        Some(Rule::Hold | Rule::HoldAfter(_)) | None => {
            shared.until_released(&key, nth).await;
            Json(serde_json::json!({ "ok": key })).into_response()
        }
    }
}

fn away(silence: f64) -> Response {
    (StatusCode::ACCEPTED, [("Crossover-Detached", silence.to_string())]).into_response()
}
