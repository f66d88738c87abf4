//! One Postgres, one Temporal and one Unleash for the whole run. They start with the first test that asks and end with the
//! process, for their guardians see its pipes close. Nothing here belongs to a test's runtime.

// Each module of this binary takes what it needs.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crossover::config::default_cache_dir;
use crossover::provision::{self, Options, Postgres, Unleash};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
#[cfg(feature = "temporal")]
static TEMPORAL: OnceCell<provision::Temporal> = OnceCell::const_new();
static UNLEASH: OnceCell<Unleash> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// How tests start servers of their own. `TEST_POSTGRES_BIN_DIR` names another Postgres, like Debian's 15.
pub fn options() -> Options {
    let postgres_bin_dir = std::env::var_os("TEST_POSTGRES_BIN_DIR").map(PathBuf::from);
    Options { postgres_bin_dir, ..Options::throwaway(cache_dir()) }
}

/// The cache of every day, so that a run fetches nothing twice.
pub fn cache_dir() -> PathBuf {
    default_cache_dir()
}

/// The shared Postgres.
pub async fn postgres() -> &'static Postgres {
    POSTGRES.get_or_init(async || provision::postgres(&options()).await.unwrap_or_else(|error| panic!("{error}"))).await
}

/// The shared Temporal.
#[cfg(feature = "temporal")]
pub async fn temporal() -> &'static provision::Temporal {
    TEMPORAL.get_or_init(async || provision::temporal(&options()).await.unwrap_or_else(|error| panic!("{error}"))).await
}

/// The shared Unleash, with the four flags of `flags/unleash-import.json`. All tests see the same flags: use accounts of
/// your own, or an Unleash of your own ([`own_unleash`]).
pub async fn unleash() -> &'static Unleash {
    UNLEASH.get_or_init(own_unleash).await
}

/// An Unleash of a test's own, with the four flags in it.
pub async fn own_unleash() -> Unleash {
    let unleash = empty_unleash(&database().await).await;
    import_flags(&unleash).await;
    unleash
}

/// An Unleash without the flags, on a database of the shared Postgres.
pub async fn empty_unleash(database: &str) -> Unleash {
    provision::unleash(&options(), database).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Imports the four flags as `docs/flags.md` says. Unleash wants a person for that, not a token; one that has just started may
/// know neither its admin nor the session of a login for a moment, though it is healthy.
pub async fn import_flags(unleash: &Unleash) {
    let mut said = String::new();
    for _ in 0..100 {
        match imported(unleash).await {
            Ok(()) => return,
            Err(error) => said = error,
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    panic!("{said}");
}

async fn imported(unleash: &Unleash) -> Result<(), String> {
    let flags: Value = serde_json::from_str(include_str!("../../flags/unleash-import.json")).unwrap();
    let person = json!({ "username": "admin", "password": unleash.admin_password });
    let login = posted(reqwest::Client::new().post(format!("{}/auth/simple/login", unleash.url)), &person).await?;
    let session = login.headers()["set-cookie"].to_str().unwrap().split(';').next().unwrap();
    let import = reqwest::Client::new().post(format!("{}/api/admin/features-batch/import", unleash.url));
    let body = json!({ "project": unleash.project, "environment": unleash.environment, "data": flags });
    posted(import.header("Cookie", session), &body).await.map(drop)
}

async fn posted(request: reqwest::RequestBuilder, body: &Value) -> Result<reqwest::Response, String> {
    let answer = request.json(body).send().await.map_err(|error| error.to_string())?;
    if answer.status().is_success() { Ok(answer) } else { Err(answer.text().await.unwrap_or_default()) }
}

/// The URL of a fresh, empty database on the shared Postgres.
pub async fn database() -> String {
    let url = &postgres().await.url;
    let name = format!("test_{}", DATABASES.fetch_add(1, Ordering::Relaxed));
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}"))).await.unwrap();
    connection.close().await.unwrap();
    let (server, _) = url.rsplit_once('/').unwrap();
    format!("{server}/{name}")
}

#[tokio::test]
async fn every_test_gets_an_empty_database_of_its_own() {
    let (one, other) = (database().await, database().await);
    assert_ne!(one, other);
    let mut connection = PgConnection::connect(&one).await.unwrap();
    let count = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'";
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&mut connection).await.unwrap(), 0);
    assert!(one.ends_with(
        &sqlx::query_scalar::<_, String>("SELECT current_database()::text").fetch_one(&mut connection).await.unwrap()
    ));
}

/// Runs the `temporal` program against the shared Temporal, as an operator would; whether it was content.
#[cfg(feature = "temporal")]
pub async fn cli(arguments: &[&str]) -> bool {
    run(arguments).await.status.success()
}

/// What it says.
#[cfg(feature = "temporal")]
pub async fn cli_output(arguments: &[&str]) -> String {
    String::from_utf8_lossy(&run(arguments).await.stdout).into_owned()
}

#[cfg(feature = "temporal")]
async fn run(arguments: &[&str]) -> std::process::Output {
    let address = &temporal().await.address;
    let program =
        provision::TEMPORAL.ensure(&cache_dir(), &provision::Progress::silent()).await.unwrap().join("temporal");
    let mut command = std::process::Command::new(program);
    command.args(arguments).args(["--address", address]).stderr(std::process::Stdio::inherit());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}
