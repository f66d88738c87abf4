//! `/v1/schedules`: work that comes again and again.

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::guard::Who;
use super::interactions::{id_of, open};
use super::{Api, Problem, Shared, body};
use crate::interaction::{Stage, interaction_id};
use crate::ledger::LedgerError;
use crate::policy::Policy;
use crate::router::request::{Fault, name_fault};
use crate::schedule::storage::{Granted, Made, Unreadable};
use crate::schedule::view::View;
use crate::schedule::{
    CatchUp, Change, Definition, Mirrors, Overlap, Page, RunRow, Schedule, Schedules, Spec, Wish, key_of_trigger,
};

/// Room for everything of a body but its payload.
const BODY_BYTES: usize = 64 << 10;
/// So many schedules on a page.
const MOST_LISTED: i64 = 1_000;
/// So many times and runs of one schedule.
const MOST_SHOWN: i64 = 100;

/// The body of `POST /v1/schedules`. Read field by field, so that every fault is named; this documents it.
#[derive(ToSchema)]
#[schema(example = json!({
    "account": "acme", "name": "nightly", "kind": "sync", "payload": { "full": true },
    "spec": { "cron": "30 2 * * *", "time_zone": "Europe/Berlin" }, "overlap": "skip"
}))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct NewSchedule {
    /// The tenant.
    #[schema(min_length = 1, max_length = 200)]
    account: String,
    /// Unique within the account.
    #[schema(min_length = 1, max_length = 200)]
    name: String,
    /// The type of work.
    #[schema(min_length = 1, max_length = 100)]
    kind: String,
    /// What each run gets: any JSON value, passed on byte for byte.
    payload: Value,
    /// When: an interval, a cron expression or an instant. `starts_at` and `time_zone` (UTC) may be absent.
    spec: Spec,
    /// If an earlier run has not ended; `skip` where absent.
    overlap: Option<Overlap>,
    /// If nobody was there when a time came; `latest` where absent.
    catch_up: Option<CatchUp>,
    /// How late a time may be found and still run; a day where absent.
    #[schema(minimum = 10000)]
    catch_up_window_ms: Option<i64>,
    /// Runs are delayed by up to this, by a hash of schedule and time; 0 where absent.
    jitter_ms: Option<i64>,
    /// The series of the runs; absent: one of their own. It can't be changed.
    series: Option<String>,
    /// Their group.
    group: Option<String>,
    /// Their priority.
    #[schema(minimum = -100, maximum = 100)]
    priority: Option<i16>,
    /// Their retries and time-outs.
    policy: Option<Policy>,
}

/// The body of a change: what is there replaces what was.
#[derive(ToSchema)]
#[schema(example = json!({ "spec": { "every_ms": 60000 }, "version": 3 }))]
#[allow(dead_code, reason = "it documents what is read field by field")]
pub(super) struct ScheduleChange {
    /// What each run gets.
    payload: Option<Value>,
    /// When. An interval without `starts_at` keeps its phase.
    spec: Option<Spec>,
    /// If an earlier run has not ended.
    overlap: Option<Overlap>,
    /// If nobody was there when a time came.
    catch_up: Option<CatchUp>,
    /// How late a time may be found and still run.
    catch_up_window_ms: Option<i64>,
    /// By how much runs are delayed at most.
    jitter_ms: Option<i64>,
    /// The group of the runs; `null` takes it away.
    group: Option<String>,
    /// Their priority.
    priority: Option<i16>,
    /// Their retries and time-outs.
    policy: Option<Policy>,
    /// The version that is changed; another one is answered 409. Absent: whichever it is.
    version: Option<i64>,
}

/// The body of a pause.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseRequest {
    /// Why; everybody who looks at the schedule reads it.
    #[schema(min_length = 1, max_length = 500)]
    reason: String,
}

/// The body of a trigger.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct TriggerRequest {
    /// Repeating a request with the same one makes no second run. Absent: one is made, and answered.
    #[schema(max_length = 100)]
    token: Option<String>,
}

