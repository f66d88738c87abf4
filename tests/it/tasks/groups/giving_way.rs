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
    assert_eq!(here.group().await.held, 2, "as many as are executions, and the rest with the next pass");
    let worker = here.claimer(PATIENCE).await;
    // Its slots are full of rehearsals, so it takes executions only.
    let claim = Claim { worker, limit: 10, executions_only: true, lease: PATIENCE };
    let copies = Queue::new(here.ledger.pool().clone()).claim(claim).await.unwrap();
    let begun = [copies, here.tasks.claim(worker, 10).await.unwrap()].concat();
    assert!(begun.len() == 2 && begun.iter().all(|claimed| ids.contains(&claimed.envelope.id)), "{begun:?}");
    assert_eq!(here.admit().await, 1, "one place is left for a rehearsal");
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
