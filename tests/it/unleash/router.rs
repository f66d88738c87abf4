//! A router that goes by Unleash.

use crossover::config::{FlagSource, Secret, SecretUrl};
use crossover::interaction::{Side, Stage};

use super::admin::Admin;
use super::in_force;
use crate::bridge::until;
use crate::bridge::world::{ALL, World};
use crate::servers;

#[tokio::test]
async fn a_router_pins_by_unleash_and_records_its_revision_and_goes_on_without_it() {
    let world = World::new(Stage::Off).await;
    let mut unleash = servers::own_unleash().await;
    let admin = Admin(&unleash);
    let node = world
        .node_with(ALL, |config| {
            config.flags.source = FlagSource::Unleash;
            config.flags.url = Some(SecretUrl::new(format!("{}/api/", unleash.url)));
            config.flags.token = Some(Secret::new(&unleash.backend_token));
            config.flags.interval = std::time::Duration::from_millis(100);
        })
        .await;
    admin.list("crossover-live", &[&world.account]).await;
    let flags = node.flags.clone().unwrap();
    in_force(&flags, "the flip", |flags| flags.stage(&world.account, "sync") == Stage::Live).await;

    assert_eq!(node.accepts(&world.request("one"), 201).await.owner(), Side::Postgres);
    let revision = world.succeeded("one").await.pin.flag_revision;
    assert_eq!(revision, flags.health().revision);
    assert!(revision.starts_with("unleash:"), "{revision}");

    unleash.server.kill().await.unwrap();
    until("the router is without Unleash", async || flags.health().error).await;
    assert_eq!(node.accepts(&world.request("two"), 201).await.owner(), Side::Postgres);
    assert_eq!(world.succeeded("two").await.pin.flag_revision, revision);
    let ready = node.get("/readyz").await;
    assert_eq!(ready.status, 200);
    assert!(ready.body["flags"].as_str().unwrap().starts_with("last good ones in force: Unleash "), "{ready:?}");
    let shown = until("the metrics say so", async || {
        let text = node.get("/metrics").await.body.as_str().unwrap().to_owned();
        text.contains("\ncrossover_flags_healthy 0").then_some(text)
    });
    let shown = shown.await;
    assert!(shown.contains("crossover_flags_fetches_total{outcome=\"unreachable\"}"), "{shown}");
    assert!(shown.contains("\ncrossover_flags_age_seconds ") && shown.contains("\ncrossover_flags_from_last_good 0"));
    node.stop().await;
}
