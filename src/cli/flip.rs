//! What the commands that flip have in common: say what will happen, ask, change the flags, wait for the routers, tell
//! how long that took.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::way_back::WayBack;
use super::{Context, Outcome, print_json, table};
use crate::arming::{ArmingStore, State};
use crate::config::Config;
use crate::flags::edit::{Known, Wish};
use crate::flips::{self, Flip, FlipStore, OverrideRow, Place, RouterState, Waiting};
use crate::interaction::{Side, Stage};
use crate::ledger::{AccountMarks, Ledger, StageCount};

/// Nothing was changed: it was not agreed to.
pub(super) const NOT_DONE: u8 = 2;
/// It was changed, but not every router is known to decide by it.
pub(super) const NOT_SEEN: u8 = 3;
/// It was changed and every router decides by it, but the account is not armed, so Temporal still executes.
pub(super) const NOT_ARMED: u8 = 4;

/// A Postgres that has not told in this time what it knows is away.
const KNOWING: Duration = Duration::from_secs(5);

/// Who is to move, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct Order {
    /// The account
    pub account: String,
    /// One kind of its interactions, instead of all
    #[arg(long)]
    pub kind: Option<String>,
    /// Why; kept with the decision
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Do it without asking
    #[arg(long)]
    pub yes: bool,
    /// Wait so long for the routers
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// What a command prints, before and after.
#[derive(Serialize)]
pub(super) struct Report {
    pub(super) account: String,
    pub(super) kind: Option<String>,
    pub(super) from: Option<Stage>,
    pub(super) to: Stage,
    /// What changes in the flags, in order.
    pub(super) changes: Vec<String>,
    /// What an operator should know before.
    pub(super) notes: Vec<String>,
    pub(super) done: bool,
    pub(super) revision: Option<String>,
    /// Milliseconds from the command to the last router.
    pub(super) took_ms: Option<f64>,
    pub(super) routers: Vec<RouterLine>,
    /// Where the account is on its way to be armed, where that keeps it from what was asked for.
    pub(super) arming: Option<Arming>,
}

/// An account that is not armed.
#[derive(Serialize)]
pub(super) struct Arming {
    state: State,
    waits_for: String,
}

#[derive(Serialize)]
pub(super) struct RouterLine {
    id: uuid::Uuid,
    name: String,
    state: RouterState,
    revision: String,
    took_ms: Option<f64>,
    silent_seconds: f64,
}

/// Which stages a command may leave.
pub(super) type May = fn(from: Stage, to: Stage) -> Result<(), String>;

/// What Postgres knows, or why it can't be asked.
pub(super) struct Record {
    pub(super) store: FlipStore,
    arming: ArmingStore,
    marks: Option<AccountMarks>,
    unended: Vec<StageCount>,
    known: Known,
    ledger: Ledger,
    /// A router has decided for it before, or it has had work.
    is_known: bool,
    overrides: Vec<OverrideRow>,
}

impl Record {
    pub(super) async fn read(config: &Config, account: &str) -> Result<Self, String> {
        let ledger = super::migrate::known_ledger(config).map_err(|error| error.to_string())?;
        // A Postgres that hangs must not keep a rollback from the flags.
        let asked = tokio::time::timeout(KNOWING, Self::ask(&ledger, account)).await;
        asked.map_err(|_| format!("Postgres has not answered within {KNOWING:?}"))?.map_err(|error| error.to_string())
    }

    async fn ask(ledger: &Ledger, account: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        ledger.check_schema().await?;
        let store = FlipStore::new(ledger.pool().clone());
        let (marks, unended) = (ledger.marks_of(account).await?, ledger.unended_of(account).await?);
        let pairs = store.known().await?;
        let is_known = marks.is_some() || pairs.iter().any(|(known, _)| known == account);
        let mut known = Known::default();
        pairs.iter().for_each(|(account, kind)| known.add(account, kind));
        unended.iter().for_each(|count| known.add(&count.account, &count.kind));
        let overrides = store.overrides().await?;
        let arming = ArmingStore::new(ledger.pool().clone());
        Ok(Self { store, arming, marks, unended, known, ledger: ledger.clone(), is_known, overrides })
    }

