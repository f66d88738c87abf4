//! What the schema is made of: an object with known fields, a value of a type, the nearest name. Each check notes
//! its fault and goes on, so that one reading reports them all.

use std::collections::BTreeSet;
use std::fmt;

use super::document::Fault;
use super::json::Node;

/// The fields an object may have.
pub(super) struct Shape {
    pub(super) required: &'static [&'static str],
    pub(super) optional: &'static [&'static str],
}

impl Shape {
    fn known(&self) -> impl Iterator<Item = &'static str> + Clone {
        self.required.iter().chain(self.optional).copied()
    }
}

/// A value and its path.
#[derive(Clone)]
pub(super) struct Place<'a> {
    pub(super) path: String,
    pub(super) node: &'a Node,
}

/// An object whose field names have been checked.
pub(super) struct Fields<'a> {
    path: String,
    entries: &'a [(String, Node)],
}

impl<'a> Fields<'a> {
    /// The field's value; absent where it is missing or null.
    pub(super) fn get(&self, name: &str) -> Option<Place<'a>> {
        let (_, node) = self.entries.iter().find(|(key, node)| key == name && !matches!(node, Node::Null))?;
        Some(Place { path: join(&self.path, name), node })
    }
}

/// The faults found so far.
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    pub(super) fn note(&mut self, path: &str, message: impl fmt::Display) {
        self.0.push(Fault::new(path, message));
    }

    /// Takes an object apart: no unknown field, none twice, none of the required ones missing.
    pub(super) fn object<'a>(&mut self, place: &Place<'a>, shape: &Shape) -> Option<Fields<'a>> {
        let Node::Object(entries) = place.node else { return self.wrong_type(place, "an object") };
        let fields = Fields { path: place.path.clone(), entries };
        let meant = self.unknown_fields(&fields, shape);
        for name in shape.required.iter().filter(|name| fields.get(name).is_none() && !meant.contains(*name)) {
            self.note(&join(&place.path, name), "missing");
        }
        Some(fields)
    }

    /// Notes unknown and repeated fields, and returns the names that the unknown ones were probably meant to be:
    /// these aren't missing, one fault is enough for one slip.
    fn unknown_fields(&mut self, fields: &Fields<'_>, shape: &Shape) -> BTreeSet<&'static str> {
        let (mut seen, mut meant) = (BTreeSet::new(), BTreeSet::new());
        for (key, _) in fields.entries {
            let path = join(&fields.path, key);
            if !seen.insert(key) {
                self.note(&path, "written twice; only one of them can be meant");
            } else if shape.known().all(|name| name != key) {
                let nearest = nearest(key, shape.known());
                meant.extend(nearest);
                self.note(&path, format_args!("unknown field, {}", suggestion(nearest, shape.known())));
            }
        }
        meant
    }

    pub(super) fn list<'a>(&mut self, place: Option<Place<'a>>) -> Option<Vec<Place<'a>>> {
        let place = place?;
        let Node::List(items) = place.node else { return self.wrong_type(&place, "a list") };
        let at = |(i, node)| Place { path: format!("{}[{i}]", place.path), node };
        Some(items.iter().enumerate().map(at).collect())
    }

    /// A list which must be empty, because it would change nothing or can't be judged.
    pub(super) fn empty(&mut self, place: Option<Place<'_>>, why: &str) {
        let Some(at) = place.clone() else { return };
        if self.list(place).is_some_and(|items| !items.is_empty()) {
            self.note(&at.path, why);
        }
    }

    pub(super) fn text<'a>(&mut self, place: Option<Place<'a>>) -> Option<&'a str> {
        let place = place?;
        let Node::Text(text) = place.node else { return self.wrong_type(&place, "a text") };
        Some(text)
    }

    pub(super) fn boolean(&mut self, place: Option<Place<'_>>) -> Option<bool> {
        let place = place?;
        let Node::Bool(value) = place.node else { return self.wrong_type(&place, "true or false") };
        Some(*value)
    }

    pub(super) fn number(&mut self, place: Option<Place<'_>>) -> Option<i32> {
        let place = place?;
        let Node::Int(value) = place.node else { return self.wrong_type(&place, "a whole number") };
        i32::try_from(*value).ok().or_else(|| self.wrong_type(&place, "a smaller number"))
    }

    fn wrong_type<T>(&mut self, place: &Place<'_>, wanted: &str) -> Option<T> {
        self.note(&place.path, format_args!("must be {wanted}, not {}", place.node.what()));
        None
    }
}

/// The known name that `found` was probably meant to be.
pub(super) fn nearest<'n>(found: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(&found.to_lowercase(), &name.to_lowercase());
    known
        .map(|name| (likeness(name), name))
        .filter(|(like, _)| *like >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// Half a sentence that helps: the nearest name, or all of them.
pub(super) fn suggestion<'n>(nearest: Option<&str>, known: impl Iterator<Item = &'n str>) -> String {
    match nearest {
        Some(name) => format!("did you mean {name}?"),
        None => format!("known are {}", known.collect::<Vec<_>>().join(", ")),
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
