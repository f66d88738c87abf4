//! The one setting that is a table of tables: what is tolerated of a kind, where that is not what is tolerated of all.

use std::collections::BTreeMap;
use std::time::Duration;

use regex::Regex;

use super::reader::{Found, Raw, Reader};

/// `[comparator.kinds.NAME]`
#[derive(Debug, Clone, Default)]
pub struct Kind {
    /// Instead of `comparator.late`.
    pub late: Option<Duration>,
    /// Instead of `comparator.early`.
    pub early: Option<Duration>,
    /// Instead of `comparator.retry`.
    pub retry: Option<Duration>,
    /// JSON pointers (RFC 6901) of what is left out when payloads are compared.
    pub ignore: Vec<String>,
    /// What is replaced in a payload's texts before they are compared.
    pub clean: Vec<(Regex, String)>,
}

const KEYS: [&str; 5] = ["late", "early", "retry", "ignore", "clean"];

/// Reads the table under `key`, and notes every fault of every entry.
pub(super) fn read(r: &mut Reader, key: &'static str) -> BTreeMap<String, Kind> {
    let mut kinds = BTreeMap::new();
    let Some(found) = r.value(key) else { return kinds };
    let Raw::Table(entries) = found.raw else {
        r.push(key, Some(found.origin), "must be a table of kinds, like [comparator.kinds.NAME] in the file");
        return kinds;
    };
    for (name, entry) in entries {
        let path = format!("{key}.{name}");
        match entry.raw {
            Raw::Table(settings) => drop(kinds.insert(name, kind(r, &path, settings))),
            _ => r.push(path, Some(entry.origin), "must be a table, like { late = \"30s\" }"),
        }
    }
    kinds
}

/// Reads a table of durations by kind under `key`, and notes every fault of every entry.
pub(super) fn durations(r: &mut Reader, key: &'static str) -> BTreeMap<String, Duration> {
    let mut kinds = BTreeMap::new();
    let Some(found) = r.value(key) else { return kinds };
    let Raw::Table(entries) = found.raw else {
        r.push(key, Some(found.origin), "must be a table of kinds in the file, like { webhook = \"7days\" }");
        return kinds;
    };
    for (name, Found { raw, origin }) in entries {
        let problem = match &raw {
            Raw::Text(text) => {
                humantime::parse_duration(text).map_err(|_| format!("`{text}` is no duration; write it like \"7days\""))
            }
            _ => Err("must be a string in quotes, like \"7days\"".to_owned()),
        };
        match problem {
            Ok(keep) => drop(kinds.insert(name, keep)),
            Err(problem) => r.push(format!("{key}.{name}"), Some(origin), problem),
        }
    }
    kinds
}

fn kind(r: &mut Reader, path: &str, settings: Vec<(String, Found)>) -> Kind {
    let mut kind = Kind::default();
    for (name, Found { raw, origin }) in settings {
        let problem = match name.as_str() {
            "late" => duration(&raw).map(|d| kind.late = Some(d)),
            "early" => duration(&raw).map(|d| kind.early = Some(d)),
            "retry" => duration(&raw).map(|d| kind.retry = Some(d)),
            "ignore" => list(&raw, pointer).map(|pointers| kind.ignore = pointers),
            "clean" => list(&raw, replacement).map(|cleans| kind.clean = cleans),
            _ => Err(format!("is no setting; one of {} is", KEYS.join(", "))),
        };
        if let Err(problem) = problem {
            r.push(format!("{path}.{name}"), Some(origin), problem);
        }
    }
    kind
}

fn duration(raw: &Raw) -> Result<Duration, String> {
    let Raw::Text(text) = raw else { return Err("must be a string in quotes, like \"5s\"".to_owned()) };
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= Duration::from_secs(86_400) => Ok(duration),
        Ok(_) => Err(format!("must be at most 1day, not {text}")),
        Err(_) => Err(format!("`{text}` is no duration; write it like \"5s\"")),
    }
}

fn list<T>(raw: &Raw, of: fn(&Raw) -> Result<T, String>) -> Result<Vec<T>, String> {
    match raw {
        Raw::List(items) => items.iter().map(of).collect(),
        _ => Err("must be a list in brackets".to_owned()),
    }
}

fn pointer(raw: &Raw) -> Result<String, String> {
    match raw {
        Raw::Text(text) if text.starts_with('/') => Ok(text.clone()),
        Raw::Text(text) => Err(format!("`{text}` is no JSON pointer; one begins with /, like \"/sent_at\"")),
        _ => Err("must hold JSON pointers in quotes, like \"/sent_at\"".to_owned()),
    }
}

fn replacement(raw: &Raw) -> Result<(Regex, String), String> {
    let Raw::List(pair) = raw else { return Err(PAIR.to_owned()) };
    let [Raw::Text(pattern), Raw::Text(replacement)] = &pair[..] else { return Err(PAIR.to_owned()) };
    let regex = Regex::new(pattern).map_err(|error| format!("`{pattern}` is no regular expression: {error}"))?;
    Ok((regex, replacement.clone()))
}

const PAIR: &str = "must hold pairs of a regular expression and its replacement, like [\"[0-9a-f]{32}\", \"ID\"]";
