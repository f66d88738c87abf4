//! `crossover replay`: drives a running `crossover serve` with a trace, and proves what became of it.

use std::collections::BTreeSet;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use reqwest::{Client, Url};
use serde::Serialize;

use super::proof::{Compared, Proof, seconds};
use super::{Context, Outcome, print_json};
use crate::app::Servers;
use crate::config::Config;
use crate::flags::{Document, DocumentBuilder};
use crate::interaction::Stage;
use crate::policy::{Backoff, Exponential, Policy};
use crate::proof::{Driver, Job, Runner, RunnerOptions, read_trace, settle};
use crate::provision::Progress;

/// Replay an arrival trace against a running `crossover serve`, and print the verdict
///
/// It hosts the runner at runner.url itself, so that the verdict is counted from what the runner saw. Each run has
/// keys of its own, so a trace can be replayed again. Exits with 1 where a promise is broken.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The trace: a line `{"at_ms", "account", "kind", "series", "key", "payload"}` an interaction, gzipped or plain
    file: PathBuf,
    /// How long the whole trace lasts
    #[arg(long, default_value = "150s", value_parser = humantime::parse_duration)]
    over: Duration,
    /// Where serve listens (default: http.listen of the configuration)
    #[arg(long)]
    url: Option<String>,
    /// Only the first so many interactions
    #[arg(long)]
    limit: Option<usize>,
    /// Rewrite the flags file at that time after the start, for all accounts of the trace: `shadow@0s`, `live@50s`
    #[arg(long, value_name = "STAGE@TIME")]
    flip: Vec<Flip>,
    /// Don't ask before the flags file is rewritten
    #[arg(long)]
    yes: bool,
    /// How long the last of it may take
    #[arg(long, default_value = "5m", value_parser = humantime::parse_duration)]
    patience: Duration,
    /// The same seed gives the runner the same moods; keys differ all the same
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// A stage, and when to flip to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flip {
    stage: Stage,
    at: Duration,
}

impl FromStr for Flip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (stage, at) = text.split_once('@').ok_or("write it like live@50s")?;
        let at = humantime::parse_duration(at).map_err(|error| format!("{at}: {error}; write it like live@50s"))?;
        Ok(Self { stage: stage.parse().map_err(|error| format!("{error}"))?, at })
    }
}

