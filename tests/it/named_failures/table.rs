//! docs/named-failures.md names tests that exist, and every failure that the bridge was built for.

use std::collections::HashSet;
use std::path::Path;

const PAGE: &str = include_str!("../../../docs/named-failures.md");

/// The list that the protocol was drawn up against. Of an entry with several cases each is a row.
const FAILURES: &[&str] = &[
    "crash before the pin commits",
    "crash after the commit and before the start",
    "start timed out but succeeded",
    "caller's future dropped between pin and start",
    "flip while both copies wait",
    "flip with handover",
    "handover racing a claim, the claim first",
    "handover racing a claim, the handover first",
    "three flips within a second",
    "two routers with different flags and one key, at once",
    "two routers with different flags and one key, after each other",
    "a key first seen in `off` and repeated in `live`",
    "flag store down at start",
    "flag store down later",
    "ledger down in shadow, never armed",
    "ledger down when armed",
    "ledger hanging rather than down",
    "worker paused past its lease, on Postgres",
    "worker paused past its lease, on Temporal",
    "crash after the effect and before the report",
    "redelivered activity",
    "workflow reset by an operator after a handover",
    "outbox replayed after Temporal forgot the workflow",
    "cutover and rollback while a series runs",
    "two of a series in one batch",
    "cancel during handover",
    "Temporal down with owner Temporal",
    "Temporal down with owner Postgres",
    "Temporal back with a flood",
    "worker clocks five seconds apart",
    "comparator restarted in the middle",
    "two operators rolling back at once",
    "poison payload on the shadow side",
    "one router partitioned while arming",
    "a router restarted without its disk while arming",
    "an unpinned start in flight while its router is asked to acknowledge",
    "a series workflow with pending signals while it is reconciled",
    "flip to `off` with undelivered pins",
    "`live` to `complete` and back with a series in the middle",
    "handover asked for twice, by two operators",
    "disk full under Postgres (needs root, for it mounts a small one)",
    "read-only Postgres",
    "connection pool exhausted",
    "Postgres restarted in the middle of every step",
];

/// The rows of the tables that say what stages a failure: the failure, and the tests.
fn rows() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
    PAGE.split("\n## ").filter(|section| section.contains("| failure | staged by |")).flat_map(|section| {
        let rows = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| failure"));
        rows.filter(|line| !line.starts_with("| ---")).map(|row| {
            let mut cells = row.split(" | ");
            let failure = cells.next().unwrap().trim_start_matches("| ");
            (failure, cells.next().unwrap().split('`').skip(1).step_by(2).collect())
        })
    })
}

#[test]
fn every_test_that_the_page_of_named_failures_names_is_one() {
    for (failure, tests) in rows() {
        assert!(!tests.is_empty(), "nothing stages: {failure}");
    }
    assert!(tests_named_on(PAGE) > 80, "the page was read");
}

#[test]
fn every_test_that_the_page_of_task_states_names_is_one() {
    let page = include_str!("../../../docs/task-states.md");
    assert!(tests_named_on(page) > 30, "the page was read");
}

/// How many tests a page names; each of them must be one.
fn tests_named_on(page: &str) -> usize {
    let mut known = HashSet::new();
    tests_below(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")), &mut known);
    // Whatever looks like a test's name anywhere on the page.
    let named: Vec<_> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.matches('_').count() > 3 && !name.contains(' '))
        .collect();
    let unknown: Vec<_> = named.iter().filter(|name| !known.contains(**name)).collect();
    assert!(unknown.is_empty(), "no tests: {unknown:#?}");
    named.len()
}

#[test]
fn every_failure_that_the_protocol_was_drawn_up_against_is_staged() {
    let staged: HashSet<&str> = rows().map(|(failure, _)| failure).collect();
    let missing: Vec<_> = FAILURES.iter().filter(|failure| !staged.contains(**failure)).collect();
    assert!(missing.is_empty(), "nothing stages {missing:#?}");
}

/// The names of the functions that stand below a `#[test]`, a `#[tokio::test]` or the like.
fn tests_below(folder: &Path, names: &mut HashSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let (text, mut is_test) = (std::fs::read_to_string(&path).unwrap(), false);
            for line in text.lines().map(str::trim) {
                match line.split_once("fn ").filter(|_| !line.starts_with("//")) {
                    Some((_, named)) if is_test => {
                        names.extend(named.split_once('(').map(|(name, _)| name.to_owned()));
                        is_test = false;
                    }
                    _ => is_test |= line.starts_with("#[test") || line.starts_with("#[tokio::test"),
                }
            }
        }
    }
}
