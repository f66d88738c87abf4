//! An account that is armed.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_dead_an_armed_account_gets_503_and_what_temporal_owns_runs_on() {
    let mut postgres = own_postgres().await;
    let world = World::with(Some(postgres.url.clone()), None, Stage::Shadow).await;
    let node = world
        .node_with(ALL, |config| {
            fails_open(config);
            config.postgres.connect_timeout = Duration::from_secs(1);
        })
        .await;
    world.runner.hold("temporals");
    node.accepts(&world.request("temporals"), 201).await;
    world.runner.nth("temporals", 1).await;
    world.flip(Stage::Live, &[&node]).await;
    let armed = "select count(*) from crossover.accounts where state = 'armed'";
    until("it is armed", async || (world.scalar::<i64>(armed).await == 1).then_some(())).await;
    assert_eq!(node.accepts(&world.request("postgres"), 201).await.body["owner"], "postgres");
    world.succeeded("postgres").await;

    postgres.server.kill().await.unwrap();
    let refused: Vec<String> = (0..10).map(|n| format!("k{n}")).collect();
    for key in &refused {
        let answer = node.accepts(&world.request(key), 503).await;
        assert_eq!((&answer.headers["retry-after"].to_str().unwrap(), &answer.body["key"]), (&"1", &json!(key)));
    }
    let items = json!({ "interactions": [world.request("b0")] });
    let answer = crate::api::post(&node, "/v1/interactions/batch", &items).await;
    assert_eq!(answer.body["answers"][0]["status"], 503, "{answer:?}");
    world.runner.release("temporals");
    until("Temporal's own runs on", async || world.runner.of("temporals")[0].ended.map(drop)).await;

    postgres.server.restart().await.unwrap();
    world.succeeded("temporals").await;
    assert_eq!(metric(&node, "crossover_failed_open_total").await, 0.0);
    for key in refused.iter().map(String::as_str).chain(["b0"]) {
        // In doubt or not: what is there is Postgres', and nothing has run without a pin.
        assert!(world.runner.sides(key).iter().all(|side| side == "postgres"), "{key}");
        until("it is taken", async || matches!(node.post(&world.request(key)).await.status, 200 | 201).then_some(()))
            .await;
        assert_eq!(world.succeeded(key).await.pin.owner.as_str(), "postgres");
    }
    node.stop().await;
    postgres.server.stop().await.unwrap();
}
