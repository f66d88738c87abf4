//! Checks what a caller sends. Every fault is named at once, with its field; nothing bad reaches the ledger.

use chrono::{DateTime, TimeDelta, Utc};
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::interaction::{Interaction, Payload};
use crate::policy::Policy;

pub(crate) mod after;

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Fault {
    /// Its name; nested ones with dots.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

/// Why a request can't be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// It is no JSON object.
    #[error("the body is no JSON object: {0}")]
    Syntax(String),
    /// The payload is longer than the limit.
    #[error("the payload has {bytes} bytes, the limit is {limit}")]
    TooLarge {
        /// Its length.
        bytes: usize,
        /// `http.max_payload_bytes`.
        limit: usize,
    },
    /// Fields are missing, unknown or bad.
    #[error("{}", .0.iter().map(|f| format!("{}: {}", f.field, f.message)).collect::<Vec<_>>().join("; "))]
    Invalid(Vec<Fault>),
}

pub(crate) const FIELDS: [&str; 11] =
    ["account", "kind", "payload", "key", "series", "group", "run_at", "priority", "after", "exclusive", "policy"];
pub(crate) const POLICY: [&str; 7] = [
    "max_attempts",
    "backoff",
    "start_timeout_ms",
    "run_timeout_ms",
    "heartbeat_timeout_ms",
    "give_up_after_ms",
    "on_unknown",
];

/// No payload is larger, whatever the configuration says: Temporal refuses blobs of over 2 MiB.
const LARGEST_PAYLOAD: usize = 3 << 19;

/// How far back and ahead a `run_at` may lie.
const PAST: TimeDelta = TimeDelta::days(30);
const AHEAD: TimeDelta = TimeDelta::days(366);

/// Reads the body of `POST /v1/interactions`. An absent key is made here.
pub fn parse(body: &[u8], max_payload: usize, now: DateTime<Utc>) -> Result<Interaction, RequestError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| RequestError::Syntax(format!("invalid UTF-8 after byte {}", e.valid_up_to())))?;
    let fields: Fields = serde_json::from_str(text).map_err(|e| RequestError::Syntax(e.to_string()))?;
    let mut reader = Reader { prefix: "", fields, faults: Vec::new() };
    reader.known(&FIELDS);
    let payload = reader.raw("payload").map(|raw| Payload::parse(raw.get().to_owned()));
    let key: Option<String> = reader.take("key");
    let account = reader.required("account");
    let interaction = Interaction {
        after: reader.raw("after").and_then(|raw| after::read(&raw, &account, &mut reader.faults)),
        account,
        kind: reader.required("kind"),
        key_made: key.is_none(),
        key: key.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()),
        payload: match payload {
            Some(Ok(payload)) => payload,
            Some(Err(error)) => {
                reader.fault("payload", plain(&error));
                null()
            }
            None => {
                reader.fault("payload", "is missing; any JSON value is one, null too".to_owned());
                null()
            }
        },
        series: reader.take("series"),
        group: reader.take("group"),
        exclusive: reader.take("exclusive"),
        run_at: reader.take("run_at"),
        priority: reader.take("priority").unwrap_or(0),
        policy: reader.raw("policy").map_or_else(Policy::default, |raw| policy(&raw, &mut reader.faults)),
    };
    let bytes = interaction.payload.get().len();
    if bytes > max_payload {
        return Err(RequestError::TooLarge { bytes, limit: max_payload });
    }
    let mut faults = reader.faults;
    for fault in check(&interaction, now) {
        if !faults.iter().any(|known| known.field == fault.field) {
            faults.push(fault);
        }
    }
    if faults.is_empty() { Ok(interaction) } else { Err(RequestError::Invalid(faults)) }
}

/// Reads the body of `POST /v1/interactions/batch`: what each of its interactions is made of, unread.
pub fn parse_batch(body: &[u8], most: usize) -> Result<Vec<Box<RawValue>>, RequestError> {
    let text = std::str::from_utf8(body)
        .map_err(|e| RequestError::Syntax(format!("invalid UTF-8 after byte {}", e.valid_up_to())))?;
    let fields: Fields = serde_json::from_str(text).map_err(|e| RequestError::Syntax(e.to_string()))?;
    let mut reader = Reader { prefix: "", fields, faults: Vec::new() };
    reader.known(&["interactions"]);
    let before = reader.faults.len();
    let items: Option<Vec<Box<RawValue>>> = reader.take("interactions");
    match items.as_ref().map(Vec::len) {
        None if reader.faults.len() == before => reader.fault("interactions", "is missing".to_owned()),
        Some(0) => reader.fault("interactions", "is empty".to_owned()),
        Some(n) if n > most => {
            reader.fault("interactions", format!("has {n} interactions, the limit is {most}; send several batches"));
        }
        _ => {}
    }
    let faults = reader.faults;
    if faults.is_empty() { Ok(items.unwrap_or_default()) } else { Err(RequestError::Invalid(faults)) }
}

