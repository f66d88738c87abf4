//! Processes that are killed, paused and asked to end while they work.

use crossover::app::Roles;

use super::child::Child;
use super::world::with;
use super::*;

const LEASE: Duration = Duration::from_secs(1);
const SHORT: &[(&str, &str)] = &[("CROSSOVER_WORKER_LEASE", "1s")];
const TAKES_IN: Roles = Roles { router: true, worker: false, relay: true };

/// A world in which a child works and holds the first call for `one`.
async fn busy_child(stage: Stage) -> (World, Node, Child) {
    let world = World::new(stage).await;
    // The heartbeats of the Temporal side are what the router says.
    let node = world.node_with(TAKES_IN, |config| config.worker.lease = LEASE).await;
    let child = Child::serve(&world, "worker", SHORT).await;
    world.runner.hold("one");
    // Temporal goes on handing attempts to the open polls of a paused process, each until its heartbeat is missed.
    let policy = json!({ "policy": { "max_attempts": 100, "backoff": { "delays_ms": [50] } } });
    node.accepts(&with(world.request("one"), policy), 201).await;
    world.runner.nth("one", 1).await;
    (world, node, child)
}

async fn another_worker(world: &World) -> Node {
    world.node_with(Roles { relay: false, ..WORKER }, |config| config.worker.lease = LEASE).await
}

