//! How often each side tried, how long it waited in between, and how it ended.

use chrono::TimeDelta;

use super::settled::words;
use super::{Context, Findings};
use crate::comparator::Class;
use crate::comparator::facts::{Facts, PinFacts, SideFacts, Try};
use crate::comparator::rules::Rules;
use crate::interaction::{Outcome, Side};

/// Finds attempts that began twice under the same number. One that was handed back in between, redelivered or taken over
/// is innocent: the first is noted, the others have another number.
pub(super) fn repeated(facts: &Facts, pin: &PinFacts, context: &Context<'_>, found: &mut Findings) {
    for &side in Side::ALL {
        for attempt in facts.sides.of(side).tries.iter().filter(|t| t.dequeues.len() > t.releases + 1) {
            let first = attempt.dequeues.iter().map(|d| d.at).min().unwrap_or(pin.created_at);
            let last = attempt.dequeues.iter().map(|d| d.at).max().unwrap_or(first);
            let detail = format!("attempt {} began {} times", attempt.fence, attempt.dequeues.len() - attempt.releases);
            if pin.swept && side == Side::Temporal {
                found.excuse(format!("{side}: {detail}, but it was delivered again after it seemed lost"));
            } else if context.in_gap(first, last) || context.disturbed(side, first, last) {
                found.excuse(format!("{side}: {detail}, but that it was handed back may not have been seen"));
            } else {
                found.add(Class::Duplicate, side, detail);
            }
        }
    }
}

/// Compares the attempts of both sides, where both have made all of theirs.
pub(super) fn compare(facts: &Facts, pin: &PinFacts, rules: &Rules, context: &Context<'_>, found: &mut Findings) {
    let rehearsing = pin.owner.other();
    let (real, rehearsal) = (facts.sides.of(pin.owner), facts.sides.of(rehearsing));
    let (Some(last_real), Some(last)) = (real.last(), rehearsal.last()) else { return };
    if pin.ended_at.is_none() || last.end.as_ref().is_none_or(|end| end.outcome.is_none()) {
        return;
    }
    if real.parked() {
        return found.excuse("an attempt's effect was unknown, and a person said what followed");
    }
    // What the ledger was never told of, the rehearsal could not follow.
    let told = real.tries.iter().all(|t| t.recorded_at.is_some());
    if !told || !whole(real) || !whole(rehearsal) {
        return found.excuse("an attempt, or the record of it, was lost with its worker");
    }
    let same = last_real.fence.attempt == last.fence.attempt && waits(real, rehearsal, rules).is_none();
    if !same && pin.outcome == Some(Outcome::Cancelled) {
        return found.excuse("it was cancelled, and one side heard of it before another attempt and one after");
    }
    if last_real.fence.attempt != last.fence.attempt {
        let detail = format!("it made {} attempts, {} made {}", last.fence.attempt, pin.owner, last_real.fence.attempt);
        return found.add(Class::Attempts, rehearsing, detail);
    }
    if let Some(detail) = waits(real, rehearsal, rules) {
        return found.add(Class::Attempts, rehearsing, detail);
    }
    for &side in Side::ALL {
        if let Some((attempt, by)) = postponed(facts.sides.of(side), rules, context) {
            let detail = format!("attempt {attempt} was due {by} later than the wait before it says");
            match context.disturbed(side, pin.created_at, context.now) {
                true => found.excuse(format!("{side}: {detail}, but it was disturbed")),
                false => found.add(Class::Attempts, side, detail),
            }
        }
    }
    let outcome = last.end.as_ref().and_then(|end| end.outcome);
    if let (Some(rehearsed), Some(ended)) = (outcome, pin.outcome)
        && rehearsed != ended
    {
        found.add(Class::Outcome, rehearsing, format!("it {rehearsed}, {} says {ended}", pin.owner));
    }
}

/// Whether every attempt from the first to the last has an end, and none ended because of its worker. One that is followed by
/// another without having announced it is one whose end was not taken.
fn whole(at: &SideFacts) -> bool {
    let numbers = at.tries.iter().map(|t| t.fence.attempt);
    let announced = |t: &Try| t.end.as_ref().is_some_and(|end| end.retry.is_some());
    let followed = at.tries.len().saturating_sub(1);
    numbers.eq(1..=at.tries.len() as i32)
        && at.tries.iter().all(|t| t.end.is_some() && !t.lost())
        && at.tries.iter().take(followed).all(announced)
}

/// Where the sides chose different waits after the same attempt.
fn waits(real: &SideFacts, rehearsal: &SideFacts, rules: &Rules) -> Option<String> {
    let retry = |t: &Try| t.end.as_ref().and_then(|end| end.retry);
    real.tries.iter().zip(&rehearsal.tries).find_map(|(a, b)| {
        let (one, other) = (retry(a), retry(b));
        let differ = match (one, other) {
            (Some(one), Some(other)) => (one - other).abs() > rules.retry,
            (None, None) => false,
            _ => true,
        };
        let said = |wait: Option<TimeDelta>| wait.map_or("none".to_owned(), words);
        differ.then(|| {
            format!("after attempt {} it waits {}, the other side {}", a.fence.attempt, said(other), said(one))
        })
    })
}

/// An attempt that was due later than the one before it had announced.
fn postponed(at: &SideFacts, rules: &Rules, context: &Context<'_>) -> Option<(i32, String)> {
    at.tries.windows(2).find_map(|pair| {
        let end = pair[0].end.as_ref()?;
        let by = pair[1].due_at? - (end.at + end.retry?);
        (by > rules.retry + context.bounds.clocks).then(|| (pair[1].fence.attempt, words(by)))
    })
}
