//! `crossover decisions`: every change of a stage, and whose it was.

use std::process::ExitCode;
use std::time::Duration;

use super::{Context, Outcome, print_json, table};
use crate::flips::DecisionFilter;

/// Show the changes of stages that routers saw, the latest first: from where to where, by what, who and why
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only of this account
    account: Option<String>,
    /// Only so young, like 2h
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
    /// At most so many
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=100_000))]
    limit: i64,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let store = super::routers::store(&context).await?;
    let filter = DecisionFilter { account: args.account, since: args.since, limit: args.limit };
    let decisions = store.decisions(&filter).await?;
    if context.json {
        print_json(&decisions)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["AT", "ACCOUNT", "KIND", "FROM", "TO", "BY", "WHO", "WHY"]);
    for d in decisions {
        let kind = d.kind.unwrap_or_else(|| "(all)".to_owned());
        let at = d.at.format("%F %T%.3f").to_string();
        rows.add_row([at, d.account, kind, d.from_stage, d.to_stage, d.revision, d.who.unwrap_or_default(), d.why.unwrap_or_default()]);
    }
    println!("{}", rows.trim_fmt());
    Ok(ExitCode::SUCCESS)
}
