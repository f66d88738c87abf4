//! What has ended goes when its retention has passed and nothing else does, on a real Postgres with rows that were dated back.

#[cfg(feature = "temporal")]
mod faces;
mod gated;
mod keeping;
mod search;

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use crossover::history::{Clearing, History, Retention};
use crossover::interaction::{Interaction, Outcome, Payload, Stage};
use crossover::ledger::{self, Ledger, PinRequest};
use crossover::policy::Policy;
use crossover::queue::tasks::{self, NewTask, Tasks};
use crossover::queue::{Claimed, Finish};
use uuid::Uuid;

use crate::servers;
use crate::wait::until;

const DAY: Duration = Duration::from_secs(86_400);
const ACCOUNT: &str = "a";

/// A database of a test's own, with one account that is armed.
struct World {
    url: String,
    ledger: Ledger,
    tasks: Tasks,
    history: History,
    worker: Uuid,
}

impl World {
    async fn new() -> Self {
        let url = servers::database().await;
        let ledger = Ledger::new(ledger::pool(&url, 10, Duration::from_secs(10)).unwrap());
        ledger.migrate().await.unwrap();
        let history = History::new(ledger::pool(&url, 2, Duration::from_secs(10)).unwrap());
        let (tasks, worker) = (Tasks::new(ledger.pool().clone()), Uuid::new_v4());
        let world = Self { url, ledger, tasks, history, worker };
        world.pin("first", None).await;
        world.end("first").await;
        world.tasks.beat(world.worker, &[], DAY).await.unwrap();
        world
    }

    async fn sql(&self, sql: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(self.ledger.pool()).await.unwrap();
    }

    async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).fetch_one(self.ledger.pool()).await.unwrap()
    }

    /// Partitions of so many days ago, as upkeep made them then.
    async fn days_ago(&self, days: i64) -> String {
        let day = (Utc::now() - TimeDelta::days(days)).date_naive();
        let name = day.format("%Y%m%d").to_string();
        for parent in ["tasks", "payloads", "attempts"] {
            self.sql(&format!(
                "create table if not exists crossover.{parent}_{name} partition of crossover.{parent}
                 for values from ('{day} 00:00:00+00') to ('{} 00:00:00+00')",
                day.succ_opt().unwrap()
            ))
            .await;
        }
        name
    }

    /// A task that was accepted so many days ago.
    async fn task(&self, kind: &str, days: i64, run_at: Option<DateTime<Utc>>) -> Uuid {
        self.days_ago(days).await;
        let task = NewTask {
            id: tasks::new_id(Utc::now() - TimeDelta::days(days)),
            account: ACCOUNT.to_owned(),
            kind: kind.to_owned(),
            group: None,
            run_at,
            priority: 0,
            vt: 0,
            flag_revision: "test".to_owned(),
            policy: Policy::default(),
            payload: Payload::parse(format!("\"{kind}\"")).unwrap(),
        };
        assert_eq!(self.tasks.enqueue(std::slice::from_ref(&task)).await.unwrap(), [task.id]);
        task.id
    }

    /// Everything that is ready, taken.
    async fn claim(&self) -> Vec<Claimed> {
        self.tasks.claim(self.worker, 1_000).await.unwrap()
    }

    async fn finish(&self, claimed: &[Claimed]) {
        let ends: Vec<_> = claimed.iter().map(|claimed| Finish::of(claimed, Some(Outcome::Succeeded))).collect();
        assert_eq!(self.tasks.finish(self.worker, &ends).await.unwrap().len(), claimed.len());
    }

    /// A task that ended on the day on which it was accepted.
    async fn ended_task(&self, kind: &str, days: i64) -> Uuid {
        let id = self.task(kind, days, None).await;
        let claimed = self.claim().await;
        self.finish(&claimed).await;
        self.sql(&format!(
            "update crossover.attempts set ended_at = ended_at - interval '{days} days' where id = '{id}'"
        ))
        .await;
        id
    }

    async fn pin(&self, key: &str, series: Option<&str>) -> Uuid {
        self.try_pin(key, series).await.0
    }

    /// Its id, and whether it is new.
    async fn try_pin(&self, key: &str, series: Option<&str>) -> (Uuid, bool) {
        let interaction = Interaction {
            account: ACCOUNT.to_owned(),
            kind: "k".to_owned(),
            key: key.to_owned(),
            key_made: false,
            after: None,
            exclusive: None,
            payload: Payload::parse("1".to_owned()).unwrap(),
            series: series.map(str::to_owned),
            group: None,
            run_at: None,
            priority: 0,
            policy: Policy::default(),
        };
        let grace = Duration::ZERO;
        let request = PinRequest { interaction: &interaction, stage: Stage::Complete, revision: "test", grace };
        let pinned = self.ledger.pin(request).await.unwrap();
        (pinned.pin.id, pinned.created)
    }

    async fn end(&self, key: &str) {
        let id = crossover::interaction::interaction_id(ACCOUNT, key);
        self.ledger.cancel(id, "over").await.unwrap();
    }

    /// As if all of it had been so many days ago.
    async fn age(&self, id: Uuid, days: i64) {
        self.days_ago(days).await;
        let back = format!("- interval '{days} days' where id = '{id}'");
        self.sql(&format!(
            "update crossover.payloads set created_at = created_at {back};
             update crossover.attempts set ended_at = ended_at {back};
             update crossover.pins set created_at = created_at - interval '{days} days', run_at = run_at - interval '{days} days',
                ended_at = ended_at {back}"
        ))
        .await;
    }

    async fn clear(&self, retention: &Retention) -> BTreeMap<String, String> {
        let answers = self.history.clear(retention).await.unwrap();
        answers.into_iter().map(|Clearing { part, answer, .. }| (part, answer)).collect()
    }

    async fn keeps(&self, table: &str, id: Uuid) -> bool {
        self.count(&format!("select count(*) from crossover.{table} where id = '{id}'")).await > 0
    }

    async fn forget_pins(&self, retention: &Retention) -> i64 {
        self.history.forget_pins(retention, Duration::ZERO).await.unwrap()
    }
}

