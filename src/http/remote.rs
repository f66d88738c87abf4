//! Remote workers: `dequeue`, `heartbeat`, `complete` and `fail` of a group, each for many at once. Any process answers.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::schema::{
    Dequeue, HandedOut, RemoteAnswer, RemoteAnswers, RemoteCompletes, RemoteFails, RemoteHeartbeats, RemoteWork,
};
use super::work::{MAX_RESULT, MAX_RETRY_AFTER_MS, fault};
use super::{Api, Problem, Shared, body};
use crate::executor::{SILENCE, clean};
use crate::interaction::{Fence, Payload, REMOTE, is_remote};
use crate::ledger::{Attempted, Ending, LedgerError, RemoteBeat, RemoteReport};
use crate::policy::Failure;
use crate::queue::remote::{Asked, Batch};
use crate::router::request::{Fault, name_fault};

/// What one request may be about.
const ITEMS: u64 = 1_000;
/// What a dequeue that does not say takes.
const MOST: u64 = 10;
/// And for how long, without a heartbeat.
const LEASE_MS: u64 = 30_000;
/// A dequeue waits at most so long.
const WAIT_MS: u64 = 60_000;
/// A body that only names attempts.
const BODY_BYTES: usize = 256 << 10;

/// Take work of a group
///
/// By priority, then in order, and of a series only what comes next. Each item is this worker's until its lease ends, which heartbeats
/// prolong. With `wait_ms` an answer without items is held back until there is work.
#[utoipa::path(
    post, path = "/v1/groups/{group}/dequeue", tag = "remote workers",
    params(("group" = String, Path, description = "A group that remote workers serve: its name begins with `remote.`.", example = "remote.mail")),
    request_body(content = Dequeue),
    responses((status = 200, description = "What to run; none where there is nothing, or the process is being stopped.", body = HandedOut)),
    security(("token" = ["work"]))
)]
pub(super) async fn dequeue(State(api): Shared, Path(group): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let asked = async {
        let mut said =
            said(&api, &group, &headers, body, BODY_BYTES, &["worker", "max", "wait_ms", "lease_ms"]).await?;
        let worker = said.worker(true);
        let most = said.number("max", MOST, 1..=ITEMS);
        let wait = said.number("wait_ms", 0, 0..=WAIT_MS);
        let (least, longest) = (SILENCE.start().as_millis() as u64, SILENCE.end().as_millis() as u64);
        let lease = said.number("lease_ms", LEASE_MS, least..=longest);
        said.sound()?;
        let asked = Asked { group, worker, most: most as usize, lease: Duration::from_millis(lease) };
        Ok::<_, Problem>((asked, Duration::from_millis(wait).min(api.max_wait)))
    };
    let (asked, wait) = match asked.await {
        Ok(asked) => asked,
        Err(problem) => return problem.into_response(),
    };
    let (answer, response) = match taken(&api, &asked, wait).await {
        Ok(batch) if batch.items().is_empty() => ("empty", handed_out(batch)),
        Ok(batch) => ("work", handed_out(batch)),
        Err((answer, problem)) => (answer, problem.into_response()),
    };
    api.metrics.remote.polls.with_label_values(&[answer]).inc();
    response
}

async fn taken(api: &Api, asked: &Asked, wait: Duration) -> Result<Batch, (&'static str, Problem)> {
    if api.stop.is_cancelled() {
        return Err((
            "failed",
            Problem::unavailable("this process is being stopped; ask another, or this one in a moment"),
        ));
    }
    let failed = |error| ("failed", away(error));
    let batch = api.remote.dequeue(asked).await.map_err(failed)?;
    if !batch.items().is_empty() || wait.is_zero() {
        return Ok(batch);
    }
    let busy = "as many callers wait as http.max_waiters allows; come back in a second, or ask without wait_ms";
    let _place = api.waiters.place().ok_or_else(|| ("busy", Problem::unavailable(busy)))?;
    api.remote.dequeue_within(asked, wait, &api.stop).await.map_err(failed)
}

