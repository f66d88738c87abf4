//! What is kept of many pairs, and the view of it that people read.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Options, Sketch, Tally, Test, Timing};

/// Counts are kept under so many margins. More than were ever in force on one day, unless somebody plays with them.
const MARGINS: usize = 8;

/// What is kept of any number of pairs. Adding and merging give the same in every order.
#[derive(Debug, Clone, Default)]
pub struct Latencies {
    pub(super) sketches: Sketches,
    pub(super) tallies: Tallies,
}

/// By side and measure.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Sketches {
    temporal: Measures<Sketch>,
    postgres: Measures<Sketch>,
    /// Postgres' start latency minus Temporal's, pair by pair.
    later: Sketch,
}

/// By margin, in microseconds: pairs that were judged by one margin say nothing about another.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Tallies(BTreeMap<u64, Tally>);

/// The same for each thing that is measured of a side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Measures<T> {
    /// From due to dequeued, of the first attempt.
    pub start: T,
    /// From enqueued (delivered, on Temporal) to dequeued.
    pub queueing: T,
    /// From dequeued to ended.
    pub run: T,
}

/// Both sides' latencies in numbers, in seconds, and what the test says.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct View {
    /// Pairs whose latencies these are.
    pub pairs: u64,
    /// Temporal's.
    pub temporal: SideView,
    /// Postgres'.
    pub postgres: SideView,
    /// By how much later Postgres started than Temporal, pair by pair; negative where it was earlier.
    pub later: Option<Quantiles>,
    /// Whether Postgres starts more than the allowed share late.
    pub test: Test,
}

/// One side in numbers; absent without pairs.
pub type SideView = Measures<Option<Quantiles>>;

/// Seconds that a share of all values does not exceed, within 1 %.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Half.
    pub p50: f64,
    /// 90 of 100.
    pub p90: f64,
    /// 95 of 100.
    pub p95: f64,
    /// 99 of 100.
    pub p99: f64,
    /// All; exact.
    pub max: f64,
}

impl Latencies {
    /// Adds a pair, which is slow where Postgres started more than `margin` later.
    pub fn add(&mut self, temporal: &Timing, postgres: &Timing, margin: Duration) {
        self.sketches.temporal.add(temporal);
        self.sketches.postgres.add(postgres);
        let later = postgres.start - temporal.start;
        self.sketches.later.add(later);
        self.tallies.of(margin).add(later, margin);
    }

    /// Adds what was kept of other pairs.
    pub fn merge(&mut self, other: &Self) {
        self.sketches.temporal.merge(&other.sketches.temporal);
        self.sketches.postgres.merge(&other.sketches.postgres);
        self.sketches.later.merge(&other.sketches.later);
        for (&micros, &tally) in &other.tallies.0 {
            self.tallies.of(Duration::from_micros(micros)).merge(tally);
        }
    }

    /// What was counted under the margin.
    pub fn tally(&self, margin: Duration) -> Tally {
        self.tallies.0.get(&micros(margin)).copied().unwrap_or_default()
    }

    /// The numbers.
    pub fn view(&self, options: &Options) -> View {
        View {
            pairs: self.sketches.later.count(),
            temporal: self.sketches.temporal.view(),
            postgres: self.sketches.postgres.view(),
            later: Quantiles::of(&self.sketches.later),
            test: self.tally(options.margin).test(options),
        }
    }
}

impl Measures<Sketch> {
    fn add(&mut self, timing: &Timing) {
        self.start.add(timing.start);
        self.queueing.add(timing.queueing);
        self.run.add(timing.run);
    }

    fn merge(&mut self, other: &Self) {
        self.start.merge(&other.start);
        self.queueing.merge(&other.queueing);
        self.run.merge(&other.run);
    }

    fn view(&self) -> SideView {
        let of = Quantiles::of;
        Measures { start: of(&self.start), queueing: of(&self.queueing), run: of(&self.run) }
    }
}

impl Quantiles {
    fn of(sketch: &Sketch) -> Option<Self> {
        let at = |q| sketch.quantile(q);
        Some(Self { p50: at(0.5)?, p90: at(0.9)?, p95: at(0.95)?, p99: at(0.99)?, max: sketch.max()? })
    }
}