/// So many days, and so many of some kinds; the window is a day.
fn days(ended: u32, kinds: &[(&str, u32)]) -> Retention {
    let kinds: BTreeMap<String, Duration> =
        kinds.iter().map(|(kind, days)| ((*kind).to_owned(), DAY * *days)).collect();
    Retention::new(DAY * ended, &kinds, DAY, DAY)
}

#[tokio::test]
async fn what_ended_long_ago_goes_with_its_partition() {
    let world = World::new().await;
    let (old, young) = (world.ended_task("k", 40).await, world.ended_task("k", 3).await);
    let name = world.days_ago(40).await;
    let cleared = world.clear(&days(30, &[])).await;
    for parent in ["tasks", "payloads", "attempts"] {
        assert_eq!(cleared[&format!("{parent}_{name}")], "dropped", "{cleared:?}");
        assert_eq!(world.count(&format!("select count(*) from pg_class where relname = '{parent}_{name}'")).await, 0);
    }
    assert_eq!(cleared.len(), 3, "{cleared:?}");
    assert!(!world.keeps("tasks", old).await && !world.keeps("attempts", old).await);
    assert!(world.keeps("tasks", young).await && world.keeps("attempts", young).await);
    assert!(world.clear(&days(30, &[])).await.is_empty(), "nothing is left to do");
}

#[tokio::test]
async fn what_has_not_ended_stays_however_old_it_is_and_runs() {
    let world = World::new().await;
    let gone = world.ended_task("k", 40).await;
    let next_year = world.task("k", 40, Some(Utc::now() + TimeDelta::days(300))).await;
    let running = world.task("k", 40, None).await;
    let held = world.claim().await;
    let waiting = world.task("k", 40, None).await;
    let name = world.days_ago(40).await;
    let cleared = world.clear(&days(30, &[])).await;
    assert_eq!(cleared[&format!("tasks_{name}")], "cleared");
    assert!(!world.keeps("tasks", gone).await);
    for id in [next_year, running, waiting] {
        assert!(world.keeps("tasks", id).await);
    }

    // They go on as if nothing had been, and what ends now is kept for its retention from now on.
    world.finish(&held).await;
    let claimed = world.claim().await;
    assert_eq!(
        claimed.iter().map(|c| (c.envelope.id, c.envelope.payload.get())).collect::<Vec<_>>(),
        [(waiting, "\"k\"")]
    );
    world.finish(&claimed).await;
    world.sql("update crossover.tasks_scheduled set due_at = now() - interval '1 second'").await;
    world.tasks.promote_due(10).await.unwrap();
    let claimed = world.claim().await;
    assert_eq!(claimed.iter().map(|c| c.envelope.id).collect::<Vec<_>>(), [next_year]);
    world.finish(&claimed).await;
    world.sql("update crossover.cleared_partitions set cleared_at = cleared_at - interval '8 days'").await;
    let again = world.clear(&days(30, &[])).await;
    assert_eq!(again[&format!("tasks_{name}")], "kept", "{again:?}");

    // Until that has passed, too.
    world.sql(&format!(
        "update crossover.attempts set ended_at = ended_at - interval '31 days 3 hours' where id in ('{next_year}', '{running}', '{waiting}');
         update crossover.cleared_partitions set cleared_at = cleared_at - interval '8 days'"
    ))
    .await;
    assert_eq!(world.clear(&days(30, &[])).await[&format!("tasks_{name}")], "dropped");
}

