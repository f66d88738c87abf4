//! `crossover handover`: moves waiting work from Postgres to Temporal.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;
use uuid::Uuid;

use super::{Context, Outcome, flip, print_json, table};
use crate::ledger::Scope;
use crate::router::handover::{self, Done, Plan};

/// Hand over to Temporal what Postgres owns and has never begun; shows what would move and does it with --yes
///
/// A flip decides new work only, and what was pinned before drains where it is. This moves it. What was ever claimed stays,
/// and so does what is cancelled or in conflict. New work goes where the flags say: `crossover rollback` first. It can be
/// repeated at any time, also after a crash: nothing moves twice. Exit code 2: nothing was changed; 3: some work stayed that
/// was to move.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account
    account: String,
    /// One kind of its interactions, instead of all
    #[arg(long)]
    kind: Option<String>,
    /// One interaction
    #[arg(long, value_name = "ID")]
    id: Option<Uuid>,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// The document for machines.
#[derive(Serialize)]
struct Report<'a> {
    plan: &'a Plan,
    /// None: nothing was changed.
    done: Option<&'a Done>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let plan = handover::plan(&ledger, Scope { account: args.account, kind: args.kind, id: args.id }).await?;
    if !context.json {
        show(&plan);
    }
    if plan.moves == 0 {
        if context.json {
            print_json(&Report { plan: &plan, done: None })?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes && !agreed(context.json)? {
        match context.json {
            true => print_json(&Report { plan: &plan, done: None })?,
            false => println!("nothing was changed; repeat with --yes"),
        }
        return Ok(ExitCode::from(flip::NOT_DONE));
    }
    let step = context.progress().count("handing over", plan.moves.max(0).unsigned_abs());
    let done = handover::run(&ledger, &plan, &config.operator, |moved| step.reach(moved)).await?;
    drop(step);
    match context.json {
        true => print_json(&Report { plan: &plan, done: Some(&done) })?,
        false => tell(&done),
    }
    Ok(if done.stayed() == 0 { ExitCode::SUCCESS } else { ExitCode::from(flip::NOT_SEEN) })
}

fn agreed(json: bool) -> std::io::Result<bool> {
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    print!("do it? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn show(plan: &Plan) {
    if plan.work.is_empty() {
        return println!("Postgres owns nothing unended of it; there is nothing to hand over");
    }
    let mut rows = table(&["KIND", "WHAT", "INTERACTIONS", "SERIES", "FOR EXAMPLE"]);
    for work in &plan.work {
        let examples: Vec<String> = work.examples.iter().map(Uuid::to_string).collect();
        let (interactions, series) = (work.interactions.to_string(), work.series.to_string());
        rows.add_row([work.kind.as_str(), means(&work.what), &interactions, &series, &examples.join("\n")]);
    }
    println!("{}\n", rows.trim_fmt());
    println!("{} would move to Temporal, {} stay on Postgres", plan.moves, plan.stays);
}

fn tell(done: &Done) {
    println!("handed over: {}; the relay delivers them, `crossover why ID` follows one", done.moved);
    for (why, count) in &done.left {
        println!("left where they are: {count}, {}", means(why));
    }
}

/// An answer, for a person.
fn means(what: &str) -> &str {
    match what {
        "moves" => "moves",
        "claimed" => "stays: it was begun",
        "cancelled" => "stays: it is being cancelled",
        "conflict" => "stays: Temporal has another copy",
        "ended" => "it has ended meanwhile",
        "temporal" => "somebody else handed it over meanwhile",
        "unarmed" => "the account is no longer armed",
        "busy" => "another transaction would not let go of it; repeat the command",
        other => other,
    }
}
