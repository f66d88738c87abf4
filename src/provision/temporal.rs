//! A Temporal of our own: the development server, on a file that survives its crashes.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::net::TcpStream;

use super::account::Account;
use super::error::{Error, Result};
use super::guard::{Home, Launch};
use super::server::{Probe, Server};
use super::{Options, TEMPORAL};
use crate::temporal::attribute::ACCOUNT_ATTRIBUTE;

const DEFAULT_NAMESPACE: &str = "default";

/// The write-ahead log keeps every acknowledged start through a crash of the server.
const PRAGMAS: &[&str] = &["journal_mode=WAL", "synchronous=NORMAL"];

/// Measured: the first takes a workflow from 100 to 17 ms, the second makes short timers punctual, the others
/// tame the tail, for one partition is plenty here.
const DYNAMIC_CONFIG: &[&str] = &[
    "history.transferProcessorMaxPollRPS=2000",
    "history.timerProcessorMaxTimeShift=\"1ms\"",
    "matching.numTaskqueueReadPartitions=1",
    "matching.numTaskqueueWritePartitions=1",
];

/// A running Temporal.
#[derive(Debug)]
pub struct Temporal {
    /// `127.0.0.1:PORT` of the gRPC service.
    pub address: String,
    /// `127.0.0.1:PORT` of the HTTP API.
    pub http: String,
    /// `127.0.0.1:PORT` of the Prometheus metrics, under `/metrics`.
    pub metrics: String,
    /// Its process.
    pub server: Server,
}

/// Starts a Temporal, on the data that is there or on none.
pub async fn temporal(options: &Options) -> Result<Temporal> {
    let program = match &options.temporal_bin {
        Some(path) => path.clone(),
        None => TEMPORAL.ensure(&options.cache_dir, &options.progress).await?.join("temporal"),
    };
    let program = std::path::absolute(&program).map_err(Error::io("find", &program))?;
    let account = Account::for_servers()?;
    let todo = "set provision.temporal_bin to the temporal program, or to nothing and empty the cache";
    Account::require_program(account.as_ref(), &program, todo)?;
    let home = Home::make(options.data_dir.as_ref(), "temporal", account)?;
    let _step = options.progress.step("starting Temporal");
    let namespace = options.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
    let plan = |ports| Ok((launch(&program, &home, namespace, ports), Box::new(Ready::new(namespace, ports)) as _));
    let (server, ports) = home.clear_unless(Server::start(plan).await)?;
    let [address, http, metrics] = ports.map(|port| format!("127.0.0.1:{port}"));
    Ok(Temporal { address, http, metrics, server })
}

fn launch(program: &Path, home: &Home, namespace: &str, [port, http, metrics]: [u16; 3]) -> Launch {
    let mut args: Vec<OsString> = ["server", "start-dev", "--headless", "--ip", "127.0.0.1"].map(OsString::from).into();
    for (flag, port) in [("--port", port), ("--http-port", http), ("--metrics-port", metrics)] {
        args.extend([flag.into(), port.to_string().into()]);
    }
    args.extend(["--db-filename".into(), home.path.join("temporal.db").into(), "--log-level".into(), "warn".into()]);
    args.extend(PRAGMAS.iter().flat_map(|pragma| ["--sqlite-pragma", *pragma]).map(OsString::from));
    args.extend(DYNAMIC_CONFIG.iter().flat_map(|value| ["--dynamic-config-value", *value]).map(OsString::from));
    args.extend(["--search-attribute".into(), format!("{ACCOUNT_ATTRIBUTE}=Keyword").into()]);
    if namespace != DEFAULT_NAMESPACE {
        args.extend(["--namespace".into(), namespace.into()]);
    }
    let (program, home) = (PathBuf::from(program), home.clone());
    Launch { name: "Temporal", program, args, variables: Vec::new(), home, stop_signal: "TERM" }
}

#[derive(Debug)]
struct Ready {
    grpc: u16,
    url: String,
    client: reqwest::Client,
}

impl Probe for Ready {
    /// The port accepts, and the whole server answers behind it.
    fn look(&self) -> BoxFuture<'_, Result<(), String>> {
        async move {
            TcpStream::connect((Ipv4Addr::LOCALHOST, self.grpc)).await.map_err(|error| error.to_string())?;
            let answer = self.client.get(&self.url).send().await.map_err(|error| error.to_string())?;
            answer.error_for_status().map(drop).map_err(|error| error.to_string())
        }
        .boxed()
    }
}

impl Ready {
    fn new(namespace: &str, [grpc, http, _]: [u16; 3]) -> Self {
        // No proxy of the environment for the loopback, and nothing kept that belongs to this runtime.
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
        let url = format!("http://127.0.0.1:{http}/api/v1/namespaces/{namespace}");
        Self { grpc, url, client: client.expect("a client without files or proxies") }
    }
}
