//! The composition root: builds the parts that a process's roles need, runs them, drains them.

mod flags;
mod flips;
mod outages;
mod servers;
mod upkeep;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sqlx::PgPool;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use servers::Servers;

use crate::arming::{Armed, Reconcile, RegistrationError};
use crate::comparator::{Comparator, ComparatorOptions};
use crate::config::Config;
use crate::executor::{Executor, Handlers, HttpExecutor, HttpExecutorError, RemoteOnly};
use crate::flags::{Flags, FlagsError};
use crate::flips::Decider;
use crate::history::{History, Keeper, Search};
use crate::http::{self, Api};
use crate::ledger::{self, Ledger, SchemaError, is_outage};
use crate::metrics::Metrics;
use crate::observer::{Log, Observer, ObserverOptions};
use crate::provision;
use crate::queue::{Queue, Wake, Worker, WorkerOptions};
use crate::router::{
    Deliver, Deliverer, Intake, IntakeOptions, Outages, Relay, RelayOptions, Resolver, Router, RouterOptions,
};
use crate::schedule::{Ticker, TickerOptions};
use crate::spool::SpoolError;

/// What a process does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// Takes interactions in.
    pub router: bool,
    /// Runs and rehearses them, on both sides.
    pub worker: bool,
    /// Delivers what routers left behind.
    pub relay: bool,
}

impl Roles {
    /// One process does everything.
    pub const ALL: Roles = Roles { router: true, worker: true, relay: true };
}

