//! `POST /v1/interactions`, `GET /v1/interactions/{id}` and `POST /v1/interactions/{id}/cancel`.

use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use chrono::Utc;
use uuid::Uuid;

use super::auth::Auth;
use super::guard::Who;
use super::schema::{Answer, Cancelled, Found, LookedUp, NewInteraction, Unpinned};
use super::{Api, Problem, Shared, body};
use crate::config::tokens::Scope;
use crate::interaction::is_remote;
use crate::ledger::{Cancelling, LedgerError, Story};
use crate::queue::tasks::{self, Tasks};
use crate::report;
use crate::router::request::{Fault, RequestError};
use crate::router::{Accepted, How, Outages, Router, request};

/// Room for everything of a request but its payload.
const ENVELOPE_BYTES: usize = 64 << 10;
/// A caller who cancels what is with a worker or with Temporal is held for so long, so that it mostly learns what came of it.
const CANCEL_WAIT: Duration = Duration::from_secs(2);

/// Put an interaction in
///
/// The key makes a repetition safe: whoever got no answer, or a 503, sends the same again and gets the first answer.
#[utoipa::path(
    post, path = "/v1/interactions", tag = "interactions",
    params(("wait" = Option<String>, Query, description = "Hold the answer until the interaction has ended, at most so long (`30s`, `500ms`; bounded by http.max_wait and http.request_timeout). Needs the scope `read` too. Work that starts without a pin, in stage off, is answered at once.", example = "30s")),
    request_body(content = NewInteraction, description = "At most http.max_payload_bytes of payload."),
    responses(
        (status = 201, description = "Pinned and, where Temporal owns it, started.", body = Answer),
        (status = 200, description = "The key came before with the same work: the first answer again.", body = Answer),
        (status = 202, description = "Pinned; Temporal has not confirmed the start, and the relay sees to it.", body = Answer),
        (status = 409, description = "The key came before with other work.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["enqueue"]))
)]
pub(super) async fn enqueue(
    State(api): Shared,
    Extension(Who(token)): Extension<Who>,
    Query(query): Query<Vec<(String, String)>>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let began = Instant::now();
    let wait = wait_of(&query);
    if wait.as_ref().is_ok_and(Option::is_some)
        && let Err(problem) = Auth::may(token.as_ref(), Scope::Read)
    {
        return problem.into_response();
    }
    let read = match open(&api) {
        Ok(_) => body::read(&headers, body, api.max_payload + ENVELOPE_BYTES, api.request_timeout).await,
        Err(problem) => Err(problem),
    };
    let (wait, faults) = wait.map_or_else(|faults| (None, faults), |wait| (wait, Vec::new()));
    let (status, mut answer) = match read {
        Ok(body) => match accept(&api, &body, faults).await {
            Ok(accepted) => accepted,
            Err(problem) => return problem.into_response(),
        },
        Err(problem) => {
            api.metrics.enqueued(None, problem.status().as_u16());
            return problem.into_response();
        }
    };
    if let Some(wait) = wait.filter(|_| answer.pinned) {
        let left = api.request_timeout.saturating_sub(began.elapsed());
        let end = api.waiters.wait(answer.id, wait.min(api.max_wait).min(left)).await;
        answer.end(end);
    }
    (status, Json(answer)).into_response()
}

/// Takes one interaction in; `faults` are those that its request has beside its body.
pub(super) async fn accept(api: &Api, body: &[u8], faults: Vec<Fault>) -> Result<(StatusCode, Answer), Problem> {
    let answered = async {
        let router = open(api)?;
        let interaction = match request::parse(body, api.max_payload, Utc::now()) {
            Ok(interaction) if faults.is_empty() => interaction,
            Ok(_) => return Err(Problem::invalid(faults)),
            Err(RequestError::Invalid(more)) => return Err(Problem::invalid(faults.into_iter().chain(more).collect())),
            Err(error) => return Err(error.into()),
        };
        let accepted = router.enqueue(&interaction).await?;
        if let Some(group) = interaction.group.as_deref().filter(|group| is_remote(Some(group))) {
            api.remote.ring(group);
        }
        Ok(accepted)
    };
    let answered = answered.await.map(|accepted| {
        let status = match accepted.how {
            How::Created => StatusCode::CREATED,
            How::Repeated => StatusCode::OK,
            How::Pending => StatusCode::ACCEPTED,
            How::Conflict => StatusCode::CONFLICT,
        };
        let Accepted { id, key, owner, stage, epoch, pinned, .. } = accepted;
        (status, Answer { id, key, owner, stage, epoch, pinned, end: None })
    });
    let pinned = answered.as_ref().ok().map(|(_, answer)| (answer.stage, answer.owner));
    let status = answered.as_ref().map_or_else(Problem::status, |(status, _)| *status);
    api.metrics.enqueued(pinned, status.as_u16());
    answered
}

