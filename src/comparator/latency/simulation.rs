//! What the test does when somebody looks after every pair: how often it is wrong, and how soon it decides. Every run
//! is seeded, so that the numbers of `docs/comparison.md` are the same everywhere; `--nocapture` prints them.

use super::{Answer, Options, Tally};
use crate::config::Config;

const RUNS: u64 = 500;
const PAIRS: usize = 5_000;
const CONFIDENCE: f64 = 0.95;
/// 1 - quantile.
const ALLOWED: f64 = 0.05;

/// Looks may begin at once: the hardest case for false alarms.
fn options(burst: u32) -> Options {
    let quantile = 1.0 - ALLOWED;
    Options { confidence: CONFIDENCE, quantile, min_pairs: 1, burst, ..Config::defaults().latency }
}

/// SplitMix64 (G. Steele, D. Lea, C. Flood, 2014).
struct Random(u64);

impl Random {
    /// In [0, 1).
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn coin(&mut self, p: f64) -> bool {
        self.next() < p
    }
}

/// After each number of pairs: at most so many slow ones pass, at least so many fail. Found by asking the test itself;
/// more slow pairs never help, so that both only grow.
struct Bounds(Vec<(Option<u64>, u64)>);

impl Bounds {
    fn of(options: &Options) -> Self {
        let (mut passing, mut failing) = (0, 0);
        let bounds = (1..=PAIRS as u64).map(|pairs| {
            let answer = |slow| Tally { pairs, slow }.answer(options);
            while passing < pairs && answer(passing) == Answer::Pass {
                passing += 1;
            }
            while failing <= pairs && answer(failing) != Answer::Fail {
                failing += 1;
            }
            let bounds = (passing.checked_sub(1).filter(|slow| answer(*slow) == Answer::Pass), failing);
            passing = passing.saturating_sub(1);
            failing = failing.min(pairs);
            bounds
        });
        Self(bounds.collect())
    }

    /// The first answer that somebody sees who looks after every pair, and after how many.
    fn first(&self, mut slow: impl FnMut() -> bool) -> (Answer, usize) {
        let mut count = 0;
        for (at, (passing, failing)) in self.0.iter().enumerate() {
            count += u64::from(slow());
            if passing.is_some_and(|most| count <= most) {
                return (Answer::Pass, at + 1);
            }
            if count >= *failing {
                return (Answer::Fail, at + 1);
            }
        }
        (Answer::Inconclusive, PAIRS)
    }
}

/// What many runs came to.
#[derive(Debug)]
struct Rates {
    pass: f64,
    fail: f64,
    /// Pairs until half of all runs were decided; none if fewer ever were.
    median: Option<usize>,
}

/// Plays `RUNS` runs, each with a source of slow pairs of its own.
fn play<S: FnMut() -> bool>(what: &str, bounds: &Bounds, source: impl Fn(Random) -> S) -> Rates {
    let ends: Vec<_> = (0..RUNS).map(|run| bounds.first(source(Random(run << 32)))).collect();
    let share = |wanted| ends.iter().filter(|(answer, _)| *answer == wanted).count() as f64 / RUNS as f64;
    let mut decided: Vec<_> = ends.iter().filter(|(answer, _)| *answer != Answer::Inconclusive).map(|e| e.1).collect();
    decided.sort_unstable();
    let rates =
        Rates { pass: share(Answer::Pass), fail: share(Answer::Fail), median: decided.get(RUNS as usize / 2).copied() };
    println!("{what}: {rates:?}");
    rates
}

fn coins(p: f64) -> impl Fn(Random) -> Box<dyn FnMut() -> bool> {
    move |mut random| Box::new(move || random.coin(p))
}

/// Slow pairs come in bursts of `length` on average; in the long run their share is `share`.
fn bursts(share: f64, length: f64) -> impl Fn(Random) -> Box<dyn FnMut() -> bool> {
    let (stop, begin) = (1.0 / length, share / ((1.0 - share) * length));
    move |mut random| {
        let mut slow = random.coin(share);
        Box::new(move || {
            let now = slow;
            slow = if slow { !random.coin(stop) } else { random.coin(begin) };
            now
        })
    }
}

#[test]
fn constant_peeking_keeps_false_alarms_below_what_is_promised() {
    let bounds = Bounds::of(&options(1));
    let promised = 1.0 - CONFIDENCE;
    let at = play("exactly the allowed share", &bounds, coins(ALLOWED));
    assert!(at.pass + at.fail <= promised, "{at:?}");
    for share in [0.049, 0.045, 0.04, 0.02] {
        let below = play(&format!("share {share}, allowed"), &bounds, coins(share));
        assert!(below.fail <= promised / 2.0, "{share}: {below:?}");
    }
    for share in [0.051, 0.055, 0.06, 0.1] {
        let above = play(&format!("share {share}, not allowed"), &bounds, coins(share));
        assert!(above.pass <= promised / 2.0, "{share}: {above:?}");
    }
}

