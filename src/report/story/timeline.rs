//! What was recorded of an interaction, in the order of time. Sightings have two clocks; where one is missing, the attempt
//! that was recorded with the work stands in for it.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::FromRow;
use uuid::Uuid;

use super::Story;
use crate::ledger::{Ledger, LedgerError, within};

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
pub struct Event {
    /// By the clock of whoever did it.
    pub at: DateTime<Utc>,
    /// By the database's clock, when it was written, where that is another one.
    pub seen_at: Option<DateTime<Utc>>,
    /// The side that it happened on.
    pub side: Option<String>,
    /// What happened.
    pub what: String,
}

/// A row of `crossover.sightings`.
#[derive(Debug, Clone, FromRow)]
pub(super) struct SightingRow {
    seen_at: DateTime<Utc>,
    side_at: DateTime<Utc>,
    due_at: Option<DateTime<Utc>>,
    epoch: i32,
    attempt: i32,
    rehearsal: bool,
    retry_ms: Option<i64>,
    side: String,
    what: String,
    outcome: Option<String>,
    misread: bool,
    note: Option<String>,
}

/// A row of `crossover.attempts`.
#[derive(Debug, Clone, FromRow)]
pub(super) struct AttemptRow {
    due_at: DateTime<Utc>,
    started_at: DateTime<Utc>,
    ended_at: DateTime<Utc>,
    epoch: i32,
    attempt: i32,
    rehearsal: bool,
    retry_ms: Option<i64>,
    side: String,
    outcome: Option<String>,
    error: Option<String>,
}

/// So many rows of a kind, the first; policies allow a thousand attempts.
const ROWS: i64 = 5_000;

pub(super) async fn sightings(ledger: &Ledger, id: Uuid) -> Result<Vec<SightingRow>, LedgerError> {
    let rows = sqlx::query_as(
        "select s.seen_at, s.side_at, s.due_at, s.epoch, s.attempt, s.rehearsal, s.retry_ms, s.side, s.what, s.outcome, s.note,
            coalesce(s.payload_hash <> p.payload_hash, false) as misread
         from crossover.sightings s left join crossover.pins p on p.id = s.id
         where s.id = $1 order by s.side_at, s.seen_at limit $2",
    );
    within(rows.bind(id).bind(ROWS).fetch_all(ledger.pool())).await
}

pub(super) async fn attempts(ledger: &Ledger, id: Uuid) -> Result<Vec<AttemptRow>, LedgerError> {
    let rows = sqlx::query_as(
        "select due_at, started_at, ended_at, epoch, attempt, rehearsal, retry_ms, side, outcome, error
         from crossover.attempts where id = $1 order by started_at, side limit $2",
    );
    within(rows.bind(id).bind(ROWS).fetch_all(ledger.pool())).await
}

/// Everything that happened.
pub(super) fn of(story: &Story, sightings: &[SightingRow], attempts: &[AttemptRow]) -> Vec<Event> {
    let mut events = opened(story);
    events.extend(sightings.iter().map(SightingRow::event));
    for attempt in attempts {
        let seen = |what: &str| sightings.iter().any(|s| s.what == what && s.is_of(attempt));
        if !seen("dequeued") {
            events.push(attempt.began());
        }
        if !seen("ended") {
            events.push(attempt.ended());
        }
    }
    // Of one moment, what follows from an attempt's end comes after it.
    events.extend(closed(story));
    events.sort_by_key(|event| event.at);
    events
}

/// What the bridge itself decided, before any attempt.
fn opened(story: &Story) -> Vec<Event> {
    let mut events = Vec::new();
    let mut push = |at, what| events.push(Event::of_ours(at, what));
    let Some(standing) = &story.standing else { return events };
    match &story.pin {
        None => push(standing.accepted_at, "accepted from SQL; no router has pinned it".to_owned()),
        Some(pin) => {
            // Work is handed over once, and from Postgres.
            let owner = if pin.moved_at.is_some() { "postgres" } else { pin.owner.as_str() };
            let other = if owner == "postgres" { "temporal" } else { "postgres" };
            let rehearses = match pin.on_temporal && pin.on_postgres {
                true => format!("{other} rehearses"),
                false => "nothing rehearses".to_owned(),
            };
            push(
                pin.pinned_at,
                format!(
                    "pinned in stage {} by flags {}: {} executes, {rehearses}",
                    pin.stage, pin.flag_revision, owner
                ),
            );
            if let Some(moved_at) = pin.moved_at {
                push(moved_at, format!("handed over: {} executes from epoch {} on", pin.owner, pin.epoch));
            }
            if let Some(due) = standing.run_at.filter(|due| *due > pin.pinned_at) {
                push(due, "due".to_owned());
            }
        }
    }
    events
}