/// What an interaction of a batch has to do with the others.
#[derive(Debug)]
pub struct Names {
    /// What it must keep its order with: its series, else its key.
    pub chain: Option<String>,
    /// Its name, where it has a key.
    pub id: Option<uuid::Uuid>,
    /// What it waits for.
    pub after: Vec<uuid::Uuid>,
}

/// The names in an interaction of a batch. None: it has none, or can't be read, which its answer will say.
pub fn names_of(item: &RawValue) -> Option<Names> {
    #[derive(serde::Deserialize)]
    struct Read {
        account: String,
        kind: Option<String>,
        key: Option<String>,
        series: Option<String>,
        after: Option<Box<RawValue>>,
    }
    let read: Read = serde_json::from_str(item.get()).ok()?;
    let account = &read.account;
    let chain = match (&read.series, &read.key) {
        (Some(series), _) => read.kind.map(|kind| format!("series\0{account}\0{kind}\0{series}")),
        (None, Some(key)) => Some(format!("key\0{account}\0{key}")),
        (None, None) => None,
    };
    let after = read.after.and_then(|raw| after::read(&raw, account, &mut Vec::new()));
    let id = read.key.map(|key| after::id_of_key(account, &key));
    Some(Names { chain, id, after: after.map(|after| after.ids).unwrap_or_default() })
}

/// Every fault of an interaction, whoever made it.
pub fn check(interaction: &Interaction, now: DateTime<Utc>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut push = |field: &str, message| faults.push(Fault { field: field.to_owned(), message });
    let names = [
        ("account", Some(&interaction.account), 200),
        ("kind", Some(&interaction.kind), 100),
        ("key", Some(&interaction.key), 400),
        ("series", interaction.series.as_ref(), 400),
        ("group", interaction.group.as_ref(), 100),
        ("exclusive", interaction.exclusive.as_ref(), 400),
    ];
    for (field, name, most) in names {
        if let Some(message) = name.and_then(|name| name_fault(name, most)) {
            push(field, message);
        }
    }
    let bytes = interaction.payload.get().len();
    if bytes > LARGEST_PAYLOAD {
        push("payload", format!("has {bytes} bytes, the limit is {LARGEST_PAYLOAD}"));
    }
    if !(-100..=100).contains(&interaction.priority) {
        push("priority", format!("must be -100 to 100, is {}", interaction.priority));
    }
    if let Some(at) = interaction.run_at.filter(|at| *at < now - PAST || *at > now + AHEAD) {
        let (back, ahead) = (PAST.num_days(), AHEAD.num_days());
        push("run_at", format!("is {at}, more than {back} days ago or {ahead} days ahead of {now}"));
    }
    if let Some(message) = interaction.after.as_ref().and_then(|after| after::fault(after, interaction.id())) {
        push("after", message);
    }
    interaction.policy.faults().into_iter().for_each(|(field, message)| push(field, message));
    faults
}

pub(crate) fn name_fault(name: &str, most: usize) -> Option<String> {
    match name.chars().count() {
        0 => Some("is empty".to_owned()),
        n if n > most => Some(format!("has {n} characters, the limit is {most}")),
        _ => name.chars().find(|c| c.is_control()).map(|c| format!("holds the control character U+{:04X}", c as u32)),
    }
}

/// Reads a policy; what is wrong with it is pushed to `faults`.
pub(crate) fn policy(raw: &RawValue, faults: &mut Vec<Fault>) -> Policy {
    let fields = match serde_json::from_str(raw.get()) {
        Ok(fields) => fields,
        Err(error) => {
            faults.push(Fault { field: "policy".to_owned(), message: error.to_string() });
            return Policy::default();
        }
    };
    let mut reader = Reader { prefix: "policy.", fields, faults: Vec::new() };
    reader.known(&POLICY);
    let default = Policy::default();
    let policy = Policy {
        max_attempts: reader.take("max_attempts").unwrap_or(default.max_attempts),
        backoff: reader.take("backoff").unwrap_or(default.backoff),
        start_timeout_ms: reader.take("start_timeout_ms"),
        run_timeout_ms: reader.take("run_timeout_ms").unwrap_or(default.run_timeout_ms),
        heartbeat_timeout_ms: reader.take("heartbeat_timeout_ms"),
        give_up_after_ms: reader.take("give_up_after_ms"),
        on_unknown: reader.take("on_unknown").unwrap_or_default(),
    };
    faults.append(&mut reader.faults);
    policy
}

fn null() -> Payload {
    serde_json::from_str("null").unwrap_or_else(|_| unreachable!("null is JSON"))
}

/// The fields of an object in their order, doubles and all, their values as they were written.
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Fields;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

/// Takes fields out of an object and gathers what is wrong with them.
pub(crate) struct Reader {
    pub(crate) prefix: &'static str,
    pub(crate) fields: Fields,
    pub(crate) faults: Vec<Fault>,
}

impl Reader {
    pub(crate) fn fault(&mut self, field: &str, message: String) {
        self.faults.push(Fault { field: format!("{}{field}", self.prefix), message });
    }

