//! What a barrier waits for, and on whom.

use super::gate::Gate;
use super::*;
use crate::bridge::child::Child;
use crate::bridge::proxy::Proxy;
use crate::bridge::world::{ALL, ROUTER};

/// Every process has acknowledged but one.
async fn until_all_but_one_have(world: &World) {
    until("all have acknowledged but one", async || {
        let missing = "select (select count(*) from crossover.routers where ended_at is null) - (select count(*) from crossover.arming_acks)";
        (world.scalar::<i64>(missing).await == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_cut_off_from_postgres_blocks_the_barrier_until_it_answers() {
    let world = World::new(Stage::Off).await;
    let (gate, through) = Gate::to_postgres(&world.postgres).await;
    let node = world.node_with(ALL, arming).await;
    let cut_off = world.node_between(&through, &world.temporal, ROUTER, arming).await;
    unpinned(&world, &cut_off, "before").await;
    gate.shut();
    unpinned(&world, &cut_off, "cut off").await;
    world.flip(Stage::Shadow, &[&node]).await;
    stage_of(&world, &node, "shadowed").await;
    until_all_but_one_have(&world).await;
    let (state, said) = until_it_waits_for(&world, "silent for").await;
    let port = cut_off.base.rsplit_once(':').unwrap().1.to_owned();
    assert!(state == "pinning" && said.contains(&port), "{said}");
    gate.open();
    until_state(&world, "window").await;
    cut_off.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_comes_without_its_disk_registers_anew_and_the_old_entry_blocks_until_it_is_forgotten() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, arming).await;
    let mut gone = Child::serve(&world, "router", &ARMING).await;
    unpinned(&world, &gone.node, "before").await;
    gone.kill();
    let again = Child::serve(&world, "router", &ARMING).await;
    let (_, routers) = run(&world, &["routers"]).await;
    assert_eq!(routers.as_array().unwrap().len(), 3, "{routers}");
    world.flip(Stage::Shadow, &[&node]).await;
    stage_of(&world, &node, "shadowed").await;
    until_all_but_one_have(&world).await;
    let (_, said) = until_it_waits_for(&world, "silent for").await;
    let port = gone.node.base.rsplit_once(':').unwrap().1;
    assert!(said.contains(port), "{said}");

    let old = routers.as_array().unwrap().iter().find(|r| r["name"].as_str().unwrap().ends_with(port)).unwrap();
    let id = old["id"].as_str().unwrap();
    let (code, refused) = run(&world, &["routers", "--forget", id, "--yes"]).await;
    let why = refused["error"].as_str().unwrap();
    assert!(code == 1 && why.contains("started again on its state_dir") && why.contains("for 1h"), "{refused}");
    let (code, _) = run(&world, &["routers", "--forget", id, "--disk-gone"]).await;
    assert_eq!((code, state(&world).await.unwrap().0.as_str()), (2, "pinning"), "not without --yes");
    let (code, _) = run(&world, &["routers", "--forget", id, "--disk-gone", "--yes"]).await;
    assert_eq!(code, 0);
    until_state(&world, "window").await;
    drop(again);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_start_in_flight_delays_the_acknowledgement_until_its_outcome_is_known() {
    let world = World::new(Stage::Off).await;
    let proxy = Proxy::to(&world.temporal).await;
    let node = world.node_with(ALL, arming).await;
    let hanging = world.node_towards(&proxy.address, ROUTER, arming).await;
    unpinned(&world, &hanging, "warm").await;
    proxy.withhold_answers();
    let in_doubt = hanging.accepts(&world.request("in doubt"), 503).await;
    assert!(in_doubt.detail().contains("unknown whether"), "{in_doubt:?}");
    world.flip(Stage::Shadow, &[&node, &hanging]).await;
    stage_of(&world, &node, "shadowed").await;
    until_all_but_one_have(&world).await;
    let (state, said) = until_it_waits_for(&world, "1 starts without a pin in doubt").await;
    let port = hanging.base.rsplit_once(':').unwrap().1.to_owned();
    assert!(state == "pinning" && said.contains(&port), "{said}");
    proxy.answer();
    until_state(&world, "window").await;
    // It was repeated by its router, so it ran although its caller never came back; and once.
    world.runner.nth("in doubt", 1).await;
    assert_eq!(world.runner.of("in doubt").len(), 1);
    hanging.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_with_a_start_in_doubt_does_not_deregister() {
    let world = World::new(Stage::Off).await;
    let proxy = Proxy::to(&world.temporal).await;
    let hanging = world.node_towards(&proxy.address, ROUTER, arming).await;
    unpinned(&world, &hanging, "warm").await;
    proxy.withhold_answers();
    hanging.accepts(&world.request("in doubt"), 503).await;
    hanging.stop().await;
    let registered = "select count(*) from crossover.routers where ended_at is null";
    assert_eq!(world.scalar::<i64>(registered).await, 1);

    let clean = world.node_with(ROUTER, arming).await;
    assert_eq!(world.scalar::<i64>(registered).await, 2);
    clean.stop().await;
    assert_eq!(world.scalar::<i64>(registered).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_that_registers_during_a_barrier_is_waited_for() {
    let world = World::new(Stage::Off).await;
    let node = world.node_with(ALL, arming).await;
    let blocker = Child::serve(&world, "router", &ARMING).await;
    blocker.pause();
    unpinned(&world, &node, "before").await;
    world.flip(Stage::Shadow, &[&node]).await;
    stage_of(&world, &node, "shadowed").await;
    let late = Child::serve(&world, "router", &ARMING).await;
    until("the late one has acknowledged, too", async || {
        (world.scalar::<i64>("select count(*) from crossover.arming_acks").await == 2).then_some(())
    })
    .await;
    assert_eq!(state(&world).await.unwrap().0, "pinning");
    blocker.go_on();
    until_state(&world, "window").await;
    drop(late);
    node.stop().await;
}
