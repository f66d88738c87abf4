//! The world of a test: a database of its own and a task queue of its own on the shared Temporal, a worker and a relay between
//! them, and a runner that remembers. There is no router: what a test starts without a pin it starts itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};
use crossover::executor::{Answer, Call, Executor};
use crossover::interaction::{Envelope, Interaction, Outcome, Payload, Side, Stage, interaction_id};
use crossover::ledger::{self, Ledger, Pin, PinRequest, Reconciliation, Story};
use crossover::metrics::Metrics;
use crossover::observer::Observer;
use crossover::policy::Policy;
use crossover::router::{Deliverer, Relay, RelayOptions};
use crossover::temporal::client::{ClientSettings, TemporalClient};
use crossover::temporal::reconcile::Reconciler;
use crossover::temporal::worker::{TemporalWorker, WorkerSettings};
use crossover::temporal::{Delivers, OnPostgres, Terms};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::bridge::until;
use crate::servers;

static NAMES: AtomicU32 = AtomicU32::new(0);

/// What was called, in order. Shut, it holds every call back.
#[derive(Default)]
pub struct Runner {
    calls: std::sync::Mutex<Vec<(Call, DateTime<Utc>)>>,
    shut: AtomicBool,
    opened: Notify,
}

impl Runner {
    pub fn keys(&self) -> Vec<String> {
        self.calls.lock().unwrap().iter().map(|(call, _)| call.key.clone()).collect()
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().iter().map(|(call, _)| call.clone()).collect()
    }

    pub fn shut(&self) {
        self.shut.store(true, SeqCst);
    }

    pub fn open(&self) {
        self.shut.store(false, SeqCst);
        self.opened.notify_waiters();
    }
}

#[async_trait]
impl Executor for Runner {
    async fn execute(&self, call: &Call) -> Answer {
        self.calls.lock().unwrap().push((call.clone(), Utc::now()));
        let opened = self.opened.notified();
        if self.shut.load(SeqCst) {
            opened.await;
        }
        Answer::Done(Payload::parse("1".to_owned()).unwrap())
    }
}

pub struct World {
    pub account: String,
    pub postgres: String,
    pub ledger: Ledger,
    pub client: TemporalClient,
    pub metrics: Arc<Metrics>,
    pub runner: Arc<Runner>,
    pub must_ask: Arc<AtomicBool>,
    pub temporal: String,
    task_queue: String,
    wake_relay: Arc<Notify>,
    stop: CancellationToken,
}

