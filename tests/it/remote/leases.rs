//! Whose an attempt is, and for how long.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;

/// Work of dead workers is taken over soon.
async fn quick(world: &World) -> Node {
    world.node_with(ALL, |config| config.worker.lease = Duration::from_millis(900)).await
}

const SOON: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn what_a_vanished_worker_had_runs_again_and_its_late_words_are_refused() {
    let world = World::new(Stage::Live).await;
    let node = quick(&world).await;
    let policy = json!({ "policy": { "backoff": { "delays_ms": [1] } } });
    node.accepts(&with(mail(&world, "m"), policy), 201).await;
    let lost = next(&node, SOON).await;
    let again = next(&node, Duration::from_secs(60)).await;
    assert_eq!((&again["key"], &again["fence"]), (&json!("m"), &json!("1.2")));
    let story = world.story("m").await.unwrap();
    let first = story.attempts.iter().find(|a| !a.rehearsal).unwrap();
    assert_eq!(first.failure.as_ref().unwrap().doubt().unwrap().as_str(), "heartbeat_timeout", "{first:#?}");
    for what in ["heartbeat", "complete", "fail"] {
        assert_eq!(report(&node, what, &lost, json!({})).await, "lost", "{what}");
    }
    assert_eq!(counted(&node, "crossover_late_results_total", "postgres").await, 2.0);
    assert_eq!(counted(&node, "crossover_detached_lost_total", "heartbeat_timeout").await, 1.0);
    assert_eq!(complete(&node, &again).await, "taken");
    let story = world.succeeded("m").await;
    assert_eq!(story.pin.attempts, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heartbeats_keep_many_at_once_and_only_as_long_as_they_come() {
    let world = World::new(Stage::Live).await;
    let node = quick(&world).await;
    let keys: Vec<String> = (0..20).map(|n| format!("m{n}")).collect();
    for key in &keys {
        node.accepts(&mail(&world, key), 201).await;
    }
    let items = dequeued(&node, json!({ "worker": "w", "max": 20, "lease_ms": 1_500 })).await;
    assert_eq!(items.len(), 20);
    let beat = json!({ "worker": "w", "items": items.iter().map(|item| about(item, json!({}))).collect::<Vec<_>>() });
    let began = std::time::Instant::now();
    // More than twice as long as the lease.
    while began.elapsed() < Duration::from_millis(3_500) {
        let answer = ask(&node, "heartbeat", beat.clone()).await;
        let answers = answer.body["items"].as_array().unwrap();
        assert!(answers.iter().all(|a| a["answer"] == "held" && a["lease_ms"] == 1_500), "{answer:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let done: Vec<Value> = items.iter().map(|item| about(item, json!({}))).collect();
    let answer = ask(&node, "complete", json!({ "items": done })).await;
    assert!(answer.body["items"].as_array().unwrap().iter().all(|a| a["answer"] == "taken"), "{answer:?}");
    for key in &keys {
        assert_eq!(world.succeeded(key).await.pin.attempts, 1);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_to_cancel_reaches_the_worker_with_its_heartbeat() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    for key in ["heeds", "was too late", "waits"] {
        node.accepts(&mail(&world, key), 201).await;
    }
    let items = dequeue(&node, 2).await;
    for key in ["heeds", "was too late", "waits"] {
        let path = format!("/v1/interactions/{}/cancel", world.id(key));
        assert!(matches!(node.call("POST", &path, Some(&json!({}))).await.status, 200 | 202));
    }
    assert_eq!(world.ended("waits").await.state, "cancelled");
    for item in &items {
        assert_eq!(report(&node, "heartbeat", item, json!({})).await, "cancel");
    }
    assert_eq!(report(&node, "fail", &items[0], json!({ "error": "stopped" })).await, "taken");
    assert_eq!(complete(&node, &items[1]).await, "taken");
    assert_eq!(world.ended("heeds").await.state, "cancelled");
    world.succeeded("was too late").await;
    assert_eq!(report(&node, "heartbeat", &items[0], json!({})).await, "lost", "after its end");
    assert!(dequeue(&node, 10).await.is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn claims_survive_the_process_that_answered() {
    let world = World::new(Stage::Live).await;
    let (one, other) = (world.node().await, world.node().await);
    node_accepts(&one, &world, &["a", "b"]).await;
    let items = dequeue(&one, 2).await;
    one.stop().await;
    assert_eq!(report(&other, "heartbeat", &items[0], json!({})).await, "held");
    assert_eq!(complete(&other, &items[0]).await, "taken");
    assert_eq!(complete(&other, &items[0]).await, "taken", "the same word again");
    assert_eq!(report(&other, "fail", &items[0], json!({})).await, "lost", "the first word stands");
    let gone_wrong = json!({ "error": "no such address", "permanent": true });
    assert_eq!(report(&other, "fail", &items[1], gone_wrong).await, "taken");
    world.succeeded("a").await;
    let failed = world.ended("b").await;
    assert_eq!((failed.state.as_str(), failed.pin.reason.as_deref()), ("failed", Some("no such address")));
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_ends_with_its_run_timeout_whatever_its_heartbeats_say() {
    let world = World::new(Stage::Live).await;
    let node = quick(&world).await;
    let policy = json!({ "policy": { "run_timeout_ms": 1_200, "max_attempts": 1 } });
    node.accepts(&with(mail(&world, "slow"), policy), 201).await;
    let item = next(&node, Duration::from_secs(60)).await;
    let story = until("it is cut", async || {
        report(&node, "heartbeat", &item, json!({})).await;
        world.story("slow").await.filter(|story| story.pin.ended_at.is_some())
    });
    let story = story.await;
    let attempt = story.attempts.iter().find(|a| !a.rehearsal).unwrap();
    assert_eq!(attempt.failure.as_ref().unwrap().doubt().unwrap().as_str(), "run_timeout", "{attempt:#?}");
    assert_eq!(complete(&node, &item).await, "lost");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_policys_heartbeat_timeout_shortens_the_lease() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    node.accepts(&with(mail(&world, "strict"), json!({ "policy": { "heartbeat_timeout_ms": 5_000 } })), 201).await;
    assert_eq!(next(&node, Duration::from_secs(60)).await["lease_ms"], 5_000);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_that_vanish_and_fail_at_random_lose_nothing_and_keep_every_series_in_order() {
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let world = World::new(Stage::Live).await;
    let node = Arc::new(quick(&world).await);
    let policy = json!({ "max_attempts": 100, "backoff": { "delays_ms": [1] } });
    let mut keys = Vec::new();
    for n in 0..8 {
        for series in ["x", "y", "z"] {
            let key = format!("{series}-{n}");
            let more = json!({ "series": series, "policy": policy });
            node.accepts(&with(mail(&world, &key), more), 201).await;
            keys.push(key);
        }
        let single = format!("single-{n}");
        node.accepts(&with(mail(&world, &single), json!({ "policy": policy })), 201).await;
        keys.push(single);
    }
    let (begun, done) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<AtomicUsize>::default());
    let workers: Vec<_> = (0..4)
        .map(|n| {
            let until = (done.clone(), keys.len());
            tokio::spawn(erratic(node.clone(), seed.wrapping_add(n), begun.clone(), until))
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    let begun = begun.lock().unwrap().clone();
    for series in ["x-", "y-", "z-"] {
        let order: Vec<&String> = begun.iter().filter(|key| key.starts_with(series)).collect();
        assert!(order.is_sorted(), "seed {seed}: {order:?}");
    }
    for key in &keys {
        world.succeeded(key).await;
    }
    Arc::into_inner(node).unwrap().stop().await;
}

/// Takes, and vanishes with some of it, fails some, and completes the rest, until all is done.
async fn erratic(node: Arc<Node>, seed: u64, begun: Arc<Mutex<Vec<String>>>, (done, all): (Arc<AtomicUsize>, usize)) {
    let mut random = StdRng::seed_from_u64(seed);
    while done.load(Ordering::SeqCst) < all {
        let max = random.random_range(1..6);
        let body = json!({ "worker": "erratic", "max": max, "wait_ms": 100, "lease_ms": 1_000 });
        for item in dequeued(&node, body).await {
            // Before it can end, so that whatever follows in its series is noted later.
            begun.lock().unwrap().push(item["key"].as_str().unwrap().to_owned());
            match random.random_range(0..10) {
                0 => {}
                1 | 2 => drop(report(&node, "fail", &item, json!({ "retry_after_ms": 1 })).await),
                _ if complete(&node, &item).await == "taken" => drop(done.fetch_add(1, Ordering::SeqCst)),
                _ => {}
            }
        }
    }
}

async fn node_accepts(node: &Node, world: &World, keys: &[&str]) {
    for key in keys {
        node.accepts(&mail(world, key), 201).await;
    }
}