/// The answer, which puts everything back where it is dropped before anything of it was sent.
fn handed_out(batch: Batch) -> Response {
    let items: Vec<RemoteWork<'_>> = batch.items().iter().map(RemoteWork::from).collect();
    let text = match serde_json::to_vec(&HandedOut { items }) {
        Ok(text) => Bytes::from(text),
        Err(error) => {
            tracing::error!(%error, "what is handed out can't be written");
            return Problem::unavailable(format!("the answer can't be written: {error}")).into_response();
        }
    };
    let body = futures::stream::once(async move {
        batch.sent();
        Ok::<_, Infallible>(text)
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(body)).into_response()
}

/// Keep attempts
///
/// Each lease is as long again from now on. `cancel` says that somebody wants it to end: say `fail` once it has, or `complete` if it was
/// too late.
#[utoipa::path(
    post, path = "/v1/groups/{group}/heartbeat", tag = "remote workers",
    params(("group" = String, Path, description = "The group that they were taken from.", example = "remote.mail")),
    request_body(content = RemoteHeartbeats),
    responses((status = 200, description = "An answer for each, in their order: held, cancel, lost or unknown.", body = RemoteAnswers)),
    security(("token" = ["work"]))
)]
pub(super) async fn heartbeat(
    State(api): Shared,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let mut said = said(&api, &group, &headers, body, BODY_BYTES, &["worker", "items"]).await?;
        said.worker(false);
        let items = said.items(&["id", "fence"]);
        said.sound()?;
        let items: Vec<Attempted> = items.into_iter().map(|item| item.of).collect();
        let beats = api.ledger.beat_remote(&group, &items).await.map_err(away)?;
        Ok(answers(&api, "heartbeat", &items, |of| match beats.get(of) {
            Some(RemoteBeat::Held { lease, run_until, cancel }) => {
                let answer = if *cancel { "cancel" } else { "held" };
                let (lease_ms, run_until) = (Some(lease.as_millis() as u64), Some(*run_until));
                RemoteAnswer { lease_ms, run_until, ..RemoteAnswer::new(of, answer) }
            }
            Some(RemoteBeat::Lost) => RemoteAnswer::new(of, "lost"),
            Some(RemoteBeat::Unknown) | None => RemoteAnswer::new(of, "unknown"),
        }))
    };
    answered.await.map_or_else(Problem::into_response, IntoResponse::into_response)
}

/// Complete attempts
///
/// Those that are still this worker's succeed together. Repeating it is safe; the first word stands.
#[utoipa::path(
    post, path = "/v1/groups/{group}/complete", tag = "remote workers",
    params(("group" = String, Path, description = "The group that they were taken from.", example = "remote.mail")),
    request_body(content = RemoteCompletes, description = "At most http.max_batch_bytes."),
    responses((status = 200, description = "An answer for each, in their order: taken, lost, unknown, or refused with an error where the result can't be stored.", body = RemoteAnswers)),
    security(("token" = ["work"]))
)]
pub(super) async fn complete(
    State(api): Shared,
    Path(group): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    report(&api, &group, "complete", &headers, body, &["id", "fence", "result"], Item::result).await
}

/// Fail attempts
///
/// The policy of each says what follows; after a wish to cancel it, nothing does. Repeating it is safe; the first word stands.
#[utoipa::path(
    post, path = "/v1/groups/{group}/fail", tag = "remote workers",
    params(("group" = String, Path, description = "The group that they were taken from.", example = "remote.mail")),
    request_body(content = RemoteFails, description = "At most http.max_batch_bytes."),
    responses((status = 200, description = "An answer for each, in their order: taken, lost or unknown.", body = RemoteAnswers)),
    security(("token" = ["work"]))
)]
pub(super) async fn fail(State(api): Shared, Path(group): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let known = ["id", "fence", "error", "permanent", "retry_after_ms"];
    report(&api, &group, "fail", &headers, body, &known, Item::failure).await
}

