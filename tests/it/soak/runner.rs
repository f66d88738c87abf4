//! A runner that sees at each start what else runs, and so what was promised never to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use rand::RngExt;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

/// A change of a limit is in force in the database; what was claimed just before may come here so much later.
const UNDER_WAY: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
struct Body {
    id: Uuid,
    account: String,
    series: Option<String>,
    payload: Value,
}

/// What a group may do, and what it might before the last change.
#[derive(Debug, Clone, Default)]
pub struct Limits {
    pub running: Option<usize>,
    pub per_account: Option<usize>,
    pub paused: bool,
}

#[derive(Default)]
struct Seen {
    active: HashMap<String, usize>,
    limits: HashMap<String, (Limits, Limits, Option<Instant>)>,
    starts: HashMap<Uuid, usize>,
    successes: HashMap<Uuid, usize>,
    most: HashMap<String, usize>,
    broken: Vec<String>,
}

#[derive(Clone, Default)]
pub struct Runner(Arc<Mutex<Seen>>);

impl Runner {
    pub async fn start(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/run", listener.local_addr().unwrap());
        let routes = Router::new().route("/run", post(run)).with_state(self.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await });
        url
    }

    /// From now on; until what was claimed before has come, the limits of before hold as well.
    pub fn limit(&self, group: &str, limits: Limits) {
        let mut seen = self.seen();
        let (now, before, at) = seen.limits.entry(group.to_owned()).or_default();
        *before = std::mem::replace(now, limits);
        *at = Some(Instant::now());
    }

    pub fn broken(&self) -> Vec<String> {
        self.seen().broken.clone()
    }

    pub fn successes(&self, id: Uuid) -> usize {
        self.seen().successes.get(&id).copied().unwrap_or(0)
    }

    /// Starts in all, and the most that ran at once of each group.
    pub fn told(&self) -> (usize, Vec<(String, usize)>) {
        let seen = self.seen();
        let groups = seen.most.iter().filter(|(name, _)| name.starts_with("group ")).map(|(n, m)| (n.clone(), *m));
        (seen.starts.values().sum(), groups.collect())
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a call occupies until its end, also when its caller dies.
struct Occupied(Runner, Vec<String>);

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut seen = self.0.seen();
        for name in &self.1 {
            *seen.active.get_mut(name).expect("it was counted") -= 1;
        }
    }
}

impl Seen {
    fn begin(&mut self, body: &Body) -> Vec<String> {
        let group = body.payload["group"].as_str().map(|group| format!("group {group}"));
        let of_account = group.as_ref().map(|group| format!("{group} of {}", body.account));
        let series = body.series.as_ref().map(|series| format!("series {series} of {}", body.account));
        let exclusive =
            body.payload["exclusive"].as_str().map(|key| format!("series or exclusive {key} of {}", body.account));
        let names: Vec<String> = [series, exclusive, group, of_account].into_iter().flatten().collect();
        for name in &names {
            let active = self.active.entry(name.clone()).or_default();
            *active += 1;
            let most = self.most.entry(name.clone()).or_default();
            *most = (*most).max(*active);
        }
        *self.starts.entry(body.id).or_default() += 1;
        if let Some(broken) = self.broken_by(body, &names) {
            self.broken.push(broken);
        }
        names
    }

    fn broken_by(&self, body: &Body, names: &[String]) -> Option<String> {
        let too_many = |name: &String, most: usize| {
            let active = self.active.get(name).copied().unwrap_or(0);
            (active > most).then(|| format!("{active} of {name} run at once, {most} may: {}", body.id))
        };
        let overlap = names.iter().filter(|name| name.starts_with("series ")).find_map(|name| too_many(name, 1));
        let group = body.payload["group"].as_str();
        let limited = group.and_then(|group| {
            let (now, before, changed) = self.limits.get(group)?;
            let changing = changed.is_some_and(|at| at.elapsed() < UNDER_WAY);
            if now.paused && !changing {
                return Some(format!("{} of the paused group {group} starts", body.id));
            }
            let most = |of: fn(&Limits) -> Option<usize>| {
                let most = of(now)?;
                Some(if changing { most.max(of(before).unwrap_or(usize::MAX)) } else { most })
            };
            let running = most(|limits| limits.running).and_then(|most| too_many(&format!("group {group}"), most));
            let name = format!("group {group} of {}", body.account);
            running.or_else(|| too_many(&name, most(|limits| limits.per_account)?))
        });
        overlap.or(limited)
    }
}

async fn run(State(runner): State<Runner>, Json(body): Json<Body>) -> Response {
    let names = runner.seen().begin(&body);
    let occupied = Occupied(runner.clone(), names);
    let (millis, fails) = {
        let mut rng = rand::rng();
        let millis = if rng.random_bool(0.03) { rng.random_range(100..500) } else { rng.random_range(1..40) };
        (millis, rng.random_bool(0.05))
    };
    tokio::time::sleep(Duration::from_millis(millis)).await;
    // Before the answer, which lets the next one start.
    drop(occupied);
    if fails {
        return (StatusCode::SERVICE_UNAVAILABLE, "busy").into_response();
    }
    *runner.seen().successes.entry(body.id).or_default() += 1;
    Json(json!({ "ok": body.id })).into_response()
}
