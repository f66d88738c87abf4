//! Work that waits for other work, on a real Postgres.

#[cfg(feature = "temporal")]
mod faces;
mod programs;
#[cfg(feature = "temporal")]
mod turn_faces;
mod turn_programs;
mod turns;

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use crossover::interaction::{After, Interaction, OnFailure, Outcome, Payload, Stage, When, interaction_id};
use crossover::ledger::{self, AfterFault, Cancelling, Ledger, PinRequest, Pinned, Releasing, Scope, Settled};
use crossover::policy::{Failure, Policy};
use crossover::queue::tasks::{self, NewTask, Tasks};
use crossover::queue::{Claim, Claimed, Finish, Queue};
use uuid::Uuid;

use crate::servers;
use crate::wait::until;

const ACCOUNT: &str = "a";
/// Longer than a test takes.
const LEASE: Duration = Duration::from_secs(600);

/// A database of a test's own, with one account that is armed.
struct World {
    ledger: Ledger,
    queue: Queue,
    tasks: Tasks,
    worker: Uuid,
}

impl World {
    async fn new() -> Self {
        let ledger = Ledger::new(ledger::pool(&servers::database().await, 10, Duration::from_secs(10)).unwrap());
        ledger.migrate().await.unwrap();
        let (queue, tasks) = (Queue::new(ledger.pool().clone()), Tasks::new(ledger.pool().clone()));
        let here = Self { ledger, queue, tasks, worker: Uuid::new_v4() };
        here.arm(ACCOUNT).await;
        here.tasks.beat(here.worker, &[], LEASE).await.unwrap();
        here
    }

    /// The first live pin of an account without a past arms it; it is ended at once.
    async fn arm(&self, account: &str) {
        let first = Interaction { account: account.to_owned(), ..interaction("first") };
        let pinned = self.ledger.pin(request(&first)).await.unwrap();
        assert_eq!(self.ledger.cancel(pinned.pin.id, "not needed").await.unwrap(), Some(Cancelling::Cancelled));
    }

    /// Pins `key`, to run after `ids`.
    async fn after(&self, key: &str, ids: &[Uuid], when: When, on_failure: OnFailure) -> Uuid {
        self.try_after(interaction(key), ids, when, on_failure).await.unwrap().pin.id
    }

    async fn try_after(
        &self,
        interaction: Interaction,
        ids: &[Uuid],
        when: When,
        on_failure: OnFailure,
    ) -> Result<Pinned, AfterFault> {
        let after = After { ids: ids.to_vec(), when, on_failure };
        self.ledger.pin_after(request(&interaction), &after).await.unwrap()
    }

    async fn pin(&self, key: &str) -> Uuid {
        self.ledger.pin(request(&interaction(key))).await.unwrap().pin.id
    }

    async fn member(&self, series: &str, key: &str) -> Uuid {
        let member = Interaction { series: Some(series.to_owned()), ..interaction(key) };
        self.ledger.pin(request(&member)).await.unwrap().pin.id
    }

    async fn task(&self) -> Uuid {
        self.task_due(None).await
    }

    async fn task_at(&self, run_at: DateTime<Utc>) -> Uuid {
        self.task_due(Some(run_at)).await
    }

    async fn task_due(&self, run_at: Option<DateTime<Utc>>) -> Uuid {
        let task = NewTask {
            id: tasks::new_id(Utc::now()),
            account: ACCOUNT.to_owned(),
            kind: "k".to_owned(),
            group: None,
            run_at,
            priority: 0,
            vt: 0,
            flag_revision: "test".to_owned(),
            policy: Policy::default(),
            payload: Payload::parse("1".to_owned()).unwrap(),
        };
        assert_eq!(self.tasks.enqueue(std::slice::from_ref(&task)).await.unwrap(), [task.id]);
        task.id
    }

    async fn claim(&self, limit: i64) -> Vec<Claimed> {
        let claim = Claim { worker: self.worker, limit, executions_only: false, lease: LEASE };
        self.queue.claim(claim).await.unwrap()
    }

