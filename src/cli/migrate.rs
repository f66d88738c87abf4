//! `crossover migrate`: the schema's version.

use std::process::ExitCode;

use super::{Context, Outcome, print_json};
use crate::app::{AppError, Servers};
use crate::config::Config;
use crate::ledger::{self, Ledger};

/// Bring the database's schema up to this program's; shows what it will do and does it with --yes
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let url = config.postgres.url.as_ref().ok_or(
        "no postgres.url is configured, and a Postgres of crossover's own is migrated when `serve` starts it; nothing to do",
    )?;
    let ledger = ledger(&config, url.expose())?;
    let pending = match args.yes {
        true => ledger.migrate().await?,
        false => ledger.pending_migrations().await?,
    };
    let names: Vec<String> = pending.iter().map(|(version, name)| format!("{version} {name}")).collect();
    let done = args.yes || names.is_empty();
    if context.json {
        print_json(&serde_json::json!({ "done": done, "migrations": names }))?;
    } else if names.is_empty() {
        println!("the schema is up to date");
    } else {
        println!("{}", if args.yes { "migrated:" } else { "would run (repeat with --yes):" });
        names.iter().for_each(|name| println!("  {name}"));
    }
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::from(2) })
}

/// A ledger for a single command.
pub(super) fn ledger(config: &Config, url: &str) -> Result<Ledger, AppError> {
    ledger::pool(url, 2, config.postgres.connect_timeout).map(Ledger::new).map_err(AppError::Pool)
}

/// A ledger for a single command on the Postgres that is configured or that `serve` has started.
pub(super) fn known_ledger(config: &Config) -> Result<Ledger, Box<dyn std::error::Error + Send + Sync>> {
    let url = Servers::known_postgres(config)
        .ok_or("no postgres.url is configured, and no `serve` has started one with this state_dir")?;
    Ok(ledger(config, url.expose())?)
}
