//! `crossover report`: how the two sides compare.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{Cell, CellAlignment, Color, Table};

use super::proof::{number, numbers};
use super::{Context, Outcome, print_json, table};
use crate::interaction::Stage;
use crate::report::{self, Answer, Line, Quantiles, Question, Report};

/// Compare the two sides: samples, coverage, divergences, latency and a verdict, by account and kind
///
/// It is about what was pinned since --since, in shadow and live. A pass needs enough samples, coverage, a comparator at
/// work and a decided latency test; an unknown is not a pass. Exits with 0 whatever it finds, unless --fail-on says
/// otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this account
    #[arg(long)]
    account: Option<String>,
    /// Only this kind
    #[arg(long)]
    kind: Option<String>,
    /// Only what was pinned in this stage
    #[arg(long)]
    stage: Option<Stage>,
    /// What was pinned within so long; latencies count from the beginning of that day (UTC)
    #[arg(long, default_value = "24h", value_parser = humantime::parse_duration)]
    since: Duration,
    /// So many lines at most, the heaviest first
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Exit with 3 where a line (one that is left out, too) is this or worse; without a single line it is inconclusive
    #[arg(long, value_name = "VERDICT")]
    fail_on: Option<FailOn>,
}

/// What a caller, a pipeline for instance, does not accept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Only a fail.
    Fail,
    /// Whatever is no pass.
    Inconclusive,
}

/// Not 1, which is an error, and not 2, which is a wrong argument.
const NOT_ACCEPTED: u8 = 3;

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    let Args { account, kind, stage, since, limit, fail_on } = args;
    let found = report::read(&ledger, &config, &Question { account, kind, stage, since, limit }).await?;
    match context.json {
        true => print_json(&found)?,
        false => show(&found, std::io::stdout().is_terminal()),
    }
    Ok(if accepted(found.total.verdict(), fail_on) { ExitCode::SUCCESS } else { ExitCode::from(NOT_ACCEPTED) })
}

fn accepted(verdict: Answer, fail_on: Option<FailOn>) -> bool {
    match fail_on {
        None => true,
        Some(FailOn::Fail) => verdict != Answer::Fail,
        Some(FailOn::Inconclusive) => verdict == Answer::Pass,
    }
}

/// Prints a report as tables.
pub(super) fn show(report: &Report, colours: bool) {
    println!("Pinned since {}.{}", report.since.format("%F %T UTC"), comparator(report));
    if report.lines.is_empty() {
        println!("Nothing was pinned in shadow or live: there is nothing to compare, and nothing is known.");
    } else {
        println!("\n{}", samples(report, colours).trim_fmt());
    }
    if report.more > 0 {
        println!("… and {} more; --limit shows them, --account narrows", report.more);
    }
    if report.lines.iter().any(|line| line.latency.is_some()) {
        println!("\n{}", latencies(report).trim_fmt());
        println!("In ms, half / 95 / 99 of 100; START is from due to dequeued, RUN from dequeued to ended; since {}.", report.latencies_since.format("%F"));
    }
    if report.lines.iter().any(|line| !line.divergences.is_empty()) {
        println!("\n{}", divergences(report).trim_fmt());
    }
    for line in report.lines.iter().filter(|line| line.verdict != Answer::Pass) {
        println!("{}: {}: {}", name(line), line.verdict.as_str(), line.why.join("; "));
    }
    if report.one_sided > 0 {
        println!("{} more were pinned in off or complete, where there is one side only.", report.one_sided);
    }
}

fn comparator(report: &Report) -> String {
    match &report.comparator {
        None => " No comparator has ever run.".to_owned(),
        Some(c) => format!(" The comparator was heard of {:.0} s ago and is {:.0} s behind.", c.silent_seconds, c.lag_seconds),
    }
}

fn name(line: &Line) -> String {
    format!("{}/{} {}", line.account, line.kind, line.stage)
}