async fn report(
    api: &Api,
    group: &str,
    what: &'static str,
    headers: &HeaderMap,
    body: Body,
    known: &[&str],
    ending: fn(&Item, &mut Vec<Fault>) -> Ending,
) -> Response {
    let answered = async {
        let mut said = said(api, group, headers, body, api.max_batch_bytes, &["worker", "items"]).await?;
        said.worker(false);
        let items = said.items(known);
        let ends: Vec<(Attempted, Ending)> =
            items.iter().map(|item| (item.of, ending(item, &mut said.faults))).collect();
        said.sound()?;
        let taken = api.ledger.report_remote(group, &ends).await.map_err(away)?;
        // The next of a series may be ready.
        api.remote.ring(group);
        taken.values().for_each(|report| count(api, report));
        let items: Vec<Attempted> = ends.into_iter().map(|end| end.0).collect();
        Ok::<_, Problem>(answers(api, what, &items, |of| match taken.get(of) {
            Some(RemoteReport::Taken { again: true, .. }) => RemoteAnswer::new(of, "taken").counted("again"),
            Some(RemoteReport::Taken { .. }) => RemoteAnswer::new(of, "taken"),
            Some(RemoteReport::Lost) => RemoteAnswer::new(of, "lost"),
            Some(RemoteReport::Refused(error)) => {
                RemoteAnswer { error: Some(error.clone()), ..RemoteAnswer::new(of, "refused") }
            }
            Some(RemoteReport::Unknown) | None => RemoteAnswer::new(of, "unknown"),
        }))
    };
    answered.await.map_or_else(Problem::into_response, IntoResponse::into_response)
}

/// Counts an end as those of workers are counted.
fn count(api: &Api, report: &RemoteReport) {
    match report {
        RemoteReport::Taken { outcome, retried, again: false } => {
            api.metrics.attempted(crate::interaction::Side::Postgres, false, Some(*outcome), *retried);
        }
        RemoteReport::Lost => api.metrics.late_results.with_label_values(&["postgres"]).inc(),
        _ => {}
    }
}

fn answers(
    api: &Api,
    report: &'static str,
    items: &[Attempted],
    answer: impl Fn(&Attempted) -> RemoteAnswer,
) -> Json<RemoteAnswers> {
    let items: Vec<RemoteAnswer> = items.iter().map(answer).collect();
    for item in &items {
        api.metrics.remote.reports.with_label_values(&[report, item.counted_as]).inc();
    }
    Json(RemoteAnswers { items })
}

fn away(error: LedgerError) -> Problem {
    Problem::unavailable(format!("{error}; repeat it, nothing is lost if that is within the lease"))
}

/// What a remote worker sent, and what is wrong with it.
struct Said {
    fields: HashMap<String, Box<RawValue>>,
    faults: Vec<Fault>,
}

/// One attempt that it names.
struct Item {
    /// Where it stands, for faults.
    at: String,
    of: Attempted,
    fields: HashMap<String, Box<RawValue>>,
}

async fn said(
    api: &Api,
    group: &str,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    known: &[&str],
) -> Result<Said, Problem> {
    let body = body::read(headers, body, limit, api.request_timeout).await?;
    let fields: HashMap<String, Box<RawValue>> =
        serde_json::from_slice(&body).map_err(|error| Problem::no_object(&error))?;
    let mut faults = Vec::new();
    if !is_remote(Some(group)) {
        let message = format!(
            "«{}» is run by the workers of crossover; remote workers have the groups whose names begin with `{REMOTE}`",
            clean(group)
        );
        faults.push(fault("group", message));
    } else if let Some(message) = name_fault(group, 100) {
        faults.push(fault("group", message));
    }
    unknown("", &fields, known, &mut faults);
    Ok(Said { fields, faults })
}

fn unknown(at: &str, fields: &HashMap<String, Box<RawValue>>, known: &[&str], faults: &mut Vec<Fault>) {
    for name in fields.keys().filter(|name| !known.contains(&name.as_str())) {
        faults.push(fault(&format!("{at}{name}"), format!("is no field; the fields are {}", known.join(", "))));
    }
}

/// A field that may be absent, or null.
fn get<T: serde::de::DeserializeOwned>(
    fields: &HashMap<String, Box<RawValue>>,
    (at, name): (&str, &str),
    kind: &str,
    faults: &mut Vec<Fault>,
) -> Option<T> {
    let raw = fields.get(name).filter(|raw| raw.get() != "null")?;
    serde_json::from_str(raw.get())
        .map_err(|_| faults.push(fault(&format!("{at}{name}"), format!("must be {kind}"))))
        .ok()
}

impl Said {
    /// Every fault at once.
    fn sound(&mut self) -> Result<(), Problem> {
        if self.faults.is_empty() { Ok(()) } else { Err(Problem::invalid(std::mem::take(&mut self.faults))) }
    }

    /// The worker's name for itself.
    fn worker(&mut self, needed: bool) -> String {
        let before = self.faults.len();
        let name: Option<String> = get(&self.fields, ("", "worker"), "a text", &mut self.faults);
        let good = |name: &String| (1..=100).contains(&name.len()) && !name.chars().any(char::is_control);
        if self.faults.len() == before && (name.is_some() || needed) && !name.as_ref().is_some_and(good) {
            let message = "must be the worker's name: 1 to 100 bytes without control characters";
            self.faults.push(fault("worker", message));
        }
        name.unwrap_or_default()
    }

