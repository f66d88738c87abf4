//! A test that may be looked at after every pair: does Postgres start more than the allowed share of interactions
//! late? Its state is two counts, pairs and slow pairs.
//!
//! **The bet.** Against every share p0 two gamblers bet, one that fewer pairs are slow, one that more are. Who bets
//! that the share is q holds, after n pairs of which s were slow, `(q/p0)^s · ((1-q)/(1-p0))^(n-s)`: a likelihood
//! ratio. As long as the share is p0 that is a martingale that began at 1, and by Ville's inequality it *ever*
//! reaches 1/α with probability α at most. Each gambler spreads the stake evenly over some q, near and far, so
//! that neither a small nor a large difference takes for ever; a mixture of martingales is one.
//! The p0 that neither gambler has beaten to 2/α form the interval `lower..upper`, which holds the true share at
//! all times at once with the wanted confidence. `pass` is an interval below the allowed share, `fail` one above it.
//! Looking often, and stopping when one likes the answer, costs nothing.
//!
//! **Why this one.** A start latency has no useful mean or variance: tails are heavy. Whether a pair is slow is a coin
//! whatever the tail, and a quantile is what operators promise. One-sided bets stay valid when the share
//! drifts: the interval then holds the average, over the pairs so far, of each pair's chance of being slow given
//! everything before it. A beta mixture over q, the classic choice, is not one-sided unless it is truncated, and needs
//! incomplete beta functions; a finite mixture needs `ln` and `exp`. The price is that the interval stops shrinking at about a
//! hundredth of the share (upwards) or 0.0005 (downwards): so near to the allowed share the answer stays `inconclusive`.
//!
//! **Bursts.** Neighbours share causes, so that one hiccup may make ten pairs slow. Each run of `burst` pairs counts
//! as one pair with the run's share of slow ones, by dividing both counts: the bet's `burst`-th root, still a
//! supermartingale from run to run, whatever binds pairs within one (Hölder's inequality). A look in the middle of a run,
//! and what binds runs with each other, the proof does not cover: the simulation beside this file looks after every pair
//! and shows what that costs, `docs/comparison.md` says it to operators.
//!
//! Sources: H. Robbins, *Statistical Methods Related to the Law of the Iterated Logarithm* (1970), for mixtures;
//! S. Howard, A. Ramdas, J. McAuliffe, J. Sekhon, *Time-uniform, nonparametric, nonasymptotic confidence sequences*
//! (2021), for discrete mixtures, sub-Bernoulli processes and the running average; I. Waudby-Smith, A. Ramdas,
//! *Estimating means of bounded random variables by betting* (2024), for the view as a bet, and why shares of a
//! run may stand in for coins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Options;

/// What the test says, and with it a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The share of slow pairs is below what is allowed.
    Pass,
    /// It is above.
    Fail,
    /// It is not known yet; never a pass.
    Inconclusive,
}

impl Answer {
    /// The name in JSON and on a screen.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// The state: what was counted under one margin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Pairs.
    pub pairs: u64,
    /// Of these, where Postgres started more than the margin later.
    pub slow: u64,
}

/// An answer with the numbers behind it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Test {
    /// The answer.
    pub answer: Answer,
    /// Pairs that were counted under this margin.
    pub pairs: u64,
    /// Of these, where Postgres started more than the margin later than Temporal.
    pub slow: u64,
    /// Their share; absent without pairs.
    pub slow_share: Option<f64>,
    /// The share is above this, at all times at once, with the confidence below.
    pub lower: f64,
    /// The share is below this, likewise.
    pub upper: f64,
    /// The share that is allowed: 1 - `latency.quantile`.
    pub allowed: f64,
    /// What the bet that fewer than the allowed share are slow has made of a stake of 1.
    pub evidence_for_pass: f64,
    /// What the bet that more are slow has made of a stake of 1.
    pub evidence_for_fail: f64,
    /// What either bet has to reach.
    pub evidence_needed: f64,
    /// `latency.margin`.
    pub margin_seconds: f64,
    /// `latency.confidence`.
    pub confidence: f64,
    /// `latency.min_pairs`.
    pub min_pairs: u64,
    /// `latency.burst`.
    pub burst: u32,
}

impl Tally {
    /// Counts a pair by how many seconds later Postgres started. What is no number counts as slow.
    pub fn add(&mut self, later: f64, margin: Duration) {
        self.pairs += 1;
        self.slow += u64::from(!within(later, margin));
    }

    /// Adds what was counted elsewhere under the same margin.
    pub fn merge(&mut self, other: Self) {
        self.pairs += other.pairs;
        self.slow += other.slow;
    }