/// The router, while this process takes work in.
pub(super) fn open(api: &Api) -> Result<&Router, Problem> {
    let Some(router) = &api.router else {
        return Err(Problem::unavailable("this process has no router; ask one with the role `router`"));
    };
    if api.stop.is_cancelled() {
        return Err(Problem::unavailable("this process is being stopped; ask another, or this one in a moment"));
    }
    Ok(router)
}

/// The wait that a query asks for, or every fault of the query.
fn wait_of(query: &[(String, String)]) -> Result<Option<Duration>, Vec<Fault>> {
    let (mut wait, mut faults) = (None, Vec::new());
    for (name, value) in query {
        let message = match (name.as_str(), humantime::parse_duration(value)) {
            ("wait", _) if wait.is_some() => "comes twice".to_owned(),
            ("wait", Ok(time)) => {
                wait = Some(time);
                continue;
            }
            ("wait", Err(_)) => "is no duration; write it like `30s` or `500ms`".to_owned(),
            _ => "is no parameter of this route; `wait` is".to_owned(),
        };
        faults.push(Fault { field: crate::executor::clean(name), message });
    }
    if faults.is_empty() { Ok(wait) } else { Err(faults) }
}

/// Look an interaction up
///
/// Its state, its pin, the attempts of both sides, its result, and what the comparator makes of it.
#[utoipa::path(
    get, path = "/v1/interactions/{id}", tag = "interactions",
    params(("id" = Uuid, Path, description = "As the enqueue answered it.")),
    responses(
        (status = 200, description = "What is known of it. Work that was started without a pin (stage off, or while Postgres was away) has `pin` null, and so has every answer while Postgres is away: it is what Temporal knows.", body = LookedUp),
        (status = 404, description = "Nothing is known of it.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["read"]))
)]
pub(super) async fn look_up(State(api): Shared, Path(id): Path<String>) -> Response {
    let answered = async {
        let id = id_of(&id)?;
        match story(&api, id).await {
            Ok(Some(story)) => {
                let more = async {
                    let waits = if story.state == "waiting" { api.ledger.waits(id).await? } else { None };
                    Ok::<_, LedgerError>((
                        waits,
                        api.ledger.away(id).await?,
                        report::observation(&api.ledger, id).await?,
                    ))
                };
                let (waits, away, observation) = more.await.map_err(|error| Problem::unavailable(error.to_string()))?;
                Ok(Json(LookedUp::Pinned(Box::new(Found::new(story, waits, away, observation)))))
            }
            Ok(None) => unpinned(&api, id).await.map(|found| Json(LookedUp::Unpinned(found))),
            Err(error) => without_postgres(&api, id, &error).await.map(|found| Json(LookedUp::Unpinned(found))),
        }
    };
    let late = |_| Err(Problem::unavailable(format!("no answer within {:?}", api.request_timeout)));
    tokio::time::timeout(api.request_timeout, answered).await.unwrap_or_else(late).into_response()
}

/// What Postgres knows of it. While it does not answer in time, and Temporal could, it is not waited for.
async fn story(api: &Api, id: Uuid) -> Result<Option<Story>, LedgerError> {
    let hurry = api.router.as_ref().map(|router| router.outages()).filter(|outages| outages.is_open());
    if tasks::named_at(id).is_some() {
        return Tasks::new(api.ledger.pool().clone()).story(id).await;
    }
    match hurry.map(Outages::budget) {
        None => api.ledger.story(id).await,
        Some(budget) => tokio::time::timeout(budget, api.ledger.story(id))
            .await
            .unwrap_or_else(|_| Err(LedgerError::InDoubt(format!("no answer within {budget:?}")))),
    }
}

/// Postgres is away: what this router started without a pin, or Temporal has of it.
async fn without_postgres(api: &Api, id: Uuid, error: &LedgerError) -> Result<Unpinned, Problem> {
    let away = || Problem::unavailable(error.to_string());
    let router = api.router.as_ref().ok_or_else(away)?;
    match router.look_up_unpinned(id).await {
        Ok(Some(state)) => Ok(Unpinned { id, state, pin: () }),
        Ok(None) if router.outages().spool().holds_interaction(id) => Ok(Unpinned { id, state: "accepted", pin: () }),
        // Whether there is a pin of it is not known.
        Ok(None) | Err(_) => Err(away()),
    }
}

