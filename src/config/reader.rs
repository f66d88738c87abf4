//! Takes values one key at a time, and remembers every fault and every key that was asked for. What nobody
//! asked for is unknown, so there is no second list of keys that could fall behind.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::{Secret, SecretUrl};

const ENV_PREFIX: &str = "CROSSOVER_";

/// Everything that is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub struct ConfigFaults(pub Vec<Fault>);

/// One thing that is wrong. Never holds the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// `section.key`, the variable or the file.
    pub key: String,
    /// The line in the file or the variable it came from, where there is one.
    pub origin: Option<String>,
    /// What is wrong and how to mend it.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Some(origin) => write!(f, "{} ({origin}): {}", self.key, self.problem),
            None => write!(f, "{}: {}", self.key, self.problem),
        }
    }
}

impl fmt::Display for ConfigFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "the configuration has {count} fault{}:", if count == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
    }
}

/// A value as it was found.
#[derive(Debug)]
pub(super) enum Raw {
    Text(String),
    Integer(String),
    Float(String),
    Boolean(bool),
    /// From the environment: may be read as either.
    Variable(String),
    /// In the order of its keys.
    Table(Vec<(String, Found)>),
    List(Vec<Raw>),
    Other(&'static str),
}

#[derive(Debug)]
pub(super) struct Found {
    pub(super) raw: Raw,
    pub(super) origin: String,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Reader {
    found: BTreeMap<String, Found>,
    variables: Vec<(String, Option<String>)>,
    known: Vec<(&'static str, String)>,
    faults: Vec<Fault>,
}

impl Reader {
    /// The file, then the environment over it.
    pub(super) fn from_surroundings(named: Option<&Path>, default: &Path) -> Self {
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok().filter(|name| name.starts_with(ENV_PREFIX))?;
            Some((name, value.into_string().ok()))
        });
        let mut reader = Self { variables: variables.collect(), ..Self::default() };
        match named {
            Some(path) => reader.read_file(path),
            None if default.exists() => reader.read_file(default),
            None => {}
        }
        reader
    }

    /// For tests: a text and variables, without the process's own.
    #[cfg(test)]
    pub(super) fn from_text(text: &str, variables: &[(&str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), Some((*value).to_owned())));
        let mut reader = Self { variables: variables.collect(), ..Self::default() };
        reader.read_text(Path::new("crossover.toml"), text);
        reader
    }

    fn read_file(&mut self, path: &Path) {
        match std::fs::read_to_string(path) {
            Ok(text) => self.read_text(path, &text),
            Err(error) => {
                self.push(path.display(), None, format!("can't be read: {error}; name another with --config"))
            }
        }
    }

