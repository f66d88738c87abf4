//! Callers: they enqueue through one router and then another, repeat with the same key until they have a yes or a no,
//! cancel now and then, and note what they were told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use crossover::interaction::{Side, Stage, interaction_id};
use crossover::proof::Accepted;
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::cast::Cast;
use super::plan::{Job, ROUTERS, Repeat};

/// Never used up, whatever breaks: what has ended without an answer of the runner's is lost.
pub const ATTEMPTS: i32 = 1_000;
/// A caller that gets no answer for so long asks another router. Longer than a router needs to say that it has none.
const REQUEST: Duration = Duration::from_secs(8);
/// Who had to try for longer is worth a look.
const SLOW: Duration = Duration::from_secs(25);
/// Pauses between two requests double from the first to the second, or those who repeat keep everybody else away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// A caller gives up after so long, and nobody knows what became of it.
const PATIENCE: Duration = Duration::from_secs(300);
/// So many that belong to no series wait for their answers at once.
const AT_ONCE: usize = 24;

/// What they were told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub accepted: Vec<Accepted>,
    /// Answered 200 to a cancellation, and 202.
    pub cancelled: Vec<Uuid>,
    pub cancel_asked: Vec<Uuid>,
    /// Anything but yes that isn't to be repeated, and a yes that contradicts another.
    pub wrong: Vec<String>,
    /// Whose callers gave up: they may have been accepted or not, and what was accepted may run.
    pub in_doubt: Vec<Uuid>,
    pub repeats: usize,
    /// The longest that a caller had to try, in seconds.
    pub longest: f64,
    /// What callers were told that had to try for long.
    pub slow: Vec<String>,
}

#[derive(Deserialize, Clone, Debug)]
struct Yes {
    id: Uuid,
    owner: Side,
    stage: Stage,
}

/// What is no yes.
#[derive(Debug)]
enum No {
    /// Something that nobody who enqueues good work must be told.
    Wrong(String),
    /// Nothing definite, for as long as a caller would try.
    GaveUp,
}

pub struct Callers {
    cast: Arc<Cast>,
    client: Client,
    told: Mutex<Told>,
    places: Semaphore,
    salt: u64,
    /// What a caller does after the yes, which keeps nobody waiting.
    afterwards: TaskTracker,
}

/// Where jobs are handed in.
pub struct Desk {
    callers: Arc<Callers>,
    series: HashMap<(&'static str, &'static str, String), mpsc::UnboundedSender<Job>>,
    tasks: JoinSet<()>,
}

impl Desk {
    pub fn new(cast: Arc<Cast>, salt: u64) -> Self {
        let client = Client::builder().no_proxy().timeout(REQUEST).build().unwrap();
        let places = Semaphore::new(AT_ONCE);
        let callers =
            Arc::new(Callers { cast, client, told: Mutex::default(), places, salt, afterwards: TaskTracker::new() });
        Self { callers, series: HashMap::new(), tasks: JoinSet::new() }
    }

    /// The members of a series come from one caller, each after the answer to the one before it.
    pub async fn take(&mut self, job: Job) {
        while self.tasks.try_join_next().is_some() {}
        let callers = self.callers.clone();
        match &job.series {
            Some(series) => {
                let line = self.series.entry((job.account, job.kind, series.clone())).or_insert_with(|| {
                    let (line, mut jobs) = mpsc::unbounded_channel::<Job>();
                    self.tasks.spawn(async move {
                        while let Some(job) = jobs.recv().await {
                            callers.enqueue(job).await;
                        }
                    });
                    line
                });
                line.send(job).unwrap();
            }
            None => {
                // Who hands in faster than it is answered waits.
                callers.places.acquire().await.unwrap().forget();
                self.tasks.spawn(async move {
                    callers.enqueue(job).await;
                    callers.places.add_permits(1);
                });
            }
        }
    }

    /// What everybody was told in the end.
    pub async fn close(mut self) -> Told {
        self.series.clear();
        while let Some(done) = self.tasks.join_next().await {
            done.unwrap();
        }
        self.callers.afterwards.close();
        self.callers.afterwards.wait().await;
        self.callers.told.lock().unwrap().clone()
    }

    pub fn accepted(&self) -> usize {
        self.callers.told.lock().unwrap().accepted.len()
    }
}

impl Callers {
    fn note<R>(&self, change: impl FnOnce(&mut Told) -> R) -> R {
        change(&mut self.told.lock().unwrap())
    }

