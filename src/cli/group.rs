//! `crossover group`: limits and pauses of groups.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Context, Outcome, agree, print_json, refused, table};
use crate::config::Config;
use crate::queue::groups::{Group, Groups};

/// Show and change the limits of groups: what runs at once, starts in a second and may wait; and pauses
///
/// A change is in force in every worker as soon as the command has ended: what runs goes on, and nothing more starts than the
/// new limits allow. docs/groups.md says what exactly is limited. Exit code 2: nothing was changed.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Show the groups that have limits, what holds their places and what waits (this is the default)
    List,
    /// Set limits; those that are not named stay as they are
    Set {
        /// The group
        group: String,
        #[command(flatten)]
        limits: Box<Limits>,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Let nothing of a group start until it is resumed; what runs goes on
    Pause {
        /// The group
        group: String,
        /// Why; shown to everybody who asks what its work waits for
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Let a paused group go on, under the limits that it has
    Resume {
        /// The group
        group: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Take all limits and the pause of a group away
    Unset {
        /// The group
        group: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
}

/// What can be set; `none` takes a limit away.
#[derive(Debug, clap::Args)]
struct Limits {
    /// At most so many attempts at once, in all workers together
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    max_running: Option<Value>,
    /// At most so many of one account at once
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    max_per_account: Option<Value>,
    /// So many attempts may start in a second
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    rate: Option<Value>,
    /// So many at once after a quiet time; without it the starts of a second
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    burst: Option<Value>,
    /// So many of one account may start in a second
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    account_rate: Option<Value>,
    /// So many of one account at once after a quiet time
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    account_burst: Option<Value>,
    /// Whether a failure with `Retry-After` holds the rest of its account back until then
    #[arg(long, value_name = "BOOL")]
    heed_retry_after: Option<bool>,
    /// Routers refuse more of it with 429 while about so much waits
    #[arg(long, value_name = "N", value_parser = number, allow_hyphen_values = true)]
    max_waiting: Option<Value>,
}

impl Limits {
    fn named(&self) -> Result<Map<String, Value>, &'static str> {
        let heed = self.heed_retry_after.map(Value::from);
        let all = [
            ("max_running", &self.max_running),
            ("max_per_account", &self.max_per_account),
            ("rate", &self.rate),
            ("burst", &self.burst),
            ("account_rate", &self.account_rate),
            ("account_burst", &self.account_burst),
            ("heed_retry_after", &heed),
            ("max_waiting", &self.max_waiting),
        ];
        let named: Map<String, Value> =
            all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))).collect();
        if named.is_empty() { Err("say what to set, like --max-running 10") } else { Ok(named) }
    }
}

fn number(text: &str) -> Result<Value, String> {
    if text == "none" {
        return Ok(Value::Null);
    }
    let whole = text.parse::<i64>().map(Value::from).ok();
    let number = whole.or_else(|| text.parse::<f64>().ok().filter(|n| n.is_finite()).map(Value::from));
    number.ok_or_else(|| "must be a number, or none".to_owned())
}

/// What is printed of a change.
#[derive(Serialize)]
struct Report {
    group: String,
    what: String,
    done: bool,
    /// As it is now.
    limits: Option<Group>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let (config, groups) = store(&context).await?;
    let (group, what, yes) = match &args.what {
        None | Some(What::List) => return list(&groups.list(None).await?, context.json),
        Some(What::Set { group, limits, yes }) => (group, format!("set {}", spoken(&limits.named()?)), *yes),
        Some(What::Pause { group, reason, yes }) => (group, format!("let nothing start ({reason}); what runs goes on"), *yes),
        Some(What::Resume { group, yes }) => (group, "let it go on".to_owned(), *yes),
        Some(What::Unset { group, yes }) => (group, "take its limits and its pause away".to_owned(), *yes),
    };
    let before = groups.list(Some(group)).await?.pop();
    if before.is_none() && matches!(args.what, Some(What::Resume { .. } | What::Unset { .. })) {
        return Err(format!("group `{group}` has no limits; `crossover group list` shows those that have").into());
    }
    let stands = before.as_ref().map_or("has no limits".to_owned(), stands);
    let mut report = Report { group: group.clone(), what, done: false, limits: before };
    if !agree(&format!("group {group} {stands}; would {}", report.what), yes, context.json)? {
        return super::not_done(&report, context.json);
    }
    change(&groups, &args, &config).await?;
    report.done = true;
    report.limits = groups.list(Some(group)).await?.pop();
    match (context.json, &report.limits) {
        (true, _) => print_json(&report)?,
        (false, Some(now)) => println!("group {group} {}", self::stands(now)),
        (false, None) => println!("group {group} has no limits any more"),
    }
    Ok(ExitCode::SUCCESS)
}

/// The groups, and who changes them.
pub(super) async fn store(context: &Context) -> Result<(Config, Groups), Box<dyn std::error::Error + Send + Sync>> {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let groups = Groups::new(ledger.pool().clone());
    Ok((config, groups))
}

async fn change(groups: &Groups, args: &Args, config: &Config) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let who = &config.operator;
    let done = match &args.what {
        Some(What::Set { group, limits, .. }) => groups.set(group, &limits.named()?, who).await,
        Some(What::Pause { group, reason, .. }) => groups.pause(group, reason, who).await,
        Some(What::Resume { group, .. }) => groups.resume(group, who).await,
        Some(What::Unset { group, .. }) => groups.unset(group).await.map(drop),
        None | Some(What::List) => Ok(()),
    };
    done.map_err(refused)
}

fn spoken(limits: &Map<String, Value>) -> String {
    let each = limits.iter().map(|(name, value)| match value {
        Value::Null => format!("no {name}"),
        value => format!("{name} to {value}"),
    });
    each.collect::<Vec<_>>().join(" and ")
}

fn stands(group: &Group) -> String {
    let limits = Some(limits(group)).filter(|limits| !limits.is_empty()).unwrap_or_else(|| "no limits".to_owned());
    let pause = group.paused_since.map(|since| {
        let reason = group.paused_reason.as_deref().unwrap_or("no reason is given");
        format!(", and is PAUSED since {}: {reason}", since.format("%F %T UTC"))
    });
    format!("has {limits}{}; {} places taken, {} waiting", pause.unwrap_or_default(), group.held, group.waiting)
}

fn limits(group: &Group) -> String {
    group.limits().iter().map(|(name, limit)| format!("{name} {limit}")).collect::<Vec<_>>().join(", ")
}

fn list(groups: &[Group], json: bool) -> Outcome {
    if json {
        print_json(&groups)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["GROUP", "LIMITS", "TAKEN", "WAITING", "PAUSED", "CHANGED", "BY"]);
    for g in groups {
        let reason = g.paused_reason.as_deref().unwrap_or("no reason is given");
        let paused = g.paused_since.map(|since| format!("since {}: {reason}", since.format("%F %T")));
        rows.add_row([
            g.name.clone(),
            limits(g),
            g.held.to_string(),
            g.waiting.to_string(),
            paused.unwrap_or_default(),
            g.changed_at.format("%F %T").to_string(),
            g.changed_by.clone(),
        ]);
    }
    match groups.is_empty() {
        true => println!("no group has limits"),
        false => println!("{}", rows.trim_fmt()),
    }
    Ok(ExitCode::SUCCESS)
}
