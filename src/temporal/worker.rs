//! Runs workflows and activities, and the mirror beside them, on a thread of their own: the SDK's `run()` is not
//! `Send`.

use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use temporalio_client::{Client, ClientOptions, Connection, ConnectionOptions, Url};
use temporalio_sdk::runtime::RuntimeOptions;
use temporalio_sdk::runtime::worker_tuner::{FixedSizeSlotSupplier, TunerHolder};
use temporalio_sdk::{Runtime, Worker, WorkerOptions};
use tokio_util::sync::CancellationToken;

use crate::executor::Executor;
use crate::interaction::Side;
use crate::metrics::Metrics;
use crate::observer::Observer;

use super::activities::{Activities, LEDGER_WITHIN};
use super::ask::{MustAsk, Resets};
use super::ledger::Ledger;
use super::meter::{meter, telemetry};
use super::mirror::{Mirror, Unrecorded};
use super::series::SeriesWorkflow;
use super::workflow::InteractionWorkflow;

/// What a worker needs to know.
#[derive(Debug, Clone)]
pub struct WorkerSettings {
    /// `http://host:port`.
    pub address: String,
    /// The namespace.
    pub namespace: String,
    /// The task queue.
    pub task_queue: String,
    /// Who we are, in Temporal's histories.
    pub identity: String,
    /// Executions at once.
    pub slots: usize,
    /// At the end, what runs may run on for so long; then it is called off and retried elsewhere.
    pub drain: Duration,
    /// The pause between two looks for ended rehearsals.
    pub mirror_every: Duration,
    /// Rehearsals a look.
    pub mirror_batch: i64,
}

/// Why a worker can't run at all.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The settings are wrong.
    #[error("Temporal's address {0:?} is no URL")]
    Address(String),
    /// No thread, or no runtime on it.
    #[error("the Temporal worker couldn't start: {0}")]
    Start(String),
    /// The thread ended without a word.
    #[error("the Temporal worker's thread died")]
    Died,
}

/// After the drain, what has ended is reported within so long. The SDK alone would try an absent server for 20 s.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// After a panic.
const BREATH: Duration = Duration::from_secs(1);

pub(super) type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Runs what the SDK does, which is not `Send`, on a thread and a runtime of its own. Dropping the future abandons it, as a crash would.
pub(super) async fn on_a_thread<F>(name: &str, work: impl FnOnce() -> F + Send + 'static) -> Result<(), WorkerError>
where
    F: Future<Output = Result<(), WorkerError>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("temporal")
        .enable_all()
        .build()
        .map_err(|error| WorkerError::Start(error.to_string()))?;
    let abandon = CancellationToken::new();
    let _abandoned = abandon.clone().drop_guard();
    let (ended, end) = tokio::sync::oneshot::channel();
    let thread = move || {
        let worked = runtime.block_on(abandon.run_until_cancelled(work()));
        runtime.shutdown_background();
        let _ = ended.send(worked.unwrap_or(Ok(())));
    };
    let named = std::thread::Builder::new().name(name.to_owned());
    named.spawn(thread).map_err(|error| WorkerError::Start(error.to_string()))?;
    end.await.unwrap_or(Err(WorkerError::Died))
}

/// A thread that has died of a panic is answered with another, until `shutdown`.
pub async fn again_after_deaths<F>(
    name: &'static str,
    deaths: &IntCounter,
    shutdown: &CancellationToken,
    mut run: impl FnMut() -> F,
) -> Result<(), WorkerError>
where
    F: Future<Output = Result<(), WorkerError>>,
{
    loop {
        match run().await {
            Err(WorkerError::Died) if !shutdown.is_cancelled() => {
                deaths.inc();
                tracing::error!("the thread of the {name} has panicked, which is a fault of ours; it starts again");
                shutdown.run_until_cancelled(tokio::time::sleep(BREATH)).await;
            }
            ended => return ended,
        }
    }
}

