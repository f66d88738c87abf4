//! What a router sees of the real Unleash.

use std::time::{Duration, Instant};

use crossover::config::Secret;
use crossover::flags::Flag;
use crossover::interaction::Stage;
use crossover::provision::Unleash;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};

use super::admin::Admin;
use super::proxy::Proxy;
use super::{Place, health, in_force};
use crate::servers;

#[tokio::test]
async fn a_flip_in_unleash_is_seen_and_carries_its_revision() {
    let unleash = servers::own_unleash().await;
    let flags = Place::before(&unleash.url, &unleash).start().await.unwrap();
    let admin = Admin(&unleash);
    assert_eq!(flags.stage("acme", "sync"), Stage::Off);
    let before = flags.document().server_revision().unwrap();
    for (flag, stage) in [("shadow", Stage::Shadow), ("live", Stage::Live), ("complete", Stage::Complete)] {
        admin.list(&format!("crossover-{flag}"), &["acme"]).await;
        in_force(&flags, flag, |flags| flags.stage("acme", "sync") == stage).await;
        assert_eq!(flags.stage("globex", "sync"), Stage::Off);
    }
    let decision = flags.decide("acme", "sync");
    assert!(flags.document().server_revision().unwrap() > before);
    assert!(decision.revision.starts_with("unleash:"), "{decision:?}");
    assert_eq!(decision.revision, flags.health().revision);

    admin.switch("crossover-kill", true).await;
    in_force(&flags, "the kill switch", |flags| flags.stage("acme", "sync") == Stage::Shadow).await;
    admin.switch("crossover-complete", false).await;
    admin.switch("crossover-kill", false).await;
    in_force(&flags, "a disabled flag", |flags| flags.stage("acme", "sync") == Stage::Live).await;
}

#[tokio::test]
async fn unchanged_flags_come_as_a_304_and_count_as_an_answer() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    let place = Place::before(&proxy.url, unleash);
    let flags = place.start().await.unwrap();
    assert_eq!(proxy.seen()[0], (200, false), "the first question is for the whole document");
    let begun = Instant::now();
    while place.fetches("unchanged") < 3 {
        assert!(begun.elapsed() < super::PATIENCE, "{:?}", proxy.seen());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(proxy.seen().contains(&(304, true)), "{:?}", proxy.seen());
    let health = flags.health();
    assert!(health.good_at > health.loaded_at && health.error.is_none(), "{health:?}");
}

#[tokio::test]
async fn a_segment_and_a_kind_decide_as_unleash_s_pages_say() {
    let unleash = servers::own_unleash().await;
    let admin = Admin(&unleash);
    let eu = json!({ "contextName": "userId", "operator": "STR_STARTS_WITH", "values": ["eu-"] });
    let segment = admin.make(Method::POST, "/segments", json!({ "name": "pilots", "constraints": [eu] })).await;
    let kinds = json!({ "contextName": "kind", "operator": "IN", "values": ["webhook"] });
    let strategy = json!({ "name": "flexibleRollout", "constraints": [kinds], "segments": [segment["id"]],
        "parameters": { "rollout": "100", "stickiness": "default", "groupId": "crossover-live" } });
    admin.make(Method::POST, &format!("{}/strategies", admin.flag("crossover-live")), strategy).await;
    let flags = Place::before(&unleash.url, &unleash).start().await.unwrap();
    in_force(&flags, "the strategy", |flags| flags.stage("eu-acme", "webhook") == Stage::Live).await;
    assert_eq!(flags.stage("eu-acme", "sync"), Stage::Off);
    assert_eq!(flags.stage("us-acme", "webhook"), Stage::Off);
}

