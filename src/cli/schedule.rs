//! `crossover schedule`: work that comes again and again.

mod spec;

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use uuid::Uuid;

use super::{Context, Outcome, flip, print_json, table};
use crate::config::Config;
use crate::http::mirrored;
use crate::interaction::interaction_id;
use crate::router::request::{Fault, RequestError};
use crate::schedule::storage::{Granted, Listed, Made};
use crate::schedule::view::{State, View};
use crate::schedule::{Change, Definition, Mirrors, Page, RunRow, Schedule, Schedules, Wish, key_of_trigger};

/// Make, look at, change, pause, trigger and delete schedules
///
/// A schedule is named by its id, or by ACCOUNT/NAME. What changes something says what it will do first, and does it with --yes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// List schedules by account and name, each with its next time
    List {
        /// Those of this account
        #[arg(long)]
        account: Option<String>,
        /// Those of this kind
        #[arg(long)]
        kind: Option<String>,
        /// Those that are paused
        #[arg(long)]
        paused: bool,
        /// At most so many
        #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(i64).range(1..=100_000))]
        limit: i64,
    },
    /// Show one: what it is, its next times, and what became of its last ones
    Show {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// So many times ahead
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1_000))]
        next: u16,
        /// So many past ones
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(1..=1_000))]
        runs: i64,
    },
    /// Make one from a JSON document, as POST /v1/schedules takes it
    Create {
        /// The document; - is standard input
        file: PathBuf,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Change one by a JSON document, as PATCH /v1/schedules/{id} takes it
    Change {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// The document; - is standard input
        file: PathBuf,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Let its times pass without a run until it is resumed
    Pause {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// Why; everybody who looks at it reads this
        #[arg(long)]
        reason: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Let it fire again, from its next time on
    Resume {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Run it now, beside its times
    Trigger {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// Repeating the command with the same token makes no second run
        #[arg(long)]
        token: Option<String>,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Delete it; what it has enqueued stays, and runs
    Delete {
        /// ID or ACCOUNT/NAME
        schedule: String,
        /// Do it without asking
        #[arg(long)]
        yes: bool,
    },
    /// Print the times of a spec; asks no server
    Next(spec::Args),
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    if let What::Next(args) = args.what {
        return spec::run(&args, context.json);
    }
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let command = Command {
        schedules: Schedules::new(ledger.pool().clone()),
        mirrors: Mirrors::new(ledger.pool().clone()),
        config,
        json: context.json,
    };
    match args.what {
        What::List { account, kind, paused, limit } => {
            let page = Page { account, kind, paused: paused.then_some(true), after: None, limit };
            command.list(&page).await
        }
        What::Show { schedule, next, runs } => command.show(&schedule, next.into(), runs).await,
        What::Create { file, yes } => command.create(&text(&file)?, yes).await,
        What::Change { schedule, file, yes } => command.change(&schedule, &text(&file)?, yes).await,
        What::Pause { schedule, reason, yes } => {
            let says = format!("its times pass without a run from now on, because: {reason}");
            command.grant(&schedule, Wish::Pause(reason), &says, yes).await
        }
        What::Resume { schedule, yes } => command.grant(&schedule, Wish::Resume, "it fires again", yes).await,
        What::Trigger { schedule, token, yes } => command.trigger(&schedule, token, yes).await,
        What::Delete { schedule, yes } => command.delete(&schedule, yes).await,
        What::Next(args) => spec::run(&args, context.json),
    }
}

struct Command {
    schedules: Schedules,
    mirrors: Mirrors,
    config: Config,
    json: bool,
}

impl Command {
    async fn list(&self, page: &Page) -> Outcome {
        let Listed { schedules, unreadable, last } = self.schedules.list(page).await?;
        let ids: Vec<Uuid> = schedules.iter().map(|s| s.id).collect();
        let mut stands = self.mirrors.of(&ids).await?;
        let view = |schedule: Schedule| {
            let stand = stands.remove(&schedule.id);
            View::of(schedule, 1, None).mirrored(stand)
        };
        let found: Vec<View> = schedules.into_iter().map(view).collect();
        let more = last.is_some();
        if self.json {
            print_json(&json!({ "schedules": found, "unreadable": unreadable, "more": more }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let mut rows = table(&["ACCOUNT/NAME", "KIND", "STATE", "ON TEMPORAL", "WHEN", "NEXT (UTC)", "ID"]);
        for s in &found {
            let next = s.next.first().map_or("-".to_owned(), |next| next.at.format("%F %T").to_string());
            let state = s.reason.as_ref().map_or(s.state.to_string(), |why| format!("{}: {why}", s.state));
            let temporal = s.temporal.as_ref().map_or("-", |stand| stand.state.as_str()).to_owned();
            rows.add_row([format!("{}/{}", s.account, s.name), s.kind.clone(), state, temporal, spec::words(&s.spec), next, s.id.to_string()]);
        }
        for u in unreadable {
            let (named, state) = (format!("{}/{}", u.account, u.name), format!("{}: {}", State::Troubled, u.reason));
            let none = || "-".to_owned();
            rows.add_row([named, u.kind, state, none(), none(), none(), u.id.to_string()]);
        }
        println!("{}{}", rows.trim_fmt(), if more { "\nthere may be more; see --limit and --account" } else { "" });
        Ok(ExitCode::SUCCESS)
    }

    async fn show(&self, named: &str, next: usize, runs: i64) -> Outcome {
        let schedule = self.find(named).await?;
        let runs = self.schedules.runs(schedule.id, runs).await?;
        let view = self.view(schedule, next, Some(runs)).await?;
        if self.json {
            print_json(&view)?;
        } else {
            spec::show(&view);
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn create(&self, text: &str, yes: bool) -> Outcome {
        let now = self.schedules.now().await?;
        let definition = Definition::parse(text.as_bytes(), self.config.http.max_payload_bytes, now).map_err(told)?;
        let (account, kind) = (&definition.account, &definition.kind);
        let stage = flip::stage_now(&self.config, account, kind).await?;
        let mirrored = mirrored(stage).map_err(|faults| told(RequestError::Invalid(faults)))?;
        let times = definition.times().map_err(|faults| told(RequestError::Invalid(faults)))?;
        let first = times.after(now).map_or("never".to_owned(), |at| at.format("%F %T UTC").to_string());
        let both = if mirrored { ", on Temporal as well, for it is not complete" } else { "" };
        let says = format!("account {account} gets schedule `{}` for kind {kind}, {}; it fires first at {first}{both}", definition.name, spec::words(&definition.spec));
        if !self.agreed(&says, yes)? {
            return self.not_done(&says);
        }
        match self.schedules.create(&definition, &times, now, &self.config.operator, mirrored).await? {
            Made::Created(schedule) => self.done(schedule).await,
            Made::Exists(there) => Err(format!("account {account} has a schedule `{}` already, {}; change that one, or choose another name", definition.name, there.id).into()),
        }
    }

    async fn change(&self, named: &str, text: &str, yes: bool) -> Outcome {
        let change = Change::parse(text.as_bytes()).map_err(told)?;
        let (now, before) = (self.schedules.now().await?, self.find(named).await?);
        let version = change.version.unwrap_or(before.version);
        let after = before.definition.with(change, self.config.http.max_payload_bytes, now).map_err(told)?;
        let says = format!("schedule {} of account {} becomes: {}", after.name, after.account, spec::words(&after.spec));
        if !self.agreed(&says, yes)? {
            return self.not_done(&says);
        }
        self.granted(before.id, Some(version), Wish::Become(Box::new(after))).await
    }

    async fn grant(&self, named: &str, wish: Wish, says: &str, yes: bool) -> Outcome {
        let schedule = self.find(named).await?;
        let says = format!("schedule {} of account {}: {says}", schedule.definition.name, schedule.definition.account);
        if !self.agreed(&says, yes)? {
            return self.not_done(&says);
        }
        self.granted(schedule.id, None, wish).await
    }

    async fn granted(&self, id: Uuid, version: Option<i64>, wish: Wish) -> Outcome {
        match self.schedules.grant(id, version, &wish, &self.config.operator).await? {
            Granted::Done(schedule) => self.done(*schedule).await,
            Granted::Version(now) => Err(format!("schedule {id} was changed meanwhile, its version is {now}; look at it and repeat the command").into()),
            Granted::Unknown => Err(format!("there is no schedule {id} any longer").into()),
        }
    }

    async fn trigger(&self, named: &str, token: Option<String>, yes: bool) -> Outcome {
        let schedule = self.find(named).await?;
        let (account, name) = (&schedule.definition.account, &schedule.definition.name);
        let says = format!("schedule {name} of account {account} runs now, beside its times");
        if !self.agreed(&says, yes)? {
            return self.not_done(&says);
        }
        let token = token.unwrap_or_else(|| Uuid::new_v4().to_string());
        let run = interaction_id(account, &key_of_trigger(schedule.id, &token));
        match self.schedules.trigger(schedule.id, &token).await?.as_deref() {
            Some("full") => Err("100 of its runs were asked for and wait; look at why it does not fire".into()),
            None => Err(format!("there is no schedule {} any longer", schedule.id).into()),
            Some(answer) if self.json => {
                print_json(&json!({ "done": true, "answer": answer, "id": run, "token": token }))?;
                Ok(ExitCode::SUCCESS)
            }
            Some(_) => {
                println!("a router enqueues it as {run}, or records why not; `crossover schedule show {}` tells", schedule.id);
                Ok(ExitCode::SUCCESS)
            }
        }
    }

    async fn delete(&self, named: &str, yes: bool) -> Outcome {
        let schedule = self.find(named).await?;
        let (account, name) = (&schedule.definition.account, &schedule.definition.name);
        let says = format!("schedule {name} of account {account} is deleted; what it has enqueued stays, and runs");
        if !self.agreed(&says, yes)? {
            return self.not_done(&says);
        }
        let deleted = self.schedules.delete(schedule.id).await?;
        match self.json {
            true => print_json(&json!({ "done": true, "id": schedule.id, "was_there": deleted }))?,
            false => println!("deleted"),
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn view(&self, schedule: Schedule, next: usize, runs: Option<Vec<RunRow>>) -> Result<View, Failure> {
        let stand = self.mirrors.of(&[schedule.id]).await?.remove(&schedule.id);
        Ok(View::of(schedule, next, runs).mirrored(stand))
    }

    async fn find(&self, named: &str) -> Result<Schedule, Failure> {
        let found = match (named.parse::<Uuid>(), named.split_once('/')) {
            (Ok(id), _) => self.schedules.get(id).await?,
            (Err(_), Some((account, name))) => self.schedules.find(account, name).await?,
            (Err(_), None) => return Err(format!("`{named}` names no schedule; write its id, or ACCOUNT/NAME").into()),
        };
        found.ok_or_else(|| format!("there is no schedule {named}; `crossover schedule list` has them").into())
    }

    fn agreed(&self, says: &str, yes: bool) -> std::io::Result<bool> {
        if !self.json {
            println!("{says}");
        }
        if yes || self.json || !std::io::stdin().is_terminal() {
            return Ok(yes);
        }
        print!("do it? [y/N] ");
        std::io::stdout().flush()?;
        let mut answer = String::new();
        std::io::stdin().read_line(&mut answer)?;
        Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
    }

    fn not_done(&self, says: &str) -> Outcome {
        match self.json {
            true => print_json(&json!({ "done": false, "would": says }))?,
            false => println!("nothing was changed; repeat with --yes"),
        }
        Ok(ExitCode::from(flip::NOT_DONE))
    }

    async fn done(&self, schedule: Schedule) -> Outcome {
        let view = self.view(schedule, 10, None).await?;
        match self.json {
            true => print_json(&json!({ "done": true, "schedule": view }))?,
            false => spec::show(&view),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(file: &PathBuf) -> Result<String, Failure> {
    let read = match file.as_os_str() == "-" {
        true => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map(|_| text)
        }
        false => std::fs::read_to_string(file),
    };
    read.map_err(|error| format!("{} can't be read: {error}", file.display()).into())
}

/// Every fault on a line of its own.
fn told(error: RequestError) -> Failure {
    match error {
        RequestError::Invalid(faults) => {
            let lines: Vec<String> = faults.iter().map(|Fault { field, message }| format!("\n  {field} {message}")).collect();
            format!("not accepted:{}", lines.concat()).into()
        }
        other => other.to_string().into(),
    }
}
