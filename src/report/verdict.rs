//! Pass, fail, or not known. Pure. An unknown is never a pass.

pub use crate::comparator::latency::Answer;

/// What is known of an account, kind and stage in a period.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// Interactions pinned.
    pub pinned: i64,
    /// Judged with both sides seen: matched or diverged.
    pub judged: i64,
    /// Diverged.
    pub diverged: i64,
    /// In flight for longer than the bound.
    pub overdue: i64,
    /// Seen with holes: the comparator or an observer was restarted, or lost something.
    pub incomplete: i64,
    /// The latency test's answer, and its numbers; none where there are no pairs.
    pub latency: Option<(Answer, String)>,
    /// Why the comparator can't be relied on at the moment.
    pub comparator: Option<String>,
}

/// How much has to be known. `[report]` of the configuration.
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Fewer judged interactions are too few.
    pub min_samples: i64,
    /// The share that must have been judged, 0 to 1.
    pub min_coverage: f64,
    /// How long something may be in flight, for a person.
    pub in_flight_age: String,
}

/// Decides, and says everything that keeps it from a pass.
pub fn judge(known: &Evidence, bounds: &Bounds) -> (Answer, Vec<String>) {
    let (wrong, unknown) = (faults(known), unknowns(known, bounds));
    let answer = match (wrong.is_empty(), unknown.is_empty()) {
        (false, _) => Answer::Fail,
        (true, false) => Answer::Inconclusive,
        (true, true) => Answer::Pass,
    };
    (answer, wrong.into_iter().chain(unknown).collect())
}

fn faults(known: &Evidence) -> Vec<String> {
    let mut wrong = Vec::new();
    if known.diverged > 0 {
        wrong.push(format!("{} of {} judged diverged", known.diverged, known.judged));
    }
    if let Some((Answer::Fail, numbers)) = &known.latency {
        wrong.push(format!("Postgres starts late: {numbers}"));
    }
    wrong
}

fn unknowns(known: &Evidence, bounds: &Bounds) -> Vec<String> {
    let mut unknown: Vec<String> = known.comparator.iter().cloned().collect();
    if known.pinned == 0 && known.judged == 0 {
        unknown.push("no data".to_owned());
        return unknown;
    }
    if known.judged < bounds.min_samples {
        unknown.push(format!("{} judged, {} are needed", known.judged, bounds.min_samples));
    }
    let coverage = share(known.judged, known.pinned);
    if coverage < bounds.min_coverage {
        unknown.push(format!("{:.1} % judged, {:.0} % are needed", coverage * 100.0, bounds.min_coverage * 100.0));
    }
    if known.incomplete > 0 {
        unknown.push(format!("{} seen with holes: something was restarted or lost", known.incomplete));
    }
    if known.overdue > 0 {
        unknown.push(format!("{} in flight for over {}", known.overdue, bounds.in_flight_age));
    }
    match &known.latency {
        None => unknown.push("no latencies".to_owned()),
        Some((Answer::Inconclusive, numbers)) => unknown.push(format!("latency is not decided: {numbers}")),
        Some(_) => {}
    }
    unknown
}

/// The share of `part` in `whole`, at most 1; 0 of nothing.
pub(super) fn share(part: i64, whole: i64) -> f64 {
    if whole <= 0 { 0.0 } else { (part as f64 / whole as f64).min(1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds() -> Bounds {
        Bounds { min_samples: 100, min_coverage: 0.95, in_flight_age: "10m".into() }
    }

    fn good() -> Evidence {
        let latency = Some((Answer::Pass, "1 of 1000 slow".to_owned()));
        Evidence { pinned: 1_000, judged: 990, latency, ..Evidence::default() }
    }

    fn said(known: Evidence) -> (Answer, String) {
        let (answer, why) = judge(&known, &bounds());
        (answer, why.join("; "))
    }

    #[test]
    fn enough_that_matched_in_time_is_a_pass_and_needs_no_words() {
        assert_eq!(said(good()), (Answer::Pass, String::new()));
    }

    #[test]
    fn one_divergence_is_a_fail_however_much_is_unknown() {
        let (answer, why) = said(Evidence { pinned: 3, judged: 2, diverged: 1, ..Evidence::default() });
        assert_eq!(answer, Answer::Fail);
        assert!(why.starts_with("1 of 2 judged diverged; 2 judged, 100 are needed"), "{why}");
    }

    #[test]
    fn a_late_postgres_is_a_fail_though_nothing_diverged() {
        let known = Evidence { latency: Some((Answer::Fail, "90 of 1000 slow".to_owned())), ..good() };
        assert_eq!(said(known), (Answer::Fail, "Postgres starts late: 90 of 1000 slow".to_owned()));
    }

    #[test]
    fn each_unknown_alone_keeps_it_from_a_pass() {
        let unknowns = [
            (Evidence { comparator: Some("silent".to_owned()), ..good() }, "silent"),
            (Evidence::default(), "no data"),
            (Evidence { pinned: 99, judged: 99, ..good() }, "99 judged"),
            (Evidence { pinned: 2_000, ..good() }, "49.5 % judged"),
            (Evidence { incomplete: 1, ..good() }, "holes"),
            (Evidence { overdue: 1, ..good() }, "over 10m"),
            (Evidence { latency: None, ..good() }, "no latencies"),
            (Evidence { latency: Some((Answer::Inconclusive, "3 of 9".to_owned())), ..good() }, "not decided"),
        ];
        for (known, word) in unknowns {
            let (answer, why) = said(known);
            assert!(answer == Answer::Inconclusive && why.contains(word), "{word}: {answer:?}, {why}");
        }
    }

    #[test]
    fn a_report_without_a_line_is_no_pass() {
        assert_eq!(super::super::Total::default().verdict(), Answer::Inconclusive);
    }
}
