//! What is written of a batch: a row each, and by how much the scores change. Pure.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use serde_json::{Value, json};
use tracing::error;

use super::facts::{Facts, Instant, Try};
use super::judge::{Divergence, Judgement};
use super::latency::{Pair, Timing};
use super::storage::{Cell, Change, Looked, Taken};
use super::{Class, Verdict};
use crate::interaction::{Outcome, Side};
use crate::metrics::comparator::ComparatorMetrics;

/// The batch so far.
pub(super) struct Writing {
    now: Instant,
    longest: TimeDelta,
    rows: Vec<Looked>,
    changes: BTreeMap<Cell, Change>,
    /// New verdicts, and new divergences.
    verdicts: Vec<Verdict>,
    divergences: Vec<(uuid::Uuid, Divergence)>,
    pairs: Vec<Pair>,
}

impl Writing {
    /// A batch looked at `now`; a row is looked at again after `longest` at the latest.
    pub fn new(now: Instant, longest: TimeDelta) -> Self {
        let (rows, verdicts, divergences, pairs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Self { now, longest, rows, changes: BTreeMap::new(), verdicts, divergences, pairs }
    }

    /// Takes in what came of the look at `taken`.
    pub fn add(&mut self, taken: &Taken, facts: &Facts, judgement: Judgement) {
        let classes: Vec<Class> = judgement.divergences.iter().map(|d| d.class).collect();
        if taken.verdict != judgement.verdict || taken.classes != classes {
            self.count(taken, taken.verdict, &taken.classes, -1);
            self.count(taken, judgement.verdict, &classes, 1);
            if taken.verdict != judgement.verdict && judgement.verdict != Verdict::InFlight {
                self.verdicts.push(judgement.verdict);
            }
            let fresh = judgement.divergences.iter().filter(|d| !taken.classes.contains(&d.class));
            self.divergences.extend(fresh.map(|d| (taken.id, d.clone())));
        }
        let compared =
            judgement.look_again.is_none() && matches!(judgement.verdict, Verdict::Matched | Verdict::Diverged);
        let pair = pair(taken, facts).filter(|_| compared && !taken.paired);
        let paired = taken.paired || pair.is_some();
        self.pairs.extend(pair);
        let look_at = judgement.look_again.map(|soonest| self.later(soonest, taken.looks));
        let looks = taken.looks.saturating_add(1);
        self.rows.push(Looked { look_at, looks, paired, ..row(taken, facts, judgement) });
    }

    /// The more often it was looked at, the longer it is left alone.
    fn later(&self, soonest: Instant, looks: i32) -> Instant {
        let pause = TimeDelta::milliseconds(500 << looks.clamp(0, 16)).min(self.longest);
        soonest.max(self.now + pause)
    }

    fn count(&mut self, taken: &Taken, verdict: Verdict, classes: &[Class], by: i64) {
        if verdict == Verdict::InFlight {
            return;
        }
        let Taken { account, kind, stage, day, .. } = taken.clone();
        let change = self.changes.entry(Cell { account, kind, stage, day }).or_default();
        *change.verdicts.entry(verdict.as_str()).or_default() += by;
        classes.iter().for_each(|class| *change.classes.entry(class.as_str()).or_default() += by);
    }

    /// The rows.
    pub fn rows(&self) -> &[Looked] {
        &self.rows
    }

    /// By how much the scores change.
    pub fn changes(&self) -> &BTreeMap<Cell, Change> {
        &self.changes
    }

    /// Latencies of both sides, where they were not handed out before.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// Counts what is new, and says aloud what nobody should wait with.
    pub fn tell(&self, metrics: &ComparatorMetrics) {
        for verdict in &self.verdicts {
            metrics.verdicts.with_label_values(&[verdict.as_str()]).inc();
        }
        for (id, Divergence { class, side, detail }) in &self.divergences {
            metrics.divergences.with_label_values(&[class.as_str(), side.as_str()]).inc();
            if class.is_urgent() {
                error!(%id, %class, %side, detail, "the sides disagree on who owns this; see `crossover why`");
            }
        }
    }
}

/// What both sides took, where both began it and its last attempt has ended.
fn pair(taken: &Taken, facts: &Facts) -> Option<Pair> {
    let pin = facts.pin.as_ref()?;
    let seconds = |span: TimeDelta| span.as_seconds_f64();
    let timing = |side: Side| {
        let (here, began) = (facts.sides.of(side), facts.sides.of(side).start()?.at);
        let last = here.last()?;
        let ended = last.end.as_ref().filter(|end| end.outcome.is_some())?.at;
        let enqueued = if side == Side::Temporal { here.delivered?.at } else { pin.created_at };
        Some(Timing {
            start: seconds(began - here.first()?.due_at?),
            queueing: seconds(began - enqueued),
            run: seconds(ended - last.start()?.at),
        })
    };
    Some(Pair {
        account: taken.account.clone(),
        kind: taken.kind.clone(),
        stage: pin.stage,
        day: taken.day,
        temporal: timing(Side::Temporal)?,
        postgres: timing(Side::Postgres)?,
    })
}

fn row(taken: &Taken, facts: &Facts, judgement: Judgement) -> Looked {
    let (temporal, postgres) = (&facts.sides.temporal, &facts.sides.postgres);
    let ended = |t: Option<&Try>| t.and_then(|t| t.end.as_ref()).map(|end| end.at);
    let outcome = |t: Option<&Try>| t.and_then(|t| t.end.as_ref()?.outcome).map(Outcome::as_str);
    let tries = Side::ALL.iter().flat_map(|side| facts.sides.of(*side).tries.iter().map(|t| attempt(*side, t)));
    Looked {
        id: taken.id,
        verdict: judgement.verdict.as_str(),
        classes: judgement.divergences.iter().map(|d| d.class.as_str()).collect(),
        reason: judgement.reason,
        attempts: tries.collect(),
        divergences: judgement.divergences.iter().map(|d| json!(d)).collect(),
        temporal_delivered_at: temporal.delivered.map(|d| d.at),
        temporal_due_at: temporal.first().and_then(|t| t.due_at),
        temporal_dequeued_at: temporal.start().map(|s| s.at),
        temporal_ended_at: ended(temporal.last()),
        temporal_attempts: temporal.tries.len() as i32,
        temporal_outcome: outcome(temporal.last()),
        postgres_due_at: postgres.first().and_then(|t| t.due_at),
        postgres_dequeued_at: postgres.start().map(|s| s.at),
        postgres_ended_at: ended(postgres.last()),
        postgres_attempts: postgres.tries.len() as i32,
        postgres_outcome: outcome(postgres.last()),
        owner: facts.pin.as_ref().map(|p| p.owner.as_str()),
        epoch: facts.pin.as_ref().map(|p| p.epoch),
        ..Looked::default()
    }
}

fn attempt(side: Side, t: &Try) -> Value {
    let first = t.dequeues.iter().min_by_key(|d| d.at);
    let end = t.end.as_ref();
    json!({
        "side": side,
        "rehearsal": t.rehearsal,
        "epoch": t.fence.epoch,
        "attempt": t.fence.attempt,
        "due_at": t.due_at,
        "dequeued_at": first.map(|d| d.at).or(t.recorded_at),
        "dequeued_seen_at": first.map(|d| d.seen_at),
        "ended_at": end.map(|e| e.at),
        "ended_seen_at": end.and_then(|e| e.seen_at),
        "outcome": end.and_then(|e| e.outcome),
        "retry_ms": end.and_then(|e| e.retry).map(|r| r.num_milliseconds()),
        "error": end.and_then(|e| e.error.as_deref()),
    })
}
