//! Temporal down, and Temporal that takes connections and says nothing.

use crossover::interaction::Stage;

use super::valve::{Flow, Valve};
use super::*;
use crate::bridge::world::ALL;

const START: Duration = Duration::from_secs(4);
/// Far below a start's time-out: who is answered within it has not waited for Temporal.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn neither_owner_waits_for_a_temporal_that_is(flow: Flow) {
    let world = World::new(Stage::Shadow).await;
    let valve = Valve::before(&world.temporal).await;
    let node = world.node_towards(&valve.address, ALL, |config| config.temporal.start_timeout = START).await;
    node.accepts(&world.request("before"), 201).await;
    world.succeeded("before").await;
    valve.set(flow);
    // The first caller waits for one start at most, and then everybody knows.
    let began = Instant::now();
    node.accepts(&world.request("first"), 202).await;
    let first = began.elapsed();
    assert!(first < START + AT_ONCE, "{first:?}");
    knows(&node, true).await;
    let (pending, running) = (keys("pending", 20), keys("running", 20));
    let shadow = post_all(&world, &node, &pending, 202).await;
    world.flip(Stage::Live, &[&node]).await;
    let live = post_all(&world, &node, &running, 201).await;
    println!(
        "{flow:?}: the first 202 after {first:?}, then {shadow:?} (median and slowest of 20); 201 in live {live:?}"
    );
    assert!(shadow[1] < AT_ONCE && live[1] < AT_ONCE, "{shadow:?} {live:?}");
    // What Postgres owns runs, and what Temporal owns is neither run nor lost.
    world.each_ran_on_its_owner(&running).await;
    assert!(pending.iter().all(|key| world.runner.of(key).is_empty()));
    assert!(metric(&node, "crossover_deliveries_spared_total").await >= 40.0);
    valve.set(Flow::Open);
    knows(&node, false).await;
    all_ended(&world).await;
    let all = [pending, running, vec!["first".into()]].concat();
    world.each_ran_on_its_owner(&all).await;
    outbox(&world, 0).await;
    assert!(all.iter().all(|key| world.runner.of(key).len() == 1), "each ran once");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_owner_waits_for_a_temporal_that_is_down_and_nothing_is_lost() {
    neither_owner_waits_for_a_temporal_that_is(Flow::Down).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_owner_waits_for_a_temporal_that_hangs_and_nothing_is_lost() {
    neither_owner_waits_for_a_temporal_that_is(Flow::Silent).await;
}
