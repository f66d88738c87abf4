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
