//! What `crossover doctor` says of Unleash.

use std::process::Stdio;

use serde_json::Value;

use crate::servers;

/// The check of the flags, with everything else already there.
async fn check(url: &str, token: &str) -> (String, String) {
    let folder = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(["doctor", "--json"]).current_dir(folder.path()).stdin(Stdio::null());
    command.env("CROSSOVER_FLAGS_SOURCE", "unleash").env("CROSSOVER_FLAGS_URL", url);
    command.env("CROSSOVER_FLAGS_TOKEN", token).env("CROSSOVER_POSTGRES_URL", &servers::postgres().await.url);
    #[cfg(feature = "temporal")]
    command.env("CROSSOVER_TEMPORAL_ADDRESS", &servers::temporal().await.address);
    let output = command.output().await.unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let flags = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "flags").unwrap();
    (flags["state"].as_str().unwrap().to_owned(), flags["detail"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn doctor_says_whether_unleash_answers_takes_the_token_and_has_the_flags() {
    let unleash = servers::unleash().await;
    let (state, detail) = check(&unleash.url, &unleash.backend_token).await;
    assert!(state == "ok" && detail.contains("has the four flags, revision unleash:"), "{detail}");

    let (state, detail) = check(&unleash.url, "*:development.hunter2").await;
    assert!(state == "fault" && detail.contains("flags.token (401"), "{detail}");
    assert!(!detail.contains("hunter2"), "{detail}");

    let (state, detail) = check("http://127.0.0.1:9", &unleash.backend_token).await;
    assert!(state == "fault" && detail.contains("can't be reached"), "{detail}");

    let empty = servers::empty_unleash(&servers::database().await).await;
    let (state, detail) = check(&empty.url, &empty.backend_token).await;
    assert!(
        state == "fault" && detail.contains("none of the four flags") && detail.contains("docs/flags.md"),
        "{detail}"
    );
}
