//! Where a side stands with an interaction: whether something is still to come, and if not, why nothing came.

use chrono::TimeDelta;

use super::Context;
use crate::comparator::facts::{Facts, Instant, PinFacts, Place, SideFacts, Try};
use crate::interaction::{Outcome, Side};
use crate::ledger::LEFT_OUT;

/// Where a side stands.
#[derive(Debug, PartialEq)]
pub(super) enum State {
    /// It began it, and its last attempt has ended.
    Settled,
    /// Something is still to come.
    InFlight { why: String, look_again: Instant },
    /// It should have begun it and never did.
    Missing(String),
    /// It left it out on purpose.
    Dropped(String),
    /// It began it, and its end says nothing: bounded, or lost on its way. Or there was no room to begin it.
    Cut(String),
    /// What it did can't be told from what was seen.
    Unseen(String),
}

/// How soon to look again at what moves by itself.
const SOON: TimeDelta = TimeDelta::milliseconds(500);

/// Where `side` stands with it.
pub(super) fn state(facts: &Facts, pin: &PinFacts, side: Side, context: &Context<'_>) -> State {
    let at = facts.sides.of(side);
    if !*pin.copies.of(side) {
        return State::Dropped(format!("stage {} has no copy there", pin.stage));
    }
    // A copy without a pin may have run before this one was pinned; its end was taken over.
    let begun = at.tries.iter().any(|t| !t.dequeues.is_empty());
    if let Some(why) = at.skipped.as_ref().filter(|_| !begun && at.waits.is_none()) {
        return match why == LEFT_OUT {
            // It was meant to be rehearsed, and there was no room for it: nobody's purpose and nobody's fault.
            true => State::Cut(why.clone()),
            false => State::Dropped(why.clone()),
        };
    }
    let state = match (pin.owner == side, at.last()) {
        (_, None) => never_began(facts, pin, side, context),
        (true, Some(_)) if pin.ended_at.is_none() => waiting("it runs, or runs again", context),
        (true, Some(_)) => State::Settled,
        (false, Some(last)) => rehearsed(at, last, pin, side, context),
    };
    match state {
        State::InFlight { .. } => state,
        // Judged on durable records alone, sightings would seem to lack that are only on their way.
        _ if at.heard_at().max(pin.ended_at).is_some_and(|heard| heard > context.sighted_until) => {
            waiting("its sightings are on their way", context)
        }
        State::Settled => unseen(at, context).unwrap_or(State::Settled),
        state => state,
    }
}

/// An attempt that is recorded and was not seen to begin: its payload, its group and its repetitions are unknown.
fn unseen(at: &SideFacts, context: &Context<'_>) -> Option<State> {
    let blind = at.tries.iter().find(|t| t.dequeues.is_empty())?;
    let began = blind.recorded_at.unwrap_or(context.now);
    Some(match context.in_gap(began, began) {
        true => State::Unseen(format!("attempt {} began in a gap of its observer", blind.fence.attempt)),
        false => State::Unseen(format!("attempt {} was not seen to begin", blind.fence.attempt)),
    })
}

fn never_began(facts: &Facts, pin: &PinFacts, side: Side, context: &Context<'_>) -> State {
    let at = facts.sides.of(side);
    if let Some(place) = at.waits {
        // What has ended does not wait for its time.
        let waits = place == Place::Scheduled && pin.ended_at.is_none();
        let due = if waits { pin.run_at } else { context.now };
        let look_again = (due + SOON).max(context.now + SOON);
        return State::InFlight { why: format!("it {}", place.as_str()), look_again };
    }
    let ran = Side::ALL.iter().any(|side| facts.sides.of(*side).executions().next().is_some());
    if let (Some(outcome), false) = (pin.outcome, ran) {
        let why = pin.reason.as_deref().unwrap_or("no reason is known");
        return match outcome {
            Outcome::Succeeded => State::Unseen("it succeeded without a recorded attempt".to_owned()),
            outcome => State::Dropped(format!("it {outcome} before it ran: {why}")),
        };
    }
    if ended_before_its_turn(facts, pin, side) {
        return State::Dropped("it had ended before its turn in the series came".to_owned());
    }
    // Without an end there must be a reason to believe that none will come.
    let due = due_on(facts, pin, side);
    let known = |what: &str| match pin.ended_at {
        Some(_) => {
            format!("{what}, though {} {} it", side.other(), if pin.owner == side { "saw the end of" } else { "ran" })
        }
        None => format!("{what}, and it has been due for {}", words(context.now - due)),
    };
    if pin.ended_at.is_none() && context.now < due + context.bounds.patience {
        return State::InFlight { why: "it is not due for long".to_owned(), look_again: due.max(context.now) + SOON };
    }
    match side {
        // Its copy is in one of the queue's places or has left an attempt: the record has no holes.
        Side::Postgres => State::Missing(known("no copy waits, runs or ran")),
        Side::Temporal => not_on_temporal(facts, due, known("it was delivered and never began"), context),
    }
}