const VERDICTS: [&str; 6] = ["matched", "diverged", "in_flight", "dropped", "not_comparable", "incomplete"];

fn samples(report: &Report, colours: bool) -> Table {
    let mut rows = numbers(&[
        "ACCOUNT", "KIND", "STAGE", "PINNED", "JUDGED", "COVERAGE", "MATCHED", "DIVERGED", "IN FLIGHT", "DROPPED",
        "NOT COMPARABLE", "INCOMPLETE", "VERDICT",
    ]);
    rows.column_iter_mut().take(3).for_each(|column| column.set_cell_alignment(CellAlignment::Left));
    for line in &report.lines {
        let mut row = vec![Cell::new(&line.account), Cell::new(&line.kind), Cell::new(&line.stage)];
        row.extend([number(line.pinned as u64), number(line.judged as u64), right(percent(line.coverage))]);
        row.extend(VERDICTS.map(|verdict| number(line.verdicts.get(verdict).copied().unwrap_or(0) as u64)));
        row.push(answer(line.verdict, colours));
        rows.add_row(row);
    }
    let total = &report.total;
    let mut row = vec![Cell::new("TOTAL"), Cell::new(format!("{} lines", total.lines)), Cell::new("")];
    let coverage = (total.pinned > 0).then(|| (total.judged as f64 / total.pinned as f64).min(1.0));
    row.extend([number(total.pinned as u64), number(total.judged as u64), right(percent(coverage))]);
    row.extend(VERDICTS.map(|verdict| number(total.verdicts.get(verdict).copied().unwrap_or(0) as u64)));
    row.push(right(format!("{} pass, {} fail, {} inconclusive", total.pass, total.fail, total.inconclusive)));
    rows.add_row(row);
    rows
}

fn answer(answer: Answer, colours: bool) -> Cell {
    let cell = right(answer.as_str().to_owned());
    let colour = match answer {
        Answer::Pass => Color::Green,
        Answer::Fail => Color::Red,
        Answer::Inconclusive => Color::Yellow,
    };
    if colours { cell.fg(colour) } else { cell }
}

fn latencies(report: &Report) -> Table {
    let mut rows = numbers(&["LATENCY", "PAIRS", "START TEMPORAL", "START POSTGRES", "RUN TEMPORAL", "RUN POSTGRES", "TEST"]);
    for line in &report.lines {
        let Some(latency) = &line.latency else { continue };
        let (temporal, postgres) = (&latency.temporal, &latency.postgres);
        rows.add_row([
            Cell::new(name(line)),
            number(latency.pairs),
            quantiles(temporal.start),
            quantiles(postgres.start),
            quantiles(temporal.run),
            quantiles(postgres.run),
            right(latency.answer.as_str().to_owned()),
        ]);
    }
    rows
}

fn divergences(report: &Report) -> Table {
    let mut rows = table(&["DIVERGED", "CLASS", "COUNT", "NEWEST", "NEXT"]);
    for line in &report.lines {
        for found in &line.divergences {
            let examples: Vec<_> = found.examples.iter().map(ToString::to_string).collect();
            rows.add_row([
                Cell::new(name(line)),
                Cell::new(&found.class),
                number(found.count as u64),
                Cell::new(examples.join("\n")),
                Cell::new(&found.next),
            ]);
        }
    }
    rows
}

fn quantiles(quantiles: Option<Quantiles>) -> Cell {
    right(quantiles.map_or("-".to_owned(), |q| format!("{:.1} / {:.1} / {:.1}", q.p50, q.p95, q.p99)))
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipeline_says_what_it_does_not_accept() {
        for verdict in [Answer::Pass, Answer::Fail, Answer::Inconclusive] {
            assert!(accepted(verdict, None));
            assert_eq!(accepted(verdict, Some(FailOn::Fail)), verdict != Answer::Fail);
            assert_eq!(accepted(verdict, Some(FailOn::Inconclusive)), verdict == Answer::Pass);
        }
    }
}
