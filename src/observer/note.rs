//! What the sides say when they hand in the sightings that take more than a line.

use chrono::{DateTime, Utc};

use super::{Observer, Seen, Sighting};
use crate::interaction::{Envelope, Fence, Outcome, Payload, Side, hex};

/// A larger payload is hashed on a thread for such work.
const HASHED_IN_PASSING: usize = 16 << 10;

/// An attempt that begins, as its side knows it.
#[derive(Debug, Clone, Copy)]
pub struct Dequeue<'a> {
    /// The copy as this side read it. One without a pin is not observed: nothing is compared with it.
    pub envelope: &'a Envelope,
    /// The side.
    pub side: Side,
    /// The attempt.
    pub attempt: i32,
    /// Nothing is to be run.
    pub rehearsal: bool,
    /// When it was due.
    pub due_at: DateTime<Utc>,
}

impl Observer {
    /// Sees that an attempt begins. The payload is hashed as this side read it; a large one aside, so that the attempt
    /// does not wait.
    pub fn dequeued(&self, dequeue: Dequeue<'_>) {
        let Dequeue { envelope, .. } = dequeue;
        if !envelope.pinned || !self.observes(envelope.id) {
            return;
        }
        let (bare, payload, promised) = (dequeue.sighting(), envelope.payload.clone(), envelope.payload_hash.clone());
        if payload.get().len() <= HASHED_IN_PASSING {
            return self.see(bare.with_payload(payload, &promised));
        }
        let this = self.clone();
        tokio::task::spawn_blocking(move || this.see(bare.with_payload(payload, &promised)));
    }
}

impl Dequeue<'_> {
    /// The payload's hash is still to be filled in.
    fn sighting(&self) -> Sighting {
        let envelope = self.envelope;
        Sighting {
            id: envelope.id,
            side: self.side,
            fence: Fence { epoch: envelope.epoch, attempt: self.attempt },
            rehearsal: self.rehearsal,
            at: Utc::now(),
            what: Seen::Dequeued {
                due_at: self.due_at,
                kind: envelope.kind.clone(),
                group: envelope.group.clone().unwrap_or_else(|| DEFAULT_GROUP.to_owned()),
                payload_hash: [0; 32],
                payload: None,
            },
        }
    }
}

impl Sighting {
    fn with_payload(mut self, read: Payload, promised: &str) -> Self {
        if let Seen::Dequeued { payload_hash, payload, .. } = &mut self.what {
            (*payload_hash, *payload) = hashed(read, promised);
        }
        self
    }
}

/// Where a copy without a group goes, on both sides.
pub(crate) const DEFAULT_GROUP: &str = "default";

/// The hash of a payload, and the payload itself where that is not what was promised.
pub(crate) fn hashed(payload: Payload, promised: &str) -> ([u8; 32], Option<Payload>) {
    let hash = payload.hash();
    (hash, (hex(&hash) != promised).then_some(payload))
}

/// What is seen of an attempt that ended.
pub fn ended(outcome: Option<Outcome>, retry_ms: Option<i64>, error: Option<&str>) -> Seen {
    Seen::Ended { outcome, retry_ms, error: error.map(str::to_owned) }
}
