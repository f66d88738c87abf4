//! What is known of one interaction: its pin, what each side was seen to do with it and what the ledger records, and
//! its neighbours in the series. Where a sighting was lost, what is recorded durably stands in for it.

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::PerSide;
use crate::interaction::{Fence, Outcome, Payload, Side, Stage};

/// A moment.
pub type Instant = DateTime<Utc>;

/// Everything that a verdict on one interaction is made of.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The interaction.
    pub id: Uuid,
    /// The decision; none where nobody pinned it.
    pub pin: Option<PinFacts>,
    /// What each side did.
    pub sides: PerSide<SideFacts>,
    /// The member before it in its series.
    pub before: Option<Neighbour>,
    /// The member after it.
    pub after: Option<Neighbour>,
}

/// What a verdict needs of a pin.
#[derive(Debug, Clone)]
pub struct PinFacts {
    /// When it was pinned.
    pub created_at: Instant,
    /// When it was to run.
    pub run_at: Instant,
    /// When it ended.
    pub ended_at: Option<Instant>,
    /// How.
    pub outcome: Option<Outcome>,
    /// Why, where that is not a success.
    pub reason: Option<String>,
    /// The stage that it was pinned in.
    pub stage: Stage,
    /// Who executes it.
    pub owner: Side,
    /// Since how many moves of ownership.
    pub epoch: i32,
    /// Whether each side was to have a copy.
    pub copies: PerSide<bool>,
    /// The tenant.
    pub account: String,
    /// The type of work.
    pub kind: String,
    /// The sub-queue.
    pub group: String,
    /// Higher first.
    pub priority: i16,
    /// The series' name.
    pub series: Option<String>,
    /// Its number in the series.
    pub series_no: Option<i64>,
    /// SHA-256 of the payload.
    pub payload_hash: Vec<u8>,
    /// The payload's text, where a side read another.
    pub payload: Option<Payload>,
    /// Temporal holds another copy under this id.
    pub conflict: Option<String>,
    /// It was delivered once more because it should long have ended.
    pub swept: bool,
}

/// What one side did with an interaction.
#[derive(Debug, Clone, Default)]
pub struct SideFacts {
    /// When Temporal was seen to have the copy.
    pub delivered: Option<Moment>,
    /// Why nothing was delivered.
    pub skipped: Option<String>,
    /// Where a copy of it still is.
    pub waits: Option<Place>,
    /// Its attempts, by fence.
    pub tries: Vec<Try>,
}

/// Where a copy is that has not settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Pinned, not delivered to Temporal yet.
    Outbox,
    /// Behind the head of its series.
    BehindHead,
    /// Due later.
    Scheduled,
    /// Due, and not taken yet.
    Ready,
    /// A worker holds it.
    Held,
}

/// An event by two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// By the side's own clock.
    pub at: Instant,
    /// By the database's, when it was written down.
    pub seen_at: Instant,
    /// Whose clock the side's own is.
    pub clock: Uuid,
}

/// One attempt of one side.
#[derive(Debug, Clone)]
pub struct Try {
    /// Its epoch and number.
    pub fence: Fence,
    /// Nothing was run.
    pub rehearsal: bool,
    /// When it was due, as its side sees it.
    pub due_at: Option<Instant>,
    /// Every time that it was seen to begin.
    pub dequeues: Vec<Moment>,
    /// How often it was handed back unrun.
    pub releases: usize,
    /// When it began by the server's clock, as the ledger or the queue records it.
    pub recorded_at: Option<Instant>,
    /// What its copy said when it was dequeued, once for each that differs.
    pub read: Vec<Read>,
    /// How it ended.
    pub end: Option<End>,
}

/// What a side read from its copy.
#[derive(Debug, Clone)]
pub struct Read {
    /// The type of work.
    pub kind: String,
    /// The sub-queue.
    pub group: String,
    /// SHA-256 of the payload.
    pub payload_hash: [u8; 32],
    /// The payload, only where its hash is not the pin's.
    pub payload: Option<Payload>,
}

