//! Copies that ask their pin before they run.

use crossover::interaction::{Envelope, Interaction};
use crossover::ledger::{Ledger, Scope, pool};
use crossover::policy::Policy;
use crossover::router::handover;

use super::*;
use crate::bridge::proxy::Proxy;
use crate::servers;

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_whose_key_postgres_owns_does_not_run() {
    let world = World::new().await;
    world.start(&world.later("taken", 2)).await;
    // The account has no mark of unpinned work, as if it had been overlooked: its first live pin arms it.
    let mut again = world.interaction("taken", None);
    again.run_at = Some(Utc::now() + TimeDelta::hours(1));
    let pin = world.pin(&again, Stage::Live).await;
    assert_eq!(pin.owner, Side::Postgres);
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.closed("taken").await;
    assert_eq!((world.asked("moved"), world.asked("own")), (1, 0));
    assert!(world.runner.keys().is_empty());
    assert_eq!(world.story("taken").await.unwrap().pin.outcome, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_that_was_overlooked_makes_its_own_pin_before_it_runs_and_settles_it() {
    let world = World::new().await;
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.start(&world.unpinned("alone", None)).await;
    world.start(&world.unpinned("member", Some("s"))).await;
    for key in ["alone", "member"] {
        let story = world.ended(key, Outcome::Succeeded).await;
        assert_eq!((story.pin.flag_revision.as_str(), story.pin.attempts), ("asked", 1));
    }
    assert_eq!((world.runner.calls().len(), world.asked("own")), (2, 2));
}

/// Two callers say different things under one key: the first one's copy came without a pin, the other's has it.
async fn with_other_work(world: &World, delivered: bool) -> Envelope {
    let copy = world.later("taken", 2);
    world.start(&copy).await;
    let mut other = world.interaction("taken", None);
    other.payload = crossover::interaction::Payload::parse("2".into()).unwrap();
    let pin = match delivered {
        true => world.pin(&other, Stage::Shadow).await,
        false => world.pin_undelivered(&other, Stage::Shadow).await,
    };
    assert_eq!(pin.owner, Side::Temporal);
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    copy
}

async fn runs_beside_it(delivered: bool) {
    let world = World::new().await;
    let copy = with_other_work(&world, delivered).await;
    if delivered {
        until("its delivery has found the copy", async || world.story("taken").await.unwrap().pin.conflict).await;
    }
    world.closed("taken").await;
    let calls = world.runner.calls();
    assert_eq!((calls.len(), calls[0].payload.get()), (1, copy.payload.get()));
    assert_eq!(world.asked("another"), 1);
    let pin = world.story("taken").await.unwrap().pin;
    assert!(pin.conflict.is_some() && pin.outcome.is_none(), "{pin:?}");
    let left = "select (select count(*) from crossover.outbox) + (select count(*) from crossover.ready)
        + (select count(*) from crossover.scheduled)";
    assert_eq!(world.count(left).await, 0, "the pin's own copies are held");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_whose_key_was_pinned_with_other_work_runs_and_that_pin_is_held() {
    runs_beside_it(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_beside_which_another_was_refused_runs_all_the_same() {
    runs_beside_it(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_beside_a_held_pin_that_is_reset_runs_under_a_later_fence_and_never_after_that_pin_has_ended() {
    let world = World::new().await;
    world.runner.shut();
    with_other_work(&world, false).await;
    let workflow = format!("{}:1", world.id("taken"));
    until("it runs", async || (world.runner.keys().len() == 1).then_some(())).await;
    world.reset(&workflow).await;
    until("it runs again", async || (world.runner.keys().len() == 2).then_some(())).await;
    assert_eq!(world.runner.calls().iter().map(|call| call.fence.attempt).collect::<Vec<_>>(), [1, 2]);
    assert!(world.ledger.cancel(world.id("taken"), "looked at").await.unwrap().is_some());
    world.reset(&workflow).await;
    world.closed("taken").await;
    assert_eq!(world.runner.keys().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_does_not_run_where_the_pins_own_has_another_place() {
    let world = World::new().await;
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.runner.shut();
    world.start(&world.later("taken", 3)).await;
    // The same key and the same payload, as a member of a series: another workflow, which does not know of the copy.
    world.pin(&world.interaction("taken", Some("s")), Stage::Shadow).await;
    until("it runs there", async || (world.runner.keys().len() == 1).then_some(())).await;
    world.closed("taken").await;
    assert_eq!(world.asked("other"), 1);
    world.runner.open();
    world.ended("taken", Outcome::Succeeded).await;
    assert_eq!(world.runner.keys().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn where_postgres_cant_be_reached_an_unpinned_copy_waits_and_then_runs_as_its_first_attempt() {
    let world = World::idle().await;
    let (_, address) = world.postgres.split_once('@').unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let proxy = Proxy::to(address).await;
    proxy.withhold_answers();
    let away = pool(&world.postgres.replace(address, &proxy.address), 5, std::time::Duration::from_millis(500));
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.work(Ledger::new(away.unwrap()));
    world.start(&world.unpinned("waits", None)).await;
    let failed = world.metrics.ledger_errors.with_label_values(&["ask"]);
    until("it has asked in vain, twice", async || (failed.get() >= 2).then_some(())).await;
    assert!(world.runner.keys().is_empty());
    proxy.answer();
    let story = world.ended("waits", Outcome::Succeeded).await;
    assert_eq!(story.pin.attempts, 1);
    assert_eq!(world.runner.calls()[0].fence.attempt, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_member_that_was_overlooked_waits_for_what_postgres_runs_of_its_series() {
    let world = World::new().await;
    let owned = world.pin(&world.interaction("p", Some("s")), Stage::Live).await;
    assert_eq!(owned.owner, Side::Postgres);
    // Its rehearsal would stand before the member in the series' workflow.
    world.sql("delete from crossover.outbox").await;
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.start(&world.unpinned("u", Some("s"))).await;
    until("it has its pin", async || world.story("u").await).await;
    assert_eq!(world.story("u").await.unwrap().pin.series_no, Some(2));
    until("it waits", async || {
        let status = world.client.series_status(&world.account, "sync", "s").await.ok()??;
        status.running.map(drop)
    })
    .await;
    assert!(world.runner.keys().is_empty());
    world.sql("select crossover.end_pins('postgres', array_agg(id), array[1], array[1], array['succeeded'], array[null::text]) from crossover.pins where owner = 'postgres'").await;
    world.ended("u", Outcome::Succeeded).await;
    assert_eq!(world.runner.keys(), ["u"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlooked_member_does_not_wait_for_what_waits_for_a_member_that_is_behind_it_in_its_own_workflow() {
    let world = World::new().await;
    let behind = world.pin_undelivered(&world.interaction("t", Some("s")), Stage::Shadow).await;
    world.sql("select crossover.change_state(account, 'armed') from crossover.accounts").await;
    let owned = world.pin_undelivered(&world.interaction("p", Some("s")), Stage::Live).await;
    assert_eq!((behind.owner, owned.owner, owned.series_no), (Side::Temporal, Side::Postgres, Some(2)));
    // Neither is delivered yet, so the overlooked one stands before them.
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.start(&world.unpinned("u", Some("s"))).await;
    let story = world.ended("u", Outcome::Succeeded).await;
    assert_eq!(story.pin.series_no, Some(3));
    assert_eq!(world.story("p").await.unwrap().pin.ended_at, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_reset_by_an_operator_after_its_end_does_not_run_again() {
    let world = World::new().await;
    world.pin(&world.interaction("done", None), Stage::Shadow).await;
    world.ended("done", Outcome::Succeeded).await;
    world.closed("done").await;
    world.reset(&format!("{}:1", world.id("done"))).await;
    until("the new run has asked", async || (world.asked("ended") == 1).then_some(())).await;
    world.closed("done").await;
    assert_eq!(world.runner.keys(), ["done"]);
    let story = world.story("done").await.unwrap();
    assert_eq!((story.pin.outcome, story.pin.attempts), (Some(Outcome::Succeeded), 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_reset_by_an_operator_after_a_handover_does_not_run() {
    let world = World::new().await;
    let mut waiting = world.interaction("moved", None);
    waiting.run_at = Some(Utc::now() + TimeDelta::seconds(3));
    assert_eq!(world.pin(&waiting, Stage::Live).await.owner, Side::Postgres);
    world.delivered().await;
    let scope = Scope { account: world.account.clone(), kind: None, id: None };
    let plan = handover::plan(&world.ledger, scope).await.unwrap();
    assert_eq!(handover::run(&world.ledger, &plan, "test", |_| {}).await.unwrap().moved, 1);
    let story = world.ended("moved", Outcome::Succeeded).await;
    assert_eq!((story.pin.owner, story.pin.epoch), (Side::Temporal, 2));
    // The rehearsal of before, and the copy that ran.
    for epoch in [1, 2] {
        let workflow = format!("{}:{epoch}", world.id("moved"));
        world.closed_id(&workflow).await;
        world.reset(&workflow).await;
        world.closed_id(&workflow).await;
    }
    assert_eq!((world.asked("ended"), world.asked("own")), (1, 0), "a rehearsal has nothing to ask");
    let fences: Vec<_> = world.runner.calls().iter().map(|call| (call.fence.epoch, call.fence.attempt)).collect();
    assert_eq!(fences, [(2, 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_of_what_runs_runs_it_under_a_later_fence_and_each_reset_again() {
    let world = World::new().await;
    world.runner.shut();
    let slow =
        Interaction { policy: Policy { max_attempts: 5, ..Policy::default() }, ..world.interaction("slow", None) };
    world.pin(&slow, Stage::Shadow).await;
    for runs in 1..=3 {
        until("it runs", async || (world.runner.keys().len() == runs).then_some(())).await;
        if runs < 3 {
            // Nobody knows whether the attempt has ended, nor will.
            world.reset(&format!("{}:1", world.id("slow"))).await;
        }
    }
    world.runner.open();
    let story = world.ended("slow", Outcome::Succeeded).await;
    assert_eq!(story.pin.attempts, 3);
    assert_eq!(world.runner.calls().iter().map(|call| call.fence.attempt).collect::<Vec<_>>(), [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_between_the_answer_and_the_execution_asks_for_itself() {
    let world = World::new().await;
    world.must_ask.store(true, std::sync::atomic::Ordering::SeqCst);
    world.runner.shut();
    world.start(&world.unpinned("one", None)).await;
    until("it runs", async || (world.runner.keys().len() == 1).then_some(())).await;
    assert_eq!(world.asked("own"), 1);
    world.sql("select crossover.end_pins('temporal', array_agg(id), array[1], array[1], array['succeeded'], array[null::text]) from crossover.pins").await;
    // The task that read the answer ended with event 16; what is before it goes along, and the answer is.
    let workflow = format!("{}:1", world.id("one"));
    let reset = ["workflow", "reset", "--workflow-id", &workflow, "--event-id", "16", "--reason", "test"];
    assert!(servers::cli(&reset).await);
    until("the new run has asked", async || (world.asked("ended") == 1).then_some(())).await;
    world.runner.open();
    world.closed("one").await;
    assert_eq!(world.runner.keys(), ["one"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attempt_that_a_reset_takes_along_into_the_new_run_asks_as_well() {
    let world = World::new().await;
    world.runner.shut();
    world.pin(&world.interaction("slow", None), Stage::Shadow).await;
    until("it runs", async || (world.runner.keys().len() == 1).then_some(())).await;
    // A workflow task after the attempt was scheduled, so that a reset to it copies the attempt.
    let workflow = format!("{}:1", world.id("slow"));
    assert!(servers::cli(&["workflow", "signal", "--workflow-id", &workflow, "--name", "adopt"]).await);
    world.sql("select crossover.end_pins('temporal', array_agg(id), array[1], array[1], array['succeeded'], array[null::text]) from crossover.pins").await;
    // The event that ends that task; before it is there, the reset is refused.
    let reset = ["workflow", "reset", "--workflow-id", &workflow, "--event-id", "9", "--reason", "test"];
    until("it is reset to that task", async || servers::cli(&reset).await.then_some(())).await;
    until("what was taken along has asked", async || (world.asked("ended") == 1).then_some(())).await;
    world.runner.open();
    world.closed("slow").await;
    assert_eq!(world.runner.keys(), ["slow"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_that_continued_as_new_asks_nothing_and_one_that_was_reset_runs_none_of_its_members_again() {
    let world = World::new().await;
    for key in ["a", "b", "c"] {
        world.pin(&world.interaction(key, Some("s")), Stage::Shadow).await;
    }
    for key in ["a", "b", "c"] {
        world.ended(key, Outcome::Succeeded).await;
    }
    let ran = world.runner.keys();
    assert_eq!(ran, ["a", "b", "c"]);
    assert_eq!(world.asked("ended") + world.asked("own"), 0, "the second run of the series is no reset");
    let series = crossover::temporal::wire::series_workflow_id(&world.account, "sync", "s");
    world.reset(&series).await;
    until("what runs again has asked", async || (world.asked("ended") >= 1).then_some(())).await;
    world.pin(&world.interaction("d", Some("s")), Stage::Shadow).await;
    world.ended("d", Outcome::Succeeded).await;
    assert_eq!(world.runner.keys(), ["a", "b", "c", "d"]);
}
