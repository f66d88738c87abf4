//! Changes the text of a flags file and leaves everything as it was written that a change does not touch: the order of
//! keys, the spaces, the lists on one line or on many.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Change;
use super::entry::{List, NewStrategy};
use crate::flags::document::Flag;

/// Applies `changes` to a text that is a flags document. A list that comes out empty takes its strategy with it, and a
/// flag without strategies is disabled: in a file either would mean something else or be refused.
pub(super) fn apply(text: &str, changes: &[Change]) -> String {
    let mut text = text.to_owned();
    let mut emptied = Vec::new();
    for change in changes {
        let edited = match change {
            Change::Names { flag, strategy, after, .. } if after.is_empty() => {
                emptied.push((*flag, *strategy));
                None
            }
            Change::Names { flag, strategy, list, after, .. } => names(&text, *flag, *strategy, *list, after),
            Change::Add { flag, strategy } => added(&text, *flag, strategy),
            Change::Enable { flag } => enabled(&text, *flag, "true"),
        };
        text = edited.unwrap_or(text);
    }
    // From the last, so that the numbers of the others stay what they are.
    emptied.sort_by_key(|(_, strategy)| std::cmp::Reverse(*strategy));
    for (flag, strategy) in emptied {
        text = removed(&text, flag, strategy).unwrap_or(text);
        if Feature::find(&text, flag).is_some_and(|feature| items(&text, feature.strategies).is_empty()) {
            text = enabled(&text, flag, "false").unwrap_or(text);
        }
    }
    text
}

#[derive(Deserialize)]
struct Root<'a> {
    #[serde(borrow)]
    features: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Feature<'a> {
    name: String,
    #[serde(borrow)]
    enabled: &'a RawValue,
    #[serde(borrow)]
    strategies: &'a RawValue,
}

#[derive(Deserialize)]
struct Strategy<'a> {
    #[serde(borrow)]
    constraints: Vec<&'a RawValue>,
    #[serde(borrow)]
    parameters: Option<Parameters<'a>>,
}

#[derive(Deserialize)]
struct Parameters<'a> {
    #[serde(borrow, rename = "userIds")]
    user_ids: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Constraint<'a> {
    #[serde(borrow)]
    values: &'a RawValue,
}

impl<'a> Feature<'a> {
    fn find(text: &'a str, flag: Flag) -> Option<Self> {
        let root: Root<'a> = serde_json::from_str(text).ok()?;
        let features = root.features.into_iter().filter_map(|raw| serde_json::from_str::<Feature<'a>>(raw.get()).ok());
        features.into_iter().find(|feature| feature.name == flag.name())
    }
}

/// Where a piece of `text` stands in it.
fn place(text: &str, piece: &str) -> Range<usize> {
    let start = piece.as_ptr() as usize - text.as_ptr() as usize;
    start..start + piece.len()
}

/// The items of a list, each with its place.
fn items<'a>(text: &str, list: &'a RawValue) -> Vec<(&'a str, Range<usize>)> {
    let items: Vec<&'a RawValue> = serde_json::from_str(list.get()).unwrap_or_default();
    items.into_iter().map(|item| (item.get(), place(text, item.get()))).collect()
}

fn replaced(text: &str, at: Range<usize>, by: &str) -> String {
    format!("{}{by}{}", &text[..at.start], &text[at.end..])
}

fn enabled(text: &str, flag: Flag, value: &str) -> Option<String> {
    let feature = Feature::find(text, flag)?;
    Some(replaced(text, place(text, feature.enabled.get()), value))
}

/// Writes a list of accounts anew, in the style of the one before.
fn names(text: &str, flag: Flag, strategy: usize, list: List, names: &[String]) -> Option<String> {
    let feature = Feature::find(text, flag)?;
    let (raw, _) = *items(text, feature.strategies).get(strategy)?;
    let strategy: Strategy<'_> = serde_json::from_str(raw).ok()?;
    match list {
        List::UserIds => {
            let old = strategy.parameters?.user_ids?.get();
            let between = if old.contains(", ") { ", " } else { "," };
            Some(replaced(text, place(text, old), &compact(&names.join(between))))
        }
        List::Constraint(n) => {
            let constraint: Constraint<'_> = serde_json::from_str(strategy.constraints.get(n)?.get()).ok()?;
            let at = place(text, constraint.values.get());
            let (open, between, close) = style(text, constraint.values);
            let names: Vec<_> = names.iter().map(compact).collect();
            Some(replaced(text, at, &format!("[{open}{}{close}]", names.join(&format!(",{between}")))))
        }
    }
}

/// What stands between the brackets of a list beside its items: before the first, between two, after the last.
fn style<'a>(text: &'a str, list: &RawValue) -> (&'a str, &'a str, &'a str) {
    let (at, items) = (place(text, list.get()), items(text, list));
    let (Some((_, first)), Some((_, last))) = (items.first(), items.last()) else { return ("", " ", "") };
    let open = &text[at.start + 1..first.start];
    let between = items.get(1).map(|(_, second)| text[first.end..second.start].trim_start().trim_start_matches(','));
    let between = between.unwrap_or(if open.contains('\n') { open } else { " " });
    (open, between, &text[last.end..at.end - 1])
}

/// Puts a strategy behind the others, on a line of its own where they are.
fn added(text: &str, flag: Flag, strategy: &NewStrategy) -> Option<String> {
    let feature = Feature::find(text, flag)?;
    let at = place(text, feature.strategies.get());
    let strategy = spaced(strategy);
    match items(text, feature.strategies).last() {
        Some((_, last)) => {
            let (open, between, _) = style(text, feature.strategies);
            let between = if open.contains('\n') { open } else { between };
            Some(replaced(text, last.end..last.end, &format!(",{between}{strategy}")))
        }
        None => {
            let line = text[..at.start].rfind('\n').map_or(0, |end| end + 1);
            let indent: String = text[line..at.start].chars().take_while(|c| *c == ' ' || *c == '\t').collect();
            let alone = text[line..at.start].trim_start().starts_with("\"strategies\"");
            let step = if indent.starts_with('\t') { "\t" } else { "  " };
            let list = match alone {
                true => format!("[\n{indent}{step}{strategy}\n{indent}]"),
                false => format!("[{strategy}]"),
            };
            Some(replaced(text, at, &list))
        }
    }
}

fn removed(text: &str, flag: Flag, strategy: usize) -> Option<String> {
    let feature = Feature::find(text, flag)?;
    let items = items(text, feature.strategies);
    let (_, own) = items.get(strategy)?.clone();
    let gone = match strategy {
        0 if items.len() == 1 => return Some(replaced(text, place(text, feature.strategies.get()), "[]")),
        0 => own.start..items[1].1.start,
        n => items[n - 1].1.end..own.end,
    };
    Some(replaced(text, gone, ""))
}

fn compact(text: &(impl Serialize + ?Sized)) -> String {
    // A text or a derived struct of texts has nothing that could fail.
    serde_json::to_string(text).unwrap_or_default()
}

/// JSON on one line, as people write it.
fn spaced(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    match value.serialize(&mut serializer) {
        Ok(()) => String::from_utf8_lossy(&out).into_owned(),
        Err(_) => compact(value),
    }
}

struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b"{ ")
    }

    fn end_object<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b" }")
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }

    fn begin_array_value<W: ?Sized + std::io::Write>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }
}
