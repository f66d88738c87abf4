//! Workers who wait for work.

use std::sync::Arc;
use std::time::Instant;

use crossover::metrics::Metrics;
use crossover::observer::Observer;
use crossover::queue::remote::{Asked, Remote};
use tokio::io::AsyncWriteExt;

use super::*;

fn patient(max: u64) -> Value {
    json!({ "worker": "w", "max": max, "wait_ms": 60_000 })
}

async fn waiting(node: &Node, n: f64) {
    until("they wait", async || (counted(node, "crossover_remote_polls_waiting", "").await == n).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_waits_has_work_at_once_whichever_process_took_it_in() {
    let world = World::new(Stage::Live).await;
    let (here, there) = (Arc::new(world.node().await), world.node_with(WORKER, |_| {}).await);
    for asked in [here.base.clone(), there.base.clone()] {
        let url = format!("{asked}/v1/groups/{GROUP}/dequeue");
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let poll =
            tokio::spawn(async move { http.post(url).body(patient(5).to_string()).send().await.unwrap().text().await });
        waiting(if asked == here.base { &here } else { &there }, 1.0).await;
        let began = Instant::now();
        here.accepts(&mail(&world, &asked), 201).await;
        let answer: Value = serde_json::from_str(&poll.await.unwrap().unwrap()).unwrap();
        assert_eq!(answer["items"][0]["key"], asked);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }
    there.stop().await;
    Arc::into_inner(here).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_many_wait_for_is_shared_out_and_each_has_it_once() {
    let world = World::new(Stage::Live).await;
    let node = Arc::new(world.node().await);
    let polls: Vec<_> = (0..10)
        .map(|_| {
            let node = node.clone();
            tokio::spawn(async move { dequeued(&node, patient(2)).await })
        })
        .collect();
    waiting(&node, 10.0).await;
    for n in 0..20 {
        node.accepts(&mail(&world, &format!("m{n}")), 201).await;
    }
    let mut had: Vec<String> = Vec::new();
    while had.len() < 20 {
        let more = dequeue(&node, 20).await;
        had.extend(keys(&more).into_iter().map(str::to_owned));
        let waited = polls.iter().filter(|poll| poll.is_finished()).count();
        if waited == polls.len() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for poll in polls {
        had.extend(keys(&poll.await.unwrap()).into_iter().map(str::to_owned));
    }
    had.sort();
    let mut wanted: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
    wanted.sort();
    assert_eq!(had, wanted);
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wait_ends_with_nothing_at_its_time_and_with_the_process() {
    let world = World::new(Stage::Live).await;
    let node = Arc::new(world.node().await);
    assert!(dequeued(&node, json!({ "worker": "w", "wait_ms": 50 })).await.is_empty());
    let url = format!("{}/v1/groups/{GROUP}/dequeue", node.base);
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let poll =
        tokio::spawn(async move { http.post(url).body(patient(5).to_string()).send().await.unwrap().text().await });
    waiting(&node, 1.0).await;
    Arc::into_inner(node).unwrap().stop().await;
    assert_eq!(poll.await.unwrap().unwrap(), r#"{"items":[]}"#);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_wait_than_there_is_room_for() {
    let world = World::new(Stage::Live).await;
    let node = Arc::new(world.node_with(ALL, |config| config.http.max_waiters = 1).await);
    let first = node.clone();
    let poll = tokio::spawn(async move { dequeued(&first, patient(5)).await });
    waiting(&node, 1.0).await;
    let busy = ask(&node, "dequeue", patient(5)).await;
    assert_eq!((busy.status, busy.headers["retry-after"].to_str().unwrap()), (503, "1"), "{busy:?}");
    assert!(dequeue(&node, 1).await.is_empty(), "who does not wait needs no room");
    node.accepts(&mail(&world, "m"), 201).await;
    assert_eq!(keys(&poll.await.unwrap()), ["m"]);
    assert_eq!(counted(&node, "crossover_remote_polls_total", "busy").await, 1.0);
    Arc::into_inner(node).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_hangs_up_while_it_waits_leaves_the_work_to_others() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let mut gone = tokio::net::TcpStream::connect(node.base.trim_start_matches("http://")).await.unwrap();
    let body = patient(5).to_string();
    let head = format!("POST /v1/groups/{GROUP}/dequeue HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n", body.len());
    gone.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
    waiting(&node, 1.0).await;
    drop(gone);
    waiting(&node, 0.0).await;
    node.accepts(&mail(&world, "m"), 201).await;
    let item = next(&node, Duration::from_secs(30)).await;
    assert_eq!((&item["key"], &item["fence"]), (&json!("m"), &json!("1.1")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_was_never_begun_puts_back_what_it_had_under_the_same_number() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    for key in ["a", "b"] {
        node.accepts(&mail(&world, key), 201).await;
    }
    let remote = Remote::new(world.ledger.clone(), Arc::new(Metrics::new().unwrap()), Observer::none());
    let asked = Asked { group: GROUP.into(), worker: "w".into(), most: 10, lease: Duration::from_secs(3_600) };
    let batch = remote.dequeue(&asked).await.unwrap();
    assert_eq!(batch.items().len(), 2);
    drop(batch);
    for _ in 0..2 {
        let item = next(&node, Duration::from_secs(30)).await;
        assert_eq!(item["fence"], "1.1");
        assert_eq!(complete(&node, &item).await, "taken");
    }
    let sent = remote.dequeue(&asked).await.unwrap();
    assert!(sent.items().is_empty());
    sent.sent();
    for key in ["a", "b"] {
        assert_eq!(world.succeeded(key).await.pin.attempts, 1);
    }
    node.stop().await;
}