/// How it ended, and what the comparator made of it.
fn closed(story: &Story) -> Vec<Event> {
    let mut events = Vec::new();
    if let Some((at, standing)) = story.standing.as_ref().and_then(|s| Some((s.ended_at?, s))) {
        let why = standing.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let what = format!("ended: {} after {}{why}", standing.state, attempts_of(standing.attempts));
        events.push(Event::of_ours(at, what));
    }
    if let Some((at, observation)) = story.observation.as_ref().and_then(|o| Some((o.judged_at?, o))) {
        let why = observation.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        events.push(Event::of_ours(at, format!("judged: {}{why}", observation.verdict)));
    }
    events
}

impl Event {
    fn of_ours(at: DateTime<Utc>, what: String) -> Self {
        Self { at, seen_at: None, side: None, what }
    }
}

fn attempts_of(count: i32) -> String {
    if count == 1 { "1 attempt".to_owned() } else { format!("{count} attempts") }
}

fn mode(rehearsal: bool) -> &'static str {
    if rehearsal { "rehearsal" } else { "execution" }
}

fn began(rehearsal: bool, epoch: i32, attempt: i32, due_at: Option<DateTime<Utc>>, at: DateTime<Utc>) -> String {
    let late = due_at.map(|due| format!(", {} ms after it was due", (at - due).num_milliseconds())).unwrap_or_default();
    format!("{} {epoch}.{attempt} began{late}", mode(rehearsal))
}

fn ended(
    rehearsal: bool,
    epoch: i32,
    attempt: i32,
    outcome: Option<&str>,
    retry_ms: Option<i64>,
    error: Option<&str>,
) -> String {
    let outcome = outcome.unwrap_or("bounded, its real run had not ended");
    let retry = retry_ms.map(|ms| format!(", another follows after {ms} ms")).unwrap_or_default();
    let error = error.map(|error| format!(": {error}")).unwrap_or_default();
    // A failed attempt that another follows has no outcome of its own.
    let outcome = if retry_ms.is_some() { "failed" } else { outcome };
    format!("{} {epoch}.{attempt} ended: {outcome}{retry}{error}", mode(rehearsal))
}

impl SightingRow {
    fn is_of(&self, attempt: &AttemptRow) -> bool {
        (&self.side, self.epoch, self.attempt) == (&attempt.side, attempt.epoch, attempt.attempt)
    }

    fn event(&self) -> Event {
        let note = self.note.as_ref().map(|note| format!(": {note}")).unwrap_or_default();
        let Self { rehearsal, epoch, attempt, .. } = *self;
        let what = match self.what.as_str() {
            "delivered" => "Temporal has the copy".to_owned(),
            "skipped" => format!("nothing was delivered{note}"),
            "dequeued" => {
                let misread = if self.misread { "; IT READ ANOTHER PAYLOAD" } else { "" };
                format!("{}{misread}", began(rehearsal, epoch, attempt, self.due_at, self.side_at))
            }
            "released" => format!("{} {epoch}.{attempt} was handed back unrun", mode(rehearsal)),
            "ended" => ended(rehearsal, epoch, attempt, self.outcome.as_deref(), self.retry_ms, self.note.as_deref()),
            "refused" => format!("a late result of {epoch}.{attempt} was refused{note}"),
            other => format!("{other}{note}"),
        };
        Event { at: self.side_at, seen_at: Some(self.seen_at), side: Some(self.side.clone()), what }
    }
}

impl AttemptRow {
    fn began(&self) -> Event {
        let what = began(self.rehearsal, self.epoch, self.attempt, Some(self.due_at), self.started_at);
        Event { at: self.started_at, seen_at: None, side: Some(self.side.clone()), what }
    }

    fn ended(&self) -> Event {
        let Self { rehearsal, epoch, attempt, retry_ms, .. } = *self;
        let what = ended(rehearsal, epoch, attempt, self.outcome.as_deref(), retry_ms, self.error.as_deref());
        Event { at: self.ended_at, seen_at: None, side: Some(self.side.clone()), what }
    }
}
