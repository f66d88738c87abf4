//! Who overtook whom. A lane is work that one side takes in the order in which it is due; for each, what was the latest
//! due that had begun by when. Bounded: a long run is remembered coarsely, and only so far back.

use std::collections::{BTreeMap, HashMap};

use chrono::TimeDelta;

use super::PerSide;
use super::facts::{Facts, Instant};
use crate::interaction::Side;

/// Work that one side takes in order.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The side.
    pub side: Side,
    /// Rehearsals give way to executions.
    pub rehearsal: bool,
    /// The sub-queue.
    pub group: String,
    /// Higher first.
    pub priority: i16,
    /// A member of a series is due when its turn comes.
    pub in_series: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Lanes {
    /// Began at, and the latest due that had begun by then. Both ascend.
    steps: HashMap<Lane, BTreeMap<Instant, Instant>>,
    highest: PerSide<Option<Instant>>,
}

/// Lanes that are remembered.
const LANES: usize = 512;
/// Steps that are remembered of a lane.
const STEPS: usize = 1_024;
/// A step that brings the due forward by less is not kept.
const GRAIN: TimeDelta = TimeDelta::milliseconds(100);

impl Lane {
    /// The lane of `facts` on `side`; none where it has not begun there, or was never pinned.
    pub fn of(facts: &Facts, side: Side) -> Option<Lane> {
        let pin = facts.pin.as_ref()?;
        Some(Lane {
            side,
            rehearsal: facts.sides.of(side).first()?.rehearsal,
            group: pin.group.clone(),
            priority: pin.priority,
            in_series: pin.series_no.is_some(),
        })
    }
}

impl Lanes {
    /// Takes in when both sides began `facts`.
    pub fn note(&mut self, facts: &Facts) {
        for &side in Side::ALL {
            let at = facts.sides.of(side);
            if let (Some(lane), Some(due), Some(start)) = (Lane::of(facts, side), at.could_begin_at(), at.start()) {
                self.began(lane, due, start.at);
            }
        }
    }

    /// Takes in that work of `lane` that was due at `due` began at `at`.
    pub fn began(&mut self, lane: Lane, due: Instant, at: Instant) {
        let highest = self.highest.of_mut(lane.side);
        *highest = (*highest).max(Some(due));
        if self.steps.len() >= LANES && !self.steps.contains_key(&lane) {
            self.forget_one();
        }
        let steps = self.steps.entry(lane).or_default();
        if steps.range(..=at).next_back().is_some_and(|(_, highest)| *highest + GRAIN > due) {
            return;
        }
        let passed: Vec<Instant> =
            steps.range(at..).take_while(|(_, later)| **later <= due).map(|(at, _)| *at).collect();
        for at in passed {
            steps.remove(&at);
        }
        steps.insert(at, due);
        if steps.len() > STEPS {
            steps.pop_first();
        }
    }

    /// The latest due of `lane` that had begun before `at`, if it is later than `due` by more than `tolerance`.
    pub fn overtaken(&self, lane: &Lane, due: Instant, at: Instant, tolerance: TimeDelta) -> Option<Instant> {
        let (_, highest) = self.steps.get(lane)?.range(..at).next_back()?;
        (*highest > due + tolerance).then_some(*highest)
    }

    /// The latest due of everything that was seen to begin on `side`.
    pub fn highest(&self, side: Side) -> Option<Instant> {
        *self.highest.of(side)
    }

    fn forget_one(&mut self) {
        let newest = |steps: &BTreeMap<Instant, Instant>| steps.last_key_value().map(|(at, _)| *at);
        let oldest = self.steps.iter().min_by_key(|(_, steps)| newest(steps)).map(|(lane, _)| lane.clone());
        oldest.map(|lane| self.steps.remove(&lane));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lane() -> Lane {
        Lane { side: Side::Postgres, rehearsal: true, group: "default".into(), priority: 0, in_series: false }
    }

    fn at(seconds: i64) -> Instant {
        Instant::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn what_began_before_it_and_was_due_after_it_has_overtaken_it() {
        let mut lanes = Lanes::default();
        lanes.began(lane(), at(10), at(11));
        lanes.began(lane(), at(5), at(20));
        let tolerance = TimeDelta::seconds(2);
        assert_eq!(lanes.overtaken(&lane(), at(5), at(20), tolerance), Some(at(10)));
        assert_eq!(lanes.overtaken(&lane(), at(9), at(20), tolerance), None, "within the tolerance");
        assert_eq!(lanes.overtaken(&lane(), at(5), at(11), tolerance), None, "it began no later");
        assert_eq!(lanes.overtaken(&Lane { priority: 1, ..lane() }, at(5), at(20), tolerance), None, "another lane");
    }

    #[test]
    fn the_order_of_arrival_does_not_matter() {
        let tolerance = TimeDelta::seconds(1);
        let began = [(at(1), at(1)), (at(9), at(2)), (at(3), at(3)), (at(12), at(4)), (at(5), at(6))];
        for turn in 0..began.len() {
            let mut lanes = Lanes::default();
            began.iter().cycle().skip(turn).take(began.len()).for_each(|(due, at)| lanes.began(lane(), *due, *at));
            assert_eq!(lanes.overtaken(&lane(), at(5), at(4), tolerance), Some(at(9)), "turned by {turn}");
            assert_eq!(lanes.overtaken(&lane(), at(5), at(6), tolerance), Some(at(12)), "turned by {turn}");
            assert_eq!(lanes.highest(Side::Postgres), Some(at(12)));
        }
    }

    #[test]
    fn its_memory_is_bounded() {
        let mut lanes = Lanes::default();
        for n in 0..(STEPS as i64 * 3) {
            lanes.began(lane(), at(n), at(n));
        }
        (0..LANES * 2).for_each(|n| lanes.began(Lane { group: n.to_string(), ..lane() }, at(n as i64), at(n as i64)));
        assert!(lanes.steps.len() <= LANES && lanes.steps.values().all(|steps| steps.len() <= STEPS));
    }
}
