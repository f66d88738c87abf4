//! What stands in for Unleash changes no decision.

use std::time::Duration;

use crossover::flags::Flags;
use crossover::interaction::Stage;
use serde_json::{Value, json};

use super::proxy::{Mode, Proxy};
use super::{Place, health, in_force};
use crate::servers;

const JSON: &str = "application/json; charset=utf-8";

/// Each fault, the outcome that is counted, and what an operator is told.
fn faults() -> Vec<(&'static str, Mode, &'static str, &'static str)> {
    let say = |status, kind, text: &str| Mode::Say(status, kind, text.to_owned());
    let empty = json!({ "version": 2, "features": [], "meta": { "revisionId": 9_999_999 } }).to_string();
    vec![
        ("hanging", Mode::Hang, "timeout", "no whole answer within 1.5s"),
        ("slow", Mode::Drip, "timeout", "no whole answer within 1.5s"),
        ("503 with an empty list", say(503, JSON, &empty), "status", "503"),
        ("500", say(500, "text/plain", "oh"), "status", "500"),
        ("200 with an empty document", say(200, JSON, &empty), "refused", "none of the four flags"),
        ("200 with nothing", say(200, JSON, ""), "refused", "isn't JSON"),
        ("200 with half a document", say(200, JSON, &empty[..40]), "refused", "isn't JSON"),
        ("200 with HTML", say(200, "text/html", "<html>Sign in</html>"), "refused", "text/html instead of JSON"),
        ("a redirect", say(302, "text/html", "elsewhere"), "status", "302"),
        ("a 304 to no question", say(304, JSON, ""), "status", "304"),
        ("a refused token", say(401, JSON, "{}"), "denied", "flags.token"),
        ("a flood", say(200, JSON, &" ".repeat((16 << 20) + 1)), "too_large", "more than"),
    ]
}

/// `account` is live by what passes through.
fn with(account: &'static str) -> impl Fn(&mut Value) + Send + Sync {
    move |value| {
        let feature = value["features"].as_array_mut().unwrap().iter_mut().find(|f| f["name"] == "crossover-live");
        feature.unwrap()["strategies"][0]["constraints"][0]["values"] = json!([account]);
    }
}

fn is_live(account: &str) -> impl Fn(&Flags) -> bool + '_ {
    move |flags| flags.stage(account, "sync") == Stage::Live
}

#[tokio::test]
async fn no_fault_changes_a_decision_and_each_is_counted_told_and_over_when_it_is_over() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    proxy.edit(with("acme"));
    let place = Place::before(&proxy.url, unleash);
    let flags = place.start().await.unwrap();
    for (n, (fault, mode, outcome, told)) in faults().into_iter().enumerate() {
        let counted = place.fetches(outcome);
        // A 304 may come only where there is an ETag, and the edited answers have none.
        proxy.set(mode);
        let seen =
            health(&flags, fault, |health| health.error.as_ref().is_some_and(|error| error.contains(told))).await;
        assert!(seen.error_since.is_some() && !seen.from_last_good, "{fault}: {seen:?}");
        assert!(place.fetches(outcome) > counted, "{fault} is not counted as {outcome}");
        let account = if n % 2 == 0 { "acme" } else { "globex" };
        assert!(is_live(account)(&flags), "{fault} changed a decision");
        let next = if n % 2 == 0 { "globex" } else { "acme" };
        proxy.edit(with(next));
        in_force(&flags, fault, is_live(next)).await;
        health(&flags, fault, |health| health.error.is_none()).await;
    }
}

#[tokio::test]
async fn a_start_without_unleash_goes_on_with_the_last_good_flags_and_without_these_not_at_all() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    for (fault, mode, _, told) in faults() {
        let place = Place::before(&proxy.url, unleash);
        proxy.set(mode.clone());
        let error = place.start().await.err().expect(fault).to_string();
        assert!(error.contains(told) && error.contains("none are guessed"), "{fault}: {error}");
        assert!(error.contains("flags-last-good-"), "{fault}: {error}");

        proxy.edit(with("acme"));
        let flags = place.start().await.unwrap();
        let revision = flags.health().revision;
        flags.close().await;
        drop(flags);

        proxy.set(mode);
        let flags = place.start().await.unwrap();
        let started = flags.health();
        assert!(started.from_last_good && started.error.as_ref().unwrap().contains(told), "{fault}: {started:?}");
        assert!(started.good_at < started.loaded_at, "its age goes on: {started:?}");
        assert!(is_live("acme")(&flags), "{fault}");
        assert_eq!(flags.decide("acme", "sync").revision, revision, "{fault}");

        proxy.edit(with("acme"));
        let mended = health(&flags, fault, |health| health.error.is_none()).await;
        assert!(!mended.from_last_good, "{fault}: {mended:?}");
    }
}

#[tokio::test]
async fn the_last_good_flags_of_another_unleash_or_environment_are_not_taken() {
    let unleash = servers::unleash().await;
    let mut place = Place::before(&unleash.url, unleash);
    drop(place.start().await.unwrap());
    place.settings.url = crossover::config::SecretUrl::new("http://127.0.0.1:9");
    let error = place.start().await.err().unwrap().to_string();
    assert!(error.contains("can't be reached") && error.contains("none are guessed"), "{error}");
}

#[tokio::test]
async fn a_full_disk_delays_no_flip_and_is_told() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    let place = Place::before(&proxy.url, unleash);
    // Where the folder should be there is a file.
    std::fs::write(place.state_dir(), "in the way").unwrap();
    let flags = place.start().await.unwrap();
    let told = health(&flags, "the full disk", |health| health.error.is_some()).await.error.unwrap();
    assert!(told.contains("can't keep the flags in force"), "{told}");
    proxy.edit(with("acme"));
    in_force(&flags, "the flip", is_live("acme")).await;
    std::fs::remove_file(place.state_dir()).unwrap();
    health(&flags, "the room", |health| health.error.is_none()).await;
}

#[tokio::test]
async fn an_older_revision_of_a_lagging_replica_is_not_believed_while_others_are_ahead() {
    let unleash = servers::unleash().await;
    let proxy = Proxy::to(&unleash.url).await;
    let mut place = Place::before(&proxy.url, unleash);
    place.settings.accept_older = Duration::from_millis(500);
    let numbered = |number: u64, account: &'static str| {
        move |value: &mut Value| {
            with(account)(value);
            value["meta"]["revisionId"] = json!(number);
        }
    };
    proxy.edit(numbered(1_000_100, "acme"));
    let flags = place.start().await.unwrap();
    // A balancer in turns: never long enough in a row to be believed.
    for turn in 0..4 {
        let older = place.fetches("older");
        proxy.edit(numbered(1_000_099, "globex"));
        health(&flags, "the replica", |health| health.error.is_some()).await;
        assert!(is_live("acme")(&flags) && place.fetches("older") > older);
        proxy.edit(numbered(1_000_101 + turn, "acme"));
        health(&flags, "the other one", |health| health.error.is_none()).await;
    }
    proxy.edit(numbered(1_000_099, "globex"));
    in_force(&flags, "what insists", is_live("globex")).await;
}
