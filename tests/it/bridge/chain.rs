//! The chain of a series under concurrency.

use crossover::interaction::{Interaction, Payload};
use crossover::ledger::PinRequest;
use crossover::policy::Policy;

use super::*;

fn member(world: &World, series: usize, key: String) -> Interaction {
    Interaction {
        account: world.account.clone(),
        kind: "sync".into(),
        key_made: false,
        after: None,
        exclusive: None,
        key,
        payload: Payload::parse("1".into()).unwrap(),
        series: Some(format!("s{series}")),
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn concurrent_pins_of_a_series_are_numbered_without_gaps_and_end_in_order() {
    const TASKS: usize = 8;
    const EACH: usize = 60;
    let world = World::new(Stage::Live).await;
    // Members end while others are being pinned, so that heads move under the pins.
    let node = world.node_with(WORKER, |_| {}).await;
    let tasks = (0..TASKS).map(|task| {
        // Every key is pinned by two tasks: the later one must not use up a number.
        let members: Vec<_> = (0..EACH).map(|n| member(&world, n % 3, format!("{} {n}", task / 2))).collect();
        let ledger = world.ledger.clone();
        tokio::spawn(async move {
            for interaction in &members {
                let grace = Duration::ZERO;
                let stage = if task % 4 == 0 { Stage::Complete } else { Stage::Live };
                ledger.pin(PinRequest { interaction, stage, revision: "test", grace }).await.unwrap();
            }
        })
    });
    futures::future::try_join_all(tasks.collect::<Vec<_>>()).await.unwrap();
    let pinned = (TASKS / 2 * EACH) as i64;
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.pins").await, pinned);
    let numbered = "select sum(last_no)::bigint from crossover.series s where last_no =
        (select count(*) from crossover.pins p where p.series_id = s.series_id)
        and last_no = (select max(series_no) from crossover.pins p where p.series_id = s.series_id)";
    assert_eq!(world.scalar::<Option<i64>>(numbered).await, Some(pinned));
    let unended = "select count(*) from crossover.pins where ended_at is null";
    until("all have ended", async || (world.scalar::<i64>(unended).await == 0).then_some(())).await;
    let unordered = "select count(*) from crossover.pins p join crossover.pins e
        on e.series_id = p.series_id and e.series_no = p.series_no - 1 where p.ended_at < e.ended_at";
    assert_eq!(world.scalar::<i64>(unordered).await, 0);
    assert_eq!(world.runner.calls().len() as i64, pinned);
    assert_eq!(world.scalar::<i64>("select count(*) from crossover.series where head_no <> last_no + 1").await, 0);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_off_a_router_pins_members_of_a_series_of_which_another_left_some_undelivered() {
    let world = World::new(Stage::Off).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let first = router.accepts(&world.member("s0", "first"), 201).await;
    assert_eq!(first.body["pinned"], false);
    // As another one does for crossover.enqueue, and its delivery is late.
    let (interaction, grace) = (member(&world, 0, "pinned".into()), Duration::from_secs(3_600));
    let request = PinRequest { interaction: &interaction, stage: Stage::Off, revision: "test", grace };
    assert!(world.ledger.pin(request).await.unwrap().created);
    let held = until("it has heard of it", async || {
        let key = format!("later {}", uuid::Uuid::new_v4());
        let answer = router.post(&world.member("s0", &key)).await;
        assert!(matches!(answer.status, 201 | 202), "{answer:?}");
        (answer.body["pinned"] != false).then_some((key, answer))
    })
    .await;
    assert_eq!(held.1.status, 202, "{held:?}");
    let other = router.accepts(&world.request("of no series"), 201).await;
    assert_eq!(other.body["pinned"], false, "it has nothing to wait for");
    assert!(world.runner.of(&held.0).is_empty());
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_waits_for_the_first_even_where_all_that_it_was_told_of_were_cancelled() {
    let world = World::new(Stage::Live).await;
    let pin = async |key: String, stage| {
        let (interaction, grace) = (member(&world, 0, key), Duration::ZERO);
        world.ledger.pin(PinRequest { interaction: &interaction, stage, revision: "test", grace }).await.unwrap()
    };
    let first = pin("first".into(), Stage::Live).await.pin.id;
    let mut others = Vec::new();
    for n in 0..70 {
        others.push(pin(format!("{n}"), Stage::Live).await.pin.id);
    }
    let behind = pin("on Temporal".into(), Stage::Shadow).await.behind;
    assert!(!behind.contains(&first), "only the latest are named");
    for id in others {
        world.ledger.cancel(id, "no longer needed").await.unwrap();
    }
    assert!(world.ledger.still_unended(&behind).await.unwrap().is_empty(), "those that are named have ended");
    assert_eq!(world.ledger.unended_up_to(&behind).await.unwrap(), [first]);
    world.ledger.cancel(first, "no longer needed").await.unwrap();
    assert!(world.ledger.unended_up_to(&behind).await.unwrap().is_empty());
}
