//! What the demo prints in the end.

use std::time::Duration;

use comfy_table::{Cell, CellAlignment};
use serde::Serialize;

use super::super::proof::{Compared, Proof, number, numbers, seconds};
use super::super::table;
use super::Flip;
use super::cohorts::Cohort;
use crate::app::App;
use crate::interaction::Stage;
use crate::ledger::AttemptSummary;
use crate::proof::{Accepted, BySide, KINDS, Runner, judge};

/// Everything that the demo has to tell; as JSON, one document.
#[derive(Serialize)]
pub struct Report {
    #[serde(flatten)]
    pub(super) proof: Proof,
    cohorts: Vec<CohortLine>,
    flips: Vec<Flip>,
    attempts: Vec<AttemptSummary>,
    provisioned: Duration,
    took: Duration,
    compared: Compared,
}

#[derive(Serialize)]
struct CohortLine {
    cohort: &'static str,
    accounts: usize,
    /// By the flags in force in the router.
    stage: String,
    accepted: u64,
    executed: BySide,
}

impl Report {
    /// Gathers what is told. Needs the app for the flags in force.
    #[expect(clippy::too_many_arguments, reason = "every part of a report comes from somewhere else")]
    pub(super) fn new(
        app: &App,
        cohorts: &[Cohort],
        accepted: &[Accepted],
        runner: &Runner,
        proof: Proof,
        flips: Vec<Flip>,
        attempts: Vec<AttemptSummary>,
        provisioned: Duration,
        took: Duration,
        compared: Compared,
    ) -> Self {
        let cohorts = cohorts.iter().map(|cohort| line(app, cohort, accepted, runner)).collect();
        Self { proof, cohorts, flips, attempts, provisioned, took, compared }
    }

    pub(super) fn print(&self, colours: bool) {
        println!("\n{}", self.flips().trim_fmt());
        println!("\n{}", self.cohorts().trim_fmt());
        println!("\n{}", self.stages().trim_fmt());
        println!("\n{}", self.sides().trim_fmt());
        println!("START is in ms from due to started, without the members of series, who wait for each other.");
        self.proof.print(colours);
        println!("It took {}, of which {} to start the servers.", seconds(self.took), seconds(self.provisioned));
        self.compared.print(colours);
    }

    fn flips(&self) -> comfy_table::Table {
        let mut rows = table(&["AFTER", "FLIP", "IN FORCE IN", "IN FLIGHT: TEMPORAL", "POSTGRES"]);
        for flip in &self.flips {
            rows.add_row([
                right(seconds(flip.at)),
                Cell::new(flip.what),
                right(format!("{} ms", flip.took.as_millis())),
                number(flip.in_flight.temporal),
                number(flip.in_flight.postgres),
            ]);
        }
        rows
    }

    fn cohorts(&self) -> comfy_table::Table {
        let mut rows = table(&["COHORT", "ACCOUNTS", "STANDS AT", "ACCEPTED", "RAN ON TEMPORAL", "RAN ON POSTGRES"]);
        for line in &self.cohorts {
            rows.add_row([
                Cell::new(line.cohort),
                number(line.accounts as u64),
                Cell::new(&line.stage),
                number(line.accepted),
                number(line.executed.temporal),
                number(line.executed.postgres),
            ]);
        }
        rows
    }

    fn stages(&self) -> comfy_table::Table {
        let mut rows = numbers(&["EXECUTED IN STAGE", "ON TEMPORAL", "ON POSTGRES"]);
        for (stage, by) in &self.proof.verdict.executed_by_stage {
            rows.add_row([Cell::new(stage), number(by.temporal), number(by.postgres)]);
        }
        rows
    }

    fn sides(&self) -> comfy_table::Table {
        let mut rows = numbers(&["ATTEMPTS", "ENDED", "MIRRORED", "BOUNDED", "START p50", "p95", "p99"]);
        for a in &self.attempts {
            let what = if a.rehearsal { "rehearsals" } else { "executions" };
            let of_rehearsals = |count: i64| if a.rehearsal { number(count as u64) } else { right("-".to_owned()) };
            rows.add_row([
                Cell::new(format!("{what} on {}", a.side)),
                number(a.attempts as u64),
                of_rehearsals(a.with_outcome),
                of_rehearsals(a.attempts - a.with_outcome),
                millis(a.start_p50_ms),
                millis(a.start_p95_ms),
                millis(a.start_p99_ms),
            ]);
        }
        rows
    }
}

fn line(app: &App, cohort: &Cohort, accepted: &[Accepted], runner: &Runner) -> CohortLine {
    let of_it: Vec<_> = accepted.iter().filter(|one| cohort.accounts.contains(&one.account)).cloned().collect();
    let verdict = judge(&of_it, &runner.calls());
    let stands: std::collections::BTreeSet<Stage> = match app.flags() {
        Some(flags) => {
            let all = cohort.accounts.iter().flat_map(|a| KINDS.iter().map(move |kind| (a, kind)));
            all.map(|(account, kind)| flags.stage(account, kind)).collect()
        }
        None => Default::default(),
    };
    let stage = stands.iter().map(|stage| stage.as_str()).collect::<Vec<_>>().join(", ");
    CohortLine {
        cohort: cohort.name,
        accounts: cohort.accounts.len(),
        stage,
        accepted: verdict.accepted,
        executed: verdict.executed,
    }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

fn millis(ms: Option<f64>) -> Cell {
    right(ms.map_or("-".to_owned(), |ms| format!("{ms:.1}")))
}
