//! `POST /v1/interactions/batch`: many at once, each for itself.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use futures::stream::{self, StreamExt};
use serde_json::value::RawValue;
use uuid::Uuid;

use super::guard::Caller;
use super::interactions::{accept, open};
use super::schema::{Answer, Batch, BatchAnswer, ItemAnswer};
use super::{Api, Problem, Shared, body};
use crate::router::request::{self, Fault, Names};

/// Items of a batch that are worked on at once: fewer than the connections of a router, so that single callers get one.
const AT_ONCE: usize = 8;

/// Put many interactions in
///
/// Each is answered as if it had come alone, in the order of the request; a bad one does not touch the others. Those of
/// one series are taken in in their order, and where one of them could not be (503), those behind it are not tried; nor is what is
/// to run after one that could not be. What waits for others of the batch (`after` with `keys`) may stand before them.
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
    let names: Vec<Option<Names>> = items.iter().map(|item| request::names_of(item)).collect();
    let mut answers: BTreeMap<usize, Answered> = BTreeMap::new();
    for wave in waves(&names) {
        // Only what was not accepted can hold anything back.
        let refused: HashMap<usize, bool> = answers
            .iter()
            .filter_map(|(n, answer)| Some((*n, answer.as_ref().err()?.status().is_server_error())))
            .collect();
        let answered = stream::iter(wave).map(|step| one(api, items, step, &refused, began)).buffer_unordered(AT_ONCE);
        answers.extend(answered.collect::<Vec<_>>().await);
    }
    answers.into_values().map(ItemAnswer::from).collect()
}

type Answered = Result<(StatusCode, Answer), Problem>;

async fn one(
    api: &Api,
    items: &[Box<RawValue>],
    step: Step,
    refused: &HashMap<usize, bool>,
    began: Instant,
) -> (usize, Answered) {
    let n = step.item;
    let stuck = step.behind.iter().find(|before| refused.get(before) == Some(&true));
    let upstream = step.after.iter().find(|before| refused.contains_key(before));
    let answered = match (stuck, upstream) {
        (Some(before), _) => Err(Problem::unavailable(format!(
            "not tried: interactions[{before}] of the same series or key was not accepted; send both again, in this order"
        ))),
        (_, Some(before)) if refused.get(before) == Some(&true) => Err(Problem::unavailable(format!(
            "not tried: interactions[{before}], which it is to run after, was not accepted; send both again"
        ))),
        (_, Some(before)) => Err(not_after(format!("interactions[{before}], which it names, was refused"))),
        _ if step.circle => Err(not_after("it would wait for itself, by way of others of the batch".to_owned())),
        _ if began.elapsed() > api.request_timeout => Err(Problem::unavailable(format!(
            "not tried: the batch took longer than {:?}; send it again",
            api.request_timeout
        ))),
        _ => accept(api, items[n].get().as_bytes(), Vec::new()).await,
    };
    (n, answered)
}

fn not_after(message: String) -> Problem {
    Problem::invalid(vec![Fault { field: "after".to_owned(), message }])
}

/// One item, and the items that it comes after: those of its series or key, and those that it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Step {
    item: usize,
    behind: Vec<usize>,
    after: Vec<usize>,
    circle: bool,
}

