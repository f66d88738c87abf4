//! Writes down what the sides were seen to do, beside the work and never in its way: a sighting is put into a bounded
//! buffer without waiting, and written with others. What finds no room is counted as dropped, and the comparator says
//! `incomplete` rather than `missing`.
//!
//! It knows neither side nor the comparator: `router`, `queue` and `temporal` hand sightings in, `comparator` reads
//! them. [`Observer`] is what they hold; `writer` writes on connections of its own; [`Log`] speaks the SQL of
//! sightings, observers and disturbances.

mod note;
mod storage;
mod windows;
mod writer;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use uuid::Uuid;

#[cfg(feature = "temporal")]
pub(crate) use note::{DEFAULT_GROUP, hashed};
pub use note::{Dequeue, ended};
pub use storage::{Disturbance, Gap, Log, Recorded};

use windows::Windows;

use crate::interaction::{Fence, Outcome, Payload, Side};
use crate::metrics::Metrics;

/// Something that a side was seen to do with an interaction.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// The interaction.
    pub id: Uuid,
    /// The side.
    pub side: Side,
    /// Epoch of the copy, and the attempt; 0 where none is meant.
    pub fence: Fence,
    /// Nothing was to be run.
    pub rehearsal: bool,
    /// By the clock of this process.
    pub at: DateTime<Utc>,
    /// What was seen.
    pub what: Seen,
}

/// What was seen.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Temporal has the copy.
    Delivered,
    /// There was nothing left to deliver, or there never will be.
    Skipped {
        /// Why.
        why: String,
    },
    /// An attempt began.
    Dequeued {
        /// When it was due, as its side sees it.
        due_at: DateTime<Utc>,
        /// The kind that its copy names.
        kind: String,
        /// The group that its copy was dequeued from.
        group: String,
        /// SHA-256 of the payload as this side read it.
        payload_hash: [u8; 32],
        /// The payload, only where its hash is not the one that its pin promised.
        payload: Option<Payload>,
    },
    /// It was handed back unrun, and begins again under the same number.
    Released,
    /// An attempt ended.
    Ended {
        /// How; none for a rehearsal that was bounded.
        outcome: Option<Outcome>,
        /// Another attempt follows after so long.
        retry_ms: Option<i64>,
        /// What went wrong.
        error: Option<String>,
    },
    /// A late result was not taken.
    Refused,
}

/// How an observer observes.
#[derive(Debug, Clone)]
pub struct ObserverOptions {
    /// Who it is, in `crossover.observers`.
    pub name: String,
    /// So many sightings wait to be written at most; what comes beyond is dropped and counted.
    pub buffer: usize,
    /// 0 to 1: the share of interactions that is observed, the same ones by every observer.
    pub share: f64,
}

/// Takes sightings in. Cheap to clone; one made by [`Observer::none`] takes none.
#[derive(Clone, Default)]
pub struct Observer(Option<Arc<Inner>>);

struct Inner {
    shared: Arc<Shared>,
    /// The writer ends with the last clone, if nobody stopped it before.
    _ends: DropGuard,
}

/// What an observer and its writer share.
struct Shared {
    id: Uuid,
    share: f64,
    noted: mpsc::Sender<Noted>,
    dropped: AtomicU64,
    windows: Windows,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    writing: TaskTracker,
}

/// A sighting, and when it was handed in.
struct Noted {
    when: Instant,
    sighting: Sighting,
}

impl Observer {
    /// Observes nothing: for processes and tests that nobody compares.
    pub fn none() -> Self {
        Self(None)
    }

    /// An observer that writes to `log`, and the task that writes. `log` should have connections of its own: writing must
    /// take none from routers and workers. [`Observer::stop`] ends it.
    pub fn start(log: Log, options: ObserverOptions, metrics: Arc<Metrics>) -> Self {
        let (noted, receiver) = mpsc::channel(options.buffer.max(1));
        let shared = Arc::new(Shared {
            id: Uuid::new_v4(),
            share: options.share,
            noted,
            dropped: AtomicU64::new(0),
            windows: Windows::default(),
            metrics,
            stop: CancellationToken::new(),
            writing: TaskTracker::new(),
        });
        shared.writing.spawn(writer::run(log, options.name, shared.clone(), receiver));
        shared.writing.close();
        let _ends = shared.stop.clone().drop_guard();
        Self(Some(Arc::new(Inner { shared, _ends })))
    }

