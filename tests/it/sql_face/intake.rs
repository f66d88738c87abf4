//! How what was enqueued from SQL is pinned and run, on the real servers.

use std::collections::BTreeSet;

use crossover::interaction::{Side, Stage};
use serde_json::{Value, json};

use super::enqueue;
use crate::bridge::until;
use crate::bridge::world::{ALL, ROUTER, WORKER, World};

async fn enqueued(world: &World, key: &str, more: &str) {
    let arguments = format!("'{}', 'sync', '{{\"for\": \"{key}\"}}', key => '{key}'{more}", world.account);
    let mut connection = world.pool().acquire().await.unwrap();
    let id = enqueue(&mut connection, &arguments).await.unwrap();
    assert_eq!(id, world.id(key));
}

async fn state(world: &World, key: &str) -> Value {
    let asked = sqlx::query_scalar(
        "select json_build_object('state', state, 'stage', stage, 'owner', owner, 'reason', reason)
         from crossover.interactions where id = $1",
    );
    asked.bind(world.id(key)).fetch_optional(world.pool()).await.unwrap().unwrap_or_default()
}

/// Waits until nothing is left to pin.
async fn drained(world: &World) {
    until("the intake is empty", async || {
        (world.scalar::<i64>("select count(*) from crossover.intake where refused_at is null").await == 0).then_some(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn work_from_sql_is_pinned_by_the_flags_of_the_router_and_runs_on_its_owner() {
    for (stage, owner) in [(Stage::Off, Side::Temporal), (Stage::Shadow, Side::Temporal), (Stage::Live, Side::Postgres)]
    {
        let world = World::new(stage).await;
        enqueued(&world, "one", ", series => 's', priority => 3, policy => '{\"max_attempts\": 2}'").await;
        assert_eq!(state(&world, "one").await["state"], "accepted");
        let node = world.node_with(ALL, |_| {}).await;
        let story = world.succeeded("one").await;
        assert_eq!((story.pin.owner, story.pin.stage, story.series.as_deref()), (owner, stage, Some("s")));
        assert_eq!(world.runner.of("one")[0].payload, r#"{"for": "one"}"#);
        assert_eq!(state(&world, "one").await["state"], "succeeded");
        let mut connection = world.pool().acquire().await.unwrap();
        let again = format!("'{}', 'sync', '{{\"for\": \"one\"}}', key => 'one'", world.account);
        assert_eq!(enqueue(&mut connection, &again).await.unwrap(), world.id("one"));
        let other = again.replace("\"one\"}", "\"two\"}");
        assert_eq!(enqueue(&mut connection, &other).await.unwrap_err().0, "23505");
        assert_eq!(world.scalar::<i64>("select count(*) from crossover.intake").await, 0);
        world.each_ran_on_its_owner(&["one".to_owned()]).await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_routers_and_a_flip_pin_each_row_once_and_a_series_in_its_order() {
    const ROWS: usize = 120;
    let world = World::new(Stage::Shadow).await;
    let mut keys = Vec::new();
    for n in 0..ROWS {
        let key = format!("k{n}");
        let series = if n % 3 == 0 { String::new() } else { format!(", series => 's{}'", n % 3) };
        enqueued(&world, &key, &series).await;
        keys.push(key);
    }
    let one = world.node_with(ROUTER, |c| c.intake.batch = 7).await;
    let other = world.node_with(ROUTER, |c| c.intake.batch = 11).await;
    world.flip(Stage::Live, &[&one, &other]).await;
    drained(&world).await;
    let places: Vec<(String, i64)> = sqlx::query_as(
        "select key, series_no from crossover.pins where series_no is not null order by series, series_no",
    )
    .fetch_all(world.pool())
    .await
    .unwrap();
    for s in [1, 2] {
        let wanted: Vec<_> = keys.iter().enumerate().filter(|(n, _)| n % 3 == s).map(|(_, key)| key.clone()).collect();
        let found: Vec<_> = places.iter().map(|(key, _)| key.clone()).filter(|key| wanted.contains(key)).collect();
        assert_eq!(found, wanted, "series s{s} is out of order");
    }
    let pinned: BTreeSet<String> = sqlx::query_scalar("select key from crossover.pins")
        .fetch_all(world.pool())
        .await
        .unwrap()
        .into_iter()
        .collect();
    assert_eq!(pinned, keys.into_iter().collect());
    other.stop().await;
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_only_the_router_can_refuse_is_kept_with_its_reason_and_its_key_is_free() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(ALL, |_| {}).await;
    let wrong = ", series => 's', policy => '{\"backoff\": {\"initial_ms\": 500, \"max_ms\": 100}}'";
    enqueued(&world, "wrong", wrong).await;
    enqueued(&world, "behind", ", series => 's'").await;
    world.succeeded("behind").await;
    let refused =
        until("it is refused", async || Some(state(&world, "wrong").await).filter(|s| s["state"] == "refused")).await;
    assert!(refused["reason"].as_str().unwrap().contains("policy.backoff.max_ms"), "{refused}");
    let depth = world.ledger.intake_depth().await.unwrap();
    assert_eq!((depth.rows, depth.refused), (0, 1));
    assert!(depth.last_reason.unwrap().contains("max_ms"));
    until("the metric shows it", async || {
        let shown = node.get("/metrics").await.body.as_str().unwrap().to_owned();
        (shown.contains("crossover_intake_rows{state=\"refused\"} 1")
            && shown.contains("crossover_intake_taken_total{outcome=\"refused\"} 1"))
        .then_some(())
    })
    .await;
    enqueued(&world, "wrong", ", series => 's'").await;
    world.succeeded("wrong").await;
    assert_eq!(state(&world, "wrong").await["state"], json!("succeeded"));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_cannot_be_pinned_now_holds_back_its_series_and_nothing_else() {
    let world = World::new(Stage::Live).await;
    // Somebody holds the lock of the account's marks: what is new to it has to wait.
    let mut holder = world.pool().begin().await.unwrap();
    sqlx::query("select pg_advisory_xact_lock(crossover.account_lock($1))")
        .bind(&world.account)
        .execute(&mut *holder)
        .await
        .unwrap();
    enqueued(&world, "first", ", series => 's'").await;
    let mut connection = world.pool().acquire().await.unwrap();
    enqueue(&mut connection, "'other', 'sync', '1', key => 'other'").await.unwrap();
    enqueued(&world, "second", ", series => 's'").await;
    let router = world.node_with(ROUTER, |_| {}).await;
    until("the other account's is pinned", async || {
        (world.scalar::<i64>("select count(*) from crossover.pins").await == 1).then_some(())
    })
    .await;
    let tries = "select tries from crossover.intake order by no limit 1";
    until("the first was tried in vain", async || (world.scalar::<i32>(tries).await > 0).then_some(())).await;
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.intake").await, 2);
    assert!(state(&world, "first").await["reason"].as_str().unwrap().contains("lock timeout"));
    holder.rollback().await.unwrap();
    drained(&world).await;
    let order: Vec<String> = sqlx::query_scalar("select key from crossover.pins where series = 's' order by series_no")
        .fetch_all(world.pool())
        .await
        .unwrap();
    assert_eq!(order, ["first", "second"]);
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_killed_while_it_drains_loses_nothing_and_pins_nothing_twice() {
    const ROWS: usize = 400;
    let world = World::new(Stage::Complete).await;
    let mut keys = Vec::new();
    for n in 0..ROWS {
        let key = format!("k{n}");
        enqueued(&world, &key, &format!(", series => 's{}'", n % 5)).await;
        keys.push(key);
    }
    let mut child = crate::bridge::child::Child::serve(&world, "router", &[]).await;
    until("some are pinned", async || {
        (world.scalar::<i64>("select count(*) from crossover.pins").await > 0).then_some(())
    })
    .await;
    child.kill();
    let pinned = world.scalar::<i64>("select count(*) from crossover.pins").await;
    println!("{pinned} of {ROWS} were pinned when the router was killed");
    let heir = world.node_with(ROUTER, |_| {}).await;
    drained(&world).await;
    heir.stop().await;
    let order: Vec<String> = sqlx::query_scalar("select key from crossover.pins order by series, series_no")
        .fetch_all(world.pool())
        .await
        .unwrap();
    let wanted: Vec<String> = (0..5)
        .flat_map(|s| keys.iter().enumerate().filter(move |(n, _)| n % 5 == s).map(|(_, key)| key.clone()))
        .collect();
    assert_eq!(order, wanted);
    let worker = world.node_with(WORKER, |_| {}).await;
    world.succeeded("k7").await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipeline_from_sql_is_pinned_in_its_order_and_what_excludes_runs_alone() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(ALL, |_| {}).await;
    node.accepts(&world.request("first"), 201).await;
    world.succeeded("first").await;
    world.runner.pace(std::time::Duration::from_millis(10));
    let mut open = world.pool().begin().await.unwrap();
    let mut ordered = async |key: &str, more: &str| {
        let sql = format!("select crossover.enqueue_ordered('{}', 'sync', '1', key => '{key}', {more})", world.account);
        sqlx::query_scalar::<_, uuid::Uuid>(sqlx::AssertSqlSafe(sql)).fetch_one(&mut *open).await.unwrap()
    };
    ordered("extract", "series => 's'").await;
    ordered("left", "after => '{\"keys\": [\"extract\"]}', exclusive => 'e'").await;
    ordered("right", "after => '{\"keys\": [\"extract\"]}', exclusive => 'e'").await;
    ordered("load", "after => '{\"keys\": [\"left\", \"right\"]}', series => 's'").await;
    // In its series it comes behind what waits there.
    ordered("last", "series => 's'").await;
    open.commit().await.unwrap();
    drained(&world).await;
    world.succeeded("last").await;
    let mut calls = world.runner.calls();
    calls.retain(|call| call.key != "first");
    calls.sort_by_key(|call| call.began);
    let mut order: Vec<&str> = calls.iter().map(|call| call.key.as_str()).collect();
    order[1..3].sort();
    assert_eq!(order, ["extract", "left", "right", "load", "last"]);
    assert!(calls[1].ended.is_some_and(|ended| ended <= calls[2].began), "{calls:?}");
    // What can't be so is kept with its reason.
    world.flip(Stage::Live, &[&node]).await;
    let sql =
        format!("select crossover.enqueue_ordered('{}', 'sync', '1', key => 'x', exclusive => 'e')", world.account);
    sqlx::query(sqlx::AssertSqlSafe(sql)).execute(world.pool()).await.unwrap();
    until("it is refused", async || (state(&world, "x").await["state"] == "refused").then_some(())).await;
    let reason = state(&world, "x").await["reason"].as_str().unwrap_or_default().to_owned();
    assert!(reason.contains("exclusive: only work that Postgres alone has"), "{reason}");
    node.stop().await;
}
