//! Who may do what.

use crossover::config::tokens::{Scope, Token, digest};

use super::*;
use crate::bridge::child::Child;

fn token(name: &str, scopes: &[Scope]) -> Token {
    Token { name: name.to_owned(), scopes: scopes.to_vec(), groups: None, digest: digest(&format!("secret of {name}")) }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_route_asks_for_its_scope_and_health_for_none() {
    let world = World::new(Stage::Live).await;
    let tokens = vec![token("in", &[Scope::Enqueue]), token("eyes", &[Scope::Read]), token("hands", &[Scope::Operate])];
    let node = world.node_with(ALL, |config| config.http.tokens = Some(tokens)).await;
    let (id, wait) = (world.id("one"), "/v1/interactions?wait=5s");
    let routes = [
        (Method::POST, "/v1/interactions".to_owned(), "in"),
        (Method::POST, "/v1/interactions/batch".to_owned(), "in"),
        (Method::GET, format!("/v1/interactions/{id}"), "eyes"),
        (Method::GET, "/metrics".to_owned(), "eyes"),
        (Method::POST, format!("/v1/interactions/{id}/cancel"), "hands"),
    ];
    for (method, path, allowed) in routes {
        let asks = async |bearer: Option<String>| {
            let headers: Vec<_> = bearer.iter().map(|b| ("authorization", b.as_str())).collect();
            ask(&node, method.clone(), &path, &headers, Some(world.request("one").to_string().into_bytes())).await
        };
        for refused in [asks(None).await, asks(Some("Bearer nonsense".to_owned())).await] {
            is_problem(&refused, 401);
            assert!(refused.headers["www-authenticate"].to_str().unwrap().starts_with("Bearer"), "{refused:?}");
        }
        for name in ["in", "eyes", "hands"] {
            let answer = asks(Some(format!("Bearer secret of {name}"))).await;
            if name == allowed {
                assert!(!matches!(answer.status, 401 | 403), "{path} with {name}: {answer:?}");
            } else {
                is_problem(&answer, 403);
                let scope = answer.body["scope"].as_str().unwrap();
                assert!(answer.detail().contains(scope) && answer.detail().contains(name), "{answer:?}");
                assert!(answer.headers["www-authenticate"].to_str().unwrap().contains(scope));
            }
        }
    }
    let held = ask(&node, Method::POST, wait, &[("authorization", "Bearer secret of in")], Some(b"{}".to_vec())).await;
    assert_eq!((held.status, &held.body["scope"]), (403, &json!("read")), "a result is read");
    for path in ["/healthz", "/readyz", "/openapi.json"] {
        assert_eq!(node.get(path).await.status, 200, "{path}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_made_token_opens_and_its_name_and_request_id_are_logged_but_never_the_token() {
    let world = World::new(Stage::Complete).await;
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"))
        .args(["token", "new", "--name", "billing \"1\"", "--scope", "enqueue,read"])
        .output()
        .unwrap();
    let said = String::from_utf8(made.stdout).unwrap();
    let token = said.lines().next().unwrap();
    let file = world.fresh("tokens");
    std::fs::write(&file, said.split("\n\n").last().unwrap()).unwrap();
    let set = [("CROSSOVER_HTTP_TOKENS_FILE", file.to_str().unwrap()), ("CROSSOVER_LOG_FILTER", "debug,h2=off")];
    let child = Child::serve(&world, "router", &set).await;
    let headers = [("authorization", &*format!("Bearer {token}")), ("x-request-id", "mine-1")];
    let body = Some(world.request("one").to_string().into_bytes());
    let answer = ask(&child.node, Method::POST, "/v1/interactions", &headers, body.clone()).await;
    assert_eq!((answer.status, &answer.headers["x-request-id"]), (201, &HeaderValue::from_static("mine-1")));
    let refused = ask(&child.node, Method::POST, "/v1/interactions", &[("x-request-id", "a b")], body).await;
    is_problem(&refused, 401);
    assert_ne!(refused.headers["x-request-id"], "a b", "an id that a log can't carry is not taken");
    let log = child.log();
    let line = log.lines().find(|line| line.contains("mine-1")).expect("a line of the request");
    assert!(line.contains("billing"), "{line}");
    assert!(!log.contains(token) && !log.contains(&token[4..]), "the token is in the log");
}

#[test]
fn serving_strangers_without_tokens_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_crossover"))
        .args(["serve"])
        .current_dir(folder.path())
        .env("CROSSOVER_HTTP_LISTEN", "0.0.0.0:0")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("http.listen") && said.contains("crossover token new"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_for_the_work_of_some_groups_has_none_of_the_others() {
    let world = World::new(Stage::Complete).await;
    let mine = Token { groups: Some(vec!["remote.mine".to_owned()]), ..token("mine", &[Scope::Work]) };
    let tokens = vec![token("in", &[Scope::Enqueue]), token("all", &[Scope::Work]), mine];
    let node = world.node_with(ALL, |config| config.http.tokens = Some(tokens)).await;
    let asks = async |who: &str, path: &str, body: serde_json::Value| {
        let bearer = format!("Bearer secret of {who}");
        ask(&node, Method::POST, path, &[("authorization", &*bearer)], Some(body.to_string().into_bytes())).await
    };
    for group in ["remote.mine", "remote.theirs"] {
        let request = crate::bridge::world::with(world.request(group), json!({ "group": group }));
        assert_eq!(asks("in", "/v1/interactions", request).await.status, 201);
    }
    let take = json!({ "worker": "w" });
    for what in ["dequeue", "heartbeat", "complete", "fail"] {
        let refused = asks("mine", &format!("/v1/groups/remote.theirs/{what}"), take.clone()).await;
        is_problem(&refused, 403);
        assert!(refused.detail().contains("«remote.mine» alone"), "{refused:?}");
    }
    let items = async |who: &str, group: &str| {
        let answer = asks(who, &format!("/v1/groups/{group}/dequeue"), take.clone()).await;
        answer.body["items"].as_array().unwrap().clone()
    };
    let (own, other) = (items("mine", "remote.mine").await, items("all", "remote.theirs").await);
    assert_eq!((own.len(), other.len()), (1, 1));
    let ends = async |item: &serde_json::Value, what: &str| {
        let path = format!("/v1/interactions/{}/{what}", item["id"].as_str().unwrap());
        asks("mine", &path, json!({ "fence": item["fence"] })).await.status
    };
    for what in ["heartbeat", "complete", "fail"] {
        assert_eq!(ends(&other[0], what).await, 403, "{what}");
    }
    assert_eq!((ends(&own[0], "heartbeat").await, ends(&own[0], "complete").await), (200, 200));
    node.stop().await;
}
