//! An account that is not armed.

use crossover::interaction::Side;
use crossover::proof::Weather;
use sqlx::{Connection, Executor, PgConnection};

use super::super::world::with;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_dead_in_shadow_every_enqueue_is_temporals_in_time_and_is_rehearsed_when_it_is_back() {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, Stage::Shadow).await;
    let node = world.node_with(ALL, fails_open).await;
    node.accepts(&world.request("before"), 201).await;
    world.succeeded("before").await;
    postgres.server.kill().await.unwrap();

    let mut keys: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
    world.runner.hold("k0");
    for key in &keys {
        accepted_unpinned(&node, &world.request(key)).await;
    }
    let items = json!({ "interactions": [world.request("b0"), world.request("b1"), world.member("s", "b2")] });
    let answer = crate::api::post(&node, "/v1/interactions/batch", &items).await;
    let statuses: Vec<_> = answer.body["answers"].as_array().unwrap().iter().map(|a| a["status"].clone()).collect();
    assert_eq!(statuses, [201, 201, 201], "{answer:?}");
    keys.extend(["b0", "b1", "b2"].map(str::to_owned));
    // A repeat gets the first answer again, and other work under its key is refused.
    assert_eq!(node.accepts(&world.request("k1"), 200).await.owner(), Side::Temporal);
    let other = with(world.request("k1"), json!({ "payload": "other" }));
    node.accepts(&other, 409).await;
    for key in &keys {
        assert_eq!(world.runner.nth(key, 1).await.side, "temporal", "it runs while Postgres is away");
    }
    let path = format!("/v1/interactions/{}", world.id("k1"));
    let found =
        until("it is seen to end", async || Some(node.get(&path).await).filter(|a| a.body["state"] == "succeeded"));
    assert_eq!(found.await.body["pin"], Value::Null);
    let ready = node.get("/readyz").await;
    assert_eq!(ready.status, 200, "{ready:?}");
    assert!(metric(&node, "crossover_spool_entries").await >= 15.0);
    assert!(metric(&node, "crossover_breaker_opened_total").await >= 1.0);

    postgres.server.restart().await.unwrap();
    drained(&node).await;
    world.runner.release("k0");
    each_ran_once(&world, &keys).await;
    for key in &keys {
        world.rehearsed(key, 1).await;
    }
    let pins = "select count(*) from crossover.pins where owner <> 'temporal' or stage <> 'shadow'";
    assert_eq!(world.scalar::<i64>(pins).await, 0);
    let judged = "select count(*) from crossover.observations where verdict <> 'in_flight'";
    until("all are judged", async || (world.scalar::<i64>(judged).await >= 16).then_some(())).await;
    let diverged: Option<String> = world
        .scalar("select string_agg(o.verdict || ' ' || o.divergences::text, '; ') from crossover.observations o where verdict = 'diverged'")
        .await;
    assert_eq!(diverged, None, "an outage is no divergence");
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.accounts where unpinned_at is not null").await, 0);
    node.stop().await;
    postgres.server.stop().await.unwrap();
}

