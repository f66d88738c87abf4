//! `/openapi.json` describes what is served, and nothing else.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn every_described_route_answers_and_only_with_its_methods() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(ROUTER, |_| {}).await;
    let document = node.get("/openapi.json").await.body;
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{document}");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(document["info"]["x-sha256"].as_str().unwrap().len(), 64);
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 8, "{paths:?}");
    for (path, operations) in paths {
        let concrete = path.replace("{id}", &world.id("none").to_string());
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            let described = operations.get(method.as_str().to_lowercase()).is_some();
            let answer = ask(&node, method.clone(), &concrete, &[], Some(b"{}".to_vec())).await;
            assert_eq!(answer.status != 405, described, "{method} {path}: {answer:?}");
            assert!(!answer.body["detail"].as_str().is_some_and(|d| d.contains("there is nothing at")), "{path}");
        }
    }
    node.stop().await;
}

#[test]
fn no_route_is_served_without_being_described() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    for file in std::fs::read_dir(folder).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        for way_around in [".route(", ".nest(", "route_service(", "axum::routing"] {
            assert!(!text.contains(way_around), "{way_around} adds a route that /openapi.json knows nothing of");
        }
    }
}
