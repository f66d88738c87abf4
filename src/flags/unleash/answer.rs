//! What Unleash says, read for the four flags alone: what stands elsewhere in its document may be anything, so that an
//! upgrade of Unleash or somebody else's flag never blocks a rollback.
//!
//! Each of the four is taken for itself, too. It is brought into the form that a file has and checked by the same
//! schema, which refuses what would mean something else to the evaluator, or to two routers. Fields of a flag or a
//! strategy that aren't known are passed over: Unleash sends nothing that changes a meaning beyond the version of
//! its client specification that was asked for.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::flags::document::{Fault, Flag};
use crate::flags::evaluate::Evaluator;
use crate::flags::json::Node;
use crate::flags::schema;

/// Unleash's document, as far as it concerns us. Pure.
#[derive(Debug)]
pub(super) struct Answer {
    /// Grows with every change in Unleash's environment; not every server tells it.
    pub(super) revision: Option<u64>,
    pub(super) flags: BTreeMap<Flag, Found>,
}

/// One of the four flags, as it was found.
#[derive(Debug)]
pub(super) enum Found {
    /// As a file would say it.
    Good(Value),
    /// Not in the document.
    Missing,
    /// In it, but not to be used.
    Refused(Vec<Fault>),
}

impl Answer {
    /// Reads a document; the error says why it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let root: Value = serde_json::from_str(text).map_err(|error| format!("it isn't JSON: {error}"))?;
        let features = root["features"].as_array().ok_or("it holds no list `features`")?;
        let segments = Segments::of(&root);
        let find = |flag: Flag| features.iter().find(|feature| feature["name"] == flag.name());
        let flags: BTreeMap<_, _> = Flag::ALL
            .into_iter()
            .map(|flag| (flag, find(flag).map_or(Found::Missing, |f| found(flag, f, &segments))))
            .collect();
        if flags.values().all(|found| matches!(found, Found::Missing)) {
            return Err(format!("it holds {} features and none of the four flags", features.len()));
        }
        Ok(Self { revision: root["meta"]["revisionId"].as_u64(), flags })
    }
}

/// A feature that is off for everybody, as a file would say it.
pub(super) fn off(flag: Flag) -> Value {
    json!({ "name": flag.name(), "enabled": false, "strategies": [] })
}

fn found(flag: Flag, feature: &Value, segments: &Segments<'_>) -> Found {
    let normal = normal(flag, feature, segments);
    match check(flag, &normal) {
        Ok(()) => Found::Good(normal),
        Err(faults) => Found::Refused(faults),
    }
}

/// The schema, and the evaluator itself.
fn check(flag: Flag, feature: &Value) -> Result<(), Vec<Fault>> {
    let root: Node = serde_json::from_value(feature.clone()).map_err(|error| vec![Fault::new(flag.name(), error)])?;
    schema::check_feature(flag.name(), &root)?;
    Evaluator::compile(&json!({ "version": 2, "features": [feature] }).to_string()).map(drop)
}

/// The feature as a file would hold it. What isn't as it should be is left for the schema to name.
fn normal(flag: Flag, feature: &Value, segments: &Segments<'_>) -> Value {
    let mut normal = Map::from_iter([("name".to_owned(), json!(flag.name()))]);
    for field in ["enabled", "dependencies"] {
        copy(feature, field, &mut normal);
    }
    let strategies = feature.get("strategies").cloned().unwrap_or_default();
    let strategies = match strategies.as_array() {
        Some(list) => strategies_of(flag, list, &mut normal, segments),
        None => strategies,
    };
    normal.insert("strategies".to_owned(), strategies);
    Value::Object(normal)
}

fn strategies_of(flag: Flag, list: &[Value], normal: &mut Map<String, Value>, segments: &Segments<'_>) -> Value {
    let used: Vec<_> = list.iter().filter(|one| one["disabled"] != true).map(|one| strategy(one, segments)).collect();
    if list.is_empty() && flag == Flag::Kill {
        // The switch of an emergency is on for everybody when it is on, whatever else somebody has set there or not.
        return json!([{ "name": "default", "constraints": [] }]);
    }
    if used.is_empty() && !list.is_empty() {
        // Strategies are joined by `or`: none that counts is nobody. A list without any would be everybody.
        normal.insert("enabled".to_owned(), json!(false));
    }
    Value::Array(used)
}

fn strategy(strategy: &Value, segments: &Segments<'_>) -> Value {
    if !strategy.is_object() {
        return strategy.clone();
    }
    let mut normal = Map::new();
    for field in ["name", "parameters"] {
        copy(strategy, field, &mut normal);
    }
    let constraints = strategy.get("constraints").cloned().unwrap_or_else(|| json!([]));
    match (constraints, segments.constraints(strategy)) {
        (Value::Array(mut own), Ok(more)) => {
            own.extend(more);
            normal.insert("constraints".to_owned(), own.into());
        }
        (constraints, more) => {
            normal.insert("constraints".to_owned(), constraints);
            // The schema knows no segments here, and says so of each.
            if more.is_err() {
                copy(strategy, "segments", &mut normal);
            }
        }
    }
    Value::Object(normal)
}

fn copy(from: &Value, field: &str, to: &mut Map<String, Value>) {
    if let Some(value) = from.get(field).filter(|value| !value.is_null()) {
        to.insert(field.to_owned(), value.clone());
    }
}

/// The constraints of the segments that a document brings along. A strategy's segments are joined to it by `and`, as
/// its constraints are, so they can stand among these.
struct Segments<'a>(BTreeMap<i64, &'a Vec<Value>>);

impl<'a> Segments<'a> {
    fn of(root: &'a Value) -> Self {
        let list = root["segments"].as_array().map_or(&[][..], Vec::as_slice);
        Self(list.iter().filter_map(|one| Some((one["id"].as_i64()?, one["constraints"].as_array()?))).collect())
    }

    /// The constraints of a strategy's segments; an error where one isn't known.
    fn constraints(&self, strategy: &Value) -> Result<Vec<Value>, ()> {
        let ids = match &strategy["segments"] {
            Value::Null => return Ok(Vec::new()),
            ids => ids.as_array().ok_or(())?,
        };
        let lists = ids.iter().map(|id| id.as_i64().and_then(|id| self.0.get(&id).copied()).ok_or(()));
        Ok(lists.collect::<Result<Vec<_>, ()>>()?.into_iter().flatten().cloned().collect())
    }
}