    /// What a claim of everything takes.
    async fn claimed(&self) -> Vec<Uuid> {
        let mut ids: Vec<Uuid> = self.claim(1_000).await.iter().map(|claimed| claimed.envelope.id).collect();
        ids.sort();
        ids
    }

    async fn finish(&self, claimed: &Claimed, outcome: Outcome) {
        assert_eq!(self.queue.finish(self.worker, &[end(claimed, outcome)]).await.unwrap().len(), 1);
    }

    /// Runs what is ready, and nothing else, to these ends.
    async fn run(&self, ends: &[(Uuid, Outcome)]) {
        let claimed = self.claim(1_000).await;
        assert_eq!(claimed.len(), ends.len(), "{claimed:?}");
        for claimed in &claimed {
            let end = ends.iter().find(|(id, _)| *id == claimed.envelope.id);
            self.finish(claimed, end.expect("it is one of them").1).await;
        }
    }

    async fn settle(&self) -> Settled {
        let mut all = Settled::default();
        loop {
            let one = self.ledger.settle_dependents(100).await.unwrap();
            all = Settled { released: all.released + one.released, skipped: all.skipped + one.skipped, ..one };
            if !one.more {
                return all;
            }
        }
    }

    async fn state(&self, id: Uuid) -> String {
        self.ledger.story(id).await.unwrap().expect("it is pinned").state
    }

    async fn reason(&self, id: Uuid) -> Option<String> {
        self.ledger.story(id).await.unwrap().expect("it is pinned").pin.reason
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(self.ledger.pool()).await.unwrap()
    }
}

fn interaction(key: &str) -> Interaction {
    Interaction {
        account: ACCOUNT.to_owned(),
        kind: "k".to_owned(),
        key: key.to_owned(),
        key_made: false,
        payload: Payload::parse("1".to_owned()).unwrap(),
        series: None,
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
        after: None,
        exclusive: None,
    }
}

fn request(interaction: &Interaction) -> PinRequest<'_> {
    PinRequest { interaction, stage: Stage::Complete, revision: "test", grace: Duration::ZERO }
}

fn end(claimed: &Claimed, outcome: Outcome) -> Finish {
    let failure = (outcome == Outcome::Failed).then_some(Failure::Permanent);
    Finish { failure, ..Finish::of(claimed, Some(outcome)) }
}

use OnFailure::{Run, Skip};
use Outcome::{Failed, Succeeded};
use When::{All, Any};

#[tokio::test]
async fn what_runs_after_others_is_placed_when_all_of_them_have_succeeded() {
    let here = World::new().await;
    let (one, two) = (here.pin("1").await, here.pin("2").await);
    let after = here.after("3", &[one, two], All, Skip).await;
    assert_eq!(here.state(after).await, "waiting");
    let waits = here.ledger.waits(after).await.unwrap().unwrap();
    assert_eq!((waits.named, waits.unended, waits.after.len()), (2, 2, 2));

    let claimed = here.claim(1).await;
    here.finish(&claimed[0], Succeeded).await;
    assert_eq!(here.settle().await.released, 0);
    let waits = here.ledger.waits(after).await.unwrap().unwrap();
    assert_eq!((waits.unended, waits.after[0].id, waits.after[0].state.as_str()), (1, two, "ready"));

    here.run(&[(two, Succeeded)]).await;
    assert_eq!(here.state(after).await, "waiting", "a settlement places it");
    assert_eq!(here.settle().await, Settled { released: 1, skipped: 0, waiting: true, more: false });
    assert_eq!(here.claimed().await, [after]);
    assert_eq!(here.settle().await, Settled::default());
    assert_eq!(here.count("select count(*) from crossover.dependencies").await, 0);
}

