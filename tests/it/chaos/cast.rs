//! Who takes part: a Postgres and a Temporal of the run's own, routers and workers as processes that can be hurt, gates
//! between them, the flags file, and whoever hurts and mends them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crossover::flags::DocumentBuilder;
use crossover::interaction::Stage;
use crossover::provision::{self, Postgres, Temporal};
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tokio::sync::{Mutex, watch};
use tokio::time::sleep;
use uuid::Uuid;

use super::gate::Gate;
use super::judge::{Moved, Stall};
use super::plan::{ACCOUNTS, Fault, Flip, Handover, KINDS, Past, Process, ROUTERS, WINDOW, WORKERS, Way};
use crate::bridge::child::Child;
use crate::bridge::world::World;
use crate::guards::Guard;
use crate::servers;

/// A pause of a worker outlasts its lease.
const SET: &[(&str, &str)] = &[
    ("ROUTER_FAIL_OPEN", "true"),
    ("WORKER_LEASE", "2s"),
    ("WORKER_SHUTDOWN_GRACE", "1s"),
    ("WORKER_SLOTS", "24"),
    ("TEMPORAL_START_TIMEOUT", "3s"),
    ("POSTGRES_CONNECT_TIMEOUT", "3s"),
    ("POSTGRES_MAX_CONNECTIONS", "12"),
    ("RELAY_SWEEP_AFTER", "20s"),
    // What is lost with a worker must not hold up a series for a minute.
    ("REHEARSAL_BOUND", "15s"),
    ("LOG_FILTER", "crossover=info"),
];
/// What doesn't drain in so long is killed.
const DRAIN: Duration = Duration::from_secs(30);
/// An operator who gets no end in so long ends the command.
const HANDOVER: Duration = Duration::from_secs(120);

/// A place for a process: it comes and goes, its disk and its gates stay.
struct Slot {
    roles: &'static str,
    state: PathBuf,
    variables: Vec<(String, String)>,
    postgres: Gate,
    temporal: Gate,
    runner: Gate,
    child: Mutex<Option<Child>>,
    address: watch::Sender<Option<SocketAddr>>,
}

pub struct Cast {
    program: String,
    postgres: Mutex<Postgres>,
    temporal: Mutex<Temporal>,
    routers: Vec<Slot>,
    workers: Vec<Slot>,
    stages: Mutex<HashMap<(&'static str, &'static str), Stage>>,
    world: World,
    began: Instant,
    /// When workers could have been late with what they had.
    stalls: std::sync::Mutex<Vec<Stall>>,
    moved: std::sync::Mutex<Moved>,
}

impl Cast {
    /// Everybody, at work. Times are counted from `began`.
    pub async fn assemble(program: String, runner: &str, without: Option<&Guard>, began: Instant) -> Self {
        let postgres = provision::postgres(&servers::options()).await.unwrap();
        let temporal = provision::temporal(&servers::options()).await.unwrap();
        let world = World::with(Some(postgres.url.clone()), Some(temporal.address.clone()), Stage::Off).await;
        if let Some(guard) = without {
            guard.take_out(world.pool()).await;
        }
        let (mut routers, mut workers) = (Vec::new(), Vec::new());
        for n in 0..ROUTERS {
            let roles = if n == 0 { "router,relay" } else { "router" };
            routers.push(Slot::new(&world, roles, &format!("router-{n}"), runner).await);
        }
        for n in 0..WORKERS {
            let roles = if n == 0 { "worker,relay" } else { "worker" };
            workers.push(Slot::new(&world, roles, &format!("worker-{n}"), runner).await);
        }
        let first = |past: Past| past.stages()[0];
        let stages = ACCOUNTS.iter().flat_map(|(a, past, _)| KINDS.iter().map(|kind| ((*a, *kind), first(*past))));
        let stages = Mutex::new(stages.collect());
        let (postgres, temporal) = (Mutex::new(postgres), Mutex::new(temporal));
        let (stalls, moved) = Default::default();
        let cast = Self { program, postgres, temporal, routers, workers, stages, world, began, stalls, moved };
        cast.write_flags().await;
        cast.arm().await;
        for slot in cast.slots() {
            slot.start(&cast.program, &mut *slot.child.lock().await).await;
        }
        cast
    }

