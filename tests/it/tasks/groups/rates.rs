//! What may start in a second.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn no_more_start_than_the_rate_lets_in_any_stretch_of_time() {
    const RATE: f64 = 40.0;
    const BURST: usize = 4;
    let here = World::new().await;
    here.set(json!({ "rate": RATE, "burst": BURST })).await;
    for n in 0..30 {
        here.enqueue(mail(n)).await;
        here.pinned(&n.to_string()).await;
    }
    let workers = [here.worker(echo()), here.worker(echo())];
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    for worker in workers {
        worker.drain().await;
    }
    // By the clock of the database, which lets in and says when a claim was. What is let in may be claimed with the next: a burst more.
    let starts =
        "select extract(epoch from started_at)::float8 from crossover.attempts where outcome = 'succeeded' order by 1";
    let starts: Vec<f64> = sqlx::query_scalar(starts).fetch_all(here.ledger.pool()).await.unwrap();
    assert_eq!(starts.len(), 60);
    for (n, from) in starts.iter().enumerate() {
        for (m, to) in starts.iter().enumerate().skip(n) {
            let most = 2.0 * BURST as f64 + RATE * (to - from) + 0.5;
            assert!((m - n + 1) as f64 <= most, "{} starts within {} s", m - n + 1, to - from);
        }
    }
}

/// Fails the first call of one account, with a time to come back that nobody waits for, and notes all of them.
#[derive(Default)]
struct Throttling(Mutex<Vec<String>>);

#[async_trait::async_trait]
impl Executor for Throttling {
    async fn execute(&self, call: &Call) -> Answer {
        let mut calls = self.0.lock().unwrap();
        calls.push(call.account.clone());
        match call.account == ACCOUNT && calls.iter().filter(|account| *account == ACCOUNT).count() == 1 {
            true => Answer::Failed {
                failure: Failure::Retryable { retry_after: Some(Duration::from_secs(3_600)) },
                error: "too much at once".to_owned(),
            },
            false => Answer::Done(Payload::parse("1".to_owned()).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_is_told_to_come_back_later_is_held_back_and_no_other_is() {
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "max_running": 1, "heed_retry_after": true })).await;
    let policy = Policy { max_attempts: 1, ..Policy::default() };
    let held: Vec<NewTask> = (0..4).map(|n| NewTask { policy: policy.clone(), ..mail(n) }).collect();
    let others: Vec<NewTask> = (0..4).map(|n| NewTask { account: "b".to_owned(), ..mail(10 + n) }).collect();
    here.tasks.enqueue(&[held.clone(), others.clone()].concat()).await.unwrap();
    let calls = Arc::new(Throttling::default());
    let worker = here.worker_of(calls.clone());
    for task in &others {
        here.ended(task.id).await;
    }
    assert_eq!(here.admit().await, 0);
    assert_eq!(*calls.0.lock().unwrap(), ["a", "b", "b", "b", "b"], "the first was told for all of its account");
    let over = sqlx::query("update crossover.group_holds set until = clock_timestamp()");
    over.execute(here.ledger.pool()).await.unwrap();
    until("all have ended", async || (here.unended().await == 0).then_some(())).await;
    worker.drain().await;
}

#[tokio::test]
async fn an_account_has_a_rate_of_its_own() {
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "account_rate": 0.01, "account_burst": 2 })).await;
    for n in 0..5 {
        here.enqueue(mail(n)).await;
        here.enqueue(NewTask { account: "b".to_owned(), ..mail(n) }).await;
    }
    let worker = here.claimer(PATIENCE).await;
    assert_eq!((here.admit().await, here.admit().await), (4, 0));
    let claimed = here.tasks.claim(worker, 10).await.unwrap();
    assert_eq!(claimed.iter().filter(|c| c.envelope.account == "b").count(), 2);
    let ends: Vec<Finish> = claimed.iter().map(|c| Finish::of(c, Some(Outcome::Succeeded))).collect();
    here.tasks.finish(worker, &ends).await.unwrap();
    assert_eq!(here.admit().await, 0, "a place that is free is not a start that is due");
    let story = here.groups().list(None).await.unwrap();
    assert_eq!((story[0].held, story[0].waiting), (0, 6));
}

