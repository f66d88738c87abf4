//! `crossover doctor`: whether everything that a run needs is there, and what to do where it isn't.

mod checks;
mod database;
#[cfg(feature = "temporal")]
mod temporal;

use std::io::IsTerminal;
use std::process::ExitCode;

use comfy_table::{Cell, Color};
use serde::Serialize;

use super::{Context, Outcome, print_json};

/// Check the configuration, the user, the flags, the cache, Postgres and Temporal, and say what to do
#[derive(Debug, clap::Args)]
pub struct Args {}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Fault,
    /// Another check has to pass first.
    Skipped,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    state: State,
    /// What was found, or what is wrong and what to do.
    detail: String,
}

impl Check {
    fn new(check: &'static str, result: Result<String, String>) -> Self {
        match result {
            Ok(detail) => Self { check, state: State::Ok, detail },
            Err(detail) => Self { check, state: State::Fault, detail },
        }
    }
}

/// See [`Args`].
pub async fn run(_: Args, context: Context) -> Outcome {
    let checks = checks::all(&context).await;
    let sound = checks.iter().all(|check| check.state == State::Ok);
    if context.json {
        print_json(&serde_json::json!({ "ok": sound, "checks": checks }))?;
    } else {
        println!("{}", table(&checks, std::io::stdout().is_terminal()));
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(checks: &[Check], colours: bool) -> String {
    let mut table = super::table(&["CHECK", "STATE", "WHAT TO DO"]);
    for check in checks {
        let (state, colour) = match check.state {
            State::Ok => ("ok", Color::Green),
            State::Fault => ("fault", Color::Red),
            State::Skipped => ("skipped", Color::Yellow),
        };
        let state = if colours { Cell::new(state).fg(colour) } else { Cell::new(state) };
        let todo = if check.state == State::Ok { format!("nothing; {}", check.detail) } else { check.detail.clone() };
        table.add_row([Cell::new(check.check), state, Cell::new(todo)]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_to_do_and_has_no_colours_off_a_terminal() {
        let checks = [Check::new("cache", Ok("found".into())), Check::new("user", Err("add nobody".into()))];
        let shown = table(&checks, false);
        assert!(shown.contains("ok") && shown.contains("nothing; found") && shown.contains("add nobody"), "{shown}");
        assert!(!shown.contains('\u{1b}'), "{shown}");
    }
}
