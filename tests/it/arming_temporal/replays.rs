//! Histories that an older version wrote go on under this one. The files were written by the version before copies could ask
//! (commit 881fa28), by a real server: the answer to GetWorkflowExecutionHistory, as it came.

use crossover::temporal::series::SeriesWorkflow;
use crossover::temporal::workflow::InteractionWorkflow;
use prost::Message;
use temporalio_client::WorkflowHistory;
use temporalio_common::protos::temporal::api::workflowservice::v1::GetWorkflowExecutionHistoryResponse;
use temporalio_sdk::workflow_replayer::{WorkflowReplayer, WorkflowReplayerOptions};

const HISTORIES: [(&str, &[u8]); 5] = [
    ("an unpinned copy that waited, was adopted, ran and settled", include_bytes!("histories/adopted.history")),
    ("a pinned copy", include_bytes!("histories/pinned.history")),
    ("an unpinned copy that was retried", include_bytes!("histories/retried.history")),
    ("a copy that still waits", include_bytes!("histories/waiting.history")),
    ("a series of ten, some of them adopted", include_bytes!("histories/series.history")),
];

#[tokio::test(flavor = "multi_thread")]
async fn histories_of_the_version_before_are_replayed_without_a_difference() {
    let replays = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = WorkflowReplayerOptions::new()
                .register_workflow::<InteractionWorkflow>()
                .unwrap()
                .register_workflow::<SeriesWorkflow>()
                .unwrap();
            let replayer = WorkflowReplayer::new(options.build()).unwrap();
            for (name, bytes) in HISTORIES {
                let answer = GetWorkflowExecutionHistoryResponse::decode(bytes).unwrap();
                let history = answer.history.unwrap();
                assert!(history.events.len() > 2, "{name}");
                if let Err(error) = replayer.replay_workflow(WorkflowHistory::from(history)).await {
                    panic!("{name}: {error}");
                }
            }
        });
    });
    replays.await.unwrap();
}
