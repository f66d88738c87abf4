//! Work that only excludes (`exclusive`): at most one of a key runs, in any order.

use crossover::ledger::{Resolved, Resolving};
use crossover::policy::Doubt;

use super::*;

impl World {
    pub(super) async fn exclude(&self, key: &str, exclusive: &str) -> Uuid {
        self.try_exclude(excluding(key, exclusive)).await.unwrap().pin.id
    }

    pub(super) async fn try_exclude(&self, interaction: Interaction) -> Result<Pinned, AfterFault> {
        self.ledger.pin_exclusive(request(&interaction)).await.unwrap()
    }

    /// Gives turns until there is nothing more to give; how many.
    pub(super) async fn turns(&self) -> i32 {
        let mut given = 0;
        loop {
            let turns = self.ledger.give_turns(100).await.unwrap();
            given += turns.given;
            if !turns.more && turns.given == 0 {
                return given;
            }
        }
    }

    /// Claims exactly `id`.
    async fn only(&self, id: Uuid) -> Claimed {
        let mut claimed = self.claim(1_000).await;
        assert_eq!(claimed.iter().map(|claimed| claimed.envelope.id).collect::<Vec<_>>(), [id]);
        claimed.remove(0)
    }

    async fn again(&self, claimed: &Claimed, wait: Duration) {
        assert_eq!(self.queue.finish(self.worker, &[retry(claimed, wait)]).await.unwrap().len(), 1);
    }

    async fn sql(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(self.ledger.pool()).await.unwrap();
    }
}

pub(super) fn excluding(key: &str, exclusive: &str) -> Interaction {
    Interaction { exclusive: Some(exclusive.to_owned()), ..interaction(key) }
}

pub(super) fn retry(claimed: &Claimed, wait: Duration) -> Finish {
    let failure = Some(Failure::RETRYABLE);
    Finish { failure, retry: Some(wait), ..Finish::of(claimed, Some(Failed)) }
}

pub(super) fn park(claimed: &Claimed) -> Finish {
    let failure = Some(Failure::Unknown { cause: Doubt::Worker });
    Finish { failure, park: true, ..Finish::of(claimed, Some(Failed)) }
}

const HOUR: Duration = Duration::from_secs(3_600);

#[tokio::test]
async fn of_one_exclusive_one_runs_at_a_time_by_priority_and_then_in_order() {
    let here = World::new().await;
    let (one, two, three) = (here.exclude("1", "e").await, here.exclude("2", "e").await, here.exclude("3", "e").await);
    let urgent = here.try_exclude(Interaction { priority: 5, ..excluding("4", "e") }).await.unwrap().pin.id;
    // Of another kind, it excludes as well; under another key or account it does not.
    let kind = Interaction { kind: "other".to_owned(), ..excluding("5", "e") };
    let kind = here.try_exclude(kind).await.unwrap().pin.id;
    let other = here.exclude("6", "f").await;
    here.arm("b").await;
    let account = Interaction { account: "b".to_owned(), ..excluding("1", "e") };
    let account = here.try_exclude(account).await.unwrap().pin.id;

    let claimed = here.claim(1_000).await;
    let mut first: Vec<Uuid> = claimed.iter().map(|claimed| claimed.envelope.id).collect();
    first.sort();
    let mut free = [one, other, account];
    free.sort();
    assert_eq!(first, free);
    assert!(claimed.iter().all(|claimed| claimed.exclusive));
    let mut held = claimed.into_iter().find(|claimed| claimed.envelope.id == one).unwrap();
    for next in [urgent, two, three, kind] {
        assert_eq!((here.state(next).await, here.turns().await), ("waiting".to_owned(), 0), "while another runs");
        assert!(here.claim(1_000).await.is_empty());
        here.finish(&held, if next == two { Failed } else { Succeeded }).await;
        assert_eq!(here.turns().await, 1);
        held = here.only(next).await;
    }
    here.finish(&held, Succeeded).await;
    assert_eq!(here.turns().await, 0);
    here.finish_running(other, Succeeded).await;
    here.finish_running(account, Succeeded).await;
    here.turns().await;
    assert_eq!(
        here.count("select (select count(*) from crossover.turns) + (select count(*) from crossover.turn_notes)").await,
        0
    );
}

