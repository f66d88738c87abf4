//! The world of a test: a real Temporal, a worker, and in place of Postgres and the runner something that remembers.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use crossover::executor::{Answer, Call, Executor};
use crossover::interaction::{Attempt, Envelope, Fence, Payload, Side, interaction_id};
use crossover::policy::{Backoff, Listed, Policy};
use crossover::provision;
use crossover::temporal::Terms;
use crossover::temporal::client::{ClientSettings, TemporalClient};
use crossover::temporal::deliver::Delivered;
use crossover::temporal::ledger::{
    Asked, ClosedRehearsal, Detaching, End, FinishedRehearsal, Ledger, LedgerError, OpenRehearsal, Parking, Step,
};
use crossover::temporal::worker::{TemporalWorker, WorkerSettings};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::servers;

/// So many servers at once, or two cores are overloaded and every wait is a guess.
static ROOM: Semaphore = Semaphore::const_new(3);

/// A Temporal of the test's own: some kill it, and all use the same ids.
pub struct DevServer {
    temporal: provision::Temporal,
    _room: SemaphorePermit<'static>,
}

impl DevServer {
    pub async fn start() -> Self {
        let room = ROOM.acquire().await.unwrap();
        Self { temporal: provision::temporal(&servers::options()).await.unwrap(), _room: room }
    }

    pub fn address(&self) -> String {
        format!("http://{}", self.temporal.address)
    }

    pub async fn kill(&mut self) {
        self.temporal.server.kill().await.unwrap();
    }

    pub async fn restart(&mut self) {
        self.temporal.server.restart().await.unwrap();
    }

    /// Does what an operator would.
    pub async fn cancel(&self, workflow_id: &str) {
        let url = format!("http://{}/api/v1/namespaces/default/workflows/{workflow_id}/cancel", self.temporal.http);
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        http.post(url).body("{}").send().await.unwrap().error_for_status().unwrap();
    }
}

/// What was seen, and a bell that rings at every change.
#[derive(Default)]
pub struct Seen<T> {
    pub state: Mutex<T>,
    pub bell: Notify,
}

impl<T> Seen<T> {
    pub fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let result = f(&mut self.state.lock().unwrap());
        self.bell.notify_waiters();
        result
    }

    pub async fn until<R>(&self, what: &str, mut found: impl FnMut(&T) -> Option<R>) -> R {
        let wait = async {
            loop {
                let rung = self.bell.notified();
                if let Some(result) = found(&self.state.lock().unwrap()) {
                    return result;
                }
                rung.await;
            }
        };
        tokio::time::timeout(Duration::from_secs(40), wait).await.unwrap_or_else(|_| panic!("never saw {what}"))
    }
}

#[derive(Default)]
pub struct Book {
    pub down: bool,
    pub refused: usize,
    pub ends: Vec<End>,
    pub attempts: Vec<Attempt>,
    pub parked: Vec<Parking>,
    pub unended: Vec<Uuid>,
    pub asked_behind: usize,
    pub detached: Vec<Detaching>,
    pub living: Vec<Uuid>,
    pub opened: Vec<OpenRehearsal>,
    pub open: HashMap<Vec<u8>, OpenRehearsal>,
    pub real: HashMap<(Uuid, i32), Step>,
    pub closed: Vec<ClosedRehearsal>,
}

impl Book {
    pub fn end_of(&self, id: Uuid) -> Option<End> {
        self.ends.iter().find(|end| end.id == id).cloned()
    }

    pub fn opened(&self, id: Uuid, attempt: i32) -> Option<OpenRehearsal> {
        self.opened.iter().find(|o| o.id == id && o.fence.attempt == attempt).cloned()
    }

    pub fn closed(&self, id: Uuid, attempt: i32) -> Option<ClosedRehearsal> {
        self.closed.iter().find(|c| c.id == id && c.fence.attempt == attempt).cloned()
    }
}

#[derive(Default)]
pub struct MemoryLedger(pub Seen<Book>);

impl MemoryLedger {
    fn write<R>(&self, f: impl FnOnce(&mut Book) -> R) -> Result<R, LedgerError> {
        self.0.change(|book| {
            if book.down {
                book.refused += 1;
                return Err("Postgres is away".into());
            }
            Ok(f(book))
        })
    }
}

