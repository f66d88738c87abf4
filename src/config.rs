//! The only reader of the environment and of the configuration file. It checks all of it once and reports
//! every fault together, so that nobody mends one, starts again and meets the next.
//!
//! `crossover.example.toml` lists every key with its default; `CROSSOVER_<SECTION>_<KEY>` overrides one.

mod kinds;
mod reader;
mod secret;
pub mod tokens;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use kinds::Kind;
pub use reader::{ConfigFaults, Fault};
pub use secret::{Secret, SecretUrl};

use reader::Reader;

/// Read where no file is named, if it exists.
const DEFAULT_FILE: &str = "crossover.toml";

/// The four flags, as `flags.accept_missing` may name them.
const FLAGS: [&str; 4] = ["crossover-shadow", "crossover-live", "crossover-complete", "crossover-kill"];

/// Everything that can be set, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the process keeps what must outlive it (last flags, armed set, spool, servers).
    pub state_dir: PathBuf,
    /// Who gives commands: recorded with every flip and override.
    pub operator: String,
    /// The new side's database.
    pub postgres: Postgres,
    /// The old side's server.
    pub temporal: Temporal,
    /// Where the stages come from.
    pub flags: Flags,
    /// What executions call.
    pub runner: Runner,
    /// The API.
    pub http: Http,
    /// The Postgres side's worker.
    pub worker: Worker,
    /// How enqueues are decided.
    pub router: Router,
    /// What comes in from SQL.
    pub intake: Intake,
    /// Schedules.
    pub schedules: Schedules,
    /// Delivery from the outbox.
    pub relay: Relay,
    /// The side that runs nothing.
    pub rehearsal: Rehearsal,
    /// The recorder of what both sides do.
    pub observer: Observer,
    /// What compares both sides.
    pub comparator: Comparator,
    /// How latencies in pairs are judged.
    pub latency: Latency,
    /// What a report calls a pass.
    pub report: Report,
    /// How long keys are remembered.
    pub window: Window,
    /// For how long what has ended is kept.
    pub retention: Retention,
    /// What is logged, and how.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// Servers that crossover starts itself.
    pub provision: Provision,
}

/// `[postgres]`
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Absent: one is provisioned.
    pub url: Option<SecretUrl>,
    /// Size of the pool.
    pub max_connections: u32,
    /// A connection that takes longer is an outage.
    pub connect_timeout: Duration,
}

/// `[temporal]`
#[derive(Debug, Clone)]
pub struct Temporal {
    /// `host:port` of the gRPC service. Absent: one is provisioned.
    pub address: Option<String>,
    /// The namespace of all workflows.
    pub namespace: String,
    /// The task queue of all workflows.
    pub task_queue: String,
    /// The search attribute by which the workflows of an account are listed.
    pub account_attribute: String,
    /// For so long Temporal's lists may lack what was started.
    pub visibility_lag: Duration,
    /// A start that takes longer is in doubt.
    pub start_timeout: Duration,
}

/// `[flags]`
#[derive(Debug, Clone)]
pub struct Flags {
    /// Which of the two is followed.
    pub source: FlagSource,
    /// A document in Unleash's client-features format.
    pub file: PathBuf,
    /// How often to look whether it changed.
    pub poll: Duration,
    /// Where Unleash is, without `/api`. Needed to follow it.
    pub url: Option<SecretUrl>,
    /// A backend token of Unleash. Needed to follow it.
    pub token: Option<Secret>,
    /// An admin token of Unleash, or one of a service account that may update strategies. Commands that flip need it.
    pub admin_token: Option<Secret>,
    /// Where Unleash's admin API is, if not at `url`.
    pub admin_url: Option<SecretUrl>,
    /// The environment of Unleash in which the flags are switched.
    pub environment: String,
    /// The project of Unleash that holds the flags.
    pub project: String,
    /// What Unleash knows this program as.
    pub app_name: String,
    /// How often Unleash is asked.
    pub interval: Duration,
    /// An answer that takes longer is none.
    pub timeout: Duration,
    /// How often what was counted is reported to Unleash.
    pub report: Duration,
    /// Flags whose absence from Unleash is meant: they are off. Others keep their last definition.
    pub accept_missing: Vec<&'static str>,
    /// Unleash's answers must be older than the flags in force for so long before they are believed.
    pub accept_older: Duration,
}

