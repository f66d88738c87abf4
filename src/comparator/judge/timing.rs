//! Late and early, on first attempts. A side that is slow as a whole is shown by the paired latencies; late is what was
//! left behind alone.

use chrono::TimeDelta;

use super::settled::words;
use super::{Context, Findings};
use crate::comparator::Class;
use crate::comparator::facts::{Facts, Instant};
use crate::comparator::lanes::Lane;
use crate::comparator::rules::Rules;
use crate::interaction::Side;

/// Compares when the sides began it.
pub(super) fn compare(facts: &Facts, rules: &Rules, context: &Context<'_>, found: &mut Findings) {
    for &side in Side::ALL {
        early(facts, side, rules, context, found);
        late(facts, side, rules, context, found);
    }
}

fn early(facts: &Facts, side: Side, rules: &Rules, context: &Context<'_>, found: &mut Findings) {
    let Some(pin) = &facts.pin else { return };
    for attempt in &facts.sides.of(side).tries {
        let (Some(start), Some(due)) = (attempt.start(), attempt.due_at) else { continue };
        // The due that its copy names may itself be wrong.
        let due = if attempt.fence.attempt == 1 { due.max(pin.run_at) } else { due };
        let clocks = start.clock.map_or(TimeDelta::zero(), |_| context.bounds.clocks);
        if start.at + rules.early + clocks < due {
            let by = words(due - start.at);
            found.add(Class::Early, side, format!("attempt {} began {by} before it was due", attempt.fence.attempt));
            return;
        }
    }
}

fn late(facts: &Facts, side: Side, rules: &Rules, context: &Context<'_>, found: &mut Findings) {
    let (here, there) = (facts.sides.of(side), facts.sides.of(side.other()));
    let (Some(start), Some(due), Some(other)) = (here.start(), here.could_begin_at(), there.start()) else { return };
    if start.at <= due + rules.late || start.at <= other.at + rules.late || given_way(facts, side, start.at) {
        return;
    }
    let Some(lane) = Lane::of(facts, side) else { return };
    let Some(overtaken_by) = context.lanes.overtaken(&lane, due, start.at, rules.late) else { return };
    let detail = format!(
        "began {} after it was due and {} after {}, when work that was due {} later had begun",
        words(start.at - due),
        words(start.at - other.at),
        side.other(),
        words(overtaken_by - due),
    );
    let disturbed = Side::ALL.iter().any(|side| context.disturbed(*side, due, start.at));
    match disturbed || hidden(facts, side, due, start.at, context) {
        true => found.excuse(format!("{side} {detail}, but it was disturbed or not seen meanwhile")),
        false => found.add(Class::Late, side, detail),
    }
}

/// Whether it may have begun before, unseen.
fn hidden(facts: &Facts, side: Side, due: Instant, start: Instant, context: &Context<'_>) -> bool {
    let sighted = facts.sides.of(side).start().is_some_and(|start| start.sighted);
    !sighted || context.in_gap(due, start)
}

/// Whether the member after it was begun before it: that is a matter of order, and not its fault.
fn given_way(facts: &Facts, side: Side, start: Instant) -> bool {
    let after = facts.after.as_ref().and_then(|after| after.sides.of(side).start());
    after.is_some_and(|after| after.at < start)
}