#[async_trait]
impl Ledger for MemoryLedger {
    async fn settle(&self, end: &End) -> Result<(), LedgerError> {
        self.write(|book| book.ends.push(end.clone()))
    }

    async fn record_attempt(&self, attempt: &Attempt) -> Result<(), LedgerError> {
        self.write(|book| book.attempts.push(attempt.clone()))
    }

    async fn over_before(&self, _: Uuid, _: Fence) -> Result<(), LedgerError> {
        self.write(|_| ())
    }

    async fn park(&self, parking: &Parking) -> Result<bool, LedgerError> {
        self.write(|book| {
            book.parked.push(parking.clone());
            true
        })
    }

    async fn ask(&self, _: &Envelope, _: Option<i32>) -> Result<Asked, LedgerError> {
        self.write(|_| Asked::Run { behind: vec![], attempts: 0, run: None })
    }

    async fn unended_up_to(&self, ids: &[Uuid]) -> Result<Vec<Uuid>, LedgerError> {
        self.write(|book| {
            book.asked_behind += 1;
            ids.iter().copied().filter(|id| book.unended.contains(id)).collect()
        })
    }

    async fn detach(&self, detaching: &Detaching) -> Result<(), LedgerError> {
        self.write(|book| book.detached.push(detaching.clone()))
    }

    /// Those of which nothing else is known.
    async fn living_rehearsals(&self, limit: i64) -> Result<Vec<OpenRehearsal>, LedgerError> {
        self.write(|book| {
            book.open.values().filter(|open| book.living.contains(&open.id)).take(limit as usize).cloned().collect()
        })
    }

    async fn rehearsal_dequeued(&self, rehearsal: &OpenRehearsal) -> Result<(), LedgerError> {
        self.write(|book| {
            book.opened.push(rehearsal.clone());
            book.open.insert(rehearsal.token.clone(), rehearsal.clone());
        })
    }

    async fn finished_rehearsals(&self, limit: i64) -> Result<Vec<FinishedRehearsal>, LedgerError> {
        self.write(|book| {
            let done = book.open.values().filter_map(|open| {
                let step = book.real.get(&(open.id, open.fence.attempt))?.clone();
                Some(FinishedRehearsal { token: open.token.clone(), id: open.id, fence: open.fence, step })
            });
            done.take(limit as usize).collect()
        })
    }

    async fn close_rehearsals(&self, closed: &[ClosedRehearsal]) -> Result<(), LedgerError> {
        self.write(|book| {
            for one in closed {
                book.open.remove(&one.token);
                book.closed.push(one.clone());
            }
        })
    }
}

/// Answers what the test told it, then `{"ok":true}`. A gate holds every call back while it is shut.
#[derive(Default)]
pub struct Script {
    pub calls: Seen<Vec<(Call, Instant)>>,
    pub answers: Mutex<VecDeque<Answer>>,
    pub shut: AtomicBool,
    pub gate: Notify,
}

impl Script {
    pub fn open(&self) {
        self.shut.store(false, SeqCst);
        self.gate.notify_waiters();
    }

    pub fn count(&self) -> usize {
        self.calls.change(|calls| calls.len())
    }

    pub async fn nth(&self, n: usize) -> (Call, Instant) {
        self.calls.until(&format!("call {n}"), |calls| calls.get(n - 1).cloned()).await
    }
}