#[tokio::test]
async fn one_success_is_enough_for_any_and_a_failure_counts_for_what_runs_regardless() {
    let here = World::new().await;
    let ids = [here.pin("1").await, here.pin("2").await];
    let any = here.after("any", &ids, Any, Skip).await;
    let regardless = here.after("regardless", &ids, Any, Run).await;
    let all = here.after("all", &ids, All, Run).await;
    let claimed = here.claim(2).await;
    here.finish(&claimed[0], Failed).await;
    here.settle().await;
    assert_eq!(here.claimed().await, [regardless]);
    here.finish(&claimed[1], Succeeded).await;
    here.settle().await;
    let mut both = [any, all];
    both.sort();
    assert_eq!(here.claimed().await, both);
}

#[tokio::test]
async fn what_can_not_succeed_any_more_is_skipped_and_so_is_what_waits_for_that() {
    let here = World::new().await;
    let (one, two) = (here.pin("1").await, here.pin("2").await);
    let first = here.after("3", &[one, two], All, Skip).await;
    let second = here.after("4", &[first], All, Skip).await;
    let anyway = here.after("5", &[second], All, Run).await;
    let claimed = here.claim(1).await;
    here.finish(&claimed[0], Failed).await;
    // The other one has not ended, and it makes no difference any more.
    assert_eq!(here.settle().await, Settled { released: 1, skipped: 2, waiting: true, more: false });
    assert_eq!((here.state(first).await, here.state(second).await), ("cancelled".into(), "cancelled".into()));
    let failed = claimed[0].envelope.id;
    assert_eq!(
        here.reason(first).await.unwrap(),
        format!("skipped: {failed}, which it was to run after, did not succeed")
    );
    assert!(here.claimed().await.contains(&anyway));
}

#[tokio::test]
async fn what_has_ended_before_needs_no_settlement() {
    let here = World::new().await;
    let (good, bad) = (here.pin("1").await, here.pin("2").await);
    here.run(&[(good, Succeeded), (bad, Failed)]).await;
    let free = here.after("3", &[good], All, Skip).await;
    let skipped = here.after("4", &[good, bad], All, Skip).await;
    let lucky = here.after("5", &[good, bad], Any, Skip).await;
    assert_eq!(here.state(skipped).await, "cancelled");
    let mut ready = [free, lucky];
    ready.sort();
    assert_eq!(here.claimed().await, ready);
    assert_eq!(here.count("select count(*) from crossover.dependents").await, 0);
}