    /// Its id in `crossover.observers`.
    pub fn id(&self) -> Option<Uuid> {
        self.shared().map(|shared| shared.id)
    }

    /// Takes a sighting, if its interaction is observed. Never waits and never fails; without room it is dropped and
    /// counted.
    pub fn see(&self, sighting: Sighting) {
        if let Some(shared) = self.shared()
            && sampled(sighting.id, shared.share)
        {
            shared.note(sighting);
        }
    }

    /// Whether `id` is observed here: for what costs more to describe than to drop.
    pub fn observes(&self, id: Uuid) -> bool {
        self.shared().is_some_and(|shared| sampled(id, shared.share))
    }

    /// Notes that a side could not work just now. Repeated, it goes on; it is over some seconds after the last time.
    pub fn disturbed(&self, side: Side, what: &'static str) {
        if let Some(shared) = self.shared() {
            shared.windows.disturbed(side, what);
        }
    }

    /// Writes what is left and ends. Takes some seconds at most; what Postgres does not take by then is dropped.
    pub async fn stop(&self) {
        if let Some(shared) = self.shared() {
            shared.stop.cancel();
            shared.writing.wait().await;
        }
    }

    fn shared(&self) -> Option<&Shared> {
        self.0.as_ref().map(|inner| &*inner.shared)
    }
}

impl Shared {
    fn note(&self, sighting: Sighting) {
        if self.noted.try_send(Noted { when: Instant::now(), sighting }).is_err() {
            self.dropped(1);
        }
    }

    fn dropped(&self, sightings: u64) {
        self.dropped.fetch_add(sightings, Relaxed);
        self.windows.dropped(sightings);
        self.metrics.observer.dropped.inc_by(sightings);
    }
}

/// Whether `id` belongs to the observed `share` (0 to 1) of interactions: by the id alone, so that every observer of
/// either side takes the same ones, and of a larger share all those of a smaller one.
pub fn sampled(id: Uuid, share: f64) -> bool {
    // Ids are hashes, and their first four bytes are free of version and variant.
    let [a, b, c, d, ..] = *id.as_bytes();
    f64::from(u32::from_be_bytes([a, b, c, d])) < share * (f64::from(u32::MAX) + 1.0)
}

/// What is noted of a side that gives no answer at all.
pub const NO_ANSWER: &str = "it does not answer";

/// How often an observer gives a sign of life.
const BEAT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interaction::interaction_id;

    #[test]
    fn nothing_is_sampled_at_zero_everything_at_one_and_a_tenth_at_a_tenth() {
        let ids: Vec<Uuid> = (0..20_000).map(|n| interaction_id("a", &n.to_string())).collect();
        let taken = |share| ids.iter().filter(|id| sampled(**id, share)).count();
        assert_eq!((taken(0.0), taken(1.0)), (0, ids.len()));
        assert!((1_800..2_200).contains(&taken(0.1)), "{}", taken(0.1));
        assert!(sampled(Uuid::max(), 1.0));
    }

    #[test]
    fn a_larger_share_holds_all_ids_of_a_smaller_one() {
        let mut ids = (0..2_000).map(|n| interaction_id("a", &n.to_string()));
        assert!(ids.all(|id| !sampled(id, 0.2) || sampled(id, 0.3)));
    }

    #[tokio::test]
    async fn an_observer_of_nothing_takes_everything_and_ends_at_once() {
        let observer = Observer::none();
        observer.disturbed(Side::Postgres, "nothing");
        assert!(!observer.observes(Uuid::nil()) && observer.id().is_none());
        observer.stop().await;
    }
}