/// What was triggered.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Triggered {
    /// The run, if its policy lets it in: look it up, or look at the schedule's runs.
    pub(super) id: Uuid,
    /// Its token.
    pub(super) token: String,
}

/// A page of schedules.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ScheduleList {
    /// By account and name, each with its next time.
    schedules: Vec<View>,
    /// Those of the page that can't be read, and are not fired: look at them in Postgres, or delete them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    unreadable: Vec<Unreadable>,
    /// Ask with `after` set to this for the next page; absent on the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<Uuid>,
}

/// Make a schedule
///
/// In every stage of its account. Unless that is `complete`, Temporal has the schedule as well.
#[utoipa::path(
    post, path = "/v1/schedules", tag = "schedules",
    request_body(content = NewSchedule, description = "At most http.max_payload_bytes of payload."),
    responses(
        (status = 201, description = "It is there, and fires from now on.", body = View),
        (status = 409, description = "The account has another schedule of this name.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["enqueue"]))
)]
pub(super) async fn create(
    State(api): Shared,
    Extension(who): Extension<Who>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let body = body::read(&headers, body, api.max_payload + BODY_BYTES, api.request_timeout).await?;
        let (schedules, router) = (schedules(&api), open(&api)?);
        let now = schedules.now().await.map_err(away)?;
        let definition = Definition::parse(&body, api.max_payload, now)?;
        let mirrored = mirrored(router.stage(&definition.account, &definition.kind)).map_err(Problem::invalid)?;
        let times = definition.times().map_err(Problem::invalid)?;
        match schedules.create(&definition, &times, now, who.name(), mirrored).await.map_err(away)? {
            Made::Created(schedule) => {
                tracing::info!(id = %schedule.id, account = definition.account, name = definition.name, "a schedule is made");
                router.schedule_changed();
                Ok((StatusCode::CREATED, Json(viewed(&api, schedule, 1, None).await?)))
            }
            Made::Exists(there) => Err(Problem::new(
                StatusCode::CONFLICT,
                format!(
                    "account `{}` has a schedule `{}` already, {}; change that one, or choose another name",
                    definition.account, definition.name, there.id
                ),
            )),
        }
    };
    answered.await.into_response()
}

/// List schedules
///
/// By account and name.
#[utoipa::path(
    get, path = "/v1/schedules", tag = "schedules",
    params(
        ("account" = Option<String>, Query, description = "Those of this account."),
        ("kind" = Option<String>, Query, description = "Those of this kind."),
        ("paused" = Option<bool>, Query, description = "Those that are paused, or are not."),
        ("after" = Option<Uuid>, Query, description = "Those after this one: `after` of the page before."),
        ("limit" = Option<i64>, Query, description = "At most so many, up to 1,000; 100 where absent."),
    ),
    responses((status = 200, description = "A page of them.", body = ScheduleList)),
    security(("token" = ["read"]))
)]
pub(super) async fn list(State(api): Shared, Query(query): Query<Vec<(String, String)>>) -> Response {
    let answered = async {
        let (mut page, after) = page_of(&query).map_err(Problem::invalid)?;
        let schedules = schedules(&api);
        if let Some(after) = after {
            let last = schedules.name(after).await.map_err(away)?;
            let message = || format!("schedule {after} is there no longer; begin again without it");
            let gone = || Problem::invalid(vec![Fault { field: "after".to_owned(), message: message() }]);
            page.after = Some(last.ok_or_else(gone)?);
        }
        let found = schedules.list(&page).await.map_err(away)?;
        let ids: Vec<Uuid> = found.schedules.iter().map(|schedule| schedule.id).collect();
        let mut stands = mirrors(&api).of(&ids).await.map_err(away)?;
        let view = |schedule: Schedule| {
            let stand = stands.remove(&schedule.id);
            View::of(schedule, 1, None).mirrored(stand)
        };
        let schedules = found.schedules.into_iter().map(view).collect();
        Ok::<_, Problem>(Json(ScheduleList { schedules, unreadable: found.unreadable, after: found.last }))
    };
    answered.await.into_response()
}

