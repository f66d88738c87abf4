//! Histories that an older version wrote go on under this one. The files were written by a real server: the answer to
//! GetWorkflowExecutionHistory, as it came. Those of [`BEFORE`] are of the version before copies could ask (commit 881fa28);
//! those of [`recorded`] took each branch that the patches `cancel-begun` and `handover` opened, and were written by the test
//! that plays them, with RECORD_HISTORIES=1. Write them anew only for what no released version has written.

use crossover::ledger::{Cancelling, Scope};
use crossover::router::handover;
use crossover::temporal::launcher::LauncherWorkflow;
use crossover::temporal::series::SeriesWorkflow;
use crossover::temporal::wire::series_workflow_id;
use crossover::temporal::workflow::InteractionWorkflow;
use prost::Message;
use temporalio_client::tonic::IntoRequest;
use temporalio_client::{Connection, ConnectionOptions, WorkflowHistory};
use temporalio_common::protos::temporal::api::common::v1::WorkflowExecution;
use temporalio_common::protos::temporal::api::history::v1::history_event::Attributes;
use temporalio_common::protos::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryResponse,
};
use temporalio_sdk::workflow_replayer::{WorkflowReplayer, WorkflowReplayerOptions};

use super::*;

const BEFORE: [(&str, &[u8]); 5] = [
    ("an unpinned copy that waited, was adopted, ran and settled", include_bytes!("histories/adopted.history")),
    ("a pinned copy", include_bytes!("histories/pinned.history")),
    ("an unpinned copy that was retried", include_bytes!("histories/retried.history")),
    ("a copy that still waits", include_bytes!("histories/waiting.history")),
    ("a series of ten, some of them adopted", include_bytes!("histories/series.history")),
];

const CANCELLED: &[u8] = include_bytes!("histories/cancelled.history");
const CANCELLED_MEMBER: &[u8] = include_bytes!("histories/cancelled_member.history");
const HANDED_OVER: &[u8] = include_bytes!("histories/handed_over.history");
const GAVE_WAY: &[u8] = include_bytes!("histories/gave_way.history");

fn recorded() -> [(&'static str, &'static [u8], &'static str); 4] {
    [
        ("a copy that was cancelled while it ran", CANCELLED, "cancel-begun"),
        ("a member that was cancelled while it ran", CANCELLED_MEMBER, "cancel-begun"),
        ("an execution that waited gave way to what was handed over", HANDED_OVER, "handover"),
        ("a rehearsal gave way to what was handed over", GAVE_WAY, "handover"),
    ]
}

pub fn read(bytes: &[u8]) -> GetWorkflowExecutionHistoryResponse {
    GetWorkflowExecutionHistoryResponse::decode(bytes).unwrap()
}

/// Why it can't be replayed, if it can't.
pub async fn replayed(answer: GetWorkflowExecutionHistoryResponse) -> Result<(), String> {
    let history = answer.history.unwrap();
    assert!(history.events.len() > 2 && answer.next_page_token.is_empty());
    let replay = tokio::task::spawn_blocking(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let options = WorkflowReplayerOptions::new()
                .register_workflow::<InteractionWorkflow>()
                .unwrap()
                .register_workflow::<SeriesWorkflow>()
                .unwrap()
                .register_workflow::<LauncherWorkflow>()
                .unwrap();
            let replayer = WorkflowReplayer::new(options.build()).unwrap();
            let replay = replayer.replay_workflow(WorkflowHistory::from(history)).await;
            replay.map(|_| ()).map_err(|error| format!("{error:?}"))
        })
    });
    replay.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_of_the_version_before_are_replayed_without_a_difference() {
    let all = BEFORE.into_iter().chain(recorded().map(|(name, bytes, _)| (name, bytes)));
    for (name, bytes) in all {
        if let Err(error) = replayed(read(bytes)).await {
            panic!("{name}: {error}");
        }
    }
}

