//! `crossover weight`: how much accounts count among those that wait.

use std::process::ExitCode;

use serde_json::json;

use super::{Context, Outcome, agree, group, print_json, refused, table};
use crate::queue::groups::Weight;

/// Show and change how much accounts count among those that wait: one of weight 3 gets three times the share of another
///
/// Accounts without a weight count 1. Routers have a change within a second, for the tasks that they take in from then on; what
/// waits keeps its place. docs/groups.md has more. Exit code 2: nothing was changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the accounts that have a weight (this is the default)
    List,
    /// Give an account a weight
    Set {
        /// The account
        account: String,
        /// 0.001 to 1000
        #[arg(allow_negative_numbers = true)]
        weight: f64,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Let an account count as much as any other
    Unset {
        /// The account
        account: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let (config, groups) = group::store(&context).await?;
    let (account, weight, yes) = match &args.what {
        None | Some(What::List) => return list(&groups.weights().await?, context.json),
        Some(What::Set { account, weight, yes }) => (account, Some(*weight), *yes),
        Some(What::Unset { account, yes }) => (account, None, *yes),
    };
    let now = weight.map_or("1, as any other".to_owned(), |weight| weight.to_string());
    let report = |done| json!({ "account": account, "weight": weight, "done": done });
    if !agree(&format!("account {account} would count {now}"), yes, context.json)? {
        return super::not_done(&report(false), context.json);
    }
    groups.weigh(account, weight, &config.operator).await.map_err(refused)?;
    match context.json {
        true => print_json(&report(true))?,
        false => println!("account {account} counts {now}"),
    }
    Ok(ExitCode::SUCCESS)
}

fn list(weights: &[Weight], json: bool) -> Outcome {
    if json {
        print_json(&weights)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ACCOUNT", "WEIGHT", "CHANGED", "BY"]);
    for w in weights {
        rows.add_row([&w.account, &w.weight.to_string(), &w.changed_at.format("%F %T").to_string(), &w.changed_by]);
    }
    match weights.is_empty() {
        true => println!("every account counts 1"),
        false => println!("{}", rows.trim_fmt()),
    }
    Ok(ExitCode::SUCCESS)
}