/// Ends what the world runs, a worker with its thread included.
impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    /// A world whose relay and worker run.
    pub async fn new() -> Self {
        let world = Self::idle().await;
        world.work(world.ledger.clone());
        world
    }

    /// A world without a worker.
    pub async fn idle() -> Self {
        let (postgres, temporal) = (servers::database().await, servers::temporal().await.address.clone());
        let ledger = Ledger::new(ledger::pool(&postgres, 10, Duration::from_secs(10)).unwrap());
        ledger.migrate().await.unwrap();
        let n = NAMES.fetch_add(1, Relaxed);
        let (account, task_queue) = (format!("it's {n} \\ über"), format!("arming-{n}"));
        let metrics = Arc::new(Metrics::new().unwrap());
        let client = client(&temporal, &task_queue).metered(&metrics);
        let world = Self {
            account,
            postgres,
            ledger,
            client,
            metrics,
            runner: Arc::default(),
            must_ask: Arc::default(),
            temporal,
            task_queue,
            wake_relay: Arc::default(),
            stop: CancellationToken::new(),
        };
        world.relay();
        world
    }

    fn relay(&self) {
        let target = Arc::new(Delivers(self.client.clone()));
        let deliverer = Deliverer::new(target, self.ledger.clone(), self.metrics.clone());
        let options =
            RelayOptions { poll: Duration::from_millis(50), batch: 100, rate: 1_000, lease: Duration::from_secs(10) };
        let relay = Relay::new(self.ledger.clone(), deliverer, self.metrics.clone(), options, self.wake_relay.clone());
        tokio::spawn(relay.run(self.stop.clone()));
    }

    /// Runs a worker that reports to `ledger`.
    pub fn work(&self, ledger: Ledger) {
        let settings = WorkerSettings {
            address: format!("http://{}", self.temporal),
            namespace: "default".into(),
            task_queue: self.task_queue.clone(),
            identity: "worker".into(),
            slots: 10,
            drain: Duration::from_secs(1),
            mirror_every: Duration::from_millis(100),
            mirror_batch: 100,
        };
        let ledger = OnPostgres {
            ledger,
            metrics: self.metrics.clone(),
            wake_queue: Arc::default(),
            observer: Observer::none(),
        };
        let must_ask = self.must_ask.clone();
        let worker = TemporalWorker::new(settings, self.runner.clone(), Arc::new(ledger))
            .asking(Arc::new(move |_: &str| must_ask.load(SeqCst)));
        let stop = self.stop.clone();
        tokio::spawn(async move { worker.run(stop).await.unwrap() });
    }

    pub fn reconciler(&self) -> Reconciler {
        self.reconciler_of(&self.client)
    }

    pub fn reconciler_of(&self, client: &TemporalClient) -> Reconciler {
        let lag = Duration::from_millis(200);
        Reconciler::new(client.clone(), self.ledger.clone(), self.metrics.clone(), lag, self.wake_relay.clone())
    }

    /// Steps until nothing is left.
    pub async fn reconcile(&self) -> Reconciliation {
        let reconciler = self.reconciler();
        until("everything open has a pin", async || {
            let row = reconciler.step(&self.account, 1).await.unwrap();
            row.done_at.is_some().then_some(row)
        })
        .await
    }

    pub fn interaction(&self, key: &str, series: Option<&str>) -> Interaction {
        Interaction {
            account: self.account.clone(),
            kind: "sync".into(),
            key_made: false,
            after: None,
            exclusive: None,
            key: key.into(),
            payload: Payload::parse(r#"{"b":1.10,"a":0}"#.into()).unwrap(),
            series: series.map(str::to_owned),
            group: None,
            run_at: None,
            priority: 0,
            policy: Policy { max_attempts: 2, ..Policy::default() },
        }
    }

    /// The envelope that a router sends in `off`.
    pub fn unpinned(&self, key: &str, series: Option<&str>) -> Envelope {
        let i = self.interaction(key, series);
        Envelope {
            id: i.id(),
            account: i.account,
            kind: i.kind,
            key: i.key,
            series: i.series,
            series_no: None,
            group: None,
            run_at: None,
            policy: i.policy,
            owner: Side::Temporal,
            epoch: 1,
            pinned: false,
            cancelled: false,
            payload_hash: crossover::interaction::hex(&i.payload.hash()),
            behind: vec![],
            payload: i.payload,
        }
    }

    /// One that is due in `seconds`.
    pub fn later(&self, key: &str, seconds: i64) -> Envelope {
        Envelope { run_at: Some(Utc::now() + TimeDelta::seconds(seconds)), ..self.unpinned(key, None) }
    }

    pub async fn start(&self, envelope: &Envelope) {
        self.client.deliver(envelope).await.unwrap();
    }

    /// Pins as a router does. The relay delivers.
    pub async fn pin(&self, interaction: &Interaction, stage: Stage) -> Pin {
        let request = PinRequest { interaction, stage, revision: "test", grace: Duration::ZERO };
        self.ledger.pin(request).await.unwrap().pin
    }

    /// Pins, and nobody delivers it before the test is over.
    pub async fn pin_undelivered(&self, interaction: &Interaction, stage: Stage) -> Pin {
        let request = PinRequest { interaction, stage, revision: "test", grace: Duration::from_secs(3_600) };
        self.ledger.pin(request).await.unwrap().pin
    }

    pub fn id(&self, key: &str) -> uuid::Uuid {
        interaction_id(&self.account, key)
    }

    pub async fn story(&self, key: &str) -> Option<Story> {
        self.ledger.story(self.id(key)).await.unwrap()
    }

    pub async fn ended(&self, key: &str, outcome: Outcome) -> Story {
        let story = until(&format!("{key} has ended"), async || {
            self.story(key).await.filter(|story| story.pin.ended_at.is_some())
        })
        .await;
        assert_eq!(story.pin.outcome, Some(outcome), "{story:#?}");
        story
    }

    /// Waits until the workflow of `key` has closed, in whichever run is the latest.
    pub async fn closed(&self, key: &str) {
        self.closed_id(&format!("{}:1", self.id(key))).await;
    }

    pub async fn closed_id(&self, workflow: &str) {
        until(&format!("the workflow {workflow} has closed"), async || {
            self.client.describe(workflow).await.ok().flatten().filter(|found| !found.open)
        })
        .await;
    }

    /// Waits until Temporal has everything that was pinned.
    pub async fn delivered(&self) {
        let left = "select count(*) from crossover.outbox";
        until("everything is with Temporal", async || (self.count(left).await == 0).then_some(())).await;
    }

    pub fn asked(&self, answer: &str) -> u64 {
        self.metrics.reconciliation.asked.with_label_values(&[answer]).get()
    }

    pub async fn sql(&self, sql: &'static str) {
        sqlx::query(sql).execute(self.ledger.pool()).await.unwrap();
    }

    pub async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.ledger.pool()).await.unwrap()
    }

    /// Does what an operator would: runs a workflow again from its beginning.
    pub async fn reset(&self, workflow_id: &str) {
        let arguments =
            ["workflow", "reset", "--workflow-id", workflow_id, "--type", "FirstWorkflowTask", "--reason", "test"];
        assert!(servers::cli(&arguments).await, "{workflow_id} can't be reset");
    }
}

/// A client whose series continue as new after two members.
pub fn client(temporal: &str, task_queue: &str) -> TemporalClient {
    let settings = ClientSettings {
        address: format!("http://{temporal}"),
        namespace: "default".into(),
        task_queue: task_queue.to_owned(),
        timeout: Duration::from_secs(5),
        identity: "router".into(),
        terms: Terms { heartbeat_ms: 2_000, rehearsal_bound_ms: 30_000 },
        window: Duration::from_secs(3_600),
        series_items_a_run: 2,
    };
    TemporalClient::lazy(settings).unwrap()
}
