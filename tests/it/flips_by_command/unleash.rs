//! Flips in a real Unleash, by its admin API.

use std::time::Duration;

use crossover::config::{Config, FlagSource, Secret, SecretUrl};
use crossover::provision::Unleash;
use reqwest::Method;
use serde_json::json;

use super::*;
use crate::servers;

pub fn follows(config: &mut Config, unleash: &Unleash) {
    config.flags.source = FlagSource::Unleash;
    config.flags.url = Some(SecretUrl::new(&unleash.url));
    config.flags.token = Some(Secret::new(&unleash.backend_token));
    config.flags.admin_token = Some(Secret::new(&unleash.admin_token));
    config.flags.interval = Duration::from_millis(200);
}

pub fn variables(unleash: &Unleash) -> Vec<(&'static str, &str)> {
    vec![
        ("CROSSOVER_FLAGS_SOURCE", "unleash"),
        ("CROSSOVER_FLAGS_URL", &unleash.url),
        ("CROSSOVER_FLAGS_TOKEN", &unleash.backend_token),
        ("CROSSOVER_FLAGS_ADMIN_TOKEN", &unleash.admin_token),
        ("CROSSOVER_FLAGS_INTERVAL", "200ms"),
    ]
}

fn place(unleash: &Unleash) -> Place {
    let mut config = Config::defaults();
    follows(&mut config, unleash);
    Place::of(&config.flags).unwrap()
}

/// What a person does in Unleash's pages, by the API that they use.
async fn admin(unleash: &Unleash, method: Method, path: &str, body: Value) -> Value {
    let url = format!("{}/api/admin/projects/default/features/{path}", unleash.url);
    let request = reqwest::Client::new().request(method, url).header("Authorization", &unleash.admin_token);
    let request = if body.is_null() { request } else { request.json(&body) };
    let answer = request.send().await.unwrap();
    let (status, text) = (answer.status(), answer.text().await.unwrap());
    assert!(status.is_success(), "{status} {text}");
    serde_json::from_str(&text).unwrap_or_default()
}

