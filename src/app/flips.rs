//! What stands around a router's decisions: its entry in the registry, overrides, standings and decisions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AppError, Servers};
use crate::config::{Config, machine};
use crate::flags::Flags;
use crate::flips::{Decider, FlipStore, Overrides, Presence, Recorder, SILENT_AFTER};
use crate::ledger;
use crate::metrics::Metrics;

/// Beats must not wait for callers or workers.
const CONNECTIONS: u32 = 3;

/// Registers this router and builds what it decides by; runs the rest until `working` ends.
pub(super) async fn spawn(
    config: &Config,
    servers: &Servers,
    address: SocketAddr,
    flags: Arc<Flags>,
    metrics: &Arc<Metrics>,
    (stop, tasks): &(CancellationToken, TaskTracker),
) -> Result<Arc<Decider>, AppError> {
    let pool = ledger::pool(&servers.postgres_url, CONNECTIONS, config.postgres.connect_timeout);
    let store = FlipStore::new(pool.map_err(AppError::Pool)?);
    let overrides = Arc::new(Overrides::default());
    // Its first answer, before any traffic; whatever it is, the router serves.
    if let Err(error) = overrides.refresh(&store, metrics).await {
        tracing::warn!(%error, "overrides can't be read; none is in force here until they can");
    }
    let (decider, news) = Decider::new(flags, overrides.clone(), metrics.clone());
    let decider = Arc::new(decider);
    let name = format!("{}, process {}, {address}", machine(), std::process::id());
    let presence = Presence::new(name, store.clone(), decider.clone(), metrics.clone());
    presence.register().await;
    let recorder = Recorder::new(presence.id(), store.clone(), decider.clone(), metrics.clone(), news);
    tasks.spawn(overrides.follow(store.clone(), metrics.clone(), stop.clone()));
    tasks.spawn(recorder.run(stop.clone()));
    tasks.spawn(presence.run(stop.clone()));
    tasks.spawn(gauge(store, metrics.clone(), stop.clone()));
    Ok(decider)
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
