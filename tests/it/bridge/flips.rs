//! A flip decides new work and moves none; a series keeps its order across it.

use chrono::{TimeDelta, Utc};

use super::world::with;
use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_while_work_waits_runs_each_piece_once_on_the_side_it_was_pinned_to() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let run_at = (Utc::now() + TimeDelta::seconds(3)).to_rfc3339();
    let mut keys = Vec::new();
    for (round, stage) in [Stage::Shadow, Stage::Live, Stage::Shadow, Stage::Complete].into_iter().enumerate() {
        world.flip(stage, &[&node]).await;
        for n in 0..4 {
            let key = format!("{stage} {round} {n}");
            let answer = node.accepts(&with(world.request(&key), json!({ "run_at": run_at })), 201).await;
            assert_eq!(answer.owner(), stage.owner());
            keys.push(key);
        }
    }
    assert!(world.runner.calls().is_empty(), "it is not due yet");
    world.flip(Stage::Live, &[&node]).await;
    world.each_ran_on_its_owner(&keys).await;
    assert_eq!(world.runner.calls().len(), keys.len());
    let early =
        "select count(*) from crossover.attempts a join crossover.pins p using (id) where a.started_at < p.run_at";
    assert_eq!(world.scalar::<i64>(early).await, 0);
    node.stop().await;
}

/// Members come faster than they run, so both sides have a backlog at every flip.
async fn keeps_its_order_through(stages: &[Stage]) {
    const EACH: usize = 5;
    let world = World::new(stages[0]).await;
    let node = world.node().await;
    world.runner.pace(Duration::from_millis(20));
    let mut keys = [Vec::new(), Vec::new()];
    for (round, stage) in stages.iter().enumerate() {
        world.flip(*stage, &[&node]).await;
        for n in 0..EACH {
            for (series, keys) in keys.iter_mut().enumerate() {
                let key = format!("{series}: {round} {stage} {n}");
                let answer = node.post(&world.member(&format!("s{series}"), &key)).await;
                assert!(matches!(answer.status, 201 | 202) && answer.owner() == stage.owner(), "{answer:?}");
                keys.push(key);
            }
        }
    }
    let backlog = "select count(*) from crossover.pins where ended_at is null";
    assert!(world.scalar::<i64>(backlog).await > EACH as i64, "there was no backlog to keep in order");
    for keys in &keys {
        world.each_ran_on_its_owner(keys).await;
        let ran: Vec<String> = world.in_turn(keys).into_iter().map(|call| call.key).collect();
        assert_eq!(&ran, keys);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_keeps_order_and_never_overlaps_across_shadow_live_shadow() {
    keeps_its_order_through(&[Stage::Shadow, Stage::Live, Stage::Shadow, Stage::Live]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_keeps_order_and_never_overlaps_through_complete_and_back() {
    keeps_its_order_through(&[
        Stage::Live,
        Stage::Complete,
        Stage::Live,
        Stage::Shadow,
        Stage::Complete,
        Stage::Shadow,
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_fails_and_is_retried_holds_the_series_back_on_both_sides() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let policy = json!({ "policy": { "backoff": { "delays_ms": [200] } } });
    let keys: Vec<String> = (0..6).map(|n| format!("k{n}")).collect();
    for (n, key) in keys.iter().enumerate() {
        world.flip(if n % 2 == 0 { Stage::Shadow } else { Stage::Live }, &[&node]).await;
        world.runner.rule(key, super::runner::Rule::Fail(1));
        node.post(&with(world.member("s", key), policy.clone())).await;
    }
    world.each_ran_on_its_owner(&keys).await;
    let ran: Vec<(String, i32)> = world.in_turn(&keys).into_iter().map(|c| (c.key, c.fence.1)).collect();
    let wanted: Vec<_> = keys.iter().flat_map(|key| [(key.clone(), 1), (key.clone(), 2)]).collect();
    assert_eq!(ran, wanted);
    node.stop().await;
}