    /// Nobody has begun anything, so an account is armed on the spot.
    async fn arm(&self) {
        let armed = |past: &Past| matches!(past, Past::Armed | Past::Across | Past::Over);
        for (account, ..) in ACCOUNTS.iter().filter(|(_, past, _)| armed(past)) {
            let arm = sqlx::query_scalar("select (crossover.begin_arming($1, 'live', 'chaos')).state").bind(account);
            let state: String = arm.fetch_one(self.world.pool()).await.unwrap();
            assert_eq!(state, "armed", "{account}");
        }
    }

    fn slots(&self) -> impl Iterator<Item = &Slot> {
        self.routers.iter().chain(&self.workers)
    }

    fn slot(&self, process: Process) -> &Slot {
        match process {
            Process::Router(n) => &self.routers[n],
            Process::Worker(n) => &self.workers[n],
        }
    }

    /// Where router `n` (of as many as there are) listens, as far as a caller knows.
    pub fn router(&self, n: usize) -> Option<SocketAddr> {
        *self.routers[n % ROUTERS].address.borrow()
    }

    pub async fn flip(&self, flip: &Flip) {
        let mut stages = self.stages.lock().await;
        for kind in KINDS.iter().filter(|kind| flip.kind.is_none_or(|only| only == **kind)) {
            stages.insert((flip.account, kind), flip.to);
        }
        drop(stages);
        self.write_flags().await;
    }

    async fn write_flags(&self) {
        let stages = self.stages.lock().await;
        let mut builder = DocumentBuilder::default();
        for ((account, kind), stage) in stages.iter() {
            builder.kind(*stage, account, kind);
        }
        builder.build().unwrap().write_to(&self.world.flags).unwrap();
    }

    /// What moved, as the operators were told.
    pub fn moved(&self) -> Moved {
        self.moved.lock().unwrap().clone()
    }

    pub fn stalls(&self) -> Vec<Stall> {
        self.stalls.lock().unwrap().clone()
    }

    /// Microseconds since the run began, as the runner counts them.
    pub fn now(&self) -> u64 {
        self.began.elapsed().as_micros() as u64
    }

