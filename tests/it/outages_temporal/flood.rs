//! Temporal back, with much that waits for it.

use chrono::{DateTime, TimeDelta, Utc};
use crossover::app::Roles;
use crossover::interaction::Stage;

use super::valve::{Flow, Valve};
use super::*;
use crate::bridge::world::{ROUTER, WORKER};

const RELAY: Roles = Roles { router: false, worker: false, relay: true };
const RATE: u32 = 40;
const BATCH: u32 = 20;
/// Deliveries that a relay has under way at once: they may be answered in any order, and together.
const PARALLEL: usize = 16;

/// When Temporal had each copy, in the order in which they were pinned, and whether it is of a series.
async fn delivered(world: &World) -> Vec<(DateTime<Utc>, bool)> {
    sqlx::query_as(
        "select s.side_at, p.series_id is not null from crossover.pins p join lateral (
            select min(side_at) as side_at from crossover.sightings s where s.id = p.id and s.what = 'delivered') s on true
         where p.key like 'k%' and s.side_at is not null order by p.created_at",
    )
    .fetch_all(world.pool())
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_comes_to_a_temporal_that_is_back_at_the_rate_set_oldest_first_in_chain_order_and_once() {
    let world = World::new(Stage::Shadow).await;
    let valve = Valve::before(&world.temporal).await;
    valve.set(Flow::Down);
    let router = world.node_towards(&valve.address, ROUTER, |config| config.relay.grace = Duration::ZERO).await;
    router.accepts(&world.request("first"), 202).await;
    knows(&router, true).await;
    let mut all = Vec::new();
    let mut series: Vec<Vec<String>> = vec![Vec::new(); 4];
    for n in 0..200 {
        let key = format!("k{n}");
        // Two of five are members of a series, so that none of them could be the first of all.
        let request = if n % 5 < 2 { world.member(&format!("s{}", n % 4), &key) } else { world.request(&key) };
        router.accepts(&request, 202).await;
        if n % 5 < 2 {
            series[n % 4].push(key.clone());
        }
        all.push(key);
    }
    outbox(&world, 201).await;
    let set = |config: &mut crossover::config::Config| {
        (config.relay.rate, config.relay.batch) = (RATE, BATCH);
        // A busy machine is no outage: a copy that failed would lose its place.
        config.temporal.start_timeout = Duration::from_secs(20);
    };
    let relay = world.node_with(RELAY, set).await;
    // Callers have the other part of what Temporal can take.
    until("half of it is delivered", async || (world.ledger.outbox_depth().await.unwrap().rows < 130).then_some(()))
        .await;
    let patient = |config: &mut crossover::config::Config| config.temporal.start_timeout = Duration::from_secs(20);
    let direct = world.node_with(ROUTER, patient).await;
    direct.accepts(&world.request("meanwhile"), 201).await;
    outbox(&world, 0).await;
    let delivered = until("all were seen to be delivered", async || {
        Some(delivered(&world).await).filter(|delivered| delivered.len() == all.len())
    })
    .await;
    at_the_rate(&delivered);
    oldest_first(&delivered);
    let worker = world.node_with(Roles { relay: false, ..WORKER }, |_| {}).await;
    all_ended(&world).await;
    world.each_ran_on_its_owner(&all).await;
    for key in &all {
        assert_eq!(world.runner.of(key).len(), 1, "{key} ran once");
    }
    for keys in &series {
        let ran: Vec<String> = world.in_turn(keys).into_iter().map(|call| call.key).collect();
        assert_eq!(&ran, keys);
    }
    for node in [worker, relay, direct, router] {
        node.stop().await;
    }
}

/// No second has more than the rate, but for answers that came together.
fn at_the_rate(delivered: &[(DateTime<Utc>, bool)]) {
    let mut sorted: Vec<_> = delivered.iter().map(|(at, _)| *at).collect();
    sorted.sort();
    let most = (0..sorted.len())
        .map(|n| sorted[n..].iter().take_while(|at| **at < sorted[n] + TimeDelta::seconds(1)).count())
        .max()
        .unwrap();
    let took = (sorted[sorted.len() - 1] - sorted[0]).as_seconds_f64();
    println!(
        "{} copies in {took:.2} s, {:.1} a second; at most {most} within a second",
        sorted.len(),
        sorted.len() as f64 / took
    );
    assert!(most <= RATE as usize + PARALLEL + 1, "{most} within a second");
    // The last in line answers may be quick or slow by what is under way, and no faster on the whole.
    let least = (sorted.len() - PARALLEL) as f64 / f64::from(RATE);
    assert!(took >= least, "{took} s, at least {least}");
}

/// Nothing was overtaken by more than what a look takes and what is under way. Members of a series go one after the other,
/// so where Temporal is slow others may overtake them: what is in no series tells the order.
fn oldest_first(delivered: &[(DateTime<Utc>, bool)]) {
    let alone: Vec<_> = delivered.iter().filter(|(_, member)| !member).map(|(at, _)| *at).collect();
    let mut order: Vec<usize> = (0..alone.len()).collect();
    order.sort_by_key(|n| alone[*n]);
    let moved = order.iter().enumerate().map(|(place, n)| place.abs_diff(*n)).max().unwrap();
    println!("no copy is more than {moved} places from its own");
    assert!(moved <= BATCH as usize + PARALLEL, "a copy is {moved} places from its own");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_far_ahead_in_its_series_is_looked_at_once_and_comes_when_its_head_has_moved() {
    const MEMBERS: usize = 130;
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let members = keys("m", MEMBERS);
    for key in &members {
        assert!(matches!(router.post(&world.member("s", key)).await.status, 201 | 202));
    }
    let relay = world.node_with(RELAY, |_| {}).await;
    outbox(&world, MEMBERS as i64 - 100).await;
    let parked = "select count(*) from crossover.outbox where parked";
    until("the rest is parked", async || (world.scalar::<i64>(parked).await == MEMBERS as i64 - 100).then_some(()))
        .await;
    let looked = "select looked from crossover.take_outbox(10, 1000, '0 s')";
    assert_eq!(world.scalar::<i32>(looked).await, 0, "a look has nothing to go through");
    let single = world.node_with(ROUTER, |_| {}).await;
    single.accepts(&world.request("single"), 201).await;
    let worker = world.node_with(Roles { relay: false, ..WORKER }, |_| {}).await;
    for key in &members {
        world.succeeded(key).await;
    }
    let ran: Vec<String> = world.in_turn(&members).into_iter().map(|call| call.key).collect();
    assert_eq!(ran, members);
    for node in [worker, single, relay, router] {
        node.stop().await;
    }
}