async fn goes_on_in(weather: Weather) {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let node = world.node_between(&url, &world.temporal, ALL, fails_open).await;
    node.accepts(&world.request("before"), 201).await;
    proxy.set(weather);
    let keys: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    for key in &keys {
        accepted_unpinned(&node, &world.request(key)).await;
        world.runner.nth(key, 1).await;
    }
    proxy.set(Weather::Fine);
    drained(&node).await;
    each_ran_once(&world, &keys).await;
    assert_eq!(metric(&node, "crossover_owner_conflicts_total").await, 0.0);
    // It is pinned first again, as before.
    until("the breaker closes", async || (metric(&node, "crossover_breaker_state").await == 0.0).then_some(())).await;
    let mut after = 0;
    until("work is pinned first again", async || {
        after += 1;
        let answer = node.accepts(&world.request(&format!("after{after}")), 201).await;
        (answer.body["pinned"] != false).then_some(())
    })
    .await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_hanging_in_shadow_every_enqueue_is_temporals_in_time_and_is_pinned_afterwards() {
    goes_on_in(Weather::Hanging).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pin_that_is_made_after_its_router_gave_it_up_and_the_start_without_it_become_one() {
    goes_on_in(Weather::Slow(Duration::from_secs(1))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_read_only_postgres_in_shadow_every_enqueue_is_temporals_and_is_pinned_afterwards() {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, Stage::Shadow).await;
    let node = world.node_with(ALL, fails_open).await;
    node.accepts(&world.request("before"), 201).await;
    let mut admin = PgConnection::connect(&postgres.url).await.unwrap();
    let mut read_only = async |to: &str| {
        let set = format!("alter system set default_transaction_read_only = {to}");
        admin.execute(sqlx::AssertSqlSafe(set)).await.unwrap();
        admin.execute("select pg_reload_conf()").await.unwrap();
    };
    read_only("on").await;
    until("pins are refused", async || {
        let key = format!("probe{}", metric(&node, "crossover_enqueues_total").await);
        (node.accepts(&world.request(&key), 201).await.body["pinned"] == false).then_some(())
    })
    .await;
    let keys: Vec<String> = (0..6).map(|n| format!("k{n}")).collect();
    for key in &keys {
        accepted_unpinned(&node, &world.request(key)).await;
    }
    read_only("off").await;
    drained(&node).await;
    each_ran_once(&world, &keys).await;
    node.stop().await;
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_connection_taken_callers_in_shadow_do_not_wait_for_one() {
    let world = World::new(Stage::Shadow).await;
    let few = |config: &mut Config| {
        fails_open(config);
        config.postgres.max_connections = 2;
    };
    let node = world.node_with(ALL, few).await;
    node.accepts(&world.request("before"), 201).await;
    // Whoever has a connection waits for this lock, and nobody else gets one.
    let mut holder = world.pool().begin().await.unwrap();
    holder.execute("lock table crossover.pins in access exclusive mode").await.unwrap();
    let keys: Vec<String> = (0..12).map(|n| format!("k{n}")).collect();
    futures::future::join_all(keys.iter().map(async |key| {
        accepted_unpinned(&node, &world.request(key)).await;
    }))
    .await;
    holder.rollback().await.unwrap();
    drained(&node).await;
    each_ran_once(&world, &keys).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_in_off_whose_mark_cannot_be_set_is_served_and_pinned_afterwards() {
    let world = World::new(Stage::Off).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let node = world.node_between(&url, &world.temporal, ALL, fails_open).await;
    proxy.set(Weather::Dead);
    accepted_unpinned(&node, &world.request("one")).await;
    world.runner.nth("one", 1).await;
    proxy.set(Weather::Fine);
    drained(&node).await;
    let story = world.succeeded("one").await;
    assert_eq!((story.pin.stage, story.pin.owner), (Stage::Off, Side::Temporal));
    assert_eq!(world.runner.of("one").len(), 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_must_not_fail_open_answers_503_and_starts_nothing() {
    let world = World::new(Stage::Shadow).await;
    let (proxy, url) = behind_a_proxy(&world.postgres).await;
    let node = world
        .node_between(&url, &world.temporal, ALL, |config| {
            config.router.fail_open = false;
            config.postgres.connect_timeout = Duration::from_secs(1);
        })
        .await;
    proxy.set(Weather::Dead);
    for n in 0..8 {
        let refused = node.accepts(&world.request(&format!("k{n}")), 503).await;
        assert_eq!(refused.headers["retry-after"], "1", "{refused:?}");
    }
    assert_eq!(node.get("/readyz").await.status, 503);
    assert!(world.runner.calls().is_empty());
    assert_eq!(metric(&node, "crossover_failed_open_total").await, 0.0);
    proxy.set(Weather::Fine);
    node.stop().await;
}
