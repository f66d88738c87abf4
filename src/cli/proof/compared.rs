//! How a run of `demo` or `replay` ends: with what the comparator makes of it.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::super::report::show;
use crate::comparator;
use crate::config::Config;
use crate::ledger::Ledger;
use crate::report::{self, Question, Report};

/// The report on a run. Whatever keeps it from being made breaks no promise of the bridge.
#[derive(Serialize)]
pub(in crate::cli) struct Compared {
    report: Option<Report>,
    /// Interactions of the run that had no verdict in time; none where the comparator had not come so far.
    unjudged: Option<u64>,
    /// Why there is no report.
    error: Option<String>,
}

/// The heaviest lines; a run has hundreds.
const LINES: usize = 10;

impl Compared {
    /// Waits until the comparator has judged the run that `began`, at most for `patience`, and reports on it.
    pub(in crate::cli) async fn of(ledger: &Ledger, config: &Config, began: Instant, patience: Duration) -> Self {
        let unjudged = match comparator::caught_up(ledger.pool(), chrono::Utc::now(), patience).await {
            Ok(left) => left,
            Err(error) => return Self::without(error.to_string()),
        };
        // The clocks of this process and of the database may differ by a little.
        let since = began.elapsed() + Duration::from_secs(1);
        let question = Question { account: None, kind: None, stage: None, since, limit: LINES };
        match report::read(ledger, config, &question).await {
            Ok(report) => Self { report: Some(report), unjudged, error: None },
            Err(error) => Self::without(error.to_string()),
        }
    }

    /// There is none, and why.
    pub(in crate::cli) fn without(error: String) -> Self {
        Self { report: None, unjudged: None, error: Some(error) }
    }

    pub(in crate::cli) fn print(&self, colours: bool) {
        println!("\nWhat the comparator says:");
        if let Some(report) = &self.report {
            show(report, colours);
        }
        match (&self.error, self.unjudged) {
            (Some(error), _) => println!("There is no report: {error}"),
            (None, None) => println!("The comparator has not come to the end of the run; ask crossover report again."),
            (None, Some(0)) => {}
            (None, Some(left)) => println!("{left} interactions had no verdict in time; ask crossover report again."),
        }
    }
}
