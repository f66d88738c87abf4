//! `GET /v1/interactions`: what Postgres knows, newest first, a page at a time.

use axum::Json;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};

use super::{Problem, Shared};
use crate::history::{Cursor, Filter, MOST, Page, SearchError};
use crate::router::request::Fault;

/// A page has so many unless it is asked for otherwise.
const USUAL: u32 = 50;

/// Search for interactions
///
/// What Postgres knows, pinned or task, newest first; what only Temporal knows (stage off) is not among it. Behind the cursor
/// `next` is the next page, also while new work comes in. A search that would read too much is given up and says so: name an
/// account, or a shorter time.
#[utoipa::path(
    get, path = "/v1/interactions", tag = "interactions",
    params(
        ("account" = Option<String>, Query, description = "Of this account."),
        ("kind" = Option<String>, Query, description = "Of this kind."),
        ("state" = Option<String>, Query, description = "In this state: scheduled, waiting, ready, running, held, unknown_outcome, succeeded, failed, cancelled or expired."),
        ("series" = Option<String>, Query, description = "Of this series."),
        ("group" = Option<String>, Query, description = "Of this group."),
        ("since" = Option<String>, Query, description = "Accepted then or later (RFC 3339). Absent: a day before `until`."),
        ("until" = Option<String>, Query, description = "Accepted before (RFC 3339). Absent: now."),
        ("limit" = Option<u32>, Query, description = "At most so many, 1 to 500; 50 if absent.", example = 50),
        ("cursor" = Option<String>, Query, description = "`next` of the page before, with the same filters."),
    ),
    responses((status = 200, description = "A page.", body = Page)),
    security(("token" = ["read"]))
)]
pub(super) async fn search(State(api): Shared, Query(query): Query<Vec<(String, String)>>) -> Response {
    let (filter, after, limit) = match asked(&query) {
        Ok(asked) => asked,
        Err(faults) => return Problem::invalid(faults).into_response(),
    };
    match api.search.page(&filter, after, limit).await {
        Ok(page) => Json(page).into_response(),
        Err(error @ SearchError::TooMuch) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string()).into_response()
        }
        Err(SearchError::Ledger(error)) => Problem::unavailable(error.to_string()).into_response(),
    }
}

/// What is asked, or every fault of it.
fn asked(query: &[(String, String)]) -> Result<(Filter, Option<Cursor>, u32), Vec<Fault>> {
    let (mut filter, mut after, mut limit) = (Filter::default(), None, USUAL);
    let (mut faults, mut seen) = (Vec::new(), Vec::new());
    for (name, value) in query {
        let read = match name.as_str() {
            _ if seen.contains(&name) => Err("is given twice".to_owned()),
            "account" => text(value).map(|it| filter.account = Some(it)),
            "kind" => text(value).map(|it| filter.kind = Some(it)),
            "series" => text(value).map(|it| filter.series = Some(it)),
            "group" => text(value).map(|it| filter.group = Some(it)),
            "state" => value.parse().map(|it| filter.state = Some(it)),
            "since" => time(value).map(|it| filter.since = Some(it)),
            "until" => time(value).map(|it| filter.until = Some(it)),
            "cursor" => value.parse().map(|it| after = Some(it)).map_err(str::to_owned),
            "limit" => match value.parse() {
                Ok(it @ 1..=MOST) => {
                    limit = it;
                    Ok(())
                }
                _ => Err(format!("must be a whole number from 1 to {MOST}; `next` leads to the page behind it")),
            },
            _ => Err("is no parameter of this route; account, kind, state, series, group, since, until, limit and cursor are".to_owned()),
        };
        seen.push(name);
        if let Err(message) = read {
            faults.push(Fault { field: crate::executor::clean(name), message });
        }
    }
    if let (Some(since), Some(until)) = (filter.since, filter.until)
        && since >= until
    {
        faults.push(Fault { field: "until".to_owned(), message: "must be later than since".to_owned() });
    }
    if faults.is_empty() { Ok((filter, after, limit)) } else { Err(faults) }
}

fn text(value: &str) -> Result<String, String> {
    match value {
        "" => Err("must not be empty".to_owned()),
        value if value.contains('\0') => Err("must not hold a NUL".to_owned()),
        value => Ok(value.to_owned()),
    }
}

fn time(value: &str) -> Result<DateTime<Utc>, String> {
    let read = DateTime::parse_from_rfc3339(value).map(|at| at.to_utc());
    let read = read.ok().filter(|at| (1970..=9999).contains(&chrono::Datelike::year(at)));
    read.ok_or_else(|| "must be a time like 2026-11-22T12:00:00Z (a `+` is written %2B)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(query: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs: Vec<_> = query.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        asked(&pairs).unwrap_err().into_iter().map(|fault| (fault.field, fault.message)).collect()
    }

    #[test]
    fn a_page_of_a_million_is_refused_with_the_bound() {
        let found = faults(&[("limit", "1000000")]);
        assert_eq!(found[0].0, "limit");
        assert!(found[0].1.contains("1 to 500"), "{found:?}");
        for bad in ["0", "-1", "many", "99999999999999999999"] {
            assert_eq!(faults(&[("limit", bad)]).len(), 1, "{bad}");
        }
    }

    #[test]
    fn every_fault_of_a_search_is_told_at_once() {
        let found = faults(&[("state", "lost"), ("since", "soon"), ("cursor", "x"), ("acount", "a"), ("kind", "")]);
        let fields: Vec<_> = found.iter().map(|(field, _)| field.as_str()).collect();
        assert_eq!(fields, ["state", "since", "cursor", "acount", "kind"]);
        assert_eq!(faults(&[("account", "a"), ("account", "b")])[0].1, "is given twice");
        let backwards = [("since", "2026-11-22T12:00:00Z"), ("until", "2026-11-22T11:00:00Z")];
        assert_eq!(faults(&backwards)[0].0, "until");
    }
}