#[test]
fn real_differences_are_found_soon() {
    let bounds = Bounds::of(&options(1));
    for (share, most) in [(0.0, 120), (0.005, 200), (0.01, 250), (0.02, 600)] {
        let good = play(&format!("share {share}"), &bounds, coins(share));
        assert!(good.pass >= 0.97 && good.median.unwrap() <= most, "{share}: {good:?}");
    }
    for (share, most) in [(0.10, 300), (0.20, 60), (0.50, 15)] {
        let bad = play(&format!("share {share}"), &bounds, coins(share));
        assert!(bad.fail >= 0.97 && bad.median.unwrap() <= most, "{share}: {bad:?}");
    }
}

#[test]
fn a_fixed_sample_test_looked_at_as_often_would_cry_wolf() {
    // So this simulation can tell a test that holds from one that does not: a two-sided z-test at each look from 100 on.
    let alarms = (0..RUNS).filter(|run| {
        let (mut random, mut slow) = (Random(run << 32), 0.0);
        (1..=PAIRS).any(|pairs| {
            slow += f64::from(u8::from(random.coin(ALLOWED)));
            let n = pairs as f64;
            pairs >= 100 && (slow / n - ALLOWED).abs() > 1.96 * (ALLOWED * (1.0 - ALLOWED) / n).sqrt()
        })
    });
    let rate = alarms.count() as f64 / RUNS as f64;
    println!("a z-test: {rate}");
    assert!(rate > 0.3, "{rate}");
}

#[test]
fn tails_without_a_mean_do_not_matter() {
    // Start latencies of both sides with Pareto tails of index 0.9; the margin is the difference's own 95 % quantile.
    let pareto = |random: &mut Random| 0.002 * (1.0 - random.next()).powf(-1.0 / 0.9);
    let later = move |random: &mut Random| pareto(random) - pareto(random);
    let mut random = Random(1);
    let mut sample: Vec<f64> = (0..200_000).map(|_| later(&mut random)).collect();
    sample.sort_unstable_by(f64::total_cmp);
    let margin = sample[(sample.len() as f64 * (1.0 - ALLOWED)) as usize];
    let tails = |margin: f64| move |mut random: Random| move || later(&mut random) > margin;
    let bounds = Bounds::of(&options(1));
    let at = play("heavy tails, at the margin", &bounds, tails(margin));
    assert!(at.pass + at.fail <= 1.0 - CONFIDENCE, "{at:?}");
    let (wide, narrow) = (margin * 3.0, margin / 3.0);
    let good = play("heavy tails, a wide margin", &bounds, tails(wide));
    assert!(good.pass >= 0.95, "{good:?}");
    let bad = play("heavy tails, a narrow margin", &bounds, tails(narrow));
    assert!(bad.fail >= 0.95, "{bad:?}");
}

#[test]
fn bursts_break_the_promise_unless_twice_their_length_counts_as_one() {
    for (length, double) in [(2.0, 4), (5.0, 10), (10.0, 20), (50.0, 100)] {
        let wrong = |burst: u32| {
            let what = format!("the allowed share, in bursts of {length}, {burst} pairs count as one");
            let rates = play(&what, &Bounds::of(&options(burst)), bursts(ALLOWED, length));
            rates.pass + rates.fail
        };
        assert!(wrong(1) > 0.3, "{length}");
        assert!(wrong(double / 2) < 0.2, "{length}");
        assert!(wrong(double) <= 1.0 - CONFIDENCE, "{length}");
    }
}

#[test]
fn the_docs_say_how_many_pairs_the_defaults_need() {
    let options = Config::defaults().latency;
    let rows =
        [(0, 1_000), (10, 1_000), (20, 1_000), (30, 1_000), (80, 1_000), (100, 1_000), (200, 1_000), (500, 1_000)];
    let rows = rows.map(|(slow, of)| {
        let at = |pairs: u64| Tally { pairs, slow: pairs * slow / of }.answer(&options);
        let pairs = (1..).find(|pairs| at(*pairs) != Answer::Inconclusive).unwrap();
        format!("| {} of 100 | `{}` | {pairs} |", slow / 10, at(pairs).as_str())
    });
    let page = include_str!("../../../docs/comparison.md");
    assert!(rows.iter().all(|row| page.contains(row)), "docs/comparison.md has to say:\n{}", rows.join("\n"));
}
