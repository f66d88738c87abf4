//! What somebody with a faulty configuration sees.

use std::process::Command;

use serde_json::Value;

#[test]
fn three_faults_are_reported_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("crossover.toml");
    std::fs::write(&file, "[worker]\nslot = 3\nlease = \"soon\"\n[http]\nlisten = \"everywhere\"\n").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    let output = command.args(["doctor", "--json", "--config"]).arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter();
    let faults: Vec<_> =
        checks.filter(|check| check["state"] == "fault").map(|c| c["detail"].as_str().unwrap()).collect();
    assert_eq!(faults.len(), 3, "{report:#}");
    for (found, expected) in [("worker.slot", "`worker.slots`"), ("worker.lease", "\"15s\""), ("http.listen", "port")] {
        let named = faults.iter().any(|fault| fault.starts_with(found) && fault.contains(expected));
        assert!(named, "{found} is missing in {faults:#?}");
    }
}
