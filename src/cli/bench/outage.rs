//! `crossover bench outage`: what a caller of an account in shadow waits for, with Postgres well and away, beside a bare
//! start on the same Temporal at the same time.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::Utc;
use reqwest::Client;
use serde::Serialize;
use serde_json::json;

use super::super::proof::numbers;
use super::super::{Context, Outcome, print_json};
use crate::app::{App, Roles, Servers};
use crate::config::{Config, temp_dir};
use crate::flags::DocumentBuilder;
use crate::interaction::{Envelope, Payload, Side, Stage, hex, interaction_id};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::proof::{Proxy, Weather};
use crate::provision::{self, Progress};
use crate::router::Deliver;

/// Measure what callers wait for with Postgres healthy, dead, hanging and answering late
///
/// Starts a Temporal, a Postgres behind a proxy, and a router; every account is in shadow and never was armed. In turns, one
/// start goes to Temporal directly and one enqueue to the router, so that both meet the same machine at the same time.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many starts and so many enqueues in each weather
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(20..=100_000))]
    calls: u32,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// One weather.
#[derive(Debug, Serialize)]
struct Line {
    postgres: &'static str,
    /// Milliseconds.
    start: Spread,
    enqueue: Spread,
    /// The enqueue's over the start's.
    ratio_p50: f64,
    ratio_p99: f64,
    /// Enqueues that Temporal answered alone.
    unpinned: u32,
    refused: u32,
}

/// Times, in milliseconds.
#[derive(Debug, Serialize)]
struct Spread {
    p50: f64,
    p99: f64,
    worst: f64,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Report {
    calls: u32,
    pin_budget_ms: u128,
    breaker_failures: u32,
    lines: Vec<Line>,
    /// After Postgres was back for good.
    seconds_to_drain: f64,
    spooled: u64,
}

const WEATHERS: [(&str, Weather); 4] = [
    ("healthy", Weather::Fine),
    ("dead", Weather::Dead),
    ("hanging", Weather::Hanging),
    ("answers after 1 s", Weather::Slow(Duration::from_secs(1))),
];
/// For the spool to be empty again.
const PATIENCE: Duration = Duration::from_secs(120);

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let dir = temp_dir().join(format!("crossover-bench-{}", uuid::Uuid::new_v4().simple()));
    std::fs::create_dir_all(&dir)?;
    let measured = measure(&args, context.load()?, &dir, &context.progress()).await;
    // What can't be removed lies in the system's folder for such things.
    let _ = std::fs::remove_dir_all(&dir);
    let report = measured?;
    match context.json {
        true => print_json(&report)?,
        false => report.print(),
    }
    Ok(ExitCode::SUCCESS)
}

async fn measure(args: &Args, mut config: Config, dir: &Path, progress: &Progress) -> Result<Report, Failure> {
    let flags = DocumentBuilder::default().everybody(Stage::Shadow).build();
    flags.map_err(|faults| format!("the bench's flags are not right: {faults:?}"))?.write_to(&dir.join("flags.json"))?;
    config.state_dir = dir.join("state");
    config.flags.file = dir.join("flags.json");
    config.http.listen = ([127, 0, 0, 1], 0).into();
    config.http.tokens = None;
    config.router.fail_open = true;
    let mut options = provision::Options::from(&config).telling(progress.clone());
    options.data_dir = None;
    let (postgres, temporal) = tokio::try_join!(provision::postgres(&options), provision::temporal(&options))?;
    crate::ledger::Ledger::new(crate::ledger::pool(&postgres.url, 2, Duration::from_secs(10))?).migrate().await?;
    let (proxy, postgres_url) = behind_a_proxy(&postgres.url).await?;
    let temporal_address = temporal.address.clone();
    let target = crate::app::target(&config, &temporal_address, &Arc::new(Metrics::new()?))?;
    let servers = Servers { postgres_url, temporal_address, postgres: Some(postgres), temporal: Some(temporal) };
    let app = App::start(&config, Roles { router: true, worker: false, relay: false }, servers).await?;
    let callers = Callers {
        client: Client::builder().no_proxy().build()?,
        url: format!("http://{}/v1/interactions", app.address()),
        target,
    };
    let mut lines = Vec::new();
    for (name, weather) in WEATHERS {
        // Connections, caches and the breaker are as they are in a process that has been at work for a while.
        proxy.set(Weather::Fine);
        callers.settle(&app).await?;
        proxy.set(weather);
        progress.say(&format!("Postgres {name}: {} starts and {} enqueues", args.calls, args.calls));
        lines.push(callers.measure(name, args.calls).await?);
    }
    proxy.set(Weather::Fine);
    let (back, spooled) = (Instant::now(), app.metrics().outage.failed_open.get());
    callers.settle(&app).await?;
    let seconds_to_drain = back.elapsed().as_secs_f64();
    app.stop().await;
    let (pin_budget_ms, breaker_failures) = (config.router.pin_budget.as_millis(), config.router.breaker_failures);
    Ok(Report { calls: args.calls, pin_budget_ms, breaker_failures, lines, seconds_to_drain, spooled })
}