/// Else the test above would prove nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_with_another_command_than_the_code_makes_is_not_replayed() {
    let mut other = read(BEFORE[1].1);
    let events = &mut other.history.as_mut().unwrap().events;
    let scheduled = events.iter_mut().find_map(|event| match event.attributes.as_mut() {
        Some(Attributes::ActivityTaskScheduledEventAttributes(scheduled)) => Some(scheduled),
        _ => None,
    });
    scheduled.unwrap().activity_type.as_mut().unwrap().name = "rehearse".into();
    let why = replayed(other).await.expect_err("it was replayed");
    assert!(why.to_lowercase().contains("nondeterminis"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_history_in_which_a_patch_was_not_taken_is_not_replayed_as_if_it_had_been() {
    for (name, bytes, patch) in recorded() {
        // The same history under the name of a patch that nobody knows: the code takes the old way.
        let (patch, unknown) = (patch.as_bytes(), vec![b'x'; patch.len()]);
        let (mut renamed, mut at, mut count) = (bytes.to_vec(), 0, 0);
        while let Some(found) = renamed[at..].windows(patch.len()).position(|part| part == patch) {
            at += found;
            renamed[at..at + patch.len()].copy_from_slice(&unknown);
            count += 1;
        }
        assert!(count > 0, "{name} has no marker");
        let why = replayed(read(&renamed)).await.expect_err(name);
        assert!(why.to_lowercase().contains("nondeterminis"), "{name}: {why}");
    }
}

/// What has been written of a run so far.
pub async fn history(temporal: &str, workflow: &str, run: &str) -> GetWorkflowExecutionHistoryResponse {
    let url: reqwest::Url = format!("http://{temporal}").parse().unwrap();
    let options = ConnectionOptions::new(url).build();
    let request = GetWorkflowExecutionHistoryRequest {
        namespace: "default".into(),
        execution: Some(WorkflowExecution { workflow_id: workflow.into(), run_id: run.into() }),
        ..Default::default()
    };
    let mut service = Connection::connect(options).await.unwrap().workflow_service();
    service.get_workflow_execution_history(request.into_request()).await.unwrap().into_inner()
}

/// Replays what this version has just written, and keeps it where that is asked for.
async fn record(name: &str, patch: &str, written: GetWorkflowExecutionHistoryResponse) {
    let bytes = written.encode_to_vec();
    assert!(bytes.windows(patch.len()).any(|part| part == patch.as_bytes()), "{name} took no branch of {patch}");
    if std::env::var_os("RECORD_HISTORIES").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/arming_temporal/histories");
        std::fs::write(format!("{folder}/{name}.history"), bytes).unwrap();
    }
    replayed(written).await.unwrap_or_else(|error| panic!("{name}: {error}"));
}

async fn run_of(world: &World, workflow: &str) -> String {
    until("the workflow is there", async || world.client.describe(workflow).await.ok().flatten()).await.run_id
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_where_something_is_cancelled_while_it_runs_is_replayed() {
    let world = World::new().await;
    world.runner.shut();
    let series = series_workflow_id(&world.account, "sync", "s");
    for (n, (key, series, name)) in
        [("one", None, "cancelled"), ("member", Some(&series), "cancelled_member")].into_iter().enumerate()
    {
        world.pin(&world.interaction(key, series.map(|_| "s")), Stage::Shadow).await;
        until("it runs", async || (world.runner.keys().len() == n + 1).then_some(())).await;
        let workflow = series.cloned().unwrap_or_else(|| format!("{}:1", world.id(key)));
        let run = run_of(&world, &workflow).await;
        let cancelled = world.ledger.cancel(world.id(key), "not wanted").await.unwrap();
        assert_eq!(cancelled, Some(Cancelling::Asked));
        world.ended(key, Outcome::Cancelled).await;
        if series.is_none() {
            world.closed(key).await;
        }
        record(name, "cancel-begun", history(&world.temporal, &workflow, &run).await).await;
    }
}

/// A member of Postgres's that Temporal knows nothing of is handed over, and takes the turn of the one behind it.
async fn gives_way(stage: Stage, name: &str) {
    let world = World::new().await;
    let first = world.pin(&world.interaction("first", Some("s")), Stage::Complete).await;
    assert_eq!(first.owner, Side::Postgres);
    world.pin(&world.interaction("second", Some("s")), stage).await;
    let workflow = series_workflow_id(&world.account, "sync", "s");
    let run = run_of(&world, &workflow).await;
    until("the second one has its turn", async || {
        let status = world.client.series_status(&world.account, "sync", "s").await.ok()??;
        status.running.filter(|running| running.id == world.id("second")).map(drop)
    })
    .await;
    let scope = Scope { account: world.account.clone(), kind: None, id: Some(world.id("first")) };
    let plan = handover::plan(&world.ledger, scope).await.unwrap();
    assert_eq!(handover::run(&world.ledger, &plan, "test", |_| {}).await.unwrap().moved, 1);
    world.ended("first", Outcome::Succeeded).await;
    if stage == Stage::Shadow {
        world.ended("second", Outcome::Succeeded).await;
    }
    record(name, "handover", history(&world.temporal, &workflow, &run).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_where_an_execution_gives_way_to_what_is_handed_over_is_replayed() {
    gives_way(Stage::Shadow, "handed_over").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_where_a_rehearsal_gives_way_to_what_is_handed_over_is_replayed() {
    gives_way(Stage::Live, "gave_way").await;
}