/// How an attempt ended.
#[derive(Debug, Clone)]
pub struct End {
    /// By the clock of who saw it, else the database's.
    pub at: Instant,
    /// By the database's.
    pub seen_at: Option<Instant>,
    /// How; none for a rehearsal that was bounded.
    pub outcome: Option<Outcome>,
    /// Another attempt follows after so long.
    pub retry: Option<TimeDelta>,
    /// What went wrong.
    pub error: Option<String>,
}

/// When something began, and how well that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Start {
    /// When.
    pub at: Instant,
    /// By whose clock; none: by the server's.
    pub clock: Option<Uuid>,
    /// It was seen, and not only recorded.
    pub sighted: bool,
}

/// What a verdict needs of the members beside it in a series.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// The member.
    pub id: Uuid,
    /// When it was pinned.
    pub created_at: Instant,
    /// When its pin ended.
    pub ended_at: Option<Instant>,
    /// Higher first.
    pub priority: i16,
    /// What each side did with it.
    pub sides: PerSide<SideFacts>,
    /// Its own row has a verdict, or it has none.
    pub settled: bool,
}

impl Place {
    /// In the words of a verdict.
    pub const fn as_str(self) -> &'static str {
        match self {
            Place::Outbox => "waits to be delivered",
            Place::BehindHead => "waits behind its series",
            Place::Scheduled => "waits until it is due",
            Place::Ready => "waits for a worker",
            Place::Held => "is held by a worker",
        }
    }
}

impl Try {
    /// When it began first.
    pub fn start(&self) -> Option<Start> {
        let seen = self.dequeues.iter().min_by_key(|d| d.at).map(|d| (d.at, Some(d.clock)));
        let (at, clock) = seen.or(self.recorded_at.map(|at| (at, None)))?;
        // One that was handed back as often as it was seen to begin may have begun before, unseen.
        Some(Start { at, clock, sighted: self.dequeues.len() > self.releases })
    }

    /// When something was last heard of it, by the database's clock as far as that is known.
    fn heard_at(&self) -> Option<Instant> {
        let seen = self.dequeues.iter().map(|d| d.seen_at);
        let end = self.end.as_ref().map(|e| e.seen_at.unwrap_or(e.at));
        seen.chain(end).chain(self.recorded_at).max()
    }

    /// It ended because of its worker, not of its work.
    pub fn lost(&self) -> bool {
        let error = self.end.as_ref().and_then(|end| end.error.as_deref());
        error.is_some_and(|error| error.starts_with(crate::executor::OF_ITS_WORKER))
    }
}

impl Try {
    /// Its effect was unknown, and a person said what followed.
    pub fn parked(&self) -> bool {
        let error = self.end.as_ref().and_then(|end| end.error.as_deref());
        error.is_some_and(|error| error.starts_with(crate::executor::PARKED))
    }
}

impl SideFacts {
    /// Whether a person had to say what came of one of its attempts.
    pub fn parked(&self) -> bool {
        self.tries.iter().any(Try::parked)
    }

    /// The first attempt, if it is known.
    pub fn first(&self) -> Option<&Try> {
        self.tries.first().filter(|t| t.fence.attempt == 1)
    }

    /// The latest attempt.
    pub fn last(&self) -> Option<&Try> {
        self.tries.last()
    }

    /// When its first attempt began.
    pub fn start(&self) -> Option<Start> {
        self.first().and_then(Try::start)
    }

    /// When something was last heard of it.
    pub fn heard_at(&self) -> Option<Instant> {
        self.tries.iter().filter_map(Try::heard_at).max()
    }

    /// The attempts that ran for real.
    pub fn executions(&self) -> impl Iterator<Item = &Try> {
        self.tries.iter().filter(|t| !t.rehearsal)
    }

    /// From when on its first attempt could have begun: due, and delivered.
    pub fn could_begin_at(&self) -> Option<Instant> {
        let due = self.first()?.due_at?;
        Some(self.delivered.map_or(due, |delivered| due.max(delivered.at)))
    }
}
