//! What both sides of a measurement stand on: one Postgres, with our schema and the floor's tables.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use sqlx::PgPool;

use super::Failure;
use crate::config::{Config, temp_dir};
use crate::provision::{self, Progress};

/// A Postgres of its own, and where it lies.
pub(in super::super) struct Ground {
    pub config: Config,
    pub url: String,
    pub pool: PgPool,
    pub dir: PathBuf,
    _postgres: provision::Postgres,
}

/// What the server wrote.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Cost {
    pub wal_bytes: f64,
    pub commits: f64,
    /// Seconds of CPU, where the system tells.
    pub client_cpu: Option<f64>,
    pub server_cpu: Option<f64>,
}

/// What one statement of ours took of the server.
#[derive(Debug, Serialize)]
pub(in super::super) struct Statement {
    pub statement: String,
    pub calls: i64,
    pub ms: f64,
}

/// So many tenants, all armed.
const ACCOUNTS: u32 = 1_000;

impl Ground {
    pub(in super::super) async fn prepare(mut config: Config, progress: &Progress) -> Result<Self, Failure> {
        let dir = temp_dir().join(format!("crossover-bench-{}", uuid::Uuid::new_v4().simple()));
        std::fs::create_dir_all(&dir)?;
        config.state_dir = dir.join("state");
        config.http.listen = ([127, 0, 0, 1], 0).into();
        config.http.tokens = None;
        config.flags.file = dir.join("flags.json");
        config.router.fail_open = false;
        config.router.tasks = true;
        config.worker.slots = super::ours::SLOTS as u32;
        let mut options = provision::Options::from(&config).telling(progress.clone());
        options.data_dir = None;
        let postgres = with_statements(options).await?;
        let url = postgres.url.clone();
        let pool = crate::ledger::pool(&url, 24, Duration::from_secs(10))?;
        crate::ledger::Ledger::new(pool.clone()).migrate().await?;
        sqlx::raw_sql(
            "create schema floor;
             create table floor.jobs (id bigint generated always as identity primary key, state smallint not null default 0,
                claimed_at timestamptz, payload text not null);
             create index on floor.jobs (id) where state = 0;
             create table floor.history (id bigint primary key, claimed_at timestamptz, done_at timestamptz not null, payload text not null);",
        )
        .execute(&pool)
        .await?;
        sqlx::query("insert into crossover.accounts (account, state, generation, armed_at) select 'account-' || i, 'armed', 1, now() from generate_series(0, $1 - 1) i")
            .bind(ACCOUNTS as i32)
            .execute(&pool)
            .await?;
        Ok(Self { config, url, pool, dir, _postgres: postgres })
    }

    /// Forgets which statements ran.
    pub(in super::super) async fn forget_statements(&self) {
        // A Postgres without the extension tells of none.
        let _ = sqlx::raw_sql("create extension if not exists pg_stat_statements; select pg_stat_statements_reset()")
            .execute(&self.pool)
            .await;
    }

    /// The statements that took most of the server's time since [`Self::forget_statements`], in milliseconds.
    pub(in super::super) async fn statements(&self) -> Vec<Statement> {
        let most = sqlx::query_as(
            "select left(regexp_replace(query, '\\s+', ' ', 'g'), 100), calls, total_exec_time from pg_stat_statements
             where query !~ 'floor\\.|pg_stat|truncate|vacuum|checkpoint' and toplevel order by total_exec_time desc limit 6",
        );
        let rows: Vec<(String, i64, f64)> = most.fetch_all(&self.pool).await.unwrap_or_default();
        rows.into_iter().map(|(statement, calls, ms)| Statement { statement, calls, ms }).collect()
    }

    /// The account of the n-th task.
    pub(in super::super) fn account(n: u32) -> String {
        format!("account-{}", n % ACCOUNTS)
    }

    /// A JSON text of 200 bytes.
    pub(in super::super) fn payload(n: u32) -> String {
        format!("\"{n:0>198}\"")
    }

