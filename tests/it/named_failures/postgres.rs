//! A Postgres that is read-only, full, out of connections, or restarted at the worst moment; and a copy that it can't read.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use crossover::router::handover;

use super::*;
use crate::bridge::runner::Rule;
use crate::bridge::world::Answer;
use crate::chaos::gate::Gate;

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_postgres_cant_read_hurts_nothing_that_temporal_executes() {
    let world = World::new(Stage::Shadow).await;
    let router = world.node_with(ROUTER, |_| {}).await;
    let keys = ["before", "poison", "after"].map(str::to_owned);
    for key in &keys {
        router.accepts(&world.request(key), 201).await;
    }
    let poison = "update crossover.payloads set policy = '{\"max_attempts\": \"x\"}'
        where id = (select id from crossover.pins where key = 'poison')";
    sqlx::query(poison).execute(world.pool()).await.unwrap();
    let worker = world.node_with(WORKER, |_| {}).await;
    world.each_ran_on_its_owner(&keys).await;
    assert_eq!(world.runner.calls().len(), 3);
    for key in ["before", "after"] {
        world.rehearsed(key, 1).await;
    }
    let failed = world.rehearsed("poison", 1).await;
    assert!(failed[0].error.as_ref().unwrap().contains("can't be read"), "{failed:#?}");
    router.accepts(&world.request("later"), 201).await;
    world.succeeded("later").await;
    worker.stop().await;
    router.stop().await;
}

/// Makes the world's database read-only, or writable again, for every session.
async fn read_only(world: &World, on: bool) {
    let mut connection = world.pool().acquire().await.unwrap();
    let set = format!(
        "do $$ begin
            set transaction_read_only = off;
            execute format('alter database %I set default_transaction_read_only = {on}', current_database());
        end $$"
    );
    sqlx::query("set default_transaction_read_only = off").execute(&mut *connection).await.unwrap();
    sqlx::query(sqlx::AssertSqlSafe(set)).execute(&mut *connection).await.unwrap();
    let others = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and pid <> pg_backend_pid()";
    sqlx::query(others).execute(&mut *connection).await.unwrap();
}

/// Nothing can be written for a while: callers are told, what was accepted waits, and all of it runs once afterwards.
async fn runs_through_a_read_only_time_in(stage: Stage) {
    let world = World::new(stage).await;
    let node = world.node_with(ALL, |config| config.worker.lease = Duration::from_secs(1)).await;
    let later = json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::seconds(2) });
    node.accepts(&with(world.request("scheduled"), later), 201).await;
    world.runner.hold("running");
    node.accepts(&world.request("running"), 201).await;
    world.runner.nth("running", 1).await;
    read_only(&world, true).await;
    let refused = until("it is refused", async || Some(node.post(&world.request("refused")).await)).await;
    is_for_later(&refused);
    world.runner.release("running");
    until("the call is answered", async || world.runner.of("running")[0].ended).await;
    let pinned = "select count(*) from crossover.pins where key = 'refused'";
    assert_eq!(world.scalar::<i64>(pinned).await, 0);
    is_for_later(&node.post(&world.request("refused")).await);
    read_only(&world, false).await;
    until("it is accepted", async || {
        matches!(node.post(&world.request("refused")).await.status, 200..=202).then_some(())
    })
    .await;
    world.each_ran_on_its_owner(&["scheduled", "running", "refused"].map(str::to_owned)).await;
    node.stop().await;
}

