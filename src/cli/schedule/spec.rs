//! `crossover schedule next`: the times of a spec, without a server; and how a schedule is printed.

use std::process::ExitCode;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::super::{Outcome, print_json, table};
use super::told;
use crate::router::request::RequestError;
use crate::schedule::definition::NewSpec;
use crate::schedule::mirrors::Stand;
use crate::schedule::times::{ByClock, Every, Once, Spec};
use crate::schedule::view::{Fire, View, next_times};

/// Print the times of a spec; asks no server
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A cron expression
    #[arg(long, required_unless_present_any = ["every", "at"], conflicts_with_all = ["every", "at"])]
    cron: Option<String>,
    /// The time zone in which it is read
    #[arg(long, requires = "cron", default_value = "UTC")]
    time_zone: String,
    /// An interval, like 90s or 1h
    #[arg(long, conflicts_with = "at", value_parser = humantime::parse_duration)]
    every: Option<Duration>,
    /// The first time of an interval (default: now)
    #[arg(long, requires = "every")]
    starts_at: Option<DateTime<Utc>>,
    /// An instant
    #[arg(long)]
    at: Option<DateTime<Utc>>,
    /// The times after this instant (default: now)
    #[arg(long)]
    after: Option<DateTime<Utc>>,
    /// So many
    #[arg(short, long = "count", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    n: u16,
}

/// See [`Args`].
pub(super) fn run(args: &Args, json: bool) -> Outcome {
    let now = args.after.unwrap_or_else(Utc::now);
    let spec = match (&args.cron, args.every) {
        (Some(cron), _) => NewSpec::Whole(Spec::Cron(ByClock { cron: cron.clone(), time_zone: args.time_zone.clone() })),
        (None, Some(every)) => {
            NewSpec::Every { every_ms: i64::try_from(every.as_millis()).unwrap_or(i64::MAX), starts_at: args.starts_at }
        }
        (None, None) => NewSpec::Whole(Spec::Once(Once { at: args.at.ok_or("name --cron, --every or --at")? })),
    };
    let spec = spec.complete(None, now);
    let faults = spec.faults(TimeDelta::zero(), now);
    if !faults.is_empty() {
        return Err(told(RequestError::Invalid(faults)));
    }
    let times = spec.read().map_err(|faults| told(RequestError::Invalid(faults)))?;
    let next = next_times(&spec, &times, times.after(now), (Uuid::nil(), TimeDelta::zero()), args.n.into());
    match json {
        true => print_json(&serde_json::json!({ "spec": spec, "next": next }))?,
        false => print_times(&next),
    }
    Ok(ExitCode::SUCCESS)
}

/// A spec in words.
pub(super) fn words(spec: &Spec) -> String {
    match spec {
        Spec::Every(Every { every_ms, .. }) => {
            format!("every {}", humantime::format_duration(Duration::from_millis(every_ms.unsigned_abs())))
        }
        Spec::Cron(ByClock { cron, time_zone }) => format!("{cron} ({time_zone})"),
        Spec::Once(Once { at }) => format!("once, {}", at.format("%F %T UTC")),
    }
}

/// A schedule, for a person.
pub(super) fn show(view: &View) {
    let mut rows = table(&["SCHEDULE", &view.id.to_string()]);
    let mut row = |name: &str, value: String| {
        rows.add_row([name.to_owned(), value]);
    };
    row("account, name, kind", format!("{}, {}, {}", view.account, view.name, view.kind));
    row("state", view.reason.as_ref().map_or(view.state.to_string(), |why| format!("{}: {why}", view.state)));
    row("when", words(&view.spec));
    row("overlap, catch up", format!("{}, {} within {}", view.overlap, view.catch_up, ms(view.catch_up_window_ms)));
    row("jitter", ms(view.jitter_ms));
    row("group, priority", format!("{}, {}", view.group.as_deref().unwrap_or("default"), view.priority));
    row("version", format!("{}, by {} at {}", view.version, view.changed_by, view.changed_at.format("%F %T UTC")));
    row("unended runs", view.unended.to_string());
    if let Some(Stand { state, since, error, .. }) = &view.temporal {
        let since = since.map_or_else(String::new, |since| format!(" since {}", since.format("%F %T UTC")));
        let error = error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
        row("on Temporal", format!("{state}{since}{error}"));
    }
    println!("{}\n", rows.trim_fmt());
    print_times(&view.next);
    let Some(runs) = view.runs.as_ref().filter(|runs| !runs.is_empty()) else { return };
    let mut rows = table(&["LAST TIMES", "OUTCOME", "RUN OR REASON"]);
    for run in runs {
        let time = |at: &DateTime<Utc>| at.format("%F %T").to_string();
        let mut named = run.nominal_at.as_ref().map_or("triggered".to_owned(), time);
        if let Some(to) = &run.nominal_to {
            named += &format!(" to {} ({})", time(to), run.times);
        }
        let what = run.interaction.map(|id| id.to_string()).or_else(|| run.reason.clone()).unwrap_or_default();
        rows.add_row([named, run.outcome.clone(), what]);
    }
    println!("\n{}", rows.trim_fmt());
}

fn print_times(next: &[Fire]) {
    if next.is_empty() {
        return println!("it fires no more, as it stands");
    }
    let mut rows = table(&["NEXT (UTC)", "BY ITS CLOCK"]);
    for fire in next {
        rows.add_row([fire.at.format("%F %T").to_string(), fire.local.clone().unwrap_or_default()]);
    }
    println!("{}", rows.trim_fmt());
}

fn ms(ms: i64) -> String {
    humantime::format_duration(Duration::from_millis(ms.unsigned_abs())).to_string()
}
