//! What the facts of one interaction mean. Pure: the same facts, rules and context give the same judgement.
//!
//! First `settled` says where each side stands; only once both have settled the rest is compared: `timing`, `chain`
//! (order and overlap in a series), `content` (payload and routing) and `attempts`. What can't be compared is never a
//! divergence: a hole in what was seen gives `incomplete`, an outage or a lost worker `not_comparable`.

mod attempts;
mod chain;
mod content;
mod settled;
#[cfg(test)]
mod tests;
mod timing;

use chrono::TimeDelta;
use serde::Serialize;

use super::facts::{Facts, Instant, Neighbour, PinFacts};
use super::lanes::Lanes;
use super::rules::Rules;
use super::{Class, PerSide, Verdict};
use crate::interaction::Side;
use settled::State;

/// What the verdict on one interaction depends on beside its own facts.
#[derive(Debug)]
pub struct Context<'a> {
    /// The database's time when the facts were read.
    pub now: Instant,
    /// Every sighting up to then was there to be read, or lies in a gap.
    pub sighted_until: Instant,
    /// How far Temporal has worked, in due times. Of Postgres the places of its copies say more than any watermark.
    pub temporal_passed: Option<Instant>,
    /// When a side could not work as it should.
    pub disturbances: &'a PerSide<Vec<Span>>,
    /// When sightings may have been lost.
    pub gaps: &'a [Span],
    /// Who overtook whom.
    pub lanes: &'a Lanes,
    /// Bounds that are the same for every kind.
    pub bounds: Bounds,
}

/// Bounds that are the same for every kind.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// What a side was not seen to begin or end so long after it should is not waited for any longer.
    pub patience: TimeDelta,
    /// Two clocks may differ by so much.
    pub clocks: TimeDelta,
    /// After a disturbance a side needs so long to catch up.
    pub recovery: TimeDelta,
}

/// A stretch of time, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its first moment.
    pub from: Instant,
    /// Its last.
    pub until: Instant,
}

/// What the comparator makes of one interaction.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The differences, one of a class and side.
    pub divergences: Vec<Divergence>,
    /// Why the verdict is neither `matched` nor `diverged`.
    pub reason: Option<String>,
    /// Something may still come, without a sighting of it: look again then.
    pub look_again: Option<Instant>,
}

/// One difference between the sides.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Divergence {
    /// Its class.
    pub class: Class,
    /// The side that it was seen on.
    pub side: Side,
    /// What was seen, for a person.
    pub detail: String,
}

impl Span {
    /// Whether the two share a moment.
    pub fn touches(&self, other: Span) -> bool {
        self.from <= other.until && other.from <= self.until
    }
}

impl Context<'_> {
    /// Whether `side` was disturbed, or was still catching up, between two moments.
    fn disturbed(&self, side: Side, from: Instant, until: Instant) -> bool {
        let span = Span { from: from - self.bounds.recovery, until };
        self.disturbances.of(side).iter().any(|disturbance| disturbance.touches(span))
    }

    /// Whether sightings between two moments may be lost.
    fn in_gap(&self, from: Instant, until: Instant) -> bool {
        let span = Span { from: from - self.bounds.clocks, until: until + self.bounds.clocks };
        self.gaps.iter().any(|gap| gap.touches(span))
    }
}

/// What the comparisons find, beside divergences.
#[derive(Default)]
struct Findings {
    divergences: Vec<Divergence>,
    /// What would make it `not_comparable`.
    excuses: Vec<String>,
}

impl Findings {
    fn add(&mut self, class: Class, side: Side, detail: impl Into<String>) {
        self.divergences.push(Divergence { class, side, detail: detail.into() });
    }

    fn excuse(&mut self, why: impl Into<String>) {
        self.excuses.push(why.into());
    }
}

/// Judges one interaction.
pub fn judge(facts: &Facts, rules: &Rules, context: &Context<'_>) -> Judgement {
    let mut found = Findings::default();
    let Some(pin) = &facts.pin else { return extra(facts) };
    content::owner(facts, pin, &mut found);
    if pin.conflict.is_some() {
        return Judgement::diverged(found.divergences, None);
    }
    if pin.epoch > 1 {
        return handed_over(pin, found, context);
    }
    content::unwritten(facts, pin, &mut found);
    let states = PerSide {
        temporal: settled::state(facts, pin, Side::Temporal, context),
        postgres: settled::state(facts, pin, Side::Postgres, context),
    };
    for &side in Side::ALL {
        if let State::Missing(detail) = states.of(side) {
            found.add(Class::Missing, side, detail);
        }
    }
    // What is missing is known for sure, however long the other side takes.
    if let Some(judgement) = unsettled(&states, &found.divergences) {
        return judgement;
    }
    if let Some(wait) = chain::waits(facts, context) {
        return Judgement::in_flight("the member before it has not been seen on both sides", wait, found.divergences);
    }
    compare(facts, pin, rules, context, &mut found);
    conclude(states, found, pin, context)
}