async fn killed_in_the_middle_of_a_call(stage: Stage) {
    let (world, node, mut child) = busy_child(stage).await;
    child.kill();
    let heir = another_worker(&world).await;
    let (first, second) = (world.runner.nth("one", 1).await, world.runner.nth("one", 2).await);
    assert!(second.fence > first.fence && second.began > first.began, "{first:?} {second:?}");
    world.runner.release("one");
    let story = world.succeeded("one").await;
    assert_eq!((story.pin.attempts, world.runner.of("one").len()), (2, 2));
    world.each_ran_on_its_owner(&["one".to_owned()]).await;
    for node in [node, heir] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_worker_killed_in_the_middle_of_a_call_is_succeeded_by_another_with_a_higher_fence() {
    killed_in_the_middle_of_a_call(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_worker_killed_in_the_middle_of_a_call_is_succeeded_by_another_with_a_higher_fence() {
    killed_in_the_middle_of_a_call(Stage::Live).await;
}

async fn paused_past_its_lease(stage: Stage) {
    let (world, node, mut child) = busy_child(stage).await;
    child.pause();
    let heir = another_worker(&world).await;
    let second = world.runner.nth("one", 2).await;
    assert!(second.fence > (1, 1));
    // Both are answered; the paused one can't read its answer yet.
    world.runner.release("one");
    let before = world.succeeded("one").await;
    child.go_on();
    if stage == Stage::Live {
        until("the child knows that it was too late", async || {
            let shown = child.node.get("/metrics").await.body.as_str().unwrap().to_owned();
            let late = |line: &str| {
                let (name, count) = line.rsplit_once(' ').unwrap_or_default();
                (name.starts_with("crossover_late_results") || name.starts_with("crossover_lost_leases"))
                    && count != "0"
            };
            shown.lines().any(late).then_some(())
        })
        .await;
    }
    child.terminate();
    assert!(child.ended().await.success(), "{}", child.log());
    let after = world.story("one").await.unwrap();
    assert_eq!((after.pin.attempts, after.pin.ended_at), (second.fence.1, before.pin.ended_at));
    let ends = after.attempts.iter().filter(|a| !a.rehearsal && a.retry_ms.is_none());
    let ends: Vec<_> = ends.map(|a| (a.fence.epoch, a.fence.attempt)).collect();
    assert_eq!(ends, [second.fence], "{after:#?}");
    // What a Temporal worker was handed in its sleep it no longer begins; what it was handed last of all has an older fence.
    let calls = world.runner.of("one");
    assert!(calls.iter().all(|call| call.fence <= second.fence), "{calls:#?}");
    assert!(stage == Stage::Shadow || calls.len() == 2, "{calls:#?}");
    for node in [node, heir] {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_worker_paused_past_its_lease_has_its_late_result_refused() {
    paused_past_its_lease(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_worker_paused_past_its_lease_has_its_late_result_refused() {
    paused_past_its_lease(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_what_runs_and_loses_nothing() {
    let world = World::new(Stage::Live).await;
    let mut child = Child::serve(&world, "router,worker,relay", &[("CROSSOVER_WORKER_SHUTDOWN_GRACE", "20s")]).await;
    for (key, stage) in [("on postgres", Stage::Live), ("on temporal", Stage::Shadow)] {
        world.flip(stage, &[]).await;
        let revision = world::document(stage).revision().to_owned();
        until("the child sees the flip", async || {
            child.node.get("/readyz").await.body["flags"].as_str().unwrap().contains(&revision).then_some(())
        })
        .await;
        world.runner.hold(key);
        assert_eq!(child.node.accepts(&world.request(key), 201).await.owner(), stage.owner());
        world.runner.nth(key, 1).await;
    }
    child
        .node
        .accepts(
            &with(world.request("later"), json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::seconds(4) })),
            201,
        )
        .await;
    child.terminate();
    until("it drains", async || child.log().contains("SIGTERM").then_some(())).await;
    for key in ["on postgres", "on temporal"] {
        assert!(world.story(key).await.unwrap().pin.ended_at.is_none());
        world.runner.release(key);
    }
    assert_eq!(child.ended().await.code(), Some(0), "{}", child.log());
    assert!(world.story("on postgres").await.unwrap().pin.ended_at.is_some(), "its worker reported it");
    let node = world.node_with(WORKER, |_| {}).await;
    for key in ["on postgres", "on temporal", "later"] {
        world.succeeded(key).await;
        assert_eq!(world.runner.of(key).len(), 1, "{key}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_longer_than_the_grace_of_a_shutdown_is_run_again_by_another() {
    for stage in [Stage::Shadow, Stage::Live] {
        let world = World::new(stage).await;
        let node = world.node_with(TAKES_IN, |_| {}).await;
        let mut child = Child::serve(&world, "worker", &[("CROSSOVER_WORKER_SHUTDOWN_GRACE", "300ms")]).await;
        world.runner.hold("one");
        node.accepts(&with(world.request("one"), json!({ "policy": { "backoff": { "delays_ms": [50] } } })), 201).await;
        world.runner.nth("one", 1).await;
        child.terminate();
        assert_eq!(child.ended().await.code(), Some(0), "{}", child.log());
        let heir = world.node_with(WORKER, |_| {}).await;
        assert_eq!(world.runner.nth("one", 2).await.fence, (1, 2));
        world.runner.release("one");
        assert_eq!(world.succeeded("one").await.pin.attempts, 2);
        for node in [node, heir] {
            node.stop().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_never_loses_an_attempt_to_the_end_of_the_one_before() {
    const KEYS: usize = 30;
    let world = World::new(Stage::Complete).await;
    let eager = |config: &mut crossover::config::Config| {
        config.worker.lease = Duration::from_millis(500);
        config.worker.poll = Duration::from_millis(5);
        config.worker.slots = KEYS as u32;
    };
    let node = world.node_with(ALL, eager).await;
    // Attempt follows attempt without a pause, so that ends, claims and heartbeats of the same interaction meet.
    let policy = json!({ "policy": { "max_attempts": 100, "backoff": { "delays_ms": [0] } } });
    for n in 0..KEYS {
        let key = format!("k{n}");
        world.runner.rule(&key, super::runner::Rule::Fail(40));
        node.accepts(&with(world.request(&key), policy.clone()), 201).await;
    }
    for n in 0..KEYS {
        assert_eq!(world.succeeded(&format!("k{n}")).await.pin.attempts, 41);
    }
    let lost = "select count(*) from crossover.attempts where error like 'its worker stopped%'";
    assert_eq!(world.scalar::<i64>(lost).await, 0);
    let metrics = node.get("/metrics").await.body;
    assert!(metrics.as_str().unwrap().contains("crossover_lost_leases_total 0"), "{metrics}");
    node.stop().await;
}
