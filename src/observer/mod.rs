//! Writes down what the sides were seen to do, beside the work and never in its way: a sighting is put into a bounded
//! buffer without waiting, and written with others. What finds no room is counted as dropped, and the comparator says
//! `incomplete` rather than `missing`.
//!
//! It knows neither side nor the comparator: `router`, `queue` and `temporal` hand sightings in, `comparator` reads
//! them.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::interaction::{Fence, Outcome, Payload, Side};

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