/// A flip as it happened.
#[derive(Debug, Serialize)]
struct Flipped {
    stage: Stage,
    at: Duration,
    /// From the write of the file until serve decided by it.
    took: Duration,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    proof: Proof,
    run: String,
    accounts: usize,
    series: usize,
    flips: Vec<Flipped>,
    took: Duration,
    compared: Compared,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

const CALLERS: usize = 64;

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let (file, over, limit) = (args.file.clone(), args.over, args.limit.unwrap_or(usize::MAX));
    let jobs = tokio::task::spawn_blocking(move || read_trace(&file, over, limit)).await??;
    let accounts: BTreeSet<_> = jobs.iter().map(|job| job.account.clone()).collect();
    let serve = Serve::new(&args, &config)?;
    serve.is_ready().await?;
    let progress = context.progress();
    let flags = FlagsFile { path: &config.flags.file, accounts: &accounts, serve: &serve };
    let mut flips = args.flip.clone();
    flips.sort_by_key(|flip| flip.at);
    if !flips.is_empty() && !agreed(&args, &flags, &flips, &progress)? {
        return Ok(ExitCode::FAILURE);
    }
    let runner = host(&config, args.seed).await?;
    let report = tokio::select! {
        report = replay(&args, jobs, &flags, &flips, &runner, &config, &progress) => report?,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            return Err("interrupted; what was enqueued goes on in serve, and waits for a runner".into());
        }
    };
    match context.json {
        true => print_json(&report)?,
        false => report.print(std::io::stdout().is_terminal()),
    }
    Ok(if report.proof.kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn replay(
    args: &Args,
    mut jobs: Vec<Job>,
    flags: &FlagsFile<'_>,
    flips: &[Flip],
    runner: &Runner,
    config: &Config,
    progress: &Progress,
) -> Result<Report, Failure> {
    let run = uuid::Uuid::new_v4().simple().to_string()[..8].to_owned();
    jobs.iter_mut().for_each(|job| job.key = format!("{run}/{}", job.key));
    let series: BTreeSet<_> = jobs.iter().filter_map(|j| Some((&j.account, &j.kind, j.series.as_ref()?))).collect();
    let (total, series) = (jobs.len(), series.len());
    let accounts = flags.accounts.len();
    let mut flipped = Vec::new();
    let (first, later): (Vec<Flip>, Vec<Flip>) = flips.iter().partition(|flip| flip.at.is_zero());
    for flip in first {
        flipped.push(flags.flip(flip, Duration::ZERO, progress).await?);
    }
    progress.say(&format!(
        "run {run}: {total} interactions of {accounts} accounts, {series} series, over {}",
        humantime::format_duration(args.over)
    ));
    let driver = Driver::new(&flags.serve.url, policy(), CALLERS, args.patience)?;
    let began = Instant::now();
    let bar = progress.count("enqueueing", total as u64);
    let flipping = async {
        for flip in later {
            tokio::time::sleep_until((began + flip.at).into()).await;
            flipped.push(flags.flip(flip, began.elapsed(), progress).await?);
        }
        Ok::<_, Failure>(())
    };
    let mut answered = driver.answered();
    let watching = async {
        while *answered.borrow_and_update() < total as u64 && answered.changed().await.is_ok() {
            bar.reach(*answered.borrow());
        }
    };
    let ((), (), flipping) = tokio::join!(driver.drive(jobs), watching, flipping);
    flipping?;
    drop(bar);
    let answers = driver.answers();
    progress.say(&format!("{:>7}  all have their answer", seconds(began.elapsed())));
    let ending = progress.count("waiting for the ends", answers.accepted.len() as u64);
    let left = |left: usize| ending.reach((answers.accepted.len() - left) as u64);
    let settled = settle(&flags.serve.url, &answers.accepted, runner, args.patience, left).await;
    drop(ending);
    let proof = Proof::of(answers, runner, settled);
    let took = began.elapsed();
    progress.say("waiting for the comparator");
    let compared = compare(config, began, args.patience).await;
    Ok(Report { proof, run, accounts, series, flips: flipped, took, compared })
}

/// Asks the database that serve works on, if it is known here.
async fn compare(config: &Config, began: Instant, patience: Duration) -> Compared {
    let Some(url) = Servers::known_postgres(config) else {
        let why = "no postgres.url is configured, and no `serve` has started one with this state_dir; ask `crossover report` where one is";
        return Compared::without(why.to_owned());
    };
    match super::migrate::ledger(config, url.expose()) {
        Ok(ledger) => Compared::of(&ledger, config, began, patience).await,
        Err(error) => Compared::without(error.to_string()),
    }
}

/// Retries soon: the members of a busy series wait for each other's retries.
fn policy() -> Policy {
    let backoff = Exponential { initial_ms: 100, factor: 2.0, max_ms: 2_000, jitter: 0.1 };
    Policy { backoff: Backoff::Exponential(backoff), run_timeout_ms: 30_000, ..Policy::default() }
}

impl Report {
    fn print(&self, colours: bool) {
        for Flipped { stage, at, took } in &self.flips {
            println!("flipped to {stage} after {}, in force in {} ms", seconds(*at), took.as_millis());
        }
        let mut rows = super::proof::numbers(&["EXECUTED IN STAGE", "ON TEMPORAL", "ON POSTGRES"]);
        for (stage, by) in &self.proof.verdict.executed_by_stage {
            rows.add_row([
                comfy_table::Cell::new(stage),
                super::proof::number(by.temporal),
                super::proof::number(by.postgres),
            ]);
        }
        println!("\n{}", rows.trim_fmt());
        self.proof.print(colours);
        println!("Run {} of {} accounts and {} series took {}.", self.run, self.accounts, self.series, seconds(self.took));
        self.compared.print(colours);
    }
}

/// The running `crossover serve`.
struct Serve {
    url: String,
    client: Client,
}

impl Serve {
    fn new(args: &Args, config: &Config) -> Result<Self, Failure> {
        let url = args.url.clone().unwrap_or_else(|| format!("http://{}", config.http.listen));
        let url = url.trim_end_matches('/').to_owned();
        Ok(Self { url, client: Client::builder().no_proxy().timeout(Duration::from_secs(5)).build()? })
    }

    async fn readyz(&self) -> reqwest::Result<(bool, String)> {
        let response = self.client.get(format!("{}/readyz", self.url)).send().await?;
        Ok((response.status().is_success(), response.text().await?))
    }

    async fn is_ready(&self) -> Result<(), Failure> {
        match self.readyz().await {
            Ok((true, _)) => Ok(()),
            Ok((false, said)) => Err(format!("{} is not ready, nothing was enqueued: {said}", self.url).into()),
            Err(error) => {
                let todo = "start `crossover serve` there, or name where it is with --url";
                Err(format!("no crossover answers at {} ({}); {todo}", self.url, error.without_url()).into())
            }
        }
    }

    /// Waits until it decides by `revision`.
    async fn follows(&self, revision: &str) -> Result<(), Failure> {
        let until = Instant::now() + Duration::from_secs(30);
        let mut last = String::new();
        while Instant::now() < until {
            match self.readyz().await {
                Ok((_, said)) if said.contains(revision) => return Ok(()),
                Ok((_, said)) => last = said,
                Err(error) => last = error.without_url().to_string(),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("serve did not follow the flags file to {revision} within 30 s; does it read the same file? It says: {last}").into())
    }
}

/// The flags file that serve follows.
struct FlagsFile<'a> {
    path: &'a Path,
    accounts: &'a BTreeSet<Arc<str>>,
    serve: &'a Serve,
}

impl FlagsFile<'_> {
    async fn flip(&self, flip: Flip, at: Duration, progress: &Progress) -> Result<Flipped, Failure> {
        let document = document(self.accounts, flip.stage)?;
        let written = Instant::now();
        document.write_to(self.path).map_err(|error| format!("{} can't be written: {error}", self.path.display()))?;
        self.serve.follows(document.revision()).await?;
        let took = written.elapsed();
        progress.say(&format!("{:>7}  flipped to {} (in force in {} ms)", seconds(at), flip.stage, took.as_millis()));
        Ok(Flipped { stage: flip.stage, at, took })
    }
}