/// Look a schedule up
///
/// With its next times and what became of its last ones.
#[utoipa::path(
    get, path = "/v1/schedules/{id}", tag = "schedules",
    params(
        ("id" = Uuid, Path, description = "As its creation answered it."),
        ("next" = Option<i64>, Query, description = "So many times ahead, up to 100; 10 where absent."),
        ("runs" = Option<i64>, Query, description = "So many past ones, up to 100; 20 where absent."),
    ),
    responses(
        (status = 200, description = "The schedule.", body = View),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["read"]))
)]
pub(super) async fn show(
    State(api): Shared,
    Path(id): Path<String>,
    Query(query): Query<Vec<(String, String)>>,
) -> Response {
    let answered = async {
        let id = id_of(&id)?;
        let mut asked = Asked::new(&query, &["next", "runs"]);
        let (next, runs) = (asked.number("next", 10, MOST_SHOWN), asked.number("runs", 20, MOST_SHOWN));
        asked.checked().map_err(Problem::invalid)?;
        let schedules = schedules(&api);
        let schedule = schedules.get(id).await.map_err(away)?.ok_or_else(|| unknown(id))?;
        let runs = schedules.runs(id, runs).await.map_err(away)?;
        Ok::<_, Problem>(Json(viewed(&api, schedule, next as usize, Some(runs)).await?))
    };
    answered.await.into_response()
}

/// Change a schedule
///
/// What was due before the change still runs, as it is then; everything after goes by the new times.
#[utoipa::path(
    patch, path = "/v1/schedules/{id}", tag = "schedules",
    params(("id" = Uuid, Path, description = "As its creation answered it.")),
    request_body(content = ScheduleChange),
    responses(
        (status = 200, description = "It is so now.", body = View),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "It has another version by now.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn change(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let body = body::read(&headers, body, api.max_payload + BODY_BYTES, api.request_timeout).await?;
        let (id, change, schedules) = (id_of(&id)?, Change::parse(&body)?, schedules(&api));
        let now = schedules.now().await.map_err(away)?;
        let before = schedules.get(id).await.map_err(away)?.ok_or_else(|| unknown(id))?;
        // It is read here and written there: a change in between is not overwritten.
        let version = change.version.unwrap_or(before.version);
        let definition = before.definition.with(change, api.max_payload, now)?;
        grant(&api, id, Some(version), Wish::Become(Box::new(definition)), who.name()).await
    };
    answered.await.into_response()
}

