//! What waits on the disk.

use crossover::proof::Weather;

use super::super::child::Child;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_was_started_without_a_pin_survives_the_kill_of_its_router_and_a_restart_without_postgres() {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let state = world.fresh("state");
    let worker = world.node_with(WORKER, |_| {}).await;
    let set = [
        ("CROSSOVER_STATE_DIR", state.to_str().unwrap()),
        ("CROSSOVER_POSTGRES_URL", url.as_str()),
        ("CROSSOVER_POSTGRES_CONNECT_TIMEOUT", "1s"),
        ("CROSSOVER_ROUTER_FAIL_OPEN", "true"),
    ];
    let mut first = Child::serve(&world, "router", &set).await;
    first.node.accepts(&world.request("before"), 201).await;
    proxy.set(Weather::Dead);
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    for key in &keys[..4] {
        accepted_unpinned(&first.node, &world.request(key)).await;
    }
    first.kill();
    let second = Child::serve(&world, "router", &set).await;
    for key in &keys[4..] {
        accepted_unpinned(&second.node, &world.request(key)).await;
    }
    assert_eq!(metric(&second.node, "crossover_spool_entries").await, 8.0);
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, 1);
    proxy.set(Weather::Fine);
    drained(&second.node).await;
    each_ran_once(&world, &keys).await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_in_the_spool_runs_is_counted_and_starts_the_window_again() {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let node = world
        .node_between(&url, &world.temporal, ALL, |config| {
            fails_open(config);
            config.router.spool_entries = 3;
        })
        .await;
    node.accepts(&world.request("before"), 201).await;
    let window = "select extract(epoch from max(window_from))::float8 from crossover.accounts where state = 'window'";
    let began: f64 = until("its window runs", async || world.scalar::<Option<f64>>(window).await).await;
    proxy.set(Weather::Dead);
    let keys: Vec<String> = (0..6).map(|n| format!("k{n}")).collect();
    for key in &keys {
        accepted_unpinned(&node, &world.request(key)).await;
        world.runner.nth(key, 1).await;
    }
    assert_eq!(metric(&node, "crossover_spool_dropped_total").await, 3.0);
    proxy.set(Weather::Fine);
    drained(&node).await;
    until("its window runs anew", async || {
        world.scalar::<Option<f64>>(window).await.filter(|from| *from > began).map(drop)
    })
    .await;
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.accounts where unpinned_at is not null").await, 1);
    for key in &keys[..3] {
        world.succeeded(key).await;
    }
    for key in &keys[3..] {
        assert!(world.story(key).await.is_none());
        assert_eq!(world.runner.sides(key), ["temporal"]);
    }
    until("no gap is left", async || (metric(&node, "crossover_spool_gaps").await == 0.0).then_some(())).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_full_disk_nothing_starts_that_cannot_be_written_down() {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let state = world.fresh("state");
    let worker = world.node_with(WORKER, |_| {}).await;
    let set = [
        ("CROSSOVER_STATE_DIR", state.to_str().unwrap()),
        ("CROSSOVER_POSTGRES_URL", url.as_str()),
        ("CROSSOVER_POSTGRES_CONNECT_TIMEOUT", "1s"),
        ("CROSSOVER_ROUTER_FAIL_OPEN", "true"),
        ("CROSSOVER_LOG_FILTER", "off"),
    ];
    let mut child = Child::serve_within(&world, 64, "router", &set).await;
    child.node.accepts(&world.request("before"), 201).await;
    proxy.set(Weather::Dead);
    let heavy = |key| with_payload(&world, key, 40_000);
    accepted_unpinned(&child.node, &heavy("one")).await;
    let refused = child.node.accepts(&heavy("two"), 503).await;
    assert!(refused.detail().contains("can't be written") && refused.headers["retry-after"] == "1", "{refused:?}");
    // Nothing of it is left in the way of what does fit.
    accepted_unpinned(&child.node, &world.request("three")).await;
    assert!(metric(&child.node, "crossover_spool_errors_total").await >= 1.0);
    child.kill();
    proxy.set(Weather::Fine);
    let heir = Child::serve(&world, "router", &set).await;
    drained(&heir.node).await;
    each_ran_once(&world, &["one", "three"].map(str::to_owned)).await;
    assert!(world.runner.of("two").is_empty() && world.story("two").await.is_none());
    worker.stop().await;
}

fn with_payload(world: &World, key: &str, bytes: usize) -> Value {
    super::super::world::with(world.request(key), json!({ "payload": "x".repeat(bytes) }))
}
