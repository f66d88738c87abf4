//! Callers: they enqueue over HTTP, repeat with the same key until they have an answer, and note it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::{Client, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::verdict::Accepted;
use crate::interaction::{Payload, Side, Stage};
use crate::policy::Policy;

/// Something to enqueue, and when.
#[derive(Debug, Clone)]
pub struct Job {
    /// Not before so long after the start.
    pub at: Duration,
    /// The tenant.
    pub account: Arc<str>,
    /// The type of work.
    pub kind: Arc<str>,
    /// The series.
    pub series: Option<Arc<str>>,
    /// The idempotency key.
    pub key: String,
    /// What must run.
    pub payload: Payload,
}

/// Callers of one API.
#[derive(Clone)]
pub struct Driver {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    url: String,
    policy: Policy,
    patience: Duration,
    places: Semaphore,
    answers: Mutex<Answers>,
    answered: watch::Sender<u64>,
    next: AtomicU64,
}

/// What the callers were told.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// Yes.
    pub accepted: Vec<Accepted>,
    /// No, for good.
    pub refused: Vec<Refusal>,
    /// Nothing definite, for as long as a caller would try.
    pub unanswered: Vec<Refusal>,
    /// Requests that were repeated with the same key.
    pub repeats: u64,
    /// How long each definite answer took, repeats included, in microseconds.
    pub latency: Vec<u64>,
}

/// An interaction that was not accepted, and what was said last.
#[derive(Debug, Clone, Serialize)]
pub struct Refusal {
    /// The tenant.
    pub account: Arc<str>,
    /// The idempotency key.
    pub key: String,
    /// The status and the text.
    pub said: String,
}

#[derive(Serialize)]
struct Request<'a> {
    account: &'a str,
    kind: &'a str,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<&'a str>,
    payload: &'a Payload,
    policy: &'a Policy,
}

#[derive(Deserialize)]
struct Yes {
    id: Uuid,
    owner: Side,
    stage: Stage,
}

/// What one request came to.
enum Said {
    Yes(Yes),
    No(String),
    /// To be repeated, after so long where the server said so.
    Perhaps(String, Option<Duration>),
}

/// One request takes no longer; the next one asks again.
const REQUEST: Duration = Duration::from_secs(10);
/// Pauses between two requests double from the first to the second.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

