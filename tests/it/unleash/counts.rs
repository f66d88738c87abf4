//! What Unleash is told about the use of its flags.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::Value;

use super::admin::Admin;
use super::proxy::{Mode, Proxy};
use super::{PATIENCE, Place, in_force};
use crate::servers;

/// Yes and no of a flag, as Unleash's pages show them.
async fn usage(admin: &Admin<'_>, flag: &str) -> (u64, u64, Value) {
    let (_, said) = admin.ask(Method::GET, &format!("/client-metrics/features/{flag}"), None).await;
    let sum = |answer: &str| {
        said["lastHourUsage"].as_array().into_iter().flatten().filter_map(|hour| hour[answer].as_u64()).sum()
    };
    (sum("yes"), sum("no"), said)
}

async fn until_used(admin: &Admin<'_>, flag: &str, wanted: (u64, u64)) {
    let begun = Instant::now();
    loop {
        let (yes, no, said) = usage(admin, flag).await;
        if (yes, no) == wanted {
            return assert_eq!(said["seenApplications"][0], "crossover");
        }
        assert!(begun.elapsed() < PATIENCE, "{flag} is {said}, not {wanted:?}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn what_decisions_asked_shows_in_unleash_once_and_an_outage_loses_nothing() {
    let unleash = servers::own_unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    let admin = Admin(&unleash);
    admin.list("crossover-live", &["acme"]).await;
    let mut place = Place::before(&proxy.url, &unleash);
    // A busy machine must not bring an answer into doubt.
    place.settings.timeout = Duration::from_secs(20);
    let flags = place.start().await.unwrap();
    in_force(&flags, "the flip", |flags| flags.stage("acme", "sync").as_str() == "live").await;

    for _ in 0..3 {
        flags.decide("acme", "sync");
    }
    flags.decide("globex", "sync");
    until_used(&admin, "crossover-live", (3, 1)).await;
    until_used(&admin, "crossover-complete", (0, 4)).await;
    until_used(&admin, "crossover-shadow", (0, 1)).await;
    until_used(&admin, "crossover-kill", (0, 3)).await;

    proxy.set(Mode::Say(503, "text/plain", "away".to_owned()));
    flags.decide("acme", "sync");
    // A few reports fail meanwhile; the flags' own questions show how the time goes by.
    let (failed, begun) = (place.fetches("status"), Instant::now());
    while place.fetches("status") < failed + 3 {
        assert!(begun.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    flags.decide("acme", "sync");
    proxy.set(Mode::Pass);
    until_used(&admin, "crossover-live", (5, 1)).await;

    // What was counted last is told at the end.
    flags.decide("acme", "sync");
    flags.close().await;
    until_used(&admin, "crossover-live", (6, 1)).await;
    assert_eq!(place.metrics.counts_lost.get(), 0);
}

#[tokio::test]
async fn this_process_stands_among_unleash_s_applications() {
    let unleash = servers::own_unleash().await;
    let flags = Place::before(&unleash.url, &unleash).start().await.unwrap();
    let (admin, begun) = (Admin(&unleash), Instant::now());
    loop {
        // Unleash takes it up with the first counts, or a few seconds after the registration.
        flags.decide("acme", "sync");
        let (_, said) = admin.ask(Method::GET, "/metrics/applications", None).await;
        if said["applications"].as_array().is_some_and(|list| list.iter().any(|one| one["appName"] == "crossover")) {
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "{said}");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn what_an_unleash_never_took_is_counted_as_lost_at_the_end() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    let place = Place::before(&proxy.url, unleash);
    let flags = place.start().await.unwrap();
    proxy.set(Mode::Hang);
    flags.decide("acme", "sync");
    flags.close().await;
    assert!(place.metrics.counts_lost.get() > 0);
}