/// Refused for now, with the key to repeat and when.
fn is_for_later(answer: &Answer) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.headers.contains_key("retry-after") && answer.body["key"].is_string(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_read_only_postgres_only_a_router_is_ready_that_can_go_on_without() {
    let world = World::new(Stage::Shadow).await;
    let (pins, worker) = (world.node().await, world.node_with(WORKER, |_| {}).await);
    let goes_on = world.node_with(ROUTER, |config| config.router.fail_open = true).await;
    read_only(&world, true).await;
    for (node, status) in [(&pins, 503), (&worker, 503), (&goes_on, 200)] {
        let ready = until("it is seen", async || {
            let ready = node.get("/readyz").await;
            ready.body["postgres"].as_str().is_some_and(|said| said.contains("takes no writes")).then_some(ready)
        })
        .await;
        assert_eq!(ready.status, status, "{ready:?}");
    }
    read_only(&world, false).await;
    for node in [&pins, &worker, &goes_on] {
        until("it is ready again", async || {
            let ready = node.get("/readyz").await;
            (ready.status == 200 && ready.body["postgres"] == "ok").then_some(())
        })
        .await;
    }
    goes_on.stop().await;
    worker.stop().await;
    pins.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_postgres_refuses_callers_in_live_and_loses_nothing() {
    runs_through_a_read_only_time_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_postgres_refuses_callers_in_shadow_and_loses_nothing() {
    runs_through_a_read_only_time_in(Stage::Shadow).await;
}

/// A disk of a few megabytes. It takes root to have one.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount() -> Result<Self, String> {
        let path = std::env::temp_dir().join(format!("crossover-small-disk-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|error| error.to_string())?;
        let owner = crossover::provision::Account::for_servers().map_err(|error| error.to_string())?;
        let owner = owner.ok_or("only root may mount")?;
        let options = format!("size=48m,mode=0700,uid={},gid={}", owner.uid, owner.gid);
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "crossover"]).arg(&path).output();
        let mount = mount.map_err(|error| error.to_string())?;
        let said = || String::from_utf8_lossy(&mount.stderr).into_owned();
        mount.status.success().then(|| Self(path)).ok_or_else(said)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        use std::io::Write;
        let mut file = std::fs::File::create(self.filler()).unwrap();
        for size in [1 << 20, 1 << 10] {
            while file.write_all(&vec![7; size]).is_ok() {}
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

async fn database_on(server: &str, disk: &Path) -> String {
    let mut connection = sqlx::PgConnection::connect(server).await.unwrap();
    for order in [
        format!("create tablespace small location '{}'", disk.display()),
        "create database on_small tablespace small".to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(order)).execute(&mut connection).await.unwrap();
    }
    let (base, _) = server.rsplit_once('/').unwrap();
    format!("{base}/on_small")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_postgres_refuses_callers_and_loses_nothing_that_was_accepted() {
    let disk = match SmallDisk::mount() {
        Ok(disk) => disk,
        Err(why) => return println!("SKIPPED: no small disk can be had here: {why}"),
    };
    let mut postgres = crossover::provision::postgres(&servers::options()).await.unwrap();
    let world = World::with(Some(database_on(&postgres.url, &disk.0).await), None, Stage::Live).await;
    let node = world.node().await;
    world.runner.hold("running");
    node.accepts(&world.request("running"), 201).await;
    world.runner.nth("running", 1).await;
    disk.fill();
    // What the pages at hand have room for is still accepted; then there is no more.
    let mut accepted = vec!["running".to_owned()];
    let full = until("the disk is full", async || {
        let key = format!("k{}", accepted.len());
        let noise: String = (0..400).map(|_| Uuid::new_v4().simple().to_string()).collect();
        let answer = node.post(&with(world.request(&key), json!({ "payload": noise }))).await;
        match answer.status {
            201 => accepted.push(key),
            _ => return Some(answer),
        }
        None
    })
    .await;
    is_for_later(&full);
    assert!(full.detail().contains("No space left on device"), "{full:?}");
    world.runner.release("running");
    std::fs::remove_file(disk.filler()).unwrap();
    until("there is room", async || (node.post(&world.request("after")).await.status < 300).then_some(())).await;
    accepted.push("after".to_owned());
    world.each_ran_on_its_owner(&accepted).await;
    node.stop().await;
    drop(world);
    postgres.server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_connection_of_a_router_taken_callers_are_refused_soon_and_work_goes_on() {
    let world = World::new(Stage::Live).await;
    let node = world
        .node_with(ALL, |config| {
            config.postgres.max_connections = 2;
            config.postgres.connect_timeout = Duration::from_secs(1);
        })
        .await;
    world.runner.hold("running");
    node.accepts(&world.request("running"), 201).await;
    world.runner.nth("running", 1).await;
    let mut holder = world.pool().begin().await.unwrap();
    lock_account(&mut holder, &world.account).await;
    let began = Instant::now();
    let requests: Vec<Value> = (0..6).map(|n| world.request(&format!("k{n}"))).collect();
    let answers = futures::future::join_all(requests.iter().map(|request| node.post(request))).await;
    answers.iter().for_each(is_for_later);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    world.runner.release("running");
    world.succeeded("running").await;
    holder.rollback().await.unwrap();
    let keys: Vec<String> = (0..6).map(|n| format!("k{n}")).collect();
    for (key, request) in keys.iter().zip(&requests) {
        until("it is accepted", async || (node.post(request).await.status < 300).then_some(())).await;
        world.succeeded(key).await;
        assert_eq!(world.runner.of(key).len(), 1);
    }
    node.stop().await;
}

/// A bridge whose Postgres can be killed and started again, and whose router's way to Temporal can be frozen.
struct Restarted {
    world: World,
    postgres: tokio::sync::Mutex<crossover::provision::Postgres>,
    temporal: Gate,
    router: Node,
    worker: Node,
}

impl Restarted {
    async fn new(stage: Stage) -> Self {
        Self::with(stage, |_| {}).await
    }

    async fn with(stage: Stage, adjust: fn(&mut crossover::config::Config)) -> Self {
        let postgres = crossover::provision::postgres(&servers::options()).await.unwrap();
        let world = World::with(Some(postgres.url.clone()), None, stage).await;
        let temporal = Gate::to(world.temporal.clone()).await;
        let short = |config: &mut crossover::config::Config| {
            config.worker.lease = Duration::from_secs(1);
            config.temporal.start_timeout = Duration::from_secs(20);
            adjust(config);
        };
        let router = world.node_towards(&temporal.address.to_string(), ROUTER, short).await;
        let worker = world.node_with(WORKER, short).await;
        Self { world, postgres: tokio::sync::Mutex::new(postgres), temporal, router, worker }
    }

    async fn restart(&self, meanwhile: impl AsyncFnOnce()) {
        let mut postgres = self.postgres.lock().await;
        postgres.server.kill().await.unwrap();
        meanwhile().await;
        postgres.server.restart().await.unwrap();
    }

    /// As a caller does: again and again with the same key.
    async fn insist(&self, request: &Value) {
        until("it is accepted", async || (self.router.post(request).await.status < 300).then_some(())).await;
    }
}

/// Each step of an interaction's way, with a restart in the middle of it.
async fn a_restart_in_every_step_in(stage: Stage) {
    let bridge = Restarted::new(stage).await;
    let (world, router) = (&bridge.world, &bridge.router);
    let soon = |ms| json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::milliseconds(ms) });
    bridge.insist(&world.request("first")).await;

    // While it is pinned.
    let mut holder = world.pool().begin().await.unwrap();
    lock_account(&mut holder, &world.account).await;
    let request = world.request("pinning");
    let ask = async { router.post(&request).await };
    let restart = async {
        let waits = "select count(*) from pg_locks where not granted and locktype = 'advisory'";
        until("the pin waits", async || (world.scalar::<i64>(waits).await == 1).then_some(())).await;
        bridge.restart(async || {}).await;
    };
    let (told, ()) = tokio::join!(ask, restart);
    is_for_later(&told);
    drop(holder);
    bridge.insist(&request).await;

    // Between its pin and its start.
    bridge.temporal.freeze();
    let request = world.request("starting");
    let (_, ()) = tokio::join!(router.post(&request), async {
        world.until_story("starting", "it is pinned", |_| Some(())).await;
        bridge.restart(async || {}).await;
        bridge.temporal.cut();
        bridge.temporal.open();
    });
    bridge.insist(&request).await;

    // While it waits until it is due.
    bridge.insist(&with(world.request("scheduled"), soon(1_000))).await;
    bridge.restart(async || {}).await;

    // While it runs, and followers wait behind it.
    world.runner.hold("running");
    for key in ["running", "follower", "last"] {
        bridge.insist(&world.member("s", key)).await;
    }
    world.runner.nth("running", 1).await;
    bridge.restart(async || {}).await;
    world.runner.release("running");

    // Between its effect and its report.
    world.runner.hold("reporting");
    bridge.insist(&world.request("reporting")).await;
    world.runner.nth("reporting", 1).await;
    bridge
        .restart(async || {
            world.runner.release("reporting");
            until("the call is answered", async || world.runner.of("reporting")[0].ended).await;
        })
        .await;

    // Between two attempts.
    world.runner.rule("retried", Rule::Fail(1));
    let policy = json!({ "policy": { "backoff": { "delays_ms": [1_000] } } });
    bridge.insist(&with(world.request("retried"), policy)).await;
    until("the first call is answered", async || world.runner.of("retried").first()?.ended).await;
    bridge.restart(async || {}).await;

    // While it is cancelled.
    bridge.insist(&with(world.request("cancelled"), soon(600_000))).await;
    let cancel = async || {
        let url = format!("{}/v1/interactions/{}/cancel", router.base, world.id("cancelled"));
        reqwest::Client::builder().no_proxy().build().unwrap().post(url).send().await.unwrap().status().as_u16()
    };
    bridge.restart(async || assert_eq!(cancel().await, 503)).await;
    until("it is cancelled", async || (cancel().await == 200).then_some(())).await;

    let keys = ["first", "pinning", "starting", "scheduled", "running", "follower", "last", "reporting", "retried"];
    let keys = keys.map(str::to_owned);
    world.each_ran_on_its_owner(&keys).await;
    world.in_turn(&keys[4..7]);
    assert_eq!((world.ended("cancelled").await.state.as_str(), world.runner.of("cancelled").len()), ("cancelled", 0));
    for key in ["first", "pinning", "starting", "scheduled", "follower", "last"] {
        assert_eq!(world.runner.of(key).len(), 1, "{key}");
    }
    let Restarted { world, postgres, router, worker, .. } = bridge;
    router.stop().await;
    worker.stop().await;
    drop(world);
    postgres.into_inner().server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_restarted_in_the_middle_of_every_step_in_live_loses_nothing_and_repeats_nothing_that_ended() {
    a_restart_in_every_step_in(Stage::Live).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_restarted_in_the_middle_of_every_step_in_shadow_loses_nothing_and_repeats_nothing_that_ended() {
    a_restart_in_every_step_in(Stage::Shadow).await;
}

/// The account's state, while Postgres answers.
async fn arming(world: &World) -> Option<String> {
    let state = sqlx::query_scalar("select state from crossover.accounts where account = $1");
    state.bind(&world.account).fetch_optional(world.pool()).await.ok().flatten()
}

/// Keys that are asked for while Postgres is away, one in every state on the way from `off` to `armed`.
async fn restarted_in_every_state(bridge: &Restarted) -> Vec<String> {
    let (world, router) = (&bridge.world, &bridge.router);
    let mut keys = Vec::new();
    loop {
        let state = until("the account is on its way", async || {
            arming(world).await.filter(|state| state != "open" && !keys.contains(state))
        })
        .await;
        if state == "armed" {
            return keys;
        }
        let request = world.request(&state);
        bridge
            .restart(async || {
                let answer = router.post(&request).await;
                assert!(matches!(answer.status, 201 | 503), "{state}: {answer:?}");
            })
            .await;
        bridge.insist(&request).await;
        keys.push(state);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_postgres_restarted_while_an_account_is_armed_and_handed_over_loses_nothing() {
    let bridge = Restarted::with(Stage::Off, |config| {
        config.router.fail_open = true;
        config.window.idempotency = Duration::from_secs(2);
        config.temporal.start_timeout = Duration::from_secs(1);
    })
    .await;
    let (world, router) = (&bridge.world, &bridge.router);
    bridge.insist(&world.request("off")).await;
    world.flip(Stage::Live, &[router]).await;
    bridge.insist(&world.request("first")).await;
    let mut keys = restarted_in_every_state(&bridge).await;
    for state in ["pinning", "window", "closing"] {
        assert!(keys.iter().any(|key| key == state), "{keys:?}");
    }
    keys.push("first".to_owned());
    world.each_ran_on_its_owner(&keys).await;
    world.runner.nth("off", 1).await;
    for key in keys.iter().map(String::as_str).chain(["off"]) {
        assert_eq!(world.runner.sides(key), ["temporal"], "{key}: not live before it is armed, and once");
    }

    // What waits is handed over, and Postgres goes away in the middle of that.
    let later = json!({ "run_at": chrono::Utc::now() + chrono::TimeDelta::seconds(20) });
    let waiting: Vec<String> = (0..10).map(|n| format!("waits {n}")).collect();
    for key in &waiting {
        bridge.insist(&with(world.request(key), later.clone())).await;
    }
    let mut holder = world.pool().begin().await.unwrap();
    lock_account(&mut holder, &world.account).await;
    let scope = || crossover::ledger::Scope { account: world.account.clone(), kind: None, id: None };
    let moved = async || {
        let plan = handover::plan(&world.ledger, scope()).await.ok()?;
        handover::run(&world.ledger, &plan, "test", |_| {}).await.ok()
    };
    let (_, ()) = tokio::join!(moved(), async {
        let waits = "select count(*) from pg_locks where not granted and locktype = 'advisory'";
        until("the handover waits", async || (world.scalar::<i64>(waits).await > 0).then_some(())).await;
        bridge.restart(async || {}).await;
    });
    drop(holder);
    until("all have moved", async || moved().await.filter(|done| done.stayed() == 0)).await;
    world.each_ran_on_its_owner(&waiting).await;
    for key in &waiting {
        let pin = world.story(key).await.unwrap().pin;
        assert_eq!((pin.owner, pin.epoch, world.runner.of(key).len()), (Side::Temporal, 2, 1), "{key}");
    }
    let Restarted { world, postgres, router, worker, .. } = bridge;
    router.stop().await;
    worker.stop().await;
    drop(world);
    postgres.into_inner().server.stop().await.unwrap();
}
