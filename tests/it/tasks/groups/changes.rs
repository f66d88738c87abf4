//! Limits, pauses and holds that come, change and go while there is work.

use super::*;

impl World {
    /// A third party wants this account back in an hour.
    async fn hold(&self, account: &str) {
        let held = "insert into crossover.group_holds (grp, account, until) values ($1, $2, clock_timestamp() + interval '1 hour')";
        sqlx::query(held).bind(GROUP).bind(account).execute(self.ledger.pool()).await.unwrap();
    }
}

#[tokio::test]
async fn limits_that_are_taken_away_leave_nothing_held_back() {
    let here = World::new().await;
    here.set(json!({ "heed_retry_after": true })).await;
    here.hold(ACCOUNT).await;
    here.enqueue(mail(1)).await;
    assert_eq!(here.admit().await, 0);
    here.groups().unset(GROUP).await.unwrap();
    assert_eq!(here.admit().await, 1);
    here.set(json!({ "heed_retry_after": true })).await;
    assert_eq!(
        (here.admit().await, here.count("select count(*) from crossover.gate").await),
        (1, 0),
        "it is not held for what was said before"
    );
}

#[tokio::test]
async fn a_group_that_no_longer_heeds_lets_go_on_whom_it_held_back() {
    let here = World::new().await;
    here.set(json!({ "heed_retry_after": true, "max_running": 5 })).await;
    here.hold(ACCOUNT).await;
    here.enqueue(mail(1)).await;
    assert_eq!(here.admit().await, 0);
    here.set(json!({ "heed_retry_after": false })).await;
    assert_eq!(here.admit().await, 1);
}

