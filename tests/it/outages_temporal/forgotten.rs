//! A Temporal that has forgotten what it did.

use crossover::app::Roles;
use crossover::interaction::Stage;
use crossover::provision;

use super::*;
use crate::bridge::proxy::Proxy;
use crate::bridge::world::{ROUTER, WORKER};
use crate::servers;

#[tokio::test(flavor = "multi_thread")]
async fn an_outbox_replayed_after_temporal_forgot_the_workflow_runs_nothing_again_that_has_ended() {
    let world = World::new(Stage::Shadow).await;
    let proxy = Proxy::to(&world.temporal).await;
    let slow = |config: &mut crossover::config::Config| config.relay.grace = Duration::from_secs(3_600);
    let router = world.node_towards(&proxy.address, ROUTER, slow).await;
    let worker = world.node_with(Roles { relay: false, ..WORKER }, |_| {}).await;
    router.accepts(&world.request("before"), 201).await;
    world.succeeded("before").await;
    outbox(&world, 0).await;
    // Temporal gets it and nobody hears so: the row stays, whatever comes of the work.
    proxy.withhold_answers();
    let member = world.member("s", "member");
    let (single, member) = tokio::join!(async { router.post(&world.request("single")).await }, router.post(&member));
    assert_eq!((single.status, member.status), (202, 202));
    for key in ["single", "member"] {
        world.succeeded(key).await;
    }
    outbox(&world, 2).await;
    knows(&router, true).await;
    proxy.answer();
    knows(&router, false).await;
    // This one Temporal has, and nobody there takes it.
    worker.stop().await;
    router.accepts(&world.request("lost"), 201).await;
    outbox(&world, 2).await;
    router.stop().await;

    let mut empty = provision::temporal(&servers::options()).await.unwrap();
    sqlx::query("update crossover.outbox set due_at = now()").execute(world.pool()).await.unwrap();
    let sweeping = |config: &mut crossover::config::Config| config.relay.sweep_after = Duration::from_secs(1);
    let node = world.node_towards(&empty.address, WORKER, sweeping).await;
    outbox(&world, 0).await;
    assert_eq!(metric(&node, "crossover_relayed_total{outcome=\"ended\"}").await, 2.0);
    // What had not ended runs there: the ledger knows of it, so nothing is lost with Temporal's memory.
    world.succeeded("lost").await;
    for key in ["before", "single", "member", "lost"] {
        assert_eq!(world.runner.of(key).len(), 1, "{key} ran once: {:?}", world.runner.of(key));
    }
    node.stop().await;
    empty.server.stop().await.unwrap();
}
