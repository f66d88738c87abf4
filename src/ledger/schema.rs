//! The schema's versions: forward only, one migration at a time, never over a database that is newer than the program.

use std::sync::LazyLock;
use std::time::Duration;

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{Connection, PgConnection};

use super::{Ledger, LedgerError, within};

static MIGRATOR: LazyLock<Migrator> = LazyLock::new(|| {
    let mut migrator = sqlx::migrate!("./migrations");
    // Its lock is waited for in Postgres; see `run_migrations`.
    migrator.set_locking(false);
    migrator
});

/// Held by whoever migrates, as long as its connection lives.
const LOCK: &str = "select pg_try_advisory_lock(hashtextextended('crossover.migrate', 0))";
/// An index may take long to build. The list of what was applied is where
/// it was begun: `"$user"` in the search path names a schema that the first migration makes, for a user `crossover`, and a
/// second list would be begun there.
const UNHURRIED: &str = "select set_config('statement_timeout', '0', false), set_config('search_path', coalesce(
    (select relnamespace::regnamespace::text from pg_class where oid = to_regclass('_sqlx_migrations')),
    quote_ident(current_schema())), false)";
/// What is built beside the work waits for every older transaction, and nobody waits for it.
const PATIENT: &str = "set lock_timeout = 0";
/// What changes a table has the others queue behind it while it waits.
const IMPATIENT: &str = "set lock_timeout = '2s'";
/// How often the others look whether it is done.
const LOOK: Duration = Duration::from_millis(200);

/// Partitions are made for so many days ahead.
const DAYS_AHEAD: i32 = 7;

/// The database's schema and this program do not fit.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// A newer program has migrated it.
    #[error(
        "the database has migration {found}, this program knows only up to {known}: it is older than the database; run a newer crossover"
    )]
    Newer {
        /// The database's highest.
        found: i64,
        /// The program's highest.
        known: i64,
    },
    /// It lacks migrations.
    #[error("the database lacks {0} migration(s); run `crossover migrate`")]
    Behind(usize),
    /// A migration failed; those before it stand.
    #[error("a migration failed: {0}; the ones before it stand, mend the cause and run `crossover migrate` again")]
    Failed(#[source] MigrateError),
    /// Postgres did not answer.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl Ledger {
    /// The migrations that the database lacks, as (version, what it does).
    pub async fn pending_migrations(&self) -> Result<Vec<(i64, String)>, SchemaError> {
        let applied = self.applied().await?;
        let known = MIGRATOR.iter().map(|m| m.version).max().unwrap_or(0);
        if let Some(&found) = applied.iter().max().filter(|found| **found > known) {
            return Err(SchemaError::Newer { found, known });
        }
        let pending = MIGRATOR.iter().filter(|m| !applied.contains(&m.version));
        Ok(pending.map(|m| (m.version, m.description.to_string())).collect())
    }

    /// Brings the schema up to this program's, and makes the partitions ahead. Safe to run from several processes.
    pub async fn migrate(&self) -> Result<Vec<(i64, String)>, SchemaError> {
        let pending = self.pending_migrations().await?;
        if !pending.is_empty() {
            self.run_migrations().await.map_err(SchemaError::Failed)?;
        }
        self.make_partitions().await?;
        Ok(pending)
    }

    /// One process at a time. The others ask again and again rather than wait in Postgres: `create index concurrently`
    /// waits for every statement that runs, so it and somebody who waits for its lock would wait for each other.
    async fn run_migrations(&self) -> Result<(), MigrateError> {
        let mut connection = PgConnection::connect_with(&self.pool.connect_options()).await?;
        while !sqlx::query_scalar::<_, bool>(LOCK).fetch_one(&mut connection).await? {
            tokio::time::sleep(LOOK).await;
        }
        sqlx::query(UNHURRIED).execute(&mut connection).await?;
        for migration in MIGRATOR.iter() {
            sqlx::query(if migration.no_tx { PATIENT } else { IMPATIENT }).execute(&mut connection).await?;
            MIGRATOR.run_to(migration.version, &mut connection).await?;
        }
        Ok(connection.close().await?)
    }

    /// Refuses a database whose schema is not this program's.
    pub async fn check_schema(&self) -> Result<(), SchemaError> {
        match self.pending_migrations().await?.len() {
            0 => Ok(()),
            n => Err(SchemaError::Behind(n)),
        }
    }

    /// Makes the partitions of the coming days; how many were new.
    pub async fn make_partitions(&self) -> Result<i32, LedgerError> {
        let made = sqlx::query_scalar("select crossover.make_partitions($1)").bind(DAYS_AHEAD);
        within(made.fetch_one(&self.pool)).await
    }

    async fn applied(&self) -> Result<Vec<i64>, LedgerError> {
        let table: Option<String> = sqlx::query_scalar("select to_regclass('_sqlx_migrations')::text")
            .fetch_one(&self.pool)
            .await
            .map_err(LedgerError::from)?;
        if table.is_none() {
            return Ok(Vec::new());
        }
        let rows = sqlx::query_scalar("select version from _sqlx_migrations where success").fetch_all(&self.pool).await;
        rows.map_err(LedgerError::from)
    }
}
