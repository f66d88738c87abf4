//! What waits on the Postgres side, by group. Groups are the callers' words and may be many: the deepest few are
//! shown, the others together.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{GaugeVec, IntCounter, IntGaugeVec};

use super::{Registering, float_gauges, gauges, register};
use crate::queue::GroupDepth;
use crate::queue::groups::Pass;

/// Groups with a line of their own.
pub const SHOWN: usize = 20;
/// The line of all others. A group of that very name would be counted with them.
pub const OTHERS: &str = "(other)";

/// Depth and age of the ready set by group, and the gate.
pub struct GroupMetrics {
    ready: IntGaugeVec,
    oldest: GaugeVec,
    waiting: IntGaugeVec,
    admitted: IntCounter,
    strays: IntCounter,
    gave_way: IntCounter,
    /// Work refused because too much of its group waits.
    pub refused: IntCounter,
    shown: Mutex<HashSet<String>>,
}

impl GroupMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            ready: gauges(
                r,
                "crossover_group_ready_rows",
                "Copies that could start now, by group: the 20 deepest groups among the 50,000 copies next in line and 50,000 at gates, the rest as (other).",
                &["group"],
            )?,
            oldest: float_gauges(
                r,
                "crossover_group_oldest_seconds",
                "Seconds for which the oldest ready copy of a group has been due, for the groups of crossover_group_ready_rows. One group alone: its limit or its runner; all of them: too few workers.",
                &["group"],
            )?,
            waiting: gauges(
                r,
                "crossover_group_waiting_rows",
                "Copies that wait at the gate of a group with limits, for the groups of crossover_group_ready_rows, counted among 50,000. Growing: its limit, rate or pause lets less through than comes in; `crossover group list` shows which.",
                &["group"],
            )?,
            admitted: register(
                r,
                IntCounter::new(
                    "crossover_group_admitted_total",
                    "Copies that passes of this worker admitted to groups with limits. Standing still in every worker while crossover_group_waiting_rows does not: the groups are full or paused, or passes fail (crossover_queue_errors_total, call admit).",
                )?,
            )?,
            strays: register(
                r,
                IntCounter::new(
                    "crossover_group_strays_total",
                    "Copies that were ready before their group had limits, and that passes of this worker took to the gate.",
                )?,
            )?,
            gave_way: register(
                r,
                IntCounter::new(
                    "crossover_group_gave_way_total",
                    "Rehearsals whose real run had not begun, and that gave their place in a full group to an execution. Rising: Temporal runs late, and its rehearsals would hold up what Postgres owns.",
                )?,
            )?,
            refused: register(
                r,
                IntCounter::new(
                    "crossover_group_refused_total",
                    "Work that this router refused with 429 because as much of its group waits as its max_waiting allows.",
                )?,
            )?,
            shown: Mutex::default(),
        })
    }

    /// Shows these groups, and no longer what is empty by now.
    pub fn show(&self, groups: &[GroupDepth]) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        for group in groups {
            self.ready.with_label_values(&[&group.name]).set(group.ready);
            self.oldest.with_label_values(&[&group.name]).set(group.oldest_seconds);
            self.waiting.with_label_values(&[&group.name]).set(group.waiting);
        }
        let now: HashSet<String> = groups.iter().map(|group| group.name.clone()).collect();
        for gone in shown.difference(&now) {
            // Only what this shows can be gone, so there is nothing to miss.
            let _ = (self.ready.remove_label_values(&[gone]), self.oldest.remove_label_values(&[gone]));
            let _ = self.waiting.remove_label_values(&[gone]);
        }
        *shown = now;
    }

    /// Counts what a pass at the gate did.
    pub fn passed(&self, pass: &Pass) {
        self.admitted.inc_by(pass.admitted.unsigned_abs());
        self.strays.inc_by(pass.strays.unsigned_abs());
        self.gave_way.inc_by(pass.gave_way.unsigned_abs());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn group(name: &str, ready: i64) -> GroupDepth {
        GroupDepth { name: name.to_owned(), ready, waiting: 2, oldest_seconds: 1.5 }
    }

    #[test]
    fn a_group_that_is_empty_by_now_is_no_longer_shown() {
        let metrics = Metrics::new().unwrap();
        metrics.groups.show(&[group("mail", 3), group(OTHERS, 9)]);
        metrics.groups.show(&[group(OTHERS, 8)]);
        let text = metrics.render().unwrap();
        assert!(!text.contains("mail"), "{text}");
        assert!(text.contains("crossover_group_ready_rows{group=\"(other)\"} 8"), "{text}");
    }
}
