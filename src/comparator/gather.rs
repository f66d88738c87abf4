//! Gathers the facts of a batch: sightings first, then everything that is recorded durably, in one snapshot. So what was
//! seen is never newer than what is recorded, and a copy is always found in exactly one place.

use std::collections::{HashMap, HashSet};

use chrono::TimeDelta;
use uuid::Uuid;

use super::PerSide;
use super::facts::{End, Facts, Instant, Moment, Neighbour, PinFacts, Place, Read, SideFacts, Try};
use super::storage::Rows;
use crate::interaction::{Attempt, Fence, Payload};
use crate::ledger::{
    ComparedPin, Ledger, LedgerError, OpenRehearsal, compared_attempts, compared_pins, open_rehearsals, within,
};
use crate::observer::{Log, Recorded, Seen};
use crate::queue::{Placed, QueuePlace, places};

/// What was found of a batch and its neighbours.
#[derive(Debug, Default)]
pub struct Gathered {
    pub(super) pins: HashMap<Uuid, ComparedPin>,
    pub(super) sightings: HashMap<Uuid, Vec<Recorded>>,
    pub(super) attempts: HashMap<Uuid, Vec<Attempt>>,
    pub(super) rehearsals: HashMap<Uuid, Vec<OpenRehearsal>>,
    pub(super) places: HashMap<Uuid, Placed>,
    pub(super) payloads: HashMap<Uuid, Payload>,
    /// Rows of neighbours that have no verdict yet.
    pub(super) unsettled: HashSet<Uuid>,
    /// Members by series and number.
    pub(super) members: HashMap<(Uuid, i64), Uuid>,
}

/// Where facts come from.
#[derive(Clone)]
pub(super) struct Sources {
    pub ledger: Ledger,
    pub log: Log,
    pub rows: Rows,
}

/// An attempt may have ended a little before its pin by the clocks.
const SINCE: TimeDelta = TimeDelta::minutes(5);

impl Sources {
    /// Everything known of `ids`, which were pinned at `since` or later, and of their neighbours.
    pub async fn gather(&self, ids: &[Uuid]) -> Result<Gathered, LedgerError> {
        let mut all: Vec<Uuid> = self.ledger.neighbours(ids).await?;
        let beside = all.clone();
        all.extend(ids);
        all.sort_unstable();
        all.dedup();
        let mut gathered = Gathered::default();
        for recorded in self.log.of(&all).await? {
            gathered.sightings.entry(recorded.sighting.id).or_default().push(recorded);
        }
        within(self.snapshot(&all, &mut gathered)).await?;
        gathered.unsettled = self.rows.unsettled(&beside).await?;
        let differing = gathered.differing(ids);
        if !differing.is_empty() {
            gathered.payloads = self.ledger.payloads(&differing).await?.into_iter().collect();
        }
        Ok(gathered)
    }

    async fn snapshot(&self, ids: &[Uuid], gathered: &mut Gathered) -> Result<(), sqlx::Error> {
        let mut tx = self.ledger.pool().begin_with("begin isolation level repeatable read read only").await?;
        // Before the snapshot is taken: upkeep puts a copy in the place of a partition, and a snapshot that is older than the copy
        // sees none of it. Whoever has this lock first is waited for.
        sqlx::query("lock table only crossover.attempts in access share mode").execute(&mut *tx).await?;
        for pin in compared_pins(&mut tx, ids).await? {
            if let Some(place) = pin.series_id.zip(pin.pin.series_no) {
                gathered.members.insert(place, pin.pin.id);
            }
            gathered.pins.insert(pin.pin.id, pin);
        }
        let oldest = gathered.pins.values().map(|p| p.pin.created_at).min();
        if let Some(oldest) = oldest {
            for attempt in compared_attempts(&mut tx, ids, oldest - SINCE).await? {
                gathered.attempts.entry(attempt.id).or_default().push(attempt);
            }
        }
        for rehearsal in open_rehearsals(&mut tx, ids).await? {
            gathered.rehearsals.entry(rehearsal.id).or_default().push(rehearsal);
        }
        gathered.places.extend(places(&mut tx, ids).await?.into_iter().map(|placed| (placed.id, placed)));
        tx.commit().await
    }
}