    async fn enqueue(self: &Arc<Self>, job: Job) {
        let mut body = json!({ "account": job.account, "kind": job.kind, "key": job.key,
            "payload": { "for": job.key, "salt": self.salt },
            "policy": { "max_attempts": ATTEMPTS, "run_timeout_ms": 6_000,
                "backoff": { "initial_ms": 100, "factor": 2.0, "max_ms": 1_000, "jitter": 0.2 } } });
        if let Some(series) = &job.series {
            body["series"] = json!(series);
        }
        if let Some(wait) = job.run_in {
            body["run_at"] = json!(Utc::now() + TimeDelta::from_std(wait).unwrap());
        }
        let began = Instant::now();
        let said = match job.repeat {
            Repeat::AtOnce => {
                let (one, other) = tokio::join!(self.insist(&body, job.router), self.insist(&body, job.router + 1));
                self.agree(&job, one, other)
            }
            _ => self.insist(&body, job.router).await,
        };
        self.note(|told| told.longest = told.longest.max(began.elapsed().as_secs_f64()));
        let Some(yes) = self.noted(&job, said) else { return };
        if let Some(after) = job.cancel {
            let (callers, id, router) = (self.clone(), yes.id, job.router);
            self.afterwards.spawn(async move {
                tokio::time::sleep(after).await;
                callers.cancel(id, router).await;
            });
        }
        if let Repeat::After(after) = job.repeat {
            let callers = self.clone();
            self.afterwards.spawn(async move {
                tokio::time::sleep(after).await;
                let again = callers.insist(&body, job.router + 1).await;
                callers.agree(&job, Ok(yes), again).ok();
            });
        }
    }

    /// Asks one router after the other until there is a yes or a no.
    async fn insist(&self, body: &Value, first: usize) -> Result<Yes, No> {
        let (began, mut router, mut heard, mut pause) = (Instant::now(), first, Vec::new(), PAUSES.0);
        loop {
            let said = match self.ask(body, router).await {
                Ok((status, text)) if status.is_success() => {
                    if began.elapsed() > SLOW {
                        let key = &body["key"];
                        self.note(|told| told.slow.push(format!("{key} for {:.1?}: {heard:#?}", began.elapsed())));
                    }
                    return serde_json::from_str(&text)
                        .map_err(|error| No::Wrong(format!("{status}, {error}: {text}")));
                }
                Ok((status, text)) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                    return Err(No::Wrong(format!("{status}: {text}")));
                }
                Ok((status, text)) => format!("{status}: {text}"),
                Err(error) => error,
            };
            if began.elapsed() > PATIENCE {
                return Err(No::GaveUp);
            }
            self.note(|told| told.repeats += 1);
            heard.push(format!("{:.1?} {}: {said}", began.elapsed(), router % ROUTERS));
            router += 1;
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    async fn ask(&self, body: &Value, router: usize) -> Result<(StatusCode, String), String> {
        self.post(router, "/v1/interactions", body.to_string()).await
    }

    async fn post(&self, router: usize, path: &str, body: String) -> Result<(StatusCode, String), String> {
        let address = self.cast.router(router).ok_or("the router isn't there")?;
        let sent = self.client.post(format!("http://{address}{path}")).body(body).send().await;
        let answer = sent.map_err(|error| error.without_url().to_string())?;
        let status = answer.status();
        Ok((status, answer.text().await.map_err(|error| error.without_url().to_string())?))
    }

    /// Whoever asks for the same key is told the same.
    fn agree(&self, job: &Job, one: Result<Yes, No>, other: Result<Yes, No>) -> Result<Yes, No> {
        match (&one, &other) {
            (Ok(a), Ok(b)) if (a.id, a.owner) == (b.id, b.owner) => {}
            (_, Err(No::GaveUp)) => {}
            (Err(No::GaveUp), _) => return other,
            _ => self.note(|told| told.wrong.push(format!("{} was told {one:?} and {other:?}", job.key))),
        }
        one
    }

    fn noted(&self, job: &Job, said: Result<Yes, No>) -> Option<Yes> {
        match said {
            Ok(yes) => {
                self.note(|told| {
                    let seq = told.accepted.len() as u64;
                    told.accepted.push(Accepted {
                        id: yes.id,
                        account: job.account.into(),
                        kind: job.kind.into(),
                        series: job.series.as_deref().map(Into::into),
                        seq,
                        owner: yes.owner,
                        stage: yes.stage,
                        max_attempts: ATTEMPTS,
                    });
                });
                Some(yes)
            }
            Err(No::Wrong(said)) => {
                self.note(|told| told.wrong.push(format!("{} of {}: {said}", job.key, job.account)));
                None
            }
            Err(No::GaveUp) => {
                self.note(|told| told.in_doubt.push(interaction_id(job.account, &job.key)));
                None
            }
        }
    }

    async fn cancel(&self, id: Uuid, router: usize) {
        for n in 0..20 {
            match self.post(router + n, &format!("/v1/interactions/{id}/cancel"), String::new()).await {
                Ok((StatusCode::OK, _)) => return self.note(|told| told.cancelled.push(id)),
                Ok((StatusCode::ACCEPTED, _)) => return self.note(|told| told.cancel_asked.push(id)),
                Ok((status, _)) if status.is_client_error() => return,
                // It may have been cancelled all the same.
                _ => self.note(|told| told.cancel_asked.push(id)),
            }
            tokio::time::sleep(PAUSES.0).await;
        }
    }
}
