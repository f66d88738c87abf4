//! A Prometheus of our own, with promtool: what proves dashboards and alerts against a real run. No index of pip or npm
//! carries it, so it is Debian's package, fetched by apt into the cache and unpacked there. Nothing is installed, and
//! nobody need be root.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::account::Account;
use super::error::{Error, Result};
use super::guard::{Home, Launch};
use super::server::{HttpProbe, Server};
use super::{Options, files, wheel};

/// What the tests were written with. Debian keeps one version of a release, so a later one is taken where this is gone:
/// apt takes nothing that Debian has not signed.
const VERSION: &str = "2.42.0+ds-5+deb12u1";
const HASHES: &[(&str, &str)] = &[
    ("x86_64", "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55"),
    ("aarch64", "ca131aa102390083398afbc80be9c8dd1dda78f9f92154fc00df8f7f1f4556e9"),
];

const PATIENCE: Duration = Duration::from_secs(300);
const INSTEAD: &str = "have a folder with prometheus and promtool at hand instead";

/// Keeps apt's hands off the machine: lists and archives of its own, none of the machine's hooks.
const APT_CONF: &str = "#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
Acquire::Languages \"none\";
Acquire::Retries \"2\";
";

/// A running Prometheus.
#[derive(Debug)]
pub struct Prometheus {
    /// `http://127.0.0.1:PORT`, of the API.
    pub url: String,
    /// Its process.
    pub server: Server,
}

/// What it is started with.
#[derive(Debug, Clone)]
pub struct PrometheusFiles {
    /// The text of `prometheus.yml`.
    pub config: String,
    /// Files that it names, by name: rules.
    pub beside: Vec<(String, String)>,
}

/// The folder of `prometheus` and `promtool`, fetched and unpacked if they aren't in the cache yet.
pub async fn prometheus_programs(options: &Options) -> Result<PathBuf> {
    let unpacked = options.cache_dir.join(format!("prometheus-{VERSION}"));
    if !unpacked.is_dir() {
        files::open_dir(&options.cache_dir)?;
        let path = options.cache_dir.join("prometheus-lock");
        let locked = files::lock(&path, PATIENCE * 2).await?;
        let _lock = locked.ok_or(Error::Locked { lock: path, waited: PATIENCE * 2 })?;
        // The other process may have done all of it meanwhile.
        if !unpacked.is_dir() {
            fill(options, &unpacked).await?;
        }
    }
    Ok(unpacked.join("usr/bin"))
}

/// Starts a Prometheus with programs from `bin`.
pub async fn prometheus(options: &Options, bin: &Path, given: &PrometheusFiles) -> Result<Prometheus> {
    let program = std::path::absolute(bin.join("prometheus")).map_err(Error::io("find", bin))?;
    let account = Account::for_servers()?;
    Account::require_program(account.as_ref(), &program, "empty the cache")?;
    let home = Home::make(options.data_dir.as_ref(), "prometheus", account)?;
    let _step = options.progress.step("starting Prometheus");
    let config = ("prometheus.yml".to_owned(), given.config.clone());
    for (name, text) in given.beside.iter().chain([&config]) {
        let path = home.path.join(name);
        std::fs::write(&path, text).map_err(Error::io("write", path))?;
    }
    let plan = |[port]: [u16; 1]| Ok((launch(&program, &home, port), Box::new(HttpProbe::new(port, "/-/ready")) as _));
    let (server, [port]) = home.clear_unless(Server::start(plan).await)?;
    Ok(Prometheus { url: format!("http://127.0.0.1:{port}"), server })
}

async fn fill(options: &Options, unpacked: &Path) -> Result<()> {
    // What a crash left behind; the lock says that nobody works there.
    let scratch = options.cache_dir.join("prometheus-scratch");
    files::remove_dir(&scratch)?;
    for folder in ["lists/partial", "archives/partial", "unpacked"] {
        files::open_dir(&scratch.join(folder))?;
    }
    let scratch = std::path::absolute(&scratch).map_err(Error::io("find", &scratch))?;
    std::fs::write(scratch.join("apt.conf"), APT_CONF).map_err(Error::io("write", &scratch))?;
    let package = {
        let _step = options.progress.step(&format!("fetching prometheus {VERSION} (once)"));
        fetch(&scratch).await?
    };
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&package).arg(scratch.join("unpacked"));
    run(unpack, &scratch).await?;
    std::fs::rename(scratch.join("unpacked"), unpacked).map_err(Error::io("move into place", unpacked))?;
    files::remove_dir(&scratch)
}

async fn fetch(scratch: &Path) -> Result<PathBuf> {
    run(apt(scratch, &["update"]), scratch).await?;
    let pinned = run(apt(scratch, &["download", &format!("prometheus={VERSION}")]), scratch).await;
    if pinned.is_err() {
        run(apt(scratch, &["download", "prometheus"]), scratch).await?;
        tracing::warn!(pinned = VERSION, "Debian has another version of prometheus by now, which is taken as signed");
    }
    let left = std::fs::read_dir(scratch).map_err(Error::io("read", scratch))?.flatten().map(|entry| entry.path());
    let package = left.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb"));
    let package = package.ok_or_else(|| Error::Apt { said: "nothing, and left no file".to_owned() })?;
    let hash = HASHES.iter().find(|(arch, _)| *arch == std::env::consts::ARCH).map(|(_, hash)| *hash);
    match (pinned, hash) {
        (Ok(()), Some(hash)) => wheel::check(&package, hash).map(|()| package),
        _ => Ok(package),
    }
}

fn apt(scratch: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    command.arg("-q").arg("-c").arg(scratch.join("apt.conf"));
    for (key, value) in [("Dir::State::lists", "lists"), ("Dir::Cache", "."), ("Dir::Cache::archives", "archives")] {
        command.arg("-o").arg(format!("{key}={}", scratch.join(value).display()));
    }
    // Root's apt would drop to a user who can't write here.
    command.args(["-o", "APT::Sandbox::User=root"]).args(words);
    command
}

async fn run(mut command: Command, scratch: &Path) -> Result<()> {
    command.current_dir(scratch).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => Err(Error::Apt { said: format!("  nothing for {PATIENCE:?}") }),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => Err(Error::NoApt { instead: INSTEAD }),
        Ok(Err(error)) => Err(Error::io("run apt-get or dpkg-deb in", scratch)(error)),
        Ok(Ok(Output { status, .. })) if status.success() => Ok(()),
        Ok(Ok(output)) => Err(Error::Apt { said: files::last_lines(&String::from_utf8_lossy(&output.stderr), 8) }),
    }
}

fn launch(program: &Path, home: &Home, port: u16) -> Launch {
    let mut args: Vec<OsString> = Vec::new();
    for (flag, file) in [("--config.file=", "prometheus.yml"), ("--storage.tsdb.path=", "tsdb")] {
        let mut arg = OsString::from(flag);
        arg.push(home.path.join(file));
        args.push(arg);
    }
    args.push(format!("--web.listen-address=127.0.0.1:{port}").into());
    args.extend(["--storage.tsdb.retention.time=30d", "--log.level=warn"].map(OsString::from));
    Launch {
        name: "Prometheus",
        program: program.to_owned(),
        args,
        variables: Vec::new(),
        home: home.clone(),
        stop_signal: "TERM",
    }
}