#[tokio::test]
async fn a_first_limit_waits_for_claims_that_know_nothing_of_it_and_gives_up_in_time() {
    let here = World::new().await;
    here.enqueue(mail(1)).await;
    let mut claim = here.ledger.pool().begin().await.unwrap();
    sqlx::query("select crossover.begin_claim()").execute(&mut *claim).await.unwrap();
    let limits = json!({ "max_running": 1 });
    let refused = here.groups().set(GROUP, limits.as_object().unwrap(), "test").await.unwrap_err().to_string();
    assert!(refused.contains("lock timeout"), "{refused}");
    assert!(here.groups().list(None).await.unwrap().is_empty(), "nothing was set");
    claim.rollback().await.unwrap();
    here.set(limits).await;
    let worker = here.claimer(PATIENCE).await;
    assert!(here.tasks.claim(worker, 5).await.unwrap().is_empty(), "it goes to the gate");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_began_before_a_first_limit_was_committed_keeps_to_it() {
    let here = World::new().await;
    for n in 0..3 {
        here.enqueue(mail(n)).await;
        here.pinned(&n.to_string()).await;
    }
    let worker = here.claimer(PATIENCE).await;
    // Nobody waits for a connection, once there is one for each.
    let connections = (0..4).map(|_| here.count("select count(*) from pg_sleep(0.1)"));
    futures::future::join_all(connections).await;
    let mut setting = here.ledger.pool().begin().await.unwrap();
    let set = "select crossover.set_group('mail', '{\"max_running\": 1}')";
    sqlx::query(set).execute(&mut *setting).await.unwrap();
    let committed = async {
        until("both claims have begun", async || {
            let waiting =
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event = 'advisory'";
            (here.count(waiting).await == 2).then_some(())
        })
        .await;
        setting.commit().await.unwrap();
    };
    let (tasks, copies, ()) = tokio::join!(here.tasks.claim(worker, 5), here.claim_copies(worker, 5), committed);
    assert_eq!((tasks.unwrap().len(), copies.len()), (0, 0), "all of it goes to the gate");
    assert_eq!(here.admit().await, 1);
}

#[tokio::test]
async fn nothing_is_let_in_before_what_runs_is_counted_in() {
    let here = World::new().await;
    for n in 0..3 {
        here.enqueue(mail(n)).await;
        here.pinned(&n.to_string()).await;
    }
    let worker = here.claimer(PATIENCE).await;
    assert_eq!((here.tasks.claim(worker, 2).await.unwrap().len(), here.claim_copies(worker, 2).await.len()), (2, 2));
    here.set(json!({ "max_running": 5 })).await;
    // Somebody has a row of what runs: it can't be counted in yet.
    let mut busy = here.ledger.pool().begin().await.unwrap();
    sqlx::query("select from crossover.tasks_ready where worker is not null limit 1 for update")
        .execute(&mut *busy)
        .await
        .unwrap();
    assert_eq!((here.admit().await, here.group().await.held), (0, 3), "one of four is not counted");
    busy.rollback().await.unwrap();
    assert_eq!((here.admit().await, here.group().await.held), (1, 5));
}

#[tokio::test]
async fn a_pass_goes_on_behind_the_group_that_the_one_before_came_to() {
    let here = World::new().await;
    let groups = here.groups();
    for name in ["a", "b", "c", "d"] {
        groups.set(name, json!({ "max_running": 1 }).as_object().unwrap(), "test").await.unwrap();
        here.enqueue(NewTask { group: Some(name.to_owned()), ..mail(1) }).await;
    }
    let asked = Asked { most: 10, look: true, tidy: true, from: Some("b".to_owned()) };
    let pass = groups.admit(asked).await.unwrap();
    assert_eq!((pass.admitted, pass.go_on), (2, None));
    let left: Vec<String> =
        sqlx::query_scalar("select grp from crossover.gate order by 1").fetch_all(here.ledger.pool()).await.unwrap();
    assert_eq!(left, ["a", "b"]);
    assert_eq!(here.admit().await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_runner_took_away_holds_its_place_until_its_report() {
    let here = World::new().await;
    here.set(json!({ "max_running": 2 })).await;
    let away = Arc::new(TakesAway(Duration::from_secs(60)));
    let (task, pin) = (here.enqueue(mail(1)).await, here.pinned("p").await);
    let worker = here.worker_of(away);
    here.away(task, 1).await;
    here.away(pin, 1).await;
    let next = [here.enqueue(mail(2)).await, here.pinned("q").await];
    assert_eq!((here.admit().await, here.group().await.held), (0, 2));
    let done = Ending::Done(Payload::parse("7".to_owned()).unwrap());
    for id in [task, pin] {
        assert!(matches!(here.ledger.report(id, fence(1), &done).await.unwrap(), Report::Taken { .. }));
    }
    for id in next {
        here.away(id, 1).await;
    }
    assert_eq!(here.group().await.held, 2);
    worker.drain().await;
}

/// Somebody's open transaction that only keeps tasks from going, as work that is to run after them does.
async fn kept(here: &World, which: &'static str) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut stranger = here.ledger.pool().begin().await.unwrap();
    let keeps =
        sqlx::query(sqlx::AssertSqlSafe(format!("select from crossover.tasks_ready where {which} for key share")));
    assert!(keeps.execute(&mut *stranger).await.unwrap().rows_affected() > 0);
    stranger
}

#[tokio::test]
async fn a_group_is_paused_though_somebody_keeps_what_was_let_in_from_going() {
    let here = World::new().await;
    here.set(json!({ "max_running": 3 })).await;
    for n in 0..4 {
        here.enqueue(mail(n)).await;
    }
    assert_eq!(here.admit().await, 3);
    let stranger = kept(&here, "vt = 0").await;
    here.groups().pause(GROUP, "their API is down", "test").await.unwrap();
    let left = || here.count("select count(*) from crossover.tasks_ready where gated");
    assert_eq!(left().await, 1, "all but that one are taken back");
    stranger.rollback().await.unwrap();
    assert_eq!((here.admit().await, left().await), (0, 0), "and that one with the next pass");
}

#[tokio::test]
async fn what_runs_is_counted_in_though_somebody_keeps_it_from_going() {
    let here = World::new().await;
    for n in 0..3 {
        here.enqueue(mail(n)).await;
    }
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.tasks.claim(worker, 2).await.unwrap().len(), 2);
    let _stranger = kept(&here, "worker is not null").await;
    here.set(json!({ "max_running": 3 })).await;
    assert_eq!((here.admit().await, here.group().await.held), (1, 3));
}

#[tokio::test]
async fn what_runs_is_counted_in_a_part_at_a_time_however_much_is_ready() {
    let here = World::new().await;
    let worker = here.claimer(PATIENCE).await;
    for n in 0..2 {
        here.enqueue(mail(n)).await;
    }
    assert_eq!(here.tasks.claim(worker, 1).await.unwrap().len(), 1);
    let others = "insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select 0, 10 + n, gen_random_uuid(), now(), now(), 1, 'a', 'k', 'default' from generate_series(1, 15000) n";
    sqlx::query(others).execute(here.ledger.pool()).await.unwrap();
    let far = mail(50_000);
    here.enqueue(NewTask { priority: 0, ..far }).await;
    let end = "update crossover.tasks_ready set worker = $1, started_at = now() where vt = 50000";
    sqlx::query(end).bind(worker).execute(here.ledger.pool()).await.unwrap();
    here.set(json!({ "max_running": 3 })).await;
    // One that has no time stops behind its first part.
    let count = "select crossover.count_in('mail', clock_timestamp() - interval '1 second')";
    let counted = async || sqlx::query_scalar::<_, bool>(count).fetch_one(here.ledger.pool()).await.unwrap();
    assert_eq!((counted().await, here.group().await.held), (false, 1));
    assert_eq!((counted().await, here.group().await.held), (true, 2));
    assert_eq!(here.count("select count(*) from crossover.gate_counts").await, 0);
    assert_eq!((here.admit().await, here.group().await.held), (1, 3));
}

#[tokio::test]
async fn limits_are_changed_by_who_sees_all_that_was_let_in() {
    let here = World::new().await;
    for change in
        ["select crossover.set_group('mail', '{\"max_running\": 1}')", "select crossover.pause_group('mail', 'x')"]
    {
        let mut blind = here.ledger.pool().begin().await.unwrap();
        sqlx::query("set transaction isolation level repeatable read").execute(&mut *blind).await.unwrap();
        let refused = sqlx::query(change).execute(&mut *blind).await.unwrap_err();
        assert_eq!(refused.as_database_error().unwrap().code().as_deref(), Some("25001"), "{refused}");
    }
}

#[tokio::test]
async fn what_one_process_has_just_forgotten_no_other_forgets_again() {
    let here = World::new().await;
    here.set(json!({ "rate": 5 })).await;
    let tidied = || async {
        let at = "select tidied_at from crossover.gate_upkeep";
        sqlx::query_scalar::<_, Option<chrono::DateTime<Utc>>>(at).fetch_one(here.ledger.pool()).await.unwrap()
    };
    here.admit().await;
    let first = tidied().await;
    here.admit().await;
    assert!(first.is_some() && tidied().await == first);
    let ahead = "update crossover.gate_upkeep set tidied_at = clock_timestamp() + interval '1 hour'";
    sqlx::query(ahead).execute(here.ledger.pool()).await.unwrap();
    here.admit().await;
    assert!(
        tidied().await.unwrap() < Utc::now() + chrono::TimeDelta::minutes(30),
        "a clock that was put back stops nothing"
    );
}

#[tokio::test]
async fn a_group_with_limits_has_a_virtual_time_of_its_own_and_gives_it_back() {
    let here = World::new().await;
    let now = async || here.tasks.virtual_time(0).await.unwrap();
    assert_eq!(here.tasks.virtual_time(4_000).await.unwrap(), 4_000);
    here.set(json!({ "max_running": 2 })).await;
    let of = async || here.groups().virtual_times().await.unwrap();
    assert_eq!(of().await, [(GROUP.to_owned(), 4_000)], "it begins where all others are");
    for vt in [5_001, 7_001, 90_001] {
        here.enqueue(mail(vt)).await;
    }
    assert_eq!(here.admit().await, 2);
    assert_eq!((of().await, now().await), (vec![(GROUP.to_owned(), 7_001)], 4_000));
    here.groups().unset(GROUP).await.unwrap();
    assert_eq!((of().await, now().await), (vec![], 7_001));
}