#[tokio::test]
async fn a_kind_that_is_kept_longer_stays_until_its_own_time_has_passed() {
    let world = World::new().await;
    let (short, long) = (world.ended_task("short", 40).await, world.ended_task("long", 40).await);
    let name = world.days_ago(40).await;
    let keep = days(30, &[("long", 365), ("shortest", 2)]);
    assert_eq!(world.clear(&keep).await[&format!("tasks_{name}")], "cleared");
    assert!(!world.keeps("tasks", short).await && !world.keeps("attempts", short).await);
    assert!(world.keeps("tasks", long).await && world.keeps("attempts", long).await);
    assert!(world.clear(&keep).await.is_empty(), "nothing more passes until a year has");
    // Two partitions are attached where two were: new work of that day, if there were any, has a place.
    assert_eq!(
        world.count(&format!("select count(*) from crossover.history_partitions where part like '%{name}'")).await,
        2
    );
    world.clear(&days(30, &[("long", 39)])).await;
    world.sql("update crossover.cleared_partitions set cleared_at = cleared_at - interval '8 days'").await;
    world.clear(&days(30, &[("long", 31)])).await;
    assert!(!world.keeps("tasks", long).await && !world.keeps("attempts", long).await);
}

#[tokio::test]
async fn a_retention_is_never_shorter_than_the_window_of_keys() {
    let world = World::new().await;
    let id = world.ended_task("k", 3).await;
    let retention = Retention::new(Duration::from_secs(1), &BTreeMap::new(), DAY * 7, DAY);
    assert!(world.clear(&retention).await.is_empty());
    assert!(world.keeps("tasks", id).await);
}

#[tokio::test]
async fn payloads_stay_for_what_has_not_ended_or_is_parked_and_pins_go_after_their_retention() {
    let world = World::new().await;
    let (open, parked, over) =
        (world.pin("open", None).await, world.pin("parked", None).await, world.pin("over", None).await);
    world.end("over").await;
    world.sql(&format!(
        "with gone as (delete from crossover.ready where id = '{parked}' returning *)
         insert into crossover.parked (id, since, epoch, attempt, rank, side, cause, grp)
         select id, now() - interval '40 days', 1, 1, rank, 'postgres', 'worker', grp from gone;
         insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome, error)
         values ('{parked}', now(), now(), now(), 1, 1, false, 'postgres', 'failed', 'its worker stopped reporting')"
    ))
    .await;
    for id in [open, parked, over] {
        world.age(id, 40).await;
    }
    let keep = days(30, &[]);
    world.clear(&keep).await;
    assert!(!world.keeps("payloads", over).await);
    assert!(world.keeps("payloads", open).await && world.keeps("payloads", parked).await);
    assert!(world.keeps("attempts", parked).await, "the result that somebody may give it has its row");

    // The key still leads to what it led to, until the pin goes.
    assert_eq!(world.try_pin("over", None).await, (over, false));
    assert_eq!(world.forget_pins(&keep).await, 1);
    assert!(world.keeps("pins", open).await && world.keeps("pins", parked).await);
    assert_eq!(world.try_pin("over", None).await, (over, true));
}