/// Lists an account in the first strategy of a flag, as a person would: the strategy is saved whole.
async fn by_hand(unleash: &Unleash, flag: &str, account: &str) {
    let environment = format!("{flag}/environments/development");
    let mut strategy = admin(unleash, Method::GET, &environment, Value::Null).await["strategies"][0].clone();
    strategy["constraints"][0]["values"].as_array_mut().unwrap().push(account.into());
    let path = format!("{environment}/strategies/{}", strategy["id"].as_str().unwrap());
    admin(unleash, Method::PUT, &path, strategy).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_in_unleash_is_seen_by_every_router_and_a_person_s_edit_is_a_decision() {
    let unleash = servers::unleash().await;
    let world = World::new(Stage::Off).await;
    let one = world.node_with(ROUTER, |config| follows(config, unleash)).await;
    let other = Child::serve(&world, "router", &variables(unleash)).await;
    let (account, set) = (world.account.as_str(), variables(unleash));

    let (code, said) = run_with(&world, &["cutover", account, "--reason", "ready", "--yes"], &set).await;
    assert_eq!((code, said["from"].as_str()), (0, Some("off")), "{said}");
    assert_eq!(said["routers"].as_array().unwrap().len(), 2, "{said}");
    assert!(said["revision"].as_str().unwrap().starts_with("unleash:"), "{said}");
    for (n, node) in [&one, &other.node].into_iter().enumerate() {
        assert_eq!(stage_of(node, &world, &format!("live {n}")).await, "live");
    }
    let (code, said) = run_with(&world, &["rollback", account, "--yes"], &set).await;
    assert_eq!((code, said["changes"].as_array().unwrap().len()), (0, 1), "{said}");
    for (n, node) in [&one, &other.node].into_iter().enumerate() {
        assert_eq!(stage_of(node, &world, &format!("shadow {n}")).await, "shadow");
    }
    by_hand(unleash, "crossover-live", account).await;
    let told = until("a router has seen the person's edit", async || {
        let rows = decisions(&world, 2).await;
        rows.iter().rev().find(|row| row["to"] == "live" && row["who"].is_null()).cloned()
    })
    .await;
    assert_eq!(told["source"], "unleash");
    assert_eq!(decisions(&world, 2).await[0]["who"], "ana@bastion");
    one.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_between_reading_and_writing_is_planned_around_and_nothing_is_lost() {
    // Nobody else's: an edit in the very milliseconds of Unleash's own reading and writing could be lost (docs/flips.md).
    let unleash = &servers::own_unleash().await;
    let place = place(unleash);
    let wish = |account: &str, stage| Wish { account: account.to_owned(), kind: None, stage };
    let known = Known::default();
    let planned = place.plan(&wish("flips-mine", Stage::Live), &known).await.unwrap();
    by_hand(unleash, "crossover-live", "flips-theirs").await;
    by_hand(unleash, "crossover-shadow", "flips-theirs").await;
    flips::flip(&place, None, planned, &known, ("ana", None), Duration::from_secs(5)).await.unwrap();
    for account in ["flips-mine", "flips-theirs"] {
        let now = place.plan(&wish(account, Stage::Live), &known).await.unwrap();
        assert!(now.plan.changes.is_empty(), "{account}: {:?}", now.plan.changes);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_come_and_go_in_unleash_and_no_list_is_left_empty() {
    let unleash = servers::own_unleash().await;
    let (place, known) = (place(&unleash), Known::default());
    let flip = async |kind: Option<&str>, stage| {
        let wish = Wish { account: "acme".to_owned(), kind: kind.map(str::to_owned), stage };
        let planned = place.plan(&wish, &known).await.unwrap();
        flips::flip(&place, None, planned, &known, ("ana", None), Duration::from_secs(5)).await.unwrap();
    };
    flip(Some("webhook"), Stage::Live).await;
    flip(None, Stage::Live).await;
    flip(Some("webhook"), Stage::Shadow).await;
    flip(None, Stage::Complete).await;
    flip(None, Stage::Off).await;
    for flag in ["crossover-shadow", "crossover-live", "crossover-complete"] {
        let found = admin(&unleash, Method::GET, &format!("{flag}/environments/development"), Value::Null).await;
        assert_eq!(found["enabled"], true);
        for strategy in found["strategies"].as_array().unwrap() {
            let values = strategy["constraints"][0]["values"].as_array().unwrap();
            assert_eq!(values, &[json!("crossover:nobody")], "{flag}: {strategy}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_that_is_off_in_unleash_is_enabled_only_with_its_strategy_in_place() {
    let unleash = servers::own_unleash().await;
    let (place, known) = (place(&unleash), Known::default());
    admin(&unleash, Method::POST, "crossover-live/environments/development/off", json!({})).await;
    let wish = Wish { account: "acme".to_owned(), kind: None, stage: Stage::Live };
    let planned = place.plan(&wish, &known).await.unwrap();
    flips::flip(&place, None, planned, &known, ("ana", None), Duration::from_secs(5)).await.unwrap();
    let found = admin(&unleash, Method::GET, "crossover-live/environments/development", Value::Null).await;
    assert_eq!((&found["enabled"], found["strategies"].as_array().unwrap().len()), (&json!(true), 1), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_works_while_unleash_is_away_and_a_flip_says_that_it_is() {
    let mut unleash = servers::own_unleash().await;
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ROUTER, |config| follows(config, &unleash)).await;
    unleash.server.kill().await.unwrap();
    let (account, set) = (world.account.as_str(), variables(&unleash));
    let (code, said) = run_with(&world, &["cutover", account, "--yes"], &set).await;
    assert_eq!(code, 1);
    assert!(said["error"].as_str().unwrap().contains("Unleash can't be asked"), "{said}");
    let order = ["override", account, "--stage", "live", "--for", "1m", "--reason", "unleash is down", "--yes"];
    let (code, said) = run_with(&world, &order, &set).await;
    assert_eq!(code, 0, "{said}");
    assert_eq!(stage_of(&node, &world, "during").await, "live");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_may_not_is_named_and_never_shown() {
    let unleash = servers::unleash().await;
    let world = World::new(Stage::Off).await;
    let mut set = variables(unleash);
    set.push(("CROSSOVER_FLAGS_ADMIN_TOKEN", &unleash.backend_token));
    let (code, said) = run_with(&world, &["cutover", "acme", "--yes"], &set).await;
    assert_eq!(code, 1);
    let error = said["error"].as_str().unwrap();
    assert!(error.contains("flags.admin_token") && !error.contains(&unleash.backend_token), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flag_that_is_odd_or_missing_in_unleash_keeps_only_its_own_changes_from_being_made() {
    let unleash = servers::own_unleash().await;
    let (mut config, known) = (Config::defaults(), Known::default());
    follows(&mut config, &unleash);
    let place = Place::of(&config.flags).unwrap();
    let flip = async |place: &Place, stage| {
        let wish = Wish { account: "acme".to_owned(), kind: None, stage };
        let planned = place.plan(&wish, &known).await.map_err(|error| error.to_string())?;
        let notes = planned.notes();
        let flipped = flips::flip(place, None, planned, &known, ("ana", None), Duration::from_secs(5)).await;
        flipped.map(|_| notes).map_err(|error| error.to_string())
    };
    // It asks for addresses, of which two routers know different ones.
    let odd = json!({ "name": "remoteAddress", "constraints": [], "parameters": { "IPs": "" } });
    admin(&unleash, Method::POST, "crossover-complete/environments/development/strategies", odd).await;
    let notes = flip(&place, Stage::Live).await.unwrap();
    assert!(notes.len() == 1 && notes[0].contains("remoteAddress"), "{notes:?}");
    assert!(flip(&place, Stage::Complete).await.unwrap_err().contains("remoteAddress"));

    // Archived alone, its environments still answer to the admin API.
    admin(&unleash, Method::DELETE, "crossover-complete", Value::Null).await;
    let notes = flip(&place, Stage::Shadow).await.unwrap();
    assert!(notes.len() == 1 && notes[0].contains("archived crossover-complete"), "{notes:?}");
    let refused = flip(&place, Stage::Complete).await.unwrap_err();
    assert!(refused.contains("archived crossover-complete") && refused.contains("revive"), "{refused}");
    let archive = format!("{}/api/admin/archive/crossover-complete", unleash.url);
    let deleted = reqwest::Client::new().delete(archive).header("Authorization", &unleash.admin_token).send().await;
    assert!(deleted.unwrap().status().is_success());
    let notes = flip(&place, Stage::Shadow).await.unwrap();
    assert!(notes.len() == 1 && notes[0].contains("Unleash has no crossover-complete"), "{notes:?}");
    assert!(flip(&place, Stage::Complete).await.unwrap_err().contains("Unleash has no crossover-complete"));
    config.flags.accept_missing = vec!["crossover-complete"];
    let accepting = Place::of(&config.flags).unwrap();
    assert_eq!(flip(&accepting, Stage::Live).await.unwrap(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flip_of_an_archived_flag_is_refused_at_once_and_so_is_one_of_an_account_that_it_lists() {
    let unleash = servers::own_unleash().await;
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ROUTER, |config| follows(config, &unleash)).await;
    let (account, set) = (world.account.as_str(), variables(&unleash));
    let (code, said) = run_with(&world, &["cutover", account, "--yes"], &set).await;
    assert_eq!(code, 0, "{said}");
    admin(&unleash, Method::DELETE, "crossover-live", Value::Null).await;
    // Routers keep its last definition, by which this account is live whatever else is changed.
    for order in [["cutover", "somebody-else", "--yes"], ["rollback", account, "--yes"], ["shadow", account, "--yes"]] {
        let (code, said) = run_with(&world, &order, &set).await;
        let error = said["error"].as_str().unwrap_or_else(|| panic!("{order:?}: {said}"));
        assert!(
            code == 1 && error.contains("archived crossover-live") && error.contains("revive"),
            "{order:?}: {error}"
        );
    }
    let revived = format!("{}/api/admin/projects/default/revive", unleash.url);
    let request = reqwest::Client::new().post(revived).header("Authorization", &unleash.admin_token);
    let answer = request.json(&json!({ "features": ["crossover-live"] })).send().await.unwrap();
    assert!(answer.status().is_success(), "{answer:?}");
    node.stop().await;
}

/// Unleash adds a strategy whatever stands there meanwhile; the read after it sees both, and the second is emptied by a
/// compare-and-set.
#[tokio::test(flavor = "multi_thread")]
async fn operators_who_add_strategies_at_once_leave_each_account_listed_once_and_with_a_way_back() {
    const OPERATORS: usize = 4;
    let unleash = servers::own_unleash().await;
    let (place, known) = (place(&unleash), Known::default());
    // A kind of its own needs a strategy of its own, which nobody has yet.
    let wish = |account: &str, stage| Wish { account: account.to_owned(), kind: Some("webhook".to_owned()), stage };
    let flip = async |account: &str, stage| {
        let planned = place.plan(&wish(account, stage), &known).await?;
        flips::flip(&place, None, planned, &known, ("ana", None), Duration::from_secs(5)).await
    };
    let added = futures::future::join_all(
        (0..OPERATORS).map(|n| flip(if n % 2 == 0 { "acme" } else { "umbrella" }, Stage::Live)),
    );
    for made in added.await {
        made.unwrap();
    }
    let listings = async |flag: &str, account: &str| {
        let found = admin(&unleash, Method::GET, &format!("{flag}/environments/development"), Value::Null).await;
        let lists = |strategy: &&Value| strategy["constraints"].to_string().contains(&format!("{account:?}"));
        (found["strategies"].as_array().unwrap().iter().filter(lists).count(), found)
    };
    for account in ["acme", "umbrella"] {
        for flag in ["crossover-shadow", "crossover-live"] {
            let (times, found) = listings(flag, account).await;
            assert_eq!(times, 1, "{account} in {flag}: {found:#}");
        }
        let now = place.plan(&wish(account, Stage::Live), &known).await.unwrap();
        assert!(now.plan.from == Stage::Live && now.plan.changes.is_empty(), "{account}: {:?}", now.plan.changes);
        flip(account, Stage::Off).await.unwrap();
        assert_eq!(listings("crossover-live", account).await.0, 0);
    }
}