#[tokio::test]
async fn a_task_may_be_waited_for_through_its_retries() {
    let here = World::new().await;
    let (task, called_off) = (here.task().await, here.task().await);
    let after = here.after("1", &[task], All, Skip).await;
    let skipped = here.after("2", &[called_off], All, Skip).await;
    assert_eq!(here.ledger.waits(after).await.unwrap().unwrap().after[0].state, "ready");
    assert_eq!(here.tasks.cancel(called_off, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    let held = here.tasks.claim(here.worker, 10).await.unwrap();
    let again = Finish {
        failure: Some(Failure::RETRYABLE),
        retry: Some(Duration::ZERO),
        ..Finish::of(&held[0], Some(Outcome::Failed))
    };
    here.tasks.finish(here.worker, &[again]).await.unwrap();
    assert_eq!(here.settle().await.skipped, 1);
    assert_eq!((here.state(after).await, here.state(skipped).await), ("waiting".into(), "cancelled".into()));
    until("it is due again", async || (here.tasks.promote_due(10).await.unwrap().0 > 0).then_some(())).await;
    let held = here.tasks.claim(here.worker, 10).await.unwrap();
    here.tasks.finish(here.worker, &[end(&held[0], Succeeded)]).await.unwrap();
    assert_eq!(here.settle().await.released, 1);
    // One that has ended is seen at once.
    let late = here.after("3", &[task], All, Skip).await;
    let mut ready = [after, late];
    ready.sort();
    assert_eq!(here.claimed().await, ready);
}

#[tokio::test]
async fn what_is_unknown_or_another_accounts_or_of_another_stage_is_refused_and_nothing_is_written() {
    let here = World::new().await;
    here.arm("b").await;
    let (nobody, theirs) = (Uuid::new_v4(), interaction_id("b", "first"));
    let known = here.pin("1").await;
    let mut unknown = vec![nobody, theirs];
    unknown.sort();
    let refused = here.try_after(interaction("2"), &[nobody, known, theirs], All, Skip).await.unwrap_err();
    assert_eq!(refused, AfterFault::Unknown(unknown));
    let live = interaction("3");
    let after = After { ids: vec![known], when: All, on_failure: Skip };
    let refused = here.ledger.pin_after(PinRequest { stage: Stage::Live, ..request(&live) }, &after).await.unwrap();
    assert_eq!(refused.unwrap_err(), AfterFault::Stage);
    let unarmed = Interaction { account: "c".to_owned(), ..interaction("3") };
    assert_eq!(here.try_after(unarmed, &[known], All, Skip).await.unwrap_err(), AfterFault::Stage);
    assert_eq!(here.count("select count(*) from crossover.pins").await, 3);
    assert_eq!(here.count("select count(*) from crossover.dependents").await, 0);
}

#[tokio::test]
async fn a_repeated_key_keeps_what_it_waited_for_first() {
    let here = World::new().await;
    let (one, two) = (here.pin("1").await, here.pin("2").await);
    let first = here.try_after(interaction("3"), &[one], All, Skip).await.unwrap();
    let again = here.try_after(interaction("3"), &[two], All, Skip).await.unwrap();
    assert_eq!((first.created, again.created, first.pin.id), (true, false, again.pin.id));
    // Nor does it matter then that what it names is gone, or that the stage is another.
    let live = interaction("3");
    let after = After { ids: vec![Uuid::new_v4()], when: All, on_failure: Skip };
    let again = here.ledger.pin_after(PinRequest { stage: Stage::Live, ..request(&live) }, &after).await.unwrap();
    assert!(!again.unwrap().created);
    assert_eq!(here.ledger.waits(first.pin.id).await.unwrap().unwrap().after[0].id, one);
}

#[tokio::test]
async fn what_waits_is_cancelled_at_once_and_its_series_goes_on() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let head = Interaction { series: Some("s".to_owned()), ..interaction("2") };
    let head = here.try_after(head, &[one], All, Skip).await.unwrap().pin.id;
    let next = here.member("s", "3").await;
    let behind = Interaction { series: Some("s".to_owned()), ..interaction("4") };
    let behind = here.try_after(behind, &[one], All, Skip).await.unwrap().pin.id;
    assert_eq!(here.claimed().await, [one]);
    assert_eq!(here.ledger.cancel(head, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.ledger.cancel(behind, "enough").await.unwrap(), Some(Cancelling::Cancelled));
    assert_eq!(here.claimed().await, [next]);
    here.finish_running(one, Succeeded).await;
    assert_eq!(here.settle().await.released, 0);
    assert_eq!(here.count("select count(*) from crossover.dependencies").await, 0, "the end took them along");
    assert_eq!(here.count("select count(*) from crossover.ended_upstreams").await, 0);
}

impl World {
    async fn finish_running(&self, id: Uuid, outcome: Outcome) {
        let epoch = self.ledger.story(id).await.unwrap().unwrap().pin.epoch;
        let end = Finish {
            id,
            epoch,
            attempt: 1,
            rehearsal: false,
            ended_at: Utc::now(),
            outcome: Some(outcome),
            failure: None,
            retry: None,
            park: false,
            result: None,
            error: None,
            task: None,
        };
        assert_eq!(self.queue.finish(self.worker, &[end]).await.unwrap(), [id]);
    }
}

#[tokio::test]
async fn a_member_of_a_series_waits_for_its_turn_and_for_the_others() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let head = here.member("s", "2").await;
    let second = Interaction { series: Some("s".to_owned()), ..interaction("3") };
    let second = here.try_after(second, &[one], All, Skip).await.unwrap().pin.id;
    let third = here.member("s", "4").await;
    let mut ready = [one, head];
    ready.sort();
    assert_eq!(here.claimed().await, ready);
    // Its turn comes, and the others have not ended; then they have.
    here.finish_running(head, Succeeded).await;
    here.settle().await;
    assert!(here.claimed().await.is_empty());
    let waits = here.ledger.waits(second).await.unwrap().unwrap();
    assert_eq!((waits.behind, waits.unended), (None, 1));
    assert_eq!(here.ledger.waits(third).await.unwrap().unwrap().behind.unwrap().id, second);
    here.finish_running(one, Succeeded).await;
    here.settle().await;
    assert_eq!(here.claimed().await, [second]);

    // The other way round: the others have ended, and then its turn comes.
    let two = here.pin("5").await;
    let fourth = Interaction { series: Some("s".to_owned()), ..interaction("6") };
    let fourth = here.try_after(fourth, &[two], All, Skip).await.unwrap().pin.id;
    assert_eq!(here.claimed().await, [two]);
    here.finish_running(two, Succeeded).await;
    assert_eq!(here.settle().await.released, 1);
    assert!(here.claimed().await.is_empty(), "it is not its turn");
    here.finish_running(second, Succeeded).await;
    assert_eq!(here.claimed().await, [third]);
    here.finish_running(third, Succeeded).await;
    assert_eq!(here.claimed().await, [fourth]);
}

#[tokio::test]
async fn what_is_stuck_is_released_by_a_person_and_an_order_is_not_broken() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let stuck = here.after("2", &[one], All, Skip).await;
    assert_eq!(here.claimed().await, [one]);
    assert_eq!(here.ledger.release(stuck).await.unwrap(), Some(Releasing::Released { behind: None }));
    assert_eq!(here.claimed().await, [stuck]);
    assert_eq!(here.ledger.release(stuck).await.unwrap(), Some(Releasing::NotWaiting));
    // The end of what it waited for finds nobody.
    here.finish_running(one, Failed).await;
    assert_eq!(here.settle().await, Settled::default());
    assert_eq!(here.state(stuck).await, "running");
    here.finish_running(stuck, Succeeded).await;
    assert_eq!(here.ledger.release(stuck).await.unwrap(), Some(Releasing::Ended));
    assert_eq!(here.ledger.release(Uuid::new_v4()).await.unwrap(), None);

    let head = here.member("s", "3").await;
    let follower = here.member("s", "4").await;
    assert_eq!(here.ledger.release(follower).await.unwrap(), Some(Releasing::Behind(head)));
    let both = Interaction { series: Some("s".to_owned()), ..interaction("5") };
    let both = here.try_after(both, &[head], All, Skip).await.unwrap().pin.id;
    assert_eq!(here.ledger.release(both).await.unwrap(), Some(Releasing::Released { behind: Some(head) }));
    assert_eq!(here.claimed().await, [head]);
}

