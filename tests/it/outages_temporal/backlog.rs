//! More rehearsals than may wait for Temporal.

use crossover::interaction::Stage;

use super::valve::{Flow, Valve};
use super::*;
use crate::bridge::world::ALL;

const MOST: u32 = 10;

/// How many interactions have each verdict, and how many of those were left out.
async fn verdicts(world: &World) -> Vec<(String, i64, i64)> {
    sqlx::query_as(
        "select verdict, count(*), count(*) filter (where reason like '%relay.rehearsal_backlog%')
         from crossover.observations group by verdict order by verdict",
    )
    .fetch_all(world.pool())
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rehearsals_beyond_the_backlog_are_dropped_counted_and_not_comparable_and_executions_never_are() {
    let world = World::new(Stage::Shadow).await;
    let valve = Valve::before(&world.temporal).await;
    let set = |config: &mut crossover::config::Config| {
        config.relay.rehearsal_backlog = MOST;
        config.comparator.every = Duration::from_millis(100);
        config.comparator.patience = Duration::from_secs(3);
        config.comparator.recovery = Duration::from_secs(3);
    };
    let node = world.node_towards(&valve.address, ALL, set).await;
    valve.set(Flow::Down);
    node.accepts(&world.request("first"), 202).await;
    knows(&node, true).await;
    // More executions than rehearsals may wait: they all do.
    let executions = keys("execution", MOST as usize + 5);
    post_all(&world, &node, &executions, 202).await;
    world.flip(Stage::Live, &[&node]).await;
    world.runner.hold("member0");
    node.accepts(&world.member("s", "member0"), 201).await;
    let rehearsals = keys("rehearsal", 40);
    post_all(&world, &node, &rehearsals, 201).await;
    world.flip(Stage::Shadow, &[&node]).await;
    node.accepts(&world.member("s", "member1"), 202).await;
    world.each_ran_on_its_owner(&rehearsals).await;
    // Forty and the member, less what may wait; the executions are all there.
    let waiting = i64::from(MOST) + executions.len() as i64 + 2;
    outbox(&world, waiting).await;
    until("they are counted", async || {
        (metric(&node, "crossover_rehearsals_dropped_total").await == 31.0).then_some(())
    })
    .await;
    let member = world.story("member0").await.unwrap();
    assert!(!member.undelivered, "the oldest is dropped first");

    valve.set(Flow::Open);
    outbox(&world, 0).await;
    until("the executions have ended", async || {
        (world
            .scalar::<i64>("select count(*) from crossover.pins where key like 'execution%' and ended_at is null")
            .await
            == 0)
            .then_some(())
    })
    .await;
    world.each_ran_on_its_owner(&executions).await;
    // Temporal has the second member, and nothing of the first that it could wait for; it waits for its pin all the same.
    world.runner.nth("member0", 1).await;
    node.accepts(&world.request("after"), 201).await;
    world.succeeded("after").await;
    assert!(world.runner.of("member1").is_empty());
    world.runner.release("member0");
    world.succeeded("member1").await;
    let members = keys("member", 2);
    let ran: Vec<_> = world.in_turn(&members).into_iter().map(|call| (call.key, call.side)).collect();
    assert_eq!(ran, [("member0".into(), "postgres".into()), ("member1".into(), "temporal".into())]);

    let judged = until("all are judged", async || {
        let verdicts = verdicts(&world).await;
        verdicts.iter().all(|(verdict, ..)| verdict != "in_flight").then_some(verdicts)
    })
    .await;
    let of = |wanted: &str| {
        judged.iter().find(|(verdict, ..)| verdict == wanted).map_or((0, 0), |(_, all, left)| (*all, *left))
    };
    assert_eq!(of("not_comparable").1, 31, "{judged:?}");
    assert_eq!(of("diverged"), (0, 0), "{judged:?}");
    assert_eq!(judged.iter().map(|(.., left)| left).sum::<i64>(), 31, "nothing else was left out: {judged:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_calls_itself_a_rehearsal_is_not_dropped_where_its_pin_says_execution() {
    let world = World::new(Stage::Shadow).await;
    let deaf = crate::bridge::proxy::black_hole().await;
    let quick = |config: &mut crossover::config::Config| {
        config.temporal.start_timeout = Duration::from_millis(200);
        config.relay.grace = Duration::ZERO;
    };
    let node = world.node_towards(&deaf, crate::bridge::world::ROUTER, quick).await;
    node.accepts(&world.request("execution"), 202).await;
    world.flip(Stage::Live, &[&node]).await;
    node.accepts(&world.request("rehearsal"), 201).await;
    let marked = "select count(*) from crossover.outbox where rehearsal";
    assert_eq!(world.scalar::<i64>(marked).await, 1);
    sqlx::query("update crossover.outbox set rehearsal = true, due_at = now()").execute(world.pool()).await.unwrap();
    until("the rehearsal is dropped", async || {
        world.ledger.drop_rehearsals(0, 100).await.unwrap();
        (world.ledger.outbox_depth().await.unwrap().rows == 1).then_some(())
    })
    .await;
    let left = world.story("execution").await.unwrap();
    assert!(left.undelivered && !world.story("rehearsal").await.unwrap().undelivered);
    node.stop().await;
}