    /// Gives the command, and notes what it says.
    pub async fn hand_over(&self, handover: Handover) {
        let Handover { account, kind, killed } = handover;
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["handover", account, "--yes", "--json"]).args(kind.iter().flat_map(|kind| ["--kind", kind]));
        command.envs(self.world.variables()).env("CROSSOVER_STATE_DIR", self.world.fresh("operator"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let output = command.spawn().unwrap().wait_with_output();
        let output = tokio::time::timeout(killed.unwrap_or(HANDOVER), output).await.map(Result::unwrap);
        if std::env::var("CHAOS_PRINT").is_ok_and(|print| print == "1") {
            println!("handover of {account} {kind:?}: {output:?}");
        }
        let said = output.ok().and_then(|output| serde_json::from_slice::<Value>(&output.stdout).ok());
        let mut moved = self.moved.lock().unwrap();
        moved.accounts.insert(account);
        moved.commands += 1;
        match said.map(|said| said["done"]["moved"].as_u64().unwrap_or(0)) {
            Some(count) => moved.interactions += count,
            // Killed, refused because nothing of the account is armed, or Postgres went away in the middle of it.
            None => moved.unanswered += 1,
        }
    }

    /// Hurts, waits, mends. A process that another fault has in its hands is hurt afterwards.
    pub async fn suffer(&self, fault: Fault) {
        let from = self.now();
        self.hurt(fault).await;
        if matches!(
            fault,
            Fault::Pause(Process::Worker(_), _)
                | Fault::Freeze(Process::Worker(_), ..)
                | Fault::Deafen(Process::Worker(_), ..)
        ) {
            self.stalls.lock().unwrap().push(Stall { from, to: self.now() });
        }
    }

    async fn hurt(&self, fault: Fault) {
        match fault {
            Fault::Kill(process, down) => {
                let slot = self.slot(process);
                let mut child = slot.child.lock().await;
                slot.end(&mut child, |child| child.kill());
                sleep(down).await;
                slot.start(&self.program, &mut child).await;
            }
            Fault::Terminate(process) => {
                let slot = self.slot(process);
                let mut child = slot.child.lock().await;
                if let Some(child) = child.as_mut() {
                    child.terminate();
                    let asked = Instant::now();
                    while !child.has_ended() && asked.elapsed() < DRAIN {
                        sleep(Duration::from_millis(50)).await;
                    }
                }
                slot.end(&mut child, |child| child.kill());
                slot.start(&self.program, &mut child).await;
            }
            Fault::Pause(process, time) => {
                let child = self.slot(process).child.lock().await;
                if let Some(child) = child.as_ref() {
                    child.pause();
                    sleep(time).await;
                    child.go_on();
                }
            }
            Fault::Cut(process, way) => self.slot(process).gate(way).cut(),
            Fault::Freeze(process, way, time) => {
                let gate = self.slot(process).gate(way);
                gate.freeze();
                sleep(time).await;
                gate.open();
            }
            Fault::Deafen(process, way, time) => {
                let gate = self.slot(process).gate(way);
                gate.deafen();
                sleep(time).await;
                gate.cut();
                gate.open();
            }
            Fault::Refuse(process, way, time) => self.refuse(process, way, time).await,
            Fault::Isolate(process, time) => self.refuse(process, Way::Postgres, time).await,
            Fault::RestartPostgres(down) => {
                let mut postgres = self.postgres.lock().await;
                postgres.server.kill().await.unwrap();
                sleep(down).await;
                postgres.server.restart().await.unwrap();
            }
            Fault::RestartTemporal(down) => {
                let mut temporal = self.temporal.lock().await;
                temporal.server.kill().await.unwrap();
                sleep(down).await;
                temporal.server.restart().await.unwrap();
            }
            Fault::EndSessions => self.end_sessions().await,
            Fault::SpoilFlags(time) => {
                std::fs::write(&self.world.flags, "{ \"version\": 2, \"features\": [").unwrap();
                sleep(time).await;
                self.write_flags().await;
            }
            Fault::RemoveFlags(time) => {
                let _ = std::fs::remove_file(&self.world.flags);
                sleep(time).await;
                self.write_flags().await;
            }
        }
    }

    async fn refuse(&self, process: Process, way: Way, time: Duration) {
        let gate = self.slot(process).gate(way);
        gate.refuse();
        sleep(time).await;
        gate.open();
    }

    async fn end_sessions(&self) {
        let postgres = self.postgres.lock().await;
        let Ok(mut connection) = PgConnection::connect(&postgres.url).await else { return };
        let end = "select pg_terminate_backend(pid) from pg_stat_activity
            where datname = current_database() and pid <> pg_backend_pid()";
        let _ = sqlx::query(end).execute(&mut connection).await;
        let _ = connection.close().await;
    }

    /// Whatever is still wrong is right afterwards.
    pub async fn mend(&self) {
        self.write_flags().await;
        for slot in self.slots() {
            for way in [Way::Postgres, Way::Temporal, Way::Runner] {
                slot.gate(way).open();
            }
        }
    }

    /// What Postgres is busy with, or waits for, and how busy the machine is: a few lines.
    pub async fn glance(&self) -> String {
        let busy = "select count(*) || ' ' || coalesce(wait_event, 'works') || ': ' || left(regexp_replace(query, '\\s+', ' ', 'g'), 70)
            from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid() and query <> ''
            group by coalesce(wait_event, 'works'), left(regexp_replace(query, '\\s+', ' ', 'g'), 70) order by count(*) desc limit 6";
        let busy: Vec<String> = sqlx::query_scalar(busy).fetch_all(self.world.pool()).await.unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        format!("load {}\n{}", load.trim(), busy.join("\n"))
    }

    /// What Postgres holds of an interaction and of those beside it in its series, as JSON a line, for whoever has to find out.
    pub async fn story(&self, id: Uuid) -> String {
        let rows = "with near as (
                select n.* from crossover.pins p join crossover.pins n
                on n.id = p.id or (n.series_id = p.series_id and abs(n.series_no - p.series_no) <= 4) where p.id = $1)
            select 'pin ' || to_jsonb(near)::text from near
            union all select 'attempt ' || (to_jsonb(a) - 'result')::text from crossover.attempts a where a.id in (select id from near)
            union all select 'sighting ' || to_jsonb(s)::text from crossover.sightings s where s.id = $1
            union all select 'series ' || to_jsonb(s)::text from crossover.series s where s.series_id in (select series_id from near)";
        let rows: Result<Vec<String>, _> = sqlx::query_scalar(rows).bind(id).fetch_all(self.world.pool()).await;
        format!("{id}\n  {}", rows.unwrap_or_else(|error| vec![error.to_string()]).join("\n  "))
    }

