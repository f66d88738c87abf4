//! The demo and the replay as a user starts them.

use std::path::Path;
use std::process::{Command, Output};

fn crossover(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_crossover")).args(args).current_dir(dir).output().unwrap()
}

#[test]
#[cfg(feature = "temporal")]
fn a_small_demo_keeps_every_promise_and_prints_one_document() {
    let dir = tempfile::tempdir().unwrap();
    let ran = crossover(dir.path(), &["demo", "--accounts", "10", "--interactions", "150", "--seed", "7", "--json"]);
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    let report: serde_json::Value = serde_json::from_str(&said).unwrap();
    let count = |pointer| report.pointer(pointer).and_then(serde_json::Value::as_u64).unwrap();
    assert_eq!(count("/accepted"), 150);
    assert_eq!(count("/executed/temporal") + count("/executed/postgres"), 150);
    assert!(count("/executed/temporal") > 0 && count("/executed/postgres") > 0);
    for promise in ["lost", "run_on_both_sides", "run_off_owner", "series_overlaps", "series_out_of_order", "altered"] {
        assert_eq!(report[promise], 0, "{promise}");
    }
    let compared = &report["compared"]["report"]["total"];
    assert!(compared["judged"].as_u64().unwrap() > 0, "{compared}");
    assert_eq!(compared["classes"], serde_json::json!({}), "a clean demo diverges: {}", report["compared"]);
    assert_eq!(report["flips"].as_array().unwrap().len(), 8);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the demo left something where it was started");
}

#[test]
fn a_trace_cut_in_the_middle_is_refused_before_anything_is_asked_of_serve() {
    let dir = tempfile::tempdir().unwrap();
    let line = r#"{"at_ms":0,"account":"a","kind":"sync","series":"s","key":"1","payload":{"files":1}}"#;
    std::fs::write(dir.path().join("t.ndjson"), format!("{line}\n{}", &line[..40])).unwrap();
    let ran = crossover(dir.path(), &["replay", "t.ndjson", "--url", "http://127.0.0.1:1"]);
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        !ran.status.success() && said.contains("t.ndjson, line 2") && said.contains("nothing was enqueued"),
        "{said}"
    );
}