#[tokio::test]
async fn a_clock_that_is_put_back_stops_no_rate() {
    let here = World::new().await;
    here.set(json!({ "rate": 20, "burst": 1, "account_rate": 20, "account_burst": 1 })).await;
    for n in 0..2 {
        here.enqueue(mail(n)).await;
    }
    let worker = here.claimer(PATIENCE).await;
    assert_eq!((here.admit().await, here.tasks.claim(worker, 5).await.unwrap().len()), (1, 1));
    let ahead = "update crossover.group_tokens set tokens = 0, at = clock_timestamp() + interval '1 hour'";
    sqlx::query(ahead).execute(here.ledger.pool()).await.unwrap();
    until("the next one is let in", async || (here.admit().await == 1).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_took_it_away_holds_its_account_back_while_it_has_it_and_not_afterwards() {
    let here = World::new().await;
    here.set(json!({ "heed_retry_after": true, "max_running": 1 })).await;
    let policy = Policy { max_attempts: 1, ..Policy::default() };
    let id = here.enqueue(NewTask { policy, ..mail(1) }).await;
    let worker = here.worker_of(Arc::new(TakesAway(Duration::from_secs(60))));
    here.away(id, 1).await;
    let failure = Failure::Retryable { retry_after: Some(Duration::from_secs(3_600)) };
    let later = Ending::Failed { failure, error: "too much at once".to_owned() };
    assert!(matches!(here.ledger.report(id, fence(1), &later).await.unwrap(), Report::Taken { .. }));
    assert_eq!(here.count("select count(*) from crossover.group_holds where account = 'a'").await, 1);
    sqlx::query("delete from crossover.group_holds").execute(here.ledger.pool()).await.unwrap();
    let _ = here.ledger.report(id, fence(1), &later).await.unwrap();
    assert_eq!(here.count("select count(*) from crossover.group_holds").await, 0, "what is over says nothing");
    worker.drain().await;
}

#[tokio::test]
async fn of_an_account_no_more_than_a_burst_is_let_in_while_nobody_claims() {
    let here = World::new().await;
    here.set(json!({ "account_rate": 1000.0, "account_burst": 3 })).await;
    for n in 0..20 {
        here.enqueue(mail(n)).await;
    }
    let mut let_in = 0;
    for _ in 0..20 {
        let_in += here.admit().await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(let_in, 3);
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.tasks.claim(worker, 10).await.unwrap().len(), 3);
    assert_eq!(here.admit().await, 3);
}

#[tokio::test]
async fn an_account_that_is_told_to_come_back_later_is_held_back_though_nothing_else_is_limited() {
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "heed_retry_after": true })).await;
    let all: Vec<NewTask> = (0..1_500).map(mail).collect();
    for part in all.chunks(500) {
        here.tasks.enqueue(part).await.unwrap();
    }
    here.pinned("p").await;
    assert_eq!((here.admit().await, here.admit().await), (1_000, 0), "no more is let in than one pass takes");
    let worker = here.claimer(PATIENCE).await;
    let first = here.tasks.claim(worker, 1).await.unwrap().remove(0);
    let told = Told { id: first.envelope.id, attempt: 1, task: first.task, wait_ms: 3_600_000 };
    here.groups().heed_retry_after(worker, &[told]).await.unwrap();
    let later = here.enqueue(NewTask { account: "b".to_owned(), ..mail(9_000) }).await;
    assert_eq!(here.admit().await, 1);
    let next = here.tasks.claim(worker, 500).await.unwrap();
    assert_eq!(
        next.iter().map(|claimed| claimed.envelope.id).collect::<Vec<_>>(),
        [later],
        "none of the account that was told"
    );
    assert!(here.claim_copies(worker, 10).await.is_empty());
    assert_eq!(here.count("select count(*) from crossover.gate").await, 1_500);
}

#[tokio::test]
async fn what_a_pass_let_in_while_its_account_was_told_is_taken_back_by_the_next() {
    let here = World::new().await;
    here.set(json!({ "heed_retry_after": true })).await;
    for n in 0..3 {
        here.enqueue(mail(n)).await;
    }
    assert_eq!(here.admit().await, 3);
    here.enqueue(mail(3)).await;
    // As if it had been told before that pass was over.
    let told = "insert into crossover.group_holds (grp, account, until) values ('mail', 'a', clock_timestamp() + interval '1 hour')";
    sqlx::query(told).execute(here.ledger.pool()).await.unwrap();
    assert_eq!(here.admit().await, 0);
    assert_eq!(here.count("select count(*) from crossover.gate").await, 4);
}
