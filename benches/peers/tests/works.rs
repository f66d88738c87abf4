//! Each work runs on a real Postgres with few tasks, and did what it says. No clock is asserted.

use clap::ValueEnum;
use peers::ground::Ground;
use peers::queue::{Peer, Tuning};
use peers::report::{Report, Round};
use peers::server::{SETTINGS, Server};
use peers::works::{Plan, Work};

const TUNING: Tuning = Tuning {
    graphile_concurrency: 20,
    graphile_stream_concurrency: 4,
    graphile_local_queue: 50,
    graphile_local_queues: 1,
    awa_workers: 32,
    awa_partitions: 2,
};

async fn measured(work: Work, tasks: u32) -> Report {
    let bin = std::env::var_os("TEST_POSTGRES_BIN_DIR").map(std::path::PathBuf::from);
    let ground = Ground::of(Server::start(bin.as_deref()).await.unwrap()).await.unwrap();
    let peers = Peer::value_variants().to_vec();
    let plan = Plan { work, peers, tasks, rounds: 1, callers: 4, finished: 30, rate: 200, tuning: TUNING };
    let report = plan.measure(&ground, |_| ()).await.unwrap();
    assert_eq!((report.work.as_str(), report.tasks, report.peers.len()), (work.name().as_str(), tasks, 2));
    ground.clear(&plan.peers).await.unwrap();
    report
}

/// What every peer did in its rounds, which all peers did alike.
fn rounds<T: PartialEq + std::fmt::Debug>(report: &Report, of: impl Fn(&Round) -> T) -> Vec<T> {
    let mut peers = report.peers.iter().map(|peer| peer.rounds.iter().map(&of).collect::<Vec<_>>());
    let first = peers.next().unwrap();
    peers.for_each(|other| assert_eq!(first, other));
    first
}

fn shape(round: &Round) -> (u32, u32, bool) {
    assert!(round.per_second > 0.0 && round.wal_bytes > 0.0, "{round:?}");
    (round.tasks, round.ran_again, round.p50_ms.is_some() && round.p99_ms.is_some())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_burn_down_ends_every_task_once() {
    assert_eq!(rounds(&measured(Work::BurnDown, 2_500).await, shape), [(2_500, 0, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_tasks_are_put_in_by_all_callers_and_run() {
    assert_eq!(rounds(&measured(Work::Enqueue, 200).await, shape), [(200, 0, true)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_are_taken_in_whole() {
    assert_eq!(rounds(&measured(Work::EnqueueBatch, 2_500).await, shape), [(2_500, 0, false)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn latency_is_taken_of_each_task_on_a_fresh_database_and_after_others() {
    let report = measured(Work::Latency, 20).await;
    assert_eq!(rounds(&report, shape), [(20, 0, true), (20, 0, true)]);
    assert_eq!(rounds(&report, |round| round.finished), [Some(0), Some(30)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_is_worked_on_from_its_begin_with_few_and_with_many() {
    let report = measured(Work::Backlog, 23_000).await;
    assert_eq!(rounds(&report, |round| (round.waiting, round.tasks)), [(Some(10_000), 10_000), (Some(23_000), 20_000)]);
    assert!(report.peers.iter().all(|peer| peer.ratio.is_some()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_run_while_a_transaction_is_held_open() {
    let report = measured(Work::HeldOpen, 200).await;
    assert_eq!(rounds(&report, shape), [(200, 0, true)]);
    assert_eq!(rounds(&report, |round| round.minutes.len()), [1]);
}

#[test]
fn our_server_has_the_settings_that_crossover_gives_its_own() {
    let theirs = include_str!("../../../src/provision/postgres.rs");
    let (_, theirs) = theirs.split_once("const SETTINGS: &[&str] = &[").unwrap();
    let (theirs, _) = theirs.split_once("];").unwrap();
    let theirs: Vec<&str> = theirs.split('"').skip(1).step_by(2).collect();
    assert_eq!(theirs, SETTINGS);
}
