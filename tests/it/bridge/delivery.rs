//! What happens between the pin and the start, where a process may die and a network may fail.

use std::sync::Arc;

use crossover::app::Roles;
use crossover::interaction::{Interaction, Payload, Side};
use crossover::metrics::Metrics;
use crossover::policy::Policy;
use crossover::router::breaker::BreakerOptions;
use crossover::router::{Deliverer, EnqueueError, How, OutageOptions, Outages, Router, RouterOptions};
use crossover::spool::{Spool, SpoolOptions};
use crossover::temporal::client::{ClientSettings, TemporalClient};
use crossover::temporal::{Delivers, Terms};

use super::child::Child;
use super::proxy::{Proxy, black_hole};
use super::*;

/// A router without a process around it.
fn router(world: &World, temporal: &str, node: &Node) -> Router {
    let settings = ClientSettings {
        address: format!("http://{temporal}"),
        namespace: "default".into(),
        task_queue: world.config().temporal.task_queue,
        timeout: Duration::from_secs(30),
        identity: "router".into(),
        terms: Terms::default(),
        window: Duration::from_secs(3_600),
        series_items_a_run: 200,
    };
    let target = Arc::new(Delivers(TemporalClient::lazy(settings).unwrap()));
    let metrics = Arc::new(Metrics::new().unwrap());
    let deliverer = Deliverer::new(target, world.ledger.clone(), metrics.clone());
    let options = RouterOptions {
        pin_timeout: Duration::from_secs(5),
        grace: Duration::from_millis(500),
        tasks: false,
        window: Duration::from_secs(86_400),
    };
    let flags = node.flags.clone().unwrap();
    let (decider, _) = crossover::flips::Decider::new(flags, Arc::default(), metrics.clone());
    let armed = crossover::arming::Armed::all_open();
    let spool = SpoolOptions { entries: 10, bytes: 1 << 20, keep: Duration::from_secs(60) };
    let spool = Arc::new(Spool::open(&world.fresh("spool"), spool, metrics.clone()).unwrap());
    let breaker = BreakerOptions { failures: 5, open: Duration::from_secs(1) };
    let patience = OutageOptions { pin_budget: options.pin_timeout, pin_timeout: options.pin_timeout, breaker };
    let outages = Outages::new(armed, spool, world.ledger.clone(), patience, metrics.clone());
    let wake = [Arc::default(), Arc::default(), Arc::default()];
    Router::new(world.ledger.clone(), Arc::new(decider), deliverer, outages, metrics, options, wake)
}

fn interaction(world: &World, key: &str) -> Interaction {
    Interaction {
        account: world.account.clone(),
        kind: "sync".into(),
        key_made: false,
        after: None,
        exclusive: None,
        key: key.into(),
        payload: Payload::parse("1".into()).unwrap(),
        series: None,
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
    }
}

