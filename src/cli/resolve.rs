//! `crossover resolve`: says what came of an attempt whose effect is unknown.

use std::process::ExitCode;

use serde::Serialize;
use uuid::Uuid;

use super::{Context, Outcome, flip, print_json};
use crate::interaction::Side;
use crate::ledger::{Parked, Resolved, Resolving};
use crate::router::resolve::Wish;

/// Say what came of a parked interaction: it succeeded, it failed, or it is to run again
///
/// `crossover unknown` lists what is parked. Look at the runner's own records first: `succeeded` and `failed` end it as you
/// say, `retry` makes another attempt under the same idempotency key and a higher fence. Says what it will do, and does it
/// with --yes. What Temporal owns is told by the relay, also where Temporal is away now. Exit code 2: nothing was changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The interaction
    id: Uuid,
    /// What came of it: succeeded, failed or retry
    #[arg(long = "as", value_name = "ANSWER")]
    answer: String,
    /// The result of a success, a JSON document
    #[arg(long, value_name = "JSON")]
    result: Option<String>,
    /// Why, for those who look it up later
    #[arg(long)]
    reason: Option<String>,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// The document for machines.
#[derive(Serialize)]
struct Report<'a> {
    parked: &'a Parked,
    says: Resolved,
    /// None: nothing was changed.
    answer: Option<Resolving>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let wish = Wish::parse(Some(&args.answer), args.result.as_deref(), args.reason.as_deref());
    let wish = wish.map_err(|faults| {
        let named: Vec<_> = faults.iter().map(|fault| format!("--{}: {}", fault.field, fault.message)).collect();
        named.join("; ")
    })?;
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let id = args.id;
    let Some(parked) = ledger.parked_one(id).await? else { return Err(not_parked(&ledger, id).await?.into()) };
    let answer = match args.yes {
        true => Some(wish.ask(&ledger, id, &config.operator).await?),
        false => None,
    };
    match answer {
        Some(Resolving::Otherwise) => {
            return Err(format!("{id} was resolved otherwise before, and Temporal is being told that").into());
        }
        Some(Resolving::Held) => return Err(format!("{id} {}", Resolving::HELD).into()),
        Some(Resolving::Ended | Resolving::NotParked | Resolving::Unpinned) => {
            return Err(format!("{id} was resolved by somebody else meanwhile; `crossover why {id}` tells the rest").into());
        }
        _ => {}
    }
    match context.json {
        true => print_json(&Report { parked: &parked, says: wish.answer, answer })?,
        false => say(&parked, &wish, answer),
    }
    Ok(if answer.is_some() { ExitCode::SUCCESS } else { ExitCode::from(flip::NOT_DONE) })
}

fn say(parked: &Parked, wish: &Wish, answer: Option<Resolving>) {
    let does = match wish.answer {
        Resolved::Succeeded => "end as succeeded",
        Resolved::Failed => "end as failed",
        Resolved::Retry => "make another attempt",
    };
    let Parked { id, account, kind, side, fence, since, .. } = parked;
    println!("{id} ({account}, {kind}) is parked on {side} since {} after attempt {fence}", since.format("%F %T UTC"));
    if let Some(error) = &parked.error {
        println!("  {error}");
    }
    match (answer, side) {
        (None, _) => println!("would {does}; nothing was changed, repeat with --yes"),
        (Some(_), Side::Postgres) => println!("told it to {does}"),
        (Some(_), Side::Temporal) => println!("it will {does} as soon as the relay has told Temporal"),
    }
}

/// Says why there is nothing to resolve.
async fn not_parked(ledger: &crate::ledger::Ledger, id: Uuid) -> Result<String, crate::ledger::LedgerError> {
    Ok(match ledger.story(id).await? {
        None => format!(
            "nothing is recorded of {id}; what was started without a pin (stage off) is resolved with Temporal's own tools, \
             by the signal `resolve` of its workflow {id}:1"
        ),
        Some(story) => format!("{id} is {}, so there is nothing to resolve; `crossover unknown` lists what is parked", story.state),
    })
}