/// All accounts at `stage`, with the flags below it on, too.
fn document(accounts: &BTreeSet<Arc<str>>, stage: Stage) -> Result<Document, Failure> {
    let mut builder = DocumentBuilder::default();
    for account in accounts {
        for up_to in Stage::ALL.iter().filter(|up_to| **up_to <= stage) {
            builder.account(*up_to, account);
        }
    }
    builder.build().map_err(|faults| format!("an account of the trace can't be flagged: {}", faults[0]).into())
}

/// Says what will be done to the flags file, and asks.
fn agreed(args: &Args, flags: &FlagsFile<'_>, flips: &[Flip], progress: &Progress) -> Result<bool, Failure> {
    let path = flags.path.display();
    let when: Vec<_> = flips.iter().map(|f| format!("{} at {}", f.stage, humantime::format_duration(f.at))).collect();
    let plan = format!(
        "{path} will be rewritten for the {} accounts of the trace: {}. What it says now, of other accounts too, goes \
         (a copy: {path}.before-replay); nothing is put back in the end.",
        flags.accounts.len(),
        when.join(", "),
    );
    if args.yes {
        progress.say(&plan);
    } else {
        if !(std::io::stdin().is_terminal() && std::io::stderr().is_terminal()) {
            return Err(format!("{plan} Nothing was enqueued: run it again with --yes").into());
        }
        eprint!("{plan}\nGo on? [y/N] ");
        std::io::stderr().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        if !matches!(answer.trim(), "y" | "Y" | "yes") {
            return Ok(false);
        }
    }
    if flags.path.exists() {
        let mut copy = flags.path.as_os_str().to_owned();
        copy.push(".before-replay");
        std::fs::copy(flags.path, copy).map_err(|error| format!("{path} can't be copied aside: {error}"))?;
    }
    Ok(true)
}

/// Starts the runner where serve calls it.
async fn host(config: &Config, seed: u64) -> Result<Runner, Failure> {
    let address = runner_address(config)?;
    let moods = RunnerOptions { median: Duration::from_millis(10), ..RunnerOptions::uneven(seed) };
    Runner::start(address, moods).await.map_err(|error| {
        format!("the runner can't listen at {address} ({error}); end what holds it, or choose another port in runner.url for serve and replay").into()
    })
}

fn runner_address(config: &Config) -> Result<SocketAddr, Failure> {
    let todo = "put  url = \"http://127.0.0.1:7090/run\"  under [runner] in crossover.toml (or set CROSSOVER_RUNNER_URL) \
        for serve and replay alike, and start serve again";
    let Some(url) = &config.runner.url else {
        return Err(format!("replay hosts the runner itself and needs to know where serve calls it: {todo}").into());
    };
    let parsed = Url::parse(url.expose())?;
    let port = parsed.port_or_known_default().unwrap_or(80);
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']).replace("localhost", "127.0.0.1");
    let address = host.parse::<IpAddr>().ok().filter(|ip| ip.is_loopback() && parsed.scheme() == "http");
    let address = address.map(|ip| SocketAddr::new(ip, port));
    address.ok_or_else(|| format!("replay hosts the runner itself, on this machine over plain http, but runner.url is {url}: {todo}").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flip_is_a_stage_and_a_time() {
        let flip = Flip { stage: Stage::Live, at: Duration::from_secs(50) };
        assert_eq!("live@50s".parse(), Ok(flip));
        assert!("lives@50s".parse::<Flip>().unwrap_err().contains("one of off, shadow, live, complete"));
        assert!("live@soon".parse::<Flip>().unwrap_err().contains("live@50s"));
        assert!("live".parse::<Flip>().is_err());
    }

    #[test]
    fn everybody_in_the_trace_stands_where_the_flip_says() {
        let accounts = BTreeSet::from(["a".into(), "b".into()]);
        for stage in Stage::ALL {
            let document = document(&accounts, *stage).unwrap();
            assert_eq!((document.stage("b", "sync"), document.stage("c", "sync")), (*stage, Stage::Off));
        }
    }
}