async fn behind_a_proxy(url: &str) -> Result<(Proxy, String), Failure> {
    let (head, rest) = url.split_once('@').ok_or("the URL of the bench's Postgres has no user")?;
    let (server, database) = rest.split_once('/').ok_or("the URL of the bench's Postgres has no database")?;
    let proxy = Proxy::to(server).await?;
    let through = format!("{head}@{}/{database}", proxy.address());
    Ok((proxy, through))
}

struct Callers {
    client: Client,
    url: String,
    target: Arc<dyn Deliver>,
}

impl Callers {
    /// In turns a bare start and an enqueue, one after the other.
    async fn measure(&self, postgres: &'static str, calls: u32) -> Result<Line, Failure> {
        let (mut starts, mut enqueues) = (Vec::new(), Vec::new());
        let (mut unpinned, mut refused) = (0, 0);
        for n in 0..calls {
            let key = format!("{postgres} {n}");
            let bare = envelope(&format!("bare {key}"))?;
            let began = Instant::now();
            self.target.deliver(&bare).await?;
            starts.push(began.elapsed());
            let began = Instant::now();
            let pinned = self.enqueue(&key).await?;
            enqueues.push(began.elapsed());
            unpinned += u32::from(pinned == Some(false));
            refused += u32::from(pinned.is_none());
        }
        let (start, enqueue) = (Spread::of(starts), Spread::of(enqueues));
        let (ratio_p50, ratio_p99) = (enqueue.p50 / start.p50, enqueue.p99 / start.p99);
        Ok(Line { postgres, start, enqueue, ratio_p50, ratio_p99, unpinned, refused })
    }

    /// Whether it was pinned; none where it was not accepted.
    async fn enqueue(&self, key: &str) -> Result<Option<bool>, Failure> {
        let body = json!({ "account": "bench", "kind": "sync", "key": key, "payload": { "for": key } });
        let answer = self.client.post(&self.url).json(&body).send().await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let answer: serde_json::Value = answer.json().await?;
        Ok(Some(answer["pinned"] != false))
    }

    /// Until enqueues are pinned again and nothing waits in the spool.
    async fn settle(&self, app: &App) -> Result<(), Failure> {
        let began = Instant::now();
        let (mut n, mut pinned) = (0, 0);
        while pinned < 20 || app.metrics().outage.spool_entries.get() > 0 {
            if began.elapsed() > PATIENCE {
                return Err(format!("the spool was not empty {PATIENCE:?} after Postgres was back").into());
            }
            n += 1;
            let key = format!("between {} {n}", Utc::now().timestamp_micros());
            pinned = if self.enqueue(&key).await? == Some(true) { pinned + 1 } else { 0 };
        }
        Ok(())
    }
}

/// What a router would start without a pin.
fn envelope(key: &str) -> Result<Envelope, Failure> {
    let payload = Payload::parse(json!({ "for": key }).to_string())?;
    Ok(Envelope {
        id: interaction_id("bench", key),
        account: "bench".to_owned(),
        kind: "sync".to_owned(),
        key: key.to_owned(),
        series: None,
        series_no: None,
        group: None,
        run_at: None,
        policy: Policy::default(),
        owner: Side::Temporal,
        epoch: 1,
        pinned: false,
        cancelled: false,
        payload_hash: hex(&payload.hash()),
        behind: Vec::new(),
        payload,
    })
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: f64| {
            let place = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len().max(1)) - 1;
            times.get(place).map_or(0.0, |time| time.as_secs_f64() * 1_000.0)
        };
        Self { p50: at(0.5), p99: at(0.99), worst: at(1.0) }
    }
}

impl Report {
    fn print(&self) {
        let header = ["Postgres", "start p50", "p99", "enqueue p50", "p99", "worst", "ratio p50", "p99", "unpinned", "refused"];
        let mut table = numbers(&header);
        for line in &self.lines {
            let ms = |ms: f64| format!("{ms:.1} ms");
            table.add_row([
                line.postgres.to_owned(),
                ms(line.start.p50),
                ms(line.start.p99),
                ms(line.enqueue.p50),
                ms(line.enqueue.p99),
                ms(line.enqueue.worst),
                format!("{:.2}", line.ratio_p50),
                format!("{:.2}", line.ratio_p99),
                line.unpinned.to_string(),
                line.refused.to_string(),
            ]);
        }
        println!("{}", table.trim_fmt());
        println!(
            "\n{} of each in each weather, in turns, one at a time. router.pin_budget is {} ms, and the breaker opens after {} \
             failures: so many callers in a row wait that long.\nThe {} that had no pin got theirs within {:.1} s of the last outage's end.",
            self.calls, self.pin_budget_ms, self.breaker_failures, self.spooled, self.seconds_to_drain,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_what_was_measured() {
        let spread = Spread::of((1..=200).rev().map(Duration::from_millis).collect());
        assert_eq!((spread.p50, spread.p99, spread.worst), (100.0, 198.0, 200.0));
    }
}