#[async_trait]
impl Executor for Script {
    async fn execute(&self, call: &Call) -> Answer {
        self.calls.change(|calls| calls.push((call.clone(), Instant::now())));
        let opened = self.gate.notified();
        if self.shut.load(SeqCst) {
            opened.await;
        }
        let told = self.answers.lock().unwrap().pop_front();
        told.unwrap_or_else(|| Answer::Done(json(r#"{"ok":true}"#)))
    }
}

pub struct World {
    pub server: DevServer,
    pub ledger: Arc<MemoryLedger>,
    pub script: Arc<Script>,
    pub client: TemporalClient,
    pub worker: tokio::task::JoinHandle<()>,
    pub shutdown: CancellationToken,
}

pub const WINDOW: Duration = Duration::from_secs(60);
pub const TERMS: Terms = Terms { heartbeat_ms: 1_000, rehearsal_bound_ms: 30_000 };

impl World {
    pub async fn new() -> Self {
        Self::with(TERMS, WINDOW).await
    }

    pub async fn with(terms: Terms, window: Duration) -> Self {
        let server = DevServer::start().await;
        let client = lazy_client(&server, terms, window);
        let (ledger, script) = <(Arc<MemoryLedger>, Arc<Script>)>::default();
        let shutdown = CancellationToken::new();
        let worker = run_worker(&server, &script, &ledger, &shutdown);
        until_healthy(&client).await;
        Self { server, ledger, script, client, worker, shutdown }
    }

    pub fn book(&self) -> &Seen<Book> {
        &self.ledger.0
    }

    pub async fn deliver(&self, envelope: &Envelope) -> Delivered {
        self.client.deliver(envelope).await.unwrap()
    }

    pub async fn end_of(&self, envelope: &Envelope) -> End {
        self.book().until("the end", |book| book.end_of(envelope.id)).await
    }

    pub async fn until_closed(&self, envelope: &Envelope) -> String {
        self.until_closed_id(&envelope.workflow_id()).await
    }

    pub async fn until_closed_id(&self, workflow_id: &str) -> String {
        let wait = async {
            loop {
                match self.client.describe(workflow_id).await {
                    Ok(Some(found)) if !found.open => return format!("{:?}", found.status),
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the workflow never closed")
    }

    pub async fn close(self) {
        self.shutdown.cancel();
        self.worker.await.unwrap();
    }
}

pub fn lazy_client(server: &DevServer, terms: Terms, window: Duration) -> TemporalClient {
    lazy_client_in("default", server, terms, window)
}

pub fn lazy_client_in(namespace: &str, server: &DevServer, terms: Terms, window: Duration) -> TemporalClient {
    let settings = ClientSettings {
        address: server.address(),
        namespace: namespace.into(),
        task_queue: "crossover".into(),
        timeout: Duration::from_secs(2),
        identity: "router".into(),
        terms,
        window,
        series_items_a_run: 2,
    };
    TemporalClient::lazy(settings).unwrap()
}

pub fn run_worker(
    server: &DevServer,
    script: &Arc<Script>,
    ledger: &Arc<MemoryLedger>,
    shutdown: &CancellationToken,
) -> tokio::task::JoinHandle<()> {
    let settings = WorkerSettings {
        address: server.address(),
        namespace: "default".into(),
        task_queue: "crossover".into(),
        identity: "worker".into(),
        slots: 20,
        drain: Duration::from_secs(1),
        mirror_every: Duration::from_millis(50),
        mirror_batch: 100,
    };
    let worker = TemporalWorker::new(settings, script.clone(), ledger.clone());
    let shutdown = shutdown.clone();
    tokio::spawn(async move { worker.run(shutdown).await.unwrap() })
}

pub async fn until_healthy(client: &TemporalClient) {
    let healthy = async {
        while client.health().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), healthy).await.expect("Temporal never became healthy");
}

pub fn json(text: &str) -> Payload {
    Payload::parse(text.to_owned()).unwrap()
}

/// A document that a careless reader would round and sort.
pub const EXACT: &str = r#"{"b":123456789012345678901234567890.10,"a":"\u0000"}"#;

pub fn envelope(key: &str, owner: Side) -> Envelope {
    let payload = json(EXACT);
    let backoff = Backoff::Listed(Listed { delays_ms: vec![700] });
    Envelope {
        id: interaction_id("acme", key),
        account: "acme".into(),
        kind: "sync".into(),
        key: key.into(),
        series: None,
        series_no: None,
        group: None,
        run_at: None,
        policy: Policy { backoff, max_attempts: 3, run_timeout_ms: 20_000, ..Policy::default() },
        owner,
        epoch: 1,
        pinned: true,
        cancelled: false,
        payload_hash: payload.hash().iter().map(|byte| format!("{byte:02x}")).collect(),
        behind: vec![],
        payload,
    }
}

pub fn retryable(error: &str) -> Answer {
    Answer::retryable(error)
}
