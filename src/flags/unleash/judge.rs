//! What follows from an answer of Unleash. Pure.

use std::time::Duration;

use serde_json::{Value, json};

use super::answer::{Answer, Found, off};
use crate::flags::document::{Document, Fault, Flag};

/// What an operator has said beforehand.
#[derive(Debug, Clone)]
pub(super) struct Leave {
    /// These are off when they are missing.
    pub(super) missing: Vec<Flag>,
    /// Answers may go back to an older revision when they have insisted for so long.
    pub(super) older: Duration,
}

/// What follows.
#[derive(Debug)]
pub(super) enum Verdict {
    /// This comes into force; with a complaint where not all of it is what Unleash says.
    Put(Box<Document>, Option<String>),
    /// Nothing changes: the answer is older than what is in force.
    Older(String),
    /// Nothing changes: the answer can't be used.
    Refuse(String),
}

/// Judges an answer by what is in force, and by how long answers have been older than that.
pub(super) fn judge(answer: &Answer, in_force: Option<&Document>, leave: &Leave, older_for: Duration) -> Verdict {
    let known = in_force.and_then(Document::server_revision);
    if let (Some(known), Some(found)) = (known, answer.revision)
        && found < known
        && older_for < leave.older
    {
        let wait = humantime::format_duration(leave.older);
        return Verdict::Older(format!(
            "answers with revision {found}, older than {known}, which is in force: a replica that lags, or a restored \
             backup; believed when it has said so for {wait} (flags.accept_older)"
        ));
    }
    let (mut features, mut complaints, mut lost) = (Vec::new(), Vec::new(), Vec::new());
    for (flag, found) in &answer.flags {
        let why = match found {
            Found::Good(feature) => {
                features.push(feature.clone());
                continue;
            }
            Found::Missing if leave.missing.contains(flag) => {
                features.push(off(*flag));
                continue;
            }
            Found::Missing => format!("{} is missing", flag.name()),
            Found::Refused(faults) => listed(faults),
        };
        match in_force.and_then(|document| definition(document, *flag)) {
            Some(feature) => features.push(feature),
            None => lost.push(why.clone()),
        }
        complaints.push(why);
    }
    if !lost.is_empty() {
        return Verdict::Refuse(format!("answers with flags that can't be used: {}", lost.join("; ")));
    }
    let text = format!("{:#}", json!({ "version": 2, "features": features }));
    match Document::of_server(text, answer.revision) {
        Ok(document) => Verdict::Put(Box::new(document), complaint(&complaints)),
        Err(faults) => Verdict::Refuse(format!("answers with flags that can't be used: {}", listed(&faults))),
    }
}

fn complaint(complaints: &[String]) -> Option<String> {
    let all = complaints.join("; ");
    (!all.is_empty()).then(|| {
        format!(
            "answers with flags that can't be used, and their last definitions stay in force: {all}. Mend them there; \
             a flag whose absence is meant goes into flags.accept_missing"
        )
    })
}

fn listed(faults: &[Fault]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// How a document defines a flag.
fn definition(document: &Document, flag: Flag) -> Option<Value> {
    let mut root: Value = serde_json::from_str(document.text()).ok()?;
    root["features"].as_array_mut()?.iter_mut().find(|feature| feature["name"] == flag.name()).map(Value::take)
}

/// How long to wait for the next question: the interval, and after failures twice as long each time, up to half a minute
/// or the interval. `jitter` from 0 to 1 spreads routers that began together.
pub(super) fn pause(interval: Duration, failures: u32, jitter: f64) -> Duration {
    const LONGEST: Duration = Duration::from_secs(30);
    let doubled = interval.saturating_mul(1_u32.checked_shl(failures.min(16)).unwrap_or(u32::MAX));
    doubled.min(LONGEST.max(interval)).mul_f64(0.8 + 0.2 * jitter)
}
