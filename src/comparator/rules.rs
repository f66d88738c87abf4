//! What is tolerated, by kind: how late, how early, and what of a payload may differ.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use regex::Regex;
use serde_json::Value;

use crate::interaction::Payload;

/// What is tolerated of one kind.
#[derive(Debug, Clone)]
pub struct Rules {
    /// So much after it was due it is late, if others overtook it.
    pub late: TimeDelta,
    /// So much before it was due it is early.
    pub early: TimeDelta,
    /// The waits between attempts may differ by so much.
    pub retry: TimeDelta,
    /// JSON pointers of what a payload's comparison leaves out.
    pub ignore: Vec<String>,
    /// What is replaced in a payload's texts before they are compared.
    pub clean: Vec<Clean>,
}

/// Replaces what matches in a text.
#[derive(Debug, Clone)]
pub struct Clean {
    /// What is looked for.
    pub pattern: Regex,
    /// What stands for it; `$1` is the first group.
    pub replacement: String,
}

/// The rules of every kind.
#[derive(Debug, Clone)]
pub struct RuleBook {
    /// Where a kind has none of its own.
    pub others: Rules,
    /// By kind.
    pub kinds: BTreeMap<String, Rules>,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            late: TimeDelta::seconds(5),
            early: TimeDelta::milliseconds(500),
            retry: TimeDelta::milliseconds(500),
            ignore: Vec::new(),
            clean: Vec::new(),
        }
    }
}

impl RuleBook {
    /// The rules of `kind`.
    pub fn of(&self, kind: &str) -> &Rules {
        self.kinds.get(kind).unwrap_or(&self.others)
    }
}

impl Rules {
    /// Whether two payloads are the same, once what is ignored is left out and what is cleaned is replaced.
    pub fn same(&self, one: &Payload, other: &Payload) -> bool {
        if self.ignore.is_empty() && self.clean.is_empty() {
            return one.get() == other.get();
        }
        match (self.cleaned(one), self.cleaned(other)) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
    }

    fn cleaned(&self, payload: &Payload) -> Result<Value, serde_json::Error> {
        let mut value = serde_json::from_str(payload.get())?;
        self.ignore.iter().for_each(|pointer| remove(&mut value, pointer));
        if !self.clean.is_empty() {
            self.replace(&mut value);
        }
        Ok(value)
    }

    fn replace(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                for clean in &self.clean {
                    *text = clean.pattern.replace_all(text, clean.replacement.as_str()).into_owned();
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.replace(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.replace(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
}

/// Takes out what a JSON pointer (RFC 6901) names.
fn remove(value: &mut Value, pointer: &str) {
    let Some((parent, last)) = pointer.rsplit_once('/') else { return };
    let key = last.replace("~1", "/").replace("~0", "~");
    match value.pointer_mut(parent) {
        Some(Value::Object(fields)) => drop(fields.remove(&key)),
        // Its place is kept, so that the others keep their numbers.
        Some(Value::Array(items)) => {
            if let Some(item) = key.parse::<usize>().ok().and_then(|at| items.get_mut(at)) {
                *item = Value::Null;
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(text: &str) -> Payload {
        Payload::parse(text.to_owned()).unwrap()
    }

    #[test]
    fn what_is_ignored_may_differ_and_nothing_else() {
        let rules = Rules { ignore: vec!["/sent_at".into(), "/items/1/n".into(), "/a~1b".into()], ..Rules::default() };
        let one = payload(r#"{"sent_at":1,"a/b":2,"items":[{"n":1},{"n":2,"of":3}]}"#);
        assert!(rules.same(&one, &payload(r#"{"sent_at":9,"items":[{"n":1},{"n":7,"of":3}]}"#)));
        assert!(!rules.same(&one, &payload(r#"{"sent_at":9,"items":[{"n":7},{"n":2,"of":3}]}"#)));
    }

    #[test]
    fn what_is_cleaned_compares_as_its_replacement() {
        let clean = vec![Clean { pattern: Regex::new("[0-9a-f]{8}").unwrap(), replacement: "ID".into() }];
        let rules = Rules { clean, ..Rules::default() };
        assert!(rules.same(&payload(r#"{"a":["x-00112233"]}"#), &payload(r#"{ "a": ["x-44556677"] }"#)));
        assert!(!rules.same(&payload(r#"{"a":["x-00112233"]}"#), &payload(r#"{"a":["y-44556677"]}"#)));
    }

    #[test]
    fn without_rules_every_byte_counts() {
        assert!(!Rules::default().same(&payload("[1]"), &payload("[1 ]")));
    }
}