/// The SDK's pollers sit out an outage; what ends them anyway is answered with a new worker, until `shutdown`.
pub(super) async fn again_and_again(
    name: &'static str,
    metrics: Option<&Arc<Metrics>>,
    shutdown: &CancellationToken,
    run_once: impl AsyncFn(&Runtime) -> Result<(), Broken>,
) -> Result<(), WorkerError> {
    let options = RuntimeOptions::builder()
        .heartbeat_interval(None)
        .telemetry_options(metrics.map(telemetry).unwrap_or_default())
        .build()
        .map_err(WorkerError::Start)?;
    let core = Runtime::from_current_tokio(options).map_err(|error| WorkerError::Start(error.to_string()))?;
    let mut pause = Duration::from_millis(100);
    while !shutdown.is_cancelled() {
        let began = std::time::Instant::now();
        match run_once(&core).await {
            Ok(()) => continue,
            Err(error) => tracing::warn!(%error, ?pause, "the {name} stopped; it starts again"),
        }
        if began.elapsed() > Duration::from_secs(30) {
            pause = Duration::from_millis(100);
        }
        shutdown.run_until_cancelled(tokio::time::sleep(pause)).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    Ok(())
}

/// A worker that outlives Temporal's restarts.
#[derive(Clone)]
pub struct TemporalWorker {
    settings: WorkerSettings,
    executor: Arc<dyn Executor>,
    ledger: Arc<dyn Ledger>,
    unrecorded: Arc<Unrecorded>,
    observer: Observer,
    metrics: Option<Arc<Metrics>>,
    must_ask: MustAsk,
}

impl TemporalWorker {
    /// Puts it together; nothing runs yet.
    pub fn new(settings: WorkerSettings, executor: Arc<dyn Executor>, ledger: Arc<dyn Ledger>) -> Self {
        let (observer, unrecorded) = (Observer::none(), Arc::default());
        let must_ask: MustAsk = Arc::new(|_: &str| false);
        Self { settings, executor, ledger, unrecorded, observer, metrics: None, must_ask }
    }

    /// The same, and `observer` sees what it does.
    pub fn seen_by(self, observer: Observer) -> Self {
        Self { observer, ..self }
    }

    /// The same, measured: what the SDK counts of client and worker shows in `metrics`.
    pub fn metered(mut self, metrics: &Arc<Metrics>) -> Self {
        self.metrics = Some(metrics.clone());
        self
    }

    /// The same, and unpinned copies of accounts that `must_ask` names ask their pin before they run.
    pub fn asking(self, must_ask: MustAsk) -> Self {
        Self { must_ask, ..self }
    }

    /// What the ledger couldn't be told, for the metrics.
    pub fn unrecorded(&self) -> Arc<Unrecorded> {
        self.unrecorded.clone()
    }

    /// Runs until `shutdown`, then drains. Dropping the future instead abandons what runs, as a crash would.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let url: Url =
            self.settings.address.parse().map_err(|_| WorkerError::Address(self.settings.address.clone()))?;
        on_a_thread("temporal-worker", move || self.keep_running(url, shutdown)).await
    }

    async fn keep_running(self, url: Url, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let once = async |core: &Runtime| {
            let ran = self.run_once(core, &url, &shutdown).await;
            ran.inspect_err(|_| self.observer.disturbed(Side::Temporal, "its worker can't work"))
        };
        again_and_again("Temporal worker", self.metrics.as_ref(), &shutdown, once).await?;
        // Records of the last attempts are on their way, and end with this runtime.
        self.unrecorded.records.close();
        let _ = tokio::time::timeout(LEDGER_WITHIN, self.unrecorded.records.wait()).await;
        Ok(())
    }

    async fn run_once(&self, core: &Runtime, url: &Url, shutdown: &CancellationToken) -> Result<(), Broken> {
        let Some(connection) = shutdown.run_until_cancelled(self.connect(url)).await else { return Ok(()) };
        let connection = connection?;
        let resets = Resets::over(connection.clone(), &self.settings.namespace);
        let client = Client::new(connection, ClientOptions::new(self.settings.namespace.clone()).build())?;
        let mirror = self.mirror(client.clone());
        let mut worker = Worker::new(core, client, self.options(shutdown, resets)?)?;
        let stop = worker.shutdown_handle();
        let stopping = async {
            shutdown.cancelled().await;
            stop();
            tokio::time::sleep(self.settings.drain + LAST_WORDS).await;
            tracing::warn!("Temporal does not take the last ends; these attempts are made again elsewhere");
        };
        tracing::info!(task_queue = self.settings.task_queue, "the Temporal worker runs");
        tokio::select! {
            ended = worker.run() => ended.map_err(Into::into),
            () = mirror.run() => Ok(()),
            () = stopping => Ok(()),
        }
    }

    async fn connect(&self, url: &Url) -> Result<Connection, Broken> {
        let options = ConnectionOptions::new(url.clone())
            .identity(self.settings.identity.clone())
            .connect_timeout(Duration::from_secs(2))
            .dns_load_balancing(None)
            .maybe_metrics_meter(self.metrics.as_ref().map(meter))
            .build();
        Ok(Connection::connect(options).await?)
    }

    fn mirror(&self, client: Client) -> Mirror {
        Mirror {
            client,
            ledger: self.ledger.clone(),
            unrecorded: self.unrecorded.clone(),
            every: self.settings.mirror_every,
            batch: self.settings.mirror_batch,
        }
    }

    fn options(&self, shutdown: &CancellationToken, resets: Resets) -> Result<WorkerOptions, Broken> {
        let slots = |count| FixedSizeSlotSupplier::new(count);
        let tuner = TunerHolder::builder()
            .workflow_task_slot_supplier(slots(100))
            .activity_task_slot_supplier(slots(self.settings.slots))
            .local_activity_task_slot_supplier(slots(100))
            .nexus_task_slot_supplier(slots(1))
            .build();
        let activities = Activities {
            executor: self.executor.clone(),
            ledger: self.ledger.clone(),
            unrecorded: self.unrecorded.clone(),
            observer: self.observer.clone(),
            stopping: shutdown.clone(),
            metrics: self.metrics.clone(),
            must_ask: self.must_ask.clone(),
            resets,
        };
        Ok(WorkerOptions::new(self.settings.task_queue.clone())
            .tuner(tuner)
            // A crashed worker's workflows move on to another after so long.
            .sticky_queue_schedule_to_start_timeout(Duration::from_secs(2))
            .graceful_shutdown_period(self.settings.drain)
            // A wish to cancel comes back with a heartbeat, so none of them is swallowed.
            .max_heartbeat_throttle_interval(Duration::from_secs(1))
            .register_activities(activities)
            .register_workflow::<InteractionWorkflow>()?
            .register_workflow::<SeriesWorkflow>()?
            .build())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_worker_whose_thread_has_panicked_starts_again_and_that_is_counted() {
        let deaths = IntCounter::new("deaths", "of threads").unwrap();
        let (mut runs, stop) = (0, CancellationToken::new());
        let run = || {
            runs += 1;
            let dies = runs < 3;
            on_a_thread("dying", move || async move { if dies { panic!("on purpose") } else { Ok(()) } })
        };
        again_after_deaths("worker", &deaths, &stop, run).await.unwrap();
        assert_eq!((runs, deaths.get()), (3, 2));
    }
}