/// Where the flags come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlagSource {
    /// `flags.file`
    File,
    /// The Unleash at `flags.url`
    Unleash,
}

/// `[runner]`
#[derive(Debug, Clone)]
pub struct Runner {
    /// What executions are posted to. A worker needs it.
    pub url: Option<SecretUrl>,
    /// A connection that takes longer fails the attempt.
    pub connect_timeout: Duration,
}

/// `[http]`
#[derive(Debug, Clone)]
pub struct Http {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Larger payloads are refused with 413.
    pub max_payload_bytes: usize,
    /// A request that takes longer is answered without its result.
    pub request_timeout: Duration,
    /// A batch has so many interactions at most.
    pub max_batch: usize,
    /// The body of a batch has so many bytes at most.
    pub max_batch_bytes: usize,
    /// `?wait=` holds an answer for so long at most.
    pub max_wait: Duration,
    /// So many answers are held at once; further ones are given at once.
    pub max_waiters: usize,
    /// So many requests are worked on at once; further ones are refused with 503.
    pub max_requests: usize,
    /// So many connections are open at once; further ones wait until one is over.
    pub max_connections: usize,
    /// A connection that is idle for so long, or does not send the head of its request within it, is closed.
    pub header_timeout: Duration,
    /// Requests a second of one token, or of one address without tokens; further ones are refused with 429. 0: no limit.
    pub rate: u32,
    /// So many may come at once before the rate counts.
    pub burst: u32,
    /// Who may ask for what. Absent: everybody may, from this machine.
    pub tokens: Option<Vec<tokens::Token>>,
}

/// `[telemetry]`
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// The OTLP collector (gRPC) that traces are sent to. Absent: none are made.
    pub otlp_endpoint: Option<SecretUrl>,
    /// Of a hundred interactions, so many are traced.
    pub sample_percent: u32,
}

/// `[worker]`
#[derive(Debug, Clone)]
pub struct Worker {
    /// Interactions that run at once in this process.
    pub slots: u32,
    /// A claim that isn't renewed for so long is taken back.
    pub lease: Duration,
    /// The poll behind all wake-ups.
    pub poll: Duration,
    /// What runs at a shutdown gets so long to end.
    pub shutdown_grace: Duration,
    /// Without a runner: remote workers run everything.
    pub remote_only: bool,
}

/// `[router]`
#[derive(Debug, Clone)]
pub struct Router {
    /// Whether work of accounts that are not armed starts on Temporal without a pin while Postgres is away.
    pub fail_open: bool,
    /// Such work waits so long for its pin.
    pub pin_budget: Duration,
    /// After so many failures in a row nobody asks Postgres for a while.
    pub breaker_failures: u32,
    /// For so long, a quarter more or less.
    pub breaker_open: Duration,
    /// Interactions that wait on disk to be pinned, at most.
    pub spool_entries: usize,
    /// Their bytes, at most.
    pub spool_bytes: u64,
    /// A process that starts without Postgres goes by its disk for so long after its last beat.
    pub disk_valid: Duration,
    /// Whether work in complete that only its caller can name becomes a task.
    pub tasks: bool,
}

/// `[intake]`
#[derive(Debug, Clone)]
pub struct Intake {
    /// How often a router looks for what `crossover.enqueue` left.
    pub poll: Duration,
    /// Rows in one look.
    pub batch: u32,
}

/// `[schedules]`
#[derive(Debug, Clone)]
pub struct Schedules {
    /// How often a router looks for schedules that others made.
    pub poll: Duration,
    /// Schedules in one look.
    pub batch: u32,
    /// Looks under way at once.
    pub parallel: u32,
    /// What became of their times is kept so long.
    pub keep: Duration,
    /// What Temporal's copies of them do.
    pub mirror: Mirroring,
}

/// What Temporal's copies of schedules do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mirroring {
    /// They tick.
    On,
    /// They are there, and paused.
    Paused,
}

/// `[relay]`
#[derive(Debug, Clone)]
pub struct Relay {
    /// How often it looks at the outbox.
    pub poll: Duration,
    /// Deliveries in one look.
    pub batch: u32,
    /// Deliveries a second, of this process.
    pub rate: u32,
    /// More rehearsals than so many don't wait for Temporal: the oldest are dropped.
    pub rehearsal_backlog: u32,
    /// Rows younger than this are left to the router that wrote them.
    pub grace: Duration,
    /// What Temporal owns and has not ended so long after it was due is delivered to it again.
    pub sweep_after: Duration,
}