#[tokio::test]
async fn three_thousand_that_wait_for_one_go_on_in_bounded_steps() {
    let here = World::new().await;
    let one = here.pin("1").await;
    // As the function makes them, all at once.
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!(
        "select f.created from generate_series(1, 3000) n, crossover.pin_after('a', 'n' || n, 'k', 'complete', 'r', null, null,
            'default', 0::smallint, null, sha256('1'), '1', '{{}}', 100, '0', array['{one}'::uuid], false, false) f"
    )))
    .execute(here.ledger.pool())
    .await
    .unwrap();
    assert_eq!(here.claimed().await, [one]);
    here.finish_running(one, Succeeded).await;
    let first = here.ledger.settle_dependents(500).await.unwrap();
    assert_eq!(first, Settled { released: 500, skipped: 0, waiting: true, more: true });
    let rest = here.settle().await;
    assert_eq!((rest.released, rest.more), (2_500, false));
    assert_eq!(here.count("select count(*) from crossover.ready").await, 3_000);
}

#[tokio::test]
async fn a_note_with_many_that_wait_leaves_room_for_the_others() {
    let here = World::new().await;
    let (many, few) = (here.pin("many").await, here.pin("few").await);
    for n in 0..60 {
        here.after(&format!("m{n}"), &[many], All, Skip).await;
    }
    let one = here.after("one", &[few], All, Skip).await;
    here.run(&[(many, Succeeded), (few, Succeeded)]).await;
    let first = here.ledger.settle_dependents(10).await.unwrap();
    assert_eq!((first.released, first.more), (6, true), "five of the many, and the one");
    assert_eq!(here.state(one).await, "ready");
    assert_eq!(here.settle().await.released, 55);
}

