//! The side that runs nothing.

use crossover::interaction::{Attempt, Outcome, Side};

use super::runner::Rule;
use super::world::with;
use super::*;

fn retrying(world: &World, key: &str, attempts: i32) -> Value {
    let policy = json!({ "max_attempts": attempts, "backoff": { "delays_ms": [150, 300] } });
    with(world.request(key), json!({ "policy": policy }))
}

/// Attempt by attempt: its number, how it ended, whether for good, and the wait after it.
fn steps(mut attempts: Vec<Attempt>) -> Vec<(i32, Option<Outcome>, Option<i64>)> {
    attempts.sort_by_key(|a| a.fence);
    attempts.into_iter().map(|a| (a.fence.attempt, a.outcome, a.retry_ms)).collect()
}

async fn mirrors_in(stage: Stage) {
    use Outcome::{Failed, Succeeded};
    let world = World::new(stage).await;
    let node = world.node().await;
    world.runner.rule("recovers", Rule::Fail(2));
    world.runner.rule("gives up", Rule::Fail(9));
    world.runner.rule("refused", Rule::Refuse);
    let wanted = [
        ("recovers", vec![(1, Some(Failed), Some(150)), (2, Some(Failed), Some(300)), (3, Some(Succeeded), None)]),
        ("gives up", vec![(1, Some(Failed), Some(150)), (2, Some(Failed), Some(300)), (3, Some(Failed), None)]),
        ("refused", vec![(1, Some(Failed), None)]),
    ];
    for (key, _) in &wanted {
        node.accepts(&retrying(&world, key, 3), 201).await;
    }
    for (key, steps_wanted) in wanted {
        let outcome = steps_wanted.last().unwrap().1;
        assert_eq!(world.ended(key).await.pin.outcome, outcome, "{key}");
        let rehearsals = world.rehearsed(key, steps_wanted.len()).await;
        assert!(rehearsals.iter().all(|r| r.side == stage.owner().other()));
        assert_eq!(steps(rehearsals), steps_wanted, "the rehearsal of {key}");
        let real: Vec<_> = world.ended(key).await.attempts.into_iter().filter(|a| !a.rehearsal).collect();
        assert_eq!(steps(real), steps_wanted, "the run of {key}");
        assert_eq!(world.runner.of(key).len(), steps_wanted.len());
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_postgres_takes_the_steps_of_the_run_on_temporal() {
    mirrors_in(Stage::Shadow).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_temporal_takes_the_steps_of_the_run_on_postgres() {
    mirrors_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_occupies_until_the_real_run_ends_and_gives_its_slot_to_an_execution() {
    let world = World::new(Stage::Shadow).await;
    let one_slot = |config: &mut crossover::config::Config| config.worker.slots = 1;
    let node = world.node_with(ALL, one_slot).await;
    world.runner.hold("real");
    node.accepts(&world.request("real"), 201).await;
    world.runner.nth("real", 1).await;
    let rehearsing = "select count(*) from crossover.running where not execute";
    until("it is rehearsed", async || (world.scalar::<i64>(rehearsing).await == 1).then_some(())).await;

    // Another rehearsal finds no slot, for its real run has none on Temporal either.
    node.accepts(&world.request("waits"), 201).await;
    // An execution takes the rehearsal's.
    world.flip(Stage::Live, &[&node]).await;
    node.accepts(&world.request("executes"), 201).await;
    world.succeeded("executes").await;
    let real = world.story("real").await.unwrap();
    assert!(real.pin.ended_at.is_none() && real.attempts.is_empty(), "{real:#?}");
    assert!(world.scalar::<i64>(rehearsing).await >= 1, "it still follows its real run");

    world.runner.release("real");
    let ended = world.succeeded("real").await.pin.ended_at.unwrap();
    let rehearsal = &world.rehearsed("real", 1).await[0];
    assert!(rehearsal.side == Side::Postgres && rehearsal.ended_at >= ended, "{rehearsal:#?}");
    world.succeeded("waits").await;
    world.rehearsed("waits", 1).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_on_temporal_occupies_until_the_real_run_ends() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("real");
    node.accepts(&world.request("real"), 201).await;
    world.runner.nth("real", 1).await;
    let open = "select count(*) from crossover.rehearsals";
    until("it is rehearsed", async || (world.scalar::<i64>(open).await == 1).then_some(())).await;
    assert!(world.story("real").await.unwrap().attempts.is_empty());
    world.runner.release("real");
    let ended = world.succeeded("real").await.pin.ended_at.unwrap();
    let rehearsal = &world.rehearsed("real", 1).await[0];
    assert!(rehearsal.side == Side::Temporal && rehearsal.ended_at >= ended, "{rehearsal:#?}");
    assert_eq!(world.scalar::<i64>(open).await, 0);
    node.stop().await;
}
