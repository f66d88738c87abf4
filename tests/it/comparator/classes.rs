//! The classes that the proof leaves out, and what is told of the sides.

use chrono::{TimeDelta, Utc};
use crossover::faults::{Fault, inject};
use crossover::interaction::{Outcome, Side, Stage};
use serde_json::json;

use super::*;
use crate::bridge::world::with;

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_is_early_or_elsewhere_or_ends_otherwise_or_runs_diverges() {
    let world = World::new(Stage::Shadow).await;
    let node = node(&world).await;
    let faults = [
        ("group", Fault::Group("elsewhere".into()), "routing"),
        ("outcome", Fault::Outcome(Outcome::Failed), "outcome"),
        ("again", Fault::ExtraAttempt, "attempts"),
        ("real", Fault::Unclaimed, "unclaimed_effect"),
    ];
    for (key, fault, _) in &faults {
        inject(Side::Postgres, world.id(key), fault.clone());
        node.accepts(&world.request(key), 201).await;
    }
    inject(Side::Postgres, world.id("early"), Fault::Early);
    let due = Utc::now() + TimeDelta::seconds(4);
    for key in ["early", "in time"] {
        node.accepts(&with(world.request(key), json!({ "run_at": due })), 201).await;
    }
    node.accepts(&world.request("clean"), 201).await;
    for (key, _, class) in &faults {
        diverged(&world, key, class, "postgres").await;
    }
    diverged(&world, "early", "early", "postgres").await;
    matched(&world, "in time").await;
    let clean = matched(&world, "clean").await.row;
    for column in ["temporal_delivered_at", "temporal_due_at", "temporal_dequeued_at", "temporal_ended_at"] {
        assert!(clean[column].is_string(), "{column}: {clean:#}");
    }
    for column in ["postgres_due_at", "postgres_dequeued_at", "postgres_ended_at"] {
        assert!(clean[column].is_string(), "{column}: {clean:#}");
    }
    assert_eq!((&clean["temporal_outcome"], &clean["postgres_outcome"]), (&json!("succeeded"), &json!("succeeded")));
    assert_eq!(clean["attempts"].as_array().unwrap().len(), 2, "{clean:#}");
    scores_agree(&world).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_on_postgres_that_is_lost_is_missing_and_one_that_begins_twice_a_duplicate() {
    let world = World::new(Stage::Live).await;
    let node = node(&world).await;
    inject(Side::Postgres, world.id("lost"), Fault::Dropped);
    inject(Side::Postgres, world.id("twice"), Fault::Twice);
    for key in ["lost", "twice", "clean"] {
        node.accepts(&world.request(key), 201).await;
    }
    diverged(&world, "twice", "duplicate", "postgres").await;
    matched(&world, "clean").await;
    let verdict = until("it is missing", async || {
        row(&world, world.id("lost")).await.filter(|judged| judged.verdict == "diverged")
    });
    assert_eq!(verdict.await.divergences, [("missing".to_owned(), "postgres".to_owned())]);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_the_stage_does_not_write_is_extra_and_one_that_it_writes_is_not_looked_at() {
    let world = World::new(Stage::Live).await;
    let node = node(&world).await;
    node.accepts(&world.request("armed"), 201).await;
    matched(&world, "armed").await;
    world.flip(Stage::Complete, &[&node]).await;
    inject(Side::Temporal, world.id("extra"), Fault::ExtraCopy);
    node.accepts(&world.request("complete"), 201).await;
    node.accepts(&world.request("extra"), 201).await;
    diverged(&world, "extra", "extra", "temporal").await;
    world.succeeded("complete").await;
    assert!(row(&world, world.id("complete")).await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_copy_under_the_same_id_is_an_owner_conflict() {
    let world = World::new(Stage::Off).await;
    let node = node(&world).await;
    node.accepts(&world.request("key"), 201).await;
    world.flip(Stage::Shadow, &[&node]).await;
    let other = with(world.request("key"), json!({ "payload": { "another": "payload" } }));
    node.accepts(&other, 409).await;
    diverged(&world, "key", "owner_conflict", "temporal").await;
    assert!(row(&world, world.id("unpinned")).await.is_none());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_runs_beside_the_one_before_it_overlaps_it_and_one_that_waits_does_not() {
    const CLOCKS: Duration = Duration::from_millis(250);
    let world = World::new(Stage::Live).await;
    let adjust = |config: &mut Config| {
        quick(config);
        config.comparator.clocks = CLOCKS;
    };
    let node = world.node_with(crate::bridge::world::ALL, adjust).await;
    inject(Side::Postgres, world.id("second"), Fault::Beside);
    for (series, keys) in [("beside", ["first", "second", "third"]), ("in turn", ["one", "two", "three"])] {
        world.runner.hold(keys[0]);
        for key in keys {
            node.post(&world.member(series, key)).await;
        }
        world.runner.nth(keys[0], 1).await;
    }
    world.runner.nth("second", 1).await;
    world.succeeded("second").await;
    assert!(world.runner.of("two").is_empty(), "its turn has not come");
    // Shorter than clocks may differ by is no overlap.
    tokio::time::sleep(CLOCKS * 2).await;
    for held in ["first", "one"] {
        world.runner.release(held);
    }
    diverged(&world, "second", "overlap", "postgres").await;
    for key in ["first", "third", "one", "two", "three"] {
        matched(&world, key).await;
    }
    scores_agree(&world).await;
    let text = node.get("/metrics").await.body.as_str().unwrap().to_owned();
    assert!(text.contains(r#"crossover_divergences_total{class="overlap",side="postgres"} 1"#), "{text}");
    node.stop().await;
}
