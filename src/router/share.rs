//! Who comes next among accounts: Start-time Fair Queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Pure.
//!
//! Each task is stamped with a virtual start time: where its account's task before it ended, but not before what is being
//! claimed now. So an account that floods stamps itself into the future, and whoever has nothing waiting comes next.
//! Every router stamps for itself: an account that floods through three routers has three shares.
//!
//! A group with limits has a virtual time of its own: what waits at its gate says nothing of an account's share elsewhere, nor the other way
//! round. Its stamps are odd, and all others even, so that a claim tells them apart.

use std::collections::HashMap;

use crate::queue::tasks::Place;

/// Stamps of one router.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// Of all groups without limits together.
    all: Clock,
    /// Of each that has limits.
    groups: HashMap<String, Clock>,
    /// What accounts count that don't count 1.
    weights: HashMap<String, f64>,
}

/// A virtual time.
#[derive(Debug, Default)]
struct Clock {
    /// How far claims, or a gate, have come.
    now: i64,
    /// Where each account's last task ends; accounts whose end has passed have no place.
    ends: HashMap<String, i64>,
}

/// What a task of an account of weight 1 takes of virtual time.
const TASK: i64 = 2_000;
/// Beyond these an account's tasks would take so much or so little of it that nothing is left of the others' shares.
const WEIGHTS: std::ops::RangeInclusive<f64> = 0.001..=1_000.0;
/// Places of accounts whose end has passed are given up when there are so many.
const CROWD: usize = 10_000;

impl Shares {
    /// Claims have come so far; never back.
    pub(super) fn advance(&mut self, now: i64) {
        self.all.now = self.all.now.max(now);
    }

    /// These groups have limits, and their gates have come so far; no others have.
    pub(super) fn limited(&mut self, groups: Vec<(String, i64)>) {
        let mut known = std::mem::take(&mut self.groups);
        self.groups.extend(groups.into_iter().map(|(group, now)| {
            let mut clock = known.remove(&group).unwrap_or_default();
            clock.now = clock.now.max(now);
            (group, clock)
        }));
    }

    /// From now on these accounts count so much, and all others 1.
    pub(super) fn weigh(&mut self, weights: HashMap<String, f64>) {
        let bounded = |weight: f64| if weight.is_nan() { 1.0 } else { weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) };
        self.weights = weights.into_iter().map(|(account, weight)| (account, bounded(weight))).collect();
    }

    /// Stamps the next task of `account` in `group`.
    pub(super) fn stamp(&mut self, account: &str, group: &str) -> i64 {
        let weight = self.weights.get(account).copied().unwrap_or(1.0);
        match self.groups.get_mut(group) {
            Some(clock) => Place::in_group(clock.stamp(account, weight)),
            None => self.all.stamp(account, weight),
        }
    }
}

