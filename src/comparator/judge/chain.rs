//! Order and overlap in a series. Rehearsals neither hold nor relax the chain (one may outlast its real run), so they
//! are judged for order only.

use chrono::TimeDelta;

use super::settled::words;
use super::{Context, Findings};
use crate::comparator::Class;
use crate::comparator::facts::{Facts, Instant, Neighbour, SideFacts, Start};
use crate::interaction::Side;

/// Compares a member with the one before it.
pub(super) fn compare(facts: &Facts, context: &Context<'_>, found: &mut Findings) {
    let Some(before) = &facts.before else { return };
    for &side in Side::ALL {
        order(facts, before, side, context, found);
    }
    overlap(facts, before, context, found);
}

/// When to look again, where the member before it was not seen yet on a side that has begun this one: it may come.
pub(super) fn waits(facts: &Facts, context: &Context<'_>) -> Option<Instant> {
    let before = facts.before.as_ref()?;
    let open = |side: Side| {
        let (own, earlier) = (facts.sides.of(side).start()?, before.sides.of(side));
        let to_come = before.ended_at.is_none() || earlier.waits.is_some() || !before.settled;
        let waits = earlier.start().is_none() && to_come && context.now < own.at + context.bounds.patience;
        waits.then_some(context.now + TimeDelta::milliseconds(500))
    };
    Side::ALL.iter().find_map(|side| open(*side))
}

fn order(facts: &Facts, before: &Neighbour, side: Side, context: &Context<'_>, found: &mut Findings) {
    let (Some(own), Some(earlier)) = (facts.sides.of(side).start(), before.sides.of(side).start()) else { return };
    // A rehearsal does not hold the chain, so the next one may be beside it in the queue, and be taken first by priority.
    let passes = facts.pin.as_ref().is_some_and(|pin| pin.priority > before.priority);
    if passes && facts.sides.of(side).first().is_some_and(|t| t.rehearsal) {
        return;
    }
    // After a flip the member before it may only be rehearsed here: its rehearsal neither holds an execution up nor keeps
    // its place before one. Whether the executions overlapped is judged across both sides.
    let executes = |at: &SideFacts| at.first().is_some_and(|t| !t.rehearsal);
    if executes(facts.sides.of(side)) && !executes(before.sides.of(side)) {
        return;
    }
    // One that is only recorded may have begun before, unseen, and been handed back.
    if !own.sighted || !earlier.sighted || own.at + slack(own, earlier, context) >= earlier.at {
        return;
    }
    if context.in_gap(own.at.min(before.created_at.max(own.at - context.bounds.patience)), earlier.at) {
        return found.excuse(format!("{side}: its order was not seen whole"));
    }
    if before.sides.of(side).tries.iter().any(|t| t.fence.epoch > 1) {
        return found.excuse(format!("{side}: the member before it was handed over in between"));
    }
    let by = words(earlier.at - own.at);
    found.add(Class::Order, side, format!("began {by} before the member before it, {}", before.id));
}

fn overlap(facts: &Facts, before: &Neighbour, context: &Context<'_>, found: &mut Findings) {
    let began = |at: &SideFacts| at.executions().filter_map(|t| t.start()).min_by_key(|s| s.at);
    let own =
        Side::ALL.iter().filter_map(|side| Some((*side, began(facts.sides.of(*side))?))).min_by_key(|(_, s)| s.at);
    let Some((side, own)) = own else { return };
    for &there in Side::ALL {
        let Some(last) = before.sides.of(there).executions().last() else { continue };
        let Some(start) = last.start() else { continue };
        // An attempt that was lost with its worker has an old fence: what it did later is refused.
        let ended = match &last.end {
            Some(end) if !last.lost() => end.at,
            Some(_) => continue,
            None if before.ended_at.is_none() => context.now,
            None => continue,
        };
        if own.at + context.bounds.clocks < ended && start.at < ended {
            let by = words(ended - own.at);
            let detail = format!("began {by} before the member before it, {}, had ended on {there}", before.id);
            found.add(Class::Overlap, side, detail);
        }
    }
}

/// Two starts by one clock compare as they are.
fn slack(one: Start, other: Start, context: &Context<'_>) -> TimeDelta {
    if one.clock == other.clock { TimeDelta::zero() } else { context.bounds.clocks }
}
