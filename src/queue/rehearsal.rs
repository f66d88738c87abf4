//! Rehearsals on Postgres: each waits until the real attempt of its number has ended on Temporal, and then takes the
//! step that its own retry machine takes for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

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

/// Follows the real runs until `stop`.
pub(super) async fn run(shared: Arc<Shared>, ends: mpsc::Sender<Finish>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(POLL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
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
        let done: std::collections::HashSet<Uuid> = finished.iter().map(|f: &Finish| f.id).collect();
        let overdue = |r: &&Rehearsing| r.since.elapsed() > bound(shared.options.rehearsal_bound, r);
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
