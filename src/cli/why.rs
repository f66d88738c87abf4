//! `crossover why`: the whole story of one interaction.

use std::process::ExitCode;
use std::sync::Arc;

use comfy_table::Table;
use serde_json::json;
use uuid::Uuid;

use super::{Context, Outcome, print_json, table};
use crate::app::{self, Servers};
use crate::config::Config;
use crate::interaction::interaction_id;
use crate::ledger::Ledger;
use crate::metrics::Metrics;
use crate::report::{self, Contents, Difference, Observation, SideSeen, Standing, Story};

/// Tell the whole story of one interaction: who decided its stage and why, pin, copies, both sides' attempts, verdict, and what it waits for
///
/// Payloads and results are left out unless --payload asks for them, because they may hold secrets. Exits with 1 where
/// nothing is known of it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The interaction
    #[arg(required_unless_present_all = ["account", "key"], conflicts_with_all = ["account", "key"])]
    id: Option<Uuid>,
    /// Its account; with --key instead of the id
    #[arg(long, requires = "key")]
    account: Option<String>,
    /// Its idempotency key
    #[arg(long, requires = "account")]
    key: Option<String>,
    /// Print the payload and results, too
    #[arg(long)]
    payload: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let derived = args.account.as_ref().zip(args.key.as_ref()).map(|(account, key)| interaction_id(account, key));
    let id = args.id.or(derived).ok_or("name the interaction, or its --account and --key")?;
    let Some(story) = report::story(&ledger, id, args.payload).await? else {
        return unpinned(&config, &ledger, id, args.account.as_deref(), context.json).await;
    };
    match context.json {
        true => print_json(&story)?,
        false => show(&story),
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing is recorded. It may have been started in `off`, where only Temporal knows it.
async fn unpinned(config: &Config, ledger: &Ledger, id: Uuid, account: Option<&str>, json: bool) -> Outcome {
    let past = match account {
        Some(account) => past_of(ledger, account).await?,
        None => "with --account and --key it could be said whether its account ever had work without a pin".to_owned(),
    };
    let asked = match Servers::known_temporal(config) {
        None => Err("Temporal can't be asked: set temporal.address".to_owned()),
        Some(address) => ask_temporal(config, &address, id).await,
    };
    match asked {
        Ok(Some(state)) => {
            let note = "started without a pin (stage off): only Temporal knows it, and nothing is compared";
            match json {
                true => print_json(&json!({ "id": id, "state": state, "pin": null, "note": note, "workflow": format!("{id}:1") }))?,
                false => println!("{id} is {state} on Temporal; {note}.\nIts history: workflow {id}:1."),
            }
            Ok(ExitCode::SUCCESS)
        }
        Ok(None) => Err(format!(
            "nothing is known of {id}: it has no pin, and Temporal has no workflow {id}:1 (one of a series in stage off can't be looked up); {past}"
        )
        .into()),
        Err(why) => Err(format!("nothing is recorded of {id}: it has no pin. {why}; {past}").into()),
    }
}

async fn ask_temporal(config: &Config, address: &str, id: Uuid) -> Result<Option<&'static str>, String> {
    let metrics = Metrics::new().map_err(|error| error.to_string())?;
    let target = app::target(config, address, &Arc::new(metrics)).map_err(|error| error.to_string())?;
    target.look_up(id).await.map_err(|error| format!("Temporal can't be asked: {error}"))
}

async fn past_of(ledger: &Ledger, account: &str) -> Result<String, crate::ledger::LedgerError> {
    let marks = ledger.account(account).await?;
    Ok(match marks {
        None => format!("account {account} was never seen"),
        Some(marks) => match marks.unpinned_at {
            Some(since) => format!("account {account} has had work without a pin since {}", since.format("%F %T UTC")),
            None => format!("every interaction of account {account} was pinned"),
        },
    })
}

fn show(story: &Story) {
    println!("{}", facts(story).trim_fmt());
    if let Some(what) = &story.waits_for {
        println!("\nIt waits for {what}.");
    }
    if !story.decisions.is_empty() {
        println!("\n{}", decisions(story).trim_fmt());
    }
    println!("\n{}", timeline(story).trim_fmt());
    if let Some(observation) = &story.observation {
        print_observation(observation);
    }
    if let Some(contents) = &story.contents {
        print_contents(contents);
    }
}