    fn number(&mut self, name: &str, default: u64, bounds: RangeInclusive<u64>) -> u64 {
        let (least, most) = (bounds.start(), bounds.end());
        let kind = format!("a whole number from {least} to {most}");
        match get::<u64>(&self.fields, ("", name), &kind, &mut self.faults) {
            Some(number) if !bounds.contains(&number) => {
                self.faults.push(fault(name, format!("must be {kind}, is {number}")));
                default
            }
            number => number.unwrap_or(default),
        }
    }

    /// The attempts that it is about, each once.
    fn items(&mut self, known: &[&str]) -> Vec<Item> {
        let kind = "a list of objects, each with an id and a fence";
        let raw: Option<Vec<HashMap<String, Box<RawValue>>>> = get(&self.fields, ("", "items"), kind, &mut self.faults);
        let raw = match raw {
            Some(raw) if raw.len() as u64 > ITEMS => {
                self.faults.push(fault("items", format!("has {} items, may have {ITEMS}", raw.len())));
                return Vec::new();
            }
            Some(raw) => raw,
            None if self.fields.get("items").is_none_or(|raw| raw.get() == "null") => {
                self.faults.push(fault("items", format!("must be {kind}")));
                return Vec::new();
            }
            None => return Vec::new(),
        };
        let (mut items, mut ids) = (Vec::with_capacity(raw.len()), HashSet::new());
        for (n, fields) in raw.into_iter().enumerate() {
            let at = format!("items[{n}].");
            unknown(&at, &fields, known, &mut self.faults);
            let id = self.named::<Uuid>(&fields, (&at, "id"), "an id, as dequeue gave it");
            let fence = self.named::<Fence>(&fields, (&at, "fence"), "a fence, as dequeue gave it, like \"1.1\"");
            let (Some(id), Some(fence)) = (id, fence) else { continue };
            if !ids.insert(id) {
                self.faults.push(fault(&format!("{at}id"), format!("{id} comes twice")));
            }
            items.push(Item { at, of: (id, fence), fields });
        }
        items
    }

    fn named<T: std::str::FromStr>(
        &mut self,
        fields: &HashMap<String, Box<RawValue>>,
        (at, name): (&str, &str),
        kind: &str,
    ) -> Option<T> {
        let text = fields.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        let read = text.and_then(|text| text.parse().ok());
        if read.is_none() {
            self.faults.push(fault(&format!("{at}{name}"), format!("must be {kind}")));
        }
        read
    }
}

impl Item {
    fn result(&self, faults: &mut Vec<Fault>) -> Ending {
        let text = self.fields.get("result").map_or("null", |raw| raw.get());
        let read = match text.len() {
            length if length > MAX_RESULT => Err(format!("has {length} bytes, may have {MAX_RESULT}")),
            _ => Payload::parse(text.to_owned()).map_err(|error| error.to_string()),
        };
        match read {
            Ok(result) => Ending::Done(result),
            Err(message) => {
                faults.push(fault(&format!("{}result", self.at), message.clone()));
                Ending::Failed { failure: Failure::Permanent, error: message }
            }
        }
    }

    fn failure(&self, faults: &mut Vec<Fault>) -> Ending {
        let error: Option<String> = get(&self.fields, (&self.at, "error"), "a text", faults);
        let permanent: Option<bool> = get(&self.fields, (&self.at, "permanent"), "true or false", faults);
        let kind = format!("a number of milliseconds, at most {MAX_RETRY_AFTER_MS} (a day)");
        let retry_after: Option<u64> = get(&self.fields, (&self.at, "retry_after_ms"), &kind, faults);
        if retry_after.is_some_and(|ms| ms > MAX_RETRY_AFTER_MS) {
            faults.push(fault(&format!("{}retry_after_ms", self.at), format!("must be {kind}")));
        }
        let failure = match permanent {
            Some(true) => Failure::Permanent,
            _ => Failure::Retryable { retry_after: retry_after.map(Duration::from_millis) },
        };
        Ending::Failed { failure, error: clean(error.as_deref().unwrap_or("its worker did not say why")) }
    }
}
