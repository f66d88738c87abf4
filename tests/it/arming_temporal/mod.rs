//! The Temporal half of arming, on a real Temporal and a real Postgres: what is open without a pin gets one, what was missed
//! asks, and so does what a reset runs again.

mod asking;
mod listing;
pub mod replays;
mod whole;
pub mod world;

use chrono::{TimeDelta, Utc};
use crossover::interaction::{Outcome, Side, Stage};
use crossover::ledger::{Question, Verdict};

use crate::bridge::until;
use world::World;

#[tokio::test(flavor = "multi_thread")]
async fn an_open_copy_without_a_pin_gets_one_and_runs_once_and_its_end_is_in_the_pin() {
    let world = World::new().await;
    let copy = world.later("later", 6);
    world.start(&copy).await;
    let row = world.reconcile().await;
    assert_eq!((row.pinned, row.unpinned, row.refused, row.listed), (1, 0, 0, 1), "{row:?}");
    let pin = world.story("later").await.unwrap().pin;
    assert_eq!((pin.owner, pin.stage, pin.epoch), (Side::Temporal, Stage::Off, 1));
    assert_eq!(pin.run_at.timestamp_micros(), copy.run_at.unwrap().timestamp_micros());
    assert_eq!(pin.flag_revision, "reconciled:1");
    assert!(world.runner.keys().is_empty(), "it was pinned before it ran");
    let story = world.ended("later", Outcome::Succeeded).await;
    assert_eq!(story.attempts[0].result.as_ref().unwrap().get(), "1");
    assert_eq!(world.runner.keys(), ["later"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_is_reconciled_in_order_with_what_runs_what_waits_and_the_signals_that_are_on_their_way() {
    let world = World::new().await;
    world.runner.shut();
    let member = |key: &str| world.unpinned(key, Some("s"));
    for key in ["a", "b", "c"] {
        world.start(&member(key)).await;
    }
    until("the first one runs", async || (world.runner.keys() == ["a"]).then_some(())).await;
    // A member that is pinned already, as all are since the account is in shadow: its number comes first, its turn does not.
    world.pin(&world.interaction("pinned", Some("s")), Stage::Shadow).await;
    until("it is with Temporal", async || {
        (world.count("select count(*) from crossover.outbox").await == 0).then_some(())
    })
    .await;
    let late = async {
        for key in ["d", "e", "f"] {
            world.start(&member(key)).await;
        }
    };
    let (row, ()) = tokio::join!(world.reconcile(), late);
    assert!(row.pinned >= 3, "{row:?}");
    // Signals that came after the last pass are for the copies' own asking, so another pass is made.
    let row = until("a pass after them finds nothing", async || {
        let row = world.reconciler().step(&world.account, 2).await.unwrap();
        row.done_at.is_some().then_some(row)
    })
    .await;
    assert_eq!(row.refused, 0);
    let mut numbers = Vec::new();
    for key in ["pinned", "a", "b", "c", "d", "e", "f"] {
        let pin = world.story(key).await.unwrap().pin;
        assert_eq!(pin.owner, Side::Temporal);
        numbers.push(pin.series_no.unwrap());
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7]);
    until("all of them were told", async || {
        (world.count("select count(*) from crossover.outbox").await == 0).then_some(())
    })
    .await;
    world.runner.open();
    for key in ["a", "b", "c", "pinned", "d", "e", "f"] {
        world.ended(key, Outcome::Succeeded).await;
    }
    assert_eq!(world.runner.keys(), ["a", "b", "c", "pinned", "d", "e", "f"]);
    assert_eq!(world.count("select count(*) from crossover.series where head_no = 8").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_postgres_owns_after_a_reconciliation_waits_for_the_members_that_got_their_pins_there() {
    let world = World::new().await;
    world.runner.shut();
    for key in ["a", "b"] {
        world.start(&world.unpinned(key, Some("s"))).await;
    }
    until("the first one runs", async || (world.runner.keys() == ["a"]).then_some(())).await;
    world.reconcile().await;
    let owned = world.pin(&world.interaction("p", Some("s")), Stage::Live).await;
    assert_eq!((owned.owner, owned.series_no), (Side::Postgres, Some(3)));
    assert_eq!(world.count("select count(*) from crossover.ready").await, 0);
    world.runner.open();
    world.ended("b", Outcome::Succeeded).await;
    assert_eq!(world.count("select count(*) from crossover.ready where execute").await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_closed_after_it_was_listed_puts_its_end_into_the_pin_and_is_not_run_again() {
    let world = World::new().await;
    let (copy, member) = (world.unpinned("one", None), world.unpinned("two", Some("s")));
    world.start(&copy).await;
    world.start(&member).await;
    world.closed("one").await;
    until("both ran", async || (world.runner.keys().len() == 2).then_some(())).await;
    until("the member has ended", async || {
        let status = world.client.series_status(&world.account, "sync", "s").await.ok()??;
        status.running.is_none().then_some(())
    })
    .await;
    // As a pass does that had listed them while they were open.
    for envelope in [&copy, &member] {
        let question = Question { envelope, run_at: None, revision: "reconciled:1", insert: true, deliver: true };
        let answer = world.ledger.ask_pin(question).await.unwrap();
        assert!(answer.created && answer.verdict == Verdict::Own, "{answer:?}");
        assert!(!world.ledger.ask_pin(question).await.unwrap().created);
    }
    world.ended("one", Outcome::Succeeded).await;
    world.ended("two", Outcome::Succeeded).await;
    assert_eq!(world.runner.keys().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_key_has_come_with_other_work_is_named_and_does_not_keep_the_account_from_being_armed() {
    let world = World::new().await;
    let mut other = world.interaction("taken", None);
    other.payload = crossover::interaction::Payload::parse("2".into()).unwrap();
    other.run_at = Some(Utc::now() + TimeDelta::hours(1));
    let copy = world.later("taken", 3_600);
    world.start(&copy).await;
    world.pin(&other, Stage::Shadow).await;
    let row = world.reconcile().await;
    assert_eq!((row.pinned, row.refused), (0, 1), "{row:?}");
}