/// Pause a schedule
///
/// Its times pass without a run until it is resumed; what it has enqueued goes on. It can be triggered all the same.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/pause", tag = "schedules",
    params(("id" = Uuid, Path, description = "As its creation answered it.")),
    request_body(content = PauseRequest),
    responses(
        (status = 200, description = "It is paused.", body = View),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn pause(
    State(api): Shared,
    Extension(who): Extension<Who>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let answered = async {
        let body = body::read(&headers, body, BODY_BYTES, api.request_timeout).await?;
        let (id, PauseRequest { reason }) = (id_of(&id)?, read::<PauseRequest>(&body)?);
        if let Some(message) = name_fault(&reason, 500) {
            return Err(Problem::invalid(vec![Fault { field: "reason".to_owned(), message }]));
        }
        grant(&api, id, None, Wish::Pause(reason), who.name()).await
    };
    answered.await.into_response()
}

/// Resume a schedule
///
/// It fires again, at its next time; what has passed meanwhile is recorded as skipped.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/resume", tag = "schedules",
    params(("id" = Uuid, Path, description = "As its creation answered it.")),
    responses(
        (status = 200, description = "It fires.", body = View),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn resume(State(api): Shared, Extension(who): Extension<Who>, Path(id): Path<String>) -> Response {
    let answered = async { grant(&api, id_of(&id)?, None, Wish::Resume, who.name()).await };
    answered.await.into_response()
}

/// Run a schedule now
///
/// Beside its times, which stay as they are, and by its overlap policy; also while it is paused.
#[utoipa::path(
    post, path = "/v1/schedules/{id}/trigger", tag = "schedules",
    params(("id" = Uuid, Path, description = "As its creation answered it.")),
    request_body(content = TriggerRequest),
    responses(
        (status = 202, description = "A router enqueues it, or records why not.", body = Triggered),
        (status = 200, description = "The token was asked for before.", body = Triggered),
        (status = 404, description = "There is none.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["enqueue"]))
)]
pub(super) async fn trigger(State(api): Shared, Path(id): Path<String>, headers: HeaderMap, body: Body) -> Response {
    let answered = async {
        let body = body::read(&headers, body, BODY_BYTES, api.request_timeout).await?;
        let request = if body.is_empty() { TriggerRequest::default() } else { read(&body)? };
        let (id, token) = (id_of(&id)?, request.token.unwrap_or_else(|| Uuid::new_v4().to_string()));
        if let Some(message) = name_fault(&token, 100) {
            return Err(Problem::invalid(vec![Fault { field: "token".to_owned(), message }]));
        }
        let schedules = schedules(&api);
        let schedule = schedules.get(id).await.map_err(away)?.ok_or_else(|| unknown(id))?;
        let run = interaction_id(&schedule.definition.account, &key_of_trigger(id, &token));
        let status = match schedules.trigger(id, &token).await.map_err(away)?.as_deref() {
            Some("asked") => StatusCode::ACCEPTED,
            Some("known") => StatusCode::OK,
            Some(_) => {
                return Err(Problem::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    format!("100 runs of schedule {id} were asked for and wait; look at why it does not fire"),
                ));
            }
            None => return Err(unknown(id)),
        };
        if let Some(router) = &api.router {
            router.schedule_changed();
        }
        tracing::info!(schedule = %id, id = %run, "a schedule is triggered");
        Ok((status, Json(Triggered { id: run, token })))
    };
    answered.await.into_response()
}

/// Delete a schedule
///
/// It fires no more. What it has enqueued stays, and runs.
#[utoipa::path(
    delete, path = "/v1/schedules/{id}", tag = "schedules",
    params(("id" = Uuid, Path, description = "As its creation answered it.")),
    responses(
        (status = 204, description = "It is gone."),
        (status = 404, description = "There is none, or no longer.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn delete(State(api): Shared, Extension(who): Extension<Who>, Path(id): Path<String>) -> Response {
    let answered = async {
        let id = id_of(&id)?;
        if !schedules(&api).delete(id).await.map_err(away)? {
            return Err(unknown(id));
        }
        if let Some(router) = &api.router {
            router.schedule_changed();
        }
        tracing::info!(schedule = %id, who = who.name(), "a schedule is deleted");
        Ok(StatusCode::NO_CONTENT)
    };
    answered.await.into_response()
}

/// Whether Temporal is to have a schedule that is made in this stage.
#[cfg(feature = "temporal")]
pub(crate) fn mirrored(stage: Stage) -> Result<bool, Vec<Fault>> {
    Ok(stage != Stage::Complete)
}

/// Without Temporal, what is not `complete` is nobody's.
#[cfg(not(feature = "temporal"))]
pub(crate) fn mirrored(stage: Stage) -> Result<bool, Vec<Fault>> {
    let message =
        format!("is in stage {stage} for this kind; without Temporal, schedules can be made in stage complete only");
    match stage {
        Stage::Complete => Ok(false),
        _ => Err(vec![Fault { field: "account".to_owned(), message }]),
    }
}

async fn viewed(api: &Api, schedule: Schedule, next: usize, runs: Option<Vec<RunRow>>) -> Result<View, Problem> {
    let stand = mirrors(api).of(&[schedule.id]).await.map_err(away)?.remove(&schedule.id);
    Ok(View::of(schedule, next, runs).mirrored(stand))
}

async fn grant(api: &Api, id: Uuid, version: Option<i64>, wish: Wish, who: &str) -> Result<Json<View>, Problem> {
    match schedules(api).grant(id, version, &wish, who).await.map_err(away)? {
        Granted::Done(schedule) => {
            tracing::info!(schedule = %id, wish = wish.name(), who, "a schedule is changed");
            if let Some(router) = &api.router {
                router.schedule_changed();
            }
            Ok(Json(viewed(api, *schedule, 10, None).await?))
        }
        Granted::Version(now) => Err(Problem::new(
            StatusCode::CONFLICT,
            format!("schedule {id} was changed meanwhile, its version is {now}; look at it and repeat the change"),
        )),
        Granted::Unknown => Err(unknown(id)),
    }
}

fn schedules(api: &Api) -> Schedules {
    Schedules::new(api.ledger.pool().clone())
}

fn mirrors(api: &Api) -> Mirrors {
    Mirrors::new(api.ledger.pool().clone())
}

fn away(error: LedgerError) -> Problem {
    Problem::unavailable(error.to_string())
}

fn unknown(id: Uuid) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, format!("there is no schedule {id}"))
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Problem::invalid(vec![Fault { field: "body".to_owned(), message: error.to_string() }])
        }
        _ => Problem::no_object(&error),
    })
}