/// The items in waves, each of which needs only those before it. What waits for itself by way of others comes last.
fn waves(names: &[Option<Names>]) -> Vec<Vec<Step>> {
    let (mut last, mut places): (HashMap<&str, usize>, HashMap<Uuid, usize>) = Default::default();
    let mut steps: Vec<Step> = Vec::with_capacity(names.len());
    for (item, names) in names.iter().enumerate() {
        let chain = names.as_ref().and_then(|names| names.chain.as_deref());
        let behind = chain.and_then(|chain| last.insert(chain, item)).into_iter().collect();
        steps.push(Step { item, behind, ..Step::default() });
        if let Some(id) = names.as_ref().and_then(|names| names.id) {
            places.entry(id).or_insert(item);
        }
    }
    for (step, names) in steps.iter_mut().zip(names) {
        let after = names.iter().flat_map(|names| &names.after);
        step.after = after.filter_map(|id| places.get(id)).copied().collect();
    }
    let mut waves: Vec<Vec<Step>> = Vec::new();
    let mut done = vec![false; steps.len()];
    while !steps.is_empty() {
        let free = |step: &Step| step.behind.iter().chain(&step.after).all(|before| done[*before]);
        let (wave, rest): (Vec<Step>, Vec<Step>) = steps.into_iter().partition(free);
        if wave.is_empty() {
            // Those of a circle, and those behind them, one after the other.
            waves.extend(rest.into_iter().map(|step| vec![Step { circle: !step.after.is_empty(), ..step }]));
            break;
        }
        wave.iter().for_each(|step| done[step.item] = true);
        waves.push(wave);
        steps = rest;
    }
    waves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Vec<Option<Names>> {
        let items = texts.iter().map(|text| RawValue::from_string((*text).to_owned()).unwrap());
        items.map(|item| request::names_of(&item)).collect()
    }

    fn items(waves: &[Vec<Step>]) -> Vec<Vec<usize>> {
        waves.iter().map(|wave| wave.iter().map(|step| step.item).collect()).collect()
    }

    #[test]
    fn members_of_a_series_and_repetitions_of_a_key_stay_in_order() {
        let names = names(&[
            r#"{"account":"a","kind":"k","series":"s","key":"1"}"#,
            r#"{"account":"a","kind":"k","key":"2"}"#,
            r#"{"account":"a","kind":"k","series":"s"}"#,
            r#"{"account":"b","kind":"k","series":"s"}"#,
            r#"{"account":"a","kind":"other","key":"2"}"#,
            "7",
            r#"{"account":"a","kind":"k"}"#,
            r#"{"account":"a","kind":"k","series":"s"}"#,
        ]);
        let waves = waves(&names);
        assert_eq!(items(&waves), [vec![0, 1, 3, 5, 6], vec![2, 4], vec![7]]);
        assert_eq!(waves[2][0].behind, [2]);
    }

    #[test]
    fn what_waits_for_others_of_the_batch_comes_after_them_wherever_it_stands() {
        let names = names(&[
            r#"{"account":"a","kind":"k","key":"load","after":{"keys":["left","right"]}}"#,
            r#"{"account":"a","kind":"k","key":"left","after":{"keys":["extract"]}}"#,
            r#"{"account":"a","kind":"k","key":"right","after":{"keys":["extract"]}}"#,
            r#"{"account":"a","kind":"k","key":"extract"}"#,
            r#"{"account":"b","kind":"k","key":"load","after":{"keys":["extract"]}}"#,
        ]);
        let waves = waves(&names);
        // The last one's is another account's, and not of the batch.
        assert_eq!(items(&waves), [vec![3, 4], vec![1, 2], vec![0]]);
        assert!(waves.iter().flatten().all(|step| !step.circle));
    }

    #[test]
    fn a_circle_is_told_to_each_that_waits_in_it() {
        let names = names(&[
            r#"{"account":"a","kind":"k","key":"1","after":{"keys":["2"]}}"#,
            r#"{"account":"a","kind":"k","key":"2","after":{"keys":["1"]}}"#,
            r#"{"account":"a","kind":"k","key":"3"}"#,
            r#"{"account":"a","kind":"k","key":"4","after":{"keys":["4"]}}"#,
        ]);
        let waves = waves(&names);
        assert_eq!(items(&waves), [vec![2], vec![0], vec![1], vec![3]]);
        assert!(waves[1..].iter().flatten().all(|step| step.circle));
    }

    #[test]
    fn a_series_may_close_a_circle() {
        // The second is behind the first in its series, and the first waits for it.
        let names = names(&[
            r#"{"account":"a","kind":"k","key":"1","series":"s","after":{"keys":["2"]}}"#,
            r#"{"account":"a","kind":"k","key":"2","series":"s"}"#,
        ]);
        let waves = waves(&names);
        assert_eq!(items(&waves), [vec![0], vec![1]]);
        assert!(waves[0][0].circle && !waves[1][0].circle);
    }
}
