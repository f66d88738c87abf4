//! `crossover demo`: a whole small migration on real servers, and what became of it.

mod cohorts;
mod report;

use std::fs::File;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::Serialize;

use self::cohorts::{BURST_AT, Cohort, ROLLED_BACK, STEPS, Step};
use self::report::Report;
use super::proof::{Compared, Proof, seconds};
use super::{Context, Outcome, print_json};
use crate::app::{App, Roles, Servers};
use crate::arming::{ArmingStore, State};
use crate::config::{Config, SecretUrl, temp_dir};
use crate::policy::{Backoff, Exponential, Policy};
use crate::proof::{BySide, Burst, Driver, Load, Runner, RunnerOptions, settle};
use crate::provision::{self, Progress};

/// Run a whole small migration on a real Temporal and a real Postgres, and print what became of it
///
/// Needs nothing but itself: it fetches both servers once, starts them with throwaway data, and walks forty accounts
/// from Temporal to Postgres and one cohort back again, under load. The last table is counted from what the runner
/// saw. Exits with 1 where a promise is broken.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many accounts, dealt out to five cohorts
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u16).range(8..=1_000))]
    accounts: u16,
    /// So many interactions (default: 2500, with --quick 500)
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    interactions: Option<u32>,
    /// The same seed makes the same load and the same failures
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Under a minute
    #[arg(long)]
    quick: bool,
    /// Leave everything up to look around, until Ctrl-C
    #[arg(long)]
    stay: bool,
}

