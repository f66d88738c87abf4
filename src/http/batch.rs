//! `POST /v1/interactions/batch`: many at once, each for itself.

use std::collections::HashMap;
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream::{self, StreamExt};
use serde_json::value::RawValue;

use super::guard::Caller;
use super::interactions::{accept, open};
use super::schema::{Batch, BatchAnswer, ItemAnswer};
use super::{Api, Problem, Shared, body};
use crate::router::request;

/// Chains of a batch that are worked on at once: fewer than the connections of a router, so that single callers get one.
const AT_ONCE: usize = 8;

/// Put many interactions in
///
/// Each is answered as if it had come alone, in the order of the request; a bad one does not touch the others. Those of
/// one series are taken in in their order, and where one of them could not be (503), those behind it are not tried.
#[utoipa::path(
    post, path = "/v1/interactions/batch", tag = "interactions",
    request_body(content = Batch, description = "At most http.max_batch interactions and http.max_batch_bytes."),
    responses((status = 200, description = "The batch was read; each of its answers has a status of its own.", body = BatchAnswer)),
    security(("token" = ["enqueue"]))
)]
pub(super) async fn batch(
    State(api): Shared,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let began = Instant::now();
    let items = async {
        open(&api)?;
        let body = body::read(&headers, body, api.max_batch_bytes, api.request_timeout).await?;
        let items = request::parse_batch(&body, api.max_batch)?;
        api.guard.charge(&caller, items.len(), &api.metrics)?;
        Ok::<_, Problem>(items)
    };
    match items.await {
        Ok(items) => Json(BatchAnswer { answers: all(&api, &items, began).await }).into_response(),
        Err(problem) => problem.into_response(),
    }
}

async fn all(api: &Api, items: &[Box<RawValue>], began: Instant) -> Vec<ItemAnswer> {
    let answered = stream::iter(chains(items)).map(|chain| in_turn(api, items, chain, began)).buffer_unordered(AT_ONCE);
    let mut answers: Vec<(usize, ItemAnswer)> = answered.flat_map(stream::iter).collect().await;
    answers.sort_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// The places of the items, those that must keep their order together: members of a series, and repetitions of a key.
fn chains(items: &[Box<RawValue>]) -> Vec<Vec<usize>> {
    let mut known: HashMap<String, usize> = HashMap::new();
    let mut chains: Vec<Vec<usize>> = Vec::new();
    for (n, item) in items.iter().enumerate() {
        let at = request::chain_of(item).map_or(chains.len(), |name| *known.entry(name).or_insert(chains.len()));
        match chains.get_mut(at) {
            Some(chain) => chain.push(n),
            None => chains.push(vec![n]),
        }
    }
    chains
}

async fn in_turn(api: &Api, items: &[Box<RawValue>], chain: Vec<usize>, began: Instant) -> Vec<(usize, ItemAnswer)> {
    let mut answers = Vec::with_capacity(chain.len());
    let mut stuck = None;
    for n in chain {
        let answered = match stuck {
            Some(before) => Err(Problem::unavailable(format!(
                "not tried: interactions[{before}] of the same series or key was not accepted; send both again, in this order"
            ))),
            None if began.elapsed() > api.request_timeout => Err(Problem::unavailable(format!(
                "not tried: the batch took longer than {:?}; send it again",
                api.request_timeout
            ))),
            None => accept(api, items[n].get().as_bytes(), Vec::new()).await,
        };
        if stuck.is_none() && answered.as_ref().is_err_and(|problem| problem.status().is_server_error()) {
            stuck = Some(n);
        }
        answers.push((n, ItemAnswer::from(answered)));
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_series_and_repetitions_of_a_key_stay_in_order() {
        let items: Vec<Box<RawValue>> = [
            r#"{"account":"a","kind":"k","series":"s","key":"1"}"#,
            r#"{"account":"a","kind":"k","key":"2"}"#,
            r#"{"account":"a","kind":"k","series":"s"}"#,
            r#"{"account":"b","kind":"k","series":"s"}"#,
            r#"{"account":"a","kind":"other","key":"2"}"#,
            "7",
            r#"{"account":"a","kind":"k"}"#,
        ]
        .map(|text| RawValue::from_string(text.to_owned()).unwrap())
        .into();
        assert_eq!(chains(&items), [vec![0, 2], vec![1, 4], vec![3], vec![5], vec![6]]);
    }
}