/// Why a process can't work.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A server of our own did not start.
    #[error(transparent)]
    Provision(#[from] provision::Error),
    /// The database's schema does not fit.
    #[error(transparent)]
    Schema(#[from] SchemaError),
    /// There are no flags to go by.
    #[error(transparent)]
    Flags(#[from] FlagsError),
    /// The pool can't be set up.
    #[error("postgres.url can't be used: {0}")]
    Pool(#[source] sqlx::Error),
    /// A worker without work.
    #[error(
        "the role `worker` needs runner.url (or a program of yours that registers handlers; or worker.remote_only, where remote workers run everything); set it in crossover.toml or CROSSOVER_RUNNER_URL"
    )]
    NoRunner,
    /// The runner's address can't be used.
    #[error(transparent)]
    Runner(#[from] HttpExecutorError),
    /// The state directory can't be used.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The HTTP address can't be listened on.
    #[error("http.listen {address} can't be listened on: {error}; choose another address or end what holds it")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The HTTP address would let anybody in.
    #[error("http.listen {address} {problem}")]
    Open {
        /// The configured address.
        address: SocketAddr,
        /// Why, and what to do.
        problem: &'static str,
    },
    /// What was started without a pin can't be kept.
    #[error("the spool can't be used: {0}")]
    Spool(#[from] SpoolError),
    /// A part can't be built.
    #[error("{0}")]
    Part(String),
}

/// A process at work.
pub struct App {
    address: SocketAddr,
    ledger: Ledger,
    intake: Ledger,
    flags: Option<Arc<Flags>>,
    router: Option<Arc<Router>>,
    wake: Arc<Notify>,
    metrics: Arc<Metrics>,
    observer: Observer,
    /// Taken first: nothing new comes in.
    incoming: (CancellationToken, TaskTracker),
    /// Taken last: what came in is delivered, run, reported.
    working: (CancellationToken, TaskTracker),
    /// Taken after that: the process leaves the registry.
    registered: Option<(CancellationToken, TaskTracker)>,
    _servers: Servers,
}

impl App {
    /// Starts the roles on these servers, with the runner of the configuration.
    pub async fn start(config: &Config, roles: Roles, servers: Servers) -> Result<Self, AppError> {
        Self::start_with(config, roles, servers, Handlers::new()).await
    }

    /// The same, with handlers of this program's own; kinds without one go to the runner, where one is configured.
    pub async fn start_with(
        config: &Config,
        roles: Roles,
        servers: Servers,
        handlers: Handlers,
    ) -> Result<Self, AppError> {
        if let Some(problem) = config.open_to_strangers() {
            return Err(AppError::Open { address: config.http.listen, problem });
        }
        let mut parts = Parts::build(config, &servers).await?;
        let registration = match roles.router || roles.worker {
            true => Some(flips::open(config, &servers, &parts.metrics).await?),
            false => None,
        };
        if let Some(registration) = &registration {
            parts.armed = registration.armed.clone();
        }
        let flags = match roles.router {
            true => Some(flags::open(config, &parts.metrics).await?),
            false => None,
        };
        let executor = match roles.worker {
            true => Some(executor(config, handlers)?),
            false => None,
        };
        let address = config.http.listen;
        let listener = TcpListener::bind(address).await.map_err(|error| AppError::Listen { address, error })?;
        let address = listener.local_addr().map_err(|error| AppError::Listen { address, error })?;

        let (incoming, working) =
            ((CancellationToken::new(), TaskTracker::new()), (CancellationToken::new(), TaskTracker::new()));
        let (router, registered) = match (flags.clone(), registration) {
            (Some(flags), Some(registration)) => {
                // Before the first beat: it says what is left to write.
                let outages = outages::spawn(config, &parts, &working)?;
                let (decider, last) = registration.router(address, roles, flags, &parts.metrics, &working).await;
                let router = Arc::new(parts.router(config, decider, outages));
                last.1.spawn(router.repeat_what_is_in_doubt(last.0.clone()));
                working.1.spawn(router.follow_caps(working.0.clone()));
                parts.spawn_intake(config, router.clone(), &incoming);
                parts.spawn_ticker(config, router.clone(), &incoming);
                parts.spawn_mirrors(config, &servers, router.clone(), &incoming)?;
                (Some(router), Some(last))
            }
            (_, Some(registration)) => {
                // It may have been a router's before: what that left unwritten is written, and said, under its registration.
                drop(outages::spawn(config, &parts, &working)?);
                (None, Some(registration.worker(address, &parts.metrics).await))
            }
            (_, None) => (None, None),
        };
        if roles.router || roles.relay {
            flips::drive(config, &servers, parts.reconcile(config, &servers)?, &parts.metrics, &working)?;
        }
        let (ledger, metrics) = (parts.ledger.clone(), parts.metrics.clone());
        let armed = registered.is_some().then(|| parts.armed.clone());
        let search = search(config, &servers)?;
        let (observer, stop) = (parts.observer.clone(), incoming.0.clone());
        let api = Api::new(router.clone(), flags.clone(), armed, ledger, search, metrics, observer, &config.http, stop);
        let grace = config.http.request_timeout;
        incoming.1.spawn(http::serve(listener, Arc::new(api), grace));
        if roles.worker || roles.relay {
            parts.spawn_forwarder(config, &servers, &working)?;
        }
        match executor {
            Some(executor) => parts.spawn_workers(config, &servers, executor, &working)?,
            // Whatever becomes ready here is for others.
            None => {
                let wake = parts.wake();
                for bell in [parts.wake_queue.clone(), parts.wake_for_tasks.clone()] {
                    working.1.spawn(wake.clone().tell(bell, working.0.clone()));
                }
            }
        }
        if roles.relay {
            parts.spawn_relay(config, &working);
            parts.spawn_comparator(config, &servers, &working)?;
        }
        if roles.worker || roles.relay {
            parts.spawn_keeper(config, &servers, &working)?;
        }
        parts.spawn_gauges(flags.clone(), &working);
        #[cfg(feature = "temporal")]
        working
            .1
            .spawn(upkeep::ensure_attribute(temporal_client(config, &servers.temporal_address)?, working.0.clone()));
        info!(%address, ?roles, "crossover serves");
        let Parts { ledger, intake, metrics, observer, wake_queue: wake, .. } = parts;
        Ok(Self {
            address,
            ledger,
            intake,
            flags,
            router,
            wake,
            metrics,
            observer,
            incoming,
            working,
            registered,
            _servers: servers,
        })
    }

    /// Where HTTP is served.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The ledger.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Where interactions come in, in a process with the role `router`.
    pub fn router(&self) -> Option<&Arc<Router>> {
        self.router.as_ref()
    }

    /// What is rung when the Postgres side may have something to do.
    pub fn wake(&self) -> &Arc<Notify> {
        &self.wake
    }

    /// The flags in force, in a process with a router.
    pub fn flags(&self) -> Option<&Arc<Flags>> {
        self.flags.as_ref()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What sees the work of this process.
    pub fn observer(&self) -> &Observer {
        &self.observer
    }

    /// The servers that it works on.
    pub fn servers(&self) -> &Servers {
        &self._servers
    }

    /// Drains: answers what has come in, delivers and runs what was taken, reports it, and ends.
    pub async fn stop(self) {
        for (stop, tasks) in [Some(&self.incoming), Some(&self.working), self.registered.as_ref()].into_iter().flatten()
        {
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        }
        if let Some(flags) = &self.flags {
            flags.close().await;
        }
        // After all that it may see.
        self.observer.stop().await;
        // What the router still has out is delivered again by a relay.
        let closing = async { tokio::join!(self.ledger.pool().close(), self.intake.pool().close()) };
        if tokio::time::timeout(Duration::from_secs(2), closing).await.is_err() {
            warn!("connections to Postgres do not close; they end with the process");
        }
    }
}

/// At most so many connections of a part's own.
fn connections(config: &Config, servers: &Servers, most: u32) -> Result<PgPool, AppError> {
    ledger::pool(&servers.postgres_url, most, config.postgres.connect_timeout).map_err(AppError::Pool)
}

/// Runs a part that keeps its stand in Postgres: where one has panicked, a new one goes on.
async fn again_after_panics<F>(name: &'static str, panics: prometheus::IntCounter, mut part: impl FnMut() -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    while let Err(error) = tokio::spawn(part()).await {
        panics.inc();
        tracing::error!(%error, "the {name} has panicked, which is a fault of ours; it starts again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Connections of the observer, which must take none from routers and workers: one writes, one is for when that hangs.
const OBSERVERS: u32 = 2;

/// What all roles share.
#[derive(Clone)]
struct Parts {
    ledger: Ledger,
    /// The routers' own connections: callers that wait for a lock must not keep workers from reporting.
    intake: Ledger,
    metrics: Arc<Metrics>,
    log: Log,
    observer: Observer,
    deliverer: Deliverer,
    armed: Armed,
    wake_queue: Arc<Notify>,
    wake_for_tasks: Arc<Notify>,
    wake_relay: Arc<Notify>,
}

impl Parts {
    async fn build(config: &Config, servers: &Servers) -> Result<Self, AppError> {
        let connect = |most| connections(config, servers, most);
        let most = config.postgres.max_connections;
        let (ledger, intake) = (Ledger::new(connect(most)?), Ledger::new(connect(most)?));
        // A database of our own has nobody else who could migrate it.
        match servers.postgres {
            Some(_) => drop(ledger.migrate().await?),
            None => match ledger.check_schema().await {
                // A router that fails open is needed most when Postgres is away.
                Err(SchemaError::Ledger(error)) if is_outage(&error) => {
                    warn!(%error, "Postgres does not answer, so its schema is not checked; what needs it waits");
                }
                checked => checked?,
            },
        }
        let metrics = Arc::new(Metrics::new().map_err(|e| AppError::Part(e.to_string()))?);
        let target = target(config, &servers.temporal_address, &metrics)?;
        let options =
            ObserverOptions { name: identity(), buffer: config.observer.buffer, share: config.comparator.sample };
        let log = Log::new(connect(OBSERVERS)?);
        let observer = Observer::start(log.clone(), options, metrics.clone());
        let deliverer = Deliverer::new(target, ledger.clone(), metrics.clone()).seen_by(observer.clone());
        Ok(Self {
            ledger,
            intake,
            metrics,
            log,
            observer,
            deliverer,
            armed: Armed::new(false),
            wake_queue: Arc::default(),
            wake_for_tasks: Arc::default(),
            wake_relay: Arc::default(),
        })
    }

    fn router(&self, config: &Config, decider: Arc<Decider>, outages: Outages) -> Router {
        let options = RouterOptions {
            pin_timeout: config.postgres.connect_timeout,
            grace: config.relay.grace,
            tasks: config.router.tasks,
            window: config.window.idempotency,
        };
        Router::new(
            self.intake.clone(),
            decider,
            self.deliverer.clone(),
            outages,
            self.metrics.clone(),
            options,
            [self.wake_queue.clone(), self.wake_for_tasks.clone(), self.wake_relay.clone()],
        )
    }

    /// What this process and others tell each other.
    fn wake(&self) -> Arc<Wake> {
        Wake::new(Queue::new(self.ledger.pool().clone()), self.metrics.clone())
    }

    /// What gives open workflows without a pin theirs.
    #[cfg(feature = "temporal")]
    fn reconcile(&self, config: &Config, servers: &Servers) -> Result<Arc<dyn Reconcile>, AppError> {
        use crate::temporal::reconcile::Reconciler;
        let client = temporal_client(config, &servers.temporal_address)?.metered(&self.metrics);
        let (lag, wake_relay) = (config.temporal.visibility_lag, self.wake_relay.clone());
        Ok(Arc::new(Reconciler::new(client, self.ledger.clone(), self.metrics.clone(), lag, wake_relay)))
    }

    #[cfg(not(feature = "temporal"))]
    fn reconcile(&self, _: &Config, _: &Servers) -> Result<Arc<dyn Reconcile>, AppError> {
        Ok(Arc::new(crate::arming::NothingThere))
    }

    fn spawn_intake(&self, config: &Config, router: Arc<Router>, (stop, tasks): &(CancellationToken, TaskTracker)) {
        // Callers over HTTP share these connections, and need most of them.
        let parallel = (config.postgres.max_connections as usize / 4).clamp(1, 8);
        let options = IntakeOptions { poll: config.intake.poll, batch: i64::from(config.intake.batch), parallel };
        let intake = Intake::new(self.intake.clone(), router, self.metrics.clone(), options);
        tasks.spawn(intake.run(stop.clone()));
    }

    fn spawn_ticker(&self, config: &Config, router: Arc<Router>, (stop, tasks): &(CancellationToken, TaskTracker)) {
        let options = ticker_options(config);
        let (pool, metrics, stop) = (self.intake.pool().clone(), self.metrics.clone(), stop.clone());
        let panics = metrics.schedules.errors.clone();
        let ticker = move || Ticker::new(pool.clone(), router.clone(), metrics.clone(), options).run(stop.clone());
        tasks.spawn(again_after_panics("scheduler", panics, ticker));
    }

    /// What Temporal has of schedules, and what its scheduler comes with.
    #[cfg(feature = "temporal")]
    fn spawn_mirrors(
        &self,
        config: &Config,
        servers: &Servers,
        router: Arc<Router>,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        use crate::config::Mirroring;
        use crate::schedule::Mirrors;
        use crate::schedule::reflect::{Needed, Reflector};
        use crate::temporal::launcher::Launchers;
        use crate::temporal::worker::again_after_deaths;
        // No caller waits for these, and Temporal answers what it has of a schedule only once that is at rest.
        let patience = config.temporal.start_timeout.max(Duration::from_secs(5));
        let temporal = temporal_client(config, &servers.temporal_address)?.metered(&self.metrics).waiting(patience);
        let (pool, metrics, needed) = (self.intake.pool().clone(), self.metrics.clone(), Arc::<Needed>::default());
        let ticks = Arc::new(Ticker::new(pool.clone(), router.clone(), metrics.clone(), ticker_options(config)));
        // As the intake, they leave most connections to callers.
        let slots = (config.postgres.max_connections as usize / 4).clamp(1, 4);
        let launchers = Launchers { ticks, temporal: temporal.clone(), slots };
        let (mirrors, reflecting) = (Mirrors::new(pool), stop.clone());
        let how = (config.schedules.poll, config.schedules.mirror == Mirroring::Paused);
        let (temporal, needed_by, panics) =
            (Arc::new(temporal), needed.clone(), metrics.schedules.mirror_errors.clone());
        let deaths = metrics.schedules.launcher_deaths.clone();
        let reflector = move || {
            let (mirrors, router, temporal) = (mirrors.clone(), router.clone(), temporal.clone());
            let reflector = Reflector::new(mirrors, router, temporal, metrics.clone(), how, needed_by.clone());
            reflector.run(reflecting.clone())
        };
        tasks.spawn(again_after_panics("mirror of schedules", panics, reflector));
        let stop = stop.clone();
        tasks.spawn(async move {
            if stop.run_until_cancelled(needed.wait()).await.is_none() {
                return;
            }
            let run = || launchers.clone().run(stop.clone());
            if let Err(error) = again_after_deaths("launchers' worker", &deaths, &stop, run).await {
                warn!(%error, "the launchers' worker ended");
            }
        });
        Ok(())
    }

    #[cfg(not(feature = "temporal"))]
    fn spawn_mirrors(
        &self,
        _: &Config,
        _: &Servers,
        _: Arc<Router>,
        _: &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        Ok(())
    }

    fn spawn_workers(
        &self,
        config: &Config,
        servers: &Servers,
        executor: Arc<dyn Executor>,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        let options = WorkerOptions {
            slots: config.worker.slots as usize,
            lease: config.worker.lease,
            poll: config.worker.poll,
            rehearsal_bound: config.rehearsal.bound,
            grace: config.worker.shutdown_grace,
        };
        let queue = Queue::new(self.ledger.pool().clone());
        let (wake, others) = (self.wake(), Arc::<Notify>::default());
        tasks.spawn(wake.clone().tell(others.clone(), stop.clone()));
        tasks.spawn(wake.hear(self.wake_queue.clone(), stop.clone()));
        let worker = Worker::new(queue, executor.clone(), options, self.metrics.clone(), self.wake_queue.clone())
            .woken_for_tasks_by(self.wake_for_tasks.clone())
            .overflowing(others)
            .seen_by(self.observer.clone());
        tasks.spawn(worker.run(stop.clone()));
        // Who runs nothing must take nothing that Temporal owns away from those who do.
        if executor.runs_anything() {
            self.spawn_temporal_worker(config, servers, executor, (stop, tasks));
        }
        Ok(())
    }

    #[cfg(feature = "temporal")]
    fn spawn_temporal_worker(
        &self,
        config: &Config,
        servers: &Servers,
        executor: Arc<dyn Executor>,
        (stop, tasks): (&CancellationToken, &TaskTracker),
    ) {
        use crate::temporal::OnPostgres;
        use crate::temporal::worker::{TemporalWorker, WorkerSettings};
        let settings = WorkerSettings {
            address: format!("http://{}", servers.temporal_address),
            namespace: config.temporal.namespace.clone(),
            task_queue: config.temporal.task_queue.clone(),
            identity: identity(),
            slots: config.worker.slots as usize,
            drain: config.worker.shutdown_grace,
            mirror_every: Duration::from_millis(100),
            mirror_batch: 500,
        };
        let (ledger, metrics, wake_queue) = (self.ledger.clone(), self.metrics.clone(), self.wake_queue.clone());
        let ledger = OnPostgres { ledger, metrics, wake_queue, observer: self.observer.clone() };
        let armed = self.armed.clone();
        let worker = TemporalWorker::new(settings, executor, Arc::new(ledger))
            .seen_by(self.observer.clone())
            .asking(Arc::new(move |account: &str| armed.must_ask(account)))
            .metered(&self.metrics);
        let unrecorded = worker.unrecorded();
        tasks.spawn(upkeep::unrecorded_gauges(unrecorded, self.metrics.clone(), stop.clone()));
        let stop = stop.clone();
        tasks.spawn(async move {
            if let Err(error) = worker.run(stop).await {
                warn!(%error, "the Temporal worker ended");
            }
        });
    }

    #[cfg(not(feature = "temporal"))]
    fn spawn_temporal_worker(
        &self,
        _: &Config,
        _: &Servers,
        _: Arc<dyn Executor>,
        _: (&CancellationToken, &TaskTracker),
    ) {
    }

    /// What tells Temporal of long work. Relays do it as well, so that a restart of all workers loses nothing.
    #[cfg(feature = "temporal")]
    fn spawn_forwarder(
        &self,
        config: &Config,
        servers: &Servers,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        use crate::temporal::OnPostgres;
        use crate::temporal::forward::Forwarder;
        let client = temporal_client(config, &servers.temporal_address)?.metered(&self.metrics);
        let (ledger, metrics, wake_queue) = (self.ledger.clone(), self.metrics.clone(), self.wake_queue.clone());
        let on_postgres = OnPostgres { ledger, metrics, wake_queue, observer: self.observer.clone() };
        tasks.spawn(Forwarder { client, on_postgres }.run(stop.clone()));
        Ok(())
    }

    #[cfg(not(feature = "temporal"))]
    fn spawn_forwarder(&self, _: &Config, _: &Servers, _: &(CancellationToken, TaskTracker)) -> Result<(), AppError> {
        Ok(())
    }

    /// The pools by the names that metrics have for them.
    fn pools(&self) -> [(&'static str, PgPool); 2] {
        [("work", self.ledger.pool().clone()), ("intake", self.intake.pool().clone())]
    }

    fn spawn_keeper(
        &self,
        config: &Config,
        servers: &Servers,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        let pool = connections(config, servers, KEEPERS)?;
        let (ledger, log) = (self.ledger.clone(), self.log.clone());
        let keeper = Keeper::new(History::new(pool), ledger, log, config, self.metrics.clone());
        tasks.spawn(keeper.run(stop.clone()));
        Ok(())
    }

    fn spawn_gauges(&self, flags: Option<Arc<Flags>>, (stop, tasks): &(CancellationToken, TaskTracker)) {
        tasks.spawn(upkeep::gauge(self.clone(), flags, stop.clone()));
        tasks.spawn(upkeep::gauge_postgres(self.clone(), stop.clone()));
        for (name, pool) in self.pools() {
            tasks.spawn(upkeep::probe_pool(name, pool, self.metrics.clone(), stop.clone()));
        }
    }

    fn spawn_comparator(
        &self,
        config: &Config,
        servers: &Servers,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> Result<(), AppError> {
        let pool = connections(config, servers, COMPARATORS)?;
        let (metrics, stop) = (self.metrics.clone(), stop.clone());
        let options: ComparatorOptions = config.into();
        let panics = metrics.comparator.errors.with_label_values(&["panic"]);
        let comparator = move || Comparator::new(pool.clone(), options.clone(), metrics.clone()).run(stop.clone());
        tasks.spawn(again_after_panics("comparator", panics, comparator));
        Ok(())
    }

    fn spawn_relay(&self, config: &Config, (stop, tasks): &(CancellationToken, TaskTracker)) {
        let options = RelayOptions {
            poll: config.relay.poll,
            batch: config.relay.batch,
            rate: config.relay.rate,
            lease: config.temporal.start_timeout * 2 + Duration::from_secs(5),
        };
        let relay = Relay::new(
            self.ledger.clone(),
            self.deliverer.clone(),
            self.metrics.clone(),
            options,
            self.wake_relay.clone(),
        );
        tasks.spawn(relay.run(stop.clone()));
        let resolver = Resolver::new(self.ledger.clone(), self.deliverer.clone(), self.metrics.clone(), options);
        tasks.spawn(resolver.run(stop.clone()));
        tasks.spawn(upkeep::watch_sides(self.clone(), stop.clone()));
        tasks.spawn(upkeep::bound_rehearsals(self.clone(), config.relay.rehearsal_backlog, stop.clone()));
        tasks.spawn(upkeep::sweep(self.clone(), config.relay.sweep_after, stop.clone()));
    }
}

fn ticker_options(config: &Config) -> TickerOptions {
    TickerOptions {
        poll: config.schedules.poll,
        batch: config.schedules.batch as i32,
        parallel: config.schedules.parallel as usize,
        keep: config.schedules.keep,
    }
}

/// Connections of the keeper.
const KEEPERS: u32 = 1;

/// Connections of the comparator: one holds its rows, one reads.
const COMPARATORS: u32 = 3;

/// Connections of searches. Who comes when all are busy waits, and is then told so.
const SEARCHES: u32 = 2;

fn search(config: &Config, servers: &Servers) -> Result<Search, AppError> {
    let pool =
        ledger::pool(&servers.postgres_url, SEARCHES, config.postgres.connect_timeout).map_err(AppError::Pool)?;
    Ok(Search::new(pool))
}

fn executor(config: &Config, handlers: Handlers) -> Result<Arc<dyn Executor>, AppError> {
    match &config.runner.url {
        Some(url) => {
            let runner = HttpExecutor::new(url.expose(), config.runner.connect_timeout)?;
            Ok(Arc::new(handlers.otherwise(Arc::new(runner))))
        }
        None if handlers.is_empty() && config.worker.remote_only => Ok(Arc::new(RemoteOnly)),
        None if handlers.is_empty() => Err(AppError::NoRunner),
        None => Ok(Arc::new(handlers)),
    }
}

/// What delivers to the Temporal at `address`, and looks up there; it connects when it is first asked.
#[cfg(feature = "temporal")]
pub(crate) fn target(config: &Config, address: &str, metrics: &Arc<Metrics>) -> Result<Arc<dyn Deliver>, AppError> {
    Ok(Arc::new(crate::temporal::Delivers(temporal_client(config, address)?.metered(metrics))))
}

/// A client of the Temporal at `address`; it connects when it is first asked.
#[cfg(feature = "temporal")]
pub(crate) fn temporal_client(
    config: &Config,
    address: &str,
) -> Result<crate::temporal::client::TemporalClient, AppError> {
    use crate::temporal::Terms;
    use crate::temporal::client::{ClientSettings, TemporalClient};
    let settings = ClientSettings {
        address: format!("http://{address}"),
        namespace: config.temporal.namespace.clone(),
        task_queue: config.temporal.task_queue.clone(),
        timeout: config.temporal.start_timeout,
        identity: identity(),
        terms: Terms {
            heartbeat_ms: config.worker.lease.as_millis() as u64,
            rehearsal_bound_ms: config.rehearsal.bound.as_millis() as u64,
        },
        window: config.window.idempotency,
        series_items_a_run: 200,
    };
    let client = TemporalClient::lazy(settings).map_err(AppError::Part)?;
    Ok(client.listed_by(&config.temporal.account_attribute))
}

#[cfg(not(feature = "temporal"))]
pub(crate) fn target(_: &Config, _: &str, _: &Arc<Metrics>) -> Result<Arc<dyn Deliver>, AppError> {
    Ok(Arc::new(crate::router::NoTemporal))
}

/// Who this process is, in Temporal's histories and among the observers.
fn identity() -> String {
    format!("crossover@{}", std::process::id())
}