    /// Reports fields that there are not, and those that come twice.
    pub(crate) fn known(&mut self, names: &[&str]) {
        let found: Vec<String> = self.fields.0.iter().map(|(name, _)| name.clone()).collect();
        for (i, name) in found.iter().enumerate() {
            if !names.contains(&name.as_str()) {
                let near = names.iter().max_by(|a, b| strsim::jaro(a, name).total_cmp(&strsim::jaro(b, name)));
                self.fault(name, format!("is no field; did you mean `{}`?", near.unwrap_or(&"")));
            } else if found[..i].contains(name) {
                self.fault(name, "comes twice".to_owned());
            }
        }
    }

    pub(crate) fn raw(&mut self, name: &str) -> Option<Box<RawValue>> {
        let at = self.fields.0.iter().position(|(field, _)| field == name)?;
        Some(self.fields.0.swap_remove(at).1)
    }

    /// The value of an optional field; `null` is as good as absent.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, name: &str) -> Option<T> {
        let raw = self.raw(name)?;
        match serde_json::from_str::<Option<T>>(raw.get()) {
            Ok(value) => value,
            Err(error) => {
                self.fault(name, plain(&error));
                None
            }
        }
    }

    pub(crate) fn required(&mut self, name: &str) -> String {
        let before = self.faults.len();
        let value = self.take(name);
        if value.is_none() && self.faults.len() == before {
            self.fault(name, "is missing".to_owned());
        }
        value.unwrap_or_default()
    }
}

/// serde's words without the place, which would count from the value's own start.
pub(crate) fn plain(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Result<Interaction, RequestError> {
        parse(text.as_bytes(), 100, DateTime::UNIX_EPOCH)
    }

    fn faults(text: &str) -> Vec<String> {
        match at(text) {
            Err(RequestError::Invalid(faults)) => faults.into_iter().map(|f| f.field).collect(),
            other => panic!("not a list of faults: {other:?}"),
        }
    }

    #[test]
    fn a_payload_arrives_as_it_was_written() {
        let interaction = at(r#"{"account":"a","kind":"k","payload": {"z": 1.50, "a":"\u0000"} }"#).unwrap();
        assert_eq!(interaction.payload.get(), r#"{"z": 1.50, "a":"\u0000"}"#);
        assert!(!interaction.key.is_empty());
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let text = r#"{"account":"","kind":7,"payload":1,"priority":101,"acount":"x","key":"a\u0000b",
            "run_at":"1990-01-01T00:00:00Z","policy":{"max_attempts":0,"max_atempts":1,"run_timeout_ms":"x"}}"#;
        let mut found = faults(text);
        found.sort();
        let wanted = [
            "account",
            "acount",
            "key",
            "kind",
            "policy.max_atempts",
            "policy.max_attempts",
            "policy.run_timeout_ms",
            "priority",
            "run_at",
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_misspelt_field_is_answered_with_the_nearest() {
        let Err(RequestError::Invalid(faults)) = at(r#"{"account":"a","kind":"k","payload":1,"serie":"s"}"#) else {
            panic!("accepted")
        };
        assert_eq!(faults[0].message, "is no field; did you mean `series`?");
    }

    #[test]
    fn missing_fields_doubles_and_long_names_are_faults() {
        assert_eq!(faults("{}"), ["account", "kind", "payload"]);
        assert_eq!(faults(r#"{"account":"a","account":"b","kind":"k","payload":1}"#), ["account"]);
        let long = "x".repeat(201);
        assert_eq!(faults(&format!(r#"{{"account":"{long}","kind":"k","payload":1}}"#)), ["account"]);
    }

    #[test]
    fn a_far_future_is_a_fault_and_a_near_one_is_not() {
        let with = |run_at: &str| format!(r#"{{"account":"a","kind":"k","payload":1,"run_at":"{run_at}"}}"#);
        assert_eq!(faults(&with("1971-06-01T00:00:00Z")), ["run_at"]);
        assert_eq!(faults(&with("tomorrow")), ["run_at"]);
        assert!(at(&with("1970-06-01T00:00:00Z")).is_ok());
    }

    #[test]
    fn a_payload_over_the_limit_and_a_broken_body_are_told_apart() {
        let long = format!(r#"{{"account":"a","kind":"k","payload":"{}"}}"#, "x".repeat(99));
        assert_eq!(at(&long).unwrap_err(), RequestError::TooLarge { bytes: 101, limit: 100 });
        assert!(matches!(at("{"), Err(RequestError::Syntax(_))));
        assert!(matches!(at("[1]"), Err(RequestError::Syntax(_))));
        let garbage = parse(b"{\"account\":\"\xff\"}", 100, DateTime::UNIX_EPOCH);
        assert_eq!(garbage.unwrap_err(), RequestError::Syntax("invalid UTF-8 after byte 12".to_owned()));
    }

    proptest! {
        #[test]
        fn no_body_panics(body in ".*") {
            let _ = parse(body.as_bytes(), 100, DateTime::UNIX_EPOCH);
        }
    }
}