#[tokio::test]
async fn what_waits_for_another_attempt_lets_the_next_go_and_keeps_its_place() {
    let here = World::new().await;
    let (one, two, three) = (here.exclude("1", "e").await, here.exclude("2", "e").await, here.exclude("3", "e").await);
    here.again(&here.only(one).await, HOUR).await;
    assert_eq!((here.state(one).await, here.turns().await), ("scheduled".to_owned(), 1));
    let held = here.only(two).await;
    // It is due while the second runs, and comes before the third, which came after it.
    here.sql("update crossover.turns set due_at = clock_timestamp() where state = 'later'").await;
    assert_eq!((here.turns().await, here.state(one).await), (0, "waiting".to_owned()));
    here.finish(&held, Succeeded).await;
    here.turns().await;
    let second = here.only(one).await;
    assert_eq!(second.fence.attempt, 2);
    here.finish(&second, Succeeded).await;
    here.turns().await;
    here.only(three).await;
}

#[tokio::test]
async fn what_is_due_later_has_no_turn_before() {
    let here = World::new().await;
    let later = Interaction { run_at: Some(Utc::now() + TimeDelta::hours(1)), ..excluding("1", "e") };
    let later = here.try_exclude(later).await.unwrap().pin.id;
    let now = here.exclude("2", "e").await;
    assert_eq!(here.state(later).await, "scheduled");
    let held = here.only(now).await;
    let next_ms = here.ledger.give_turns(10).await.unwrap().next_ms.unwrap();
    assert!((3.0e6..3.7e6).contains(&next_ms), "{next_ms}");
    here.sql("update crossover.turns set due_at = clock_timestamp() where state = 'later'").await;
    here.finish(&held, Succeeded).await;
    assert_eq!(here.turns().await, 1);
    here.only(later).await;
}

