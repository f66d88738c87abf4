//! One Postgres and one Temporal for the whole run. They start with the first test that asks and end with the
//! process, for their guardians see its pipes close. Nothing here belongs to a test's runtime.

// Each module of this binary takes what it needs.
#![allow(dead_code)]

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use crossover::config::default_cache_dir;
use crossover::provision::{self, Options, Postgres};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::OnceCell;

static POSTGRES: OnceCell<Postgres> = OnceCell::const_new();
#[cfg(feature = "temporal")]
static TEMPORAL: OnceCell<provision::Temporal> = OnceCell::const_new();
static DATABASES: AtomicU32 = AtomicU32::new(0);

/// How tests start servers of their own.
pub fn options() -> Options {
    Options::throwaway(cache_dir())
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
    let address = &temporal().await.address;
    let program =
        provision::TEMPORAL.ensure(&cache_dir(), &provision::Progress::silent()).await.unwrap().join("temporal");
    let mut command = std::process::Command::new(program);
    command.args(arguments).args(["--address", address]).stdout(std::process::Stdio::null());
    tokio::task::spawn_blocking(move || command.status().unwrap().success()).await.unwrap()
}