    fn read_text(&mut self, path: &Path, text: &str) {
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let (document, errors) = DeTable::parse_recoverable(text);
        for error in errors {
            // Only the parser's words: its Display would quote the line, which may hold a password.
            let at = error.span().map(|span| format!("line {}", line(span.start)));
            self.push(path.display(), at, format!("isn't TOML: {}", error.message()));
        }
        for (name, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(section) => {
                    for (key, value) in section {
                        let name = format!("{}.{}", name.get_ref(), key.get_ref());
                        self.found.insert(name, found(value.get_ref(), key.span().start, &line));
                    }
                }
                value => drop(self.found.insert(name.get_ref().to_string(), found(value, name.span().start, &line))),
            }
        }
    }

    pub(super) fn push(&mut self, key: impl fmt::Display, origin: Option<String>, problem: impl Into<String>) {
        self.faults.push(Fault { key: key.to_string(), origin, problem: problem.into() });
    }

    /// Adds a fault of a key that was read.
    pub(super) fn fault(&mut self, key: &'static str, problem: &str) {
        self.push(key, None, problem);
    }

    /// The keys that were asked for.
    pub(super) fn keys(self) -> Vec<(&'static str, String)> {
        self.known
    }

    /// Gives the configuration out if nothing was wrong.
    pub(super) fn finish<T>(mut self, config: T) -> Result<T, ConfigFaults> {
        let names: Vec<_> = self.known.iter().map(|(name, _)| (*name).to_owned()).collect();
        for (key, found) in std::mem::take(&mut self.found) {
            let problem = format!("is no setting; {}", nearest(&key, &names));
            self.push(key, Some(found.origin), problem);
        }
        let names: Vec<_> = names.iter().map(|name| variable(name)).collect();
        for (name, _) in std::mem::take(&mut self.variables) {
            let problem = format!("is no setting; {}", nearest(&name, &names));
            self.push(name, Some("environment".to_owned()), problem);
        }
        if self.faults.is_empty() { Ok(config) } else { Err(ConfigFaults(self.faults)) }
    }

    /// Takes a key's value; the environment wins.
    fn take(&mut self, key: &'static str, default: String) -> Option<Found> {
        self.known.push((key, default));
        let in_file = self.found.remove(key);
        let name = variable(key);
        let Some(at) = self.variables.iter().position(|(candidate, _)| *candidate == name) else { return in_file };
        let raw = self.variables.swap_remove(at).1.map_or(Raw::Other("bytes that aren't UTF-8"), Raw::Variable);
        Some(Found { raw, origin: name })
    }

    /// Takes a value as it stands, where there is one.
    pub(super) fn value(&mut self, key: &'static str) -> Option<Found> {
        self.take(key, String::new())
    }

    /// Takes a string and makes something of it, or notes the fault. `parse` must not repeat a secret.
    fn text<T>(&mut self, key: &'static str, default: String, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let found = self.take(key, default)?;
        let parsed = match &found.raw {
            Raw::Text(text) | Raw::Variable(text) => parse(text),
            Raw::Integer(_) | Raw::Float(_) => Err("must be a string in quotes, not a bare number".to_owned()),
            other => Err(format!("must be a string, not {}", other.what())),
        };
        parsed.map_err(|problem| self.push(key, Some(found.origin), problem)).ok()
    }

    pub(super) fn integer<T: TryFrom<i64>>(
        &mut self,
        key: &'static str,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> T {
        let value = self.take(key, default.to_string()).map(|found| {
            let number = match &found.raw {
                Raw::Integer(digits) | Raw::Variable(digits) => digits.parse::<i64>().ok(),
                _ => None,
            };
            let problem = || format!("must be an integer from {} to {}, without quotes", range.start(), range.end());
            number.filter(|n| range.contains(n)).ok_or_else(|| (found.origin, problem()))
        });
        let number = match value {
            None => default,
            Some(Ok(number)) => number,
            Some(Err((origin, problem))) => {
                self.push(key, Some(origin), problem);
                default
            }
        };
        T::try_from(number).unwrap_or_else(|_| unreachable!("the range of {key} fits its type"))
    }

    /// `true` or `false`.
    pub(super) fn switch(&mut self, key: &'static str, default: bool) -> bool {
        let Some(found) = self.take(key, default.to_string()) else { return default };
        let on = match &found.raw {
            Raw::Boolean(on) => Some(*on),
            Raw::Variable(text) => text.parse().ok(),
            _ => None,
        };
        on.unwrap_or_else(|| {
            self.push(key, Some(found.origin), "must be true or false, without quotes");
            default
        })
    }

    /// A number between 0 and 1.
    pub(super) fn share(&mut self, key: &'static str, default: &str, range: RangeInclusive<f64>) -> f64 {
        let otherwise = default.parse().expect("a share of ours");
        let Some(found) = self.take(key, default.to_owned()) else { return otherwise };
        let number = match &found.raw {
            Raw::Float(digits) | Raw::Integer(digits) | Raw::Variable(digits) => digits.parse::<f64>().ok(),
            _ => None,
        };
        number.filter(|n| range.contains(n)).unwrap_or_else(|| {
            let problem = format!("must be a number from {} to {}, without quotes", range.start(), range.end());
            self.push(key, Some(found.origin), problem);
            otherwise
        })
    }

    pub(super) fn duration(&mut self, key: &'static str, default: &str, least: &str, most: &str) -> Duration {
        let time = |text: &str| humantime::parse_duration(text).expect("a duration of ours");
        let (from, to) = (time(least), time(most));
        let parsed = self.text(key, quoted(default), |text| match humantime::parse_duration(text) {
            Ok(duration) if (from..=to).contains(&duration) => Ok(duration),
            Ok(_) => Err(format!("must be from {least} to {most}, not {text}")),
            Err(_) => Err(format!("`{text}` is no duration; write it like \"{default}\"")),
        });
        parsed.unwrap_or_else(|| time(default))
    }

    pub(super) fn name(&mut self, key: &'static str, default: &str) -> String {
        let parsed = self.text(key, quoted(default), |text| match text.trim() {
            "" => Err("must not be empty".to_owned()),
            name if name.len() > 255 => Err("must have at most 255 bytes".to_owned()),
            name => Ok(name.to_owned()),
        });
        parsed.unwrap_or_else(|| default.to_owned())
    }

    /// The name of a search attribute, which queries hold without quotes.
    pub(super) fn attribute(&mut self, key: &'static str, default: &str) -> String {
        let parsed = self.text(key, quoted(default), |text| {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
            match text.trim() {
                name if name.len() <= 100
                    && name.starts_with(|c: char| c.is_ascii_alphabetic())
                    && name.chars().all(plain) =>
                {
                    Ok(name.to_owned())
                }
                _ => Err("must be a letter and at most 99 letters, digits and _ after it".to_owned()),
            }
        });
        parsed.unwrap_or_else(|| default.to_owned())
    }

    /// A name whose default depends on the surroundings, so that no example can state it.
    pub(super) fn derived_name(&mut self, key: &'static str, default: String) -> String {
        let parsed = self.text(key, String::new(), |text| match text.trim() {
            "" => Err("must not be empty".to_owned()),
            name if name.len() > 255 => Err("must have at most 255 bytes".to_owned()),
            name => Ok(name.to_owned()),
        });
        parsed.unwrap_or(default)
    }

    pub(super) fn choice(&mut self, key: &'static str, of: &[&'static str]) -> &'static str {
        let parsed = self.text(key, quoted(of[0]), |text| {
            of.iter()
                .copied()
                .find(|one| *one == text)
                .ok_or_else(|| format!("`{text}` is not one of {}", of.join(", ")))
        });
        parsed.unwrap_or(of[0])
    }

    /// Any of `of`, in one string with commas between them; none unless set.
    pub(super) fn choices(&mut self, key: &'static str, of: &[&'static str]) -> Vec<&'static str> {
        let one = |name: &str| of.iter().copied().find(|known| *known == name);
        let parsed = self.text(key, String::new(), |text| {
            let names = text.split(',').map(str::trim).filter(|name| !name.is_empty());
            names.map(|name| one(name).ok_or_else(|| format!("`{name}` is not one of {}", of.join(", ")))).collect()
        });
        parsed.unwrap_or_default()
    }

    /// Something that goes into a header.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<Secret> {
        self.text(key, String::new(), |text| match text.trim() {
            "" => Err("must not be empty".to_owned()),
            secret if secret.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Secret::new(secret)),
            _ => Err("holds what no token holds (spaces or characters beyond ASCII)".to_owned()),
        })
    }

    pub(super) fn listen(&mut self, key: &'static str, default: &str) -> SocketAddr {
        let parsed = self.text(key, quoted(default), |text| {
            text.parse().map_err(|_| format!("`{text}` is no IP address with a port; write it like \"{default}\""))
        });
        parsed.unwrap_or_else(|| default.parse().expect("an address of ours"))
    }

    pub(super) fn address(&mut self, key: &'static str) -> Option<String> {
        self.text(key, String::new(), |text| match text.rsplit_once(':') {
            Some((host, port))
                if !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|p| p > 0) =>
            {
                Ok(text.to_owned())
            }
            _ => Err("must be host:port, without a scheme".to_owned()),
        })
    }

    pub(super) fn url(&mut self, key: &'static str, schemes: &[&str]) -> Option<SecretUrl> {
        self.text(key, String::new(), |text| {
            let fits = reqwest::Url::parse(text).is_ok_and(|url| schemes.contains(&url.scheme()));
            let problem = || format!("isn't a URL that begins with {}://", schemes.join(":// or "));
            fits.then(|| SecretUrl::new(text)).ok_or_else(problem)
        })
    }

    pub(super) fn path(&mut self, key: &'static str, default: &str) -> PathBuf {
        self.text(key, quoted(default), path_of).unwrap_or_else(|| default.into())
    }

    /// A path whose default depends on something else, so that no example can state it.
    pub(super) fn derived_path(&mut self, key: &'static str, default: PathBuf) -> PathBuf {
        self.optional_path(key).unwrap_or(default)
    }

    pub(super) fn optional_path(&mut self, key: &'static str) -> Option<PathBuf> {
        self.text(key, String::new(), path_of)
    }
}

