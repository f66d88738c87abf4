//! `crossover status`: the migration at a glance. Sections one after the other, each bounded: who decides, accounts,
//! Temporal, Postgres, the comparator, what is blocked and on whom.

mod accounts;
mod arming;
mod deciders;
mod flags;

use std::process::ExitCode;
use std::time::Instant;

use comfy_table::{Cell, Table};
use serde::Serialize;

use self::accounts::{Accounts, Line, Summary};
use self::arming::Arming;
use self::flags::FlagStatus;
use super::proof::number;
use super::way_back::WayBack;
use super::{Context, Outcome, print_json, table};
use crate::app::Servers;
use crate::arming::ArmingStore;
use crate::config::Config;
use crate::flips::{FlipStore, OverrideRow, RouterRow};
use crate::ledger::{IntakeDepth, OutboxDepth};
use crate::queue::{Depth, GroupDepth, Queue};
use crate::report::{self, Overview};

/// Show the migration at a glance: who stands where, what waits on each side, what was found, what is blocked and on whom
#[derive(Debug, clap::Args)]
pub struct Args {
    /// So many accounts and kinds one by one, the heaviest first
    #[arg(long, default_value_t = 50)]
    limit: usize,
}

#[derive(Serialize)]
struct Status {
    flags: FlagStatus,
    summary: Summary,
    /// Who is on its way to be armed, and what it waits for on whom.
    arming: Arming,
    intake: IntakeDepth,
    outbox: OutboxDepth,
    temporal: TemporalStatus,
    /// Loud: while it is closed, a rollback only piles up work for Temporal.
    way_back: WayBack,
    queue: Depth,
    groups: Vec<GroupDepth>,
    #[serde(flatten)]
    overview: Overview,
    /// Loud: while one is in force, the flags don't say where its account stands.
    overrides: Vec<OverrideRow>,
    routers: Vec<RouterRow>,
    accounts: Vec<Line>,
    /// Lines that were left out.
    more: usize,
}

/// What Temporal said.
#[derive(Serialize)]
pub(super) struct TemporalStatus {
    pub(super) address: Option<String>,
    pub(super) answers_ms: Option<f64>,
    pub(super) error: Option<String>,
}