impl Tallies {
    /// The tally of a margin. Where there are too many, the one with the fewest pairs makes room.
    fn of(&mut self, margin: Duration) -> &mut Tally {
        let micros = micros(margin);
        if self.0.len() >= MARGINS && !self.0.contains_key(&micros) {
            let least = self.0.iter().min_by_key(|(_, tally)| tally.pairs).map(|(&micros, _)| micros);
            least.and_then(|least| self.0.remove(&least));
        }
        self.0.entry(micros).or_default()
    }
}

fn micros(margin: Duration) -> u64 {
    u64::try_from(margin.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    const MARGIN: Duration = Duration::from_millis(50);

    fn timing(start: f64) -> Timing {
        Timing { start, queueing: start / 2.0, run: 3.0 * start }
    }

    fn of(pairs: &[(f64, f64)]) -> Latencies {
        let mut all = Latencies::default();
        pairs.iter().for_each(|(temporal, postgres)| all.add(&timing(*temporal), &timing(*postgres), MARGIN));
        all
    }

    fn view(latencies: &Latencies) -> View {
        latencies.view(&Config::defaults().latency)
    }

    #[test]
    fn a_view_shows_both_sides_and_how_much_later_postgres_was() {
        let view = view(&of(&[(0.010, 0.020), (0.020, 0.100), (0.030, 0.030)]));
        let near = |found: Option<Quantiles>, p50: f64, max: f64| {
            let found = found.unwrap();
            assert!((found.p50 - p50).abs() <= 0.01 * p50 && found.max == max, "{found:?}");
        };
        near(view.temporal.start, 0.020, 0.030);
        near(view.postgres.queueing, 0.015, 0.050);
        near(view.postgres.run, 0.090, 3.0 * 0.100);
        near(view.later, 0.010, 0.080);
        assert_eq!((view.pairs, view.test.pairs, view.test.slow), (3, 3, 1));
    }

    #[test]
    fn nothing_is_shown_as_absent() {
        let view = serde_json::to_value(view(&Latencies::default())).unwrap();
        assert!(view["temporal"]["start"].is_null() && view["later"].is_null(), "{view}");
        assert_eq!(view["test"]["answer"], "inconclusive");
    }

    #[test]
    fn another_margin_begins_anew_and_the_old_one_is_kept() {
        let mut all = of(&[(0.0, 1.0), (0.0, 1.0)]);
        let wide = Duration::from_secs(2);
        all.add(&timing(0.0), &timing(1.0), wide);
        assert_eq!(all.tally(wide), Tally { pairs: 1, slow: 0 });
        assert_eq!(all.tally(MARGIN), Tally { pairs: 2, slow: 2 });
        assert_eq!(all.sketches.later.count(), 3);
    }

    #[test]
    fn of_too_many_margins_the_least_used_is_forgotten() {
        let mut all = of(&[(0.0, 1.0), (0.0, 1.0)]);
        (1..100).for_each(|n| all.add(&timing(0.0), &timing(0.0), Duration::from_secs(n)));
        assert_eq!(all.tallies.0.len(), MARGINS);
        assert_eq!(all.tally(MARGIN).pairs, 2);
        assert_eq!(all.tally(Duration::from_secs(99)).pairs, 1);
    }

    proptest! {
        #[test]
        fn parts_merged_in_any_order_are_the_whole(
            parts in prop::collection::vec(prop::collection::vec((-1.0f64..100.0, -1.0f64..100.0), 0..40), 1..5),
        ) {
            let whole = view(&of(&parts.concat()));
            let merge = |parts: &mut dyn Iterator<Item = &Vec<(f64, f64)>>| {
                let mut all = Latencies::default();
                parts.for_each(|part| all.merge(&of(part)));
                view(&all)
            };
            prop_assert_eq!(&merge(&mut parts.iter()), &whole);
            prop_assert_eq!(&merge(&mut parts.iter().rev()), &whole);
        }
    }
}
