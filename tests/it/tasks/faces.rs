//! What callers see of tasks: over HTTP, with a router and a worker.

use crossover::app::Roles;
use crossover::interaction::Stage;
use crossover::queue::tasks;
use serde_json::{Value, json};

use crate::bridge::world::{Node, World};

/// The account is armed by its first work with a key.
async fn complete() -> (World, Node) {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(Roles::ALL, |config| config.router.tasks = true).await;
    node.accepts(&world.request("first"), 201).await;
    world.succeeded("first").await;
    (world, node)
}

fn keyless(world: &World, name: &str) -> Value {
    let mut request = world.request(name);
    request.as_object_mut().unwrap().remove("key");
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn work_without_a_key_in_complete_is_a_task_and_its_key_leads_back_to_it() {
    let (world, node) = complete().await;
    let request = keyless(&world, "one");
    let answer = crate::wait::until("the router knows that the account is armed", async || {
        let answer = node.accepts(&request, 201).await;
        answer.body["key"].as_str().unwrap().starts_with("task_").then_some(answer)
    })
    .await;
    let (id, key) = (answer.body["id"].as_str().unwrap().to_owned(), answer.body["key"].clone());
    assert!(tasks::named_at(id.parse().unwrap()).is_some());
    assert_eq!((answer.owner().as_str(), &answer.body["stage"]), ("postgres", &json!("complete")));
    let found = crate::wait::until("it has run", async || {
        Some(node.get(&format!("/v1/interactions/{id}")).await).filter(|found| found.body["state"] == "succeeded")
    })
    .await;
    assert_eq!((found.status, &found.body["pin"]["stage"]), (200, &json!("complete")), "{found:?}");

    let mut again = request.clone();
    again["key"] = key.clone();
    let repeated = node.accepts(&again, 200).await;
    assert_eq!(repeated.body["id"], id);
    // Whatever the flags say by now.
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(node.accepts(&again, 200).await.body["id"], id);
    again["payload"] = json!("something else");
    assert_eq!(node.post(&again).await.status, 409);
    again["account"] = json!("somebody else");
    assert_ne!(node.post(&again).await.status, 200);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_looks_like_a_tasks_and_was_never_made_is_refused_when_it_is_too_old() {
    let (world, node) = complete().await;
    let long_ago = chrono::Utc::now() - chrono::TimeDelta::days(60);
    let mut request = world.request("x");
    request["key"] = json!(tasks::key_of(tasks::new_id(long_ago)));
    let answer = node.post(&request).await;
    assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("key")), "{answer:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_with_a_key_or_a_series_is_pinned_in_complete_too() {
    let (world, node) = complete().await;
    let mut member = world.member("s", "m");
    member.as_object_mut().unwrap().remove("key");
    for request in [world.request("keyed"), member] {
        let answer = node.accepts(&request, 201).await;
        let id: uuid::Uuid = answer.body["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(tasks::named_at(id), None, "{answer:?}");
    }
    node.stop().await;
}
