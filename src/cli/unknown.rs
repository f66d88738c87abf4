//! `crossover unknown`: what is parked because nobody knows what came of it.

use std::process::ExitCode;

use serde::Serialize;

use super::{Context, Outcome, print_json, table};
use crate::ledger::Parked;

/// So many are listed.
const MOST: i64 = 1_000;

/// List what is parked: interactions of which nobody knows whether their last attempt had its effect
///
/// Their policy says `on_unknown: park`, so nothing follows until somebody says what came of it, and their series wait behind
/// them. `crossover resolve` does that.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only those of this account
    account: Option<String>,
}

/// The document for machines.
#[derive(Serialize)]
struct Report<'a> {
    parked: &'a [Parked],
    /// There may be more than are listed.
    more: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let parked = ledger.parked(args.account.as_deref(), MOST).await?;
    let more = parked.len() as i64 == MOST;
    if context.json {
        print_json(&Report { parked: &parked, more })?;
        return Ok(ExitCode::SUCCESS);
    }
    if parked.is_empty() {
        println!("nothing is parked");
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "ACCOUNT", "KIND", "SERIES", "SIDE", "ATTEMPT", "SINCE", "WHY", "ANSWERED"]);
    for p in &parked {
        let since = p.since.format("%F %T").to_string();
        rows.add_row([
            p.id.to_string(),
            p.account.clone(),
            p.kind.clone(),
            p.series.clone().unwrap_or_default(),
            p.side.to_string(),
            p.fence.to_string(),
            since,
            p.error.clone().unwrap_or_else(|| p.cause.to_string()),
            answered(p),
        ]);
    }
    println!("{}", rows.trim_fmt());
    if more {
        println!("the oldest {MOST}; there may be more");
    }
    println!("\n`crossover resolve ID --as succeeded|failed|retry` says what came of one");
    Ok(ExitCode::SUCCESS)
}

fn answered(parked: &Parked) -> String {
    match (&parked.answer, &parked.last_error) {
        (None, _) => "no".to_owned(),
        (Some(answer), None) => format!("{answer}; Temporal is being told"),
        (Some(answer), Some(error)) => format!("{answer}; Temporal could not be told yet: {error}"),
    }
}