#[tokio::test]
async fn whose_turn_is_cancelled_gives_it_up_and_what_waits_for_it_is_cancelled_at_once() {
    let here = World::new().await;
    let (one, two, three) = (here.exclude("1", "e").await, here.exclude("2", "e").await, here.exclude("3", "e").await);
    let last = here.exclude("4", "e").await;
    assert_eq!(here.ledger.cancel(two, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.ledger.cancel(one, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.turns().await, 1);
    let held = here.only(three).await;
    // What runs hears of it, and is not tried again.
    assert_eq!(here.ledger.cancel(three, "enough").await.unwrap(), Some(Cancelling::Asked));
    here.again(&held, HOUR).await;
    assert_eq!((here.state(three).await, here.turns().await), ("cancelled".to_owned(), 1));
    // And what waits for another attempt.
    here.again(&here.only(last).await, HOUR).await;
    assert_eq!(here.ledger.cancel(last, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    here.turns().await;
    assert_eq!(
        here.count("select (select count(*) from crossover.turns) + (select count(*) from crossover.turn_notes)").await,
        0
    );
}

#[tokio::test]
async fn a_turn_that_died_with_its_worker_is_taken_over_and_given_on() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    let (dead, moment) = (Uuid::new_v4(), Duration::from_millis(1));
    let claim = Claim { worker: dead, limit: 10, executions_only: false, lease: moment };
    let held = here.queue.claim(claim).await.unwrap();
    assert_eq!((held.len(), here.turns().await), (1, 0), "nobody takes the turn of what may run");
    let reaper = Uuid::new_v4();
    let lost = until("its lease has run out", async || {
        let lost = here.queue.take_over(reaper, (reaper, &[]), 10, moment, HOUR).await.unwrap();
        (!lost.is_empty()).then_some(lost)
    })
    .await;
    assert_eq!((lost[0].envelope.id, lost[0].exclusive, here.turns().await), (one, true, 0));
    assert_eq!(here.queue.finish(reaper, &[retry(&lost[0], HOUR)]).await.unwrap(), [one]);
    assert_eq!(here.turns().await, 1);
    here.only(two).await;
    assert!(here.queue.finish(dead, &[end(&held[0], Succeeded)]).await.unwrap().is_empty(), "it is late");
}

#[tokio::test]
async fn what_is_handed_back_unbegun_keeps_its_turn() {
    let here = World::new().await;
    let (one, _two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    here.only(one).await;
    assert_eq!(here.queue.release_unknown(here.worker, &[]).await.unwrap(), 1);
    assert_eq!(here.turns().await, 0);
    here.only(one).await;
}

#[tokio::test]
async fn what_is_parked_gives_its_turn_up_and_waits_for_it_again() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    let held = here.only(one).await;
    here.queue.finish(here.worker, &[park(&held)]).await.unwrap();
    assert_eq!((here.state(one).await, here.turns().await), ("unknown_outcome".to_owned(), 1));
    let held = here.only(two).await;
    let done = here.ledger.resolve(one, Resolved::Retry, None, None, "somebody").await.unwrap();
    assert!(matches!(done, Resolving::Done), "{done:?}");
    assert_eq!((here.state(one).await, here.turns().await), ("waiting".to_owned(), 0));
    here.finish(&held, Succeeded).await;
    here.turns().await;
    let held = here.only(one).await;
    here.queue.finish(here.worker, &[park(&held)]).await.unwrap();
    here.ledger.resolve(one, Resolved::Succeeded, None, None, "somebody").await.unwrap();
    here.turns().await;
    assert_eq!(
        here.count("select (select count(*) from crossover.turns) + (select count(*) from crossover.turn_notes)").await,
        0
    );
}

#[tokio::test]
async fn a_series_and_what_runs_after_others_come_to_their_turn_last() {
    let here = World::new().await;
    let other = here.exclude("other", "e").await;
    let of_series = |key: &str| Interaction { series: Some("s".to_owned()), ..excluding(key, "e") };
    let head = here.try_exclude(of_series("1")).await.unwrap().pin.id;
    let second = here.try_exclude(of_series("2")).await.unwrap().pin.id;
    let upstream = here.pin("up").await;
    let after = After { ids: vec![upstream], when: All, on_failure: Skip };
    let after = here.try_exclude(Interaction { after: Some(after), ..excluding("3", "e") }).await.unwrap().pin.id;

    // Whose `after` has ended waits for its turn like any other, by the order in which all came.
    let mut both = [other, upstream];
    both.sort();
    assert_eq!(here.claimed().await, both);
    here.finish_running(upstream, Succeeded).await;
    assert_eq!((here.settle().await.released, here.turns().await), (1, 0));
    let waits = here.ledger.waits(after).await.unwrap().unwrap();
    assert_eq!((waits.named, waits.exclusive.as_deref(), waits.turn.unwrap().id), (0, Some("e"), other));
    let waits = here.ledger.waits(second).await.unwrap().unwrap();
    assert_eq!((waits.behind.unwrap().id, waits.exclusive), (head, None), "it is not its turn in its series");
    for (ends, next) in [(other, head), (head, second), (second, after)] {
        here.finish_running(ends, Succeeded).await;
        here.turns().await;
        assert_eq!(here.claimed().await, [next]);
    }
    // What is skipped excludes nobody.
    let failed = here.pin("bad").await;
    let skipped = After { ids: vec![failed], when: All, on_failure: Skip };
    let skipped = here.try_exclude(Interaction { after: Some(skipped), ..excluding("4", "e") }).await.unwrap().pin.id;
    here.run(&[(failed, Failed)]).await;
    here.settle().await;
    assert_eq!(here.state(skipped).await, "cancelled");
    here.finish_running(after, Succeeded).await;
    here.turns().await;
    assert_eq!(here.count("select count(*) from crossover.turns").await, 0);
}

#[tokio::test]
async fn what_waits_at_the_gate_of_its_group_has_the_turn_and_says_so() {
    let here = World::new().await;
    here.sql("select crossover.set_group('g', '{\"max_running\": 1}'); select crossover.pause_group('g', 'a test')")
        .await;
    let gated = Interaction { group: Some("g".to_owned()), ..excluding("1", "e") };
    let gated = here.try_exclude(gated).await.unwrap().pin.id;
    let two = here.exclude("2", "e").await;
    assert_eq!(
        (here.state(gated).await, here.turns().await, here.state(two).await),
        ("waiting".into(), 0, "waiting".into())
    );
    let waits = here.ledger.waits(two).await.unwrap().unwrap();
    assert_eq!(waits.turn.as_ref().unwrap().id, gated);
    assert!(waits.turn.unwrap().reason.unwrap().contains("a test"));
    assert_eq!(here.ledger.release(two).await.unwrap(), Some(Releasing::Excluded(Some(gated))), "nobody breaks it");
    assert_eq!(here.ledger.cancel(gated, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.turns().await, 1);
    here.only(two).await;
}

#[tokio::test]
async fn what_waits_for_its_turn_does_not_grow_old_for_its_start_time_out() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    let held = here.only(one).await;
    here.sql("update crossover.turns set due_at = due_at - interval '1 hour' where state = 'waits'").await;
    here.finish(&held, Succeeded).await;
    here.turns().await;
    let claimed = here.only(two).await;
    assert!(claimed.started_at - claimed.due_at < TimeDelta::minutes(1), "{claimed:?}");
}

#[tokio::test]
async fn only_what_postgres_alone_has_excludes_and_a_repeated_key_keeps_what_it_said_first() {
    let here = World::new().await;
    let live = excluding("1", "e");
    let refused = here.ledger.pin_exclusive(PinRequest { stage: Stage::Live, ..request(&live) }).await.unwrap();
    assert_eq!(refused.unwrap_err(), AfterFault::Exclusive);
    let unarmed = Interaction { account: "c".to_owned(), ..excluding("1", "e") };
    assert_eq!(here.try_exclude(unarmed).await.unwrap_err(), AfterFault::Exclusive);
    let nobody = After { ids: vec![Uuid::new_v4()], when: All, on_failure: Skip };
    let unknown = here.try_exclude(Interaction { after: Some(nobody), ..excluding("1", "e") }).await.unwrap_err();
    assert!(matches!(unknown, AfterFault::Unknown(_)));
    assert_eq!(here.count("select count(*) from crossover.turns").await, 0, "nothing was written");

    let first = here.try_exclude(excluding("1", "e")).await.unwrap();
    let again = here.try_exclude(excluding("1", "f")).await.unwrap();
    assert_eq!((first.created, again.created, first.pin.id), (true, false, again.pin.id));
    let again = here.ledger.pin_exclusive(PinRequest { stage: Stage::Live, ..request(&live) }).await.unwrap();
    assert!(!again.unwrap().created);
    assert_eq!(here.count("select count(*) from crossover.turns where exclusive = 'e'").await, 1);
    let plain = here.pin("2").await;
    assert!(!here.try_exclude(excluding("2", "e")).await.unwrap().created);
    assert_eq!(here.count("select count(*) from crossover.turns").await, 1);
    assert_eq!(here.state(plain).await, "ready");
}

#[tokio::test]
async fn what_excludes_is_not_handed_over() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    let scope = Scope { account: ACCOUNT.to_owned(), kind: None, id: None };
    let (handover, _) = here.ledger.begin_handover(&scope, "somebody").await.unwrap();
    let candidates = here.ledger.handover_candidates(&scope).await.unwrap();
    assert_eq!((candidates[0].what.as_str(), candidates[0].interactions), ("exclusive", 2));
    for answer in here.ledger.hand_over(handover, ACCOUNT, &[one, two]).await.unwrap() {
        assert_eq!(answer.answer, "exclusive");
    }
    here.only(one).await;
}

#[tokio::test]
async fn an_enqueue_in_an_open_transaction_holds_up_no_line() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    let held = here.only(one).await;
    let mut open = here.ledger.pool().begin().await.unwrap();
    let (late, idle) = (excluding("3", "e"), excluding("4", "f"));
    here.ledger.pin_exclusive_in(&mut open, request(&late)).await.unwrap().unwrap();
    let idle = here.ledger.pin_exclusive_in(&mut open, request(&idle)).await.unwrap().unwrap().pin.id;
    here.finish(&held, Succeeded).await;
    assert_eq!(here.turns().await, 1);
    here.only(two).await;
    // Whose turn it will be with that commit, if it comes, nobody knows: what comes now does not wait for it, but in the line.
    let five = here.exclude("5", "f").await;
    assert_eq!((here.turns().await, here.state(five).await), (0, "waiting".to_owned()));
    open.rollback().await.unwrap();
    assert_eq!(here.turns().await, 1);
    here.only(five).await;
    assert!(here.ledger.story(idle).await.unwrap().is_none());
}

#[tokio::test]
async fn a_long_line_makes_no_step_longer() {
    let here = World::new().await;
    let one = here.exclude("1", "e").await;
    let held = here.only(one).await;
    here.sql("select f.created from generate_series(1, 3000) n, crossover.pin_exclusive('a', 'n' || n, 'k', 'complete', 'r', null, null,
            'default', 0::smallint, null, sha256('1'), '1', '{}', 100, '0', null, false, false, 'e',
            (select exclusive_id from crossover.turns where state = 'turn')) f").await;
    here.turns().await;
    here.finish(&held, Succeeded).await;
    // All in one transaction, whose reads are counted.
    let mut tx = here.ledger.pool().begin().await.unwrap();
    let given: i32 =
        sqlx::query_scalar("select given from crossover.give_turns(500)").fetch_one(&mut *tx).await.unwrap();
    let read: i64 = sqlx::query_scalar(
        "select pg_stat_get_xact_tuples_returned(c.oid) + pg_stat_get_xact_tuples_fetched(c.oid)
         from pg_class c where c.oid = 'crossover.turns'::regclass",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert!(given == 1 && read < 50, "{given} were given and {read} rows read");
}

#[tokio::test]
async fn a_turn_that_was_overlooked_is_found_and_given_on() {
    let here = World::new().await;
    let (one, two) = (here.exclude("1", "e").await, here.exclude("2", "e").await);
    here.exclude("3", "f").await;
    // By nothing that is known: the copy is gone, and so is a note.
    here.turns().await;
    sqlx::query("delete from crossover.ready where id = $1").bind(one).execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.ledger.find_overlooked_turns(None, 10).await.unwrap(), (0, None), "too early to say");
    here.sql("update crossover.turns set since = since - interval '1 hour'").await;
    let (found, from) = here.ledger.find_overlooked_turns(None, 1).await.unwrap();
    let (more, from) = here.ledger.find_overlooked_turns(from, 1).await.unwrap();
    let (none, _) = here.ledger.find_overlooked_turns(from, 1).await.unwrap();
    assert_eq!((found + more, none), (1, 0));
    here.sql("delete from crossover.turn_notes").await;
    assert_eq!(here.turns().await, 0);
    here.sql("update crossover.turns set since = since - interval '1 hour'").await;
    assert_eq!(here.ledger.find_overlooked_turns(None, 10).await.unwrap().0, 1);
    assert_eq!(here.turns().await, 1);
    assert!(here.claimed().await.contains(&two));
}
