//! A Postgres of our own.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row, postgres::PgConnectOptions};

use super::account::Account;
use super::error::{Error, Result};
use super::guard::{Home, Launch};
use super::server::{Probe, Server, run_to_end};
use super::{Options, POSTGRES, files};

/// The superuser and the database.
const NAME: &str = "crossover";
const INITDB: Duration = Duration::from_secs(120);

/// On top of the defaults. What Postgres acknowledged must survive a crash, so the first three are never off.
const SETTINGS: &[&str] = &[
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

/// A running Postgres.
#[derive(Debug)]
pub struct Postgres {
    /// `postgres://crossover@127.0.0.1:PORT/crossover`, for a superuser; nobody outside this machine reaches it.
    pub url: String,
    /// Its process.
    pub server: Server,
}

impl Postgres {
    /// The URL of another database on this server, which is made if it isn't there. `name` is a plain word.
    pub async fn database(&self, name: &str) -> Result<String> {
        make_database(self.server.ports[0], name).await.map_err(Error::Database)?;
        let (server, _) = self.url.rsplit_once('/').unwrap_or((&self.url, ""));
        Ok(format!("{server}/{name}"))
    }
}

/// Starts a Postgres, on the data that is there or on an empty database.
pub async fn postgres(options: &Options) -> Result<Postgres> {
    let bin = match &options.postgres_bin_dir {
        Some(dir) => std::path::absolute(dir).map_err(Error::io("find", dir))?,
        None => POSTGRES.ensure(&options.cache_dir, &options.progress).await?,
    };
    let bin = std::path::absolute(&bin).map_err(Error::io("find", &bin))?;
    let account = Account::for_servers()?;
    for program in ["initdb", "postgres"] {
        let todo =
            "set provision.postgres_bin_dir to a folder with postgres and initdb, or to nothing and empty the cache";
        Account::require_program(account.as_ref(), &bin.join(program), todo)?;
    }
    let home = Home::make(options.data_dir.as_ref(), "postgres", account)?;
    let _step = options.progress.step("starting Postgres");
    let started = start(&bin, &home, &options.postgres_settings).await;
    home.clear_unless(started)
}

async fn start(bin: &Path, home: &Home, settings: &[String]) -> Result<Postgres> {
    make_cluster(bin, home).await?;
    let plan = |[port]: [u16; 1]| Ok((launch(bin, home, port, settings), Box::new(Ready { port }) as _));
    let (server, [port]) = Server::start(plan).await?;
    make_database(port, NAME).await.map_err(Error::Database)?;
    Ok(Postgres { url: format!("postgres://{NAME}@127.0.0.1:{port}/{NAME}"), server })
}

/// Makes the cluster aside and renames it when it is whole, so that a crash leaves none or a good one.
async fn make_cluster(bin: &Path, home: &Home) -> Result<()> {
    let (data, aside) = (home.path.join("data"), home.path.join("data.new"));
    if data.is_dir() {
        return Ok(());
    }
    files::remove_dir(&aside)?;
    let mut args: Vec<OsString> = vec!["-D".into(), aside.clone().into(), "-U".into(), NAME.into()];
    args.extend(["--auth=trust", "--encoding=UTF8", "--no-locale", "--no-instructions"].map(OsString::from));
    if home.throwaway {
        args.push("--no-sync".into());
    }
    let (program, home) = (bin.join("initdb"), home.clone());
    run_to_end(&Launch { name: "initdb", program, args, variables: Vec::new(), home, stop_signal: "TERM" }, INITDB)
        .await?;
    std::fs::rename(&aside, &data).map_err(Error::io("move into place", data))
}

fn launch(bin: &Path, home: &Home, port: u16, settings: &[String]) -> Launch {
    let mut args: Vec<OsString> = vec!["-D".into(), home.path.join("data").into()];
    args.extend(["-h", "127.0.0.1", "-p", &port.to_string()].map(OsString::from));
    let settings = SETTINGS.iter().copied().chain(settings.iter().map(String::as_str));
    args.extend(settings.flat_map(|setting| ["-c", setting]).map(OsString::from));
    // INT is the fast shutdown: it doesn't wait for clients to leave.
    let (program, home) = (bin.join("postgres"), home.clone());
    Launch { name: "Postgres", program, args, variables: Vec::new(), home, stop_signal: "INT" }
}

#[derive(Debug)]
struct Ready {
    port: u16,
}

impl Probe for Ready {
    fn look(&self) -> BoxFuture<'_, Result<(), String>> {
        async move {
            let mut connection = connect(self.port).await.map_err(|error| error.to_string())?;
            connection.execute("SELECT 1").await.map_err(|error| error.to_string())?;
            connection.close().await.map_err(|error| error.to_string())
        }
        .boxed()
    }
}

async fn connect(port: u16) -> sqlx::Result<PgConnection> {
    let options =
        PgConnectOptions::new_without_pgpass().host("127.0.0.1").port(port).username(NAME).database("postgres");
    options.ssl_mode(sqlx::postgres::PgSslMode::Disable).connect().await
}

async fn make_database(port: u16, name: &str) -> sqlx::Result<()> {
    let mut connection = connect(port).await?;
    let there = sqlx::query("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)").bind(name);
    let there: bool = there.fetch_one(&mut connection).await?.get(0);
    if !there {
        // A word of ours: a name can't be a parameter.
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE \"{name}\""))).await?;
    }
    connection.close().await
}
