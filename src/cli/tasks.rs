//! `crossover tasks`: what Postgres knows of interactions, listed and shown.

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde::Serialize;
use uuid::Uuid;

use super::{Context, Outcome, flip, print_json, table};
use crate::app::Servers;
use crate::history::{Cursor, Filter, Found, MOST, Search, Shown, State};
use crate::ledger::{self, Ledger, Releasing, Waits};
use crate::report;

/// List interactions, newest first, or show one with payload, result and attempts
///
/// Pins and tasks alike, of the last day unless --since says otherwise. What only Temporal knows (stage off) is not among them. A
/// search that would read too much is given up after five seconds: name an account, or a shorter time.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    list: List,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Show one: state, what it waits for, attempts, payload and result
    ///
    /// `crossover why` tells how it got there.
    Show {
        /// The interaction
        id: Uuid,
    },
    /// Let one run without the interactions that it was to run after
    ///
    /// For work whose `after` is stuck. Its turn in its series it does wait for. Says what it will do, and does it with --yes; exit
    /// code 2: nothing was changed.
    Release {
        /// The interaction
        id: Uuid,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Args)]
struct List {
    /// Only those of this account
    #[arg(long)]
    account: Option<String>,
    /// Only those of this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only those in this state: scheduled, waiting, ready, running, held, unknown_outcome, succeeded, failed, cancelled or expired
    #[arg(long)]
    state: Option<String>,
    /// Only those of this series
    #[arg(long)]
    series: Option<String>,
    /// Only those of this group
    #[arg(long)]
    group: Option<String>,
    /// Accepted at this time or later: a time like 2026-11-22T12:00:00Z, or so long ago, like 2h
    #[arg(long, value_parser = moment)]
    since: Option<DateTime<Utc>>,
    /// Accepted before this time
    #[arg(long, value_parser = moment)]
    until: Option<DateTime<Utc>>,
    /// So many at most
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Go on behind a page: what it said last
    #[arg(long)]
    cursor: Option<String>,
}

/// The document for machines.
#[derive(Serialize)]
struct Listed<'a> {
    items: &'a [Found],
    /// Where the next page begins.
    next: Option<&'a str>,
}

