//! docs/named-failures.md names tests that exist.

use std::collections::HashSet;
use std::path::Path;

#[test]
fn every_test_that_the_page_of_named_failures_names_is_one() {
    let page = include_str!("../../../docs/named-failures.md");
    let mut known = HashSet::new();
    functions_below(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")), &mut known);
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| ")).collect();
    for row in &rows {
        let staged_by = row.split('|').nth(2).unwrap();
        let unknown: Vec<_> = staged_by.split('`').skip(1).step_by(2).filter(|name| !known.contains(*name)).collect();
        assert!(unknown.is_empty(), "no tests: {unknown:?}");
    }
    assert!(rows.len() > 35, "the list is whole");
}

fn functions_below(folder: &Path, names: &mut HashSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions_below(&path, names);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let name = |line: &str| Some(line.split_once("fn ")?.1.split_once('(')?.0.to_owned());
            names.extend(text.lines().filter_map(name));
        }
    }
}