    /// The answer alone.
    pub fn answer(self, options: &Options) -> Answer {
        if self.pairs < options.min_pairs {
            return Answer::Inconclusive;
        }
        let (counts, allowed, needed) = (Counts::of(self, options.burst), allowed(options), needed(options).ln());
        if counts.fewer_than(allowed) >= needed {
            Answer::Pass
        } else if counts.more_than(allowed) >= needed {
            Answer::Fail
        } else {
            Answer::Inconclusive
        }
    }

    /// The answer with the numbers behind it.
    pub fn test(self, options: &Options) -> Test {
        let (counts, allowed, needed) = (Counts::of(self, options.burst), allowed(options), needed(options));
        let (lower, upper) = counts.interval(needed.ln());
        Test {
            answer: self.answer(options),
            pairs: self.pairs,
            slow: self.slow,
            slow_share: (self.pairs > 0).then(|| self.slow as f64 / self.pairs as f64),
            lower,
            upper,
            allowed,
            evidence_for_pass: finite(counts.fewer_than(allowed)),
            evidence_for_fail: finite(counts.more_than(allowed)),
            evidence_needed: needed,
            margin_seconds: options.margin.as_secs_f64(),
            confidence: options.confidence,
            min_pairs: options.min_pairs,
            burst: options.burst,
        }
    }
}

fn within(later: f64, margin: Duration) -> bool {
    later <= margin.as_secs_f64()
}

fn allowed(options: &Options) -> f64 {
    1.0 - options.quantile
}

/// 2/α: either bet may be the wrong one.
fn needed(options: &Options) -> f64 {
    2.0 / (1.0 - options.confidence)
}

/// JSON knows no infinity.
fn finite(ln: f64) -> f64 {
    ln.exp().min(1e300)
}

/// By how much of the way to 0 the bet on fewer goes below p0.
const LESS: [f64; 9] = [0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 0.9, 1.0];

/// By how much of the way to 1 the bet on more goes above p0.
const MORE: [f64; 10] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9];

/// Slow pairs and others; parts of one where a run counts as one.
#[derive(Clone, Copy)]
struct Counts {
    slow: f64,
    other: f64,
}

impl Counts {
    fn of(tally: Tally, burst: u32) -> Self {
        let one = f64::from(burst.max(1));
        Self { slow: tally.slow as f64 / one, other: tally.pairs.saturating_sub(tally.slow) as f64 / one }
    }

    /// The logarithm of what a bet on fewer slow ones than `p0` holds. Grows with `p0`.
    fn fewer_than(self, p0: f64) -> f64 {
        mean_of(LESS, |less| {
            let q = p0 * (1.0 - less);
            times(self.slow, (1.0 - less).ln()) + times(self.other, ((1.0 - q) / (1.0 - p0)).ln())
        })
    }

    /// The logarithm of what a bet on more slow ones than `p0` holds. Falls with `p0`.
    fn more_than(self, p0: f64) -> f64 {
        mean_of(MORE, |more| {
            let q = p0 + more * (1.0 - p0);
            times(self.slow, (q / p0).ln()) + times(self.other, (1.0 - more).ln())
        })
    }

    /// Every share that neither bet has beaten.
    fn interval(self, needed: f64) -> (f64, f64) {
        let all = self.slow + self.other;
        let seen = if all > 0.0 { self.slow / all } else { 0.5 };
        let lower = bisect(seen, 0.0, |p0| self.more_than(p0) >= needed);
        let upper = bisect(seen, 1.0, |p0| self.fewer_than(p0) >= needed);
        (lower, upper)
    }
}

/// Nothing times minus infinity is nothing.
fn times(count: f64, ln: f64) -> f64 {
    if count == 0.0 { 0.0 } else { count * ln }
}

/// ln of the mean of exp, without leaving the range of numbers.
fn mean_of<const N: usize>(bets: [f64; N], ln_of: impl Fn(f64) -> f64) -> f64 {
    let held = bets.map(ln_of);
    let most = held.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if !most.is_finite() {
        return most;
    }
    most + (held.iter().map(|ln| (ln - most).exp()).sum::<f64>() / N as f64).ln()
}

