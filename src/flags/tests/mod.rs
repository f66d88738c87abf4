//! What the flags promise, on real files.

mod document;
mod edit;
mod follow;

use serde_json::{Value, json};

/// The four flags, all off, as the repository ships them.
const SHIPPED: &str = include_str!("../../../flags/crossover.json");

/// The shipped document with one feature in place of the one of its name.
fn with(feature: Value) -> Value {
    let mut document: Value = serde_json::from_str(SHIPPED).unwrap();
    let features = document["features"].as_array_mut().unwrap();
    let place = features.iter_mut().find(|known| known["name"] == feature["name"]).unwrap();
    *place = feature;
    document
}

/// The shipped document with `crossover-live` on by one strategy.
fn live_by(strategy: Value) -> Value {
    with(json!({ "name": "crossover-live", "enabled": true, "strategies": [strategy] }))
}

/// The shipped document with `crossover-live` on by a `default` strategy of one constraint.
fn live_where(constraint: Value) -> Value {
    live_by(json!({ "name": "default", "constraints": [constraint] }))
}