#[tokio::test]
async fn a_pin_stays_for_the_window_whatever_its_retention_and_while_anything_of_it_is_left() {
    let world = World::new().await;
    let (young, old, rehearsed) =
        (world.pin("young", None).await, world.pin("old", None).await, world.pin("left", None).await);
    for key in ["young", "old", "left"] {
        world.end(key).await;
    }
    for id in [old, rehearsed] {
        world.age(id, 3).await;
    }
    world.sql(&format!(
        "insert into crossover.outbox (id, due_at, epoch, behind) values ('{rehearsed}', now() + interval '1 hour', 1, '{{}}')"
    ))
    .await;
    let shortest = Retention::new(Duration::from_secs(1), &BTreeMap::new(), DAY, DAY);
    assert_eq!(world.forget_pins(&shortest).await, 1);
    assert!(
        world.keeps("pins", young).await && world.keeps("pins", rehearsed).await && !world.keeps("pins", old).await
    );
}

#[tokio::test]
async fn a_pin_that_temporal_may_remember_stays_for_the_common_retention_whatever_its_kind() {
    let world = World::new().await;
    let (here, there) = (world.pin("here", None).await, world.pin("there", None).await);
    for (key, id) in [("here", here), ("there", there)] {
        world.end(key).await;
        world.age(id, 20).await;
    }
    world.sql("update crossover.pins set on_temporal = true where key = 'there'").await;
    world.clear(&days(30, &[("k", 10)])).await;
    assert!(world.keeps("payloads", there).await && !world.keeps("payloads", here).await);
    assert_eq!(world.forget_pins(&days(30, &[("k", 10)])).await, 1);
    assert!(world.keeps("pins", there).await && !world.keeps("pins", here).await);
    assert_eq!(world.forget_pins(&days(15, &[("k", 10)])).await, 1);
}

#[tokio::test]
async fn what_was_compared_keeps_payload_and_attempts_as_long_as_its_pin_and_a_rehearsal_without_them_is_told_its_end()
{
    let world = World::new().await;
    let id = world.pin("compared", None).await;
    world.end("compared").await;
    world
        .sql(&format!(
            "update crossover.pins set stage = 'shadow' where id = '{id}';
             insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome)
             values ('{id}', now(), now(), now(), 1, 1, false, 'postgres', 'failed')"
        ))
        .await;
    world.age(id, 20).await;
    let compared = |days: u32| Retention::new(DAY * 10, &BTreeMap::new(), DAY, DAY * days);
    world.clear(&compared(30)).await;
    assert_eq!(world.forget_pins(&compared(30)).await, 0);
    assert!(world.keeps("payloads", id).await && world.keeps("attempts", id).await);
    world.sql("delete from crossover.cleared_partitions").await;
    world.clear(&compared(15)).await;
    assert!(!world.keeps("payloads", id).await && !world.keeps("attempts", id).await);
    world
        .sql(&format!(
            "insert into crossover.rehearsals (id, epoch, attempt, due_at, dequeued_at, bound_at, token)
             values ('{id}', 1, 1, now(), now(), now(), 'x')"
        ))
        .await;
    let finished = world.ledger.finished_rehearsals(10).await.unwrap();
    assert_eq!(
        finished.iter().map(|one| (one.rehearsal.id, one.outcome)).collect::<Vec<_>>(),
        [(id, Outcome::Cancelled)]
    );
}

#[tokio::test]
async fn nothing_goes_while_the_clocks_of_database_and_process_are_apart() {
    let world = World::new().await;
    let (task, pin) = (world.ended_task("k", 40).await, world.pin("old", None).await);
    world.end("old").await;
    world.age(pin, 40).await;
    let name = world.days_ago(40).await;
    let keeps = "'{}', '{}', interval '30 days', interval '30 days'";
    for apart in ["now() - interval '61 minutes'", "now() + interval '61 minutes'", "null"] {
        for call in [
            format!("crossover.clear_partition('tasks_{name}', {keeps}, 3, {apart})"),
            format!("crossover.clear_default('tasks', {keeps}, {apart})"),
            format!("crossover.forget_pins(0, 500, {keeps}, {apart})"),
        ] {
            let sql = sqlx::AssertSqlSafe(format!("select * from {call}"));
            let error = sqlx::query(sql).execute(world.ledger.pool()).await.unwrap_err().to_string();
            assert!(error.contains("set the clock that is wrong"), "{call}: {error}");
        }
    }
    assert!(world.keeps("tasks", task).await && world.keeps("pins", pin).await);
}