/// What a query asks for; its faults are gathered.
struct Asked<'a> {
    query: &'a [(String, String)],
    faults: Vec<Fault>,
}

impl<'a> Asked<'a> {
    fn new(query: &'a [(String, String)], known: &[&str]) -> Self {
        let mut faults = Vec::new();
        for (n, (name, _)) in query.iter().enumerate() {
            let message = match () {
                () if !known.contains(&name.as_str()) => {
                    format!("is no parameter of this route; {} are", known.join(", "))
                }
                () if query[..n].iter().any(|(before, _)| before == name) => "comes twice".to_owned(),
                () => continue,
            };
            faults.push(Fault { field: crate::executor::clean(name), message });
        }
        Self { query, faults }
    }

    fn get<T: std::str::FromStr>(&mut self, name: &str, like: &str) -> Option<T> {
        let (_, text) = self.query.iter().find(|(known, _)| known == name)?;
        let value = text.parse().ok();
        if value.is_none() {
            self.faults.push(Fault { field: name.to_owned(), message: format!("must be {like}") });
        }
        value
    }

    fn number(&mut self, name: &str, default: i64, most: i64) -> i64 {
        let like = format!("a number from 1 to {most}");
        let number = self.get(name, &like).unwrap_or(default);
        if !(1..=most).contains(&number) {
            self.faults.push(Fault { field: name.to_owned(), message: format!("must be {like}, is {number}") });
        }
        number
    }

    fn checked(self) -> Result<(), Vec<Fault>> {
        if self.faults.is_empty() { Ok(()) } else { Err(self.faults) }
    }
}

fn page_of(query: &[(String, String)]) -> Result<(Page, Option<Uuid>), Vec<Fault>> {
    let mut asked = Asked::new(query, &["account", "kind", "paused", "after", "limit"]);
    let page = Page {
        account: asked.get("account", "a name"),
        kind: asked.get("kind", "a name"),
        paused: asked.get("paused", "true or false"),
        after: None,
        limit: asked.number("limit", 100, MOST_LISTED),
    };
    let after = asked.get("after", "the id of a schedule");
    asked.checked().map(|()| (page, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_bounded_and_every_bad_parameter_is_named() {
        let page = |query: &[(&str, &str)]| {
            let query: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            page_of(&query).map_err(|faults| faults.into_iter().map(|fault| fault.field).collect::<Vec<_>>())
        };
        assert_eq!(page(&[]).unwrap().0.limit, 100);
        assert_eq!(page(&[("paused", "true")]).unwrap().0.paused, Some(true));
        let bad = page(&[("limit", "1000000"), ("after", "x"), ("acount", "a"), ("kind", "a"), ("kind", "b")]);
        assert_eq!(bad.unwrap_err(), ["acount", "kind", "limit", "after"]);
    }
}