/// What the development server of Temporal takes on two cores, with rehearsals.
const A_SECOND: f64 = 25.0;
/// How long the comparator may take after the last end: no rehearsal is open for longer.
const COMPARATOR_PATIENCE: Duration = Duration::from_secs(90);
/// How long the last of it may take.
const PATIENCE: Duration = Duration::from_secs(120);
const CALLERS: usize = 64;
/// Arming without a window takes seconds.
const ARMING: Duration = Duration::from_secs(60);
/// A caller of the demo repeats a key at once or not at all.
const WINDOW: Duration = Duration::from_secs(3);

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let home = Home::make()?;
    let config = configure(context.load()?, &home);
    home.log(&config)?;
    let progress = context.progress();
    let ran = tokio::select! {
        ran = migrate(&args, config, &home, progress.clone()) => ran,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Err("interrupted; the servers end with this process and their data goes".into())
        }
    };
    let (mut app, report) = match ran {
        Ok((app, report)) => (Some(app), report),
        Err(error) => return Err(format!("{error}\nthe log: {}", home.keep_log().display()).into()),
    };
    if !args.stay
        && let Some(app) = app.take()
    {
        app.stop().await;
    }
    match context.json {
        true => print_json(&report)?,
        false => report.print(std::io::stdout().is_terminal()),
    }
    if !report.proof.kept {
        progress.say(&format!("the log: {}", home.keep_log().display()));
    }
    if let Some(app) = app {
        progress.say(&home.invite(&app));
        tokio::signal::ctrl_c().await?;
        progress.say("draining");
        app.stop().await;
    }
    Ok(if report.proof.kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A folder of the demo's own for flags and logs, which goes when it ends.
struct Home {
    dir: PathBuf,
    log: PathBuf,
}

impl Home {
    fn make() -> std::io::Result<Self> {
        let dir = temp_dir().join(format!("crossover-demo-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir)?;
        Ok(Self { log: dir.join("log"), dir })
    }

    fn flags(&self) -> PathBuf {
        self.dir.join("flags.json")
    }

    /// The log goes to a file: it would tear the progress apart.
    fn log(&self, config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        use tracing_subscriber::prelude::*;
        let filter = tracing_subscriber::EnvFilter::try_new(&config.log.filter)?;
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Mutex::new(File::create(&self.log)?));
        Ok(tracing_subscriber::registry().with(filter).with(layer).try_init()?)
    }

    /// Moves the log out of what goes.
    fn keep_log(&self) -> PathBuf {
        let kept = self.dir.with_extension("log");
        if std::fs::rename(&self.log, &kept).is_ok() { kept } else { self.log.clone() }
    }

    fn invite(&self, app: &App) -> String {
        let (api, flags) = (format!("http://{}", app.address()), self.flags());
        let Servers { postgres_url, temporal_address, .. } = app.servers();
        format!(
            "\nEverything stays up until Ctrl-C.\n  API        {api}/v1/interactions\n  metrics    {api}/metrics\n  \
             flags      {}\n  log        {}\n  Postgres   {postgres_url}\n  Temporal   {temporal_address}\n\nTry:\n  \
             curl -s {api}/v1/interactions -d '{{\"account\":\"acct-000\",\"kind\":\"sync\",\"payload\":{{}}}}'\n  \
             psql {postgres_url} -c \"select stage, owner, outcome, count(*) from crossover.pins group by 1, 2, 3\"\n  \
             edit the flags file, enqueue again, and see `owner` change",
            flags.display(),
            self.log.display(),
        )
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // What can't be removed lies in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The configuration with everything that is not the demo's own taken out: it never touches servers that exist.
fn configure(mut config: Config, home: &Home) -> Config {
    config.state_dir = home.dir.join("state");
    config.postgres.url = None;
    config.temporal.address = None;
    config.flags.file = home.flags();
    config.http.listen = ([127, 0, 0, 1], 0).into();
    // Few enough that a burst waits, so that there is a backlog to roll back under.
    config.worker.slots = 16;
    // Seconds instead of a day, so that the cohort from off can be armed while one looks on.
    config.window.idempotency = WINDOW;
    // A Temporal of its own lists what it starts at once, about.
    config.temporal.visibility_lag = Duration::from_secs(1);
    config
}

/// Retries soon, so that what fails now and then is over in seconds.
fn policy() -> Policy {
    let backoff = Exponential { initial_ms: 200, factor: 2.0, max_ms: 2_000, jitter: 0.1 };
    Policy { backoff: Backoff::Exponential(backoff), run_timeout_ms: 30_000, ..Policy::default() }
}

async fn servers(config: &Config, progress: &Progress) -> Result<Servers, provision::Error> {
    let mut options = provision::Options::from(config).telling(progress.clone());
    options.data_dir = None;
    let (postgres, temporal) = tokio::try_join!(provision::postgres(&options), provision::temporal(&options))?;
    let (postgres_url, temporal_address) = (postgres.url.clone(), temporal.address.clone());
    Ok(Servers { postgres_url, temporal_address, postgres: Some(postgres), temporal: Some(temporal) })
}

/// A turn of the flags, as it happened.
#[derive(Debug, Serialize)]
struct Flip {
    what: &'static str,
    /// After the start of the load.
    at: Duration,
    /// From the write of the file until the router decided by it.
    took: Duration,
    /// Unended work of the accounts that it moved, pinned before, by owner.
    in_flight: BySide,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The whole story, up to a report; the app still runs.
async fn migrate(args: &Args, mut config: Config, home: &Home, progress: Progress) -> Result<(App, Report), Failure> {
    let began = Instant::now();
    let total = args.interactions.unwrap_or(if args.quick { 500 } else { 2_500 }) as usize;
    let mut cohorts = cohorts::cohorts(args.accounts.into());
    write_flags(&cohorts, home)?;
    let median = Duration::from_millis(60);
    let moods = RunnerOptions { median, longest: Duration::from_secs(2), ..RunnerOptions::uneven(args.seed) };
    let runner = Runner::start(([127, 0, 0, 1], 0).into(), moods).await?;
    config.runner.url = Some(SecretUrl::new(runner.url()));
    let servers = servers(&config, &progress).await?;
    let app = App::start(&config, Roles::ALL, servers).await?;
    let provisioned = began.elapsed();
    progress.say(&format!(
        "Postgres, Temporal, router, worker, relay and runner are up after {}; {} accounts stand in shadow, {} in off",
        seconds(provisioned),
        cohorts[..4].iter().map(|cohort| cohort.accounts.len()).sum::<usize>(),
        cohorts[4].accounts.len(),
    ));
    let arming = Instant::now();
    arm_ahead(&app, &cohorts[..4]).await?;
    progress.say(&format!("those in shadow are armed after {}, so that they can go live at once", seconds(arming.elapsed())));
    let accounts: Vec<Arc<str>> = cohorts.iter().flat_map(|cohort| cohort.accounts.clone()).collect();
    let pilot: Vec<_> = cohorts.iter().find(|c| c.name == ROLLED_BACK).map_or(Vec::new(), |c| c.accounts.clone());
    let burst = Burst { accounts: &pilot, interactions: total / 8, at: BURST_AT };
    let load = Load {
        seed: args.seed,
        accounts: &accounts,
        interactions: total,
        over: Duration::from_secs_f64(total as f64 / A_SECOND),
        burst: burst.clone(),
    };
    let url = format!("http://{}", app.address());
    let driver = Driver::new(&url, policy(), CALLERS, PATIENCE)?;
    let story = Story { app: &app, home, driver: &driver, progress: &progress, total, burst: burst.interactions };
    let ((), flips) = tokio::join!(driver.drive(load.jobs()), story.tell(&mut cohorts));
    let flips = flips?;
    let answers = driver.answers();
    progress.say(&format!("all {total} have their answer"));
    let ending = progress.count("waiting for the ends", answers.accepted.len() as u64);
    let left = |left: usize| ending.reach((answers.accepted.len() - left) as u64);
    let settled = settle(&url, &answers.accepted, &runner, PATIENCE, left).await;
    drop(ending);
    let attempts = app.ledger().attempt_summary().await?;
    progress.say("waiting for the comparator");
    let compared = Compared::of(app.ledger(), &config, began, COMPARATOR_PATIENCE).await;
    let accepted = answers.accepted.clone();
    let proof = Proof::of(answers, &runner, settled);
    let report = Report::new(&app, &cohorts, &accepted, &runner, proof, flips, attempts, provisioned, began.elapsed(), compared);
    Ok((app, report))
}

/// Makes those ready for live that never had work without a pin, as `crossover arm` does, and waits until they are.
async fn arm_ahead(app: &App, cohorts: &[Cohort]) -> Result<(), Failure> {
    let store = ArmingStore::new(app.ledger().pool().clone());
    for account in cohorts.iter().flat_map(|cohort| &cohort.accounts) {
        store.ask(account, "the demo").await?;
    }
    let armed = async {
        for account in cohorts.iter().flat_map(|cohort| &cohort.accounts) {
            while store.of(account).await?.is_none_or(|standing| standing.state != State::Armed) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    };
    let late = |_| format!("accounts without an unpinned past were not armed within {ARMING:?}");
    tokio::time::timeout(ARMING, armed).await.map_err(late)?
}

fn write_flags(cohorts: &[Cohort], home: &Home) -> Result<String, Failure> {
    let document = cohorts::flags(cohorts).map_err(|faults| format!("the demo's flags are not right: {faults:?}"))?;
    document.write_to(&home.flags())?;
    Ok(document.revision().to_owned())
}

/// Turns the flags while the load flows.
struct Story<'a> {
    app: &'a App,
    home: &'a Home,
    driver: &'a Driver,
    progress: &'a Progress,
    total: usize,
    burst: usize,
}

impl Story<'_> {
    async fn tell(&self, cohorts: &mut [Cohort]) -> Result<Vec<Flip>, Failure> {
        let began = Instant::now();
        let bar = self.progress.count(&format!("enqueueing {}", self.total), self.total as u64);
        let mut answered = self.driver.answered();
        let mut flips = Vec::new();
        for step in &STEPS {
            let due = self.due(step);
            while *answered.borrow_and_update() < due {
                answered.changed().await?;
                bar.reach(*answered.borrow());
            }
            flips.push(self.take(step, cohorts, began).await?);
        }
        while *answered.borrow_and_update() < self.total as u64 {
            answered.changed().await?;
            bar.reach(*answered.borrow());
        }
        Ok(flips)
    }

    /// How much of the load comes before a step. The one at the burst waits for most of the burst, too.
    fn due(&self, step: &Step) -> u64 {
        let flow = (self.total - self.burst) as f64 * step.at;
        let burst = self.burst as f64 * match step.at {
            at if at < BURST_AT => 0.0,
            at if at > BURST_AT => 1.0,
            _ => 0.7,
        };
        (flow + burst) as u64
    }

    async fn take(&self, step: &'static Step, cohorts: &mut [Cohort], began: Instant) -> Result<Flip, Failure> {
        step.take(cohorts);
        let flags = self.app.flags().ok_or("the app has no router")?;
        let mut changed = flags.changed();
        let (at, written) = (began.elapsed(), Instant::now());
        let revision = write_flags(cohorts, self.home)?;
        let in_force = changed.wait_for(|in_force| *in_force == revision);
        tokio::time::timeout(Duration::from_secs(30), in_force)
            .await
            .map_err(|_| format!("the router did not see revision {revision} within 30 s"))??;
        let took = written.elapsed();
        let moved = |account: &str| {
            cohorts.iter().any(|c| step.moves.iter().any(|m| m.0 == c.name) && c.accounts.iter().any(|a| **a == *account))
        };
        let mut in_flight = BySide::default();
        for count in self.app.ledger().unended().await?.into_iter().filter(|count| moved(&count.account)) {
            in_flight.temporal += count.temporal as u64;
            in_flight.postgres += count.postgres as u64;
        }
        self.progress.say(&format!(
            "{:>7}  {} (in force after {} ms; their work in flight: {} on temporal, {} on postgres)",
            seconds(at),
            step.what,
            took.as_millis(),
            in_flight.temporal,
            in_flight.postgres,
        ));
        Ok(Flip { what: step.what, at, took, in_flight })
    }
}