#[tokio::test]
async fn what_stays_is_not_read_while_all_are_locked_out() {
    let world = World::new().await;
    world.ended_task("k", 40).await;
    for _ in 0..20 {
        world.task("k", 40, Some(Utc::now() + TimeDelta::days(9))).await;
    }
    let name = world.days_ago(40).await;
    let mut tx = world.ledger.pool().begin().await.unwrap();
    let clear = format!(
        "select answer from crossover.clear_partition('tasks_{name}', '{{}}', '{{}}', interval '30 days', interval '30 days', 3, now())"
    );
    let answer: String = sqlx::query_scalar(sqlx::AssertSqlSafe(clear)).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(answer, "cleared");
    let read = format!(
        "select n_tup_ins, seq_tup_read from pg_stat_xact_user_tables where relid = 'crossover.tasks_{name}'::regclass"
    );
    let read: (i64, i64) = sqlx::query_as(sqlx::AssertSqlSafe(read)).fetch_one(&mut *tx).await.unwrap();
    assert_eq!(read, (20, 0), "written and read");
    // Who called it hangs: the lock ends all the same.
    let free = async {
        let count = "select count(*) from crossover.tasks";
        while sqlx::query_scalar::<_, i64>(count).fetch_one(world.ledger.pool()).await.is_err() {}
    };
    tokio::time::timeout(Duration::from_secs(20), free).await.expect("the lock is held");
    drop(tx);
    assert_eq!(world.count("select count(*) from pg_constraint where conname = 'of_its_days'").await, 0);
}

#[tokio::test]
async fn a_partition_that_fails_keeps_no_other_from_being_cleared() {
    let world = World::new().await;
    for day in [40, 41] {
        world.ended_task("k", day).await;
        world.task("k", day, Some(Utc::now() + TimeDelta::days(9))).await;
    }
    let (first, next) = (world.days_ago(41).await, world.days_ago(40).await);
    // In its way.
    world.sql(&format!("create table crossover.tasks_{first}_new ()")).await;
    let cleared = world.clear(&days(30, &[])).await;
    assert_eq!(cleared[&format!("tasks_{first}")], "failed", "{cleared:?}");
    assert_eq!(cleared[&format!("tasks_{next}")], "cleared", "{cleared:?}");
}

#[tokio::test]
async fn a_member_of_a_series_stays_until_all_in_front_of_it_has_ended() {
    let world = World::new().await;
    let members = [world.pin("1", Some("s")).await, world.pin("2", Some("s")).await, world.pin("3", Some("s")).await];
    // Out of its turn.
    world.end("2").await;
    for id in members {
        world.age(id, 40).await;
    }
    let keep = days(30, &[]);
    assert_eq!(world.forget_pins(&keep).await, 0, "later members wait up to it by its name");
    world.end("1").await;
    world.age(members[0], 40).await;
    assert_eq!(world.forget_pins(&keep).await, 2);
    // The series goes on where it stood.
    let (last, _) = world.try_pin("4", Some("s")).await;
    assert_eq!(world.count(&format!("select series_no from crossover.pins where id = '{last}'")).await, 4);
    assert_eq!(world.count("select head_no from crossover.series where series = 's'").await, 3);
}

#[tokio::test]
async fn what_lies_in_a_default_partition_goes_too_unless_it_has_not_ended_or_not_long_ago() {
    let world = World::new().await;
    let (gone, late) = (world.ended_task("k", 40).await, world.ended_task("long", 40).await);
    let open = world.task("k", 40, Some(Utc::now() + TimeDelta::days(9))).await;
    let name = world.days_ago(40).await;
    for parent in ["tasks", "attempts"] {
        world
            .sql(&format!(
                "alter table crossover.{parent} detach partition crossover.{parent}_{name};
                 insert into crossover.{parent}_default select * from crossover.{parent}_{name}; drop table crossover.{parent}_{name}"
            ))
            .await;
    }
    // Accepted forty days ago, it ended twenty days ago.
    world
        .sql(&format!("update crossover.attempts set ended_at = ended_at + interval '20 days' where id = '{late}'"))
        .await;
    world.clear(&days(2, &[("long", 30)])).await;
    assert!(
        !world.keeps("tasks", gone).await && !world.keeps("attempts", gone).await && world.keeps("tasks", open).await
    );
    assert!(world.keeps("tasks", late).await && world.keeps("attempts", late).await);
    world.clear(&days(2, &[("long", 15)])).await;
    assert!(!world.keeps("tasks", late).await && !world.keeps("attempts", late).await);
}