impl Driver {
    /// Callers of `url`, at most `at_once` at a time, each of them trying for as long as `patience`.
    pub fn new(url: &str, policy: Policy, at_once: usize, patience: Duration) -> reqwest::Result<Self> {
        let client = Client::builder().no_proxy().timeout(REQUEST).build()?;
        let shared = Shared {
            client,
            url: format!("{}/v1/interactions", url.trim_end_matches('/')),
            policy,
            patience,
            places: Semaphore::new(at_once),
            answers: Mutex::default(),
            answered: watch::Sender::new(0),
            next: AtomicU64::new(0),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Enqueues all jobs at their times and returns when each has its answer. The members of a series go one after the
    /// other, in the order of `jobs`.
    pub async fn drive(&self, jobs: Vec<Job>) {
        let start = Instant::now();
        let mut series: HashMap<_, Vec<Job>> = HashMap::new();
        let mut alone = Vec::new();
        for job in jobs {
            match &job.series {
                Some(name) => {
                    series.entry((job.account.clone(), job.kind.clone(), name.clone())).or_default().push(job)
                }
                None => alone.push(job),
            }
        }
        let mut callers = JoinSet::new();
        for jobs in series.into_values() {
            let shared = self.shared.clone();
            callers.spawn(async move {
                for job in jobs {
                    tokio::time::sleep_until((start + job.at).into()).await;
                    shared.enqueue(job).await;
                }
            });
        }
        alone.sort_by_key(|job| job.at);
        for job in alone {
            tokio::time::sleep_until((start + job.at).into()).await;
            let shared = self.shared.clone();
            callers.spawn(async move { shared.enqueue(job).await });
        }
        while callers.join_next().await.is_some() {}
    }

    /// Counts the definite answers.
    pub fn answered(&self) -> watch::Receiver<u64> {
        self.shared.answered.subscribe()
    }

    /// What was said so far.
    pub fn answers(&self) -> Answers {
        self.shared.answers().clone()
    }
}

impl Shared {
    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enqueue(&self, job: Job) {
        // Nobody closes the semaphore.
        let _place = self.places.acquire().await;
        let began = Instant::now();
        let mut pause = PAUSES.0;
        let mut repeats = 0;
        let said = loop {
            match self.ask(&job).await {
                Said::Perhaps(_, asked) if began.elapsed() < self.patience => {
                    tokio::time::sleep(asked.unwrap_or(pause).min(PAUSES.1)).await;
                    (pause, repeats) = ((pause * 2).min(PAUSES.1), repeats + 1);
                }
                said => break said,
            }
        };
        self.note(job, said, repeats, began.elapsed());
        self.answered.send_modify(|count| *count += 1);
    }

    async fn ask(&self, job: &Job) -> Said {
        let body = Request {
            account: &job.account,
            kind: &job.kind,
            key: &job.key,
            series: job.series.as_deref(),
            payload: &job.payload,
            policy: &self.policy,
        };
        let response = match self.client.post(&self.url).json(&body).send().await {
            Ok(response) => response,
            Err(error) => return Said::Perhaps(format!("no answer: {}", error.without_url()), None),
        };
        let status = response.status();
        let asked = response.headers().get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let text = match response.text().await {
            Ok(text) => text,
            Err(error) => return Said::Perhaps(format!("{status}, broken off: {}", error.without_url()), None),
        };
        if status.is_success() {
            return match serde_json::from_str(&text) {
                Ok(yes) => Said::Yes(yes),
                Err(error) => Said::No(format!("{status} with an answer that can't be read ({error}): {text}")),
            };
        }
        let said = format!("{status}: {text}");
        if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
            return Said::Perhaps(said, asked.map(Duration::from_secs));
        }
        Said::No(said)
    }

    fn note(&self, job: Job, said: Said, repeats: u64, took: Duration) {
        let seq = self.next.fetch_add(1, Ordering::Relaxed);
        let Job { account, kind, series, key, .. } = job;
        let mut answers = self.answers();
        answers.repeats += repeats;
        match said {
            Said::Yes(Yes { id, owner, stage }) => {
                let max_attempts = self.policy.max_attempts;
                answers.accepted.push(Accepted { id, account, kind, series, seq, owner, stage, max_attempts });
                answers.latency.push(took.as_micros() as u64);
            }
            Said::No(said) => answers.refused.push(Refusal { account, key, said }),
            Said::Perhaps(said, _) => answers.unanswered.push(Refusal { account, key, said }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use axum::extract::State;
    use axum::response::IntoResponse;
    use axum::{Json, Router};
    use serde_json::{Value, json};

    use super::*;

    type Asked = Arc<Mutex<(VecDeque<u16>, Vec<String>)>>;

    /// An API that answers each request with the next of `statuses`, then with 201; and the keys that it was asked with.
    async fn api(statuses: &[u16]) -> (Driver, Asked) {
        let asked = Asked::default();
        asked.lock().unwrap().0.extend(statuses);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answer = |State(asked): State<Asked>, Json(body): Json<Value>| async move {
            let mut asked = asked.lock().unwrap();
            asked.1.push(body["key"].as_str().unwrap().to_owned());
            let status = StatusCode::from_u16(asked.0.pop_front().unwrap_or(201)).unwrap();
            let yes =
                json!({ "id": Uuid::nil(), "key": body["key"], "owner": "postgres", "stage": "live", "epoch": 1 });
            (status, [("Retry-After", "0")], Json(yes)).into_response()
        };
        let routes = Router::new().fallback(answer).with_state(asked.clone());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        (Driver::new(&url, Policy::default(), 4, Duration::from_secs(20)).unwrap(), asked)
    }

    fn job(series: Option<&str>, key: &str) -> Job {
        let payload = Payload::parse("{}".to_owned()).unwrap();
        let series = series.map(Into::into);
        Job { at: Duration::ZERO, account: "a".into(), kind: "k".into(), series, key: key.to_owned(), payload }
    }

    #[tokio::test]
    async fn what_is_in_doubt_is_repeated_with_the_same_key() {
        let (driver, asked) = api(&[503, 500, 429]).await;
        driver.drive(vec![job(None, "x")]).await;
        let answers = driver.answers();
        assert_eq!((answers.accepted.len(), answers.repeats), (1, 3));
        assert_eq!(asked.lock().unwrap().1, ["x"; 4]);
    }

    #[tokio::test]
    async fn a_refusal_for_good_is_noted_and_not_repeated() {
        let (driver, asked) = api(&[422]).await;
        driver.drive(vec![job(None, "x")]).await;
        let answers = driver.answers();
        assert!(answers.accepted.is_empty() && answers.refused[0].said.starts_with("422"), "{answers:?}");
        assert_eq!(asked.lock().unwrap().1.len(), 1);
    }

    #[tokio::test]
    async fn a_member_of_a_series_is_not_sent_before_the_one_ahead_of_it_has_its_answer() {
        let (driver, asked) = api(&[503, 503]).await;
        driver.drive(vec![job(Some("s"), "1"), job(Some("s"), "2"), job(Some("s"), "3")]).await;
        assert_eq!(asked.lock().unwrap().1, ["1", "1", "1", "2", "3"]);
        let seqs: Vec<_> = driver.answers().accepted.iter().map(|one| one.seq).collect();
        assert_eq!(seqs, [0, 1, 2]);
    }
}
