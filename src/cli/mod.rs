//! The command line. Each subcommand is a file here with `Args` (its first doc line is its help) and
//! `run(Args, Context) -> Outcome`; one line in `commands!` adds it.

use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;

use crate::config::{Config, ConfigFaults};
use crate::ledger::LedgerError;
use crate::provision::Progress;

/// What a subcommand comes to: an exit code, or an error that is printed and exits with 1.
pub type Outcome = Result<ExitCode, Box<dyn Error + Send + Sync>>;

/// Moves a task queue from Temporal to Postgres, account by account, without downtime.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(flatten)]
    context: Context,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand gets.
#[derive(Debug, Clone, Args)]
pub struct Context {
    /// The configuration (default: crossover.toml here, if there is one)
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON document for machines
    #[arg(long, global = true)]
    pub json: bool,
}

/// Declares the subcommands: the variant, the module that holds it, and the feature without which there is none.
macro_rules! commands {
    ($($(#[$meta:meta])* $variant:ident = $module:ident $(if $feature:literal)?),+ $(,)?) => {
        $($(#[cfg(feature = $feature)])? mod $module;)+

        #[derive(Debug, Subcommand)]
        enum Command { $($(#[cfg(feature = $feature)])? $(#[$meta])* $variant($module::Args)),+ }

        impl Command {
            async fn run(self, context: Context) -> Outcome {
                match self { $($(#[cfg(feature = $feature)])? Command::$variant(args) => $module::run(args, context).await),+ }
            }
        }
    };
}

mod flip;
mod proof;
mod way_back;

commands! {
    Arm = arm,
    Bench = bench,
    Complete = complete,
    Cutover = cutover,
    Decisions = decisions,
    Demo = demo if "temporal",
    Disarm = disarm,
    Doctor = doctor,
    Group = group,
    Handover = handover,
    Migrate = migrate,
    Override = over_ride,
    Preview = preview,
    Replay = replay,
    Report = report,
    Resolve = resolve,
    Rollback = rollback,
    Routers = routers,
    Schedule = schedule,
    Serve = serve,
    Shadow = shadow,
    Status = status,
    Tasks = tasks,
    Token = token,
    Unknown = unknown,
    Weight = weight,
    Why = why,
    #[command(hide = true)]
    Servers = servers,
}

/// The whole program. It is here and not in `main.rs` so that the futures of all subcommands are compiled once, with the
/// library, and not again with the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli.run()),
        Err(error) => {
            eprintln!("crossover: no threads can be started ({error}); see the limits of this user and machine");
            ExitCode::FAILURE
        }
    }
}

impl Cli {
    /// Runs the subcommand. An error goes to stderr, or with `--json` to stdout as the one document.
    pub async fn run(self) -> ExitCode {
        let json = self.context.json;
        match self.command.run(self.context).await {
            Ok(code) => code,
            Err(error) if json => {
                // Nobody is left to tell when stdout is closed.
                let _ = print_json(&serde_json::json!({ "error": error.to_string() }));
                ExitCode::FAILURE
            }
            Err(error) => {
                eprintln!("crossover: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

impl Context {
    /// The configuration, checked whole.
    pub fn load(&self) -> Result<Config, ConfigFaults> {
        Config::load(self.config.as_deref())
    }

    /// Bars or lines on stderr, which machines don't read.
    pub fn progress(&self) -> Progress {
        if self.json { Progress::silent() } else { Progress::stderr() }
    }
}

/// A table without lines whose columns line up, as wide as the terminal.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    table.set_header(header);
    table
}

/// Says what would be done, and asks on a terminal unless it was agreed to before.
fn agree(what: &str, yes: bool, json: bool) -> std::io::Result<bool> {
    if !json {
        println!("{what}");
    }
    if yes {
        return Ok(true);
    }
    if json || !std::io::stdin().is_terminal() {
        return Ok(false);
    }
    flip::ask()
}

/// Nothing was done, for nobody agreed.
fn not_done(report: &impl Serialize, json: bool) -> Outcome {
    match json {
        true => print_json(report)?,
        false => println!("nothing was changed; repeat with --yes"),
    }
    Ok(ExitCode::from(flip::NOT_DONE))
}

/// What Postgres said of something that it was asked to change, in its own words.
fn refused(error: LedgerError) -> Box<dyn Error + Send + Sync> {
    let LedgerError::Refused(error) = &error else { return error.into() };
    match error.as_database_error() {
        Some(said) => said.message().to_owned().into(),
        None => error.to_string().into(),
    }
}

/// Prints a document and a line end.
pub fn print_json(document: &impl Serialize) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Cli::command().debug_assert();
    }
}
