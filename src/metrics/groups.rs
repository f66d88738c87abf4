//! What waits on the Postgres side, by group. Groups are the callers' words and may be many: the deepest few are
//! shown, the others together.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use prometheus::{GaugeVec, IntGaugeVec};

use super::{Registering, float_gauges, gauges};
use crate::queue::GroupDepth;

/// Groups with a line of their own.
pub const SHOWN: usize = 20;
/// The line of all others. A group of that very name would be counted with them.
pub const OTHERS: &str = "(other)";

/// Depth and age of the ready set, by group.
pub struct GroupMetrics {
    ready: IntGaugeVec,
    oldest: GaugeVec,
    shown: Mutex<HashSet<String>>,
}

impl GroupMetrics {
    pub(super) fn register(r: &mut Registering) -> Result<Self, prometheus::Error> {
        Ok(Self {
            ready: gauges(
                r,
                "crossover_group_ready_rows",
                "Copies that could start now, by group: the 20 deepest groups among the 50,000 copies next in line, the rest as (other).",
                &["group"],
            )?,
            oldest: float_gauges(
                r,
                "crossover_group_oldest_seconds",
                "Seconds for which the oldest ready copy of a group has been due, for the groups of crossover_group_ready_rows. One group alone: its limit or its runner; all of them: too few workers.",
                &["group"],
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
        }
        let now: HashSet<String> = groups.iter().map(|group| group.name.clone()).collect();
        for gone in shown.difference(&now) {
            // Only what this shows can be gone, so there is nothing to miss.
            let _ = (self.ready.remove_label_values(&[gone]), self.oldest.remove_label_values(&[gone]));
        }
        *shown = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    fn group(name: &str, ready: i64) -> GroupDepth {
        GroupDepth { name: name.to_owned(), ready, oldest_seconds: 1.5 }
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