#[tokio::test]
async fn a_clearing_gives_up_where_the_table_is_in_use_and_nobody_waits_long() {
    let world = World::new().await;
    let gone = world.ended_task("k", 40).await;
    let name = world.days_ago(40).await;
    let mut reader = world.ledger.pool().begin().await.unwrap();
    sqlx::query("select count(*) from crossover.tasks").execute(&mut *reader).await.unwrap();
    let clear = format!(
        "select answer from crossover.clear_partition('tasks_{name}', '{{}}', '{{}}', interval '30 days', interval '30 days', 3, now())"
    );
    let clearing = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(clear.clone())).fetch_one(world.ledger.pool());
    // Callers meanwhile.
    let calling = async {
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let began = std::time::Instant::now();
            world.task("k", 0, None).await;
            longest = longest.max(began.elapsed());
        }
        longest
    };
    let (answer, longest) = tokio::join!(clearing, calling);
    assert_eq!(answer.unwrap(), "busy");
    assert!(longest < Duration::from_secs(2), "somebody waited for {longest:?}");
    assert!(world.keeps("tasks", gone).await);
    reader.rollback().await.unwrap();
    let answer: String = sqlx::query_scalar(sqlx::AssertSqlSafe(clear)).fetch_one(world.ledger.pool()).await.unwrap();
    assert_eq!(answer, "dropped");
    assert_eq!(world.count("select count(*) from pg_class where relname like '%\\_new'").await, 0);
}

#[tokio::test]
async fn a_clearing_that_dies_half_way_leaves_what_was_there() {
    let world = World::new().await;
    let (gone, open) =
        (world.ended_task("k", 40).await, world.task("k", 40, Some(Utc::now() + TimeDelta::days(9))).await);
    let name = world.days_ago(40).await;
    let mut dying = world.ledger.pool().begin().await.unwrap();
    let clear = format!(
        "select answer from crossover.clear_partition('tasks_{name}', '{{}}', '{{}}', interval '30 days', interval '30 days', 3, now())"
    );
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *dying).await.unwrap();
    let answer: String = sqlx::query_scalar(sqlx::AssertSqlSafe(clear)).fetch_one(&mut *dying).await.unwrap();
    assert_eq!(answer, "cleared");
    world.count(&format!("select pg_terminate_backend({pid}, 10000)::integer::bigint")).await;
    assert!(world.keeps("tasks", gone).await && world.keeps("tasks", open).await);
    drop(dying);
    assert_eq!(world.clear(&days(30, &[])).await[&format!("tasks_{name}")], "cleared");
    assert!(!world.keeps("tasks", gone).await && world.keeps("tasks", open).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn work_goes_on_beside_a_clearing_and_none_of_it_is_lost() {
    let world = World::new().await;
    for day in [40, 41, 42] {
        world.ended_task("k", day).await;
        world.task("k", day, Some(Utc::now() + TimeDelta::days(9))).await;
    }
    let (retention, rounds) = (days(30, &[]), 60);
    let working = async {
        let (mut made, mut done) = (0, 0);
        while made < rounds || done < made {
            if made < rounds {
                world.task("k", 0, None).await;
                made += 1;
            }
            let claimed = world.claim().await;
            world.finish(&claimed).await;
            done += claimed.len();
        }
        (made, done)
    };
    let (cleared, (made, done)) = tokio::join!(world.clear(&retention), working);
    assert_eq!((made, done), (rounds, rounds));
    assert!(cleared.values().all(|answer| answer != "busy"), "{cleared:?}");
    assert_eq!(
        world
            .count("select count(*) from crossover.tasks_scheduled s join crossover.tasks using (id, created_at)")
            .await,
        3
    );
    let kept = world
        .count(
            "select count(*) from crossover.attempts a where exists (select from crossover.tasks t where t.id = a.id)",
        )
        .await;
    assert_eq!(kept, rounds as i64);
}