#[tokio::test]
async fn what_another_transaction_holds_is_settled_later_and_holds_nobody_up() {
    let here = World::new().await;
    let upstream = here.pin("1").await;
    let (held, free) = (here.after("2", &[upstream], All, Skip).await, here.after("3", &[upstream], All, Skip).await);
    let member = Interaction { series: Some("s".to_owned()), ..interaction("4") };
    let member = here.try_after(member, &[upstream], All, Skip).await.unwrap().pin.id;
    here.run(&[(upstream, Succeeded)]).await;
    // One transaction names the one in its own `after`, and has pinned into the series of the other.
    let mut open = here.ledger.pool().begin().await.unwrap();
    let (late, behind) = (interaction("5"), Interaction { series: Some("s".to_owned()), ..interaction("6") });
    let after = After { ids: vec![held], when: All, on_failure: Skip };
    here.ledger.pin_after_in(&mut open, request(&late), &after).await.unwrap().unwrap();
    here.ledger.pin_in(&mut open, request(&behind)).await.unwrap();
    assert_eq!(here.settle().await, Settled { released: 1, skipped: 0, waiting: true, more: false });
    assert_eq!(here.claimed().await, [free]);
    assert_eq!(here.settle().await, Settled { released: 0, skipped: 0, waiting: true, more: false });
    open.commit().await.unwrap();
    assert_eq!(here.settle().await.released, 2);
    let mut both = [held, member];
    both.sort();
    assert_eq!(here.claimed().await, both);
}

#[tokio::test]
async fn a_key_that_is_used_again_waits_for_what_it_names_now() {
    let here = World::new().await;
    let (old, new) = (here.pin("old").await, here.pin("new").await);
    let id = here.after("1", &[old], All, Skip).await;
    here.ledger.cancel(id, "enough").await.unwrap();
    // Its window has passed, and it was forgotten.
    sqlx::query("delete from crossover.pins where id = $1").bind(id).execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.after("1", &[old, new], All, Skip).await, id);
    sqlx::query("delete from crossover.pins where id = $1").bind(id).execute(here.ledger.pool()).await.unwrap();
    sqlx::query("delete from crossover.dependents").execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.after("1", &[new], All, Skip).await, id);
    let claimed = here.claim(1_000).await;
    let of = |id: Uuid| claimed.iter().find(|claimed| claimed.envelope.id == id).unwrap();
    here.finish(of(old), Succeeded).await;
    here.settle().await;
    assert_eq!(here.state(id).await, "waiting");
    here.finish(of(new), Succeeded).await;
    assert_eq!(here.settle().await.released, 1);
}

#[tokio::test]
async fn an_end_that_was_overlooked_is_found() {
    let here = World::new().await;
    let (pin, task, open) = (here.pin("1").await, here.task().await, here.pin("open").await);
    let (one, two) = (here.after("2", &[pin], All, Skip).await, here.after("3", &[task], All, Skip).await);
    let three = here.after("4", &[open], All, Skip).await;
    let claimed = here.claim(1).await;
    here.finish(&claimed[0], Succeeded).await;
    let held = here.tasks.claim(here.worker, 1).await.unwrap();
    here.tasks.finish(here.worker, &[end(&held[0], Succeeded)]).await.unwrap();
    // By nothing that is known.
    let lost = "delete from crossover.ended_upstreams;
        update crossover.dependents set since = since - interval '1 hour';
        update crossover.attempts set ended_at = ended_at - interval '2 minutes';
        update crossover.pins set ended_at = ended_at - interval '2 minutes'";
    sqlx::raw_sql(lost).execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.settle().await.released, 0);
    let (found, mut from) = here.ledger.find_overlooked(None, 2).await.unwrap();
    let (more, next) = here.ledger.find_overlooked(from.take(), 2).await.unwrap();
    assert_eq!((found + more, next), (2, None));
    assert_eq!(here.settle().await.released, 2);
    let mut both = [one, two];
    both.sort();
    assert!(both.iter().all(|id| *id != three));
    let ready: Vec<Uuid> = here.claimed().await.into_iter().filter(|id| *id != open).collect();
    assert_eq!(ready, both);
}

