//! The search attribute by which workflows are listed, and what happens without it.

use crossover::temporal::attribute::{AccountAttribute, Found};
use crossover::temporal::deliver::Delivered;

use super::*;
use crossover::interaction::Envelope;

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_the_search_attribute_takes_every_start_and_what_is_open_is_found_all_the_same() {
    let world = World::new().await;
    let name = format!("Missing{}", uuid::Uuid::new_v4().simple());
    let client = world.client.clone().listed_by(&name);
    assert!(!client.has_attribute().await.unwrap());
    let (copy, member) = (
        world.later("later", 3_600),
        Envelope { run_at: world.later("", 3_600).run_at, ..world.unpinned("member", Some("s")) },
    );
    for envelope in [&copy, &member] {
        assert!(matches!(client.deliver(envelope).await.unwrap(), Delivered::Started));
    }
    assert_eq!(world.metrics.reconciliation.unlisted.get(), 2);
    let reconciler = world.reconciler_of(&client);
    let row = until("both have a pin", async || {
        let row = reconciler.step(&world.account, 1).await.unwrap();
        row.done_at.is_some().then_some(row)
    })
    .await;
    assert_eq!(row.pinned, 2, "{row:?}");
    assert!(world.story("later").await.is_some() && world.story("member").await.is_some());

    assert_eq!(client.ensure_attribute().await.unwrap(), Found::Created);
    assert_eq!(client.ensure_attribute().await.unwrap(), Found::There);
    client.deliver(&world.later("listed", 3_600)).await.unwrap();
    assert_eq!(world.metrics.reconciliation.unlisted.get(), 2);
    let condition = format!("{name} = '{}'", AccountAttribute::value(&world.account));
    until("it is listed by the attribute", async || {
        (client.open(&condition, Vec::new()).await.unwrap().0.len() == 1).then_some(())
    })
    .await;
    // What was started before is found beside it.
    let row = until("all are found", async || {
        let row = reconciler.step(&world.account, 2).await.unwrap();
        row.done_at.is_some().then_some(row)
    })
    .await;
    assert_eq!((row.listed, row.pinned), (3, 1), "{row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_that_continued_as_new_is_still_listed_by_its_account() {
    let world = World::new().await;
    for key in ["a", "b", "c", "d", "e"] {
        world.start(&world.unpinned(key, Some("s"))).await;
    }
    until("all ran", async || (world.runner.keys().len() == 5).then_some(())).await;
    let condition = format!("{} = '{}'", world.client.attribute(), AccountAttribute::value(&world.account));
    let open = until("the series is listed", async || {
        let (open, _) = world.client.open(&condition, Vec::new()).await.unwrap();
        (open.len() == 1).then_some(open)
    })
    .await;
    let first = world.client.describe(&open[0].workflow_id).await.unwrap().unwrap();
    assert!(first.open);
    let row = world.reconcile().await;
    assert_eq!((row.pinned, row.remembered), (0, 5), "what has ended is told apart: {row:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_reconciliation_begins_anew_and_an_earlier_one_is_refused() {
    let world = World::idle().await;
    world.start(&world.later("one", 3_600)).await;
    assert!(world.reconcile().await.done_at.is_some());
    let second = world.reconciler().step(&world.account, 2).await.unwrap();
    assert_eq!((second.generation, second.pinned), (2, 0));
    let refused = world.reconciler().step(&world.account, 1).await.unwrap_err();
    assert!(refused.to_string().contains("later"), "{refused}");
    let status = world.ledger.reconciliation(&world.account).await.unwrap().unwrap();
    assert_eq!(status.generation, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_that_no_worker_serves_is_not_passed_over() {
    let world = World::idle().await;
    world.start(&world.unpinned("a", Some("s"))).await;
    let refused = until("a pass finds it", async || world.reconciler().step(&world.account, 1).await.err()).await;
    assert!(refused.to_string().contains("worker"), "{refused}");
    let status = world.ledger.reconciliation(&world.account).await.unwrap().unwrap();
    assert!(status.done_at.is_none() && status.error.is_some(), "{status:?}");
    world.work(world.ledger.clone());
    until("a worker's answer ends it", async || world.reconciler().step(&world.account, 1).await.ok()?.done_at).await;
}
