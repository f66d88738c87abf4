//! Everything that the queue can do at once, by four processes of which one or another is killed all the time: tasks, series,
//! dependencies, exclusions, groups whose limits change, pauses, schedules, retries, cancellations. No series and no exclusion may overlap itself, no limit be
//! exceeded at any moment, nothing be lost, and no table grow for ever.
//!
//! The short run is part of the tests. The long one, with a release build under test:
//!
//! ```text
//! SOAK_BINARY=target/release/crossover SOAK_MINUTES=30 cargo test --test it -- --ignored --nocapture soak::everything_at_once_for_long
//! ```
//!
//! `SOAK_RATE` is how many interactions a second come at most. Each run ends with a table and a line of JSON.

mod runner;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crossover::interaction::Stage;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::bridge::child::Child;
use crate::bridge::world::World;
use crate::wait::until;
use runner::{Limits, Runner};

const PROCESSES: usize = 4;
const ACCOUNTS: [&str; 5] = ["flood", "b", "c", "d", "e"];
/// Callers at once.
const CALLERS: usize = 24;
/// A caller repeats for so long.
const PATIENCE: Duration = Duration::from_secs(60);

struct Options {
    seconds: u64,
    /// Interactions a second.
    rate: f64,
    /// A process is killed so often.
    kill_each: Duration,
    program: String,
}

fn given<T: std::str::FromStr>(name: &str, default: T) -> T {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_at_once_for_a_moment() {
    let program = env!("CARGO_BIN_EXE_crossover").to_owned();
    soak(Options { seconds: 20, rate: 25.0, kill_each: Duration::from_secs(6), program }).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes SOAK_MINUTES"]
async fn everything_at_once_for_long() {
    let binary = given("SOAK_BINARY", env!("CARGO_BIN_EXE_crossover").to_owned());
    let program = std::path::Path::new(&binary).canonicalize().expect("SOAK_BINARY is a program").display().to_string();
    let (seconds, rate) = (given("SOAK_MINUTES", 30) * 60, given("SOAK_RATE", 150.0));
    soak(Options { seconds, rate, kill_each: Duration::from_secs(20), program }).await;
}

/// What was accepted, and what its caller asked for later.
#[derive(Debug, Clone)]
struct Accepted {
    id: Uuid,
    account: String,
}

struct Soak {
    world: World,
    runner: Runner,
    variables: Vec<(String, String)>,
    program: String,
    nodes: Vec<tokio::sync::Mutex<Option<Child>>>,
    addresses: Mutex<Vec<Option<std::net::SocketAddr>>>,
    client: reqwest::Client,
    accepted: Mutex<Vec<Accepted>>,
    cancelled: Mutex<Vec<Uuid>>,
    counts: Mutex<BTreeMap<&'static str, u64>>,
}

async fn soak(options: Options) {
    let began = Instant::now();
    let soak = Arc::new(Soak::new(options.program.clone()).await);
    soak.open_groups().await;
    soak.open_schedules().await;
    let until_then = began + Duration::from_secs(options.seconds);
    let (mut beside, mut callers) = (JoinSet::new(), JoinSet::new());
    beside.spawn(soak.clone().kill(options.kill_each, until_then));
    beside.spawn(soak.clone().change_limits(until_then));
    let sizes = tokio::spawn(soak.clone().watch_sizes(until_then));
    let mut rng = StdRng::seed_from_u64(given("SOAK_SEED", 1));
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / options.rate));
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for n in 0u64.. {
        if Instant::now() > until_then {
            break;
        }
        pace.tick().await;
        if callers.len() >= CALLERS {
            callers.join_next().await.unwrap().unwrap();
        }
        let what = soak.invent(&mut rng, n);
        callers.spawn(soak.clone().call(what));
    }
    for mut all in [beside, callers] {
        while let Some(done) = all.join_next().await {
            done.unwrap();
        }
    }
    soak.close_groups().await;
    soak.drain().await;
    let sizes = sizes.await.unwrap();
    soak.judge(&sizes, &options, began).await;
}

/// What a caller asks for.
enum Ask {
    Enqueue(Value),
    Cancel(Uuid),
}