/// `[rehearsal]`
#[derive(Debug, Clone)]
pub struct Rehearsal {
    /// A rehearsal gives its slot back after so long, whatever the real run does.
    pub bound: Duration,
}

/// `[observer]`
#[derive(Debug, Clone)]
pub struct Observer {
    /// Sightings that wait in this process at most.
    pub buffer: usize,
    /// Sightings are kept for so long.
    pub keep: Duration,
}

/// `[comparator]`
#[derive(Debug, Clone)]
pub struct Comparator {
    /// 0 to 1: the share of interactions that is compared.
    pub sample: f64,
    /// How often it looks.
    pub every: Duration,
    /// How late is late, where others overtook it.
    pub late: Duration,
    /// How early is early.
    pub early: Duration,
    /// By how much the waits between attempts may differ.
    pub retry: Duration,
    /// For how long it waits for what a side should do.
    pub patience: Duration,
    /// By how much two clocks may differ.
    pub clocks: Duration,
    /// How long a side needs to catch up after a disturbance.
    pub recovery: Duration,
    /// How far it looks back when it starts.
    pub catch_up: Duration,
    /// For how long verdicts are kept.
    pub keep: Duration,
    /// What is tolerated of some kinds.
    pub kinds: BTreeMap<String, Kind>,
}

/// `[latency]`: what the sequential test of [`crate::comparator::latency`] asks, and when it may answer.
#[derive(Debug, Clone)]
pub struct Latency {
    /// A pair is slow where Postgres starts it so much later than Temporal does.
    pub margin: Duration,
    /// The share of pairs that must not be slow, between 0 and 1.
    pub quantile: f64,
    /// How sure an answer has to be, between 0 and 1.
    pub confidence: f64,
    /// Fewer pairs are always inconclusive.
    pub min_pairs: u64,
    /// So many neighbouring pairs may share a cause; together they count as one.
    pub burst: u32,
    /// Days older than this are forgotten.
    pub keep: Duration,
}

/// `[report]`
#[derive(Debug, Clone)]
pub struct Report {
    /// Fewer judged interactions of an account and kind are inconclusive.
    pub min_samples: u32,
    /// The share of pinned (and sampled) interactions that must have been judged, 0 to 1.
    pub min_coverage: f64,
    /// What is in flight for longer is an unknown.
    pub in_flight_age: Duration,
    /// A comparator that is further behind, or silent for longer, is an unknown.
    pub comparator_lag: Duration,
}

/// `[window]`
#[derive(Debug, Clone)]
pub struct Window {
    /// A caller may repeat a key for so long.
    pub idempotency: Duration,
}

/// `[retention]`
#[derive(Debug, Clone)]
pub struct Retention {
    /// What has ended is kept for so long.
    pub ended: Duration,
    /// Instead, by kind.
    pub kinds: BTreeMap<String, Duration>,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// What is logged, in the words of tracing's `EnvFilter`.
    pub filter: String,
    /// One JSON object a line.
    pub json: bool,
}

/// `[provision]`
#[derive(Debug, Clone)]
pub struct Provision {
    /// Where the servers' binaries are kept.
    pub cache_dir: PathBuf,
    /// Where the servers' data is kept.
    pub data_dir: PathBuf,
    /// The folder of `postgres` and `initdb`, instead of the fetched ones.
    pub postgres_bin_dir: Option<PathBuf>,
    /// The `temporal` program, instead of the fetched one.
    pub temporal_bin: Option<PathBuf>,
}

