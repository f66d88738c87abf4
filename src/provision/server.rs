//! A running server, whichever it is: started, watched until it is ready, killed, restarted, stopped.

use std::time::{Duration, Instant};

use tokio::time::{sleep, timeout};

use super::error::{Error, Result};
use super::files::LOOK;
use super::guard::{Guard, Launch};
use super::ports;

/// A server that replays a long log at its start may take so long.
const READY: Duration = Duration::from_secs(60);
/// One look whether it is ready.
const PROBE: Duration = Duration::from_secs(5);
/// Ports that were free may be taken a moment later; so often others are tried.
const PORT_ATTEMPTS: usize = 5;

/// Asks a server whether it is ready; the error says why not.
pub(super) trait Probe: std::fmt::Debug + Send + Sync {
    /// One look.
    fn look(&self) -> futures::future::BoxFuture<'_, Result<(), String>>;
}

/// A server of our own. Dropping it stops it; it ends with this process in any case.
#[derive(Debug)]
pub struct Server {
    /// The server's process.
    pub pid: u32,
    /// The loopback's ports that it listens on.
    pub ports: Vec<u16>,
    launch: Launch,
    probe: Box<dyn Probe>,
    guard: Option<Guard>,
}

impl Server {
    /// Starts what `plan` says for free ports, with others if these are taken meanwhile, and waits until it is ready.
    pub(super) async fn start<const N: usize>(
        plan: impl Fn([u16; N]) -> Result<(Launch, Box<dyn Probe>)>,
    ) -> Result<(Self, [u16; N])> {
        for attempt in 1.. {
            let free = ports::free::<N>()?;
            let (launch, probe) = plan(free)?;
            match run(&launch, &*probe, &free).await {
                Ok(guard) => {
                    let (pid, ports) = (guard.pid, free.to_vec());
                    return Ok((Self { pid, ports, launch, probe, guard: Some(guard) }, free));
                }
                Err(Error::PortTaken { .. }) if attempt < PORT_ATTEMPTS => {}
                Err(error) => return Err(error),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// Whether the process is there.
    pub fn is_running(&self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.status().is_none())
    }

    /// Kills the server with SIGKILL, as a crash would, and waits until it is gone. Its data stays.
    pub async fn kill(&mut self) -> Result<()> {
        let Some(guard) = &self.guard else { return Ok(()) };
        guard.kill();
        let wont = |_| Error::WontEnd { server: self.launch.name, pid: self.pid, waited: PROBE };
        timeout(PROBE, guard.ended()).await.map(drop).map_err(wont)
    }

    /// Starts the server again, on its data and ports, and waits until it is ready. Stops it first if it runs.
    pub async fn restart(&mut self) -> Result<()> {
        if let Some(guard) = self.guard.take() {
            guard.end(self.launch.name, true).await?;
        }
        let guard = run(&self.launch, &*self.probe, &self.ports).await?;
        self.pid = guard.pid;
        self.guard = Some(guard);
        Ok(())
    }

    /// Stops the server in good order and waits until it is gone. A throwaway one takes its data along.
    pub async fn stop(&mut self) -> Result<()> {
        if let Some(guard) = self.guard.take() {
            guard.end(self.launch.name, false).await?;
        }
        self.launch.home.clear()
    }
}

/// Runs a program that ends by itself, like the making of a database cluster.
pub(super) async fn run_to_end(launch: &Launch, patience: Duration) -> Result<()> {
    let guard = Guard::spawn(launch).await?;
    let Ok(status) = timeout(patience, guard.ended()).await else {
        let (log, last) = (launch.home.log_tail(), "it still runs".to_owned());
        return Err(Error::NotReady { server: launch.name, waited: patience, last, log });
    };
    if status != "0" {
        // The guard is dropped after its log was read, for it may remove it.
        return Err(Error::Ended { server: launch.name, status, log: launch.home.log_tail() });
    }
    guard.end(launch.name, true).await
}

async fn run(launch: &Launch, probe: &dyn Probe, ports: &[u16]) -> Result<Guard> {
    let guard = Guard::spawn(launch).await?;
    let ready = tokio::select! {
        ready = until_ready(probe) => ready,
        status = guard.ended() => return Err(ended(launch, guard, status, ports).await),
    };
    let Err(last) = ready else { return Ok(guard) };
    let log = launch.home.log_tail();
    Err(Error::NotReady { server: launch.name, waited: READY, last, log })
}

async fn ended(launch: &Launch, guard: Guard, status: String, ports: &[u16]) -> Error {
    let (server, log) = (launch.name, launch.home.log_tail());
    if !ports::taken(&log) {
        return Error::Ended { server, status, log };
    }
    // The folder must stay for the next attempt.
    match guard.end(server, true).await {
        Ok(()) => Error::PortTaken { server, ports: ports.to_vec(), log },
        Err(error) => error,
    }
}

async fn until_ready(probe: &dyn Probe) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        let look = timeout(PROBE, probe.look()).await.unwrap_or_else(|_| Err("it doesn't answer".to_owned()));
        match look {
            Err(_) if begun.elapsed() < READY => sleep(LOOK).await,
            done => return done,
        }
    }
}

/// Ready when a path of it answers with success.
#[derive(Debug)]
pub(super) struct HttpProbe {
    url: String,
    client: reqwest::Client,
}

impl HttpProbe {
    pub(super) fn new(port: u16, path: &str) -> Self {
        // No proxy of the environment for the loopback, and nothing kept that belongs to this runtime.
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build();
        Self {
            url: format!("http://127.0.0.1:{port}{path}"),
            client: client.expect("a client without files or proxies"),
        }
    }
}

impl Probe for HttpProbe {
    fn look(&self) -> futures::future::BoxFuture<'_, Result<(), String>> {
        Box::pin(async move {
            let answer = self.client.get(&self.url).send().await.map_err(|error| error.to_string())?;
            answer.error_for_status().map(drop).map_err(|error| error.to_string())
        })
    }
}