impl Gathered {
    /// The facts of one interaction.
    pub fn facts(&self, id: Uuid) -> Facts {
        let pin = self.pins.get(&id);
        let beside = |step: i64| {
            let pin = pin?;
            self.members.get(&(pin.series_id?, pin.pin.series_no? + step)).map(|id| self.neighbour(*id))
        };
        Facts {
            id,
            pin: pin.map(|pin| self.pin_facts(pin)),
            sides: self.sides(id),
            before: beside(-1),
            after: beside(1),
        }
    }

    fn neighbour(&self, id: Uuid) -> Neighbour {
        let pin = self.pins.get(&id);
        Neighbour {
            id,
            created_at: pin.map_or(Instant::MIN_UTC, |p| p.pin.created_at),
            ended_at: pin.and_then(|p| p.pin.ended_at),
            priority: pin.map_or(0, |p| p.priority),
            sides: self.sides(id),
            settled: !self.unsettled.contains(&id),
        }
    }

    fn pin_facts(&self, compared: &ComparedPin) -> PinFacts {
        let pin = &compared.pin;
        PinFacts {
            created_at: pin.created_at,
            run_at: pin.run_at,
            ended_at: pin.ended_at,
            outcome: pin.outcome,
            reason: pin.reason.clone(),
            stage: pin.stage,
            owner: pin.owner,
            epoch: pin.epoch,
            copies: PerSide { temporal: compared.on_temporal, postgres: compared.on_postgres },
            account: compared.account.clone(),
            kind: pin.kind.clone(),
            group: compared.group.clone(),
            priority: compared.priority,
            series: compared.series.clone(),
            series_no: pin.series_no,
            payload_hash: pin.payload_hash.clone(),
            payload: self.payloads.get(&pin.id).cloned(),
            conflict: pin.conflict.clone(),
            swept: compared.swept,
        }
    }

    fn sides(&self, id: Uuid) -> PerSide<SideFacts> {
        let mut sides = PerSide::<SideFacts>::default();
        for recorded in self.sightings.get(&id).into_iter().flatten() {
            sides.of_mut(recorded.sighting.side).see(recorded);
        }
        for attempt in self.attempts.get(&id).into_iter().flatten() {
            sides.of_mut(attempt.side).record(attempt);
        }
        for open in self.rehearsals.get(&id).into_iter().flatten() {
            let temporal = &mut sides.temporal;
            temporal.waits = Some(Place::Held);
            temporal.begun(open.fence, true, open.due_at, open.dequeued_at);
        }
        if self.pins.get(&id).is_some_and(|pin| pin.undelivered) {
            sides.temporal.waits = Some(Place::Outbox);
        }
        sides.postgres.waits = self.place(id, &mut sides.postgres);
        sides
    }

    fn place(&self, id: Uuid, postgres: &mut SideFacts) -> Option<Place> {
        let Some(placed) = self.places.get(&id) else {
            let behind = self.pins.get(&id).is_some_and(|pin| pin.on_postgres && pin.behind_head);
            return behind.then_some(Place::BehindHead);
        };
        if let Some((epoch, started_at)) = placed.claimed {
            postgres.begun(Fence { epoch, attempt: placed.attempt }, !placed.execute, placed.due_at, started_at);
        }
        Some(match placed.place {
            QueuePlace::Scheduled => Place::Scheduled,
            QueuePlace::Ready => Place::Ready,
            QueuePlace::Running => Place::Held,
        })
    }

