//! The Temporal side against a real Temporal. Postgres is played by a ledger in memory, the runner by a script.

mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use crossover::executor::Answer;
use crossover::interaction::{Envelope, Fence, Outcome, Side};
use crossover::ledger::{Resolution, Resolved, Untold};
use crossover::policy::{Doubt, Failure, OnUnknown};
use crossover::temporal::Terms;
use crossover::temporal::deliver::{DeliverError, Delivered};
use crossover::temporal::ledger::Step;
use crossover::temporal::wire::series_workflow_id;
use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use world::{EXACT, Script, TERMS, WINDOW, World, envelope, json, lazy_client, retryable, run_worker, until_healthy};

// ---- facts: executions ----

#[tokio::test(flavor = "multi_thread")]
async fn an_interaction_runs_once_and_settles_with_every_digit_of_its_payload() {
    let world = World::new().await;
    let one = envelope("one", Side::Temporal);
    world.script.answers.lock().unwrap().push_back(Answer::Done(json(EXACT)));
    assert!(matches!(world.deliver(&one).await, Delivered::Started));
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.epoch, end.attempt, end.reason), (Outcome::Succeeded, 1, 1, None));
    let report = end.attempt_report.unwrap();
    assert_eq!(report.result.unwrap().get(), EXACT);
    assert!(report.due_at <= report.started_at && report.started_at <= report.ended_at);
    let (call, _) = world.script.nth(1).await;
    assert_eq!(call.payload.get(), one.payload.get());
    assert_eq!((call.side, call.fence), (Side::Temporal, Fence { epoch: 1, attempt: 1 }));
    assert_eq!(world.until_closed(&one).await, "Completed");
    assert_eq!(world.script.count(), 1);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_delivery_starts_nothing_new() {
    let world = World::new().await;
    let one = envelope("one", Side::Temporal);
    let (a, b) = tokio::join!(world.deliver(&one), world.deliver(&one));
    assert!(matches!((a, b), (Delivered::Started, Delivered::Started)));
    world.until_closed(&one).await;
    assert!(matches!(world.deliver(&one).await, Delivered::Ended { outcome: Outcome::Succeeded, .. }));
    let two = envelope("two", Side::Temporal);
    world.deliver(&two).await;
    world.end_of(&two).await;
    assert_eq!(world.script.count(), 2);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retryable_failure_is_retried_after_the_policys_wait_with_the_next_fence() {
    let world = World::new().await;
    world.script.answers.lock().unwrap().push_back(retryable("busy"));
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 2));
    let ((first, at_first), (second, at_second)) = (world.script.nth(1).await, world.script.nth(2).await);
    assert!(second.fence > first.fence);
    let waited = at_second - at_first;
    assert!(waited >= Duration::from_millis(695) && waited < Duration::from_millis(2_000), "{waited:?}");
    let failed = world.book().until("the failed attempt", |book| book.attempts.first().cloned()).await;
    assert_eq!((failed.retry_ms, failed.error.as_deref()), (Some(700), Some("busy")));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_parked_while_the_ledger_is_away_is_told_to_it_later_and_waits_without_a_slot() {
    let world = World::new().await;
    world.book().change(|book| book.down = true);
    let lost = || Answer::unknown(Doubt::Connection, "it broke");
    world.script.answers.lock().unwrap().extend([lost(), lost()]);
    let mut one = envelope("one", Side::Temporal);
    one.policy.on_unknown = OnUnknown::Park;
    let two = Envelope { series: Some("s".into()), policy: one.policy.clone(), ..envelope("two", Side::Temporal) };
    for parked in [&one, &two] {
        world.deliver(parked).await;
    }
    world.script.nth(2).await;
    world.book().until("the ledger was asked", |book| (book.refused > 1).then_some(())).await;
    world.book().change(|book| book.down = false);
    for envelope in [&one, &two] {
        let mine = |book: &world::Book| book.parked.iter().find(|p| p.id == envelope.id).cloned();
        let parking = world.book().until("it is parked", mine).await;
        assert_eq!((parking.fence, parking.cause), (Fence { epoch: 1, attempt: 1 }, Doubt::Connection));
        let untold = |fence| Untold {
            resolution: Resolution { id: envelope.id, fence, answer: Resolved::Retry, result: None, reason: None },
            account: envelope.account.clone(),
            kind: envelope.kind.clone(),
            series: envelope.series.clone(),
            tries: 0,
        };
        // An answer to another attempt is none to this one.
        assert!(world.client.resolve(&untold(Fence { epoch: 1, attempt: 2 })).await.unwrap());
        for _ in 0..2 {
            assert!(world.client.resolve(&untold(parking.fence)).await.unwrap());
        }
        let end = world.end_of(envelope).await;
        assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 2));
    }
    let (_, third) = (world.script.nth(3).await, world.script.nth(4).await);
    assert_eq!((third.0.fence.attempt, world.script.count()), (2, 4));
    assert_eq!(world.until_closed(&one).await, "Completed");
    let untold = Untold {
        resolution: Resolution {
            id: one.id,
            fence: Fence { epoch: 1, attempt: 1 },
            answer: Resolved::Failed,
            result: None,
            reason: None,
        },
        account: one.account.clone(),
        kind: one.kind.clone(),
        series: None,
        tries: 0,
    };
    assert!(!world.client.resolve(&untold).await.unwrap(), "a workflow that has ended is gone");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runners_retry_after_is_heeded() {
    let world = World::new().await;
    let failure = Failure::Retryable { retry_after: Some(Duration::ZERO) };
    world.script.answers.lock().unwrap().push_back(Answer::Failed { failure, error: "now".into() });
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    let (_, at_first) = world.script.nth(1).await;
    let (_, at_second) = world.script.nth(2).await;
    assert!(at_second - at_first < Duration::from_millis(600));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permanent_failure_settles_as_failed_and_so_does_the_last_retryable_one() {
    let world = World::new().await;
    let permanent = Answer::Failed { failure: Failure::Permanent, error: "no such thing".into() };
    world.script.answers.lock().unwrap().push_back(permanent);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt, end.reason.as_deref()), (Outcome::Failed, 1, Some("no such thing")));
    world.script.answers.lock().unwrap().extend((0..3).map(|_| retryable("busy")));
    let two = envelope("two", Side::Temporal);
    world.deliver(&two).await;
    let end = world.end_of(&two).await;
    assert_eq!((end.outcome, end.attempt, end.reason.as_deref()), (Outcome::Failed, 3, Some("busy")));
    assert_eq!(world.until_closed(&two).await, "Completed");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_longer_than_the_heartbeat_timeout_is_one_attempt() {
    let world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    world.script.nth(1).await;
    tokio::time::sleep(TERMS.heartbeat() * 3).await;
    world.script.open();
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 1));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_runs_before_it_is_due() {
    let world = World::new().await;
    let mut one = envelope("one", Side::Temporal);
    one.run_at = Some(Utc::now() + TimeDelta::milliseconds(1_500));
    world.deliver(&one).await;
    let report = world.end_of(&one).await.attempt_report.unwrap();
    assert!(report.started_at >= one.run_at.unwrap());
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_waits_for_what_is_behind_even_while_postgres_is_away() {
    let world = World::new().await;
    let earlier = Uuid::from_u128(7);
    world.book().change(|book| book.unended.push(earlier));
    let mut one = envelope("one", Side::Temporal);
    one.behind = vec![earlier];
    world.deliver(&one).await;
    world.book().until("two looks", |book| (book.asked_behind >= 2).then_some(())).await;
    world.book().change(|book| book.down = true);
    world.book().until("a refused look", |book| (book.refused >= 20).then_some(())).await;
    assert_eq!(world.script.count(), 0);
    world.book().change(|book| {
        book.down = false;
        book.unended.clear();
    });
    assert_eq!(world.end_of(&one).await.outcome, Outcome::Succeeded);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_too_long_to_start_expires() {
    let world = World::new().await;
    world.worker.abort();
    let mut one = envelope("one", Side::Temporal);
    one.policy.start_timeout_ms = Some(500);
    world.script.shut.store(true, SeqCst);
    let (shutdown, ledger) = (world.shutdown.clone(), world.ledger.clone());
    let worker = run_worker(&world.server, &world.script, &ledger, &shutdown);
    // Every slot is taken, so the next one can't start.
    for n in 0..20 {
        world.deliver(&envelope(&format!("busy {n}"), Side::Temporal)).await;
    }
    world.script.nth(20).await;
    world.deliver(&one).await;
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Expired, 0));
    world.script.open();
    shutdown.cancel();
    worker.await.unwrap();
}

