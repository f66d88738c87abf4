//! `crossover bench burn-down`, `enqueue`, `enqueue-batch`, `latency`, `backlog`, `pinned`: what the Postgres queue does in a
//! second, beside its floor on the same server in the same run.

mod floor;
mod ground;
mod ours;

use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;

use super::super::proof::{number, numbers};
use super::super::{Context, Outcome, print_json};
use ground::{Cost, Statement};
pub(super) use ground::Ground;
pub(super) use ours::{interaction, router};

pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measure the Postgres queue beside its floor
///
/// The floor is what a program written for nothing else does on a table of its own: inserts of 1,000 rows by unnest, claims of
/// 500 with SKIP LOCKED, ends of 500 into a history. Both work on one Postgres, in turns, with synchronous commits, durable
/// files, and payloads of 200 bytes. Rates are medians of the rounds.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many tasks in a round (default: as the work needs)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1_000..=20_000_000))]
    tasks: Option<u32>,
    /// So many rounds of each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// So many callers at once, where single tasks are put in
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    callers: u32,
}

/// Tasks in a second, where they come at a steady pace.
const RATE: u32 = 1_000;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// Run no-ops that wait, until none is left; all are in the history then.
    BurnDown,
    /// Put tasks in one by one from many callers, while a worker runs them.
    Enqueue,
    /// Put tasks in 1,000 at a time.
    EnqueueBatch,
    /// From the call that puts a task in to the begin of its handler, one at a time.
    Latency,
    /// The first 20,000 done with few and with many waiting.
    Backlog,
    /// A steady thousand a second, without and with a transaction held open all the while; timed is the last quarter.
    HeldOpen,
    /// Run no-ops that wait, without and with a limit on their group.
    Limited,
    /// Run no-ops that are pinned, as those of accounts that migrate are.
    Pinned,
}

impl Work {
    fn tasks(self) -> u32 {
        match self {
            Work::BurnDown | Work::EnqueueBatch | Work::Limited => 200_000,
            Work::Enqueue => 50_000,
            Work::Latency => 2_000,
            Work::Backlog => 1_000_000,
            Work::HeldOpen => 60_000,
            Work::Pinned => 10_000,
        }
    }
}

/// What one side did in one round.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Round {
    who: &'static str,
    /// Tasks in a second.
    per_second: f64,
    /// Milliseconds, where single calls are measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    p50_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    p99_ms: Option<f64>,
    /// For each task: bytes of the write-ahead log, commits, microseconds of CPU of this process and of Postgres.
    wal_bytes: f64,
    commits: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cpu_us: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_cpu_us: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Report {
    work: String,
    tasks: u32,
    /// Ours, the median.
    per_second: f64,
    floor_per_second: f64,
    /// Ours over the floor's: tasks in a second.
    ratio_to_floor: f64,
    rounds: Vec<Round>,
    /// What took most of the server's time in all rounds, of ours, filling included.
    statements: Vec<Statement>,
}

/// See [`Args`].
pub async fn run(work: Work, args: Args, context: Context) -> Outcome {
    let tasks = args.tasks.unwrap_or(work.tasks());
    let progress = context.progress();
    let ground = Ground::prepare(context.load()?, &progress).await?;
    let mut rounds = Vec::new();
    ground.forget_statements().await;
    for n in 1..=args.rounds {
        progress.say(&format!("round {n} of {}", args.rounds));
        let pair = match work {
            Work::BurnDown => [floor::burn_down(&ground, tasks).await?, ours::burn_down(&ground, tasks).await?],
            Work::Enqueue => {
                [floor::enqueue(&ground, tasks, args.callers).await?, ours::enqueue(&ground, tasks, args.callers).await?]
            }
            Work::EnqueueBatch => [floor::enqueue_batch(&ground, tasks).await?, ours::enqueue_batch(&ground, tasks).await?],
            Work::Latency => [floor::latency(&ground, tasks).await?, ours::latency(&ground, tasks).await?],
            Work::Backlog => [ours::first_of(&ground, 10_000, "few").await?, ours::first_of(&ground, tasks, "many").await?],
            Work::Limited => [ours::burn_down(&ground, tasks).await?, ours::limited(&ground, tasks).await?],
            Work::HeldOpen => {
                [ours::steady(&ground, (tasks, RATE), false).await?, ours::steady(&ground, (tasks, RATE), true).await?]
            }
            Work::Pinned => [floor::burn_down(&ground, tasks).await?, ours::pinned(&ground, tasks).await?],
        };
        rounds.extend(pair);
    }
    let statements = ground.statements().await;
    ground.clear().await;
    let report = Report::of(work, tasks, (rounds, statements));
    match context.json {
        true => print_json(&report)?,
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn of(work: Work, tasks: u32, (rounds, statements): (Vec<Round>, Vec<Statement>)) -> Self {
        let of = |place: usize| median(rounds.iter().skip(place).step_by(2).map(|round| round.per_second).collect());
        let (floor_per_second, per_second) = (of(0), of(1));
        let work = work.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned());
        Self { work, tasks, per_second, floor_per_second, ratio_to_floor: per_second / floor_per_second, rounds, statements }
    }

    fn print(&self) {
        let mut table = numbers(&["", "tasks/s", "p50", "p99", "WAL bytes/task", "commits/task", "CPU here", "CPU of Postgres"]);
        let micros = |us: Option<f64>| us.map_or_else(String::new, |us| format!("{us:.1} µs/task"));
        let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| format!("{ms:.2} ms"));
        for round in &self.rounds {
            table.add_row([
                comfy_table::Cell::new(round.who),
                number(round.per_second as u64),
                comfy_table::Cell::new(ms(round.p50_ms)),
                comfy_table::Cell::new(ms(round.p99_ms)),
                number(round.wal_bytes as u64),
                comfy_table::Cell::new(format!("{:.4}", round.commits)),
                comfy_table::Cell::new(micros(round.client_cpu_us)),
                comfy_table::Cell::new(micros(round.server_cpu_us)),
            ]);
        }
        println!("{}", table.trim_fmt());
        let mut statements = numbers(&["calls", "ms", "statement"]);
        for s in &self.statements {
            statements.add_row([number(s.calls.unsigned_abs()), number(s.ms as u64), comfy_table::Cell::new(&s.statement)]);
        }
        println!("\n{}", statements.trim_fmt());
        println!(
            "\n{} with {} tasks: {:.0} a second, {:.2} of the {} that it is compared with (medians).",
            self.work, self.tasks, self.per_second, self.ratio_to_floor, self.floor_per_second as u64
        );
    }
}

impl Round {
    fn of(who: &'static str, tasks: u32, took: Duration, cost: Cost) -> Self {
        let tasks = f64::from(tasks.max(1));
        let per_second = tasks / took.as_secs_f64();
        let micros = |seconds: Option<f64>| seconds.map(|seconds| seconds * 1e6 / tasks);
        Self {
            who,
            per_second,
            p50_ms: None,
            p99_ms: None,
            wal_bytes: cost.wal_bytes / tasks,
            commits: cost.commits / tasks,
            client_cpu_us: micros(cost.client_cpu),
            server_cpu_us: micros(cost.server_cpu),
        }
    }

    fn timed(self, mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(place).map(|time| time.as_secs_f64() * 1_000.0)
        };
        Self { p50_ms: at(0.5), p99_ms: at(0.99), ..self }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        _ if values.is_empty() => 0.0,
        0 => (values[middle - 1] + values[middle]) / 2.0,
        _ => values[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_or_between_the_two_middles() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
