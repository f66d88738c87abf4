//! What the lowest priority gets of the claims, so that more urgent work never starves it: one row in twenty. Pure.
//!
//! It is owed its share by claims that left something behind, and gets it with one of the next ones: to look at the other end of what
//! is ready in each claim would cost those who have one priority, too.

/// What claims of one kind owe to the lowest priority.
#[derive(Debug, Default)]
pub(super) struct Floor {
    /// In twentieths of a row.
    owed: usize,
}

/// One row in so many.
const ONE_IN: usize = 20;
/// A claim asks for at least this part of itself, and for at least one row.
const PART: usize = 4;

impl Floor {
    /// How many of the next `limit` rows are to be of the lowest priority.
    pub fn share(&self, limit: usize) -> usize {
        let (owed, worth) = (self.owed / ONE_IN, limit.div_ceil(PART));
        if owed >= worth { worth } else { 0 }
    }

    /// `got` rows came of a claim of `limit`, in which `low` were asked for; something was `left` behind.
    pub fn claimed(&mut self, limit: usize, low: usize, got: usize, left: bool) {
        self.owed = match left {
            // All that waited was had.
            false => 0,
            true => (self.owed + got).saturating_sub(low * ONE_IN).min(limit * ONE_IN),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_in_twenty_is_of_the_lowest_priority_whatever_the_size_of_the_claims() {
        for limit in [1, 3, 10, 37, 500] {
            let (mut floor, mut low, mut asked) = (Floor::default(), 0, 0);
            for _ in 0..2_000 {
                let share = floor.share(limit);
                assert!(share <= limit.div_ceil(4), "most of a claim is the most urgent");
                floor.claimed(limit, share, limit, true);
                (low, asked) = (low + share, asked + usize::from(share > 0));
            }
            let parts = (2_000 * limit) as f64 / low as f64;
            assert!((18.0..22.0).contains(&parts), "one in {parts} of claims of {limit}");
            assert!(asked <= 500, "most claims of {limit} ask for none");
        }
    }

    #[test]
    fn a_claim_that_had_all_owes_nothing() {
        let mut floor = Floor::default();
        (0..10).for_each(|_| floor.claimed(10, 0, 10, true));
        assert!(floor.share(10) > 0);
        floor.claimed(10, 0, 9, false);
        assert_eq!(floor.share(10), 0);
        floor.claimed(1, 0, 0, false);
        assert_eq!(floor.share(1), 0);
    }
}
