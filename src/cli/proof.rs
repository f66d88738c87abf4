//! What `demo` and `replay` print in the end: how callers fared, and the verdict, as tables or as one document.

mod compared;

use std::time::Duration;

use comfy_table::{Cell, CellAlignment, Color, Table};
use serde::Serialize;

pub(super) use compared::Compared;

use super::table;
use crate::proof::{Answers, Refusal, Runner, Settled, Verdict, judge};

/// Everything that a run proved.
#[derive(Serialize)]
pub(super) struct Proof {
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Enqueues that were refused for good.
    pub refused: Vec<Refusal>,
    /// Enqueues that never had a definite answer.
    pub unanswered: Vec<Refusal>,
    /// Requests to the runner that are no executor call.
    pub malformed: Vec<String>,
    /// How the accepted ones ended, by what the API says.
    pub settled: Settled,
    /// How long callers waited for an answer.
    pub answers_ms: Quantiles,
    /// Requests that callers repeated with the same key.
    pub repeats: u64,
    /// Whether every promise was kept.
    pub kept: bool,
}

/// Half, 95 and 99 of 100 were faster.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Quantiles {
    /// Of microseconds, in milliseconds.
    fn of(mut micros: Vec<u64>) -> Self {
        micros.sort_unstable();
        let at = |share: f64| micros.get((micros.len() as f64 * share) as usize).map_or(0.0, |us| *us as f64 / 1_000.0);
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
    }
}

impl Proof {
    /// Judges what was answered and seen so far.
    pub fn of(answers: Answers, runner: &Runner, settled: Settled) -> Self {
        let Answers { accepted, refused, unanswered, repeats, latency } = answers;
        let verdict = judge(&accepted, &runner.calls());
        let malformed = runner.malformed();
        let answers_ms = Quantiles::of(latency);
        let whole = refused.is_empty() && unanswered.is_empty() && malformed.is_empty() && settled.unended.is_empty();
        let kept = verdict.is_clean() && whole;
        Self { verdict, refused, unanswered, malformed, settled, answers_ms, repeats, kept }
    }

    /// The last table: what was promised, and how often it was broken.
    pub fn print(&self, colours: bool) {
        let v = &self.verdict;
        let waited = self.settled.took.as_secs_f64();
        println!(
            "\nAnswers to callers: p50 {:.1} ms, p95 {:.1} ms, p99 {:.1} ms; {} requests repeated. After the last one it took \
            {waited:.1} s until everything had ended.",
            self.answers_ms.p50, self.answers_ms.p95, self.answers_ms.p99, self.repeats
        );
        let ends: Vec<_> = self.settled.ended.iter().map(|(how, count)| format!("{count} {how}")).collect();
        println!("Ends, looked up: {}{}.", ends.join(", "), self.unpinned());
        println!(
            "Seen by the runner: {} calls; {} interactions used up their attempts, {} succeeded more than once (at least once is the promise){}.",
            v.calls,
            v.used_up,
            v.repeated,
            if v.foreign > 0 { format!(", {} are not of this run", v.foreign) } else { String::new() }
        );
        let mut rows = numbers(&["VERDICT", "COUNT"]);
        rows.add_row([Cell::new("accepted"), number(v.accepted)]);
        rows.add_row([Cell::new("executed on temporal"), number(v.executed.temporal)]);
        rows.add_row([Cell::new("executed on postgres"), number(v.executed.postgres)]);
        for (promise, broken) in v.promises().into_iter().chain(self.others()) {
            let (text, colour) =
                if broken == 0 { ("0".to_owned(), Color::Green) } else { (broken.to_string(), Color::Red) };
            let cell = Cell::new(text).set_alignment(CellAlignment::Right);
            rows.add_row([Cell::new(promise), if colours { cell.fg(colour) } else { cell }]);
        }
        println!("\n{}\n", rows.trim_fmt());
        self.print_examples();
        match self.kept {
            true => println!("Every promise was kept."),
            false => println!("A PROMISE WAS BROKEN."),
        }
    }

    fn unpinned(&self) -> String {
        match self.settled.unpinned {
            0 => String::new(),
            count => format!(", {count} in stage off, which only Temporal and the runner know of"),
        }
    }

    fn others(&self) -> [(&'static str, u64); 4] {
        [
            ("accepted, but not ended", self.settled.unended.len() as u64),
            ("enqueued without an answer", self.unanswered.len() as u64),
            ("enqueued and refused", self.refused.len() as u64),
            ("runner called wrongly", self.malformed.len() as u64),
        ]
    }

    fn print_examples(&self) {
        for (promise, examples) in &self.verdict.examples {
            examples.iter().for_each(|example| println!("{promise}: {example}"));
        }
        self.settled.unended.iter().take(5).for_each(|(id, state)| println!("not ended: {id}: {state}"));
        for Refusal { account, key, said } in self.unanswered.iter().chain(&self.refused).take(5) {
            println!("not accepted: key {key} of {account}: {said}");
        }
        self.malformed.iter().take(5).for_each(|problem| println!("wrong call: {problem}"));
    }
}

/// A table whose first column is a name and whose others are numbers.
pub(super) fn numbers(header: &[&str]) -> Table {
    let mut table = table(header);
    table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}

/// A count, with its thousands apart.
pub(super) fn number(count: u64) -> Cell {
    let digits = count.to_string();
    let parts: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    Cell::new(parts.join(",")).set_alignment(CellAlignment::Right)
}

/// `12.3 s`.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
