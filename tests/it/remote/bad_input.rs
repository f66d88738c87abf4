//! What can't be meant is answered clearly, and nothing comes of it.

use super::*;

async fn faults(node: &Node, what: &str, body: Value) -> Vec<String> {
    let answer = ask(node, what, body).await;
    assert_eq!(answer.status, 422, "{answer:?}");
    let faults = answer.body["errors"].as_array().unwrap().iter();
    let mut fields: Vec<String> = faults.map(|fault| fault["field"].as_str().unwrap().to_owned()).collect();
    fields.sort();
    fields
}

#[tokio::test(flavor = "multi_thread")]
async fn every_fault_is_named_at_once() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let bad = json!({ "max": 0, "wait_ms": 60_001, "lease_ms": "long", "limit": 5 });
    assert_eq!(faults(&node, "dequeue", bad).await, ["lease_ms", "limit", "max", "wait_ms", "worker"]);
    let million = json!({ "worker": "w", "max": 1_000_000 });
    assert_eq!(faults(&node, "dequeue", million).await, ["max"]);
    assert_eq!(faults(&node, "dequeue", json!({ "worker": "" })).await, ["worker"]);
    let (id, other) = (uuid::Uuid::new_v4(), uuid::Uuid::new_v4());
    let items = json!({ "items": [
        { "id": id, "fence": "1.1" },
        { "id": id, "fence": "1.2" },
        { "id": "7", "fence": 1.1 },
        { "id": other, "fence": "1.1", "reslut": 7 },
    ] });
    let wanted = ["items[1].id", "items[2].fence", "items[2].id", "items[3].reslut"];
    for what in ["heartbeat", "complete", "fail"] {
        assert_eq!(faults(&node, what, items.clone()).await, wanted, "{what}");
    }
    let failed = json!({ "items": [{ "id": id, "fence": "1.1", "error": 7, "permanent": "yes", "retry_after_ms": 86_400_001 }] });
    assert_eq!(
        faults(&node, "fail", failed).await,
        ["items[0].error", "items[0].permanent", "items[0].retry_after_ms"]
    );
    for what in ["heartbeat", "complete", "fail"] {
        assert_eq!(faults(&node, what, json!({ "worker": 7 })).await, ["items", "worker"], "{what}");
        assert_eq!(faults(&node, what, json!({ "items": {} })).await, ["items"], "{what}");
        assert_eq!(ask(&node, what, json!({ "items": [] })).await.status, 200, "{what}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_far_too_long_is_refused() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let item = json!({ "id": uuid::Uuid::new_v4(), "fence": "1.1" });
    let many = |n: usize| json!({ "items": vec![item.clone(); n] });
    assert_eq!(faults(&node, "heartbeat", many(1_001)).await, ["items"]);
    for what in ["heartbeat", "complete", "fail"] {
        assert_eq!(ask(&node, what, many(200_000)).await.status, 413, "{what}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_was_and_what_has_another_fence_is_answered_item_by_item() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&mail(&world, "m"), 201).await;
    node.accepts(&with(world.request("other"), json!({ "group": "remote.other" })), 201).await;
    let item = next(&node, Duration::from_secs(60)).await;
    let elsewhere = json!({ "worker": "w" });
    let other = node.call("POST", "/v1/groups/remote.other/dequeue", Some(&elsewhere)).await.body["items"][0].clone();
    let items = json!({ "items": [
        { "id": uuid::Uuid::new_v4(), "fence": "1.1" },
        { "id": item["id"], "fence": "1.2" },
        { "id": other["id"], "fence": other["fence"] },
    ] });
    for what in ["heartbeat", "complete", "fail"] {
        let answer = ask(&node, what, items.clone()).await;
        let answers: Vec<_> = answer.body["items"].as_array().unwrap().iter().map(|a| a["answer"].clone()).collect();
        assert_eq!(answers, ["unknown", "unknown", "unknown"], "{what}");
    }
    let epoch = json!({ "items": [{ "id": item["id"], "fence": "2.1" }] });
    assert_eq!(ask(&node, "complete", epoch).await.body["items"][0]["answer"], "unknown");
    assert_eq!(complete(&node, &item).await, "taken", "nothing of all that took it away");
    assert_eq!(counted(&node, "crossover_remote_reports_total", "unknown").await, 10.0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_our_own_workers_has_no_remote_ones() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let long = format!("remote.{}", "x".repeat(100));
    for group in ["default", "mail", "Remote.mail", "remote.%00", "remote.a%0Ab", &long] {
        let answer = node.call("POST", &format!("/v1/groups/{group}/dequeue"), Some(&json!({ "worker": "w" }))).await;
        assert_eq!((answer.status, &answer.body["errors"][0]["field"]), (422, &json!("group")), "{answer:?}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_too_long_is_named_and_nothing_of_its_batch_is_taken() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    for key in ["a", "b"] {
        node.accepts(&mail(&world, key), 201).await;
    }
    let items = dequeue(&node, 2).await;

    let bad = json!({ "items": [
        about(&items[0], json!({ "result": "fine" })), about(&items[1], json!({ "result": "x".repeat(1_600_000) })) ] });
    assert_eq!(faults(&node, "complete", bad).await, ["items[1].result"]);
    assert_eq!(complete(&node, &items[0]).await, "taken");
    assert_eq!(complete(&node, &items[1]).await, "taken");
    node.stop().await;
}
