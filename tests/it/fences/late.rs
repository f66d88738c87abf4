//! Workers that stall past their lease and wake up.

use super::*;

const LEASE: Duration = Duration::from_secs(1);
const SHORT: &[(&str, &str)] = &[("CROSSOVER_WORKER_LEASE", "1s")];

/// What a child that is paused in the middle of a call, and the worker that came after it, leave behind.
struct Stalled {
    world: World,
    node: Node,
    heir: Node,
    child: Child,
}

/// A child works on `request` and is paused past its lease; another runs it to its end. Then the child wakes up.
async fn stalls(side: Side, request: impl Fn(&World) -> Value, after: &[&str]) -> Stalled {
    let world = World::new(stage_of(side)).await;
    // The heartbeats of the Temporal side are what the router says.
    let node = world.node_with(TAKES_IN, |config| config.worker.lease = LEASE).await;
    let child = Child::serve(&world, "worker", SHORT).await;
    world.runner.hold("one");
    node.accepts(&with(request(&world), retries()), 201).await;
    world.runner.nth("one", 1).await;
    for key in after {
        let status = node.post(&world.member("s", key)).await.status;
        assert!(matches!(status, 201 | 202), "{status}");
    }
    child.pause();
    let heir = world.node_with(ONLY_WORKS, |config| config.worker.lease = LEASE).await;
    world.runner.nth("one", 2).await;
    // Both are answered; the paused one can't read its answer yet.
    world.runner.release("one");
    world.succeeded("one").await;
    for key in after {
        world.succeeded(key).await;
    }
    child.go_on();
    Stalled { world, node, heir, child }
}

impl Stalled {
    /// Waits until the child counts that it was too late, and ends everything: nothing that it did has left a trace.
    async fn refuses(mut self, side: Side, counters: &[&str]) {
        let before = self.world.story("one").await.unwrap();
        until("the child counts what it came too late with", async || {
            let mut sum = 0.0;
            for name in counters {
                let label = if name.starts_with("crossover_late_results") { side.as_str() } else { "" };
                sum += counted(&self.child.node, name, label).await;
            }
            (sum > 0.0).then_some(())
        })
        .await;
        self.child.terminate();
        assert!(self.child.ended().await.success(), "{}", self.child.log());
        let (world, after) = (&self.world, self.world.story("one").await.unwrap());
        let calls = world.runner.of("one");
        assert_eq!(calls.len(), 2, "the child began nothing that it had lost: {calls:#?}");
        let real = |story: &crossover::ledger::Story| -> Vec<_> {
            let real = story.attempts.iter().filter(|a| !a.rehearsal);
            real.map(|a| (a.fence, a.outcome, a.error.clone())).collect()
        };
        assert_eq!(real(&before), real(&after), "what came late left no record");
        assert_eq!((before.pin.attempts, before.pin.ended_at), (after.pin.attempts, after.pin.ended_at));
        let last = real(&after).last().unwrap().0;
        assert_eq!((last.epoch, last.attempt), calls[1].fence, "the recorded result is the other's");
        for node in [self.node, self.heir] {
            node.stop().await;
        }
    }
}

const ON_TEMPORAL: &[&str] = &["crossover_late_results_total"];
/// A heartbeat may tell a worker that it lost what it runs before the answer comes.
const ON_POSTGRES: &[&str] = &["crossover_late_results_total", "crossover_lost_leases_total"];

#[tokio::test(flavor = "multi_thread")]
async fn the_late_result_of_a_temporal_worker_that_stalled_is_refused_and_counted() {
    stalls(Side::Temporal, |world| world.request("one"), &[]).await.refuses(Side::Temporal, ON_TEMPORAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_late_result_of_a_postgres_worker_that_stalled_is_refused_and_counted() {
    stalls(Side::Postgres, |world| world.request("one"), &[]).await.refuses(Side::Postgres, ON_POSTGRES).await;
}

/// The series goes on behind the heir's result, and not behind the late one.
async fn a_member_of_a_series(side: Side, counters: &[&str]) {
    let stalled = stalls(side, |world| world.member("s", "one"), &["two", "three"]).await;
    let runner = &stalled.world.runner;
    let (heir, two, three) = (runner.nth("one", 2).await, runner.nth("two", 1).await, runner.nth("three", 1).await);
    assert!(heir.ended.unwrap() <= two.began && two.ended.unwrap() <= three.began, "{:#?}", runner.calls());
    stalled.refuses(side, counters).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_series_a_stalled_temporal_workers_late_result_is_refused_and_its_successors_are_in_turn() {
    a_member_of_a_series(Side::Temporal, ON_TEMPORAL).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_series_a_stalled_postgres_workers_late_result_is_refused_and_its_successors_are_in_turn() {
    a_member_of_a_series(Side::Postgres, ON_POSTGRES).await;
}

/// The answer that comes too late finds the work running under a later attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_result_that_comes_while_another_worker_runs_the_work_ends_nothing() {
    let world = World::new(Stage::Live).await;
    let node = world.node_with(TAKES_IN, |config| config.worker.lease = LEASE).await;
    let mut child = Child::serve(&world, "worker", SHORT).await;
    world.runner.hold("one");
    node.accepts(&with(world.request("one"), retries()), 201).await;
    world.runner.nth("one", 1).await;
    child.pause();
    let heir = world.node_with(ONLY_WORKS, |config| config.worker.lease = LEASE).await;
    let second = world.runner.nth("one", 2).await;
    world.runner.rule("one", Rule::HoldAfter(1));
    until("the first call is answered", async || world.runner.of("one")[0].ended).await;
    child.go_on();
    until("the child knows that it was too late", async || {
        let late = counted(&child.node, "crossover_late_results_total", "postgres").await;
        (late + counted(&child.node, "crossover_lost_leases_total", "").await > 0.0).then_some(())
    })
    .await;
    child.terminate();
    assert!(child.ended().await.success(), "{}", child.log());
    let story = world.story("one").await.unwrap();
    assert_eq!((story.state.as_str(), story.pin.ended_at), ("running", None), "{story:#?}");
    world.runner.release("one");
    let story = world.succeeded("one").await;
    let ends = story.attempts.iter().filter(|a| !a.rehearsal && a.retry_ms.is_none());
    let ends: Vec<_> = ends.map(|a| (a.fence.epoch, a.fence.attempt)).collect();
    assert_eq!((ends, world.runner.of("one").len()), (vec![second.fence], 2), "{story:#?}");
    for node in [node, heir] {
        node.stop().await;
    }
}
