//! What a lost worker and lost sightings leave behind: it can't be compared, and is never a divergence.

use crossover::app::Roles;
use crossover::faults::{Fault, inject};
use crossover::interaction::{Side, Stage};
use serde_json::json;

use super::*;
use crate::bridge::child::Child;
use crate::bridge::world::{ALL, with};

const TAKES_IN: Roles = Roles { router: true, worker: false, relay: true };
const WORKS: Roles = Roles { router: false, worker: true, relay: false };

/// Its workers are given up soon.
fn brief(config: &mut Config) {
    quick(config);
    config.worker.lease = Duration::from_secs(1);
}

async fn lost_with_its_worker(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(TAKES_IN, brief).await;
    let mut child = Child::serve(&world, "worker", &[("CROSSOVER_WORKER_LEASE", "1s")]).await;
    world.runner.hold("lost");
    let policy = json!({ "policy": { "max_attempts": 20, "backoff": { "delays_ms": [50] } } });
    node.accepts(&with(world.request("lost"), policy), 201).await;
    world.runner.nth("lost", 1).await;
    let begun = "select count(distinct side) from crossover.sightings where what = 'dequeued'";
    until("both sides were seen to begin it", async || (world.scalar::<i64>(begun).await == 2).then_some(())).await;
    child.kill();
    let heir = world.node_with(WORKS, brief).await;
    world.runner.nth("lost", 2).await;
    world.runner.release("lost");
    world.succeeded("lost").await;
    let judged = verdict(&world, "lost", "not_comparable").await;
    assert!(judged.divergences.is_empty(), "{judged:#?}");
    assert!(judged.reason.as_ref().unwrap().contains("lost with its worker"), "{judged:#?}");
    for side in ["temporal", "postgres"] {
        let attempts = judged.row[format!("{side}_attempts")].as_i64().unwrap();
        assert!(attempts >= 2, "{side} follows the lost worker: {judged:#?}");
    }
    // One more attempt than there really was is still a divergence, with the same workers.
    if stage == Stage::Shadow {
        inject(Side::Postgres, world.id("again"), Fault::ExtraAttempt);
        node.accepts(&world.request("again"), 201).await;
        diverged(&world, "again", "attempts", "postgres").await;
    }
    node.accepts(&world.request("after"), 201).await;
    matched(&world, "after").await;
    scores_agree(&world).await;
    node.stop().await;
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_lost_with_a_worker_of_temporal_is_not_comparable_and_one_too_many_diverges() {
    lost_with_its_worker(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_lost_with_a_worker_of_postgres_is_not_comparable() {
    lost_with_its_worker(Stage::Live).await;
}

/// Keeps observers that are not among `known` from writing until it ends.
async fn jam(world: &World, known: &[Uuid]) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut jam = world.pool().begin().await.unwrap();
    let locked = sqlx::query("select id from crossover.observers where id <> all ($1) for update").bind(known);
    assert_eq!(locked.fetch_all(&mut *jam).await.unwrap().len(), 1);
    jam
}

async fn observers(world: &World) -> Vec<Uuid> {
    sqlx::query_scalar("select id from crossover.observers").fetch_all(world.pool()).await.unwrap()
}

async fn nothing_diverged(world: &World) {
    let diverged = "select count(*) from crossover.observations where verdict = 'diverged' or divergences is not null
        and json_array_length(divergences) > 0";
    assert_eq!(world.scalar::<i64>(diverged).await, 0);
    scores_agree(world).await;
}

async fn killed_with_sightings_unwritten(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(TAKES_IN, quick).await;
    let known = observers(&world).await;
    let mut child = Child::serve(&world, "worker", &[]).await;
    node.accepts(&world.request("before"), 201).await;
    matched(&world, "before").await;

    let jammed = jam(&world, &known).await;
    let lost = ["lost-0", "lost-1", "lost-2", "lost-3"];
    for key in lost {
        node.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
        world.rehearsed(key, 1).await;
    }
    child.kill();
    // What it had sent already, a batch or a sign of life, must not be written after its death.
    let cut = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock'
            and (query like 'with fresh%' or query like 'insert into crossover.observers%')";
    until("nothing of it waits", async || (world.scalar::<i64>(cut).await == 0).then_some(())).await;
    jammed.rollback().await.unwrap();
    let written: i64 = sqlx::query_scalar(
        "select count(*) from crossover.sightings s join crossover.pins p on p.id = s.id
         where p.key like 'lost-%' and s.observer <> all ($1)",
    )
    .bind(&known)
    .fetch_one(world.pool())
    .await
    .unwrap();
    assert_eq!(written, 0, "it has written some of them");

    let heir = world.node_with(WORKS, quick).await;
    node.accepts(&world.request("after"), 201).await;
    for key in lost {
        verdict(&world, key, "incomplete").await;
    }
    for key in ["before", "after"] {
        matched(&world, key).await;
    }
    nothing_diverged(&world).await;
    node.stop().await;
    heir.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_shadow_what_a_killed_process_saw_and_could_not_write_is_incomplete_and_nothing_else() {
    killed_with_sightings_unwritten(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_live_what_a_killed_process_saw_and_could_not_write_is_incomplete_and_nothing_else() {
    killed_with_sightings_unwritten(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_observer_had_no_room_for_is_incomplete_and_nothing_else() {
    let world = World::new(Stage::Shadow).await;
    let small = |config: &mut Config| {
        quick(config);
        config.observer.buffer = 1;
    };
    let node = world.node_with(ALL, small).await;
    let jammed = jam(&world, &[]).await;
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    for key in &keys {
        node.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
        world.rehearsed(key, 1).await;
    }
    jammed.rollback().await.unwrap();
    // The first few may have found room.
    let verdicts: Vec<String> = futures::future::join_all(keys.iter().map(|key| judged(&world, key)))
        .await
        .into_iter()
        .map(|judged| judged.verdict)
        .collect();
    assert!(verdicts.iter().all(|verdict| verdict == "incomplete" || verdict == "matched"), "{verdicts:?}");
    assert!(verdicts[4..].iter().all(|verdict| verdict == "incomplete"), "{verdicts:?}");
    nothing_diverged(&world).await;
    node.stop().await;
}
