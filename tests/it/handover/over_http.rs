//! One interaction, over the API.

use super::*;
use crate::bridge::world::Answer;

async fn hand_over(node: &Node, id: impl std::fmt::Display) -> Answer {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = http.post(format!("{}/v1/interactions/{id}/handover", node.base)).send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.json().await.unwrap() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_never_began_moves_and_runs_on_temporal_and_what_did_stays() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.request("begun"), 201).await;
    assert_eq!(claim(&world).await.len(), 1);
    for key in ["waits", "called off"] {
        router.accepts(&world.request(key), 201).await;
    }
    let moved = hand_over(&router, world.id("waits")).await;
    assert_eq!((moved.status, &moved.body["state"]), (200, &json!("moved")), "{moved:?}");
    assert_eq!(owner(&world, "waits").await, (Side::Temporal, 2));
    let again = hand_over(&router, world.id("waits")).await;
    assert_eq!((again.status, &again.body["state"]), (200, &json!("temporal")), "{again:?}");
    assert_eq!(owner(&world, "waits").await, (Side::Temporal, 2), "once");

    let begun = hand_over(&router, world.id("begun")).await;
    assert!(begun.status == 409 && begun.detail().contains("was begun"), "{begun:?}");
    assert_eq!(owner(&world, "begun").await, (Side::Postgres, 1));
    world.ledger.cancel(world.id("called off"), "test").await.unwrap();
    let ended = hand_over(&router, world.id("called off")).await;
    assert!(ended.status == 409 && ended.detail().contains("has ended"), "{ended:?}");
    let nobody = hand_over(&router, world.id("unheard of")).await;
    assert_eq!(nobody.status, 404, "{nobody:?}");
    assert_eq!(hand_over(&router, "7").await.status, 422);

    let asked = "select array_agg(who || ' ' || moved || ' ' || refused order by id) from crossover.handovers
        where ended_at is not null";
    assert_eq!(world.scalar::<Vec<String>>(asked).await, ["the API 1 0", "the API 0 1"]);
    let worker = world.node_with(WORKER, |_| {}).await;
    ran_on_temporal(&world, &["waits".to_owned()]).await;
    worker.stop().await;
    router.stop().await;
}
