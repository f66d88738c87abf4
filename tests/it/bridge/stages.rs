//! Stages, keys and pins.

use futures::StreamExt;

use super::world::{document, with};
use super::*;
use crossover::app::{App, Servers};
use crossover::executor::Handlers;
use crossover::interaction::Side;

async fn runs_once_in(stage: Stage, owner: Side, rehearses: bool) {
    let world = World::new(stage).await;
    let node = world.node().await;
    let (key, id) = ("one", world.id("one"));
    let answer = node.accepts(&world.request(key), 201).await;
    assert_eq!((answer.owner(), &answer.body["stage"], &answer.body["id"]), (owner, &json!(stage), &json!(id)));
    let story = world.succeeded(key).await;
    let rehearsals = world.rehearsed(key, rehearses.into()).await;
    assert_eq!(rehearsals.len(), usize::from(rehearses), "{rehearsals:#?}");
    assert!(rehearsals.iter().all(|r| r.side == owner.other() && r.outcome == story.pin.outcome), "{rehearsals:#?}");
    assert_eq!(world.runner.sides(key), [owner.as_str()]);

    let found = node.get(&format!("/v1/interactions/{id}")).await;
    assert_eq!(found.status, 200);
    let body = &found.body;
    assert_eq!((&body["state"], &body["result"]), (&json!("succeeded"), &json!({ "ok": key })));
    assert_eq!((&body["pin"]["owner"], &body["pin"]["stage"]), (&json!(owner), &json!(stage)));
    assert_eq!(body["pin"]["flag_revision"], document(stage).revision());
    let real = body["attempts"].as_array().unwrap().iter().filter(|a| a["rehearsal"] == false).collect::<Vec<_>>();
    assert_eq!((real.len(), &real[0]["side"]), (1, &json!(owner)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_temporal_executes_and_postgres_rehearses() {
    runs_once_in(Stage::Shadow, Side::Temporal, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_live_postgres_executes_and_temporal_rehearses() {
    runs_once_in(Stage::Live, Side::Postgres, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_complete_postgres_executes_and_nobody_rehearses() {
    runs_once_in(Stage::Complete, Side::Postgres, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_off_temporal_executes_without_a_pin() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    let answer = node.accepts(&world.request("one"), 201).await;
    assert_eq!((answer.owner(), &answer.body["stage"]), (Side::Temporal, &json!("off")));
    world.runner.nth("one", 1).await;
    let path = format!("/v1/interactions/{}", world.id("one"));
    let found =
        until("it has ended", async || Some(node.get(&path).await).filter(|a| a.body["state"] == "succeeded")).await;
    assert_eq!((found.status, &found.body["pin"]), (200, &Value::Null));
    assert_eq!(world.runner.sides("one"), ["temporal"]);
    assert!(world.story("one").await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_insert_wins_between_two_routers_that_see_different_flags() {
    const KEYS: usize = 40;
    let world = World::new(Stage::Shadow).await;
    let other = world.fresh("flags");
    document(Stage::Live).write_to(&other).unwrap();
    let shadow = world.node().await;
    let live = world.node_with(ROUTER, |config| config.flags.file = other).await;
    let keys: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
    let both = futures::stream::iter(&keys).map(async |key| {
        let request = world.request(key);
        tokio::join!(shadow.post(&request), live.post(&request))
    });
    let answers: Vec<(Answer, Answer)> = both.buffered(4).collect().await;
    for (key, (one, another)) in keys.iter().zip(&answers) {
        assert_eq!(one.body, another.body, "{key}");
        let mut statuses = [one.status, another.status];
        statuses.sort();
        assert!(matches!(statuses, [200, 201 | 202]), "{key}: {statuses:?}");
        assert_eq!(world.succeeded(key).await.pin.owner, one.owner());
        assert_eq!(world.runner.sides(key), [one.owner().as_str()], "{key}");
    }
    // A race that one of them always wins would prove nothing.
    let won = answers.iter().filter(|(one, _)| one.owner() == Side::Temporal).count();
    println!("{won} of {KEYS} were won by the router that saw shadow");
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, KEYS as i64);
    live.stop().await;
    shadow.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_repeated_gets_the_first_answer_and_with_other_work_a_conflict_also_after_a_flip() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let request = world.request("one");
    let first = node.accepts(&request, 201).await;
    assert_eq!(node.accepts(&request, 200).await.body, first.body);
    for other in [json!({ "payload": 7 }), json!({ "kind": "action" })] {
        let refused = node.accepts(&with(request.clone(), other), 409).await;
        assert!(refused.detail().contains("`one`") && refused.body["key"] == "one", "{refused:?}");
    }
    world.flip(Stage::Live, &[&node]).await;
    assert_eq!(node.accepts(&request, 200).await.body, first.body);
    assert_eq!(first.owner(), Side::Temporal);
    world.succeeded("one").await;
    assert_eq!(node.accepts(&request, 200).await.body, first.body);
    assert_eq!(world.runner.sides("one"), ["temporal"]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_with_unpinned_work_stays_in_shadow_and_the_status_says_why() {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    node.accepts(&world.request("unpinned"), 201).await;
    world.flip(Stage::Live, &[&node]).await;
    world.runner.hold("pinned");
    let answer = node.accepts(&world.request("pinned"), 201).await;
    assert_eq!((answer.owner(), &answer.body["stage"]), (Side::Temporal, &json!("shadow")));
    let mut status = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"));
    let shown = status.args(["status", "--json"]).envs(world.variables()).output().unwrap();
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let line = &shown["accounts"][0];
    assert_eq!((&line["flag"], &line["stage"], &line["temporal"]), (&json!("live"), &json!("shadow"), &json!(1)));
    assert!(line["why"].as_str().unwrap().contains("without a pin since"), "{line}");
    world.runner.release("pinned");
    world.succeeded("pinned").await;
    assert_eq!(world.runner.sides("pinned"), ["temporal"]);
    node.stop().await;
}

/// Started in `off`, repeated in `shadow`, while it runs and after it has ended.
async fn is_adopted(request: impl Fn(&World, &str) -> Value) {
    let world = World::new(Stage::Off).await;
    let node = world.node().await;
    node.accepts(&request(&world, "ended"), 201).await;
    world.runner.nth("ended", 1).await;
    world.runner.hold("open");
    node.accepts(&request(&world, "open"), 201).await;
    world.runner.nth("open", 1).await;
    world.flip(Stage::Shadow, &[&node]).await;
    for key in ["ended", "open"] {
        // A member of a series may have to wait for the relay, which keeps its order.
        let answer = node.post(&request(&world, key)).await;
        assert!(matches!(answer.status, 201 | 202) && answer.owner() == Side::Temporal, "{answer:?}");
    }
    assert!(world.story("open").await.unwrap().pin.ended_at.is_none());
    world.runner.release("open");
    for key in ["ended", "open"] {
        world.succeeded(key).await;
        assert_eq!(world.runner.sides(key), ["temporal"], "{key}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_first_seen_in_off_and_repeated_in_shadow_is_adopted() {
    is_adopted(|world, key| world.request(key)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_begun_in_off_and_repeated_in_shadow_is_adopted() {
    is_adopted(|world, key| world.member("s", key)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_of_the_process_run_on_both_sides_without_a_runner() {
    #[derive(serde::Deserialize)]
    struct Order {
        cents: u64,
    }
    for stage in [Stage::Shadow, Stage::Live] {
        let world = World::new(stage).await;
        let handlers = Handlers::new().register("sync", |order: Order, call| async move {
            Ok(json!({ "euros": order.cents / 100, "side": call.side }))
        });
        let mut config = world.config();
        config.runner.url = None;
        let (postgres_url, temporal_address) = (world.postgres.clone(), world.temporal.clone());
        let servers = Servers { postgres_url, temporal_address, postgres: None, temporal: None };
        let app = App::start_with(&config, ALL, servers, handlers).await.unwrap();
        let node = Node::at(app.address());
        node.accepts(&with(world.request("one"), json!({ "payload": { "cents": 700 } })), 201).await;
        let story = world.succeeded("one").await;
        let result = story.attempts.iter().find_map(|a| a.result.clone()).unwrap();
        let result: Value = serde_json::from_str(result.get()).unwrap();
        assert_eq!(result, json!({ "euros": 7, "side": stage.owner().as_str() }));
        app.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_higher_priority_is_claimed_first() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    for (key, priority) in [("low", -5), ("normal", 0), ("high", 100), ("also normal", 0)] {
        router.accepts(&with(world.request(key), json!({ "priority": priority })), 201).await;
    }
    let worker = world.node_with(WORKER, |config| config.worker.slots = 1).await;
    let keys = ["high", "normal", "also normal", "low"].map(str::to_owned);
    for key in &keys {
        world.succeeded(key).await;
    }
    let ran: Vec<String> = world.in_turn(&keys).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, keys);
    worker.stop().await;
    router.stop().await;
}