    /// The overrides that keep a flip from being seen in new work.
    fn held(&self, wish: &Wish) -> Vec<String> {
        let beats = |o: &&OverrideRow| {
            o.account == wish.account && (o.kind.is_none() || wish.kind.is_none() || o.kind == wish.kind)
        };
        let line = |o: &OverrideRow| {
            let (who, until) =
                (o.kind.as_ref().map_or_else(|| "it".to_owned(), |kind| format!("kind {kind}")), o.until_at);
            let (id, stage, until) = (o.id, o.stage, until.format("%F %T"));
            format!("override {id} keeps {who} in {stage} until {until}; what the flags say counts after that")
        };
        self.overrides.iter().filter(beats).map(line).collect()
    }
}

/// Plans, shows, asks, does and waits.
pub(super) async fn run(order: Order, to: Stage, may: May, context: Context) -> Outcome {
    let config = context.load()?;
    let place = Place::of(&config.flags)?;
    let record = Record::read(&config, &order.account).await;
    let known = record.as_ref().map_or_else(|_| Known::default(), |record| record.known.clone());
    let flip = place.plan(&wish(&order, to), &known).await?;
    may(flip.plan.from, to)?;
    let mut report = report(&flip, &record);
    report.notes.extend(way_back(&config, &flip, &record).await);
    if !agreed(&report, order.yes || flip.plan.changes.is_empty(), context.json)? {
        return not_done(&report, context.json);
    }
    let store = record.as_ref().ok().map(|record| &record.store);
    let by = (config.operator.as_str(), order.reason.as_deref());
    let flipped = flips::flip(&place, store, flip, &known, by, order.timeout).await?;
    report.done = true;
    report.revision = flipped.revision;
    if let Some(error) = flipped.unrecorded {
        report.notes.push(format!("who and why are not recorded: {error}"));
    }
    let waiting = match (store, flipped.id) {
        (Some(store), Some(id)) => Some(flips::await_routers(store, id, order.timeout).await),
        _ => None,
    };
    let waiting = waiting.and_then(Result::ok);
    if let (Ok(record), true) = (&record, to > Stage::Shadow) {
        // Without a router that reports there is nobody who would move it on.
        if waiting.as_ref().is_some_and(|w| w.routers.iter().any(|(_, state)| *state == RouterState::Seen)) {
            report.arming = await_armed(&config, &record.arming, &order).await;
        }
    }
    finish(report, waiting, context.json)
}

