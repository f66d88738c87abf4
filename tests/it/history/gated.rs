//! What waits at the gate of a group has not ended: upkeep leaves it alone, and a search finds it with its reason.

use crossover::history::{Filter, Search};
use crossover::queue::groups::Groups;

use super::*;

impl World {
    async fn pause(&self) {
        Groups::new(self.ledger.pool().clone()).pause("default", "their API is down", "test").await.unwrap();
    }
}

#[tokio::test]
async fn what_waits_at_a_gate_stays_however_old_it_is_and_runs() {
    let world = World::new().await;
    let gone = world.ended_task("k", 40).await;
    world.pause().await;
    let waiting = world.task("k", 40, None).await;
    let rehearsed = world.pin("rehearsed", None).await;
    // Its real run has ended; the rehearsal has not begun.
    world
        .sql(&format!("update crossover.pins set outcome = 'succeeded', ended_at = now() where id = '{rehearsed}'"))
        .await;
    world.age(rehearsed, 40).await;
    let name = world.days_ago(40).await;
    assert_eq!(world.clear(&days(30, &[])).await[&format!("tasks_{name}")], "cleared");
    assert!(!world.keeps("tasks", gone).await && world.keeps("tasks", waiting).await);
    assert!(world.keeps("payloads", rehearsed).await);
    assert_eq!(world.forget_pins(&days(30, &[])).await, 0);
    assert_eq!(world.count("select found from crossover.orphans() where what = 'pins_in_no_place'").await, 0);

    let groups = Groups::new(world.ledger.pool().clone());
    groups.resume("default", "test").await.unwrap();
    world.sql("select * from crossover.admit(100, true, true, null)").await;
    let claimed = world.claim().await;
    assert_eq!(claimed.iter().map(|c| c.envelope.id).collect::<Vec<_>>(), [waiting]);
}

#[tokio::test]
async fn what_waits_at_a_gate_is_found_as_waiting_and_says_for_what() {
    let world = World::new().await;
    let search = Search::new(ledger::pool(&world.url, 2, Duration::from_secs(10)).unwrap());
    world.pause().await;
    let mut made = [world.task("k", 0, None).await, world.pin("p", None).await];
    let filter = Filter { state: Some("waiting".parse().unwrap()), ..Filter::default() };
    let found = search.page(&filter, None, 10).await.unwrap().items;
    let mut ids: Vec<Uuid> = found.iter().map(|found| found.id).collect();
    ids.sort();
    made.sort();
    assert_eq!(ids, made);
    for id in made {
        let shown = search.show(id).await.unwrap().unwrap().found;
        assert_eq!((shown.state.as_str(), shown.ended_at, shown.attempts), ("waiting", None, 0));
        assert!(shown.reason.as_deref().is_some_and(|reason| reason.ends_with("their API is down")), "{shown:?}");
    }
}
