//! Workers that die at the worst moment, and whose clocks are wrong.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::*;
use crate::bridge::runner::Rule;
use crate::chaos::gate::Gate;

const LEASE: &str = "1s";
const TAKES_IN: Roles = Roles { router: true, worker: false, relay: true };

fn short(config: &mut crossover::config::Config) {
    config.worker.lease = Duration::from_secs(1);
}

/// The call has had its effect, and the worker can't tell anybody before it dies.
async fn killed_after_the_effect(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(TAKES_IN, short).await;
    let mut database = reqwest::Url::parse(&world.postgres).unwrap();
    let server = format!("{}:{}", database.host_str().unwrap(), database.port().unwrap());
    let (postgres, temporal) = (Gate::to(server).await, Gate::to(world.temporal.clone()).await);
    database.set_port(Some(postgres.address.port())).unwrap();
    let (url, address) = (database.to_string(), temporal.address.to_string());
    let set = [
        ("CROSSOVER_WORKER_LEASE", LEASE),
        ("CROSSOVER_POSTGRES_URL", url.as_str()),
        ("CROSSOVER_TEMPORAL_ADDRESS", address.as_str()),
    ];
    let mut child = Child::serve(&world, "worker", &set).await;
    world.runner.hold("one");
    let policy = json!({ "policy": { "max_attempts": 100, "backoff": { "delays_ms": [50] } } });
    node.accepts(&with(world.request("one"), policy), 201).await;
    world.runner.nth("one", 1).await;
    let gate = if stage == Stage::Live { &postgres } else { &temporal };
    gate.freeze();
    world.runner.release("one");
    until("the call is answered", async || world.runner.of("one")[0].ended).await;
    child.kill();
    // Temporal is not to hand anything to the polls of a dead process.
    gate.cut();
    let heir = world.node_with(Roles { relay: false, ..WORKER }, short).await;
    let story = world.succeeded("one").await;
    let calls = world.runner.of("one");
    assert_eq!(calls.iter().map(|call| call.fence).collect::<Vec<_>>(), [(1, 1), (1, 2)], "{calls:#?}");
    assert_eq!(story.pin.attempts, 2, "what nobody heard of is not recorded");
    world.each_ran_on_its_owner(&["one".to_owned()]).await;
    heir.stop().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_worker_killed_between_the_effect_and_its_report_is_repeated_under_the_same_key() {
    killed_after_the_effect(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporal_worker_killed_between_the_effect_and_its_report_is_repeated_under_the_same_key() {
    killed_after_the_effect(Stage::Shadow).await;
}

/// Makes a process's wall clock read `CLOCK_SHIFT` seconds more than it is. Where Rust can link there is a `cc`.
const SHIFTED: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
int clock_gettime(clockid_t id, struct timespec *ts) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int answer = real(id, ts);
    const char *shift = getenv("CLOCK_SHIFT");
    if (!answer && id == CLOCK_REALTIME && shift) ts->tv_sec += atol(shift);
    return answer;
}
"#;

fn shifter(folder: &Path) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let (source, library) = (folder.join("shifted.c"), folder.join("shifted.so"));
    std::fs::write(&source, SHIFTED).unwrap();
    let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status();
    assert!(made.unwrap().success());
    library
}

/// By how much the clock of a process is ahead of this one's, as its metrics tell.
async fn ahead(child: &Child) -> f64 {
    let stamp = until("it has looked at its clock", async || {
        let shown = child.node.get("/metrics").await.body.as_str()?.to_owned();
        let line = shown.lines().find(|line| line.starts_with("crossover_gauges_updated"))?;
        line.rsplit_once(' ')?.1.parse::<f64>().ok().filter(|stamp| *stamp > 0.0)
    })
    .await;
    stamp - SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// Five seconds would do; half a minute can't be mistaken for a slow machine.
const APART: f64 = 30.0;
const SOON: Duration = Duration::from_secs(20);

/// Now, or once the relay comes by: a start may take longer than its router waits.
async fn accepted(node: &Node, request: &Value) {
    let answer = node.post(request).await;
    assert!(matches!(answer.status, 201 | 202), "{answer:?}");
}

/// Each of them is further from Postgres' and Temporal's clock than any wait in here is long.
async fn clocks_apart(stage: Stage) {
    let world = World::new(stage).await;
    let library = shifter(&world.fresh("clock")).display().to_string();
    let set = |shift| {
        let lease = ("CROSSOVER_WORKER_LEASE", LEASE);
        [("LD_PRELOAD", library.as_str()), ("CLOCK_SHIFT", shift), lease]
    };
    let mut early = Child::serve(&world, "router,worker,relay", &set("30")).await;
    assert!((ahead(&early).await - APART).abs() < 10.0, "{}", ahead(&early).await);
    world.runner.hold("held");
    let policy = json!({ "policy": { "backoff": { "delays_ms": [700] } } });
    accepted(&early.node, &with(world.request("held"), policy.clone())).await;
    world.runner.nth("held", 1).await;
    // Tried again for twenty seconds: whoever believes a clock that is thirty ahead gives up at once.
    world.runner.rule("given up", Rule::Fail(1));
    let patient = json!({ "policy": { "give_up_after_ms": 20_000, "backoff": { "delays_ms": [50] } } });
    accepted(&early.node, &with(world.request("given up"), patient)).await;
    world.succeeded("given up").await;
    assert_eq!(world.rehearsed("given up", 2).await.len(), 2, "and so does whoever rehearses it");
    let late = Child::serve(&world, "router,worker,relay", &set("-30")).await;
    assert!((ahead(&late).await + APART).abs() < 10.0, "{}", ahead(&late).await);

    // Due in two seconds, whoever is asked and whoever runs it; and a retry after its time.
    let (asked, mut due, mut again) = (Instant::now(), Vec::new(), Vec::new());
    let run_at = chrono::Utc::now() + chrono::TimeDelta::seconds(2);
    for n in 0..8 {
        let router = [&early.node, &late.node][n % 2];
        let (timed, failing) = (format!("due {n}"), format!("again {n}"));
        world.runner.rule(&failing, Rule::Fail(1));
        for request in
            [with(world.request(&timed), json!({ "run_at": run_at })), with(world.request(&failing), policy.clone())]
        {
            accepted(router, &request).await;
        }
        due.push(timed);
        again.push(failing);
    }
    for key in &again {
        let (first, second) = (world.runner.nth(key, 1).await, world.runner.nth(key, 2).await);
        let waited = second.began - first.ended.unwrap();
        assert!(waited > Duration::from_millis(600) && waited < SOON, "{key}: {waited:?}");
    }
    for key in &due {
        let waited = world.runner.nth(key, 1).await.began - asked;
        assert!(waited > Duration::from_millis(1_900) && waited < SOON, "{key}: {waited:?}");
    }
    world.each_ran_on_its_owner(&[due, again].concat()).await;
    assert_eq!(world.runner.of("held").len(), 1, "its lease is kept by beats and judged by the server's clock");

    early.kill();
    let killed = Instant::now();
    world.runner.nth("held", 2).await;
    assert!(killed.elapsed() < SOON, "taken over after {:?}", killed.elapsed());
    world.runner.release("held");
    world.each_ran_on_its_owner(&["held".to_owned()]).await;
    drop(late);
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_half_a_minute_ahead_and_behind_change_neither_due_times_nor_leases_on_postgres() {
    clocks_apart(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clocks_half_a_minute_ahead_and_behind_change_neither_due_times_nor_time_outs_on_temporal() {
    clocks_apart(Stage::Shadow).await;
}