/// Neither copy had the life of one that stays where it was pinned; only what pages somebody counts.
fn handed_over(pin: &PinFacts, found: Findings, context: &Context<'_>) -> Judgement {
    let look_again = pin.ended_at.is_none().then(|| context.now + context.bounds.patience);
    if !found.divergences.is_empty() {
        return Judgement::diverged(found.divergences, look_again);
    }
    match look_again {
        Some(look_again) => Judgement::in_flight("it was handed over and has not ended", look_again, Vec::new()),
        None => Judgement {
            verdict: Verdict::NotComparable,
            divergences: Vec::new(),
            reason: Some(format!("it was handed over to {}, epoch {}", pin.owner, pin.epoch)),
            look_again: None,
        },
    }
}

fn compare(facts: &Facts, pin: &PinFacts, rules: &Rules, context: &Context<'_>, found: &mut Findings) {
    content::read(facts, pin, rules, found);
    // A rehearsal occupies to its bound at most, and a person may take longer: then the sides' turns part.
    let before_parked = |before: &Neighbour| Side::ALL.iter().any(|side| before.sides.of(*side).parked());
    if facts.before.as_ref().is_some_and(before_parked) {
        found.excuse("the member before it was parked");
    } else {
        timing::compare(facts, rules, context, found);
        chain::compare(facts, context, found);
    }
    attempts::repeated(facts, pin, context, found);
    attempts::compare(facts, pin, rules, context, found);
}

/// A side that has not settled yet.
fn unsettled(states: &PerSide<State>, certain: &[Divergence]) -> Option<Judgement> {
    let waits = Side::ALL.iter().filter_map(|side| match states.of(*side) {
        State::InFlight { why, look_again } => Some((*side, why, *look_again)),
        _ => None,
    });
    let waits: Vec<_> = waits.collect();
    let soonest = waits.iter().map(|(.., look_again)| *look_again).min()?;
    let why: Vec<String> = waits.iter().map(|(side, why, _)| format!("{side}: {why}")).collect();
    Some(Judgement::in_flight(why.join("; "), soonest, certain.to_vec()))
}

fn conclude(states: PerSide<State>, found: Findings, pin: &PinFacts, context: &Context<'_>) -> Judgement {
    // What is long due and not ended may still come.
    let look_again = pin.ended_at.is_none().then(|| context.now + context.bounds.patience);
    if !found.divergences.is_empty() {
        return Judgement::diverged(found.divergences, look_again);
    }
    let mut reasons: Vec<(Verdict, String)> =
        found.excuses.into_iter().map(|why| (Verdict::NotComparable, why)).collect();
    for side in Side::ALL {
        let (verdict, why) = match states.of(*side) {
            State::Unseen(why) => (Verdict::Incomplete, why),
            State::Dropped(why) => (Verdict::Dropped, why),
            State::Cut(why) => (Verdict::NotComparable, why),
            State::Settled | State::Missing(_) | State::InFlight { .. } => continue,
        };
        reasons.push((verdict, format!("{side}: {why}")));
    }
    // What has holes is unknown, whatever else is known of it.
    let order = [Verdict::Incomplete, Verdict::Dropped, Verdict::NotComparable];
    let verdict = order.into_iter().find(|verdict| reasons.iter().any(|(of, _)| of == verdict));
    let why: Vec<String> = reasons.into_iter().filter(|(of, _)| Some(*of) == verdict).map(|(_, why)| why).collect();
    let reason = (!why.is_empty()).then(|| why.join("; "));
    Judgement { verdict: verdict.unwrap_or(Verdict::Matched), divergences: Vec::new(), reason, look_again }
}

/// Nobody pinned it, and a side has it all the same.
fn extra(facts: &Facts) -> Judgement {
    let mut found = Findings::default();
    for &side in Side::ALL {
        let at = facts.sides.of(side);
        if let Some(attempt) = at.first().or(at.last()) {
            let mode = if attempt.rehearsal { "rehearsed" } else { "executed" };
            found.add(Class::Extra, side, format!("{mode}, and nobody pinned it"));
        }
    }
    match found.divergences.is_empty() {
        true => Judgement {
            verdict: Verdict::Incomplete,
            divergences: Vec::new(),
            reason: Some("it was seen, but neither pinned nor begun".to_owned()),
            look_again: None,
        },
        false => Judgement::diverged(found.divergences, None),
    }
}

impl Judgement {
    fn diverged(divergences: Vec<Divergence>, look_again: Option<Instant>) -> Self {
        let mut kept: Vec<Divergence> = Vec::with_capacity(divergences.len());
        for divergence in divergences {
            if !kept.iter().any(|k| k.class == divergence.class && k.side == divergence.side) {
                kept.push(divergence);
            }
        }
        Self { verdict: Verdict::Diverged, divergences: kept, reason: None, look_again }
    }

    /// Not settled: in flight, unless something is certain by now.
    fn in_flight(why: impl Into<String>, look_again: Instant, certain: Vec<Divergence>) -> Self {
        if !certain.is_empty() {
            return Self::diverged(certain, Some(look_again));
        }
        let (verdict, reason) = (Verdict::InFlight, Some(why.into()));
        Self { verdict, divergences: certain, reason, look_again: Some(look_again) }
    }
}
