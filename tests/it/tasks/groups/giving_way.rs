//! A rehearsal holds a place for fidelity's sake: what has begun nothing yet gives it to an execution that waits.

use super::*;

impl World {
    async fn rehearsals(&self, account: &str, many: usize) {
        for n in 0..many {
            self.pin(account, &format!("rehearsed {n}"), Stage::Shadow, Policy::default()).await;
        }
    }
}

#[tokio::test]
async fn a_rehearsal_whose_real_run_has_not_begun_gives_its_place_to_an_execution() {
    let here = World::new().await;
    here.set(json!({ "max_running": 2 })).await;
    here.rehearsals("shadowed", 3).await;
    assert_eq!(here.admit().await, 2);
    let worker = here.claimer(PATIENCE).await;
    let held = here.claim_copies(worker, 10).await;
    assert!(held.len() == 2 && held.iter().all(|claimed| claimed.rehearsal), "{held:?}");
    assert_eq!(here.admit().await, 0, "no rehearsal gives way to another one");
    here.real_run_begins(held[0].envelope.id).await;
    let ids = [here.pinned("p").await, here.enqueue(mail(1)).await];
    assert_eq!((here.admit().await, here.admit().await), (1, 0), "one of two places can be had");
    let begun = [here.claim_copies(worker, 10).await, here.tasks.claim(worker, 10).await.unwrap()].concat();
    assert!(begun.len() == 1 && ids.contains(&begun[0].envelope.id), "{begun:?}");
    assert_eq!(here.group().await.held, 2);
    assert_eq!(here.count("select count(*) from crossover.running where not execute").await, 2, "both still wait");
}

#[tokio::test]
async fn rehearsals_of_an_account_give_way_to_its_executions_where_it_has_all_its_places() {
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "max_running": 10, "max_per_account": 1 })).await;
    here.rehearsals(ACCOUNT, 1).await;
    here.rehearsals("c", 1).await;
    assert_eq!(here.admit().await, 2);
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.claim_copies(worker, 10).await.len(), 2);
    let id = here.enqueue(mail(1)).await;
    let other = here.enqueue(NewTask { account: "b".to_owned(), ..mail(2) }).await;
    assert_eq!((here.admit().await, here.admit().await), (2, 0));
    let mut begun: Vec<Uuid> =
        here.tasks.claim(worker, 10).await.unwrap().into_iter().map(|claimed| claimed.envelope.id).collect();
    begun.sort();
    assert_eq!(begun, [id, other]);
    let marked = here.count("select count(*) from crossover.running where gated_for is not null");
    assert_eq!(marked.await, 1, "of account c nothing waits");
}

#[tokio::test]
async fn rehearsals_that_nobody_claims_give_way_as_well() {
    let here = World::new().await;
    here.set(json!({ "max_running": 3 })).await;
    here.rehearsals("shadowed", 5).await;
    assert_eq!(here.admit().await, 3);
    let ids = [here.pinned("p").await, here.enqueue(mail(1)).await];
    assert_eq!(here.admit().await, 2);
    assert_eq!(here.group().await.held, 3, "no more give way than there are executions");
    let worker = here.claimer(PATIENCE).await;
    // Its slots are full of rehearsals, so it takes executions only.
    let claim = Claim { worker, limit: 10, executions_only: true, lease: PATIENCE };
    let copies = Queue::new(here.ledger.pool().clone()).claim(claim).await.unwrap();
    let begun = [copies, here.tasks.claim(worker, 10).await.unwrap()].concat();
    assert!(begun.len() == 2 && begun.iter().all(|claimed| ids.contains(&claimed.envelope.id)), "{begun:?}");
    assert_eq!(here.admit().await, 0);
    assert_eq!(here.count("select count(*) from crossover.gate").await, 4);
}

#[tokio::test]
async fn rehearsals_that_nobody_claims_do_not_use_a_rates_burst_up() {
    let here = World::new().await;
    here.set(json!({ "rate": 1000.0, "burst": 2 })).await;
    here.rehearsals("shadowed", 2).await;
    assert_eq!(here.admit().await, 2);
    let id = here.enqueue(mail(1)).await;
    until("the rate lets it in", async || (here.admit().await == 1).then_some(())).await;
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.tasks.claim(worker, 10).await.unwrap()[0].envelope.id, id);
}

#[tokio::test]
async fn executions_behind_those_of_a_full_account_take_the_places_of_rehearsals() {
    let here = World::new().await;
    here.arm("b").await;
    here.set(json!({ "max_running": 10, "max_per_account": 2 })).await;
    let worker = here.claimer(PATIENCE).await;
    here.enqueue(mail(0)).await;
    here.enqueue(mail(1)).await;
    assert_eq!((here.admit().await, here.tasks.claim(worker, 10).await.unwrap().len()), (2, 2));
    for account in ["r", "s", "t", "u"] {
        here.rehearsals(account, 2).await;
    }
    assert_eq!(here.admit().await, 8);
    assert_eq!(here.claim_copies(worker, 10).await.len(), 8, "all of them are held");
    let waiting: Vec<NewTask> = (10..160).map(mail).collect();
    here.tasks.enqueue(&waiting).await.unwrap();
    for n in 200..203 {
        here.enqueue(NewTask { account: "b".to_owned(), ..mail(n) }).await;
    }
    assert_eq!((here.admit().await, here.admit().await), (2, 0), "account a is full, and b may have two");
    let begun = here.tasks.claim(worker, 10).await.unwrap();
    assert!(begun.len() == 2 && begun.iter().all(|claimed| claimed.envelope.account == "b"), "{begun:?}");
    assert_eq!(here.group().await.held, 10);
}

#[tokio::test]
async fn who_takes_a_rehearsals_place_has_a_start_due_by_the_rate_of_its_account() {
    let here = World::new().await;
    here.set(json!({ "max_running": 2, "account_rate": 0.01, "account_burst": 1 })).await;
    here.rehearsals("shadowed", 1).await;
    assert_eq!(here.admit().await, 1);
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.claim_copies(worker, 10).await.len(), 1);
    for n in 0..3 {
        here.enqueue(mail(n)).await;
    }
    assert_eq!(
        (here.admit().await, here.admit().await),
        (1, 0),
        "one starts, and neither in a free place nor in the rehearsal's another"
    );
    assert_eq!(here.count("select count(*) from crossover.group_tokens where tokens < 0").await, 0);
}

#[tokio::test]
async fn of_an_account_that_is_full_its_own_rehearsals_give_way_however_old_those_of_others_are() {
    let here = World::new().await;
    here.set(json!({ "max_per_account": 120 })).await;
    here.rehearsals("older", 110).await;
    assert_eq!(here.admit().await, 110);
    let worker = here.claimer(PATIENCE).await;
    assert_eq!(here.claim_copies(worker, 200).await.len(), 110);
    here.rehearsals(ACCOUNT, 120).await;
    assert_eq!(here.admit().await, 120);
    assert_eq!(here.claim_copies(worker, 200).await.len(), 120);
    here.tasks.enqueue(&(0..5).map(mail).collect::<Vec<_>>()).await.unwrap();
    assert_eq!((here.admit().await, here.admit().await), (5, 0));
    let theirs = "select count(*) from crossover.running where gated_for = 'older'";
    assert_eq!(here.count(theirs).await, 110, "those of others keep theirs");
}