fn facts(story: &Story) -> Table {
    let mut rows = table(&["INTERACTION", &story.id.to_string()]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    if let Some(Standing { account, kind, key, grp, priority, state, reason, .. }) = &story.standing {
        row("account, kind", format!("{account}, {kind}"));
        row("key", key.clone());
        row("group, priority", format!("{grp}, {priority}"));
        row("state", format!("{state}{}", reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default()));
    }
    match &story.pin {
        None => row("pin", "none".to_owned()),
        Some(pin) => {
            row("pin", format!("stage {}, owner {}, epoch {}, flags {}", pin.stage, pin.owner, pin.epoch, pin.flag_revision));
            let bytes = pin.payload_bytes.map_or("kept no longer".to_owned(), |bytes| format!("{bytes} bytes"));
            row("payload", format!("{bytes}, SHA-256 {}", pin.payload_hash));
        }
    }
    if let Some(series) = &story.series {
        row("series", format!("«{}», number {}; the head is {}, the last {}", series.series, series.no, series.head_no, series.last_no));
    }
    if let Some(outbox) = &story.outbox {
        let error = outbox.last_error.as_ref().map(|error| format!(", the last: {error}")).unwrap_or_default();
        row("outbox", format!("undelivered, {} tries failed{error}", outbox.tries));
    }
    for place in &story.places {
        let what = if place.rehearsal { "rehearsal" } else { "execution" };
        let until = place.until.map(|until| format!(", until {}", until.format("%T%.3f"))).unwrap_or_default();
        let worker = place.worker.map(|worker| format!(", worker {worker}")).unwrap_or_default();
        row(&place.place, format!("{what}, attempt {}, due {}{until}{worker}", place.attempt, place.due_at.format("%F %T%.3f")));
    }
    rows
}

fn decisions(story: &Story) -> Table {
    let mut rows = table(&["DECIDED", "KIND", "FROM", "TO", "BY", "WHO", "WHY"]);
    for d in &story.decisions {
        let at = d.at.format("%F %T%.3f").to_string();
        let kind = d.kind.as_deref().unwrap_or("(all)");
        let (who, why) = (d.who.as_deref().unwrap_or_default(), d.why.as_deref().unwrap_or_default());
        rows.add_row([&at, kind, &d.from_stage, &d.to_stage, &d.revision, who, why]);
    }
    rows
}

fn timeline(story: &Story) -> Table {
    let mut rows = table(&["AT (UTC)", "WRITTEN", "SIDE", "WHAT"]);
    for event in &story.timeline {
        let written = event.seen_at.map(|seen| format!("{:+} ms", (seen - event.at).num_milliseconds()));
        rows.add_row([
            event.at.format("%F %T%.3f").to_string(),
            written.unwrap_or_default(),
            event.side.clone().unwrap_or_default(),
            event.what.clone(),
        ]);
    }
    rows
}

fn print_observation(observation: &Observation) {
    let mut rows = table(&["SEEN", "DELIVERED", "DUE", "DEQUEUED", "ENDED", "ATTEMPTS", "OUTCOME"]);
    for (name, side) in [("temporal", &observation.temporal), ("postgres", &observation.postgres)] {
        let SideSeen { delivered_at, due_at, dequeued_at, ended_at, attempts, outcome } = side;
        let time = |at: &Option<chrono::DateTime<chrono::Utc>>| at.map_or("-".to_owned(), |at| at.format("%T%.3f").to_string());
        rows.add_row([
            name.to_owned(),
            time(delivered_at),
            time(due_at),
            time(dequeued_at),
            time(ended_at),
            attempts.to_string(),
            outcome.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    println!("\n{}", rows.trim_fmt());
    let reason = observation.reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    println!("Verdict: {}{reason}.", observation.verdict);
    if let Some(at) = observation.look_at {
        println!("The comparator looks again at {}.", at.format("%F %T UTC"));
    }
    for Difference { class, side, detail, means } in &observation.divergences {
        let side = side.as_ref().map(|side| format!(" on {side}")).unwrap_or_default();
        let detail = detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default();
        println!("{class}{side}: {means}{detail}; see docs/divergences.md#{class}");
    }
}

fn print_contents(contents: &Contents) {
    match &contents.payload {
        Some(payload) => println!("\nPayload: {}", payload.get()),
        None => println!("\nPayload: kept no longer"),
    }
    for result in &contents.results {
        println!("Result of attempt {} on {}: {}", result.attempt, result.side, result.document.get());
    }
    for misread in &contents.misread {
        println!("Payload as {} read it for attempt {}: {}", misread.side, misread.attempt, misread.document.get());
    }
}
