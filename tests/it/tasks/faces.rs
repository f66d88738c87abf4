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

#[tokio::test(flavor = "multi_thread")]
async fn a_group_whose_cap_is_reached_takes_no_more_until_fewer_wait() {
    let (world, node) = complete().await;
    let groups = crossover::queue::groups::Groups::new(world.pool().clone());
    let limits = json!({ "max_waiting": 3 });
    groups.set("mail", limits.as_object().unwrap(), "test").await.unwrap();
    groups.pause("mail", "their API is down", "test").await.unwrap();
    let of = |name: &str| crate::bridge::world::with(keyless(&world, name), json!({ "group": "mail" }));
    let refused = super::until("it is full", async || {
        let answer = node.post(&of("more")).await;
        (answer.status == 429).then_some(answer)
    })
    .await;
    assert!(refused.detail().contains("group `mail`") && refused.detail().contains("max_waiting is 3"), "{refused:?}");
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.body["key"].is_string());
    node.accepts(&keyless(&world, "another group"), 201).await;
    let later = json!({ "run_at": (chrono::Utc::now() + chrono::TimeDelta::days(1)).to_rfc3339() });
    node.accepts(&crate::bridge::world::with(of("later"), later), 201).await;
    groups.resume("mail", "test").await.unwrap();
    super::until("it takes work again", async || (node.post(&of("again")).await.status == 201).then_some(())).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_was_accepted_is_answered_as_before_though_its_group_is_full() {
    let (world, node) = complete().await;
    let groups = crossover::queue::groups::Groups::new(world.pool().clone());
    groups.set("mail", json!({ "max_waiting": 1 }).as_object().unwrap(), "test").await.unwrap();
    groups.pause("mail", "their API is down", "test").await.unwrap();
    let of = |request: Value| crate::bridge::world::with(request, json!({ "group": "mail" }));
    let accepted = node.accepts(&of(world.request("one")), 201).await;
    super::until("it is full", async || (node.post(&of(keyless(&world, "more"))).await.status == 429).then_some(()))
        .await;
    let again = node.post(&of(world.request("one"))).await;
    assert_eq!((again.status, &again.body["id"]), (200, &accepted.body["id"]), "{again:?}");
    let other = crate::bridge::world::with(of(world.request("one")), json!({ "payload": "another" }));
    assert_eq!(node.post(&other).await.status, 409);
    assert_eq!(node.post(&of(world.request("another"))).await.status, 429, "what is new is refused");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cap_refuses_nothing_of_an_account_that_postgres_does_not_own() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let groups = crossover::queue::groups::Groups::new(world.pool().clone());
    groups.set("mail", json!({ "max_waiting": 1 }).as_object().unwrap(), "test").await.unwrap();
    groups.pause("mail", "enough", "test").await.unwrap();
    let mut keys = Vec::new();
    for n in 0..4 {
        keys.push(n.to_string());
        let request = crate::bridge::world::with(world.request(&keys[n]), json!({ "group": "mail" }));
        node.accepts(&request, 201).await;
    }
    let full = super::until("the router knows that it is full", async || {
        let text = node.get("/metrics").await.body;
        text.as_str().unwrap().contains("crossover_group_waiting_rows{group=\"mail\"} 4").then_some(())
    });
    full.await;
    node.accepts(&crate::bridge::world::with(world.request("one more"), json!({ "group": "mail" })), 201).await;
    for key in &keys {
        world.succeeded(key).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_weights_are_changed_over_the_api() {
    let (world, node) = complete().await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |method: reqwest::Method, path: &str, body: Value| {
        let sent = http.request(method, format!("{}{path}", node.base)).json(&body).send().await.unwrap();
        let status = sent.status().as_u16();
        (status, serde_json::from_str(&sent.text().await.unwrap()).unwrap_or(Value::Null))
    };
    use reqwest::Method;
    let (status, group) = ask(Method::PATCH, "/v1/groups/mail", json!({ "max_running": 3, "rate": 2.5 })).await;
    assert_eq!((status, &group["max_running"], &group["rate"]), (200, &json!(3), &json!(2.5)), "{group}");
    let (status, group) = ask(Method::PATCH, "/v1/groups/mail", json!({ "rate": null })).await;
    assert_eq!((status, &group["max_running"], &group["rate"]), (200, &json!(3), &Value::Null), "{group}");
    let (status, faults) = ask(Method::PATCH, "/v1/groups/mail", json!({ "max_running": 0, "burts": 1 })).await;
    let detail = faults["detail"].as_str().unwrap();
    assert!(status == 422 && detail.contains("pause the group") && detail.contains("burts: is no field"), "{faults}");
    assert_eq!(ask(Method::POST, "/v1/groups/mail/pause", json!({})).await.0, 422);
    let (status, group) = ask(Method::POST, "/v1/groups/mail/pause", json!({ "reason": "down" })).await;
    assert_eq!((status, &group["paused_reason"]), (200, &json!("down")));
    let (status, group) = ask(Method::POST, "/v1/groups/mail/resume", json!({})).await;
    assert_eq!((status, &group["paused_since"]), (200, &Value::Null));
    assert_eq!(node.get("/v1/groups").await.body["groups"][0]["name"], "mail");
    let (status, faults) = ask(Method::PATCH, "/v1/groups/mail", json!({})).await;
    assert!(status == 422 && faults["detail"].as_str().unwrap().contains("name at least one"), "{faults}");
    let nul = json!({ "rate": "a\0b", "max_running": 0 });
    let (status, faults) = ask(Method::PATCH, "/v1/groups/a%00b", nul).await;
    let detail = faults["detail"].as_str().unwrap();
    for part in ["group: holds the control character", "rate: must not hold a NUL", "max_running: must be 1"] {
        assert!(status == 422 && detail.contains(part), "{part}: {faults}");
    }
    for reason in ["", "a\0b", "a\nb", &"x".repeat(501)] {
        let (status, faults) = ask(Method::POST, "/v1/groups/a%00b/pause", json!({ "reason": reason })).await;
        let detail = faults["detail"].as_str().unwrap();
        assert!(status == 422 && detail.contains("group: ") && detail.contains("reason: "), "{faults}");
    }
    for (method, path) in [(Method::DELETE, "/v1/groups/a%00b"), (Method::POST, "/v1/groups/a%00b/resume")] {
        assert_eq!(ask(method, path, json!({})).await.0, 422, "{path}");
    }
    let (status, faults) = ask(Method::PUT, "/v1/weights/a%00b", json!({ "weight": 0 })).await;
    let detail = faults["detail"].as_str().unwrap();
    assert!(status == 422 && detail.contains("account: ") && detail.contains("weight: must be from"), "{faults}");
    for name in ["a", "z", "zz"] {
        assert_eq!(ask(Method::PATCH, &format!("/v1/groups/{name}"), json!({ "rate": 1 })).await.0, 200);
    }
    let (mut names, mut path) = (Vec::new(), "/v1/groups?limit=2".to_owned());
    loop {
        let page = node.get(&path).await.body;
        names.extend(page["groups"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/groups?limit=2&after={next}");
    }
    assert_eq!(names, ["a", "mail", "z", "zz"]);
    for path in ["/v1/groups?limit=0", "/v1/groups?limit=1000000", "/v1/groups?after=%00", "/v1/groups?before=a"] {
        assert_eq!(node.get(path).await.status, 422, "{path}");
    }
    assert_eq!(ask(Method::DELETE, "/v1/groups/mail", json!({})).await.0, 204);
    assert_eq!(ask(Method::DELETE, "/v1/groups/mail", json!({})).await.0, 404);
    assert_eq!(ask(Method::PUT, "/v1/weights/acme", json!({ "weight": 0 })).await.0, 422);
    assert_eq!(ask(Method::PUT, "/v1/weights/acme", json!({ "weight": 2 })).await.0, 200);
    assert_eq!(node.get("/v1/weights").await.body["weights"][0]["weight"], 2.0);
    drop(world);
    node.stop().await;
}