#[tokio::test]
async fn a_hot_task_is_claimed_while_others_come_to_wait_for_it() {
    let here = World::new().await;
    let task = here.task().await;
    let mut open = here.ledger.pool().begin().await.unwrap();
    let after = After { ids: vec![task], when: All, on_failure: Skip };
    here.ledger.pin_after_in(&mut open, request(&interaction("1")), &after).await.unwrap().unwrap();
    let held = here.tasks.claim(here.worker, 1).await.unwrap();
    assert_eq!(held.len(), 1);
    open.commit().await.unwrap();
    here.tasks.finish(here.worker, &[end(&held[0], Succeeded)]).await.unwrap();
    assert_eq!(here.settle().await.released, 1);
}

#[tokio::test]
async fn what_waited_has_its_policys_time_from_when_it_may_run() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let after = here.after("2", &[one], All, Skip).await;
    let long_ago = "update crossover.pins set run_at = run_at - interval '1 hour'";
    sqlx::query(long_ago).execute(here.ledger.pool()).await.unwrap();
    here.run(&[(one, Succeeded)]).await;
    here.settle().await;
    let claimed = here.claim(1).await;
    assert_eq!(claimed[0].envelope.id, after);
    assert!(claimed[0].age < Duration::from_secs(600), "{:?}", claimed[0].age);
}

#[tokio::test]
async fn history_keeps_what_waits() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let after = here.after("2", &[one], All, Skip).await;
    let kept: bool = sqlx::query_scalar("select exists (select from crossover.placed_pins where id = $1)")
        .bind(after)
        .fetch_one(here.ledger.pool())
        .await
        .unwrap();
    assert!(kept);
    let asked: String = sqlx::query_scalar("select after::text from crossover.payloads where id = $1")
        .bind(after)
        .fetch_one(here.ledger.pool())
        .await
        .unwrap();
    assert_eq!(asked, format!(r#"{{"ids" : ["{one}"], "when" : "all", "on_failure" : "skip"}}"#));
}

#[tokio::test]
async fn what_waits_is_not_handed_over_and_says_why() {
    let here = World::new().await;
    let one = here.pin("1").await;
    let after = here.after("2", &[one], All, Skip).await;
    let scope = Scope { account: ACCOUNT.to_owned(), kind: None, id: None };
    let candidates = here.ledger.handover_candidates(&scope).await.unwrap();
    let of = |what: &str| candidates.iter().find(|c| c.what == what).map(|c| c.examples.clone());
    assert_eq!((of("moves"), of("waits")), (Some(vec![one]), Some(vec![after])));
    assert_eq!(here.ledger.to_hand_over(&scope, Utc::now() + TimeDelta::hours(1), 10).await.unwrap(), [one]);
    // Nor by a process that does not know of such work.
    let head = here.member("s", "3").await;
    let member = Interaction { series: Some("s".to_owned()), ..interaction("4") };
    let member = here.try_after(member, &[one], All, Skip).await.unwrap().pin.id;
    let (handover, _) = here.ledger.begin_handover(&scope, "test").await.unwrap();
    let answers = here.ledger.hand_over(handover, ACCOUNT, &[after, head, member]).await.unwrap();
    let of = |id: Uuid| answers.iter().find(|one| one.id == id).unwrap().answer.as_str();
    assert_eq!((of(after), of(head), of(member)), ("waits", "moved", "waits"));
}