    /// Those of `ids` that a side read otherwise than pinned, with when they were pinned.
    fn differing(&self, ids: &[Uuid]) -> Vec<(Uuid, Instant)> {
        let differs = |id: &Uuid| {
            let pin = &self.pins.get(id)?.pin;
            let other = self.sightings.get(id)?.iter().any(|recorded| match &recorded.sighting.what {
                Seen::Dequeued { payload_hash, .. } => payload_hash[..] != pin.payload_hash[..],
                _ => false,
            });
            other.then_some((*id, pin.created_at))
        };
        ids.iter().filter_map(differs).collect()
    }
}

impl SideFacts {
    fn see(&mut self, recorded: &Recorded) {
        let Recorded { seen_at, observer, sighting } = recorded;
        let moment = Moment { at: sighting.at, seen_at: *seen_at, clock: *observer };
        match &sighting.what {
            Seen::Delivered => {
                self.delivered = Some(self.delivered.map_or(moment, |d| if d.at <= moment.at { d } else { moment }))
            }
            Seen::Skipped { why } => self.skipped = Some(why.clone()),
            Seen::Dequeued { due_at, kind, group, payload_hash, payload } => {
                let attempt = self.attempt(sighting.fence, sighting.rehearsal);
                attempt.dequeues.push(moment);
                attempt.due_at = Some(attempt.due_at.map_or(*due_at, |due| due.min(*due_at)));
                let read = Read {
                    kind: kind.clone(),
                    group: group.clone(),
                    payload_hash: *payload_hash,
                    payload: payload.clone(),
                };
                if !attempt.read.iter().any(|r| r.same(&read)) {
                    attempt.read.push(read);
                }
            }
            Seen::Released => self.attempt(sighting.fence, sighting.rehearsal).releases += 1,
            // An end before any attempt (cancelled, expired) is the pin's, and no attempt's.
            Seen::Ended { .. } if sighting.fence.attempt < 1 => {}
            Seen::Ended { outcome, retry_ms, error } => {
                let end = End {
                    at: sighting.at,
                    seen_at: Some(*seen_at),
                    outcome: *outcome,
                    retry: retry_ms.map(TimeDelta::milliseconds),
                    error: error.clone(),
                };
                let attempt = self.attempt(sighting.fence, sighting.rehearsal);
                if attempt.end.as_ref().is_none_or(|known| end.at < known.at) {
                    attempt.end = Some(end);
                }
            }
            Seen::Refused => {}
        }
    }

    /// Takes in what is recorded of an attempt that has ended; what was seen of it is nearer to it.
    fn record(&mut self, attempt: &Attempt) {
        if attempt.fence.attempt < 1 {
            return;
        }
        self.begun(attempt.fence, attempt.rehearsal, attempt.due_at, attempt.started_at);
        self.attempt(attempt.fence, attempt.rehearsal).end.get_or_insert_with(|| End {
            at: attempt.ended_at,
            seen_at: Some(attempt.ended_at),
            outcome: attempt.outcome,
            retry: attempt.retry_ms.map(TimeDelta::milliseconds),
            error: attempt.error.clone(),
        });
    }

    fn begun(&mut self, fence: Fence, rehearsal: bool, due_at: Instant, at: Instant) {
        let attempt = self.attempt(fence, rehearsal);
        attempt.due_at.get_or_insert(due_at);
        attempt.recorded_at = Some(at);
    }

    fn attempt(&mut self, fence: Fence, rehearsal: bool) -> &mut Try {
        let at = self.tries.binary_search_by_key(&fence, |t| t.fence).unwrap_or_else(|at| {
            let (due_at, recorded_at, end) = (None, None, None);
            let attempt =
                Try { fence, rehearsal, due_at, dequeues: vec![], releases: 0, recorded_at, read: vec![], end };
            self.tries.insert(at, attempt);
            at
        });
        let attempt = &mut self.tries[at];
        // One of them that ran is enough.
        attempt.rehearsal &= rehearsal;
        attempt
    }
}

impl Read {
    fn same(&self, other: &Read) -> bool {
        self.kind == other.kind && self.group == other.group && self.payload_hash == other.payload_hash
    }
}
