//! Callers: they enqueue through one router and then another, repeat with the same key until they have a yes or a no,
//! cancel now and then, and note what they were told.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use crossover::interaction::{Side, Stage, interaction_id};
use crossover::proof::{Accepted, Runner, Seen};
use reqwest::{Client, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::cast::Cast;
use super::plan::{Job, ROUTERS, Repeat, past};

/// Never used up, whatever breaks: what has ended without an answer of the runner's is lost.
pub const ATTEMPTS: i32 = 1_000;
/// A caller that gets no answer for so long asks another router. Longer than a router needs to say that it has none.
const REQUEST: Duration = Duration::from_secs(8);
/// Who had to try for longer is worth a look.
const SLOW: Duration = Duration::from_secs(25);
/// Pauses between two requests double from the first to the second, or those who repeat keep everybody else away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Whoever waits for the end of a member before the next one waits no longer.
const TURN: Duration = Duration::from_secs(180);
/// Who asks to cancel asks again after so long, until it is certain, and so often.
const CANCEL: (Duration, usize) = (Duration::from_millis(500), 40);
/// So many that belong to no series wait for their answers at once.
const AT_ONCE: usize = 24;

/// What they were told.
#[derive(Debug, Clone, Default)]
pub struct Told {
    pub accepted: Vec<Accepted>,
    /// The owners that repetitions were told.
    pub again: Vec<(Uuid, Side)>,
    /// Told that it is cancelled, and when, in microseconds as the runner counts them.
    pub cancelled: Vec<(Uuid, u64)>,
    /// Whoever asked for it at all.
    pub cancel_asked: Vec<Uuid>,
    /// Accepted without a pin though not in `off`.
    pub failed_open: usize,
    /// Of accounts that could go on without Postgres then: a request whose answer was lost may have started it without a pin,
    /// and of such an execution only the end gets into the pin.
    pub unobserved: HashSet<Uuid>,
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
    /// Said only where it is not.
    #[serde(default = "pinned")]
    pinned: bool,
    /// 201: it is where its owner will find it.
    #[serde(skip)]
    delivered: bool,
}

fn pinned() -> bool {
    true
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
    runner: Arc<Runner>,
    /// Accounts of which Postgres has owned something: they are armed, and stay so.
    armed: Mutex<HashSet<&'static str>>,
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
    pub fn new(cast: Arc<Cast>, runner: Arc<Runner>, salt: u64) -> Self {
        let client = Client::builder().no_proxy().timeout(REQUEST).build().unwrap();
        let (places, afterwards) = (Semaphore::new(AT_ONCE), TaskTracker::new());
        let (armed, told) = Default::default();
        let callers = Arc::new(Callers { cast, runner, armed, client, told, places, salt, afterwards });
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
        let until = began + past(job.account).patience();
        let said = match job.repeat {
            Repeat::AtOnce => {
                let (one, other) =
                    tokio::join!(self.insist(&body, job.router, until), self.insist(&body, job.router + 1, until));
                self.agree(&job, one, other)
            }
            _ => self.insist(&body, job.router, until).await,
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
            let (callers, job, yes) = (self.clone(), job.clone(), yes.clone());
            self.afterwards.spawn(async move {
                tokio::time::sleep(after).await;
                let again = callers.insist(&body, job.router + 1, until).await;
                callers.agree(&job, Ok(yes), again).ok();
            });
        }
        if job.series.is_some() && !yes.delivered && !self.armed.lock().unwrap().contains(job.account) {
            self.turn_is_over(yes.id).await;
        }
    }

    /// A router that is cut off alone doesn't see what another has pinned and could not deliver; docs/outages.md says what
    /// callers do who care: of an account that may go on without Postgres they send the next member of a series after a 201,
    /// or after the end of the one before.
    async fn turn_is_over(&self, id: Uuid) {
        let began = Instant::now();
        let answered = |call: &Seen| call.id == id && matches!(call.answered, Some(200 | 422));
        let is_over = || {
            self.told.lock().unwrap().cancelled.iter().any(|(cancelled, _)| *cancelled == id)
                || self.runner.calls().iter().any(answered)
        };
        while began.elapsed() < TURN && !is_over() {
            tokio::time::sleep(PAUSES.0 * 3).await;
        }
        if began.elapsed() > SLOW {
            let calls = self.runner.calls().into_iter().filter(|call| call.id == id).collect::<Vec<_>>();
            let found = self.look_up(id).await.unwrap_or_else(|error| error);
            let waited = format!("the next after {id} waited {:.1?}: {calls:?} {found}", began.elapsed());
            self.note(|told| told.slow.push(waited));
        }
    }

    async fn look_up(&self, id: Uuid) -> Result<String, String> {
        let address = self.cast.router(0).ok_or("the router isn't there")?;
        let answer = self.client.get(format!("http://{address}/v1/interactions/{id}")).send().await;
        let answer = answer.map_err(|error| error.without_url().to_string())?;
        answer.text().await.map_err(|error| error.without_url().to_string())
    }

    /// Asks one router after the other until there is a yes or a no.
    async fn insist(&self, body: &Value, first: usize, until: Instant) -> Result<Yes, No> {
        let (began, mut router, mut heard, mut pause) = (Instant::now(), first, Vec::new(), PAUSES.0);
        loop {
            let said = match self.ask(body, router).await {
                Ok((status, text)) if status.is_success() => {
                    if began.elapsed() > SLOW {
                        let key = &body["key"];
                        self.note(|told| told.slow.push(format!("{key} for {:.1?}: {heard:#?}", began.elapsed())));
                    }
                    let yes = serde_json::from_str::<Yes>(&text);
                    return yes
                        .map(|yes| Yes { delivered: status == StatusCode::CREATED, ..yes })
                        .map_err(|error| No::Wrong(format!("{status}, {error}: {text}")));
                }
                Ok((status, text)) if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => {
                    return Err(No::Wrong(format!("{status}: {text}")));
                }
                Ok((status, text)) => format!("{status}: {text}"),
                Err(error) => error,
            };
            if Instant::now() + pause > until {
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

    /// Whoever asks for the same key is told of the same interaction; of its owner unless it was handed over meanwhile,
    /// which the judge knows.
    fn agree(&self, job: &Job, one: Result<Yes, No>, other: Result<Yes, No>) -> Result<Yes, No> {
        match (&one, &other) {
            (Ok(a), Ok(b)) if a.id == b.id => self.note(|told| told.again.push((b.id, b.owner))),
            (_, Err(No::GaveUp)) => {}
            (Err(No::GaveUp), _) => return other,
            _ => self.note(|told| told.wrong.push(format!("{} was told {one:?} and {other:?}", job.key))),
        }
        one
    }

    fn noted(&self, job: &Job, said: Result<Yes, No>) -> Option<Yes> {
        match said {
            Ok(yes) => {
                if yes.owner == Side::Postgres {
                    self.armed.lock().unwrap().insert(job.account);
                }
                self.note(|told| {
                    told.failed_open += usize::from(!yes.pinned && yes.stage != Stage::Off);
                    if yes.owner == Side::Temporal && past(job.account).may_fail_open() {
                        told.unobserved.insert(yes.id);
                    }
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

    /// Asks until it is certain what came of it.
    async fn cancel(&self, id: Uuid, router: usize) {
        // It may be cancelled by whatever of it arrives.
        self.note(|told| told.cancel_asked.push(id));
        for n in 0..CANCEL.1 {
            match self.post(router + n, &format!("/v1/interactions/{id}/cancel"), String::new()).await {
                Ok((StatusCode::OK, _)) => {
                    let now = self.cast.now();
                    return self.note(|told| told.cancelled.push((id, now)));
                }
                Ok((status, _)) if status.is_client_error() => return,
                _ => tokio::time::sleep(CANCEL.0).await,
            }
        }
    }
}