// ---- facts: settling and adoption ----

#[tokio::test(flavor = "multi_thread")]
async fn an_end_is_settled_when_the_ledger_is_back() {
    let world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    world.script.nth(1).await;
    world.book().change(|book| book.down = true);
    world.script.open();
    world.book().until("refusals", |book| (book.refused >= 5).then_some(())).await;
    assert!(world.client.describe(&one.workflow_id()).await.unwrap().unwrap().open);
    world.book().change(|book| book.down = false);
    assert_eq!(world.end_of(&one).await.outcome, Outcome::Succeeded);
    assert_eq!(world.until_closed(&one).await, "Completed");
    assert_eq!(world.script.count(), 1);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_copy_isnt_settled_unless_it_is_adopted() {
    let world = World::new().await;
    let unpinned = |key| Envelope { pinned: false, ..envelope(key, Side::Temporal) };
    world.script.shut.store(true, SeqCst);
    world.deliver(&unpinned("adopted")).await;
    world.script.nth(1).await;
    assert!(matches!(world.deliver(&envelope("adopted", Side::Temporal)).await, Delivered::AlreadyThere));
    world.script.open();
    world.end_of(&unpinned("adopted")).await;

    world.deliver(&unpinned("late")).await;
    world.until_closed(&unpinned("late")).await;
    match world.deliver(&envelope("late", Side::Temporal)).await {
        Delivered::Ended { outcome, attempt, result, error } => {
            assert_eq!((outcome, attempt, error), (Outcome::Succeeded, 1, None));
            assert_eq!(result.unwrap().get(), r#"{"ok":true}"#);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(world.book().change(|book| book.ends.len()), 1);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_owners_memo_is_an_owner_conflict() {
    let world = World::new().await;
    world.deliver(&envelope("one", Side::Temporal)).await;
    let other = world.client.deliver(&envelope("one", Side::Postgres)).await;
    assert!(matches!(&other, Err(DeliverError::OwnerConflict { found: Some(memo) }) if memo.owner == Side::Temporal));
    world.until_closed(&envelope("one", Side::Temporal)).await;
    let other = Envelope { payload_hash: "0".repeat(64), ..envelope("one", Side::Temporal) };
    assert!(matches!(world.client.deliver(&other).await, Err(DeliverError::OwnerConflict { .. })));
    world.close().await;
}

// ---- facts: rehearsals ----

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_occupies_until_the_real_attempt_ends_and_mirrors_its_retry() {
    let world = World::new().await;
    let one = envelope("one", Side::Postgres);
    world.deliver(&one).await;
    let first = world.book().until("the rehearsal", |book| book.opened(one.id, 1)).await;
    assert!(world.client.describe(&one.workflow_id()).await.unwrap().unwrap().open);
    let retry = Step::Retry { delay: Duration::from_millis(400) };
    world.book().change(|book| book.real.insert((one.id, 1), retry));
    let mirrored = world.book().until("its end", |book| book.closed(one.id, 1)).await;
    assert!(mirrored.mirrored);
    let second = world.book().until("the second attempt", |book| book.opened(one.id, 2)).await;
    let waited = second.dequeued_at - mirrored.closed_at;
    assert!(waited >= TimeDelta::milliseconds(300) && waited < TimeDelta::seconds(2), "{waited}");
    assert!(second.token != first.token && second.due_at > first.due_at);
    world.book().change(|book| book.real.insert((one.id, 2), Step::Succeeded(None)));
    assert_eq!(world.until_closed(&one).await, "Completed");
    assert_eq!(world.script.count(), 0);
    assert!(world.book().change(|book| book.ends.is_empty()));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_is_bounded_and_then_isnt_repeated() {
    let world = World::with(Terms { rehearsal_bound_ms: 600, ..TERMS }, WINDOW).await;
    let one = envelope("one", Side::Postgres);
    world.deliver(&one).await;
    world.book().until("the rehearsal", |book| book.opened(one.id, 1)).await;
    assert_eq!(world.until_closed(&one).await, "Completed");
    assert_eq!(world.book().change(|book| book.opened.len()), 1);
    // The real attempt ends at last: there is nothing left to end.
    world.book().change(|book| book.real.insert((one.id, 1), Step::Failed("too late".into())));
    let closed = world.book().until("its end", |book| book.closed(one.id, 1)).await;
    assert!(!closed.mirrored);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rehearsal_that_starts_while_postgres_is_away_is_recorded_later_as_the_same_attempt() {
    let world = World::new().await;
    world.book().change(|book| book.down = true);
    let one = envelope("one", Side::Postgres);
    world.deliver(&one).await;
    world.book().until("refusals", |book| (book.refused >= 3).then_some(())).await;
    world.book().change(|book| book.down = false);
    world.book().until("the rehearsal", |book| book.opened(one.id, 1)).await;
    world.book().change(|book| book.real.insert((one.id, 1), Step::Failed("no".into())));
    assert_eq!(world.until_closed(&one).await, "Completed");
    world.close().await;
}

// ---- facts: series ----

#[tokio::test(flavor = "multi_thread")]
async fn a_series_keeps_its_order_ignores_repeats_and_survives_continuing_as_new() {
    let world = World::new().await;
    let member = |n: i32| Envelope { series: Some("shard".into()), ..envelope(&format!("{n}"), Side::Temporal) };
    for n in 0..7 {
        world.deliver(&member(n)).await;
        world.deliver(&member(n / 2)).await;
    }
    world.end_of(&member(6)).await;
    // A repeat from two runs ago, with a request id that the server has forgotten.
    world.deliver(&Envelope { pinned: false, ..member(0) }).await;
    world.deliver(&member(7)).await;
    world.end_of(&member(7)).await;
    let keys: Vec<String> = world.script.calls.change(|calls| calls.iter().map(|(c, _)| c.key.clone()).collect());
    assert_eq!(keys, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    assert!(world.script.calls.change(|calls| calls.iter().all(|(c, _)| c.payload.get() == EXACT)));
    let mut ends: Vec<Uuid> = world.book().change(|book| book.ends.iter().map(|end| end.id).collect());
    // An end may be settled twice: a signal that comes during a workflow task makes the server discard the task.
    ends.dedup();
    assert_eq!(ends, (0..8).map(|n| member(n).id).collect::<Vec<_>>());
    let status = world.client.series_status("acme", "sync", "shard").await.unwrap().unwrap();
    assert_eq!((status.remembered.len(), status.pending.len()), (8, 0));
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_rehearses_and_executes_in_turn_and_settles_what_is_pinned_afterwards() {
    let world = World::new().await;
    let member = |key: &str, owner| Envelope { series: Some("shard".into()), ..envelope(key, owner) };
    let unpinned = Envelope { pinned: false, ..member("unpinned", Side::Temporal) };
    world.deliver(&unpinned).await;
    world.deliver(&member("rehearsed", Side::Postgres)).await;
    world.deliver(&member("last", Side::Temporal)).await;
    let open = world.book().until("the rehearsal", |book| book.opened.first().cloned()).await;
    assert_eq!(world.script.count(), 1);
    world.deliver(&member("unpinned", Side::Temporal)).await;
    world.book().change(|book| book.real.insert((open.id, 1), Step::Succeeded(None)));
    world.end_of(&member("last", Side::Temporal)).await;
    let end = world.end_of(&unpinned).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 1));
    assert_eq!(world.script.count(), 2);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_that_was_idle_for_a_window_ends_and_the_next_delivery_starts_another() {
    let world = World::with(TERMS, Duration::from_millis(800)).await;
    let member = |key: &str| Envelope { series: Some("shard".into()), ..envelope(key, Side::Temporal) };
    let workflow = series_workflow_id("acme", "sync", "shard");
    world.deliver(&member("a")).await;
    world.end_of(&member("a")).await;
    assert_eq!(world.until_closed_id(&workflow).await, "Completed");
    world.deliver(&member("b")).await;
    world.end_of(&member("b")).await;
    assert!(world.client.describe(&workflow).await.unwrap().unwrap().open);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_series_goes_on_where_it_was_when_its_worker_is_lost() {
    let world = World::new().await;
    let member = |n: i32| Envelope { series: Some("shard".into()), ..envelope(&format!("{n}"), Side::Temporal) };
    for n in 0..2 {
        world.deliver(&member(n)).await;
    }
    world.end_of(&member(1)).await;
    world.script.shut.store(true, SeqCst);
    for n in 2..5 {
        world.deliver(&member(n)).await;
    }
    world.script.nth(3).await;
    world.worker.abort();
    let heir = Arc::new(Script::default());
    let worker = run_worker(&world.server, &heir, &world.ledger, &world.shutdown);
    world.end_of(&member(4)).await;
    let fences: Vec<_> =
        heir.calls.change(|calls| calls.iter().map(|(c, _)| (c.key.clone(), c.fence.attempt)).collect());
    assert_eq!(fences, [("2".to_owned(), 2), ("3".to_owned(), 1), ("4".to_owned(), 1)]);
    world.shutdown.cancel();
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_into_a_series_that_keeps_continuing_as_new_is_never_refused_and_runs_once_each() {
    let world = World::new().await;
    let member = |n: i32| Envelope { series: Some("shard".into()), ..envelope(&format!("{n}"), Side::Temporal) };
    // The server lets a workflow continue as new once a second (history.workflowIdReuseMinimalInterval).
    let members: Vec<_> = (0..16).map(member).collect();
    futures::stream::iter(&members).for_each_concurrent(4, async |one| drop(world.deliver(one).await)).await;
    for one in &members {
        world.end_of(one).await;
    }
    assert_eq!(world.script.count(), 16);
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_run_once_each() {
    let world = World::new().await;
    let many: Vec<_> = (0..200).map(|n| envelope(&format!("{n}"), Side::Temporal)).collect();
    let began = Instant::now();
    futures::stream::iter(&many).for_each_concurrent(8, async |one| drop(world.deliver(one).await)).await;
    let delivered = began.elapsed();
    for one in &many {
        world.end_of(one).await;
    }
    println!("200 delivered in {delivered:?}, ended in {:?}", began.elapsed());
    assert_eq!(world.script.count(), 200);
    world.close().await;
}

// ---- facts: crashes and outages ----

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_workers_execution_is_attempted_again_after_the_heartbeat_timeout() {
    let world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    world.script.nth(1).await;
    world.worker.abort();
    let heir = Arc::new(Script::default());
    let worker = run_worker(&world.server, &heir, &world.ledger, &world.shutdown);
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Succeeded, 2));
    assert_eq!(heir.nth(1).await.0.fence, Fence { epoch: 1, attempt: 2 });
    world.shutdown.cancel();
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_execution_whose_last_worker_was_lost_fails_and_says_so() {
    let world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let mut one = envelope("one", Side::Temporal);
    one.policy.max_attempts = 1;
    world.deliver(&one).await;
    world.script.nth(1).await;
    world.worker.abort();
    let worker = run_worker(&world.server, &world.script, &world.ledger, &world.shutdown);
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Failed, 1));
    assert_eq!(end.reason.as_deref(), Some("its worker stopped answering, on its last attempt"));
    assert!(end.attempt_report.is_none());
    world.shutdown.cancel();
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_workflow_settles_as_cancelled_with_the_attempt_that_ran() {
    let world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    world.script.nth(1).await;
    world.server.cancel(&one.workflow_id()).await;
    let end = world.end_of(&one).await;
    assert_eq!((end.outcome, end.attempt), (Outcome::Cancelled, 1));
    assert_eq!(world.until_closed(&one).await, "Completed");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_isnt_there_is_a_refusal_and_not_a_doubt() {
    let world = World::new().await;
    let client = world::lazy_client_in("elsewhere", &world.server, TERMS, WINDOW);
    let refused = client.deliver(&envelope("one", Side::Temporal)).await;
    assert!(matches!(refused, Err(DeliverError::Refused { retryable: true, .. })), "{refused:?}");
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_worker_hands_its_execution_back() {
    let mut world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let one = envelope("one", Side::Temporal);
    world.deliver(&one).await;
    world.script.nth(1).await;
    world.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(15), &mut world.worker).await.expect("it drains").unwrap();
    let report = world.book().change(|book| book.attempts.first().cloned()).expect("the last attempt's record");
    assert_eq!((report.retry_ms, report.error.as_deref()), (Some(0), Some("its worker was stopped")));
    let (heir, shutdown) = (Arc::new(Script::default()), CancellationToken::new());
    let worker = run_worker(&world.server, &heir, &world.ledger, &shutdown);
    assert_eq!(world.end_of(&one).await.attempt, 2);
    shutdown.cancel();
    worker.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_and_restarted_temporal_loses_nothing_and_the_worker_finds_back() {
    let mut world = World::new().await;
    world.script.shut.store(true, SeqCst);
    let before = envelope("before", Side::Temporal);
    world.deliver(&before).await;
    world.script.nth(1).await;
    world.server.kill().await;
    let during = world.client.deliver(&envelope("during", Side::Temporal)).await;
    assert!(
        matches!(during, Err(DeliverError::InDoubt(_) | DeliverError::Refused { retryable: true, .. })),
        "{during:?}"
    );
    world.server.restart().await;
    until_healthy(&world.client).await;
    world.script.open();
    world.deliver(&envelope("during", Side::Temporal)).await;
    world.end_of(&before).await;
    world.end_of(&envelope("during", Side::Temporal)).await;
    world.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_made_while_temporal_is_down_says_so_quickly_and_delivers_when_it_is_up() {
    let mut world = World::new().await;
    world.server.kill().await;
    let began = Instant::now();
    let fresh = lazy_client(&world.server, TERMS, WINDOW);
    let one = envelope("one", Side::Temporal);
    let refused = fresh.deliver(&one).await;
    assert!(matches!(refused, Err(DeliverError::Refused { retryable: true, .. })), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    world.server.restart().await;
    until_healthy(&fresh).await;
    fresh.deliver(&one).await.unwrap();
    world.end_of(&one).await;
    world.close().await;
}
