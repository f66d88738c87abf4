//! `crossover override`: break-glass, through Postgres, where the flags can't be reached.

use std::process::ExitCode;
use std::time::Duration;

use super::flip::{self, Record, Report};
use super::{Context, Outcome, print_json, table};
use crate::flags::edit::Wish;
use crate::flips::{NewOverride, OverrideRow, RouterState, await_begin, await_end};
use crate::interaction::Stage;
use crate::ledger::LedgerError;

const MOST: Duration = Duration::from_secs(86_400);

/// Break-glass: put an account into a stage whatever the flags say, for a time, through Postgres
///
/// Works while Unleash or the flags file are away. Routers follow within a second. It ends by itself, and the flags
/// count again: flip them to where the account should stay before then. Without an account it lists what is in force.
/// Exit code 2: nothing was changed; 3: changed, but a router is silent or late.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account
    account: Option<String>,
    /// One kind of its interactions, instead of all
    #[arg(long)]
    kind: Option<String>,
    /// The stage: off, shadow, live or complete
    #[arg(long, conflicts_with = "end", requires_all = ["account", "lasts", "reason"])]
    stage: Option<Stage>,
    /// For how long, at most 24h
    #[arg(long = "for", value_name = "TIME", value_parser = lasting, requires = "stage")]
    lasts: Option<Duration>,
    /// Why; kept with the override and its decisions
    #[arg(long, value_name = "TEXT", requires = "stage")]
    reason: Option<String>,
    /// End the override that is in force
    #[arg(long, requires = "account")]
    end: bool,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    /// Wait so long for the routers
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

fn lasting(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(lasts) if lasts >= Duration::from_secs(1) && lasts <= MOST => Ok(lasts),
        Ok(_) => Err("must be from 1s to 24h; flip the flags for longer".to_owned()),
        Err(_) => Err(format!("`{text}` is no duration; write it like 2h")),
    }
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let Some(account) = args.account.clone() else {
        let overrides = super::routers::store(&context).await?.overrides().await?;
        return list(&overrides, context.json);
    };
    match (args.stage, args.lasts) {
        (Some(stage), Some(lasts)) => begin(&args, &account, stage, lasts, context).await,
        _ if args.end => end(&args, &account, context).await,
        _ => Err("say what: --stage STAGE --for TIME --reason TEXT, or --end".into()),
    }
}

fn list(overrides: &[OverrideRow], json: bool) -> Outcome {
    if json {
        print_json(&overrides)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "ACCOUNT", "KIND", "STAGE", "UNTIL", "WHO", "WHY"]);
    for o in overrides {
        let (kind, until) = (o.kind.as_deref().unwrap_or("(all)"), o.until_at.format("%F %T").to_string());
        rows.add_row([&o.id.to_string(), &o.account, kind, o.stage.as_str(), &until, &o.who, &o.why]);
    }
    match overrides.is_empty() {
        true => println!("no override is in force"),
        false => println!("{}", rows.trim_fmt()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn begin(args: &Args, account: &str, stage: Stage, lasts: Duration, context: Context) -> Outcome {
    let why = args.reason.clone().filter(|why| !why.trim().is_empty()).ok_or("say why, with --reason")?;
    let config = context.load()?;
    let wish = Wish { account: account.to_owned(), kind: args.kind.clone(), stage };
    let record = Record::read(&config, account).await.map_err(|error| format!("an override needs Postgres: {error}"))?;
    let mut report = report(&wish);
    report.changes.push(format!("an override in Postgres, in force for {}, beats the flags", humantime::format_duration(lasts)));
    report.notes.extend(flip::outlook(&wish, &record));
    if !flip::agreed(&report, args.yes, context.json)? {
        return flip::not_done(&report, context.json);
    }
    let new = NewOverride { account: wish.account, kind: wish.kind, stage, lasts, who: config.operator, why };
    let begun = record.store.begin_override(&new).await;
    let id = begun.map_err(|error| not_begun(&new, error))?.ok_or(
        "another override of it is in force; `crossover override` shows it, `crossover override ACCOUNT --end --yes` ends it",
    )?;
    report.done = true;
    report.revision = Some(format!("override:{id}"));
    let waiting = await_begin(&record.store, id, args.timeout).await.ok();
    let seen = waiting.as_ref().filter(|waiting| waiting.all_seen() && !waiting.routers.is_empty());
    report.took_ms = seen.map(|waiting| waiting.took.as_secs_f64() * 1_000.0);
    flip::finish(report, waiting, context.json)
}

/// What an operator has to know who can't tell whether the override is in force.
fn not_begun(new: &NewOverride, error: LedgerError) -> String {
    match error {
        LedgerError::InDoubt(why) => format!(
            "Postgres did not answer ({why}), so THE OVERRIDE MAY BE IN FORCE, or come into force yet; `crossover override` \
             shows it, `crossover override {}{} --end --yes` ends it",
            new.account,
            new.kind.as_ref().map_or_else(String::new, |kind| format!(" --kind {kind}"))
        ),
        other => format!("no override was begun: {other}"),
    }
}

async fn end(args: &Args, account: &str, context: Context) -> Outcome {
    let config = context.load()?;
    let store = super::routers::store(&context).await?;
    let kind = args.kind.as_deref();
    let own = |o: &&OverrideRow| o.account == account && o.kind.as_deref() == kind;
    let overrides = store.overrides().await?;
    let found = overrides.iter().find(own).ok_or("no such override is in force; `crossover override` shows what is")?;
    if !args.yes {
        match context.json {
            true => print_json(&serde_json::json!({ "override": found, "ended": false }))?,
            false => println!(
                "would end override {} ({}, until {}), and the flags count again; repeat with --yes",
                found.id,
                found.stage,
                found.until_at.format("%F %T")
            ),
        }
        return Ok(ExitCode::from(flip::NOT_DONE));
    }
    store.end_override(account, kind, &config.operator).await?;
    let waiting = await_end(&store, found.id, args.timeout).await?;
    let late: Vec<_> = waiting.routers.iter().filter(|(_, state)| *state != RouterState::Seen).map(|(r, _)| &r.name).collect();
    match context.json {
        true => print_json(&serde_json::json!({ "override": found, "ended": true, "not_seen_by": late }))?,
        false if late.is_empty() => println!("override {} is ended in every router; the flags count again", found.id),
        false => println!("override {} is ended, but these routers are late or silent: {late:?}", found.id),
    }
    Ok(if late.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(flip::NOT_SEEN) })
}

fn report(wish: &Wish) -> Report {
    Report {
        account: wish.account.clone(),
        kind: wish.kind.clone(),
        from: None,
        to: wish.stage,
        changes: Vec::new(),
        notes: Vec::new(),
        done: false,
        revision: None,
        took_ms: None,
        routers: Vec::new(),
        arming: None,
    }
}