impl Config {
    /// Reads the named file (or `crossover.toml`, if there is one) and the environment.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigFaults> {
        Self::read(Reader::from_surroundings(path, Path::new(DEFAULT_FILE)))
    }

    /// Every key at its default, whatever the file and the environment say; for programs that set what they need.
    pub fn defaults() -> Self {
        Self::take(&mut Reader::default())
    }

    /// Every key with its default in TOML; empty for what is absent unless set.
    pub fn keys() -> Vec<(&'static str, String)> {
        let mut reader = Reader::default();
        Self::take(&mut reader);
        reader.keys()
    }

    fn read(mut reader: Reader) -> Result<Self, ConfigFaults> {
        let config = Self::take(&mut reader);
        config.check_together(&mut reader);
        reader.finish(config)
    }

    /// The one list of keys, defaults and ranges.
    fn take(r: &mut Reader) -> Self {
        let state_dir = r.path("state_dir", ".crossover");
        Self {
            operator: r.derived_name("operator", default_operator()),
            postgres: Postgres {
                url: r.url("postgres.url", &["postgres", "postgresql"]),
                max_connections: r.integer("postgres.max_connections", 20, 2..=1000),
                connect_timeout: r.duration("postgres.connect_timeout", "5s", "50ms", "1m"),
            },
            temporal: Temporal {
                address: r.address("temporal.address"),
                namespace: r.name("temporal.namespace", "default"),
                task_queue: r.name("temporal.task_queue", "crossover"),
                account_attribute: r.attribute("temporal.account_attribute", "CrossoverAccount"),
                visibility_lag: r.duration("temporal.visibility_lag", "5s", "0s", "10m"),
                start_timeout: r.duration("temporal.start_timeout", "2s", "50ms", "1m"),
            },
            flags: Flags {
                file: r.path("flags.file", "flags/crossover.json"),
                poll: r.duration("flags.poll", "1s", "10ms", "1h"),
                source: match r.choice("flags.source", &["file", "unleash"]) {
                    "unleash" => FlagSource::Unleash,
                    _ => FlagSource::File,
                },
                url: r.url("flags.url", &["http", "https"]),
                token: r.secret("flags.token"),
                admin_token: r.secret("flags.admin_token"),
                admin_url: r.url("flags.admin_url", &["http", "https"]),
                environment: r.name("flags.environment", "development"),
                project: r.name("flags.project", "default"),
                app_name: r.name("flags.app_name", "crossover"),
                interval: r.duration("flags.interval", "2s", "10ms", "1h"),
                timeout: r.duration("flags.timeout", "5s", "10ms", "1m"),
                report: r.duration("flags.report", "60s", "10ms", "1h"),
                accept_missing: r.choices("flags.accept_missing", &FLAGS),
                accept_older: r.duration("flags.accept_older", "10m", "0s", "24h"),
            },
            runner: Runner {
                url: r.url("runner.url", &["http", "https"]),
                connect_timeout: r.duration("runner.connect_timeout", "2s", "10ms", "1m"),
            },
            http: Http {
                listen: r.listen("http.listen", "127.0.0.1:7080"),
                // Temporal refuses blobs over 2 MiB, and the envelope needs room beside the payload.
                max_payload_bytes: r.integer("http.max_payload_bytes", 1_048_576, 1024..=1_572_864),
                request_timeout: r.duration("http.request_timeout", "30s", "100ms", "10m"),
                max_batch: r.integer("http.max_batch", 500, 1..=10_000),
                max_batch_bytes: r.integer("http.max_batch_bytes", 8_388_608, 1024..=268_435_456),
                max_wait: r.duration("http.max_wait", "30s", "0s", "10m"),
                max_waiters: r.integer("http.max_waiters", 500, 0..=100_000),
                max_requests: r.integer("http.max_requests", 1_000, 1..=100_000),
                max_connections: r.integer("http.max_connections", 4_000, 1..=100_000),
                header_timeout: r.duration("http.header_timeout", "30s", "100ms", "10m"),
                rate: r.integer("http.rate", 0, 0..=1_000_000),
                burst: r.integer("http.burst", 100, 1..=1_000_000),
                tokens: Self::tokens(r),
            },
            worker: Worker {
                slots: r.integer("worker.slots", 32, 1..=10_000),
                lease: r.duration("worker.lease", "15s", "500ms", "1h"),
                poll: r.duration("worker.poll", "200ms", "5ms", "1m"),
                shutdown_grace: r.duration("worker.shutdown_grace", "20s", "0s", "1h"),
                remote_only: r.switch("worker.remote_only", false),
            },
            router: Router {
                // Without Temporal there is nowhere to start it.
                fail_open: r.switch("router.fail_open", true) && cfg!(feature = "temporal"),
                tasks: r.switch("router.tasks", false),
                pin_budget: r.duration("router.pin_budget", "250ms", "5ms", "30s"),
                breaker_failures: r.integer("router.breaker_failures", 5, 1..=1_000),
                breaker_open: r.duration("router.breaker_open", "1s", "10ms", "1m"),
                spool_entries: r.integer("router.spool_entries", 100_000, 0..=10_000_000),
                spool_bytes: r.integer("router.spool_bytes", 134_217_728, 0..=17_179_869_184),
                disk_valid: r.duration("router.disk_valid", "1h", "1s", "30days"),
            },
            intake: Intake {
                poll: r.duration("intake.poll", "200ms", "5ms", "1m"),
                batch: r.integer("intake.batch", 500, 1..=10_000),
            },
            schedules: Schedules {
                poll: r.duration("schedules.poll", "500ms", "5ms", "1m"),
                batch: r.integer("schedules.batch", 250, 1..=5_000),
                parallel: r.integer("schedules.parallel", 2, 1..=16),
                keep: r.duration("schedules.keep", "30days", "1m", "3650days"),
                mirror: match r.choice("schedules.mirror", &["on", "paused"]) {
                    "paused" => Mirroring::Paused,
                    _ => Mirroring::On,
                },
            },
            relay: Relay {
                poll: r.duration("relay.poll", "100ms", "5ms", "1m"),
                batch: r.integer("relay.batch", 100, 1..=10_000),
                rate: r.integer("relay.rate", 100, 1..=100_000),
                rehearsal_backlog: r.integer("relay.rehearsal_backlog", 100_000, 0..=100_000_000),
                grace: r.duration("relay.grace", "2s", "0s", "1h"),
                sweep_after: r.duration("relay.sweep_after", "5m", "1s", "24h"),
            },
            rehearsal: Rehearsal { bound: r.duration("rehearsal.bound", "60s", "100ms", "24h") },
            observer: Observer {
                buffer: r.integer("observer.buffer", 50_000, 100..=1_000_000),
                keep: r.duration("observer.keep", "14days", "1day", "366days"),
            },
            comparator: Comparator {
                sample: r.share("comparator.sample", "1.0", 0.0..=1.0),
                every: r.duration("comparator.every", "1s", "10ms", "1m"),
                late: r.duration("comparator.late", "5s", "10ms", "24h"),
                early: r.duration("comparator.early", "500ms", "0s", "24h"),
                retry: r.duration("comparator.retry", "500ms", "0s", "24h"),
                patience: r.duration("comparator.patience", "30s", "1s", "24h"),
                clocks: r.duration("comparator.clocks", "250ms", "0s", "1m"),
                recovery: r.duration("comparator.recovery", "30s", "0s", "24h"),
                catch_up: r.duration("comparator.catch_up", "1h", "1s", "14days"),
                keep: r.duration("comparator.keep", "14days", "1h", "366days"),
                kinds: kinds::read(r, "comparator.kinds"),
            },
            latency: Latency {
                margin: r.duration("latency.margin", "50ms", "0s", "1h"),
                quantile: r.share("latency.quantile", "0.95", 0.5..=0.999),
                confidence: r.share("latency.confidence", "0.99", 0.5..=0.9999),
                min_pairs: r.integer("latency.min_pairs", 200, 1..=1_000_000_000),
                burst: r.integer("latency.burst", 5, 1..=10_000),
                keep: r.duration("latency.keep", "30days", "1day", "10years"),
            },
            report: Report {
                min_samples: r.integer("report.min_samples", 100, 1..=1_000_000_000),
                min_coverage: r.share("report.min_coverage", "0.95", 0.0..=1.0),
                in_flight_age: r.duration("report.in_flight_age", "10m", "1s", "30days"),
                comparator_lag: r.duration("report.comparator_lag", "1m", "1s", "24h"),
            },
            window: Window { idempotency: r.duration("window.idempotency", "24h", "1s", "90days") },
            retention: Retention {
                ended: r.duration("retention.ended", "30days", "1s", "10years"),
                kinds: kinds::durations(r, "retention.kinds"),
            },
            log: Log {
                filter: r
                    .name("log.filter", "info,temporalio_sdk_core=warn,temporalio_sdk=warn,temporalio_client=warn"),
                json: r.choice("log.format", &["text", "json"]) == "json",
            },
            telemetry: Telemetry {
                otlp_endpoint: r.url("telemetry.otlp_endpoint", &["http", "https"]),
                sample_percent: r.integer("telemetry.sample_percent", 100, 0..=100),
            },
            provision: Provision {
                cache_dir: r.derived_path("provision.cache_dir", default_cache_dir()),
                data_dir: r.derived_path("provision.data_dir", state_dir.join("servers")),
                postgres_bin_dir: r.optional_path("provision.postgres_bin_dir"),
                temporal_bin: r.optional_path("provision.temporal_bin"),
            },
            state_dir,
        }
    }

    /// The tokens of the file that `http.tokens_file` names. One that can't be used lets nobody in.
    fn tokens(r: &mut Reader) -> Option<Vec<tokens::Token>> {
        let file = r.optional_path("http.tokens_file")?;
        let read = tokens::read(&file, |name| std::env::var(name).ok());
        Some(read.unwrap_or_else(|faults| {
            faults.iter().for_each(|fault| r.fault("http.tokens_file", fault));
            Vec::new()
        }))
    }

    /// Why nobody may listen as configured: whoever reaches the address could put work in.
    pub fn open_to_strangers(&self) -> Option<&'static str> {
        (self.http.tokens.is_none() && !self.http.listen.ip().is_loopback()).then_some(
            "is reached from other machines, and nobody would be asked for a token; make one with `crossover token new \
             --name NAME --scope enqueue,read` and name its file as http.tokens_file, or listen on 127.0.0.1",
        )
    }

    /// What no key can get wrong alone.
    fn check_together(&self, r: &mut Reader) {
        if let Some(problem) = self.open_to_strangers() {
            r.fault("http.listen", problem);
        }
        if self.http.max_waiters >= self.http.max_requests {
            r.fault(
                "http.max_waiters",
                "must be less than http.max_requests, or callers who wait leave no room for others",
            );
        }
        if self.worker.poll >= self.worker.lease {
            r.fault("worker.poll", "must be shorter than worker.lease, or leases run out between two looks");
        }
        for (kind, keep) in &self.retention.kinds {
            if *keep < self.window.idempotency {
                r.push(
                    format!("retention.kinds.{kind}"),
                    None,
                    "must be at least window.idempotency, or a key that is repeated within that time would run again",
                );
            }
        }
        if self.router.disk_valid <= self.postgres.connect_timeout {
            r.fault(
                "router.disk_valid",
                "must be longer than postgres.connect_timeout, or what is on disk is too old whenever Postgres is slow once",
            );
        }
        if self.flags.source == FlagSource::Unleash {
            self.flags.check_unleash(r);
        }
    }
}

