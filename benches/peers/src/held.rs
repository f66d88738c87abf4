//! Tasks at an even rate while another connection holds a transaction open, minute by minute.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::future::try_join_all;
use sqlx::Connection;

use crate::ground::Ground;
use crate::queue::{Pace, Peer, Queue};
use crate::report::{Minute, Round, at};
use crate::run::Run;
use crate::works::{Plan, until_ended};
use crate::{Failure, Result};

const MINUTE: Duration = Duration::from_secs(60);

/// When tasks were put in, by number.
type Asked = Vec<(u32, Instant)>;

/// Holds a transaction open, puts the plan's tasks in at its rate and runs them.
pub async fn open(ground: &Ground, peer: Peer, plan: &Plan) -> Result<Round> {
    let (queue, run) = (ground.fresh(peer, plan.tuning).await?, Run::of(plan.tasks));
    let mut holder = ground.connect(peer).await?;
    // A snapshot and a number of its own: nothing that dies from here on can be removed.
    sqlx::raw_sql("begin isolation level repeatable read; select pg_current_xact_id(), count(*) from pg_class")
        .execute(&mut holder)
        .await?;
    let mut worker = queue.worker(Pace::Stream, run.clone()).await?;
    worker.begin().await?;
    let (before, began, used) = (ground.cost().await?, Instant::now(), Mutex::new(Vec::new()));
    let work = async {
        let asked = put_all(&queue, plan, began).await?;
        run.reached(plan.tasks).await?;
        Ok::<_, Failure>((asked, began.elapsed()))
    };
    let (asked, took) = tokio::select! {
        done = work => done?,
        () = watch(ground, began, &used) => return Err("the watch over the server ended".into()),
    };
    until_ended(queue.as_ref(), plan.tasks).await?;
    let cost = ground.cost().await?.since(before);
    worker.stop().await?;
    sqlx::raw_sql("rollback").execute(&mut holder).await?;
    holder.close().await?;
    queue.close().await;
    let used = used.into_inner().map_err(|_| "the watch over the server panicked")?;
    let minutes = minutes(&asked, &run, began, took, &used);
    let times = asked.iter().filter_map(|(n, asked)| waited(&run, *n, *asked)).collect();
    let round = Round::of(peer.name(), plan.tasks, took, cost).timed(times);
    Ok(Round { ran_again: run.again(), minutes, ..round })
}

/// Each caller has its share of the tasks, and of the moments at which they are due.
async fn put_all(queue: &Arc<dyn Queue>, plan: &Plan, began: Instant) -> Result<Asked> {
    let calls = (0..plan.callers).map(|caller| {
        let (queue, plan) = (queue.clone(), plan.clone());
        let call = async move {
            let mut asked = Asked::new();
            for n in (caller..plan.tasks).step_by(plan.callers as usize) {
                let due = began + Duration::from_secs_f64(f64::from(n) / f64::from(plan.rate));
                tokio::time::sleep_until(due.into()).await;
                asked.push((n, Instant::now()));
                queue.put(n).await?;
            }
            Ok::<_, Failure>(asked)
        };
        async { tokio::spawn(call).await? }
    });
    Ok(try_join_all(calls).await?.into_iter().flatten().collect())
}

/// Notes what processor time the server has used: at the begin and after each minute.
async fn watch(ground: &Ground, began: Instant, used: &Mutex<Vec<f64>>) {
    for minute in 0.. {
        tokio::time::sleep_until((began + MINUTE * minute).into()).await;
        if let (Some(seconds), Ok(mut used)) =
            (ground.server.as_ref().and_then(|server| server.processor()), used.lock())
        {
            used.push(seconds);
        }
    }
}

fn waited(run: &Run, n: u32, asked: Instant) -> Option<Duration> {
    Some(run.begun(n)?.saturating_duration_since(asked))
}

/// Latencies by the minute of the call, throughput by the minute of the handler's begin.
fn minutes(asked: &Asked, run: &Run, began: Instant, took: Duration, used: &[f64]) -> Vec<Minute> {
    let minute = |moment: Instant| (moment.saturating_duration_since(began).as_secs() / MINUTE.as_secs()) as usize;
    let count = minute(began + took) + 1;
    let (mut times, mut ran) = (vec![Vec::new(); count], vec![0_u32; count]);
    for (n, asked) in asked {
        let Some(begun) = run.begun(*n) else { continue };
        times[minute(*asked).min(count - 1)].push(begun.saturating_duration_since(*asked));
        ran[minute(begun).min(count - 1)] += 1;
    }
    let of = |(n, (mut times, ran)): (usize, (Vec<Duration>, u32))| {
        times.sort();
        let length = took.saturating_sub(MINUTE * n as u32).min(MINUTE).as_secs_f64();
        let server_cores = used.get(n..n + 2).map(|used| (used[1] - used[0]) / MINUTE.as_secs_f64());
        Minute { per_second: f64::from(ran) / length, p50_ms: at(&times, 0.5), p99_ms: at(&times, 0.99), server_cores }
    };
    times.into_iter().zip(ran).enumerate().map(of).filter(|minute| minute.p50_ms.is_some()).collect()
}
