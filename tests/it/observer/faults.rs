//! The switches of test builds make a side do what they say.

use chrono::TimeDelta;
use crossover::faults::{self, Fault};
use crossover::interaction::{Payload, Stage};
use serde_json::json;

use super::*;
use crate::bridge::world::with;

const POSTGRES: Side = Side::Postgres;

/// When an attempt was due and when it began, each on Postgres.
fn begun(found: &[Recorded]) -> Vec<(DateTime<Utc>, DateTime<Utc>)> {
    let of = |r: &Recorded| match r.sighting.what {
        Seen::Dequeued { due_at, .. } => (due_at, r.sighting.at),
        _ => unreachable!(),
    };
    self::of(found, POSTGRES, "dequeued").map(of).collect()
}

fn ends(found: &[Recorded]) -> Vec<Option<Outcome>> {
    let of = |r: &Recorded| match r.sighting.what {
        Seen::Ended { outcome, .. } => outcome,
        _ => unreachable!(),
    };
    self::of(found, POSTGRES, "ended").map(of).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_late_or_twice_or_changed_or_forgotten_as_it_is_told() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    let other = Payload::parse(r#"{"other":1}"#.into()).unwrap();
    let planned = [
        ("late", Fault::Late(Duration::from_millis(600))),
        ("twice", Fault::Twice),
        ("payload", Fault::Payload(other.clone())),
        ("group", Fault::Group("elsewhere".into())),
        ("outcome", Fault::Outcome(Outcome::Failed)),
        ("again", Fault::ExtraAttempt),
        ("real", Fault::Unclaimed),
        ("dropped", Fault::Dropped),
    ];
    for (key, fault) in planned {
        faults::inject(POSTGRES, world.id(key), fault);
        node.accepts(&world.request(key), 201).await;
    }
    faults::inject(Side::Temporal, world.id("slow"), Fault::Late(Duration::from_millis(600)));
    node.accepts(&world.request("slow"), 201).await;
    let ended = |n| move |found: &[Recorded]| count(found, POSTGRES, "ended") >= n;

    let late = begun(&seen(&world, "late", "it has ended", ended(1)).await);
    assert!(late.len() == 1 && late[0].1 - late[0].0 > TimeDelta::milliseconds(590), "{late:?}");
    assert_eq!(begun(&seen(&world, "twice", "it has ended", ended(1)).await).len(), 2);
    assert_eq!(ends(&seen(&world, "outcome", "it has ended", ended(1)).await), [Some(Outcome::Failed)]);
    assert_eq!(begun(&seen(&world, "again", "it has ended twice", ended(2)).await).len(), 2);
    for key in ["payload", "group"] {
        let found = seen(&world, key, "it has ended", ended(1)).await;
        let dequeued = of(&found, POSTGRES, "dequeued").next().unwrap();
        let Seen::Dequeued { group, payload_hash, payload, .. } = &dequeued.sighting.what else { unreachable!() };
        match payload {
            Some(payload) => assert_eq!((key, payload.get(), *payload_hash), ("payload", other.get(), other.hash())),
            None => assert_eq!((key, group.as_str()), ("group", "elsewhere")),
        }
    }
    let found = seen(&world, "slow", "it has ended", |found| count(found, Side::Temporal, "ended") == 1).await;
    let slow = of(&found, Side::Temporal, "dequeued").next().unwrap();
    let Seen::Dequeued { due_at, .. } = slow.sighting.what else { unreachable!() };
    assert!(slow.sighting.at - due_at > TimeDelta::milliseconds(590), "{slow:?}");

    let real = seen(&world, "real", "it has ended", ended(1)).await;
    assert!(of(&real, POSTGRES, "dequeued").all(|r| !r.sighting.rehearsal));
    world.succeeded("real").await;
    let mut sides = world.runner.sides("real");
    sides.sort();
    assert_eq!(sides, ["postgres", "temporal"]);

    world.succeeded("dropped").await;
    let places = "select (select count(*) from crossover.running) + (select count(*) from crossover.ready)
        + (select count(*) from crossover.scheduled)";
    until("the copy is nowhere", async || (world.scalar::<i64>(places).await == 0).then_some(())).await;
    node.stop().await;
    let dropped = log(&world).of(&[world.id("dropped")]).await.unwrap();
    assert!(dropped.iter().all(|r| r.sighting.side == Side::Temporal), "{dropped:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_early_or_out_of_order_as_it_is_told() {
    let world = World::new(Stage::Shadow).await;
    let node = world.node().await;
    faults::inject(POSTGRES, world.id("early"), Fault::Early);
    faults::inject(POSTGRES, world.id("first"), Fault::After(world.id("second")));
    let due = Utc::now() + TimeDelta::seconds(3);
    node.accepts(&with(world.request("early"), json!({ "run_at": due })), 201).await;
    for key in ["first", "second"] {
        node.post(&world.member("s", key)).await;
    }
    let mut at = Vec::new();
    for key in ["early", "first", "second"] {
        let found = seen(&world, key, "it has ended", |found| count(found, POSTGRES, "ended") == 1).await;
        at.push(begun(&found)[0]);
    }
    assert!(at[0].1 < at[0].0, "{at:?}");
    assert!(at[2].1 < at[1].1, "{at:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_is_twice_and_a_copy_is_where_none_should_be_as_it_is_told() {
    let world = World::new(Stage::Live).await;
    let node = world.node().await;
    faults::inject(POSTGRES, world.id("twice"), Fault::Twice);
    node.accepts(&world.request("twice"), 201).await;
    world.succeeded("twice").await;
    let both = |found: &[Recorded]| count(found, POSTGRES, "ended") + count(found, POSTGRES, "refused") == 2;
    let found = seen(&world, "twice", "both have ended", both).await;
    assert_eq!(begun(&found).len(), 2);
    let fences: Vec<_> = world.runner.of("twice").iter().map(|call| call.fence).collect();
    assert_eq!(fences, [(1, 1), (1, 1)]);
    world.flip(Stage::Complete, &[&node]).await;
    faults::inject(Side::Temporal, world.id("extra"), Fault::ExtraCopy);
    node.accepts(&world.request("extra"), 201).await;
    let rehearsed = |found: &[Recorded]| count(found, Side::Temporal, "ended") == 1;
    let found = seen(&world, "extra", "it was rehearsed", rehearsed).await;
    assert_eq!(count(&found, Side::Temporal, "delivered"), 1);
    node.stop().await;
}
