//! `crossover arm`: asks to make an account ready for live ahead of its cutover.

use std::io::IsTerminal;
use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Outcome, print_json};
use crate::arming::{ArmingStore, Standing, State, Waiting};
use crate::config::Config;

/// Make an account ready for live ahead of its cutover
///
/// Until an account is armed, live in its flags still executes on Temporal. Arming takes a window in shadow where the account
/// ever had work without a pin; this begins it, or lets it go on, before the flags want it. Its pins cost a Postgres that is away
/// from then on: while it is armed, an enqueue without Postgres is refused.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account
    account: String,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// What is printed.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) account: String,
    /// Before.
    pub(super) from: State,
    /// Since; the same where nothing was done.
    pub(super) to: State,
    /// What it will do.
    pub(super) what: String,
    pub(super) done: bool,
    /// What it waits for now.
    pub(super) waits_for: Option<String>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let (config, store) = store(&context).await?;
    let before = store.of(&args.account).await?;
    let from = before.as_ref().map_or(State::Open, |standing| standing.state);
    let what = what(from, before.as_ref(), &config);
    let mut report = Report { account: args.account, from, to: from, what, done: false, waits_for: None };
    if from == State::Armed {
        report.done = true;
        return tell(report, &store, &config, context.json).await;
    }
    if !agreed(&report, args.yes, context.json)? {
        return not_done(&report, context.json);
    }
    report.to = store.ask(&report.account, &config.operator).await?.state;
    report.done = true;
    tell(report, &store, &config, context.json).await
}

fn what(from: State, before: Option<&Standing>, config: &Config) -> String {
    let window = humantime::format_duration(config.window.idempotency);
    match from {
        State::Armed => "it is armed already".to_owned(),
        State::Disarming => "it stays armed: Postgres may own its work again".to_owned(),
        State::Open if before.is_some_and(|standing| standing.unpinned) => {
            format!("from now on its work is pinned, whatever its stage, and after {window} and two acknowledgements by every process it is armed")
        }
        State::Open => "from now on its work is pinned, whatever its stage, and after two acknowledgements by every process it is armed".to_owned(),
        _ => "it goes on to be armed without waiting for its flags to say live".to_owned(),
    }
}

/// The store of a single command.
pub(super) async fn store(
    context: &Context,
) -> Result<(Config, ArmingStore), Box<dyn std::error::Error + Send + Sync>> {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let store = ArmingStore::new(ledger.pool().clone());
    Ok((config, store))
}

/// What an account on its way waits for.
pub(super) async fn waiting(store: &ArmingStore, config: &Config, account: &str) -> Option<Waiting> {
    let (mut found, _) = store.under_way(Some(account), config.window.idempotency, 1).await.ok()?;
    found.pop()
}

/// Shows what will be done, and asks on a terminal unless it was agreed to before.
pub(super) fn agreed(report: &Report, yes: bool, json: bool) -> std::io::Result<bool> {
    if !json {
        println!("account {} is {}: {}", report.account, report.from, report.what);
    }
    if yes {
        return Ok(true);
    }
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    super::flip::ask()
}

pub(super) fn not_done(report: &Report, json: bool) -> Outcome {
    match json {
        true => print_json(report)?,
        false => println!("nothing was changed; repeat with --yes"),
    }
    Ok(ExitCode::from(super::flip::NOT_DONE))
}

pub(super) async fn tell(mut report: Report, store: &ArmingStore, config: &Config, json: bool) -> Outcome {
    report.waits_for = waiting(store, config, &report.account).await.map(|waiting| waiting.waits_for());
    match (json, &report.waits_for) {
        (true, _) => print_json(&report)?,
        (false, Some(waits)) => println!("account {} is {}: it waits {waits}", report.account, report.to),
        (false, None) => println!("account {} is {}", report.account, report.to),
    }
    Ok(ExitCode::SUCCESS)
}