async fn undelivered(world: &World, rows: i64) {
    until("the outbox holds them", async || (world.ledger.outbox_depth().await.unwrap().rows == rows).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_work_in_a_transaction_is_refused_before_it_reaches_postgres() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let router = router(&world, &world.temporal, &node);
    let bad = Interaction { kind: String::new(), priority: 101, ..interaction(&world, "nul\0") };
    let mut transaction = world.pool().begin().await.unwrap();
    match router.enqueue_in(&mut transaction, &bad).await {
        Err(EnqueueError::Invalid(faults)) => {
            let fields: Vec<_> = faults.into_iter().map(|fault| fault.field).collect();
            assert_eq!(fields, ["kind", "key", "priority"]);
        }
        other => panic!("{other:?}"),
    }
    let good = router.enqueue_in(&mut transaction, &interaction(&world, "good")).await;
    assert!(good.is_ok(), "the transaction is still of use: {good:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn work_enqueued_in_a_transaction_exists_if_and_only_if_it_commits() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node_with(ALL, |config| config.relay.grace = Duration::from_millis(100)).await;
    let router = router(&world, &world.temporal, &node);

    let mut rolled_back = world.pool().begin().await.unwrap();
    let ticket = router.enqueue_in(&mut rolled_back, &interaction(&world, "rolled back")).await.unwrap();
    assert_eq!(ticket.accepted.owner, Side::Temporal);
    rolled_back.rollback().await.unwrap();
    drop(ticket);

    let mut committed = world.pool().begin().await.unwrap();
    let ticket = router.enqueue_in(&mut committed, &interaction(&world, "delivered")).await.unwrap();
    let dropped = router.enqueue_in(&mut committed, &interaction(&world, "dropped")).await.unwrap();
    assert!(world.runner.calls().is_empty());
    committed.commit().await.unwrap();
    assert_eq!(router.deliver(ticket).await.how, How::Created);
    drop(dropped);
    for key in ["delivered", "dropped"] {
        world.succeeded(key).await;
        assert_eq!(world.runner.sides(key), ["temporal"]);
    }
    undelivered(&world, 0).await;
    assert!(world.story("rolled back").await.is_none() && world.runner.of("rolled back").is_empty());
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_router_killed_between_commit_and_start_loses_nothing() {
    let world = World::new(Stage::Shadow).await;
    let deaf = black_hole().await;
    let set = [("CROSSOVER_TEMPORAL_ADDRESS", deaf.as_str()), ("CROSSOVER_TEMPORAL_START_TIMEOUT", "30s")];
    let mut child = Child::serve(&world, "router", &set).await;
    let keys: Vec<String> = (0..5).map(|n| format!("k{n}")).collect();
    let sends = keys.iter().map(|key| {
        let (http, url, body) =
            (reqwest::Client::new(), format!("{}/v1/interactions", child.node.base), world.request(key));
        tokio::spawn(async move { http.post(url).body(body.to_string()).send().await.is_ok() })
    });
    let sends: Vec<_> = sends.collect();
    undelivered(&world, 5).await;
    child.kill();
    for send in sends {
        assert!(!send.await.unwrap(), "it was killed before it could answer");
    }
    let node = world.node_with(WORKER, |_| {}).await;
    world.each_ran_on_its_owner(&keys).await;
    assert_eq!(world.runner.calls().len(), keys.len());
    undelivered(&world, 0).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_timed_out_but_succeeded_is_adopted() {
    let world = World::new(Stage::Shadow).await;
    let proxy = Proxy::to(&world.temporal).await;
    let router = world
        .node_towards(&proxy.address, ROUTER, |config| {
            config.temporal.start_timeout = Duration::from_millis(400);
            config.relay.grace = Duration::from_secs(3);
        })
        .await;
    let worker = world.node_with(Roles { relay: false, ..WORKER }, |_| {}).await;
    router.accepts(&world.request("before"), 201).await;
    proxy.withhold_answers();
    world.runner.hold("doubtful");
    router.accepts(&world.request("doubtful"), 202).await;
    world.runner.nth("doubtful", 1).await;
    // Temporal has it, and nobody knows: now somebody looks.
    undelivered(&world, 1).await;
    let relay = world.node_with(Roles { router: false, worker: false, relay: true }, |_| {}).await;
    undelivered(&world, 0).await;
    world.runner.release("doubtful");
    assert_eq!(world.succeeded("doubtful").await.pin.attempts, 1);
    assert_eq!(world.runner.of("doubtful").len(), 1);
    for node in [router, worker, relay] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_enqueue_dropped_between_pin_and_start_still_ends() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let deaf = router(&world, &black_hole().await, &node);
    let one = interaction(&world, "dropped");
    let call = tokio::spawn(async move { deaf.enqueue(&one).await });
    world.until_story("dropped", "it is pinned", |_| Some(())).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    world.succeeded("dropped").await;
    assert_eq!(world.runner.sides("dropped"), ["temporal"]);
    node.stop().await;
}