/// The deepest groups that are shown.
const GROUPS: i64 = 10;

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let (stages, flags) = flags::read(&config).await;
    let (queue, flips) = (Queue::new(ledger.pool().clone()), FlipStore::new(ledger.pool().clone()));
    let overrides = flips.overrides().await?;
    let all = Accounts::of(&ledger.accounts().await?, ledger.unended().await?, &stages, &overrides, args.limit);
    let (outbox, temporal) = (ledger.outbox_depth().await?, temporal(&config).await);
    let since = report::temporal_away_since(&ledger).await?;
    let status = Status {
        flags,
        way_back: WayBack::of(&temporal, since, &outbox, all.summary.live()),
        summary: all.summary,
        arming: Arming::read(&ArmingStore::new(ledger.pool().clone()), &config).await?,
        intake: ledger.intake_depth().await?,
        outbox,
        temporal,
        queue: queue.depth().await?,
        groups: queue.groups(GROUPS, "others").await?,
        overview: report::overview(&ledger).await?,
        accounts: all.lines,
        more: all.more,
        overrides,
        routers: flips.routers(None).await?,
    };
    match context.json {
        true => print_json(&status)?,
        false => show(&status),
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks Temporal for a workflow that there is not: that it says so is the answer.
pub(super) async fn temporal(config: &Config) -> TemporalStatus {
    let Some(address) = Servers::known_temporal(config) else {
        let error = "no temporal.address is configured, and no `serve` has started one with this state_dir";
        return TemporalStatus { address: None, answers_ms: None, error: Some(error.to_owned()) };
    };
    let began = Instant::now();
    let (answers_ms, error) = match ask(config, &address).await {
        Ok(()) => (Some(began.elapsed().as_secs_f64() * 1_000.0), None),
        Err(error) => (None, Some(error)),
    };
    TemporalStatus { address: Some(address), answers_ms, error }
}

#[cfg(feature = "temporal")]
async fn ask(config: &Config, address: &str) -> Result<(), String> {
    let metrics = crate::metrics::Metrics::new().map_err(|error| error.to_string())?;
    let target = crate::app::target(config, address, &std::sync::Arc::new(metrics)).map_err(|e| e.to_string())?;
    let looked = tokio::time::timeout(config.temporal.start_timeout, target.look_up(uuid::Uuid::nil())).await;
    let late = |_| format!("no answer within {:?} (temporal.start_timeout)", config.temporal.start_timeout);
    looked.map_err(late)?.map(drop).map_err(|error| error.to_string())
}

#[cfg(not(feature = "temporal"))]
async fn ask(_: &Config, _: &str) -> Result<(), String> {
    Err("this crossover is built without Temporal".to_owned())
}

fn show(status: &Status) {
    status.way_back.show();
    deciders::show(&status.overrides, &status.routers);
    status.flags.show();
    status.summary.show();
    status.arming.show();
    let IntakeDepth { rows, oldest_seconds, refused, last_reason } = &status.intake;
    println!("from SQL    {rows} not pinned yet, the oldest for {oldest_seconds:.0} s; {refused} refused");
    if let Some(reason) = last_reason {
        println!("            last failure: {reason}");
    }
    let OutboxDepth { rows, rehearsals, oldest_seconds, last_error } = &status.outbox;
    println!("outbox      {rows} undelivered ({rehearsals} rehearsals), the oldest for {oldest_seconds:.0} s");
    if let Some(error) = last_error {
        println!("            last failure: {error}");
    }
    show_temporal(&status.temporal);
    let Depth { ready, scheduled, running, waiting, oldest_seconds } = &status.queue;
    let gate = if *waiting > 0 { format!(", {waiting} wait for their group") } else { String::new() };
    println!("postgres    {ready} ready (the oldest due for {oldest_seconds:.0} s), {scheduled} scheduled, {running} running{gate}");
    show_comparison(&status.overview);
    if status.groups.len() > 1 {
        println!("\n{}", groups(&status.groups).trim_fmt());
    }
    if !status.overview.blocked.is_empty() {
        println!("\n{}", blocked(&status.overview).trim_fmt());
    }
    if !status.accounts.is_empty() {
        println!("\n{}", accounts::rows(&status.accounts).trim_fmt());
    }
    if status.more > 0 {
        println!("… and {} more; --limit shows them", status.more);
    }
}

fn show_temporal(temporal: &TemporalStatus) {
    let TemporalStatus { address, answers_ms, error } = temporal;
    let address = address.as_deref().unwrap_or("unknown");
    match (answers_ms, error) {
        (Some(ms), _) => println!("temporal    {address} answers in {ms:.0} ms"),
        (None, error) => println!("temporal    {address}: {}", error.as_deref().unwrap_or("no answer")),
    }
}

fn show_comparison(overview: &Overview) {
    let c = &overview.comparison;
    match &c.comparator {
        None => println!("comparator  none has ever run: nothing is compared"),
        Some(at) => println!(
            "comparator  heard of {:.0} s ago, {:.0} s behind; {} interactions to look at again",
            at.silent_seconds, at.lag_seconds, c.pending
        ),
    }
    let found: Vec<_> = c.last_hour.iter().map(|(class, count)| format!("{count} {class}")).collect();
    let found = if found.is_empty() { "none".to_owned() } else { format!("{}; see crossover report", found.join(", ")) };
    println!("diverged    in the last hour: {found}");
    if c.observers_silent > 0 || c.sightings_dropped > 0 {
        println!(
            "observers   {} at work, {} stopped without an end, {} sightings dropped: some comparisons are incomplete",
            c.observers, c.observers_silent, c.sightings_dropped
        );
    }
}

fn groups(groups: &[GroupDepth]) -> Table {
    let mut rows = table(&["GROUP", "READY", "OLDEST DUE FOR", "WAIT FOR A PLACE"]);
    for group in groups {
        let oldest = format!("{:.0} s", group.oldest_seconds);
        rows.add_row([Cell::new(&group.name), number(group.ready as u64), Cell::new(oldest), number(group.waiting as u64)]);
    }
    rows
}

fn blocked(overview: &Overview) -> Table {
    let mut rows = table(&["BLOCKED", "COUNT", "SINCE (UTC)", "ON", "NEXT"]);
    for blocked in &overview.blocked {
        rows.add_row([
            Cell::new(&blocked.what),
            number(blocked.count as u64),
            Cell::new(blocked.since.map_or("-".to_owned(), |since| since.format("%F %T").to_string())),
            Cell::new(&blocked.on_whom),
            Cell::new(&blocked.next),
        ]);
    }
    rows
}
