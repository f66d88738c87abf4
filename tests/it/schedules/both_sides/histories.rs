//! Launchers that an older version started go on under this one. The files in `histories` are what a real server had of launchers of
//! commit dcda61d, the first version with any; the tests that play such launchers wrote them, with RECORD_HISTORIES=1. Write them anew
//! only for what no released version has written.

use prost::Message;
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::workflowservice::v1::GetWorkflowExecutionHistoryResponse;

use super::*;
use crate::arming_temporal::replays::{history, read, replayed};

const RECORDED: [(&str, &[u8]); 2] = [
    ("a launcher that came again", include_bytes!("../histories/came_again.history")),
    ("a launcher that was given up", include_bytes!("../histories/given_up.history")),
];

/// What it came to, and how often it was sent away to come again.
fn ended(answer: &GetWorkflowExecutionHistoryResponse) -> Option<(String, usize)> {
    let events = &answer.history.as_ref()?.events;
    let times = |fired: &&_| matches!(fired, Some(Attributes::TimerFiredEventAttributes(_)));
    let again = events.iter().map(|event| &event.attributes).filter(times).count();
    match &events.last()?.attributes {
        Some(Attributes::WorkflowExecutionCompletedEventAttributes(ended)) => {
            let result = ended.result.as_ref()?.payloads.first()?;
            Some((serde_json::from_slice(&result.data).unwrap(), again))
        }
        _ => None,
    }
}

impl Place {
    /// What Temporal has of a launcher that has ended, and what it came to.
    pub(super) async fn launched(&self, launcher: &str) -> (GetWorkflowExecutionHistoryResponse, String, usize) {
        until(&format!("{launcher} has ended"), async || {
            let run = self.temporal().describe(launcher).await.ok().flatten()?.run_id;
            let written = history(&self.world.temporal, launcher, &run).await;
            let (result, again) = ended(&written)?;
            Some((written, result, again))
        })
        .await
    }
}

/// Whether an activity carries the payload.
fn carries_payload(answer: &GetWorkflowExecutionHistoryResponse) -> bool {
    let events = answer.history.iter().flat_map(|history| &history.events);
    let inputs = events.filter_map(|event| match &event.attributes {
        Some(Attributes::ActivityTaskScheduledEventAttributes(scheduled)) => scheduled.input.as_ref()?.payloads.first(),
        _ => None,
    });
    inputs.into_iter().any(|input| String::from_utf8_lossy(&input.data).contains(r#""payload":{"n":1}"#))
}

/// Replays what this version has just written, and keeps it where that is asked for.
async fn record(name: &str, written: GetWorkflowExecutionHistoryResponse) {
    if std::env::var_os("RECORD_HISTORIES").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/schedules/histories");
        std::fs::write(format!("{folder}/{name}.history"), written.encode_to_vec()).unwrap();
    }
    replayed(written).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn launchers_of_the_version_before_are_replayed_without_a_difference() {
    for (name, bytes) in RECORDED {
        if let Err(error) = replayed(read(bytes)).await {
            panic!("{name}: {error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_of_a_launcher_that_comes_again_is_replayed() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, without_our_scheduler).await;
    let body = json!({ "spec": { "every_ms": 3_000 }, "overlap": "queue_all", "jitter_ms": 2_900 });
    let id = here.make(&node, "s", body).await;
    let mut looked_at = 0;
    let written = loop {
        let runs = here.told(id, looked_at + 1).await;
        let nominal = runs[looked_at].nominal_at.unwrap();
        let tick = tick_of(nominal).to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
        looked_at += 1;
        let (written, result, again) = here.launched(&format!("schedule:{id}-{tick}")).await;
        if (result.as_str(), again) == ("first", 1) {
            break written;
        }
        assert!(looked_at < 20, "none was early");
    };
    assert!(!carries_payload(&written));
    record("came_again", written).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_of_a_launcher_that_is_given_up_is_replayed() {
    let here = Place::at(Stage::Shadow).await;
    let node = here.world.node_with(ALL, without_our_scheduler).await;
    let id = here.make(&node, "s", hourly()).await;
    here.in_step(&node, id).await;
    let mut launch = here.seen(id).await.unwrap().launch.unwrap();
    (launch.token, launch.patience_ms) = (Some("t".to_owned()), 1_500);
    // Somebody has its row for longer than it waits.
    let mut holding = here.world.pool().begin().await.unwrap();
    sqlx::query("select from crossover.schedules for update").execute(&mut *holding).await.unwrap();
    here.temporal().launch(&launch).await.unwrap();
    let (written, result, again) = here.launched(&format!("schedule:{id}!t")).await;
    assert!(result.starts_with("it was given up") && again == 0, "{result}");
    holding.rollback().await.unwrap();
    record("given_up", written).await;
    node.stop().await;
}
