//! Series are locked in one order by whoever locks more than one: no two ever wait for each other.

use chrono::Utc;
use crossover::interaction::Outcome;
use crossover::policy::Failure;
use crossover::queue::Finish;

use super::*;

/// Deadlocks that Postgres broke in this database, ever.
pub(super) async fn deadlocks(world: &World) -> i64 {
    world.scalar("select deadlocks from pg_stat_database where datname = current_database()").await
}

fn finish(claimed: &Claimed, retry: Option<Duration>) -> Finish {
    let failed = retry.is_some();
    Finish {
        id: claimed.envelope.id,
        epoch: claimed.fence.epoch,
        attempt: claimed.fence.attempt,
        rehearsal: claimed.rehearsal,
        ended_at: Utc::now(),
        outcome: Some(if failed { Outcome::Failed } else { Outcome::Succeeded }),
        failure: failed.then_some(Failure::Retryable { retry_after: None }),
        retry,
        park: false,
        result: None,
        error: None,
        task: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_ends_one_series_and_calls_off_a_retry_in_another_waits_for_a_handover_of_both() {
    let world = World::new(Stage::Complete).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    // The lower series is the one of the retry, which is looked after last.
    let mut series = ["s1", "s2"].map(|name| (crossover::interaction::series_id(&world.account, "sync", name), name));
    series.sort();
    let [(_, low), (_, high)] = series;
    for name in [low, high] {
        for n in 1..=2 {
            router.accepts(&world.member(name, &format!("{name} {n}")), 201).await;
        }
    }
    let (worker, queue) = (Uuid::new_v4(), Queue::new(world.pool().clone()));
    let claimed = queue.claim(Claim { worker, limit: 10, executions_only: false, lease: LEASE }).await.unwrap();
    assert_eq!(claimed.len(), 2, "the heads");
    let of = |name: &str| claimed.iter().find(|c| c.envelope.series.as_deref() == Some(name)).unwrap();
    world.ledger.cancel(of(low).envelope.id, "test").await.unwrap();

    // A handover of both, between its two locks.
    let lock = "select 1 from crossover.series where series = $1 for update";
    let mut handover = world.pool().begin().await.unwrap();
    sqlx::query(lock).bind(low).execute(&mut *handover).await.unwrap();
    let ends = [finish(of(high), None), finish(of(low), Some(Duration::ZERO))];
    let finishing = tokio::spawn(async move { queue.finish(worker, &ends).await });
    somebody_waits(&world).await;
    sqlx::query(lock)
        .bind(high)
        .execute(&mut *handover)
        .await
        .expect("it has not taken the higher series before the lower");
    handover.commit().await.unwrap();

    assert_eq!(finishing.await.unwrap().unwrap().len(), 2);
    assert_eq!(world.ended(&format!("{low} 1")).await.state, "cancelled");
    assert_eq!(world.ended(&format!("{high} 1")).await.state, "succeeded");
    assert_eq!(claim(&world).await.len(), 2, "both series have moved on");
    assert_eq!(deadlocks(&world).await, 0);
    router.stop().await;
}
