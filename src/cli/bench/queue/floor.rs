//! The floor: a program for nothing but its table.

use std::time::{Duration, Instant};

use futures::future::try_join_all;

use super::ground::Ground;
use super::{Failure, Round};

/// Connections that claim and end: more don't make it faster on two cores.
const WORKERS: usize = 4;
const CLAIM: i64 = 500;
const BATCH: u32 = 1_000;

/// Runs `tasks` that wait.
pub(super) async fn burn_down(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    fill(ground, tasks).await?;
    ground.settle(&["floor.jobs", "floor.history"]).await?;
    let (before, began) = (ground.cost().await?, Instant::now());
    try_join_all((0..WORKERS).map(|_| work(ground))).await?;
    let took = began.elapsed();
    Ok(Round::of("floor", tasks, took, ground.cost().await?.since(before)))
}

async fn work(ground: &Ground) -> Result<(), Failure> {
    let mut connection = ground.pool.acquire().await?;
    while take(&mut connection).await? > 0 {}
    Ok(())
}

/// Claims up to 500 and ends them; how many there were.
async fn take(connection: &mut sqlx::PgConnection) -> Result<usize, Failure> {
    let claimed: Vec<(i64, String)> = sqlx::query_as(
        "with head as materialized (
            select id from floor.jobs where state = 0 order by id limit $1 for update skip locked)
         update floor.jobs j set state = 1, claimed_at = now() from head where j.id = head.id returning j.id, j.payload",
    )
    .bind(CLAIM)
    .fetch_all(&mut *connection)
    .await?;
    let ids: Vec<i64> = claimed.into_iter().map(|job| job.0).collect();
    if !ids.is_empty() {
        sqlx::query(
            "with done as (delete from floor.jobs where id = any ($1) returning *)
             insert into floor.history select id, claimed_at, now(), payload from done",
        )
        .bind(&ids)
        .execute(&mut *connection)
        .await?;
    }
    Ok(ids.len())
}

async fn fill(ground: &Ground, tasks: u32) -> Result<(), Failure> {
    for from in (0..tasks).step_by(BATCH as usize) {
        insert(ground, from..(from + BATCH).min(tasks)).await?;
    }
    Ok(())
}

async fn insert(ground: &Ground, range: std::ops::Range<u32>) -> Result<(), Failure> {
    let payloads: Vec<String> = range.map(Ground::payload).collect();
    let insert = sqlx::query("insert into floor.jobs (payload) select * from unnest($1::text[])").bind(payloads);
    insert.execute(&ground.pool).await?;
    Ok(())
}

/// Puts `tasks` in, 1,000 at a time.
pub(super) async fn enqueue_batch(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (before, began) = (ground.cost().await?, Instant::now());
    let halves = [0..tasks / 2, tasks / 2..tasks];
    try_join_all(halves.map(|half| async move {
        for from in half.clone().step_by(BATCH as usize) {
            insert(ground, from..(from + BATCH).min(half.end)).await?;
        }
        Ok::<_, Failure>(())
    }))
    .await?;
    let took = began.elapsed();
    Ok(Round::of("floor", tasks, took, ground.cost().await?.since(before)))
}

/// Puts `tasks` in one by one, while two connections run them.
pub(super) async fn enqueue(ground: &Ground, tasks: u32, callers: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (before, began) = (ground.cost().await?, Instant::now());
    let each = tasks / callers;
    let calls = async {
        try_join_all((0..callers).map(|caller| async move {
            let mut connection = ground.pool.acquire().await?;
            let mut times = Vec::with_capacity(each as usize);
            for n in 0..each {
                let began = Instant::now();
                let insert = sqlx::query("insert into floor.jobs (payload) values ($1)");
                insert.bind(Ground::payload(caller * each + n)).execute(&mut *connection).await?;
                times.push(began.elapsed());
            }
            Ok::<_, Failure>(times)
        }))
        .await
        .map(|times| (times.into_iter().flatten().collect::<Vec<_>>(), began.elapsed()))
    };
    let running = async {
        let mut connection = ground.pool.acquire().await?;
        let mut done = 0;
        while done < (each * callers) as usize {
            match take(&mut connection).await? {
                0 => tokio::time::sleep(Duration::from_millis(5)).await,
                some => done += some,
            }
        }
        Ok::<_, Failure>(())
    };
    let ((times, took), ()) = tokio::try_join!(calls, running)?;
    Ok(Round::of("floor", each * callers, took, ground.cost().await?.since(before)).timed(times))
}

/// From the insert's call to the claim's answer, one at a time, by polling each millisecond.
pub(super) async fn latency(ground: &Ground, tasks: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    let (before, began) = (ground.cost().await?, Instant::now());
    let (mut inserting, mut claiming) = (ground.pool.acquire().await?, ground.pool.acquire().await?);
    let mut times = Vec::with_capacity(tasks as usize);
    for n in 0..tasks {
        let began = Instant::now();
        let insert = sqlx::query("insert into floor.jobs (payload) values ($1)").bind(Ground::payload(n));
        insert.execute(&mut *inserting).await?;
        let claimed: Vec<(i64, String)> = sqlx::query_as(
            "update floor.jobs set state = 1, claimed_at = now() where id in (
                select id from floor.jobs where state = 0 order by id limit 1 for update skip locked) returning id, payload",
        )
        .fetch_all(&mut *claiming)
        .await?;
        times.push(began.elapsed());
        let ids: Vec<i64> = claimed.into_iter().map(|job| job.0).collect();
        sqlx::query(
            "with done as (delete from floor.jobs where id = any ($1) returning *)
             insert into floor.history select id, claimed_at, now(), payload from done",
        )
        .bind(ids)
        .execute(&mut *claiming)
        .await?;
    }
    let took = began.elapsed();
    Ok(Round::of("floor", tasks, took, ground.cost().await?.since(before)).timed(times))
}
