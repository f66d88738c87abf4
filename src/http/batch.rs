//! `POST /v1/interactions/batch`: many at once, each for itself.

use std::collections::{BTreeMap, HashMap, HashSet};
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
        let names: Vec<Option<Names>> = items.iter().map(|item| request::names_of(item)).collect();
        api.guard.charge(&caller, cost(&names), &api.metrics)?;
        Ok::<_, Problem>((items, names))
    };
    match items.await {
        Ok((items, names)) => Json(BatchAnswer { answers: all(&api, &items, &names, began).await }).into_response(),
        Err(problem) => problem.into_response(),
    }
}

/// As how many requests it counts: each item, and one more for each hundred that it waits for.
fn cost(names: &[Option<Names>]) -> usize {
    names.iter().map(|names| 1 + names.as_ref().map_or(0, |names| names.after.len() / 100)).sum()
}

async fn all(api: &Api, items: &[Box<RawValue>], names: &[Option<Names>], began: Instant) -> Vec<ItemAnswer> {
    let mut answers: BTreeMap<usize, Answered> = BTreeMap::new();
    for wave in waves(names) {
        // What was refused for good holds nobody back: those behind it are answered by what is there without it.
        let refused: HashSet<usize> = answers
            .iter()
            .filter(|(_, answer)| answer.as_ref().is_err_and(|problem| problem.status().is_server_error()))
            .map(|(n, _)| *n)
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
    refused: &HashSet<usize>,
    began: Instant,
) -> (usize, Answered) {
    let n = step.item;
    let not_tried = |before: &&usize| refused.contains(before);
    let answered = match (step.behind.iter().find(not_tried), step.after.iter().find(not_tried)) {
        (Some(before), _) => Err(Problem::unavailable(format!(
            "not tried: interactions[{before}] of the same series or key was not accepted; send both again, in this order"
        ))),
        (_, Some(before)) => Err(Problem::unavailable(format!(
            "not tried: interactions[{before}], which it is to run after, was not accepted; send both again"
        ))),
        _ if step.circle => Err(Problem::invalid(vec![Fault {
            field: "after".to_owned(),
            message: "it would wait for itself, by way of others of the batch".to_owned(),
        }])),
        _ if began.elapsed() > api.request_timeout => Err(Problem::unavailable(format!(
            "not tried: the batch took longer than {:?}; send it again",
            api.request_timeout
        ))),
        _ => accept(api, items[n].get().as_bytes(), Vec::new()).await,
    };
    (n, answered)
}

/// One item, and the items that it comes after: those of its series or key, and those that it waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Step {
    item: usize,
    behind: Vec<usize>,
    after: Vec<usize>,
    circle: bool,
}

/// The items in waves, each of which needs only those before it, but for circles: these are a wave each.
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
    let mut followers: Vec<Vec<usize>> = vec![Vec::new(); steps.len()];
    let mut missing: Vec<usize> = steps.iter().map(|step| step.behind.len() + step.after.len()).collect();
    for step in &steps {
        step.behind.iter().chain(&step.after).for_each(|before| followers[*before].push(step.item));
    }
    let (mut waves, mut left) = (Vec::new(), steps.len());
    let mut free: Vec<usize> = (0..steps.len()).filter(|n| missing[*n] == 0).collect();
    let mut done = vec![false; steps.len()];
    while left > 0 {
        if free.is_empty() {
            free = one_circle(&mut steps, &done);
        }
        let wave = std::mem::take(&mut free);
        left -= wave.len();
        wave.iter().for_each(|n| done[*n] = true);
        for follower in wave.iter().flat_map(|n| &followers[*n]) {
            missing[*follower] -= 1;
            if missing[*follower] == 0 && !done[*follower] {
                free.push(*follower);
            }
        }
        waves.push(wave.into_iter().map(|n| steps[n].clone()).collect());
    }
    waves
}

/// The members of a circle among what is not done: from any of these each way back leads into one. Those that name others are told so.
fn one_circle(steps: &mut [Step], done: &[bool]) -> Vec<usize> {
    let Some(mut at) = done.iter().position(|done| !done) else { return Vec::new() };
    let (mut way, mut seen) = (Vec::new(), HashSet::new());
    while seen.insert(at) {
        way.push(at);
        let before = steps[at].behind.iter().chain(&steps[at].after).find(|before| !done[**before]);
        match before {
            Some(before) => at = *before,
            // What waits for nothing is free, and no circle.
            None => return vec![at],
        }
    }
    let circle = way.split_off(way.iter().position(|n| *n == at).unwrap_or(0));
    circle.iter().for_each(|n| steps[*n].circle = !steps[*n].after.is_empty());
    circle
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
    fn what_waits_for_many_counts_as_more_requests() {
        let keys = |n: usize| (0..n).map(|n| format!("\"{n}\"")).collect::<Vec<_>>().join(",");
        let item = |n| format!(r#"{{"account":"a","kind":"k","key":"x","after":{{"keys":[{}]}}}}"#, keys(n));
        assert_eq!(cost(&names(&["7", r#"{"account":"a","kind":"k"}"#, &item(1), &item(99)])), 4);
        assert_eq!(cost(&names(&[&item(100), &item(1_000)])), 13);
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
        assert_eq!(items(&waves), [vec![2], vec![0, 1], vec![3]]);
        assert!(waves[1..].iter().flatten().all(|step| step.circle));
    }

    #[test]
    fn what_only_waits_for_a_circle_or_stands_behind_it_is_not_of_it() {
        let names = names(&[
            r#"{"account":"a","kind":"k","key":"1","after":{"keys":["2"]},"series":"s"}"#,
            r#"{"account":"a","kind":"k","key":"2","after":{"keys":["1"]}}"#,
            r#"{"account":"a","kind":"k","key":"3","after":{"keys":["2"]}}"#,
            r#"{"account":"a","kind":"k","key":"4","after":{"keys":["5"]},"series":"s"}"#,
            r#"{"account":"a","kind":"k","key":"5"}"#,
        ]);
        let waves = waves(&names);
        let of_it: Vec<usize> = waves.iter().flatten().filter(|step| step.circle).map(|step| step.item).collect();
        assert_eq!(of_it, [0, 1]);
        assert_eq!(waves.iter().map(Vec::len).sum::<usize>(), 5);
    }

    #[test]
    fn a_series_may_close_a_circle() {
        // The second is behind the first in its series, and the first waits for it.
        let names = names(&[
            r#"{"account":"a","kind":"k","key":"1","series":"s","after":{"keys":["2"]}}"#,
            r#"{"account":"a","kind":"k","key":"2","series":"s"}"#,
        ]);
        let waves = waves(&names);
        assert_eq!(items(&waves), [vec![0, 1]]);
        assert!(waves[0][0].circle && !waves[0][1].circle);
    }
}