/// Waits until the account is armed, unless that takes longer than anybody waits; then, what it waits for.
async fn await_armed(config: &Config, store: &ArmingStore, order: &Order) -> Option<Arming> {
    let (since, window) = (Instant::now(), config.window.idempotency);
    loop {
        let patience = order.timeout.saturating_sub(since.elapsed());
        let state = store.of(&order.account).await.ok()?.map_or(State::Open, |standing| standing.state);
        if state == State::Armed {
            return None;
        }
        let waiting = store.under_way(Some(&order.account), window, 1).await.ok()?.0.pop();
        let too_long = match &waiting {
            // Nothing but `crossover arm` takes it back from there.
            Some(waiting) if waiting.state == State::Disarming => true,
            Some(waiting) => waiting.window_seconds.is_some_and(|left| left > patience.as_secs_f64()),
            None => false,
        };
        if too_long || patience.is_zero() {
            let beginning = "for a router to begin its way".to_owned();
            let waits_for = waiting.map_or(beginning, |waiting| waiting.waits_for());
            return Some(Arming { state, waits_for });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// How often it is asked whether an account is armed.
const LOOK: Duration = Duration::from_millis(100);

/// Shows what [`run`] would do.
pub(super) async fn preview(order: Order, to: Stage, context: Context) -> Outcome {
    let config = context.load()?;
    let record = Record::read(&config, &order.account).await;
    let known = record.as_ref().map_or_else(|_| Known::default(), |record| record.known.clone());
    let flip = Place::of(&config.flags)?.plan(&wish(&order, to), &known).await?;
    let mut report = report(&flip, &record);
    report.notes.extend(way_back(&config, &flip, &record).await);
    match context.json {
        true => print_json(&report)?,
        false => show(&report),
    }
    Ok(ExitCode::SUCCESS)
}

/// What a move back to Temporal should know: that Temporal is not there. Asking it must not keep a rollback from the flags.
async fn way_back(config: &Config, flip: &Flip, record: &Result<Record, String>) -> Option<String> {
    let back = flip.plan.from.owner() == Side::Postgres && flip.wish.stage.owner() == Side::Temporal;
    let ledger = &record.as_ref().ok().filter(|_| back)?.ledger;
    let looked = tokio::time::timeout(KNOWING, WayBack::look(config, ledger)).await;
    looked.ok()?.ok()?.warning()
}

/// The stage in which an account's kind stands now, by the override in force, else by the flags.
pub(super) async fn stage_now(
    config: &Config,
    account: &str,
    kind: &str,
) -> Result<Stage, Box<dyn std::error::Error + Send + Sync>> {
    let ledger = super::migrate::known_ledger(config)?;
    let overrides = FlipStore::new(ledger.pool().clone()).overrides().await?;
    let of_kind = |o: &&OverrideRow| o.account == account && o.kind.as_deref() == Some(kind);
    let of_all = |o: &&OverrideRow| o.account == account && o.kind.is_none();
    if let Some(found) = overrides.iter().find(of_kind).or_else(|| overrides.iter().find(of_all)) {
        return Ok(found.stage);
    }
    let wish = Wish { account: account.to_owned(), kind: Some(kind.to_owned()), stage: Stage::Complete };
    Ok(Place::of(&config.flags)?.plan(&wish, &Known::default()).await?.plan.from)
}

fn wish(order: &Order, stage: Stage) -> Wish {
    Wish { account: order.account.clone(), kind: order.kind.clone(), stage }
}

fn report(flip: &Flip, record: &Result<Record, String>) -> Report {
    let mut notes: Vec<String> =
        flip.plan.apart().map(|(kind, stage)| format!("kind {} stands in {stage} now", kind_name(kind))).collect();
    notes.extend(flip.notes());
    match record {
        Ok(record) => {
            notes.extend(outlook(&flip.wish, record));
            notes.extend(record.held(&flip.wish));
        }
        Err(error) => notes.push(format!(
            "Postgres can't be asked, so nobody waits for the routers and who and why are not recorded: {error}"
        )),
    }
    Report {
        account: flip.wish.account.clone(),
        kind: flip.wish.kind.clone(),
        from: Some(flip.plan.from),
        to: flip.wish.stage,
        changes: flip.plan.changes.iter().map(ToString::to_string).collect(),
        notes,
        done: false,
        revision: None,
        took_ms: None,
        routers: Vec::new(),
        arming: None,
    }
}

fn kind_name(kind: &str) -> &str {
    if kind.is_empty() { "(any other)" } else { kind }
}

/// What waits for what, from what Postgres knows.
pub(super) fn outlook(wish: &Wish, record: &Record) -> Vec<String> {
    let mut notes = Vec::new();
    if !record.is_known {
        notes.push(format!("nothing is known of account {} yet; see whether the name is right", wish.account));
    }
    let unarmed = record.marks.as_ref().filter(|marks| wish.stage > Stage::Shadow && marks.state != "armed");
    if let Some(marks) = unarmed {
        let past = marks.unpinned_at.map_or_else(String::new, |since| {
            format!("; it has had work without a pin since {}, so that takes a whole window", since.format("%F %T"))
        });
        notes.push(format!(
            "the account is not armed yet: until it is, its new work is pinned in shadow and Temporal executes it{past}"
        ));
    }
    let meant = |count: &&StageCount| wish.kind.as_ref().is_none_or(|kind| *kind == count.kind);
    let waiting = |side: fn(&StageCount) -> i64| record.unended.iter().filter(meant).map(side).sum::<i64>();
    for (side, count) in [("Temporal", waiting(|c| c.temporal)), ("Postgres", waiting(|c| c.postgres))] {
        if count > 0 {
            notes.push(format!("{count} interactions that {side} owns stay there and end there"));
        }
    }
    notes
}

/// Shows the report, and asks on a terminal unless it was agreed to before.
pub(super) fn agreed(report: &Report, yes: bool, json: bool) -> std::io::Result<bool> {
    if !json {
        show(report);
    }
    if yes {
        return Ok(true);
    }
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    ask()
}

/// Asks on the terminal.
pub(super) fn ask() -> std::io::Result<bool> {
    print!("do it? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

pub(super) fn not_done(report: &Report, json: bool) -> Outcome {
    match json {
        true => print_json(report)?,
        false => println!("nothing was changed; repeat with --yes"),
    }
    Ok(ExitCode::from(NOT_DONE))
}

/// Tells what the routers said.
pub(super) fn finish(mut report: Report, waiting: Option<Waiting>, json: bool) -> Outcome {
    let seen = waiting.as_ref().is_some_and(Waiting::all_seen);
    let routers = waiting.map(|waiting| waiting.routers).unwrap_or_default();
    report.routers = routers
        .into_iter()
        .map(|(router, state)| RouterLine {
            id: router.id,
            name: router.name,
            state,
            revision: router.revision,
            took_ms: router.acknowledged_ms,
            silent_seconds: router.silent_seconds,
        })
        .collect();
    let took = report.routers.iter().filter_map(|router| router.took_ms).reduce(f64::max).filter(|_| seen);
    report.took_ms = took.or(report.took_ms);
    match json {
        true => print_json(&report)?,
        false => tell(&report, seen),
    }
    Ok(match (seen, &report.arming) {
        (false, _) => ExitCode::from(NOT_SEEN),
        (true, Some(_)) => ExitCode::from(NOT_ARMED),
        (true, None) => ExitCode::SUCCESS,
    })
}

fn show(report: &Report) {
    let who = match &report.kind {
        Some(kind) => format!("kind {kind} of account {}", report.account),
        None => format!("account {}", report.account),
    };
    println!("{who}: {} → {}", report.from.map_or("?", Stage::as_str), report.to);
    match report.changes.is_empty() {
        true => println!("  the flags need no change"),
        false => report.changes.iter().for_each(|change| println!("  {change}")),
    }
    report.notes.iter().for_each(|note| println!("  note: {note}"));
}

fn tell(report: &Report, seen: bool) {
    let who = &report.account;
    let mut rows = table(&["ROUTER", "STATE", "TOOK"]);
    for router in &report.routers {
        let state = match router.state {
            RouterState::Seen => "decides so".to_owned(),
            RouterState::Late => format!("not yet, it has {}", router.revision),
            RouterState::Silent => format!("SILENT for {:.0} s, it had {}", router.silent_seconds, router.revision),
        };
        rows.add_row([router.name.clone(), state, router.took_ms.map_or_else(String::new, |ms| format!("{ms:.0} ms"))]);
    }
    if !report.routers.is_empty() {
        println!("{}", rows.trim_fmt());
    }
    match (seen, report.took_ms, report.routers.is_empty()) {
        (true, Some(ms), _) => println!("{who}: {} in every router after {ms:.0} ms", report.to),
        (true, None, _) => println!("{who}: {}; no router is registered", report.to),
        (false, _, true) => println!("{who}: changed to {}; the routers can't be asked", report.to),
        (false, _, false) => println!(
            "{who}: changed to {}, but NOT EVERY ROUTER IS KNOWN TO DECIDE SO; `crossover routers` shows them, \
             `crossover routers --forget ID --yes` takes one out whose process is gone",
            report.to
        ),
    }
    if let Some(Arming { state, waits_for }) = &report.arming {
        println!(
            "{who}: NOT ARMED YET, so Temporal still executes its work. It is {state} and waits {waits_for}. It goes on by itself; \
             `crossover status` shows it"
        );
    }
}
