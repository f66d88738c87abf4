//! Work that one process takes in reaches a worker of another without the poll.

use std::time::Duration;

use crossover::app::Roles;

use super::*;

/// No test waits for so long.
const NEVER: Duration = Duration::from_secs(100_000);

/// Of pinned copies and of tasks alike; the poll behind the wake-ups is as good as off.
async fn patient(world: &World, roles: Roles) -> Node {
    let node = world.node_with(roles, |config| {
        config.worker.poll = NEVER;
        config.worker.slots = 1;
    });
    node.await
}

async fn listeners(world: &World) -> i64 {
    world.scalar("select count(*) from pg_stat_activity where datname = current_database() and query ilike 'listen%crossover_ready%'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_router_takes_in_wakes_the_worker_of_another_process() {
    let world = World::new(Stage::Live).await;
    let (worker, router) = (patient(&world, WORKER).await, world.node_with(ROUTER, |_| {}).await);
    until("it listens", async || (listeners(&world).await == 1).then_some(())).await;
    for key in ["one", "two"] {
        router.accepts(&world.request(key), 201).await;
        world.succeeded(key).await;
    }
    router.stop().await;
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_finds_no_room_in_its_own_process_wakes_another() {
    let world = World::new(Stage::Live).await;
    let (full, idle) = (patient(&world, ALL).await, patient(&world, WORKER).await);
    until("both listen", async || (listeners(&world).await == 2).then_some(())).await;
    for held in ["held", "as well"] {
        world.runner.hold(held);
        full.accepts(&world.request(held), 201).await;
        world.runner.nth(held, 1).await;
    }
    world.runner.release("held");
    world.succeeded("held").await;
    world.runner.release("as well");
    full.stop().await;
    idle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_whose_connection_is_ended_hears_again() {
    let world = World::new(Stage::Live).await;
    let (worker, router) = (patient(&world, WORKER).await, world.node_with(ROUTER, |_| {}).await);
    until("it listens", async || (listeners(&world).await == 1).then_some(())).await;
    let ended: bool = world.scalar("select bool_and(pg_terminate_backend(pid)) from pg_stat_activity where datname = current_database() and query ilike 'listen%crossover_ready%'").await;
    assert!(ended);
    router.accepts(&world.request("one"), 201).await;
    world.succeeded("one").await;
    until("it listens again", async || (listeners(&world).await == 1).then_some(())).await;
    router.accepts(&world.request("two"), 201).await;
    world.succeeded("two").await;
    router.stop().await;
    worker.stop().await;
}
