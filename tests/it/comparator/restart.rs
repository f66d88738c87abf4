//! A comparator that was away goes on where it stood, and says `incomplete` where it was away for too long.

use chrono::Utc;
use crossover::app::Roles;
use crossover::comparator::caught_up;
use crossover::interaction::Stage;

use super::*;
use crate::bridge::PATIENCE;

const BUSY: Roles = Roles { router: true, worker: true, relay: false };
const RELAY: Roles = Roles { router: false, worker: false, relay: true };

async fn enqueue(world: &World, node: &Node, name: &str) -> Vec<String> {
    let keys: Vec<String> = (0..4).map(|n| format!("{name}-{n}")).collect();
    for key in &keys {
        node.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparator_that_was_away_goes_on_where_it_stood() {
    let world = World::new(Stage::Shadow).await;
    let (busy, relay) = (world.node_with(BUSY, quick).await, world.node_with(RELAY, quick).await);
    let mut keys = enqueue(&world, &busy, "before").await;
    world.runner.hold("through");
    busy.accepts(&world.request("through"), 201).await;
    world.runner.nth("through", 1).await;
    until("it is taken notice of", async || row(&world, world.id("through")).await).await;
    relay.stop().await;
    keys.extend(enqueue(&world, &busy, "away").await);
    world.runner.release("through");
    world.succeeded("through").await;
    assert!(row(&world, world.id("away-0")).await.is_none(), "nobody compares");

    let until_now = Utc::now();
    let (relay, second) = (world.node_with(RELAY, quick).await, world.node_with(RELAY, quick).await);
    assert_eq!(caught_up(world.pool(), until_now, PATIENCE).await.unwrap(), Some(0));
    keys.extend(enqueue(&world, &busy, "after").await);
    keys.push("through".to_owned());
    for key in &keys {
        matched(&world, key).await;
    }
    scores_agree(&world).await;
    for node in [busy, relay, second] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparator_that_was_away_for_too_long_says_incomplete_for_the_gap() {
    let world = World::new(Stage::Shadow).await;
    let soon = |config: &mut Config| {
        quick(config);
        config.comparator.catch_up = Duration::from_secs(2);
    };
    let (busy, relay) = (world.node_with(BUSY, soon).await, world.node_with(RELAY, soon).await);
    for key in enqueue(&world, &busy, "before").await {
        matched(&world, &key).await;
    }
    world.runner.hold("open");
    busy.accepts(&world.request("open"), 201).await;
    until("it is taken notice of", async || row(&world, world.id("open")).await).await;
    relay.stop().await;
    let gap = enqueue(&world, &busy, "gap").await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let relay = world.node_with(RELAY, soon).await;
    for key in &gap {
        verdict(&world, key, "incomplete").await;
    }
    verdict(&world, "open", "incomplete").await;
    for key in enqueue(&world, &busy, "after").await {
        matched(&world, &key).await;
    }
    // What is seen of it later opens the case again.
    world.runner.release("open");
    until("it is matched after all", async || {
        row(&world, world.id("open")).await.filter(|judged| judged.verdict == "matched")
    })
    .await;
    scores_agree(&world).await;
    busy.stop().await;
    relay.stop().await;
}