/// One with what it waits for.
#[derive(Serialize)]
struct Whole {
    #[serde(flatten)]
    shown: Shown,
    waits_for: Option<String>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let url = Servers::known_postgres(&config).ok_or("no postgres.url is configured")?;
    let search = Search::new(ledger::pool(url.expose(), 1, config.postgres.connect_timeout)?);
    match args.what {
        Some(What::Show { id }) => {
            let Some(shown) = search.show(id).await? else {
                return Err(format!(
                    "nothing is kept of {id}: it was never pinned, or ended longer ago than its retention; `crossover why {id}` asks Temporal, too"
                )
                .into());
            };
            let waits_for = report::story(&ledger, id, false).await?.and_then(|story| story.waits_for);
            let whole = Whole { shown, waits_for };
            if context.json { print_json(&whole)? } else { show(&whole) }
        }
        Some(What::Release { id, yes }) => return release(&ledger, id, yes, &context).await,
        None => {
            let (items, next) = list(&search, args.list).await?;
            if context.json {
                print_json(&Listed { items: &items, next: next.as_deref() })?;
            } else {
                print(&items, next.as_deref());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is, or would be, released.
#[derive(Serialize)]
struct Release<'a> {
    id: Uuid,
    waits: &'a Waits,
    released: bool,
}

async fn release(ledger: &Ledger, id: Uuid, yes: bool, context: &Context) -> Outcome {
    let waits = ledger.waits(id).await?.unwrap_or_default();
    let answer = match (yes, waits.named, &waits.behind) {
        (true, ..) => ledger.release(id).await?,
        (false, 0, Some(head)) => Some(Releasing::Behind(head.id)),
        (false, 0, None) if waits.exclusive.is_some() => Some(Releasing::Excluded(waits.turn.as_ref().map(|turn| turn.id))),
        (false, 0, None) => match ledger.story(id).await? {
            Some(story) if story.pin.outcome.is_some() => Some(Releasing::Ended),
            story => story.map(|_| Releasing::NotWaiting),
        },
        (false, ..) => Some(Releasing::Released { behind: None }),
    };
    match answer {
        Some(Releasing::Released { .. }) => {}
        Some(Releasing::Behind(head)) => return Err(format!("{id} {}", Releasing::behind(head)).into()),
        Some(Releasing::Excluded(turn)) => return Err(format!("{id} {}", Releasing::excluded(turn)).into()),
        Some(Releasing::NotWaiting) => return Err(format!("{id} {}", Releasing::NOT_WAITING).into()),
        Some(Releasing::Ended) => return Err(format!("{id} {}", Releasing::ENDED).into()),
        None => return Err(format!("nothing is pinned of {id}").into()),
    }
    if context.json {
        print_json(&Release { id, waits: &waits, released: yes })?;
    } else {
        println!("{id} waits for {} of {} interactions that it was to run after:", waits.unended, waits.named);
        for one in &waits.after {
            let reason = one.reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
            println!("  {} {}{reason}", one.id, one.state);
        }
        match yes {
            true => println!("it no longer does"),
            false => println!("would run without them; nothing was changed, repeat with --yes"),
        }
        if let Some(head) = &waits.behind {
            println!("it also waits for {} of its series, which is {}", head.id, head.state);
        }
    }
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(flip::NOT_DONE) })
}

/// Page after page until there are enough.
async fn list(
    search: &Search,
    list: List,
) -> Result<(Vec<Found>, Option<String>), Box<dyn std::error::Error + Send + Sync>> {
    let state = list.state.map(|state| state.parse::<State>().map_err(|why| format!("--state {state} {why}")));
    let after = list.cursor.map(|cursor| cursor.parse::<Cursor>().map_err(|why| format!("--cursor {why}")));
    let List { account, kind, series, group, since, until, limit, .. } = list;
    let mut after = after.transpose()?;
    let filter = Filter { account, kind, state: state.transpose()?, series, group, since, until };
    let mut items = Vec::new();
    loop {
        let wanted = (limit - items.len() as u32).min(MOST);
        let page = search.page(&filter, after, wanted).await?;
        items.extend(page.items);
        match page.next {
            Some(next) if items.len() < limit as usize => after = Some(next.parse::<Cursor>()?),
            next => return Ok((items, next)),
        }
    }
}

/// A time, or how long ago.
fn moment(text: &str) -> Result<DateTime<Utc>, String> {
    if let Ok(at) = DateTime::parse_from_rfc3339(text) {
        return Ok(at.to_utc());
    }
    let ago = humantime::parse_duration(text).ok().and_then(|ago| chrono::TimeDelta::from_std(ago).ok());
    let at = ago.and_then(|ago| Utc::now().checked_sub_signed(ago));
    at.ok_or_else(|| "is neither a time like 2026-11-22T12:00:00Z nor one ago like 2h".to_owned())
}

fn print(items: &[Found], next: Option<&str>) {
    if items.is_empty() {
        println!("nothing was found; --since says how far back to look, a day otherwise");
        return;
    }
    let mut rows = table(&["ID", "ACCEPTED (UTC)", "ACCOUNT", "KIND", "SERIES", "GROUP", "STATE", "ATTEMPTS", "WHY"]);
    for found in items {
        let series = found.series.as_ref().zip(found.series_no).map(|(series, no)| format!("{series} {no}"));
        rows.add_row([
            found.id.to_string(),
            found.created_at.format("%F %T%.3f").to_string(),
            found.account.clone(),
            found.kind.clone(),
            series.unwrap_or_default(),
            found.group.clone(),
            found.state.clone(),
            found.attempts.to_string(),
            found.reason.clone().unwrap_or_default(),
        ]);
    }
    println!("{}", rows.trim_fmt());
    if let Some(next) = next {
        println!("\nthere may be more: --cursor {next}");
    }
}

fn show(whole: &Whole) {
    let Shown { found, exclusive, attempts_made, policy, payload, result } = &whole.shown;
    let mut rows = table(&["INTERACTION", &found.id.to_string()]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    let time = |at: DateTime<Utc>| at.format("%F %T%.3f UTC").to_string();
    let kept = |document: &Option<Box<serde_json::value::RawValue>>| {
        document.as_ref().map_or("none is kept".to_owned(), |document| document.get().to_owned())
    };
    row("account, kind", format!("{}, {}", found.account, found.kind));
    row("key", found.key.clone());
    if let Some((series, no)) = found.series.as_ref().zip(found.series_no) {
        row("series", format!("{series}, number {no}"));
    }
    if let Some(exclusive) = exclusive {
        row("exclusive", exclusive.clone());
    }
    row("group, priority", format!("{}, {}", found.group, found.priority));
    row("state", found.state.clone());
    if let Some(reason) = &found.reason {
        row("reason", reason.clone());
    }
    if let Some(what) = &whole.waits_for {
        row("waits for", what.clone());
    }
    row("runs on", format!("{}, accepted in stage {}", found.owner, found.stage));
    row("accepted", time(found.created_at));
    row("not before", time(found.run_at));
    row("ended", found.ended_at.map_or("not yet".to_owned(), time));
    row("policy", kept(policy));
    row("payload", kept(payload));
    row("result", kept(result));
    println!("{}", rows.trim_fmt());
    if attempts_made.is_empty() {
        return;
    }
    let mut rows = table(&["ATTEMPT", "SIDE", "WHAT", "DUE (UTC)", "WAITED", "TOOK", "OUTCOME", "NEXT", "WHY"]);
    for a in attempts_made {
        rows.add_row([
            format!("{}.{}", a.epoch, a.attempt),
            a.side.clone(),
            if a.rehearsal { "rehearsal" } else { "execution" }.to_owned(),
            a.due_at.format("%F %T%.3f").to_string(),
            format!("{} ms", (a.started_at - a.due_at).num_milliseconds()),
            format!("{} ms", (a.ended_at - a.started_at).num_milliseconds()),
            a.outcome.clone().unwrap_or_else(|| "none".to_owned()),
            a.retry_ms.map(|ms| format!("after {ms} ms")).unwrap_or_default(),
            a.error.clone().unwrap_or_default(),
        ]);
    }
    println!("\n{}", rows.trim_fmt());
}
