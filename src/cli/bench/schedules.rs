//! `crossover bench schedules`: schedules that fall due together, and what other claims feel of it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use chrono::Utc;
use serde::Serialize;
use uuid::Uuid;

use super::super::{Context, Outcome, print_json};
use super::queue::{Failure, Ground, interaction as interaction_of, router};
use crate::interaction::{self, Interaction};
use crate::queue::Finish;
use crate::queue::tasks::{self, NewTask, Tasks};

/// Measure how long it takes until all are enqueued that fall due together, and how long claims take meanwhile
///
/// One router, one Postgres of its own, durable. Beside it one caller puts single tasks in and claims each: alone first, then
/// while the schedules are fired. Nothing is run, so what is measured is the enqueue.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many schedules
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=5_000_000))]
    schedules: u32,
    /// So many rounds
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    schedules: u32,
    /// The median of the rounds.
    seconds: f64,
    per_second: f64,
    rounds: Vec<Round>,
}

#[derive(Debug, Serialize)]
struct Round {
    seconds: f64,
    per_second: f64,
    /// Milliseconds that a claim takes alone, and while schedules are fired.
    alone: Spread,
    beside: Spread,
    ratio_p99: f64,
    /// For each run: bytes of the write-ahead log, and commits.
    wal_bytes: f64,
    commits: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Spread {
    claims: usize,
    p50: f64,
    p99: f64,
}

/// For how long claims are measured alone.
const ALONE: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(1_200);

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let progress = context.progress();
    let ground = Ground::prepare(context.load()?, &progress).await?;
    let mut rounds = Vec::new();
    for n in 1..=args.rounds {
        progress.say(&format!("round {n} of {}", args.rounds));
        rounds.push(round(&ground, args.schedules).await?);
    }
    ground.clear().await;
    let mut seconds: Vec<f64> = rounds.iter().map(|round| round.seconds).collect();
    seconds.sort_by(f64::total_cmp);
    let seconds = seconds[seconds.len() / 2];
    let report = Report { schedules: args.schedules, seconds, per_second: f64::from(args.schedules) / seconds, rounds };
    match context.json {
        true => print_json(&report)?,
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

async fn round(ground: &Ground, schedules: u32) -> Result<Round, Failure> {
    ground.sweep().await?;
    sqlx::raw_sql("truncate crossover.schedules, crossover.schedule_runs, crossover.series").execute(&ground.pool).await?;
    sqlx::query(
        "insert into crossover.schedules (account, name, kind, priority, payload, policy, spec, overlap, catch_up, window_ms, jitter_ms, changed_by)
         select 'account-' || i % 1000, 's' || i, 'noop', 0, to_json(repeat('x', 198)), '{}', json_build_object('every_ms', 3600000, 'starts_at', now() - interval '7 days'), 'skip', 'latest', 86400000, 0, 'bench'
         from generate_series(1, $1) i",
    )
    .bind(schedules as i32)
    .execute(&ground.pool)
    .await?;
    ground.settle(&["crossover.schedules", "crossover.pins", "crossover.ready", "crossover.series"]).await?;
    let app = router(ground).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let alone = tokio::spawn(claims(ground.pool.clone(), stop.clone()));
    tokio::time::sleep(ALONE).await;
    stop.store(true, Ordering::Release);
    let alone = alone.await??;
    let (stop, before) = (Arc::new(AtomicBool::new(false)), ground.cost().await?);
    let beside = tokio::spawn(claims(ground.pool.clone(), stop.clone()));
    sqlx::raw_sql("update crossover.schedules set wake_at = now(), nominal_at = date_trunc('milliseconds', now())").execute(&ground.pool).await?;
    // They are due from its commit on.
    let began = Instant::now();
    // Asked of the router: a question to Postgres would read every entry of the index that was due and is no more.
    let fired = app.metrics().schedules.fired.with_label_values(&["schedule"]);
    tokio::time::timeout(PATIENCE, async {
        while fired.get() < u64::from(schedules) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await?;
    let took = began.elapsed().as_secs_f64();
    stop.store(true, Ordering::Release);
    let beside = beside.await??;
    let cost = ground.cost().await?.since(before);
    app.stop().await;
    let enqueued: i64 = sqlx::query_scalar("select count(*) from crossover.pins where key like 'schedule:%'").fetch_one(&ground.pool).await?;
    if enqueued != i64::from(schedules) {
        return Err(format!("{enqueued} runs are pinned, of {schedules} schedules").into());
    }
    let n = f64::from(schedules);
    let ratio_p99 = beside.p99 / alone.p99;
    Ok(Round { seconds: took, per_second: n / took, alone, beside, ratio_p99, wal_bytes: cost.wal_bytes / n, commits: cost.commits / n })
}

/// Puts single tasks in and claims each, until `stop`: how long the claims take.
async fn claims(pool: sqlx::PgPool, stop: Arc<AtomicBool>) -> Result<Spread, Failure> {
    let (tasks, worker, mut times) = (Tasks::new(pool), Uuid::new_v4(), Vec::new());
    tasks.beat(worker, &[], PATIENCE).await?;
    while !stop.load(Ordering::Acquire) {
        tasks.enqueue(&[task()?]).await?;
        let began = Instant::now();
        let claimed = tasks.claim(worker, 1).await?;
        times.push(began.elapsed().as_secs_f64() * 1_000.0);
        let ends: Vec<Finish> = claimed.iter().map(|claimed| Finish::of(claimed, Some(interaction::Outcome::Succeeded))).collect();
        if tasks.finish(worker, &ends).await?.is_empty() {
            return Err("a task that was put in could not be claimed and ended".into());
        }
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or(0.0);
    Ok(Spread { claims: times.len(), p50: at(0.5), p99: at(0.99) })
}

fn task() -> Result<NewTask, Failure> {
    let Interaction { account, kind, payload, policy, .. } = interaction_of(0)?;
    let (id, flag_revision) = (tasks::new_id(Utc::now()), "bench".to_owned());
    Ok(NewTask { id, account, kind, group: None, run_at: None, priority: 0, vt: 0, flag_revision, policy, payload })
}

impl Report {
    fn print(&self) {
        for r in &self.rounds {
            println!(
                "{} enqueued in {:.1} s, {:.0} a second; {:.0} bytes of WAL and {:.4} commits each; claims alone {:.2} and {:.2} ms (half, 99 of 100), beside it {:.2} and {:.2} ms: {:.1} times",
                self.schedules, r.seconds, r.per_second, r.wal_bytes, r.commits, r.alone.p50, r.alone.p99, r.beside.p50, r.beside.p99, r.ratio_p99
            );
        }
        println!("\nschedules with {}: {:.0} a second, all in {:.1} s (median).", self.schedules, self.per_second, self.seconds);
    }
}
