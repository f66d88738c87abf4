//! What the copies said, and who ran them.

use super::Findings;
use crate::comparator::Class;
use crate::comparator::facts::{Facts, PinFacts};
use crate::comparator::rules::Rules;
use crate::interaction::{Side, hex};

/// What somebody must look at at once: another owner's copy, and an effect on the side that does not own it.
pub(super) fn owner(facts: &Facts, pin: &PinFacts, found: &mut Findings) {
    if let Some(conflict) = &pin.conflict {
        found.add(Class::OwnerConflict, Side::Temporal, conflict.clone());
    }
    let stranger = pin.owner.other();
    // In whatever epoch: only what was never claimed is handed over.
    let runs = facts.sides.of(stranger).executions().next();
    if let Some(run) = runs {
        let detail = format!("attempt {} was executed, and {} owns it", run.fence, pin.owner);
        found.add(Class::UnclaimedEffect, stranger, detail);
    }
}

/// A side that its stage does not write to has it all the same.
pub(super) fn unwritten(facts: &Facts, pin: &PinFacts, found: &mut Findings) {
    for &side in Side::ALL {
        if !pin.copies.of(side) && facts.sides.of(side).last().is_some() {
            found.add(Class::Extra, side, format!("it began there, and stage {} writes no copy to it", pin.stage));
        }
    }
}

/// Compares what each side read with the pin.
pub(super) fn read(facts: &Facts, pin: &PinFacts, rules: &Rules, found: &mut Findings) {
    for &side in Side::ALL {
        for read in facts.sides.of(side).tries.iter().flat_map(|t| &t.read) {
            if read.kind != pin.kind || read.group != pin.group {
                let detail = format!(
                    "its copy is of kind {} and group {}, the pin of {} and {}",
                    read.kind, read.group, pin.kind, pin.group
                );
                found.add(Class::Routing, side, detail);
            }
            let same = || read.payload.as_ref().zip(pin.payload.as_ref()).is_some_and(|(a, b)| rules.same(a, b));
            if read.payload_hash[..] != pin.payload_hash[..] && !same() {
                let (there, pinned) =
                    (hex(&read.payload_hash[..4]), hex(&pin.payload_hash[..pin.payload_hash.len().min(4)]));
                found.add(Class::Payload, side, format!("it read a payload of hash {there}…, pinned was {pinned}…"));
            }
        }
    }
}
