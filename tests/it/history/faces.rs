//! History over HTTP, and the keys of what was cleared away.

use crossover::app::Roles;
use crossover::interaction::Stage;
use crossover::queue::tasks;
use serde_json::{Value, json};

use crate::bridge::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_search_over_http_answers_pages_and_names_every_fault() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    for key in ["one", "two", "three"] {
        node.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
    }
    let account = &world.account;
    let page = node.get(&format!("/v1/interactions?account={account}&state=succeeded&limit=2")).await;
    assert_eq!(page.status, 200, "{page:?}");
    let items = page.body["items"].as_array().unwrap();
    assert_eq!(items.iter().map(|item| item["key"].clone()).collect::<Vec<_>>(), ["three", "two"]);
    let next = page.body["next"].as_str().unwrap();
    let page = node.get(&format!("/v1/interactions?account={account}&state=succeeded&limit=2&cursor={next}")).await;
    let items = page.body["items"].as_array().unwrap();
    assert_eq!((items.len(), &items[0]["key"], &page.body["next"]), (1, &json!("one"), &Value::Null));

    let refused = node.get("/v1/interactions?limit=1000000&acount=a").await;
    assert_eq!(refused.status, 422);
    let said = refused.body["errors"].to_string();
    assert!(said.contains("1 to 500") && said.contains("acount"), "{said}");
    node.stop().await;
}

/// It may have been cleared away, and would run again.
#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_a_router_made_makes_nothing_new_after_the_window() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(Roles::ALL, |config| config.router.tasks = true).await;
    node.accepts(&world.request("first"), 201).await;
    world.succeeded("first").await;
    let window = crossover::config::Config::defaults().window.idempotency;
    let named = chrono::Utc::now() - window - chrono::TimeDelta::minutes(1);
    let mut request = world.request("x");
    request["key"] = json!(tasks::key_of(tasks::new_id(named)));
    for _ in 0..3 {
        let answer = node.post(&request).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("key")), "{answer:?}");
    }
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.tasks").await, 0);
    node.stop().await;
}
