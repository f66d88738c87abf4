//! `peers WORK`: see the README.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use peers::ground::Ground;
use peers::queue::{Peer, Tuning};
use peers::server::Server;
use peers::works::{Plan, Work};

/// Measure the queues that users could pick instead, as `crossover bench` measures ours
///
/// On a Postgres of its own with the settings of `crossover bench`, thrown away afterwards. Rates are medians of the rounds, in which the
/// peers take turns; each round has a fresh database.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[arg(value_enum)]
    work: Work,
    /// Use this server instead, as a superuser; the databases `peers_bench_…` are made there anew and dropped
    #[arg(long)]
    database_url: Option<String>,
    /// The folder of `postgres` and `initdb`, instead of what `crossover` has fetched
    #[arg(long)]
    postgres_bin_dir: Option<PathBuf>,
    /// Print one JSON document for machines
    #[arg(long)]
    json: bool,
    /// So many tasks in a round (default: as many as `crossover bench` does; ten minutes of `held-open`)
    #[arg(long, value_parser = clap::value_parser!(u32).range(10..=20_000_000))]
    tasks: Option<u32>,
    /// So many rounds of each
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=50))]
    rounds: u32,
    /// So many callers at once, where single tasks are put in
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    callers: u32,
    /// So many tasks have finished before `latency`
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=5_000_000))]
    finished: u32,
    /// So many tasks are put in each second by `held-open`
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Only this one; may be given again
    #[arg(long, value_enum)]
    peer: Vec<Peer>,
    #[command(flatten)]
    tuning: Tuning,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peers: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> peers::Result<()> {
    let peers = if args.peer.is_empty() { Peer::value_variants().to_vec() } else { args.peer };
    let (work, tasks) = (args.work, args.tasks.unwrap_or(args.work.tasks()));
    let (rounds, callers, finished, rate, tuning) = (args.rounds, args.callers, args.finished, args.rate, args.tuning);
    let plan = Plan { work, peers, tasks, rounds, callers, finished, rate, tuning };
    let ground = match &args.database_url {
        Some(url) => Ground::on(url).await?,
        None => Ground::of(Server::start(args.postgres_bin_dir.as_deref()).await?).await?,
    };
    let report = plan.measure(&ground, |what| eprintln!("{what}")).await;
    ground.clear(&plan.peers).await?;
    let report = report?;
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => report.print(),
    }
    Ok(())
}