/// A value as it was found at `at`.
fn found(value: &DeValue<'_>, at: usize, line: &impl Fn(usize) -> usize) -> Found {
    Found { raw: raw(value, line), origin: format!("line {}", line(at)) }
}

fn raw(value: &DeValue<'_>, line: &impl Fn(usize) -> usize) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        // Underscores are TOML's; another base stays text that no integer is made of.
        DeValue::Integer(number) if number.radix() == 10 => Raw::Integer(number.as_str().replace('_', "")),
        DeValue::Float(number) => Raw::Float(number.as_str().replace('_', "")),
        DeValue::Boolean(on) => Raw::Boolean(*on),
        DeValue::Array(items) => Raw::List(items.iter().map(|item| raw(item.get_ref(), line)).collect()),
        DeValue::Table(table) => {
            let entries = table
                .iter()
                .map(|(key, value)| (key.get_ref().to_string(), found(value.get_ref(), key.span().start, line)));
            Raw::Table(entries.collect())
        }
        other => Raw::Other(other.type_str()),
    }
}

impl Raw {
    fn what(&self) -> &'static str {
        match self {
            Raw::Text(_) | Raw::Variable(_) => "a string",
            Raw::Integer(_) => "an integer",
            Raw::Float(_) => "a float",
            Raw::Table(_) => "a table",
            Raw::List(_) => "an array",
            Raw::Boolean(_) => "a boolean",
            Raw::Other(what) => what,
        }
    }
}

fn path_of(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() { Err("must not be empty".to_owned()) } else { Ok(text.into()) }
}

fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

fn variable(key: &str) -> String {
    format!("{ENV_PREFIX}{}", key.replace('.', "_").to_uppercase())
}

fn nearest(name: &str, known: &[String]) -> String {
    let closest = known.iter().max_by(|a, b| strsim::jaro_winkler(name, a).total_cmp(&strsim::jaro_winkler(name, b)));
    closest.map_or_else(String::new, |known| format!("the nearest one is `{known}`"))
}