    /// Empties the tables of both sides, and leaves nothing to write back.
    pub(in super::super) async fn sweep(&self) -> Result<(), Failure> {
        for sql in [
            "truncate floor.jobs, floor.history",
            "truncate crossover.tasks, crossover.tasks_ready, crossover.tasks_scheduled, crossover.attempts, crossover.pins, crossover.payloads, crossover.ready, crossover.running, crossover.scheduled, crossover.gate, crossover.outbox",
            "checkpoint",
        ] {
            sqlx::raw_sql(sql).execute(&self.pool).await?;
        }
        Ok(())
    }

    /// As autovacuum leaves tables that have stood for a while.
    pub(in super::super) async fn settle(&self, tables: &[&str]) -> Result<(), Failure> {
        for table in tables {
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("vacuum analyze {table}"))).execute(&self.pool).await?;
        }
        sqlx::raw_sql("checkpoint").execute(&self.pool).await?;
        Ok(())
    }

    /// What the server has written so far.
    pub(in super::super) async fn cost(&self) -> Result<Cost, Failure> {
        let (wal_bytes, commits) = sqlx::query_as(
            "select (pg_current_wal_lsn() - '0/0')::float8, (select sum(xact_commit)::float8 from pg_stat_database)",
        )
        .fetch_one(&self.pool)
        .await?;
        let folder: String = sqlx::query_scalar("show data_directory").fetch_one(&self.pool).await?;
        Ok(Cost { wal_bytes, commits, client_cpu: cpu::of_this(), server_cpu: cpu::of_postgres(Path::new(&folder)) })
    }

    pub(in super::super) async fn clear(self) {
        self.pool.close().await;
        drop(self._postgres);
        // What can't be removed lies in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A server that counts its statements, where it can.
async fn with_statements(options: provision::Options) -> Result<provision::Postgres, Failure> {
    let counting = provision::Options {
        postgres_settings: vec!["shared_preload_libraries=pg_stat_statements".to_owned()],
        ..options.clone()
    };
    match provision::postgres(&counting).await {
        Ok(postgres) => Ok(postgres),
        // It was built without that.
        Err(_) => Ok(provision::postgres(&options).await?),
    }
}

impl Cost {
    pub(in super::super) fn since(self, before: Cost) -> Cost {
        let less = |now: Option<f64>, before: Option<f64>| Some(now? - before?);
        Cost {
            wal_bytes: self.wal_bytes - before.wal_bytes,
            commits: self.commits - before.commits,
            client_cpu: less(self.client_cpu, before.client_cpu),
            server_cpu: less(self.server_cpu, before.server_cpu),
        }
    }
}

#[cfg(target_os = "linux")]
mod cpu {
    use std::path::Path;

    use procfs::process::{Process, Stat, all_processes};

    pub(super) fn of_this() -> Option<f64> {
        let stat = Process::myself().ok()?.stat().ok()?;
        Some(seconds(stat.utime + stat.stime))
    }

    /// Of the server whose files lie in `folder`: its backends, those that have gone as well.
    pub(super) fn of_postgres(folder: &Path) -> Option<f64> {
        let pid: i32 = std::fs::read_to_string(folder.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()?;
        let postmaster = Process::new(pid).ok()?.stat().ok()?;
        let gone = (postmaster.cutime + postmaster.cstime).unsigned_abs();
        let stats = all_processes().ok()?.filter_map(|process| process.ok()?.stat().ok());
        let children: u64 = stats.filter(|stat: &Stat| stat.ppid == pid).map(|stat| stat.utime + stat.stime).sum();
        Some(seconds(postmaster.utime + postmaster.stime + gone + children))
    }

    fn seconds(ticks: u64) -> f64 {
        ticks as f64 / procfs::ticks_per_second() as f64
    }
}

#[cfg(not(target_os = "linux"))]
mod cpu {
    use std::path::Path;

    pub(super) fn of_this() -> Option<f64> {
        None
    }

    pub(super) fn of_postgres(_folder: &Path) -> Option<f64> {
        None
    }
}
