//! Cancelling during a handover: it wins in either order, unless it has run by then.

use reqwest::Method;

use super::*;
use crate::bridge::proxy::black_hole;
use crossover::interaction::Outcome;

pub(super) async fn cancel(node: &Node, world: &World, key: &str) -> (u16, Value) {
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v1/interactions/{}/cancel", node.base, world.id(key));
    let sent = http.request(Method::POST, url).send().await.unwrap();
    (sent.status().as_u16(), sent.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_first_it_is_not_handed_over() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 201).await;
    let mut open = world.pool().begin().await.unwrap();
    let asked: Option<String> = sqlx::query_scalar("select answer from crossover.cancel($1, 'test')")
        .bind(world.id("one"))
        .fetch_one(&mut *open)
        .await
        .unwrap();
    assert_eq!(asked.as_deref(), Some("cancelled"));
    assert_eq!(ask(&world, "one").await, "busy");
    open.commit().await.unwrap();
    assert_eq!(ask(&world, "one").await, "ended");
    assert_eq!(owner(&world, "one").await, (Side::Postgres, 1));
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cancelled_while_the_handover_commits_it_waits_for_it_and_wins_on_temporal() {
    let world = World::new(Stage::Live).await;
    let router = world.node_towards(&black_hole().await, ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 201).await;
    let mut open = world.pool().begin().await.unwrap();
    let moved = sqlx::query("select answer from crossover.hand_over(0, $1, $2)");
    moved.bind(&world.account).bind([world.id("one")].as_slice()).fetch_one(&mut *open).await.unwrap();
    let ((status, _), ()) = tokio::join!(cancel(&router, &world, "one"), async {
        somebody_waits(&world).await;
        open.commit().await.unwrap();
    });
    assert_eq!(status, 202);
    assert_eq!(ask(&world, "one").await, "temporal");
    let worker = world.node_with(WORKER, |_| {}).await;
    let story = world.ended("one").await;
    assert_eq!((story.pin.outcome, story.pin.epoch), (Some(Outcome::Cancelled), 2), "{story:#?}");
    assert!(world.runner.of("one").is_empty());
    let left = "select (select count(*) from crossover.ready) + (select count(*) from crossover.scheduled)
        + (select count(*) from crossover.outbox)";
    until("no copy is left", async || (world.scalar::<i64>(left).await == 0).then_some(())).await;
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handed_over_and_running_it_is_cancelled_on_temporal() {
    let world = World::new(Stage::Live).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    router.accepts(&world.request("one"), 201).await;
    assert_eq!(run(&world, everything(&world)).await.moved, 1);
    world.runner.hold("one");
    let worker = world.node_with(WORKER, |config| config.worker.lease = Duration::from_secs(3)).await;
    world.runner.nth("one", 1).await;
    assert!(matches!(cancel(&router, &world, "one").await.0, 200 | 202));
    let story = world.ended("one").await;
    assert_eq!((story.pin.outcome, story.pin.epoch), (Some(Outcome::Cancelled), 2), "{story:#?}");
    assert_eq!(world.runner.sides("one"), ["temporal"]);
    worker.stop().await;
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_handed_over_and_cancelled_does_not_hold_up_its_series() {
    let world = World::new(Stage::Complete).await;
    let node = world.node().await;
    world.runner.hold("first");
    for key in ["first", "second"] {
        node.accepts(&world.member("s", key), 201).await;
    }
    world.runner.nth("first", 1).await;
    world.flip(Stage::Shadow, &[&node]).await;
    node.post(&world.member("s", "third")).await;
    assert_eq!(run(&world, everything(&world)).await.moved, 1);
    assert!(matches!(cancel(&node, &world, "second").await.0, 200 | 202));
    assert_eq!(world.ended("second").await.pin.outcome, Some(Outcome::Cancelled));
    world.runner.release("first");
    world.each_ran_on_its_owner(&["first", "third"].map(str::to_owned)).await;
    assert!(world.runner.of("second").is_empty());
    node.stop().await;
}
