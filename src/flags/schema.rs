//! The strict schema of a flags file.
//!
//! The evaluator forgives: it skips a field it doesn't know (so a misspelt `constraints` turns a flag on for
//! everybody), takes an enabled flag without strategies as on for everybody, and one it can't compile as off. In a
//! file, where no server has checked anything, each of these is a fault instead.

use std::collections::BTreeSet;

use super::constraint;
use super::document::{Fault, Flag};
use super::fields::{Faults, Fields, Place, Shape, nearest, suggestion};
use super::json::Node;

const DOCUMENT: Shape = Shape { required: &["version", "features"], optional: &["segments"] };
const SEGMENT: Shape = Shape { required: &["id", "constraints"], optional: &["name"] };
const FEATURE: Shape = Shape {
    required: &["name", "enabled", "strategies"],
    optional: &["type", "description", "project", "stale", "impressionData", "variants", "dependencies"],
};
/// `constraints` is required, so that a flag that is on for everybody says so with an empty list. `disabled` isn't
/// known: the server leaves out disabled strategies, the evaluator would run them.
const STRATEGY: Shape =
    Shape { required: &["name", "constraints"], optional: &["sortOrder", "segments", "parameters", "variants"] };

/// The strategies that decide by account and kind alone. The others ask for a session, an address, this machine's
/// host name or a coin, and two routers would disagree.
const STRATEGIES: [(&str, Shape); 3] = [
    ("default", Shape { required: &[], optional: &[] }),
    ("userWithId", Shape { required: &["userIds"], optional: &[] }),
    ("flexibleRollout", Shape { required: &["rollout"], optional: &["stickiness", "groupId"] }),
];

/// Reports every fault of a document.
pub(super) fn check(root: &Node) -> Result<(), Vec<Fault>> {
    let mut faults = Faults::default();
    document(&mut faults, &Place { path: String::new(), node: root });
    if faults.0.is_empty() { Ok(()) } else { Err(faults.0) }
}

/// Reports every fault of one feature alone, with paths that begin at `name`. It has no segments to refer to.
pub(super) fn check_feature(name: &str, root: &Node) -> Result<(), Vec<Fault>> {
    let mut faults = Faults::default();
    let place = Place { path: name.to_owned(), node: root };
    feature(&mut faults, &place, &BTreeSet::new(), &mut BTreeSet::new());
    if faults.0.is_empty() { Ok(()) } else { Err(faults.0) }
}

fn document(faults: &mut Faults, place: &Place<'_>) {
    let Some(fields) = faults.object(place, &DOCUMENT) else { return };
    let version = fields.get("version");
    if faults.number(version.clone()).is_some_and(|number| !(1..=2).contains(&number)) {
        faults.note("version", "must be 1 or 2");
    }
    let segments = segments(faults, &fields);
    let Some(features) = faults.list(fields.get("features")) else { return };
    let mut seen = BTreeSet::new();
    for place in &features {
        feature(faults, place, &segments, &mut seen);
    }
    for flag in Flag::ALL.iter().filter(|flag| !seen.contains(flag.name())) {
        faults.note("features", format_args!("{} is missing; a file holds all four flags", flag.name()));
    }
}

/// Checks the segments and returns the ids that a strategy may use.
fn segments(faults: &mut Faults, fields: &Fields<'_>) -> BTreeSet<i32> {
    let mut ids = BTreeSet::new();
    for place in faults.list(fields.get("segments")).unwrap_or_default() {
        let Some(fields) = faults.object(&place, &SEGMENT) else { continue };
        if faults.number(fields.get("id")).is_some_and(|id| !ids.insert(id)) {
            faults.note(&format!("{}.id", place.path), "another segment has this id");
        }
        faults.text(fields.get("name"));
        if constraint::check_all(faults, fields.get("constraints")) == Some(0) {
            faults.note(&format!("{}.constraints", place.path), "empty: the segment would hold everybody");
        }
    }
    ids
}