impl Flags {
    /// What following Unleash needs.
    fn check_unleash(&self, r: &mut Reader) {
        if self.url.is_none() {
            r.fault(
                "flags.url",
                "is needed with flags.source = \"unleash\": where Unleash is, like https://unleash.example.com",
            );
        }
        let Some(token) = &self.token else {
            r.fault(
                "flags.token",
                "is needed with flags.source = \"unleash\": a backend token, made in Unleash for its flags.environment",
            );
            return;
        };
        // `project:environment.secret`; older ones are one word.
        let environment = token.expose().split_once(':').and_then(|(_, rest)| rest.split_once('.')).map(|(it, _)| it);
        if environment.is_some_and(|it| it != "*" && it != self.environment) {
            r.fault(
                "flags.token",
                "is for another environment than flags.environment says; make one for that, or mend flags.environment",
            );
        }
    }
}

/// Where the servers' binaries are kept unless `provision.cache_dir` says otherwise. Root keeps them where the
/// unprivileged user that runs the servers can read them.
pub fn default_cache_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return "/var/cache/crossover".into();
    }
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    home.unwrap_or_else(temp_dir).join("crossover")
}

/// `user@machine`, as far as this process knows them.
fn default_operator() -> String {
    let user =
        ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok()).filter(|user| !user.is_empty());
    let user = user.unwrap_or_else(|| format!("uid {}", rustix::process::geteuid().as_raw()));
    format!("{user}@{}", machine())
}

/// The name of this machine.
pub fn machine() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").ok().or_else(|| std::env::var("HOSTNAME").ok());
    let name = name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty());
    name.unwrap_or_else(|| "unknown machine".to_owned())
}

/// Where throwaway data goes.
pub fn temp_dir() -> PathBuf {
    std::env::temp_dir()
}

#[cfg(test)]
mod tests;