/// Not pinned: it may have been started in `off`, where only Temporal knows it.
async fn unpinned(api: &Api, id: Uuid) -> Result<Unpinned, Problem> {
    let Some(router) = &api.router else {
        return Err(Problem::new(StatusCode::NOT_FOUND, format!("no interaction {id} is pinned")));
    };
    match router.look_up_unpinned(id).await {
        Ok(Some(state)) => Ok(Unpinned { id, state, pin: () }),
        Ok(None) => Err(Problem::new(
            StatusCode::NOT_FOUND,
            format!(
                "no interaction {id} is pinned, and Temporal has no workflow of it; one of a series in stage off can't be looked up"
            ),
        )),
        Err(error) => Err(Problem::unavailable(error.to_string())),
    }
}

/// Cancel an interaction
///
/// What waits, also for another attempt, is cancelled at once. What runs hears of it with its next heartbeat, on either side
/// within a third of `worker.lease`: its call is dropped, and no attempt follows. If it ends by itself before that, its own
/// end stands. Repeating it is safe.
#[utoipa::path(
    post, path = "/v1/interactions/{id}/cancel", tag = "interactions",
    params(("id" = Uuid, Path, description = "As the enqueue answered it.")),
    responses(
        (status = 200, description = "It is cancelled, now or before.", body = Cancelled),
        (status = 202, description = "It is with a worker or with Temporal, which are being told; whether that comes in time is not known yet. Look it up, or ask again.", body = Cancelled),
        (status = 409, description = "It has ended otherwise.", body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "Nothing is known of it.", body = Problem, content_type = "application/problem+json"),
    ),
    security(("token" = ["operate"]))
)]
pub(super) async fn cancel(
    State(api): Shared,
    Extension(Who(token)): Extension<Who>,
    Path(id): Path<String>,
) -> Response {
    match call_off(&api, &id, token.as_ref().map(|token| token.name.as_str())).await {
        Ok((status, cancelled)) => (status, Json(cancelled)).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn call_off(api: &Api, id: &str, by: Option<&str>) -> Result<(StatusCode, Cancelled), Problem> {
    let (id, router) = (id_of(id)?, open(api)?);
    let reason = by.map_or_else(|| "cancelled over the API".to_owned(), |name| format!("cancelled by {name}"));
    let asked = router.cancel(id, &reason).await.map_err(|error| Problem::unavailable(error.to_string()))?;
    let Some(mut answer) = asked else {
        return Err(match unpinned(api, id).await {
            Ok(_) => Problem::new(
                StatusCode::CONFLICT,
                format!(
                    "{id} was started without a pin, in stage off: end its workflow `{id}:1` with Temporal's own tools"
                ),
            ),
            Err(problem) => problem,
        });
    };
    if answer == Cancelling::Asked && api.waiters.wait(id, CANCEL_WAIT.min(api.request_timeout)).await.is_some() {
        // It has ended, and how says the same question.
        let again = router.cancel(id, &reason).await.map_err(|error| Problem::unavailable(error.to_string()))?;
        answer = again.unwrap_or(answer);
    }
    api.metrics.http.cancels.with_label_values(&[answer.as_str()]).inc();
    tracing::info!(%id, answer = answer.as_str(), "asked to cancel an interaction");
    let conflict = |detail: &str| Err(Problem::new(StatusCode::CONFLICT, format!("{id} {detail}")));
    match answer {
        Cancelling::Cancelled => Ok((StatusCode::OK, Cancelled { id, state: "cancelled" })),
        Cancelling::Asked => Ok((StatusCode::ACCEPTED, Cancelled { id, state: "asked" })),
        Cancelling::Ended => conflict("has ended otherwise; look it up"),
    }
}

pub(super) fn id_of(text: &str) -> Result<Uuid, Problem> {
    let unlike = || format!("`{}` is no id; ids are UUIDs", crate::executor::clean(text));
    text.parse().map_err(|_| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, unlike()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(query: &[(&str, &str)]) -> Result<Option<Duration>, Vec<String>> {
        let pairs: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        wait_of(&pairs).map_err(|faults| faults.into_iter().map(|f| f.field).collect())
    }

    #[test]
    fn a_wait_is_a_duration_and_nothing_else_is_a_parameter() {
        assert_eq!(wait(&[]), Ok(None));
        assert_eq!(wait(&[("wait", "500ms")]), Ok(Some(Duration::from_millis(500))));
        assert_eq!(wait(&[("wait", "soon"), ("weit", "1s")]), Err(vec!["wait".into(), "weit".into()]));
        assert_eq!(wait(&[("wait", "1s"), ("wait", "2s")]), Err(vec!["wait".into()]));
    }
}
