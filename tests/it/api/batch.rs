//! Many interactions in one request, each for itself.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_item_is_answered_for_itself_in_the_order_of_the_request() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&world.request("known"), 201).await;
    let items = json!([
        world.request("one"),
        { "account": world.account, "kind": "", "payload": 1, "prioriti": 3 },
        world.request("known"),
        with(world.request("known"), json!({ "payload": "other" })),
        "no object",
        world.request("two"),
        world.request("two"),
    ]);
    let answer = post(&node, "/v1/interactions/batch", &json!({ "interactions": items })).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let answers = answer.body["answers"].as_array().unwrap();
    let statuses: Vec<_> = answers.iter().map(|a| a["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [201, 422, 200, 409, 400, 201, 200], "{answer:?}");
    assert_eq!(answers[1]["body"]["errors"].as_array().unwrap().len(), 2);
    assert_eq!(answers[0]["body"]["id"], json!(world.id("one")));
    for key in ["one", "two", "known"] {
        world.succeeded(key).await;
        assert_eq!(world.runner.of(key).len(), 1);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_series_keep_their_order_within_a_batch() {
    for stage in [Stage::Live, Stage::Shadow] {
        let world = World::new(stage).await;
        let node = world.node().await;
        let keys: Vec<String> = (0..24).map(|n| format!("m{n}")).collect();
        let items: Vec<_> = keys.iter().enumerate().map(|(n, key)| world.member(&format!("s{}", n % 3), key)).collect();
        let answer = post(&node, "/v1/interactions/batch", &json!({ "interactions": items })).await;
        assert!(
            answer.body["answers"].as_array().unwrap().iter().all(|a| matches!(a["status"].as_u64(), Some(201 | 202)))
        );
        for key in &keys {
            world.succeeded(key).await;
        }
        for series in 0..3 {
            let members: Vec<String> = keys.iter().skip(series).step_by(3).cloned().collect();
            let ran: Vec<String> = world.in_turn(&members).into_iter().map(|call| call.key).collect();
            assert_eq!(ran, members, "{stage}");
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_batch_can_not_be_is_a_problem_and_nothing_is_taken_in() {
    let world = World::new(Stage::Live).await;
    let node = world
        .node_with(ALL, |config| {
            config.http.max_batch = 3;
            config.http.max_batch_bytes = 2_000;
        })
        .await;
    let four: Vec<_> = (0..4).map(|n| world.request(&format!("k{n}"))).collect();
    let batch = |body: Value| {
        let node = &node;
        async move { post(node, "/v1/interactions/batch", &body).await }
    };
    is_problem(&batch(json!({ "interactions": four, "wait": "1s" })).await, 422);
    is_problem(&batch(json!({ "interactions": [] })).await, 422);
    is_problem(&batch(json!({ "interactions": 3 })).await, 422);
    is_problem(&batch(json!({})).await, 422);
    is_problem(&batch(json!([])).await, 400);
    let long = with(world.request("long"), json!({ "payload": "x".repeat(3_000) }));
    is_problem(&batch(json!({ "interactions": [long] })).await, 413);
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, 0);
    node.stop().await;
}