/// The point nearest to `inside` where `beaten` holds, on the way to `outside`.
fn bisect(mut inside: f64, mut outside: f64, beaten: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..50 {
        let middle = (inside + outside) / 2.0;
        if beaten(middle) {
            outside = middle;
        } else {
            inside = middle;
        }
    }
    outside
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    fn options(confidence: f64, min_pairs: u64, burst: u32) -> Options {
        Options { confidence, min_pairs, burst, quantile: 0.95, ..Config::defaults().latency }
    }

    fn tally(pairs: u64, slow: u64) -> Tally {
        Tally { pairs, slow }
    }

    #[test]
    fn nothing_seen_says_nothing() {
        let test = tally(0, 0).test(&options(0.95, 1, 1));
        assert_eq!((test.answer, test.slow_share, test.lower, test.upper), (Answer::Inconclusive, None, 0.0, 1.0));
        assert_eq!((test.evidence_for_pass, test.evidence_for_fail), (1.0, 1.0));
    }

    #[test]
    fn too_few_pairs_are_inconclusive_whatever_they_say() {
        assert_eq!(tally(199, 199).answer(&options(0.95, 200, 1)), Answer::Inconclusive);
        assert_eq!(tally(200, 200).answer(&options(0.95, 200, 1)), Answer::Fail);
    }

    #[test]
    fn clear_cases_are_decided() {
        let options = options(0.95, 1, 1);
        assert_eq!(tally(500, 2).answer(&options), Answer::Pass);
        assert_eq!(tally(500, 60).answer(&options), Answer::Fail);
        assert_eq!(tally(500, 25).answer(&options), Answer::Inconclusive);
    }

    #[test]
    fn runs_of_pairs_count_as_one_each() {
        let (one, ten) = (options(0.95, 1, 1), options(0.95, 1, 10));
        assert_eq!(tally(500, 2).test(&one).upper, tally(5_000, 20).test(&ten).upper);
        assert_eq!(tally(500, 2).answer(&ten), Answer::Inconclusive);
    }

    #[test]
    fn more_than_the_margin_is_slow_and_so_is_what_is_no_number() {
        let mut tally = Tally::default();
        for later in [-3.0, 0.0, 0.05, 0.050_001, f64::NAN, f64::INFINITY] {
            tally.add(later, Duration::from_millis(50));
        }
        assert_eq!(tally, super::Tally { pairs: 6, slow: 3 });
    }

    #[test]
    fn one_pair_more_multiplies_a_bet_by_one_on_average() {
        // The martingale itself, at the share that it bets against, exactly.
        for p0 in [0.01, 0.05, 0.3] {
            for (slow, other) in [(0.0, 0.0), (3.0, 40.0), (50.0, 900.0)] {
                let at = |slow, other| Counts { slow, other };
                for bet in [Counts::fewer_than, Counts::more_than] {
                    let now = bet(at(slow, other), p0).exp();
                    let next =
                        p0 * bet(at(slow + 1.0, other), p0).exp() + (1.0 - p0) * bet(at(slow, other + 1.0), p0).exp();
                    assert!((next / now - 1.0).abs() < 1e-9, "{p0} {slow} {other}: {now} {next}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn the_interval_holds_the_share_seen_and_agrees_with_the_answer(
            pairs in 0u64..2_000_000, part in 0.0f64..=1.0, confidence in 0.5f64..0.9999, burst in 1u32..50,
        ) {
            let tally = tally(pairs, (pairs as f64 * part * part * part) as u64);
            let test = tally.test(&options(confidence, 1, burst));
            prop_assert!(0.0 <= test.lower && test.lower <= test.upper && test.upper <= 1.0, "{test:?}");
            if let Some(share) = test.slow_share {
                prop_assert!(test.lower <= share && share <= test.upper, "{test:?}");
            }
            // At the very edge the bisection's last bit may say otherwise.
            let (pass, fail) = (test.upper < test.allowed - 1e-9, test.lower > test.allowed + 1e-9);
            let edge = (test.upper - test.allowed).abs() < 1e-9 || (test.lower - test.allowed).abs() < 1e-9;
            prop_assert!(edge || pass == (test.answer == Answer::Pass), "{test:?}");
            prop_assert!(edge || fail == (test.answer == Answer::Fail), "{test:?}");
            prop_assert!(test.evidence_for_pass.is_finite() && test.evidence_for_fail.is_finite());
        }

        #[test]
        fn one_more_slow_pair_never_helps(pairs in 1u64..100_000, part in 0.0f64..1.0, burst in 1u32..20) {
            let slow = (pairs as f64 * part * part) as u64;
            let options = options(0.95, 1, burst);
            let (fewer, more) = (tally(pairs, slow).test(&options), tally(pairs, slow + 1).test(&options));
            prop_assert!(fewer.upper <= more.upper + 1e-12 && fewer.lower <= more.lower + 1e-12);
        }
    }
}
