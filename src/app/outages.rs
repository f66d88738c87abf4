//! What stands beside a router for the time when Postgres is away: its spool, and what empties it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{AppError, Parts};
use crate::config::Config;
use crate::router::breaker::BreakerOptions;
use crate::router::{Drain, OutageOptions, Outages};
use crate::spool::{Spool, SpoolOptions};

/// Opens the spool, and runs what looks after it until `working` ends. A router that does not fail open has one too: an
/// earlier configuration may have left something in it.
pub(super) fn spawn(
    config: &Config,
    parts: &Parts,
    (stop, tasks): &(CancellationToken, TaskTracker),
) -> Result<Outages, AppError> {
    let c = &config.router;
    let options = SpoolOptions { entries: c.spool_entries, bytes: c.spool_bytes, keep: config.window.idempotency };
    let spool = Arc::new(Spool::open(&config.state_dir, options, parts.metrics.clone())?);
    let options = OutageOptions {
        pin_budget: c.pin_budget.min(config.postgres.connect_timeout),
        pin_timeout: config.postgres.connect_timeout,
        breaker: BreakerOptions { failures: c.breaker_failures, open: c.breaker_open },
    };
    let ledger = parts.intake.clone();
    let outages = Outages::new(parts.armed.clone(), spool.clone(), ledger.clone(), options, parts.metrics.clone());
    let wake = [parts.wake_queue.clone(), parts.wake_relay.clone()];
    let deliverer = parts.deliverer.clone();
    let drain = Drain::new(spool, ledger, deliverer, parts.metrics.clone(), config.relay.grace, wake);
    tasks.spawn(drain.run(stop.clone()));
    tasks.spawn(outages.clone().follow(stop.clone()));
    Ok(outages)
}
