//! What is refused, and how: always a problem with its status, its request id and what to do.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_or_not_json_is_a_problem() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    is_problem(&node.get("/v1/nothing").await, 404);
    is_problem(&ask(&node, Method::DELETE, "/v1/interactions", &[], None).await, 405);
    is_problem(&node.get("/v1/interactions/batch/cancel").await, 405);
    let form = [("content-type", "application/x-www-form-urlencoded")];
    is_problem(&ask(&node, Method::POST, "/v1/interactions", &form, Some(b"{}".to_vec())).await, 415);
    is_problem(&ask(&node, Method::POST, "/v1/interactions", &[], Some(b"{".to_vec())).await, 400);
    is_problem(&ask(&node, Method::POST, "/v1/interactions", &[], Some(b"{}".to_vec())).await, 422);
    let long = with(world.request("long"), json!({ "payload": "x".repeat(1_100_000) }));
    is_problem(&post(&node, "/v1/interactions", &long).await, 413);
    let metrics = node.get("/metrics").await.body;
    for line in [
        "crossover_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
        "crossover_http_requests_total{method=\"DELETE\",route=\"/v1/interactions\",status=\"405\"} 1",
        "crossover_http_seconds_count{route=\"/v1/interactions\"}",
    ] {
        assert!(metrics.as_str().unwrap().contains(line), "{line} in {metrics}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_does_not_come_is_answered_with_408() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |config| config.http.request_timeout = Duration::from_millis(200)).await;
    let mut connection = tokio::net::TcpStream::connect(node.base.trim_start_matches("http://")).await.unwrap();
    connection.write_all(b"POST /v1/interactions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{").await.unwrap();
    let mut answer = vec![0; 4_096];
    let n = tokio::time::timeout(PATIENCE, connection.read(&mut answer)).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&answer[..n]);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("application/problem+json"), "{text}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_head_and_silence_end_a_connection_and_make_room() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new(Stage::Live).await;
    let node = world
        .node_with(ROUTER, |config| {
            config.http.header_timeout = Duration::from_millis(300);
            config.http.max_connections = 2;
        })
        .await;
    let address = node.base.trim_start_matches("http://").to_owned();
    let mut half = tokio::net::TcpStream::connect(&address).await.unwrap();
    half.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
    let mut silent = tokio::net::TcpStream::connect(&address).await.unwrap();
    // The third waits until one of them is gone.
    assert_eq!(node.get("/healthz").await.status, 200);
    for connection in [&mut half, &mut silent] {
        let mut rest = Vec::new();
        // Closed, with or without what was sent being read.
        let _ = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut rest)).await.expect("it is closed");
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
    let line = "crossover_http_connections_total{how=\"silent\"}";
    let counted = async || node.get("/metrics").await.body.as_str()?.contains(line).then_some(());
    until("both are counted", counted).await;
    // One that has not sent its head does not hold up a shutdown either.
    let mut late = tokio::net::TcpStream::connect(&address).await.unwrap();
    late.write_all(b"GET /hea").await.unwrap();
    tokio::time::timeout(PATIENCE, node.stop()).await.expect("it stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_too_often_is_told_when_to_come_back() {
    let world = World::new(Stage::Live).await;
    let node = world
        .node_with(ROUTER, |config| {
            config.http.rate = 1;
            config.http.burst = 3;
        })
        .await;
    let path = format!("/v1/interactions/{}", world.id("none"));
    let mut statuses = Vec::new();
    for _ in 0..5 {
        let answer = node.get(&path).await;
        statuses.push(answer.status);
        if answer.status == 429 {
            is_problem(&answer, 429);
            let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=2).contains(&seconds), "{answer:?}");
        }
    }
    assert_eq!(statuses[..3], [404, 404, 404]);
    assert!(statuses.contains(&429), "{statuses:?}");
    assert_eq!(node.get("/healthz").await.status, 200, "health is never refused");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_item_of_a_batch_counts() {
    let world = World::new(Stage::Live).await;
    let node = world
        .node_with(ROUTER, |config| {
            config.http.rate = 1;
            config.http.burst = 10;
        })
        .await;
    let batch = |from: usize, n: usize| {
        let items: Vec<_> = (from..from + n).map(|n| world.request(&format!("b{n}"))).collect();
        json!({ "interactions": items })
    };
    let path = "/v1/interactions/batch";
    assert_eq!(post(&node, path, &batch(0, 8)).await.status, 200);
    let again = post(&node, path, &batch(8, 8)).await;
    is_problem(&again, 429);
    assert!(again.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1, "{again:?}");
    let never = async || Some(post(&node, path, &batch(8, 11)).await).filter(|answer| answer.status != 429);
    is_problem(&until("the request itself may come", never).await, 413);
    assert!(world.ledger.story(world.id("b8")).await.unwrap().is_none(), "nothing of a refused batch is taken in");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_than_there_is_room_for() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ALL, |config| config.http.max_requests = 1).await;
    world.runner.hold("held");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let held = http.post(format!("{}/v1/interactions?wait=30s", node.base)).json(&world.request("held"));
    let held = tokio::spawn(held.send());
    world.runner.nth("held", 1).await;
    let busy = node.post(&world.request("other")).await;
    is_problem(&busy, 503);
    assert_eq!(busy.headers["retry-after"], "1");
    assert_eq!(node.get("/metrics").await.status, 200, "however busy it is, it can be seen");
    world.runner.release("held");
    assert_eq!(held.await.unwrap().unwrap().status(), 201);
    node.accepts(&world.request("other"), 201).await;
    node.stop().await;
}
