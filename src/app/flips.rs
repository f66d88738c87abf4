//! What stands around a router's decisions: its entry in the registry, overrides, standings and decisions, and how
//! accounts are armed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AppError, Roles, Servers};
use crate::arming::{Armed, ArmingStore, Driver, DriverOptions, Keeper, KeeperOptions, Reconcile, State};
use crate::config::{Config, FlagSource, machine};
use crate::flags::Flags;
use crate::flips::{Decider, FlipStore, Overrides, Presence, Recorder, SILENT_AFTER};
use crate::metrics::Metrics;

/// Beats must not wait for callers or workers.
const CONNECTIONS: u32 = 3;

/// How often accounts on their way are looked at.
const DRIVE: Duration = Duration::from_millis(250);

/// A process in the registry: what it holds of the accounts' states, and its last words.
pub(super) struct Registered {
    /// What may start without a pin, and who must ask.
    pub(super) armed: Armed,
    store: FlipStore,
    keeper: Keeper,
    /// Ended last: as long as anything of the process works, it beats.
    last: (CancellationToken, TaskTracker),
}

/// Takes up the registration of this process's state_dir.
pub(super) async fn open(config: &Config, servers: &Servers, metrics: &Arc<Metrics>) -> Result<Registered, AppError> {
    let pool = super::connections(config, servers, CONNECTIONS)?;
    let (flips, arming) = (FlipStore::new(pool.clone()), ArmingStore::new(pool));
    let armed = Armed::new(config.router.fail_open);
    let options = KeeperOptions { echo: config.temporal.start_timeout * 2, disk_valid: config.router.disk_valid };
    let (dir, of) = (config.state_dir.clone(), of(config, servers));
    let (held, metrics) = (armed.clone(), metrics.clone());
    let opened = tokio::task::spawn_blocking(move || Keeper::open(&dir, &of, held, arming, metrics, options)).await;
    let keeper = opened.map_err(|error| AppError::Part(error.to_string()))??;
    Ok(Registered { armed, store: flips, keeper, last: (CancellationToken::new(), TaskTracker::new()) })
}

/// Which database and which flags the copy on disk belongs to.
fn of(config: &Config, servers: &Servers) -> String {
    let options = servers.postgres_url.parse::<sqlx::postgres::PgConnectOptions>();
    let database = options.map_or_else(
        |_| "another database".to_owned(),
        |o| format!("{}:{}/{}", o.get_host(), o.get_port(), o.get_database().unwrap_or("postgres")),
    );
    let flags = match config.flags.source {
        FlagSource::File => "a file".to_owned(),
        FlagSource::Unleash => {
            let url = config.flags.url.as_ref().map_or_else(String::new, ToString::to_string);
            format!("{url}, {}", config.flags.environment)
        }
    };
    format!("{database} with flags of {flags}")
}

impl Registered {
    /// Registers a process that decides nothing, and beats until the end.
    pub(super) async fn worker(self, address: SocketAddr, metrics: &Arc<Metrics>) -> (CancellationToken, TaskTracker) {
        let presence = Presence::new(name(address), vec!["worker"], self.store, None, self.keeper, metrics.clone());
        beat(presence, &self.last).await;
        self.last
    }

    /// Registers this router and builds what it decides by; runs the rest until `working` ends.
    pub(super) async fn router(
        self,
        address: SocketAddr,
        roles: Roles,
        flags: Arc<Flags>,
        metrics: &Arc<Metrics>,
        (stop, tasks): &(CancellationToken, TaskTracker),
    ) -> (Arc<Decider>, (CancellationToken, TaskTracker)) {
        let store = self.store;
        let overrides = Arc::new(Overrides::default());
        // Its first answer, before any traffic; whatever it is, the router serves.
        if let Err(error) = overrides.refresh(&store, metrics).await {
            tracing::warn!(%error, "overrides can't be read; none is in force here until they can");
        }
        let (decider, news) = Decider::new(flags, overrides.clone(), metrics.clone());
        let decider = Arc::new(decider);
        let does = if roles.worker { vec!["router", "worker"] } else { vec!["router"] };
        let decides = Some(decider.clone());
        let presence = Presence::new(name(address), does, store.clone(), decides, self.keeper, metrics.clone());
        let recorder = Recorder::new(presence.id(), store.clone(), decider.clone(), metrics.clone(), news);
        beat(presence, &self.last).await;
        tasks.spawn(overrides.follow(store.clone(), metrics.clone(), stop.clone()));
        tasks.spawn(recorder.run(stop.clone()));
        tasks.spawn(gauge(store, metrics.clone(), stop.clone()));
        (decider, self.last)
    }
}

async fn beat(mut presence: Presence, (stop, tasks): &(CancellationToken, TaskTracker)) {
    presence.register().await;
    tasks.spawn(presence.run(stop.clone()));
}

fn name(address: SocketAddr) -> String {
    format!("{}, process {}, {address}", machine(), std::process::id())
}

/// Moves accounts on, until `stop`.
pub(super) fn drive(
    config: &Config,
    servers: &Servers,
    reconcile: Arc<dyn Reconcile>,
    metrics: &Arc<Metrics>,
    (stop, tasks): &(CancellationToken, TaskTracker),
) -> Result<(), AppError> {
    let pool = super::connections(config, servers, CONNECTIONS)?;
    let store = ArmingStore::new(pool);
    let options = DriverOptions { window: config.window.idempotency, every: DRIVE };
    tasks.spawn(Driver::new(store.clone(), reconcile, options, metrics.clone()).run(stop.clone()));
    tasks.spawn(census(store, metrics.clone(), stop.clone()));
    Ok(())
}

/// Keeps the gauges of arming current.
async fn census(store: ArmingStore, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(census) = stop.run_until_cancelled(store.census()).await else { return };
        match census {
            Ok(census) => {
                for state in State::ALL.map(State::as_str) {
                    let count = census.accounts.iter().find(|(of, _)| of == state).map_or(0, |(_, count)| *count);
                    metrics.arming.accounts.with_label_values(&[state]).set(count);
                }
                metrics.arming.barrier_oldest_seconds.set(census.oldest_barrier_seconds);
                metrics.arming.reconciling_oldest_seconds.set(census.oldest_reconciliation_seconds);
            }
            Err(_) => metrics.arming.errors.with_label_values(&["census"]).inc(),
        }
    }
}

/// Keeps the gauges of the registry current.
async fn gauge(store: FlipStore, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.run_until_cancelled(tick.tick()).await.is_some() {
        let Some(routers) = stop.run_until_cancelled(store.routers(None)).await else { return };
        match routers {
            Ok(routers) => {
                let silent = routers.iter().filter(|r| r.silent_seconds > SILENT_AFTER.as_secs_f64()).count();
                metrics.flips.routers_registered.set(routers.len() as i64);
                metrics.flips.routers_silent.set(silent as i64);
            }
            Err(_) => metrics.flips.errors.with_label_values(&["gauge"]).inc(),
        }
    }
}
