//! Who comes next among accounts: Start-time Fair Queueing (Goyal, Vin and Cheng, SIGCOMM 1996). Pure.
//!
//! Each task is stamped with a virtual start time: where its account's task before it ended, but not before what is being
//! claimed now. So an account that floods stamps itself into the future, and whoever has nothing waiting comes next.
//! Every router stamps for itself: an account that floods through three routers has three shares.

use std::collections::HashMap;

/// Stamps of one router.
#[derive(Debug, Default)]
pub(super) struct Shares {
    /// How far claims have come.
    now: i64,
    /// Where each account's last task ends; accounts whose end has passed have no place.
    ends: HashMap<String, i64>,
    /// What accounts count that don't count 1.
    weights: HashMap<String, f64>,
}

/// What a task of an account of weight 1 takes of virtual time.
const TASK: i64 = 1_000;
/// Beyond these an account's tasks would take so much or so little of it that nothing is left of the others' shares.
const WEIGHTS: std::ops::RangeInclusive<f64> = 0.001..=1_000.0;
/// Places of accounts whose end has passed are given up when there are so many.
const CROWD: usize = 10_000;

impl Shares {
    /// Claims have come so far; never back.
    pub(super) fn advance(&mut self, now: i64) {
        self.now = self.now.max(now);
    }

    /// From now on these accounts count so much, and all others 1.
    pub(super) fn weigh(&mut self, weights: HashMap<String, f64>) {
        let bounded = |weight: f64| if weight.is_nan() { 1.0 } else { weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) };
        self.weights = weights.into_iter().map(|(account, weight)| (account, bounded(weight))).collect();
    }

    /// Stamps the next task of `account`.
    pub(super) fn stamp(&mut self, account: &str) -> i64 {
        if self.ends.len() >= CROWD && !self.ends.contains_key(account) {
            self.ends.retain(|_, end| *end > self.now);
        }
        let start = self.ends.get(account).copied().unwrap_or(self.now).max(self.now);
        let weight = self.weights.get(account).copied().unwrap_or(1.0);
        let end = start.saturating_add(((TASK as f64 / weight) as i64).max(1));
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
        let flood: Vec<i64> = (0..1_000).map(|_| shares.stamp("flood")).collect();
        assert!(flood.windows(2).all(|pair| pair[0] < pair[1]), "its own order is kept");
        assert_eq!(shares.stamp("quiet"), flood[0]);
        shares.advance(flood[500]);
        assert_eq!(shares.stamp("quiet"), flood[500], "right behind what is being claimed");
    }

    #[test]
    fn accounts_that_flood_alike_take_turns() {
        let mut shares = Shares::default();
        let mut stamps: Vec<(i64, &str)> = (0..100).map(|_| (shares.stamp("a"), "a")).collect();
        stamps.extend((0..100).map(|_| (shares.stamp("b"), "b")));
        stamps.sort();
        assert!(stamps.chunks(2).all(|pair| pair[0].1 != pair[1].1));
    }

    #[test]
    fn an_account_of_weight_three_comes_three_times_as_often_as_one_of_weight_one() {
        let mut shares = Shares::default();
        shares.weigh(HashMap::from([("heavy".to_owned(), 3.0), ("light".to_owned(), 0.5)]));
        let each = ["heavy", "plain", "light"].into_iter().flat_map(|account| std::iter::repeat_n(account, 300));
        let mut stamps: Vec<(i64, &str)> = each.map(|account| (shares.stamp(account), account)).collect();
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
            let now = ["tiny", "huge", "odd"].map(|account| shares.stamp(account)).into_iter().max().unwrap();
            shares.advance(now);
        }
        let flood: Vec<i64> = (0..100).map(|_| shares.stamp("flood")).collect();
        assert!(flood.windows(2).all(|pair| pair[0] < pair[1]), "virtual time goes on");
        assert_eq!(shares.stamp("quiet"), flood[0]);
    }

    #[test]
    fn an_account_that_had_its_share_long_ago_owes_nothing() {
        let mut shares = Shares::default();
        for _ in 0..1_000 {
            shares.stamp("burst");
        }
        shares.advance(5_000_000);
        assert_eq!(shares.stamp("burst"), shares.stamp("fresh"));
    }

    #[test]
    fn places_are_bounded_by_the_accounts_that_wait() {
        let mut shares = Shares::default();
        for n in 0..3 * CROWD {
            shares.advance(n as i64 * TASK);
            shares.stamp(&n.to_string());
        }
        assert!(shares.ends.len() <= CROWD, "{}", shares.ends.len());
    }
}
