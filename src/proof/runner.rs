//! A runner: what executions call. It takes uneven time, fails now and then, and notes every call it gets.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router as Routes};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::verdict::Seen;
use crate::interaction::{Fence, Side};

/// How a runner behaves. Shares are of interactions, from 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct RunnerOptions {
    /// The same seed gives every interaction the same fate.
    pub seed: u64,
    /// Half of the calls take less.
    pub median: Duration,
    /// The standard deviation of the logarithm of the time: 0 is even, 1 has a heavy tail.
    pub spread: f64,
    /// No call takes longer.
    pub longest: Duration,
    /// Answered with 500 on their first one or two attempts.
    pub flaky: f64,
    /// Answered with 429 and `Retry-After: 1` on their first attempt.
    pub throttled: f64,
    /// Answered with 422 for good.
    pub refused: f64,
    /// Answered with 500 whenever they come.
    pub broken: f64,
}

impl RunnerOptions {
    /// A runner with the moods of a real one.
    pub fn uneven(seed: u64) -> Self {
        Self {
            seed,
            median: Duration::from_millis(15),
            spread: 0.9,
            longest: Duration::from_millis(1_500),
            flaky: 0.04,
            throttled: 0.01,
            refused: 0.01,
            broken: 0.002,
        }
    }

    /// How long attempt number `attempt` of `id` takes, and what it comes to.
    fn fate(&self, id: Uuid, attempt: i32) -> (Duration, StatusCode) {
        let mut draws = Draws(self.seed ^ (id.as_u128() as u64) ^ ((id.as_u128() >> 64) as u64));
        let (mood, stubborn) = (draws.next(), draws.next() < 0.3);
        let refused = self.refused;
        let broken = refused + self.broken;
        let flaky = broken + self.flaky;
        let throttled = flaky + self.throttled;
        let status = match attempt {
            _ if mood < refused => StatusCode::UNPROCESSABLE_ENTITY,
            _ if mood < broken => StatusCode::INTERNAL_SERVER_ERROR,
            1 if mood < flaky => StatusCode::INTERNAL_SERVER_ERROR,
            2 if mood < flaky && stubborn => StatusCode::INTERNAL_SERVER_ERROR,
            1 if mood < throttled => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::OK,
        };
        let mut draws = Draws(draws.0 ^ (attempt as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        // Box and Muller: two even draws make a normal one.
        let normal = (-2.0 * (1.0 - draws.next()).ln()).sqrt() * (std::f64::consts::TAU * draws.next()).cos();
        let took = self.median.mul_f64((self.spread * normal).exp().min(1e6));
        (took.min(self.longest), status)
    }
}

/// SplitMix64: small, seeded, the same on every machine.
struct Draws(u64);

impl Draws {
    /// A number from 0 up to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A running runner. Dropping it stops it.
pub struct Runner {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    server: JoinHandle<()>,
}

struct Shared {
    options: RunnerOptions,
    began: Instant,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    calls: Vec<Seen>,
    /// Names repeat in thousands of calls and are kept once.
    names: HashSet<Arc<str>>,
    malformed: Vec<String>,
}

impl Record {
    fn name(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.names.get(text) {
            return known.clone();
        }
        let name: Arc<str> = text.into();
        self.names.insert(name.clone());
        name
    }
}

impl Runner {
    /// Listens at `address`; port 0 is a free one. Any path will do.
    pub async fn start(address: SocketAddr, options: RunnerOptions) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared { options, began: Instant::now(), record: Mutex::default() });
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let routes = Routes::new().fallback(answer).layer(DefaultBodyLimit::max(8 << 20)).with_state(shared.clone());
        let server = tokio::spawn(async move {
            let served = axum::serve(listener, routes).with_graceful_shutdown(stopped).await;
            if let Err(error) = served {
                tracing::warn!(%error, "the runner has stopped");
            }
        });
        Ok(Self { address, shared, stop, server })
    }

    /// Where executions have to be posted to.
    pub fn url(&self) -> String {
        format!("http://{}/run", self.address)
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Seen> {
        self.shared.record().calls.clone()
    }

    /// Requests that are no executor call, in words.
    pub fn malformed(&self) -> Vec<String> {
        self.shared.record().malformed.clone()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop.cancel();
        self.server.abort();
    }
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        // Nothing between lock and unlock leaves the record half written.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }
}

#[derive(Deserialize)]
struct Body {
    id: Uuid,
    account: String,
    kind: String,
    key: String,
    series: Option<String>,
    side: Side,
    epoch: i32,
    attempt: i32,
}

/// A call that runs. Dropped before its answer, the caller has hung up.
struct Running {
    shared: Arc<Shared>,
    at: usize,
    answered: Option<u16>,
}

impl Running {
    fn begin(shared: Arc<Shared>, body: &Body) -> Self {
        let mut record = shared.record();
        let (account, kind) = (record.name(&body.account), record.name(&body.kind));
        let series = body.series.as_deref().map(|series| record.name(series));
        let fence = Fence { epoch: body.epoch, attempt: body.attempt };
        let (id, side, started) = (body.id, body.side, shared.now());
        let at = record.calls.len();
        record.calls.push(Seen { id, account, kind, series, side, fence, started, ended: None, answered: None });
        drop(record);
        Self { shared, at, answered: None }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let ended = self.shared.now();
        let mut record = self.shared.record();
        record.calls[self.at].ended = Some(ended);
        record.calls[self.at].answered = self.answered;
    }
}

async fn answer(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let body = match read(&headers, &body) {
        Ok(body) => body,
        Err(problem) => {
            let mut record = shared.record();
            if record.malformed.len() < 100 {
                record.malformed.push(problem.clone());
            }
            return (StatusCode::BAD_REQUEST, problem).into_response();
        }
    };
    let (takes, status) = shared.options.fate(body.id, body.attempt);
    let mut running = Running::begin(shared, &body);
    // So that a result can be followed back to its call, whatever fence it is recorded under.
    let call = running.at;
    tokio::time::sleep(takes).await;
    running.answered = Some(status.as_u16());
    // Noted before it is sent, so that whatever the answer sets off begins later.
    drop(running);
    match status {
        StatusCode::OK => {
            Json(serde_json::json!({ "ran": body.id, "attempt": body.attempt, "call": call })).into_response()
        }
        StatusCode::TOO_MANY_REQUESTS => (status, [(header::RETRY_AFTER, "1")], "too much at once").into_response(),
        StatusCode::UNPROCESSABLE_ENTITY => (status, "this can never be done").into_response(),
        _ => (status, "out of order, try again").into_response(),
    }
}

/// Reads a call and holds its headers and its id against its body.
fn read(headers: &HeaderMap, body: &[u8]) -> Result<Body, String> {
    let body: Body = serde_json::from_slice(body).map_err(|error| format!("the body is no executor call: {error}"))?;
    let fence = Fence { epoch: body.epoch, attempt: body.attempt };
    let wanted = [
        ("Idempotency-Key", body.id.to_string()),
        ("Crossover-Side", body.side.to_string()),
        ("Crossover-Fence", fence.to_string()),
    ];
    for (name, value) in wanted {
        let found = headers.get(name).and_then(|found| found.to_str().ok());
        if found != Some(value.as_str()) {
            return Err(format!("{}: header {name} is {found:?}, the body says {value}", body.id));
        }
    }
    if body.id != crate::interaction::interaction_id(&body.account, &body.key) {
        return Err(format!("{} is not the id of key {} of account {}", body.id, body.key, body.account));
    }
    Ok(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::{Answer, Call, Executor, Heartbeat, HttpExecutor};
    use crate::interaction::{Payload, interaction_id};

    fn share(options: &RunnerOptions, attempt: i32, wanted: StatusCode) -> f64 {
        let ids = (0..20_000u128).map(|n| Uuid::from_u128(n.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835)));
        let hits = ids.filter(|id| options.fate(*id, attempt).1 == wanted).count();
        hits as f64 / 20_000.0
    }

    #[test]
    fn the_shares_are_what_they_are_said_to_be() {
        let options =
            RunnerOptions { flaky: 0.2, throttled: 0.1, refused: 0.05, broken: 0.05, ..RunnerOptions::uneven(7) };
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.015, "{found} is not near {wanted}");
        near(share(&options, 1, StatusCode::INTERNAL_SERVER_ERROR), 0.25);
        near(share(&options, 2, StatusCode::INTERNAL_SERVER_ERROR), 0.05 + 0.2 * 0.3);
        near(share(&options, 3, StatusCode::INTERNAL_SERVER_ERROR), 0.05);
        near(share(&options, 1, StatusCode::TOO_MANY_REQUESTS), 0.1);
        near(share(&options, 2, StatusCode::TOO_MANY_REQUESTS), 0.0);
        near(share(&options, 9, StatusCode::UNPROCESSABLE_ENTITY), 0.05);
    }

    #[test]
    fn times_are_uneven_bounded_and_repeatable() {
        let options = RunnerOptions::uneven(7);
        let mut times: Vec<_> = (1..2_000).map(|n| options.fate(Uuid::from_u128(n << 70 | n), 1).0).collect();
        assert_eq!(times[3], options.fate(Uuid::from_u128(4 << 70 | 4), 1).0);
        times.sort();
        let (half, most) = (times[1_000].as_secs_f64(), times[1_980].as_secs_f64());
        assert!(
            (0.012..0.018).contains(&half) && most > 4.0 * half && times[1_998] <= options.longest,
            "{half} {most}"
        );
    }

    #[tokio::test]
    async fn it_understands_the_executors_call_and_notes_it() {
        let options = RunnerOptions { refused: 0.0, broken: 0.0, flaky: 1.0, ..RunnerOptions::uneven(1) };
        let runner = Runner::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
        let executor = HttpExecutor::new(&runner.url(), Duration::from_secs(5)).unwrap();
        let mut call = Call {
            id: interaction_id("a", "x"),
            account: "a".into(),
            kind: "k".into(),
            key: "x".into(),
            series: Some("s".into()),
            payload: Payload::parse("1".into()).unwrap(),
            side: Side::Postgres,
            fence: Fence { epoch: 2, attempt: 1 },
            heartbeat: Heartbeat::default(),
            over: Default::default(),
        };
        assert!(matches!(executor.execute(&call).await, Answer::Failed { .. }));
        call.fence.attempt = 3;
        assert!(matches!(executor.execute(&call).await, Answer::Done(_)));
        let calls = runner.calls();
        let seen: Vec<_> = calls.iter().map(|c| (c.fence.to_string(), c.answered, c.series.as_deref())).collect();
        assert_eq!(seen, [("2.1".into(), Some(500), Some("s")), ("2.3".into(), Some(200), Some("s"))]);
        assert!(calls.iter().all(|c| c.ended.unwrap() >= c.started) && calls[0].ended.unwrap() <= calls[1].started);
        call.key = "y".into();
        assert!(matches!(executor.execute(&call).await, Answer::Failed { .. }));
        assert_eq!((runner.calls().len(), runner.malformed().len()), (2, 1));
    }
}
