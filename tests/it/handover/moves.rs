//! What moves, what stays, and what becomes of both copies.

use chrono::{TimeDelta, Utc};
use crossover::router::handover::HandoverError;

use super::*;
use crate::bridge::proxy::black_hole;
use crate::bridge::runner::Rule;

async fn moves_from(stage: Stage) {
    let world = World::new(stage).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let soon = json!({ "run_at": Utc::now() + TimeDelta::seconds(4) });
    for request in [world.request("one"), with(world.request("timer"), soon), world.member("s", "member")] {
        assert_eq!(router.accepts(&request, 201).await.owner(), Side::Postgres);
    }
    let shown = plan(&world, everything(&world)).await;
    assert_eq!((shown.moves, shown.stays, shown.work[0].series), (3, 0, 1), "{shown:?}");
    assert_eq!(owner(&world, "one").await, (Side::Postgres, 1), "a plan changes nothing");
    assert_eq!(run(&world, everything(&world)).await.moved, 3);
    let executions = "select count(*) from (select execute from crossover.ready union all
        select execute from crossover.scheduled) copies where execute";
    assert_eq!(world.scalar::<i64>(executions).await, 0, "its copies on Postgres are rehearsals");
    let worker = world.node_with(WORKER, |_| {}).await;
    let keys = ["one", "timer", "member"].map(str::to_owned);
    ran_on_temporal(&world, &keys).await;
    for key in &keys {
        let rehearsal = world
            .until_story(key, "Postgres has rehearsed it", |story| {
                story.attempts.iter().find(|a| a.rehearsal && a.side == Side::Postgres).cloned()
            })
            .await;
        assert_eq!(rehearsal.fence.epoch, 2);
    }
    for key in ["one", "timer"] {
        let old = format!("{}:1", world.id(key));
        until("the old copy has stood aside", async || (is_open(&world, &old).await != Some(true)).then_some(())).await;
    }
    let left = "select (select count(*) from crossover.outbox) + (select count(*) from crossover.rehearsals)";
    until("nothing is left over", async || (world.scalar::<i64>(left).await == 0).then_some(())).await;
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_in_live_moves_and_its_old_copy_stands_aside() {
    moves_from(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_pinned_in_complete_gets_a_copy_for_temporal() {
    moves_from(Stage::Complete).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_has_begun_ends_when_its_interaction_is_handed_over() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    // Temporal's worker runs in this process as well, so Postgres is kept busy: its one slot is held.
    let worker = world.node_with(WORKER, |config| config.worker.slots = 1).await;
    world.runner.hold("busy");
    router.accepts(&world.request("busy"), 201).await;
    world.runner.nth("busy", 1).await;
    router.accepts(&with(world.request("one"), json!({ "priority": -1 })), 201).await;
    let begun = "select count(*) from crossover.rehearsals r join crossover.pins p using (id) where p.key = 'one'";
    until("its rehearsal occupies", async || (world.scalar::<i64>(begun).await == 1).then_some(())).await;
    assert_eq!(run(&world, only(&world, "one")).await.moved, 1);
    let keys = ["one".to_owned()];
    until("Temporal runs it", async || (world.runner.of("one").len() == 1).then_some(())).await;
    ran_on_temporal(&world, &keys).await;
    let old = format!("{}:1", world.id("one"));
    until("its rehearsal has ended", async || (is_open(&world, &old).await == Some(false)).then_some(())).await;
    world.runner.release("busy");
    world.succeeded("busy").await;
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_ever_claimed_is_cancelled_in_conflict_or_ended_stays() {
    let world = World::new(Stage::Complete).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let policy = json!({ "policy": { "backoff": { "delays_ms": [3_600_000] } } });
    node.accepts(&with(world.request("retried"), policy), 201).await;
    world.runner.rule("retried", Rule::Fail(1));
    let worker = world.node_with(WORKER, |_| {}).await;
    world.until_story("retried", "an attempt failed", |story| (story.pin.attempts == 1).then_some(())).await;
    node.accepts(&world.request("ended"), 201).await;
    world.succeeded("ended").await;
    worker.stop().await;
    for key in ["claimed", "conflict", "cancelled", "free"] {
        node.accepts(&world.request(key), 201).await;
    }
    let taken = claim(&world).await;
    assert_eq!(taken.len(), 4);
    let back = "with back as (delete from crossover.running where id <> $1 returning *)
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from back";
    sqlx::query(back).bind(world.id("claimed")).execute(world.pool()).await.unwrap();
    let hold = "update crossover.pins set conflict = 'somebody else' where id = $1";
    sqlx::query(hold).bind(world.id("conflict")).execute(world.pool()).await.unwrap();
    let wish = "update crossover.pins set cancel_requested_at = now() where id = $1";
    sqlx::query(wish).bind(world.id("cancelled")).execute(world.pool()).await.unwrap();

    let shown = plan(&world, everything(&world)).await;
    let mut what: Vec<_> = shown.work.iter().map(|work| (work.what.as_str(), work.interactions)).collect();
    what.sort();
    assert_eq!(what, [("cancelled", 1), ("claimed", 2), ("conflict", 1), ("moves", 1)]);
    for (key, wanted) in [
        ("retried", "claimed"),
        ("ended", "ended"),
        ("claimed", "claimed"),
        ("conflict", "conflict"),
        ("cancelled", "cancelled"),
        ("free", "moved"),
        ("free", "temporal"),
    ] {
        assert_eq!(ask(&world, key).await, wanted, "{key}");
    }
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins where epoch > 1").await, 1);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_not_armed_has_nothing_to_hand_over() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let planned = handover::plan(&world.ledger, everything(&world)).await;
    assert!(matches!(planned, Err(HandoverError::Unknown(_))), "{planned:?}");
    node.post(&world.request("one")).await;
    let planned = handover::plan(&world.ledger, everything(&world)).await;
    assert!(matches!(planned, Err(HandoverError::Unarmed(_))), "{planned:?}");
    assert_eq!(ask(&world, "one").await, "unarmed");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_moves_nothing_and_a_handover_after_it_moves_what_waits() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.request("before"), 201).await;
    world.flip(Stage::Shadow, &[&router]).await;
    router.post(&world.request("after")).await;
    assert_eq!(owner(&world, "before").await, (Side::Postgres, 1));
    assert_eq!(owner(&world, "after").await, (Side::Temporal, 1));
    assert_eq!(run(&world, everything(&world)).await.moved, 1);
    // Flipping on does not take it back.
    world.flip(Stage::Complete, &[&router]).await;
    router.accepts(&world.request("at last"), 201).await;
    let repeated = router.accepts(&world.request("before"), 200).await;
    assert_eq!((repeated.owner(), &repeated.body["epoch"]), (Side::Temporal, &json!(2)));
    let worker = world.node_with(WORKER, |_| {}).await;
    ran_on_temporal(&world, &["before".to_owned()]).await;
    world.each_ran_on_its_owner(&["after", "at last"].map(str::to_owned)).await;
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_of_the_old_copy_takes_no_new_row_out_and_runs_nothing_when_it_arrives() {
    let world = World::new(Stage::Live).await;
    let router = world.node_towards(&black_hole().await, ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 201).await;
    router.stop().await;
    let old = until("a relay takes it", async || {
        world.ledger.take_undelivered(10, 100, Duration::from_secs(1)).await.unwrap().copies.pop()
    })
    .await;
    assert_eq!((old.envelope.epoch, old.envelope.owner), (1, Side::Postgres));
    assert_eq!(run(&world, everything(&world)).await.moved, 1);
    // What was under way is now recorded as delivered, or as a conflict, under its own epoch.
    world.ledger.delivered(&[old.envelope.copy()]).await.unwrap();
    world.ledger.nothing_left(&[old.envelope.copy()]).await.unwrap();
    world.ledger.hold(old.envelope.copy(), "of the old copy").await.unwrap();
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.outbox where epoch = 2").await, 1);
    world.runner.hold("one");
    let worker = world.node_with(WORKER, |_| {}).await;
    world.runner.nth("one", 1).await;
    client(&world).deliver(&old.envelope).await.unwrap();
    let id = format!("{}:1", world.id("one"));
    until("the late copy has ended", async || (is_open(&world, &id).await == Some(false)).then_some(())).await;
    world.runner.release("one");
    ran_on_temporal(&world, &["one".to_owned()]).await;
    assert!(world.story("one").await.unwrap().pin.conflict.is_none());
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_story_shows_the_move_and_the_comparator_calls_it_not_comparable() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 201).await;
    assert_eq!(run(&world, everything(&world)).await.moved, 1);
    let worker = world.node_with(WORKER, |config| config.comparator.every = Duration::from_millis(100)).await;
    ran_on_temporal(&world, &["one".to_owned()]).await;
    let story = until("it is judged", async || {
        let story = crossover::report::story(&world.ledger, world.id("one"), false).await.unwrap()?;
        story.observation.as_ref().is_some_and(|o| o.verdict != "in_flight").then_some(story)
    })
    .await;
    let observation = story.observation.as_ref().unwrap();
    assert_eq!(observation.verdict, "not_comparable", "{observation:?}");
    assert!(observation.reason.as_ref().unwrap().contains("handed over"), "{observation:?}");
    let told: Vec<&str> = story.timeline.iter().map(|event| event.what.as_str()).collect();
    assert!(told.iter().any(|what| what.contains("handed over: temporal executes from epoch 2 on")), "{told:#?}");
    assert!(told.iter().any(|what| what.contains("execution 2.1 began")), "{told:#?}");
    worker.stop().await;
    router.stop().await;
}
