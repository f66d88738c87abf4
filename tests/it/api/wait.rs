//! Answers that are held until the result.

use super::*;

const WAIT: &str = "/v1/interactions?wait=30s";

#[tokio::test(flavor = "multi_thread")]
async fn a_held_answer_brings_the_result_of_either_owner() {
    for stage in [Stage::Shadow, Stage::Live] {
        let world = World::new(stage).await;
        let node = world.node().await;
        let answer = post(&node, WAIT, &world.request("one")).await;
        assert_eq!((answer.status, &answer.body["end"]["outcome"]), (201, &json!("succeeded")), "{answer:?}");
        assert_eq!(answer.body["end"]["result"], json!({ "ok": "one" }));
        let again = post(&node, WAIT, &world.request("one")).await;
        assert_eq!((again.status, &again.body["end"]["result"]), (200, &json!({ "ok": "one" })), "{again:?}");
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_answered_without_an_end() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("one");
    let answer = post(&node, "/v1/interactions?wait=150ms", &world.request("one")).await;
    assert_eq!((answer.status, answer.body.get("end")), (201, None), "{answer:?}");
    let bad = post(&node, "/v1/interactions?wait=soon&weit=1s", &json!({ "account": "a" })).await;
    is_problem(&bad, 422);
    let fields: Vec<_> = bad.body["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["wait", "weit", "kind", "payload"], "{bad:?}");
    world.runner.release("one");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_without_a_pin_is_answered_at_once() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    world.runner.hold("one");
    let one = world.request("one");
    let asked = post(&node, WAIT, &one);
    let answer = tokio::time::timeout(Duration::from_secs(20), asked).await.expect("it is not held");
    assert_eq!(
        (answer.status, &answer.body["stage"], answer.body.get("end")),
        (201, &json!("off"), None),
        "{answer:?}"
    );
    world.runner.release("one");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_wait_than_there_is_room_for_and_who_goes_away_leaves_it() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ALL, |config| config.http.max_waiters = 1).await;
    world.runner.hold("held");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.post(format!("{}{WAIT}", node.base)).json(&world.request("held"));
    let waiting = tokio::spawn(request.send());
    world.runner.nth("held", 1).await;
    // Full: answered at once, although it would be over soon.
    until("the place is taken", async || {
        let answer = post(&node, WAIT, &world.request("held")).await;
        assert_eq!((answer.status, answer.body.get("end")), (200, None));
        let shown = node.get("/metrics").await.body;
        shown.as_str()?.contains("crossover_http_refused_total{reason=\"waiters\"}").then_some(())
    })
    .await;
    waiting.abort();
    until("the place is free", async || {
        let answer = post(&node, WAIT, &world.request("quick")).await;
        answer.body.get("end").is_some().then_some(())
    })
    .await;
    world.runner.release("held");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_those_who_wait() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("held");
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.post(format!("{}{WAIT}", node.base)).json(&world.request("held"));
    let waiting = tokio::spawn(request.send());
    world.runner.nth("held", 1).await;
    let stopping = node.stop();
    let answered = async {
        let answer = waiting.await.unwrap().unwrap();
        assert_eq!(answer.status(), 201);
        let body: Value = answer.json().await.unwrap();
        assert!(body.get("end").is_none(), "{body}");
        world.runner.release("held");
    };
    tokio::join!(stopping, answered);
}
