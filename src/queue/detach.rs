//! Attempts that their runner takes away. The worker holds one until the database knows that it is the runner's, and no longer:
//! then it has neither a slot nor a lease of this worker, and goes on whatever becomes of it.

use std::time::{Duration, Instant};

use chrono::Utc;
use tracing::{info, warn};

use super::held::{Signals, Stop};
use super::storage::{Claimed, Finish};
use super::worker::{Shared, finish_of};
use crate::executor::Answer;
use crate::interaction::Side;
use crate::observer::Seen;
use crate::policy::Doubt;

const PAUSE: Duration = Duration::from_millis(250);

/// An attempt whose runner said that it takes it away.
pub(super) struct Taken {
    /// It is silent for so long at most.
    pub silence: Duration,
    /// How long it had run by then.
    pub took: Duration,
}

/// Has the database know that `claimed` is its runner's. While Postgres is away the runner's heartbeats find nobody either, so
/// the attempt is held here until it would have been lost for their absence. An end, where it could not be handed on.
pub(super) async fn give(shared: &Shared, claimed: &Claimed, taken: Taken, signals: &Signals) -> Option<Finish> {
    let Taken { silence, took } = taken;
    let (began, allowed) = (Instant::now(), claimed.envelope.policy.run_timeout().saturating_sub(took));
    // What becomes of the lease is told by the answer below.
    shared.held.reported(claimed.key());
    loop {
        let left = allowed.saturating_sub(began.elapsed());
        let (id, attempt) = claimed.key();
        let given = match claimed.task {
            Some(place) => shared.tasks.detach(shared.id, (id, attempt, place), silence, left).await,
            None => shared.queue.detach(shared.id, (id, attempt), silence, left).await,
        };
        match given {
            Ok(given) => return told(shared, claimed, given),
            Err(error) => {
                shared.failed("detach", &error);
                warn!(%error, "Postgres isn't told yet that a runner took an attempt away; its slot is held meanwhile");
            }
        }
        if began.elapsed() + PAUSE > silence.min(allowed) {
            let error = "its runner took it away, and Postgres could not be told for its heartbeat time-out";
            let age = took + began.elapsed();
            return Some(finish_of(claimed, age, Answer::unknown(Doubt::HeartbeatTimeout, error)));
        }
        tokio::select! {
            () = signals.hears(Stop::Interrupted) => {
                let error = "its worker was stopped before Postgres could be told that the runner took it away";
                return Some(finish_of(claimed, took + began.elapsed(), Answer::unknown(Doubt::Worker, error)));
            }
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

fn told(shared: &Shared, claimed: &Claimed, given: bool) -> Option<Finish> {
    if given {
        info!("its runner took it away");
        shared.metrics.detached.taken.with_label_values(&[Side::Postgres.as_str()]).inc();
    } else {
        warn!("its runner took it away, but the lease was lost before: what comes of it is late");
        shared.metrics.late_results.with_label_values(&[Side::Postgres.as_str()]).inc();
        shared.see((claimed.envelope.id, claimed.fence, false), Utc::now(), Seen::Refused);
    }
    shared.held.drop(claimed.key());
    shared.room.notify_one();
    None
}