impl Soak {
    async fn new(program: String) -> Self {
        let world = World::new(Stage::Complete).await;
        let runner = Runner::default();
        let mut variables = world.variables();
        for (name, value) in [
            ("RUNNER_URL", runner.start().await),
            ("ROUTER_TASKS", "true".to_owned()),
            ("WORKER_LEASE", "3s".to_owned()),
        ] {
            variables.push((format!("CROSSOVER_{name}"), value));
        }
        let nodes = (0..PROCESSES).map(|_| tokio::sync::Mutex::new(None)).collect();
        let soak = Self {
            world,
            runner,
            variables,
            program,
            nodes,
            addresses: Mutex::new(vec![None; PROCESSES]),
            client: reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(20)).build().unwrap(),
            accepted: Mutex::default(),
            cancelled: Mutex::default(),
            counts: Mutex::default(),
        };
        for n in 0..PROCESSES {
            soak.launch(n).await;
        }
        // The first keyed work of an account without a past arms it.
        for account in ACCOUNTS {
            let armed = async || {
                let first = json!({ "account": account, "kind": "k", "payload": {}, "key": "first" });
                let (status, body) = soak.ask("POST", "/v1/interactions", Some(&first)).await.ok()?;
                (matches!(status, 200 | 201) && body["stage"] == "complete").then_some(())
            };
            until("the account is armed", armed).await;
        }
        soak
    }

    async fn launch(&self, n: usize) {
        let state = self.world.fresh("soak");
        let child = Child::run(&self.program, "router,worker,relay", state, &self.variables).await;
        let child = child.unwrap_or_else(|error| panic!("{error}"));
        self.addresses.lock().unwrap()[n] = Some(child.address);
        *self.nodes[n].lock().await = Some(child);
    }

    fn count(&self, what: &'static str) {
        *self.counts.lock().unwrap().entry(what).or_default() += 1;
    }

    async fn sql(&self, sql: String) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(self.world.pool()).await.unwrap();
    }

    /// One request of some process.
    async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value), String> {
        let up: Vec<_> = self.addresses.lock().unwrap().iter().flatten().copied().collect();
        let address = *up.choose(&mut rand::rng()).ok_or("none is up")?;
        let request = self.client.request(method.parse().unwrap(), format!("http://{address}{path}"));
        let request = match body {
            Some(body) => request.json(body),
            None => request,
        };
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.map_err(|error| error.to_string())?))
    }

    /// The next thing that somebody wants.
    fn invent(&self, rng: &mut StdRng, n: u64) -> Ask {
        let account = if rng.random_bool(0.5) { ACCOUNTS[0] } else { *ACCOUNTS.choose(rng).unwrap() };
        let policy = json!({ "max_attempts": 30, "backoff": { "initial_ms": 50, "factor": 2.0, "max_ms": 1_000, "jitter": 0.2 } });
        let mut work = json!({ "account": account, "kind": "k", "payload": {}, "policy": policy });
        let group = ["limited", "narrow", "paused", "rated"].choose(rng).copied();
        if let Some(group) = group.filter(|_| rng.random_bool(0.4)) {
            work["group"] = json!(group);
            work["payload"] = json!({ "group": group });
        }
        work["priority"] = json!([0, 0, 0, 5, -5].choose(rng).copied());
        if rng.random_bool(0.25) {
            self.count("with an exclusive");
            let exclusive = format!("e{}", rng.random_range(0..6));
            work["payload"]["exclusive"] = json!(exclusive);
            work["exclusive"] = json!(exclusive);
        }
        let known = || self.accepted.lock().unwrap();
        match rng.random_range(0..100) {
            0..45 => self.count("tasks"),
            45..65 => {
                self.count("members of series");
                work["key"] = json!(format!("m{n}"));
                work["series"] = json!(format!("s{}", rng.random_range(0..20)));
            }
            65..80 => {
                let mine: Vec<Uuid> =
                    known().iter().rev().filter(|a| a.account == account).take(30).map(|a| a.id).collect();
                self.count("dependents");
                work["key"] = json!(format!("a{n}"));
                let ids: Vec<&Uuid> = mine.sample(rng, 3).collect();
                let when = ["all", "any"].choose(rng).copied();
                let on_failure = ["skip", "run"].choose(rng).copied();
                work["after"] = json!({ "ids": ids, "when": when, "on_failure": on_failure });
            }
            80..95 => {
                self.count("due later");
                let later = chrono::TimeDelta::milliseconds(rng.random_range(300..3_000));
                work["run_at"] = json!(chrono::Utc::now() + later);
                if rng.random_bool(0.5) {
                    work["key"] = json!(format!("l{n}"));
                }
            }
            _ => {
                let some = known().iter().rev().take(50).map(|a| a.id).collect::<Vec<_>>().choose(rng).copied();
                if let Some(id) = some {
                    self.count("cancellations");
                    return Ask::Cancel(id);
                }
            }
        }
        Ask::Enqueue(work)
    }

    /// Asks until there is an answer. What has no key and got none may be there or not: it is not asked again.
    async fn call(self: Arc<Self>, ask: Ask) {
        let (path, body) = match &ask {
            Ask::Enqueue(work) => ("/v1/interactions".to_owned(), Some(work)),
            Ask::Cancel(id) => (format!("/v1/interactions/{id}/cancel"), None),
        };
        let began = Instant::now();
        loop {
            let answer = self.ask("POST", &path, body).await;
            match (&ask, answer) {
                (Ask::Enqueue(work), Ok((200..=202, body))) => {
                    let id = body["id"].as_str().unwrap().parse().unwrap();
                    let account = work["account"].as_str().unwrap().to_owned();
                    return self.accepted.lock().unwrap().push(Accepted { id, account });
                }
                (Ask::Cancel(id), Ok((200 | 202 | 409, _))) => return self.cancelled.lock().unwrap().push(*id),
                (_, Ok((429 | 503, _)) | Err(_)) => {
                    if matches!(&ask, Ask::Enqueue(work) if work["key"].is_null()) {
                        return self.count("in doubt or refused, without a key");
                    }
                    assert!(began.elapsed() < PATIENCE, "no answer to {body:?}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (_, Ok((status, answer))) => panic!("{status} {answer} to {body:?}"),
            }
        }
    }

    /// Kills one after the other, and starts another in its place.
    async fn kill(self: Arc<Self>, each: Duration, until_then: Instant) {
        for n in 0.. {
            tokio::time::sleep(each).await;
            if Instant::now() + each / 2 > until_then {
                return;
            }
            let n = n % PROCESSES;
            self.addresses.lock().unwrap()[n] = None;
            if let Some(mut child) = self.nodes[n].lock().await.take() {
                child.kill();
            }
            self.count("processes killed");
            self.launch(n).await;
        }
    }

    async fn open_groups(&self) {
        for (group, limits) in [
            ("limited", Limits { running: Some(4), ..Limits::default() }),
            ("narrow", Limits { per_account: Some(1), ..Limits::default() }),
        ] {
            self.set(group, limits).await;
        }
        self.sql("select crossover.set_group('rated', '{\"rate\": 20}')".to_owned()).await;
    }

    /// In force in the database, and then for the runner: it may see less than is allowed, and never more.
    async fn set(&self, group: &str, limits: Limits) {
        let wanted = json!({ "max_running": limits.running, "max_per_account": limits.per_account });
        self.sql(format!("select crossover.set_group('{group}', '{wanted}')")).await;
        self.runner.limit(group, limits);
    }

    async fn change_limits(self: Arc<Self>, until_then: Instant) {
        for n in 0u64.. {
            tokio::time::sleep(Duration::from_secs(4)).await;
            if Instant::now() > until_then {
                return;
            }
            self.count("changes of limits");
            let running = [4, 2, 7][n as usize % 3];
            self.set("limited", Limits { running: Some(running), ..Limits::default() }).await;
            let paused = n % 2 == 0;
            let pause = if paused { "pause_group('paused', 'a soak')" } else { "resume_group('paused')" };
            self.sql(format!("select crossover.{pause}")).await;
            self.runner.limit("paused", Limits { paused, ..Limits::default() });
        }
    }

    async fn close_groups(&self) {
        self.sql("select crossover.resume_group('paused')".to_owned()).await;
        self.runner.limit("paused", Limits::default());
    }

    async fn open_schedules(&self) {
        for (n, overlap) in ["skip", "queue_one", "queue_all", "after_last"].into_iter().enumerate() {
            let schedule = json!({ "account": "b", "name": format!("s{n}"), "kind": "k", "payload": {}, "overlap": overlap,
                "spec": { "every_ms": 1_000 } });
            let made = async || {
                let (status, body) = self.ask("POST", "/v1/schedules", Some(&schedule)).await.ok()?;
                assert!(matches!(status, 200 | 201 | 503), "{status} {body}");
                (status != 503).then_some(())
            };
            until("the schedule is made", made).await;
        }
    }

    /// Until nothing is left to do.
    async fn drain(&self) {
        self.sql("delete from crossover.schedules".to_owned()).await;
        let began = Instant::now();
        loop {
            let left: i64 = self
                .world
                .scalar(
                    "select (select count(*) from crossover.pins where ended_at is null)
                        + (select count(*) from crossover.unended_tasks)",
                )
                .await;
            if left == 0 {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(180), "{left} have not ended: {}", self.glance().await);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn glance(&self) -> String {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "select state || coalesce(': ' || reason, ''), count(*) from crossover.interactions where ended_at is null group by 1 order by 2 desc limit 20",
        )
        .fetch_all(self.world.pool())
        .await
        .unwrap();
        format!("{rows:?}")
    }

    /// Sizes of the tables that must not grow, in bytes, and dead rows, each few seconds.
    async fn watch_sizes(self: Arc<Self>, until_then: Instant) -> Vec<HashMap<String, (i64, i64)>> {
        let mut samples = Vec::new();
        while Instant::now() < until_then {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let rows: Vec<(String, i64, i64)> = sqlx::query_as(
                "select s.relname::text, pg_total_relation_size(s.relid), s.n_dead_tup from pg_stat_user_tables s
                 where s.schemaname = 'crossover' and s.relname in ('ready', 'running', 'scheduled', 'tasks_ready', 'tasks_scheduled',
                    'gate', 'group_tokens', 'group_holds', 'groups', 'workers', 'dependents', 'dependencies', 'ended_upstreams', 'turns', 'turn_notes', 'schedules', 'series', 'outbox')",
            )
            .fetch_all(self.world.pool())
            .await
            .unwrap();
            samples.push(rows.into_iter().map(|(name, bytes, dead)| (name, (bytes, dead))).collect());
        }
        samples
    }

    async fn judge(&self, sizes: &[HashMap<String, (i64, i64)>], options: &Options, began: Instant) {
        let accepted = self.accepted.lock().unwrap().clone();
        let ids: Vec<Uuid> = accepted.iter().map(|accepted| accepted.id).collect();
        let ends: Vec<(Uuid, Option<String>)> = sqlx::query_as(
            "select u.id, coalesce(p.outcome, (select a.outcome from crossover.attempts a where a.id = u.id and a.retry_ms is null
                order by a.ended_at desc limit 1))
             from unnest($1::uuid[]) u (id) left join crossover.pins p on p.id = u.id",
        )
        .bind(&ids)
        .fetch_all(self.world.pool())
        .await
        .unwrap();
        let mut broken = self.runner.broken();
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        let mut more_than_once = 0;
        for (id, outcome) in &ends {
            let runs = self.runner.successes(*id);
            more_than_once += usize::from(runs > 1);
            let outcome = outcome.clone().unwrap_or_else(|| "none".to_owned());
            if outcome == "none" || outcome == "succeeded" && runs == 0 {
                broken.push(format!("{id} ended as {outcome} after {runs} successes"));
            }
            *outcomes.entry(outcome).or_default() += 1;
        }
        let (third, mut growth) = (sizes.len() / 3, BTreeMap::new());
        for name in sizes.last().iter().flat_map(|last| last.keys()) {
            let most = |samples: &[HashMap<String, (i64, i64)>]| {
                samples.iter().filter_map(|s| s.get(name)).map(|s| s.0).max().unwrap_or(0)
            };
            let (middle, last) = (most(&sizes[third..2 * third]), most(&sizes[2 * third..]));
            // A short run says nothing of it.
            if options.seconds >= 300 && last > middle * 3 / 2 + (1 << 20) {
                broken.push(format!("{name} grows: {middle} bytes in the middle, {last} in the end"));
            }
            growth.insert(
                name.clone(),
                (middle, last, sizes.iter().filter_map(|s| s.get(name)).map(|s| s.1).max().unwrap_or(0)),
            );
        }
        let (starts, most) = self.runner.told();
        let mut rows = vec![
            ("seconds".to_owned(), began.elapsed().as_secs().to_string()),
            ("accepted".to_owned(), accepted.len().to_string()),
            ("starts".to_owned(), starts.to_string()),
            ("succeeded more than once".to_owned(), more_than_once.to_string()),
        ];
        rows.extend(self.counts.lock().unwrap().iter().map(|(name, n)| ((*name).to_owned(), n.to_string())));
        rows.extend(outcomes.iter().map(|(name, n)| (format!("ended as {name}"), n.to_string())));
        rows.extend(most.iter().map(|(name, n)| (format!("most at once of {name}"), n.to_string())));
        for (name, (middle, last, dead)) in &growth {
            rows.push((format!("{name}, kB in the middle, the end"), format!("{} {}", middle >> 10, last >> 10)));
            rows.push((format!("{name}, most dead rows"), dead.to_string()));
        }
        rows.iter().for_each(|(name, value)| println!("{name:<48} {value:>12}"));
        println!("SOAK {}", json!({ "rows": rows, "broken": broken }));
        broken.iter().take(20).for_each(|broken| println!("BROKEN: {broken}"));
        assert!(broken.is_empty(), "{} promises were broken", broken.len());
    }
}
