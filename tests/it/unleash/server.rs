//! Facts about the Unleash that crossover starts.

use reqwest::StatusCode;

use crate::provision::{Parent, accepts, is_empty, shared_folder, wait_until};
use crate::servers;

async fn get(url: &str, token: &str) -> (StatusCode, String) {
    let answer = reqwest::Client::new().get(url).header("Authorization", token).send().await.unwrap();
    (answer.status(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_killed_unleash_restarts_with_its_flags_and_tokens() {
    let mut unleash = servers::own_unleash().await;
    let features = format!("{}/api/client/features", unleash.url);
    let before = get(&features, &unleash.backend_token).await;
    assert_eq!(before.0, StatusCode::OK, "{}", before.1);
    unleash.server.kill().await.unwrap();
    assert!(!unleash.server.is_running());
    assert!(reqwest::get(&features).await.is_err());
    unleash.server.restart().await.unwrap();
    assert_eq!(get(&features, &unleash.backend_token).await, before);
    assert_eq!(get(&features, "*:development.nobody").await.0, StatusCode::UNAUTHORIZED);
    unleash.server.stop().await.unwrap();
    assert!(reqwest::get(&features).await.is_err());
}

#[tokio::test]
async fn unleash_ends_when_its_parent_is_killed() {
    servers::unleash().await;
    let temp = shared_folder();
    let mut parent = Parent::start(temp.path(), |command| command.arg("--unleash"));
    let ports = parent.ports();
    assert!(ports.iter().copied().all(accepts));
    parent.kill();
    wait_until("every port refuses", || !ports.iter().copied().any(accepts));
    wait_until("throwaway data is removed", || is_empty(temp.path()));
}