/// Temporal can't be looked into cheaply, so what it has worked past stands for it.
fn not_on_temporal(facts: &Facts, due: Instant, missing: String, context: &Context<'_>) -> State {
    if facts.before.as_ref().is_some_and(|before| !before.settled) {
        return waiting("the member before it has not settled", context);
    }
    // What observers have not written yet may be just this.
    let known_until = context.now.min(context.sighted_until);
    let disturbed = context.disturbed(Side::Temporal, due, context.now);
    // Temporal keeps no strict order between its queue's partitions.
    let passed = context.temporal_passed.is_some_and(|passed| passed > due + context.bounds.patience);
    if known_until <= due + context.bounds.patience {
        return waiting("its side may not have come to it yet", context);
    }
    match (passed && !disturbed, context.in_gap(due, context.now)) {
        (true, false) => State::Missing(missing),
        (true, true) => State::Unseen("it may have begun in a gap of its observer".to_owned()),
        // Waiting has an end; a sighting that comes after it opens the case again.
        (false, _) if context.now > due + context.bounds.patience * 20 => {
            State::Unseen("its side was disturbed, or began nothing that was due later".to_owned())
        }
        (false, _) => waiting("its side may not have come to it yet", context),
    }
}

/// From when on a side could have begun it.
fn due_on(facts: &Facts, pin: &PinFacts, side: Side) -> Instant {
    let delivered = facts.sides.of(side).delivered.map(|d| d.at);
    let before = facts.before.as_ref();
    let its_turn = before.and_then(|b| b.sides.of(side).last()?.end.as_ref().map(|end| end.at));
    let ended_before = before.and_then(|b| b.ended_at);
    [Some(pin.run_at), Some(pin.created_at), delivered, its_turn, ended_before]
        .into_iter()
        .flatten()
        .max()
        .unwrap_or(pin.run_at)
}

/// Postgres places the copy of a member when everything before it has ended; one that has ended by then gets none.
fn ended_before_its_turn(facts: &Facts, pin: &PinFacts, side: Side) -> bool {
    let (Some(before), Some(ended), Side::Postgres) = (&facts.before, pin.ended_at, side) else { return false };
    before.ended_at.is_none_or(|before| before > ended)
}

fn rehearsed(at: &SideFacts, last: &Try, pin: &PinFacts, side: Side, context: &Context<'_>) -> State {
    if let Some(place) = at.waits {
        return waiting(place.as_str(), context);
    }
    let Some(end) = &last.end else {
        let began = last.start().map_or(pin.created_at, |start| start.at);
        return match context.now < began.max(pin.ended_at.unwrap_or(began)) + context.bounds.patience {
            true => waiting("its end was not seen yet", context),
            false => State::Cut("its end was never reported".to_owned()),
        };
    };
    match (end.retry, end.outcome) {
        // Where a copy waits for it, Postgres shows it; Temporal does not.
        (Some(retry), _) if side == Side::Temporal && context.now < end.at + retry + context.bounds.patience => {
            waiting("another attempt is to follow", context)
        }
        (None, None) => State::Cut(end.error.clone().unwrap_or_else(|| "it was bounded".to_owned())),
        _ if pin.ended_at.is_none() => waiting("the real run has not ended", context),
        _ => State::Settled,
    }
}

fn waiting(why: &str, context: &Context<'_>) -> State {
    State::InFlight { why: why.to_owned(), look_again: context.now + SOON }
}

/// A span of time as people say it.
pub(super) fn words(span: TimeDelta) -> String {
    let span = span.abs().to_std().unwrap_or_default();
    let rounded = std::time::Duration::from_millis(span.as_millis() as u64);
    humantime::format_duration(rounded).to_string()
}
