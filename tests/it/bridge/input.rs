//! Bad input: each a clear error that names the place, nothing lost, everything else running.

use std::process::Command;

use chrono::{TimeDelta, Utc};

use super::runner::Rule;
use super::world::{document, with};
use super::*;

/// After whatever was refused, good work runs as ever.
async fn still_works(world: &World, node: &Node) {
    assert!(matches!(node.post(&world.request("good")).await.status, 201 | 202));
    world.succeeded("good").await;
    assert_eq!(world.runner.of("good").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_field_is_a_422_that_names_it_and_writes_nothing() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let (past, ahead) = (Utc::now() - TimeDelta::days(31), Utc::now() + TimeDelta::days(367));
    let bad = [
        (json!({ "acount": "a" }), "acount", "`account`"),
        (json!({ "account": 7 }), "account", "string"),
        (json!({ "account": "" }), "account", "empty"),
        (json!({ "kind": "k".repeat(101) }), "kind", "limit is 100"),
        (json!({ "key": "a\0b" }), "key", "U+0000"),
        (json!({ "series": "a\u{1b}b" }), "series", "U+001B"),
        (json!({ "priority": 101 }), "priority", "-100 to 100"),
        (json!({ "priority": "high" }), "priority", "i16"),
        (json!({ "run_at": past }), "run_at", "30 days"),
        (json!({ "run_at": ahead }), "run_at", "366 days"),
        (json!({ "run_at": "tomorrow" }), "run_at", ""),
        (json!({ "after": ["x"] }), "after", "is no list of ids"),
        (json!({ "policy": { "max_atempts": 3 } }), "policy.max_atempts", "`max_attempts`"),
        (json!({ "policy": { "max_attempts": 0 } }), "policy.max_attempts", "1 to 1000"),
        (json!({ "policy": { "backoff": { "delays_ms": [] } } }), "policy.backoff.delays_ms", "1 to 1000"),
        (json!({ "policy": 3 }), "policy", ""),
    ];
    for (fields, field, message) in bad {
        let refused = node.accepts(&with(world.request("bad"), fields), 422).await;
        let errors = refused.body["errors"].as_array().unwrap();
        let named = |e: &&Value| e["field"] == field && e["message"].as_str().unwrap().contains(message);
        assert!(errors.len() == 1 && errors.iter().find(named).is_some(), "{refused:?} should name {field}");
        assert_eq!(refused.headers["content-type"], "application/problem+json");
    }
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, 0);
    still_works(&world, &node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_no_json_or_too_large_is_refused_as_such() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.http.max_payload_bytes = 1_024).await;
    for (body, place) in [
        (b"{\"account\":\"\xff\"}".to_vec(), "after byte 12"),
        (b"{\"account\":".to_vec(), "line 1"),
        (b"[]".to_vec(), "line 1"),
        (Vec::new(), "line 1"),
    ] {
        let refused = node.send(body).await;
        assert!(refused.status == 400 && refused.detail().contains(place), "{refused:?}");
    }
    for (bytes, place) in [(1_023, "1025 bytes"), (200_000, "limit")] {
        let refused = node.accepts(&with(world.request("large"), json!({ "payload": "x".repeat(bytes) })), 413).await;
        assert!(refused.detail().contains(place), "{refused:?}");
    }
    node.accepts(&with(world.request("fits"), json!({ "payload": "x".repeat(1_022) })), 201).await;
    world.succeeded("fits").await;
    for path in ["/v1/interactions/7", "/v1/interactions/00000000-0000-0000-0000-000000000000", "/v2"] {
        let refused = node.get(path).await;
        assert!(matches!(refused.status, 404 | 422) && !refused.detail().is_empty(), "{refused:?}");
    }
    still_works(&world, &node).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payload_with_nul_long_numbers_and_emoji_arrives_as_it_was_written_on_both_sides() {
    const PAYLOAD: &str = r#"{"z": 1.50, "b":123456789012345678901234567890.10,"a":"\u0000 🦀 \ud83d\ude00"}"#;
    for stage in [Stage::Shadow, Stage::Live] {
        let world = World::new(stage).await;
        let node = world.node().await;
        let body = format!(r#"{{"account":"{}","kind":"sync","key":"🦀","payload":{PAYLOAD}}}"#, world.account);
        assert_eq!(node.send(body.into_bytes()).await.status, 201);
        assert_eq!(world.runner.nth("🦀", 1).await.payload, PAYLOAD);
        world.succeeded("🦀").await;
        world.rehearsed("🦀", 1).await;
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_or_misspelt_flags_file_leaves_the_last_good_ones_in_force_and_readyz_tells() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    let good = document(Stage::Shadow).text().to_owned();
    let misspelt = good.replace("\"constraints\"", "\"constraint\"");
    assert_ne!(good, misspelt);
    for (n, (text, place)) in [("{", "line 1"), (&misspelt, "constraint"), ("", "line 1")].into_iter().enumerate() {
        std::fs::write(&world.flags, text).unwrap();
        let told = until("readyz tells", async || {
            let ready = node.get("/readyz").await;
            assert_eq!(ready.status, 200);
            let flags = ready.body["flags"].as_str().unwrap().to_owned();
            (flags.starts_with("last good ones") && flags.contains(place)).then_some(flags)
        })
        .await;
        assert!(told.contains("flags.json"), "{told}");
        let key = format!("meanwhile {n}");
        assert_eq!(node.accepts(&world.request(&key), 201).await.body["stage"], "live");
        world.succeeded(&key).await;
    }
    world.flip(Stage::Shadow, &[&node]).await;
    assert_eq!(node.accepts(&world.request("mended"), 201).await.body["stage"], "shadow");
    until("readyz is content", async || {
        node.get("/readyz").await.body["flags"].as_str().unwrap().starts_with("ok").then_some(())
    })
    .await;
    node.stop().await;
}

async fn copes_with_a_bad_runner_in(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node().await;
    let rules = [
        ("garbage", Rule::Garbage, "not with JSON", 2),
        ("huge", Rule::Huge, "longer than 1572864 bytes", 1),
        ("never", Rule::Hold, "run_timeout_ms of 700", 2),
    ];
    let policy = json!({ "policy": { "max_attempts": 2, "backoff": { "delays_ms": [50] }, "run_timeout_ms": 700 } });
    for (key, rule, ..) in &rules {
        world.runner.rule(key, rule.clone());
        node.accepts(&with(world.request(key), policy.clone()), 201).await;
    }
    still_works(&world, &node).await;
    for (key, _, reason, attempts) in rules {
        let story = world.ended(key).await;
        let found = story.pin.reason.as_deref().unwrap_or_default();
        assert!(story.state == "failed" && found.contains(reason), "{key}: {story:#?}");
        assert_eq!((story.pin.attempts, world.runner.of(key).len()), (attempts, attempts as usize), "{key}");
        world.rehearsed(key, attempts as usize).await;
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_answers_garbage_too_much_or_never_fails_its_attempts_on_temporal() {
    copes_with_a_bad_runner_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_answers_garbage_too_much_or_never_fails_its_attempts_on_postgres() {
    copes_with_a_bad_runner_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_newer_than_the_program_is_refused_and_left_alone() {
    let world = World::new(Stage::Shadow).await;
    let newer = "insert into _sqlx_migrations (version, description, success, checksum, execution_time)
        values (9999, 'of tomorrow', true, '', 0)";
    sqlx::query(newer).execute(world.pool()).await.unwrap();
    for arguments in [&["serve"][..], &["migrate"], &["migrate", "--yes"], &["status"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(arguments).envs(world.variables()).env("CROSSOVER_STATE_DIR", world.fresh("state"));
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.contains("migration 9999") && error.contains("run a newer crossover"), "{arguments:?}: {error}");
    }
}
