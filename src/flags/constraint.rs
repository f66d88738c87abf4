//! The constraints of a strategy or a segment.
//!
//! The evaluator turns a constraint into a line of text in a language of its own and parses that. It escapes
//! quotation marks but not backslashes, and numbers and names not at all: what could mean something else there is
//! refused here. So is what it would ignore.

use super::fields::{Faults, Fields, Place, Shape, nearest, suggestion};

const CONSTRAINT: Shape =
    Shape { required: &["contextName", "operator"], optional: &["values", "value", "inverted", "caseInsensitive"] };

/// All that a decision knows. Another name has no value, and `NOT_IN` is true of that for everybody.
const CONTEXT: [&str; 2] = ["userId", "kind"];

/// What an operator compares with.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Operand {
    /// `values`, whole.
    Names,
    /// `values`, as parts of a text; the only ones that can ignore case.
    Parts,
    /// `value`, a number.
    Number,
}

/// The operators that judge a plain text. `REGEX` isn't among them: the evaluator takes a pattern it can't compile
/// as one that matches nobody.
const OPERATORS: [(&str, Operand); 10] = [
    ("IN", Operand::Names),
    ("NOT_IN", Operand::Names),
    ("STR_STARTS_WITH", Operand::Parts),
    ("STR_ENDS_WITH", Operand::Parts),
    ("STR_CONTAINS", Operand::Parts),
    ("NUM_EQ", Operand::Number),
    ("NUM_GT", Operand::Number),
    ("NUM_GTE", Operand::Number),
    ("NUM_LT", Operand::Number),
    ("NUM_LTE", Operand::Number),
];

/// Checks a list of constraints and returns how many there are.
pub(super) fn check_all(faults: &mut Faults, list: Option<Place<'_>>) -> Option<usize> {
    let places = faults.list(list)?;
    for place in &places {
        check(faults, place);
    }
    Some(places.len())
}

fn check(faults: &mut Faults, place: &Place<'_>) {
    let Some(fields) = faults.object(place, &CONSTRAINT) else { return };
    if let Some(name) = faults.text(fields.get("contextName")).filter(|name| !CONTEXT.contains(name)) {
        let help = suggestion(nearest(name, CONTEXT.into_iter()), CONTEXT.into_iter());
        let message = format!("`{name}` isn't known when a flag is asked, {help}");
        faults.note(&format!("{}.contextName", place.path), message);
    }
    faults.boolean(fields.get("inverted"));
    let ignores_case = faults.boolean(fields.get("caseInsensitive")).unwrap_or(false);
    let Some(operator) = faults.text(fields.get("operator")) else { return };
    match OPERATORS.iter().find(|(known, _)| *known == operator) {
        Some((_, operand)) => {
            if ignores_case && *operand != Operand::Parts {
                faults.note(&format!("{}.caseInsensitive", place.path), format_args!("{operator} would ignore it"));
            }
            operands(faults, &place.path, &fields, operator, *operand);
        }
        None => unknown_operator(faults, &place.path, operator),
    }
}

fn unknown_operator(faults: &mut Faults, path: &str, operator: &str) {
    let known = OPERATORS.iter().map(|(name, _)| *name);
    let help = suggestion(nearest(operator, known.clone()), known);
    faults.note(&format!("{path}.operator"), format_args!("`{operator}` is no operator that a file may use, {help}"));
}

fn operands(faults: &mut Faults, path: &str, fields: &Fields<'_>, operator: &str, operand: Operand) {
    let values = faults.list(fields.get("values")).unwrap_or_default();
    let value = faults.text(fields.get("value"));
    let (used, unused) = if operand == Operand::Number { ("value", "values") } else { ("values", "value") };
    let (given, ignored) = match operand {
        Operand::Number => (value.is_some(), !values.is_empty()),
        Operand::Names | Operand::Parts => (!values.is_empty(), value.is_some_and(|value| !value.is_empty())),
    };
    if !given {
        faults.note(&format!("{path}.{used}"), format_args!("{operator} needs something to compare with"));
    }
    if ignored {
        faults.note(&format!("{path}.{unused}"), format_args!("{operator} would ignore it and look at {used}"));
    }
    if operand == Operand::Number && value.is_some_and(|value| !is_number(value)) {
        faults.note(&format!("{path}.value"), "must be a text that is a number");
    }
    for place in values {
        let path = place.path.clone();
        if let Some(Err(message)) = faults.text(Some(place)).map(matchable) {
            faults.note(&path, message);
        }
    }
}

/// Whether the evaluator can compare with `text` and mean what is written.
pub(super) fn matchable(text: &str) -> Result<(), &'static str> {
    match text {
        "" => Err("an empty text: it would match nobody, or everybody"),
        _ if text.ends_with('\\') => Err("the evaluator can't compare with a text that ends with a backslash"),
        _ => Ok(()),
    }
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit() || c == '-') && text.parse::<f64>().is_ok_and(f64::is_finite)
}