impl Clock {
    /// An even number.
    fn stamp(&mut self, account: &str, weight: f64) -> i64 {
        if self.ends.len() >= CROWD && !self.ends.contains_key(account) {
            self.ends.retain(|_, end| *end > self.now);
        }
        let now = self.now.saturating_add(self.now & 1);
        let start = self.ends.get(account).copied().unwrap_or(now).max(now);
        let end = start.saturating_add(((TASK as f64 / 2.0 / weight) as i64).max(1) * 2);
        match self.ends.get_mut(account) {
            Some(place) => *place = end,
            None => drop(self.ends.insert(account.to_owned(), end)),
        }
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_account_lets_the_next_task_of_another_pass() {
        let mut shares = Shares::default();
        let flood: Vec<i64> = (0..1_000).map(|_| shares.stamp("flood", "g")).collect();
        assert!(flood.windows(2).all(|pair| pair[0] < pair[1]), "its own order is kept");
        assert_eq!(shares.stamp("quiet", "g"), flood[0]);
        shares.advance(flood[500]);
        assert_eq!(shares.stamp("quiet", "g"), flood[500], "right behind what is being claimed");
    }

    #[test]
    fn accounts_that_flood_alike_take_turns() {
        let mut shares = Shares::default();
        let mut stamps: Vec<(i64, &str)> = (0..100).map(|_| (shares.stamp("a", "g"), "a")).collect();
        stamps.extend((0..100).map(|_| (shares.stamp("b", "g"), "b")));
        stamps.sort();
        assert!(stamps.chunks(2).all(|pair| pair[0].1 != pair[1].1));
    }

    #[test]
    fn an_account_of_weight_three_comes_three_times_as_often_as_one_of_weight_one() {
        let mut shares = Shares::default();
        shares.weigh(HashMap::from([("heavy".to_owned(), 3.0), ("light".to_owned(), 0.5)]));
        let each = ["heavy", "plain", "light"].into_iter().flat_map(|account| std::iter::repeat_n(account, 300));
        let mut stamps: Vec<(i64, &str)> = each.map(|account| (shares.stamp(account, "g"), account)).collect();
        stamps.sort();
        let of = |account| stamps[..180].iter().filter(|stamp| stamp.1 == account).count();
        assert_eq!((of("heavy"), of("plain"), of("light")), (120, 40, 20));
    }

    #[test]
    fn a_weight_next_to_nothing_or_beyond_all_bounds_leaves_the_others_their_shares() {
        let mut shares = Shares::default();
        shares.weigh(HashMap::from([
            ("tiny".to_owned(), 1e-18),
            ("huge".to_owned(), 1e18),
            ("odd".to_owned(), f64::NAN),
        ]));
        for _ in 0..10 {
            let now = ["tiny", "huge", "odd"].map(|account| shares.stamp(account, "g")).into_iter().max().unwrap();
            shares.advance(now);
        }
        let flood: Vec<i64> = (0..100).map(|_| shares.stamp("flood", "g")).collect();
        assert!(flood.windows(2).all(|pair| pair[0] < pair[1]), "virtual time goes on");
        assert_eq!(shares.stamp("quiet", "g"), flood[0]);
    }

    #[test]
    fn an_account_that_had_its_share_long_ago_owes_nothing() {
        let mut shares = Shares::default();
        for _ in 0..1_000 {
            shares.stamp("burst", "g");
        }
        shares.advance(5_000_000);
        assert_eq!(shares.stamp("burst", "g"), shares.stamp("fresh", "g"));
    }

    #[test]
    fn places_are_bounded_by_the_accounts_that_wait() {
        let mut shares = Shares::default();
        for n in 0..3 * CROWD {
            shares.advance(n as i64 * TASK);
            shares.stamp(&n.to_string(), "g");
        }
        assert!(shares.all.ends.len() <= CROWD, "{}", shares.all.ends.len());
    }

    #[test]
    fn what_waits_at_the_gate_of_a_group_takes_nothing_of_its_accounts_share_elsewhere() {
        let mut shares = Shares::default();
        shares.limited(vec![("mail".to_owned(), 0)]);
        let at_the_gate = (0..1_000).map(|_| shares.stamp("a", "mail")).max().unwrap();
        assert!(at_the_gate > 1_000_000);
        assert_eq!(shares.stamp("a", "other"), shares.stamp("b", "other"), "elsewhere it comes first like anybody");
        // What is claimed elsewhere says nothing of the group, in which others come at once.
        shares.advance(50_000_000);
        assert!(shares.stamp("b", "mail") < at_the_gate);
    }

    #[test]
    fn an_account_that_comes_back_to_a_group_has_no_credit_for_what_others_had_meanwhile() {
        let mut shares = Shares::default();
        shares.limited(vec![("mail".to_owned(), 7)]);
        let first = shares.stamp("a", "mail");
        shares.limited(vec![("mail".to_owned(), 5_000_001)]);
        assert!(shares.stamp("b", "mail") > 5_000_000 && first < 100);
        shares.limited(vec![]);
        assert_eq!(shares.stamp("a", "mail"), 0, "without limits it is like any other group");
    }

    #[test]
    fn a_stamp_says_whether_it_is_of_a_group_with_limits() {
        let mut shares = Shares::default();
        shares.weigh(HashMap::from([("heavy".to_owned(), 3.0), ("tiny".to_owned(), 1_000.0)]));
        shares.limited(vec![("mail".to_owned(), 1_001)]);
        shares.advance(33);
        for account in ["plain", "heavy", "tiny"] {
            for _ in 0..10 {
                let of = |vt| Place { rank: 0, vt }.of_a_group();
                assert_eq!((of(shares.stamp(account, "mail")), of(shares.stamp(account, "other"))), (true, false));
            }
        }
    }
}
