//! Quantiles of many durations in little room: a DDSketch (Ch. Masson, J. Rim, H. Lee, *DDSketch: A fast and
//! fully-mergeable quantile sketch with relative-error guarantees*, 2019), as the crate `sketches-ddsketch` keeps it.
//!
//! Every quantile is within 1 % of a value that was added. Bins reach from a nanosecond to longer than any work
//! takes, so none are ever merged with each other, and a sketch has at most 2,048 each for positive and
//! negative values; below a nanosecond is zero. In JSON it is the base64 of the format that DataDog's libraries for other languages read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sketches_ddsketch::DDSketch;

/// No quantile is further from a value that was added, relatively.
pub const RELATIVE_ERROR: f64 = 0.01;

/// Three years, in seconds. What is longer counts as this.
const LONGEST: f64 = 1e8;

/// See the module. Values are seconds.
#[derive(Clone, Default)]
pub struct Sketch(DDSketch);

impl Sketch {
    /// Adds a value; what is no number is left out.
    pub fn add(&mut self, seconds: f64) {
        if !seconds.is_nan() {
            self.0.add(seconds.clamp(-LONGEST, LONGEST));
        }
    }

    /// Adds every value of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.merge(&other.0).expect("every sketch is made alike: deserialize refuses others");
    }

    /// How many values were added.
    pub fn count(&self) -> u64 {
        self.0.count() as u64
    }

    /// The value that a share of `q` (0 to 1) of all values does not exceed; none of an empty sketch.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        self.0.quantile(q).ok().flatten()
    }

    /// The largest value, exactly.
    pub fn max(&self) -> Option<f64> {
        self.0.max()
    }
}

impl std::fmt::Debug for Sketch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p50, p99] = [0.5, 0.99].map(|q| self.quantile(q));
        f.debug_struct("Sketch").field("count", &self.count()).field("p50", &p50).field("p99", &p99).finish()
    }
}

impl Serialize for Sketch {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(self.0.to_java_bytes()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Sketch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let bytes = STANDARD.decode(text.as_bytes()).map_err(D::Error::custom)?;
        let sketch = DDSketch::from_java_bytes(&bytes).map_err(D::Error::custom)?;
        // Merged once, here, so that one of another accuracy is found where it can be answered.
        DDSketch::default().merge(&sketch).map_err(D::Error::custom)?;
        Ok(Self(sketch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUANTILES: [f64; 5] = [0.0, 0.5, 0.9, 0.99, 1.0];

    fn of(values: &[f64]) -> Sketch {
        let mut sketch = Sketch::default();
        values.iter().for_each(|value| sketch.add(*value));
        sketch
    }

    fn merged<'a>(sketches: impl IntoIterator<Item = &'a Sketch>) -> Sketch {
        let mut all = Sketch::default();
        sketches.into_iter().for_each(|sketch| all.merge(sketch));
        all
    }

    fn numbers(sketch: &Sketch) -> (u64, Vec<Option<f64>>) {
        (sketch.count(), QUANTILES.map(|q| sketch.quantile(q)).into())
    }

    fn stored(sketch: &Sketch) -> Sketch {
        serde_json::from_str(&serde_json::to_string(sketch).unwrap()).unwrap()
    }

    #[test]
    fn an_empty_sketch_survives_storage_and_has_no_quantiles() {
        let empty = stored(&Sketch::default());
        assert_eq!(numbers(&empty), (0, vec![None; 5]));
        assert_eq!(numbers(&merged([&empty, &of(&[1.0]), &empty])).0, 1);
    }

    #[test]
    fn what_is_no_sketch_is_refused() {
        let other = STANDARD.encode(DDSketch::new(sketches_ddsketch::Config::new(0.02, 2048, 1e-9)).to_java_bytes());
        for text in ["3", "\"%\"", "\"/////w==\"", &format!("{other:?}")] {
            assert!(serde_json::from_str::<Sketch>(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_neither_panics_nor_spoils_the_rest() {
        let sketch = of(&[f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, 1e-300, 2.0]);
        assert_eq!((sketch.count(), sketch.quantile(0.5)), (5, Some(0.0)));
        assert_eq!(numbers(&stored(&sketch)), numbers(&sketch));
    }

    #[test]
    fn a_hundred_thousand_latencies_take_a_few_kilobytes() {
        // From 0.1 ms to 100 s.
        let values: Vec<f64> = (0..100_000).map(|i| 1e-4 * 10f64.powf(f64::from(i) / 100_000.0 * 6.0)).collect();
        let bytes = serde_json::to_string(&of(&values)).unwrap().len();
        assert!(bytes < 4_096, "{bytes}");
    }

    fn seconds() -> impl Strategy<Value = f64> {
        prop_oneof![8 => 1e-6f64..1e4, 2 => -10.0f64..0.0, 1 => Just(0.0), 1 => 1e-12f64..1e9]
    }

    fn parts() -> impl Strategy<Value = Vec<Vec<f64>>> {
        prop::collection::vec(prop::collection::vec(seconds(), 0..60), 1..6)
    }

    proptest! {
        #[test]
        fn merged_parts_are_the_sketch_of_all_in_any_order(parts in parts()) {
            let sketches: Vec<_> = parts.iter().map(|part| of(part)).collect();
            let all = numbers(&of(&parts.concat()));
            prop_assert_eq!(&numbers(&merged(&sketches)), &all);
            prop_assert_eq!(&numbers(&merged(sketches.iter().rev())), &all);
            let kept: Vec<_> = sketches.iter().map(stored).collect();
            prop_assert_eq!(&numbers(&merged(&kept)), &all);
        }

        #[test]
        fn a_quantile_is_within_the_error_of_the_value_of_its_rank(values in prop::collection::vec(seconds(), 1..300)) {
            let sketch = of(&values);
            let mut sorted: Vec<f64> = values.iter().map(|v| v.clamp(-LONGEST, LONGEST)).collect();
            sorted.sort_by(f64::total_cmp);
            for q in [0.01, 0.5, 0.9, 0.95, 0.99] {
                let exact = sorted[(q * (sorted.len() - 1) as f64) as usize];
                let found = sketch.quantile(q).unwrap();
                prop_assert!((found - exact).abs() <= RELATIVE_ERROR * 1.001 * exact.abs() + 1.1e-9, "{q}: {found} for {exact}");
            }
        }
    }
}