fn feature(faults: &mut Faults, place: &Place<'_>, segments: &BTreeSet<i32>, seen: &mut BTreeSet<&'static str>) {
    let Some(fields) = faults.object(place, &FEATURE) else { return };
    if let Some(name) = faults.text(fields.get("name")) {
        feature_name(faults, &format!("{}.name", place.path), name, seen);
    }
    for text in ["type", "description", "project"] {
        faults.text(fields.get(text));
    }
    for boolean in ["stale", "impressionData"] {
        faults.boolean(fields.get(boolean));
    }
    faults.empty(fields.get("variants"), "the four flags are booleans: leave the variants out");
    faults.empty(fields.get("dependencies"), "leave them out: the stages already say which flag wins");
    let enabled = faults.boolean(fields.get("enabled")).unwrap_or(false);
    let strategies = faults.list(fields.get("strategies"));
    if enabled && strategies.as_ref().is_some_and(Vec::is_empty) {
        let message = "empty on an enabled flag, which would be on for everybody; \
                       if that is meant, write a `default` strategy with `\"constraints\": []`";
        faults.note(&format!("{}.strategies", place.path), message);
    }
    for place in strategies.unwrap_or_default() {
        strategy(faults, &place, segments);
    }
}

fn feature_name(faults: &mut Faults, path: &str, name: &str, seen: &mut BTreeSet<&'static str>) {
    let known = || Flag::ALL.iter().map(|flag| flag.name());
    match known().find(|known| *known == name) {
        Some(flag) if !seen.insert(flag) => faults.note(path, format_args!("{flag} comes twice")),
        Some(_) => {}
        None => {
            let nearest = nearest(name, known());
            // Not missing as well: one fault is enough for one slip.
            seen.extend(nearest);
            faults.note(path, format_args!("`{name}` is none of the four flags, {}", suggestion(nearest, known())));
        }
    }
}

fn strategy(faults: &mut Faults, place: &Place<'_>, segments: &BTreeSet<i32>) {
    let Some(fields) = faults.object(place, &STRATEGY) else { return };
    if let Some(name) = faults.text(fields.get("name")) {
        match STRATEGIES.iter().find(|(known, _)| *known == name) {
            Some((_, shape)) => parameters(faults, &place.path, fields.get("parameters"), shape),
            None => unknown_strategy(faults, &place.path, name),
        }
    }
    faults.number(fields.get("sortOrder"));
    faults.empty(fields.get("variants"), "the four flags are booleans: leave the variants out");
    constraint::check_all(faults, fields.get("constraints"));
    for place in faults.list(fields.get("segments")).unwrap_or_default() {
        let path = place.path.clone();
        if let Some(id) = faults.number(Some(place)).filter(|id| !segments.contains(id)) {
            faults.note(&path, format_args!("no segment has the id {id}"));
        }
    }
}

fn unknown_strategy(faults: &mut Faults, path: &str, name: &str) {
    let known = STRATEGIES.iter().map(|(name, _)| *name);
    let help = suggestion(nearest(name, known.clone()), known);
    let message = format!("`{name}` is no strategy that decides by account and kind alone, {help}");
    faults.note(&format!("{path}.name"), message);
}

fn parameters(faults: &mut Faults, strategy: &str, place: Option<Place<'_>>, shape: &Shape) {
    let nothing = Node::Object(Vec::new());
    let place = place.unwrap_or(Place { path: format!("{strategy}.parameters"), node: &nothing });
    let Some(fields) = faults.object(&place, shape) else { return };
    for name in shape.required.iter().chain(shape.optional) {
        if let Some(text) = faults.text(fields.get(name))
            && let Err(message) = parameter(name, text)
        {
            faults.note(&format!("{}.{name}", place.path), message);
        }
    }
}

fn parameter(name: &str, text: &str) -> Result<(), &'static str> {
    match name {
        "userIds" => text.split(',').try_for_each(|account| constraint::matchable(account.trim())),
        "rollout" if !text.parse::<u8>().is_ok_and(|percent| percent <= 100) => Err("must be a text from 0 to 100"),
        "stickiness" if !["default", "userId"].contains(&text) => {
            Err("must be default or userId: anything else is a coin or a value that no router has")
        }
        "groupId" if text.is_empty() || text.contains(['"', '\\']) => {
            Err("must be a text without quotation marks and backslashes")
        }
        _ => Ok(()),
    }
}
