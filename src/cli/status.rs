//! `crossover status`: where the migration stands.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde::Serialize;

use super::{Context, Outcome, print_json, table};
use crate::app::Servers;
use crate::flags::Document;
use crate::flips::{FlipStore, OverrideRow};
use crate::interaction::Stage;
use crate::ledger::{AccountMarks, OutboxDepth};
use crate::queue::{Depth, Queue};

/// Show where each account stands, what waits, and what keeps an account from going live
#[derive(Debug, clap::Args)]
pub struct Args {}

#[derive(Serialize)]
struct Status {
    flags: FlagStatus,
    outbox: OutboxDepth,
    queue: Depth,
    /// Loud: while one is in force, the flags don't say where its account stands.
    overrides: Vec<OverrideRow>,
    accounts: Vec<Line>,
}

#[derive(Serialize)]
struct FlagStatus {
    file: String,
    revision: Option<String>,
    error: Option<String>,
}

#[derive(Serialize)]
struct Line {
    account: String,
    kind: String,
    /// What the flags say; absent where they can't be read.
    flag: Option<Stage>,
    /// What the next interaction is pinned with.
    stage: Option<Stage>,
    /// Unended, by owner.
    temporal: i64,
    postgres: i64,
    armed_at: Option<DateTime<Utc>>,
    /// Why the stage is not what the flags say.
    why: Option<String>,
}

/// See [`Args`].
pub async fn run(_: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let url = Servers::known_postgres(&config)
        .ok_or("no postgres.url is configured, and no `serve` has started one with this state_dir")?;
    let ledger = super::migrate::ledger(&config, url.expose())?;
    ledger.check_schema().await?;
    let (document, flags) = read_flags(&config.flags.file);
    let accounts = ledger.accounts().await?;
    let unended: BTreeMap<_, _> =
        ledger.unended().await?.into_iter().map(|c| ((c.account, c.kind), (c.temporal, c.postgres))).collect();
    let mut kinds: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (account, kind) in unended.keys().cloned() {
        kinds.entry(account).or_default().insert(kind);
    }
    let lines = accounts.iter().flat_map(|marks| {
        let known = kinds.get(&marks.account).cloned().unwrap_or_else(|| BTreeSet::from(["*".to_owned()]));
        let (document, unended) = (&document, &unended);
        known.into_iter().map(move |kind| line(marks, kind, document.as_ref(), unended)).collect::<Vec<_>>()
    });
    let status = Status {
        accounts: lines.collect(),
        flags,
        outbox: ledger.outbox_depth().await?,
        queue: Queue::new(ledger.pool().clone()).depth().await?,
        overrides: FlipStore::new(ledger.pool().clone()).overrides().await?,
    };
    match context.json {
        true => print_json(&status)?,
        false => show(&status),
    }
    Ok(ExitCode::SUCCESS)
}

fn read_flags(file: &std::path::Path) -> (Option<Document>, FlagStatus) {
    let name = file.display().to_string();
    match Document::read(file) {
        Ok(document) => {
            let revision = Some(document.revision().to_owned());
            (Some(document), FlagStatus { file: name, revision, error: None })
        }
        Err(error) => (None, FlagStatus { file: name, revision: None, error: Some(error) }),
    }
}

fn line(
    marks: &AccountMarks,
    kind: String,
    document: Option<&Document>,
    unended: &BTreeMap<(String, String), (i64, i64)>,
) -> Line {
    let flag = document.map(|document| document.stage(&marks.account, &kind));
    let (stage, why) = effective(flag, marks);
    let (temporal, postgres) = unended.get(&(marks.account.clone(), kind.clone())).copied().unwrap_or_default();
    Line { account: marks.account.clone(), kind, flag, stage, temporal, postgres, armed_at: marks.armed_at, why }
}

fn effective(flag: Option<Stage>, marks: &AccountMarks) -> (Option<Stage>, Option<String>) {
    match (flag, marks.unpinned_at) {
        (Some(Stage::Live | Stage::Complete), Some(since)) => {
            let why = format!("work was started without a pin since {}; it stays in shadow until it can be armed", since.format("%F %T"));
            (Some(Stage::Shadow), Some(why))
        }
        _ => (flag, None),
    }
}

fn show(status: &Status) {
    for o in &status.overrides {
        let kind = o.kind.as_ref().map_or_else(String::new, |kind| format!(", kind {kind},"));
        let until = o.until_at.format("%F %T UTC");
        println!("OVERRIDE  {}{kind} is in {} until {until}, whatever the flags say: {} ({})", o.account, o.stage, o.why, o.who);
    }
    let FlagStatus { file, revision, error } = &status.flags;
    match error {
        None => println!("flags     {file}, revision {}", revision.as_deref().unwrap_or("-")),
        Some(error) => println!("flags     {file} can't be read: {error}; routers go by the last good ones"),
    }
    let OutboxDepth { rows, oldest_seconds, last_error } = &status.outbox;
    println!("outbox    {rows} undelivered, the oldest for {oldest_seconds:.0} s");
    if let Some(error) = last_error {
        println!("          last failure: {error}");
    }
    let Depth { ready, scheduled, running, oldest_seconds } = &status.queue;
    println!("postgres  {ready} ready (the oldest due for {oldest_seconds:.0} s), {scheduled} scheduled, {running} running");
    println!();
    let mut rows = table(&["ACCOUNT", "KIND", "FLAG", "STAGE", "ON TEMPORAL", "ON POSTGRES", "ARMED", "WHY"]);
    let name = |stage: Option<Stage>| stage.map_or("?", Stage::as_str);
    for l in &status.accounts {
        rows.add_row([
            l.account.clone(),
            l.kind.clone(),
            name(l.flag).to_owned(),
            name(l.stage).to_owned(),
            l.temporal.to_string(),
            l.postgres.to_string(),
            l.armed_at.map_or("-".to_owned(), |at| at.format("%F %T").to_string()),
            l.why.clone().unwrap_or_default(),
        ]);
    }
    println!("{}", rows.trim_fmt());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_with_unpinned_work_stays_in_shadow_and_the_status_says_why() {
        let mut marks = AccountMarks { account: "a".into(), unpinned_at: None, armed_at: None };
        assert_eq!(effective(Some(Stage::Live), &marks), (Some(Stage::Live), None));
        marks.unpinned_at = Some(DateTime::UNIX_EPOCH);
        let (stage, why) = effective(Some(Stage::Complete), &marks);
        assert_eq!(stage, Some(Stage::Shadow));
        assert!(why.unwrap().contains("1970-01-01"));
        assert_eq!(effective(Some(Stage::Off), &marks), (Some(Stage::Off), None));
    }
}