#[tokio::test]
async fn an_archived_flag_keeps_its_last_definition_until_its_absence_is_accepted() {
    let unleash = servers::own_unleash().await;
    let admin = Admin(&unleash);
    admin.list("crossover-live", &["acme"]).await;
    let mut place = Place::before(&unleash.url, &unleash);
    let flags = place.start().await.unwrap();
    in_force(&flags, "the flip", |flags| flags.stage("acme", "sync") == Stage::Live).await;

    admin.archive("crossover-live").await;
    let missing = health(&flags, "the absence", |health| health.error.is_some()).await;
    assert!(missing.error.unwrap().contains("crossover-live is missing"));
    assert_eq!(flags.stage("acme", "sync"), Stage::Live);
    admin.list("crossover-complete", &["globex"]).await;
    in_force(&flags, "another flag", |flags| flags.stage("globex", "sync") == Stage::Complete).await;
    assert_eq!(flags.stage("acme", "sync"), Stage::Live, "also by the next document");
    flags.close().await;

    let restarted = place.start().await.unwrap();
    assert_eq!(restarted.stage("acme", "sync"), Stage::Live, "also after a restart");
    admin.revive("crossover-live").await;
    health(&restarted, "the return", |health| health.error.is_none()).await;
    restarted.close().await;

    admin.archive("crossover-live").await;
    place.settings.accept_missing = vec![Flag::Live];
    let accepting = place.start().await.unwrap();
    in_force(&accepting, "the absence", |flags| flags.stage("acme", "sync") == Stage::Off).await;
    assert_eq!(accepting.health().error, None);
}

#[tokio::test]
async fn a_revoked_token_changes_no_decision_and_is_named() {
    let unleash = servers::own_unleash().await;
    let admin = Admin(&unleash);
    admin.list("crossover-live", &["acme"]).await;
    let body =
        json!({ "tokenName": "router", "type": "backend", "environment": unleash.environment, "projects": ["*"] });
    let token = admin.make(Method::POST, "/api-tokens", body).await["secret"].as_str().unwrap().to_owned();
    let mut place = Place::before(&unleash.url, &unleash);
    place.settings.token = Secret::new(&token);
    let flags = place.start().await.unwrap();
    in_force(&flags, "the flip", |flags| flags.stage("acme", "sync") == Stage::Live).await;

    assert!(admin.ask(Method::DELETE, &format!("/api-tokens/{token}"), None).await.0.is_success());
    // Unleash itself reads its tokens anew once a minute.
    let begun = Instant::now();
    while flags.health().error.is_none() && begun.elapsed() < Duration::from_secs(120) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let denied = flags.health().error.expect("the refusal is seen");
    assert!(denied.contains("flags.token (401 Unauthorized)") && !denied.contains(&token), "{denied}");
    assert_eq!(flags.stage("acme", "sync"), Stage::Live);
    assert!(place.fetches("denied") > 0);
}

#[tokio::test]
async fn an_unleash_restored_from_a_backup_has_to_insist() {
    let (mut unleash, backup) = with_backup().await;
    let proxy = Proxy::to(&unleash.url).await;
    Admin(&unleash).list("crossover-live", &["acme"]).await;
    let mut place = Place::before(&proxy.url, &unleash);
    let flags = place.start().await.unwrap();
    in_force(&flags, "the flip", |flags| flags.stage("acme", "sync") == Stage::Live).await;

    let restored = servers::empty_unleash(&backup).await;
    proxy.lead_to(&restored.url);
    unleash.server.stop().await.unwrap();
    let older =
        health(&flags, "the older revision", |health| health.error.as_ref().is_some_and(|e| e.contains("older")));
    assert!(older.await.error.unwrap().contains("flags.accept_older"));
    assert_eq!(flags.stage("acme", "sync"), Stage::Live);
    flags.close().await;

    place.settings.accept_older = Duration::from_millis(300);
    let patient = place.start().await.unwrap();
    assert_eq!(patient.stage("acme", "sync"), Stage::Live, "after a restart, too, it has to insist");
    in_force(&patient, "what insists", |flags| flags.stage("acme", "sync") == Stage::Off).await;
    health(&patient, "the end of the older revision", |health| health.error.is_none()).await;
}

/// An Unleash, and a copy of its database as it was before anything was flipped.
async fn with_backup() -> (Unleash, String) {
    let database = servers::database().await;
    let mut unleash = servers::empty_unleash(&database).await;
    servers::import_flags(&unleash).await;
    unleash.server.kill().await.unwrap();
    let (server, name) = database.rsplit_once('/').unwrap();
    let mut connection = PgConnection::connect(&servers::postgres().await.url).await.unwrap();
    let gone = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1";
    sqlx::query(gone).bind(name).execute(&mut connection).await.unwrap();
    let copy = format!("CREATE DATABASE {name}_backup TEMPLATE {name}");
    connection.execute(sqlx::AssertSqlSafe(copy)).await.unwrap();
    unleash.server.restart().await.unwrap();
    (unleash, format!("{server}/{name}_backup"))
}