    /// The histories of the workflows that had `id`, a file for each run.
    pub async fn keep_histories(&self, id: Uuid, folder: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
        let series = "select series_id from crossover.pins where id = $1";
        let series: Option<Uuid> = sqlx::query_scalar(series).bind(id).fetch_one(self.world.pool()).await?;
        let workflow = series.map_or(format!("{id}:1"), |series| format!("series:{series}"));
        let http = self.temporal.lock().await.http.clone();
        let base = format!("http://{http}/api/v1/namespaces/default/workflows");
        let get = async |path: String, query: &[(&str, &str)]| {
            let url = reqwest::Url::parse_with_params(&format!("{base}{path}"), query)?;
            let answer = reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.text().await?;
            Ok::<Value, Box<dyn std::error::Error>>(serde_json::from_str(&answer)?)
        };
        let runs = get(String::new(), &[("query", &format!("WorkflowId = '{workflow}'"))]).await?;
        for run in runs["executions"].as_array().into_iter().flatten() {
            let run = run["execution"]["runId"].as_str().unwrap_or_default();
            let page = [("execution.runId", run), ("maximumPageSize", "1000")];
            let history = get(format!("/{workflow}/history"), &page).await?;
            std::fs::write(folder.join(format!("{workflow}-{run}.json")), history.to_string())?;
        }
        Ok(())
    }

    /// The log of every process, for whoever has to find out.
    pub fn keep_logs(&self, folder: &std::path::Path) {
        for slot in self.slots() {
            let name = slot.state.file_name().unwrap().to_string_lossy().into_owned();
            let _ = std::fs::copy(slot.state.join("log"), folder.join(format!("{name}.log")));
        }
    }
}

impl Slot {
    async fn new(world: &World, roles: &'static str, name: &str, runner: &str) -> Self {
        let server = |url: &str| {
            let url = reqwest::Url::parse(url).unwrap();
            format!("{}:{}", url.host_str().unwrap(), url.port().unwrap())
        };
        let [postgres, temporal, runner_gate] = [server(&world.postgres), world.temporal.clone(), server(runner)];
        let (postgres, temporal) = (Gate::to(postgres).await, Gate::to(temporal).await);
        let runner_gate = Gate::to(runner_gate).await;
        let mut variables = world.variables();
        let set = |key: &str, value: String| (format!("CROSSOVER_{key}"), value);
        let mut database = reqwest::Url::parse(&world.postgres).unwrap();
        database.set_port(Some(postgres.address.port())).unwrap();
        variables.extend([
            set("POSTGRES_URL", database.to_string()),
            set("TEMPORAL_ADDRESS", temporal.address.to_string()),
            set("RUNNER_URL", format!("http://{}/run", runner_gate.address)),
            set("WINDOW_IDEMPOTENCY", format!("{}s", WINDOW.as_secs())),
        ]);
        variables.extend(SET.iter().map(|(key, value)| set(key, (*value).to_owned())));
        let state = world.fresh(name);
        let (child, address) = (Mutex::default(), watch::Sender::new(None));
        Self { roles, state, variables, postgres, temporal, runner: runner_gate, child, address }
    }

    fn gate(&self, way: Way) -> &Gate {
        match way {
            Way::Postgres => &self.postgres,
            Way::Temporal => &self.temporal,
            Way::Runner => &self.runner,
        }
    }

    fn end(&self, child: &mut Option<Child>, how: impl FnOnce(&mut Child)) {
        self.address.send_replace(None);
        if let Some(mut child) = child.take() {
            how(&mut child);
        }
    }

    /// Starts it, again and again: a start may meet a server that is away, and then ends by itself.
    async fn start(&self, program: &str, child: &mut Option<Child>) {
        loop {
            match Child::run(program, self.roles, self.state.clone(), &self.variables).await {
                Ok(started) => {
                    self.address.send_replace(Some(started.address));
                    *child = Some(started);
                    return;
                }
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }
}
