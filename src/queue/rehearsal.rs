//! Rehearsals on Postgres: each waits until the real attempt of its number has ended on Temporal, and then takes the
//! step that its own retry machine takes for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

use super::held::Rehearsing;
use super::storage::{Finish, Mirrored};
use super::worker::Shared;
use crate::interaction::Outcome;
use crate::policy::Failure;

const POLL: Duration = Duration::from_millis(100);
/// How often it looks which real runs are away with their runners.
const LOOK: Duration = Duration::from_secs(1);

/// Follows the real runs until `stop`.
pub(super) async fn run(shared: Arc<Shared>, ends: mpsc::Sender<Finish>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut away = Away::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let waiting: HashMap<Uuid, Rehearsing> =
            shared.held.rehearsals().into_iter().map(|r| (r.claimed.envelope.id, r)).collect();
        if waiting.is_empty() {
            continue;
        }
        let ids: Vec<Uuid> = waiting.keys().copied().collect();
        let Some(mirrored) = stop.run_until_cancelled(shared.queue.mirrored(shared.id, &ids)).await else { return };
        let mut finished = match mirrored {
            Ok(mirrored) => mirrored.into_iter().filter_map(|m| Some(step(waiting.get(&m.id)?, m))).collect(),
            Err(error) => {
                shared.failed("mirrored", &error);
                warn!(%error, "what became of the real runs can't be read; rehearsals wait on");
                Vec::new()
            }
        };
        away.look(&shared, &ids).await;
        let done: HashSet<Uuid> = finished.iter().map(|f: &Finish| f.id).collect();
        let goes_on = |r: &&Rehearsing| away.now.contains(&r.claimed.envelope.id);
        let overdue = |r: &&Rehearsing| r.since.elapsed() > bound(shared.options.rehearsal_bound, r) && !goes_on(r);
        finished
            .extend(waiting.values().filter(overdue).filter(|r| !done.contains(&r.claimed.envelope.id)).map(bounded));
        for finish in finished {
            let key = finish.key();
            // While Postgres is away the channel is full; what was not sent is handed back at the end.
            match stop.run_until_cancelled(ends.reserve()).await {
                Some(Ok(place)) => {
                    shared.held.reported(key);
                    place.send(finish);
                }
                _ => return,
            }
        }
    }
}

/// Which real runs are away with their runners. As long as one is, its rehearsal has no bound but the run's own; and like the
/// run it holds no slot.
#[derive(Default)]
struct Away {
    now: HashSet<Uuid>,
    looked: Option<Instant>,
}

impl Away {
    async fn look(&mut self, shared: &Shared, ids: &[Uuid]) {
        if self.looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            return;
        }
        self.looked = Some(Instant::now());
        match shared.queue.away(ids).await {
            Ok(away) => {
                self.now = away.into_iter().collect();
                if shared.held.step_aside(&self.now) > 0 {
                    shared.room.notify_one();
                }
            }
            Err(error) => {
                shared.failed("away", &error);
                warn!(%error, "which real runs are away with their runners can't be read; it is taken to be those of before");
            }
        }
    }
}

fn bound(slack: Duration, r: &Rehearsing) -> Duration {
    slack + r.claimed.envelope.policy.run_timeout()
}

/// The step of the rehearsal's own retry machine.
fn step(r: &Rehearsing, real: Mirrored) -> Finish {
    let (id, attempt) = (real.id, r.claimed.fence.attempt);
    let policy = &r.claimed.envelope.policy;
    let retry = match real.outcome {
        Outcome::Failed if !real.last => {
            // An attempt that left no record was lost with its worker.
            let failure = real.failure.clone().unwrap_or(Failure::RETRYABLE);
            policy.after(id, attempt, &failure, r.age()).rehearsed_wait()
        }
        _ => None,
    };
    Finish { failure: real.failure, retry, error: real.error, ..Finish::of(&r.claimed, Some(real.outcome)) }
}

fn bounded(r: &Rehearsing) -> Finish {
    let error = Some("bounded: the real run did not end in time".to_owned());
    Finish { error, ..Finish::of(&r.claimed, None) }
}
