//! What a measurement stands on: a server, and for each round a fresh database.

use std::sync::Arc;

use serde_json::{Map, Value};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use crate::Result;
use crate::queue::{Peer, Queue, Tuning};
use crate::server::Server;

/// A server.
#[derive(Debug)]
pub struct Ground {
    admin: PgPool,
    options: PgConnectOptions,
    /// Where it is of this process.
    pub server: Option<Server>,
}

/// What the server wrote.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    wal_bytes: f64,
    commits: f64,
}

impl Ground {
    /// On a server that is there.
    pub async fn on(url: &str) -> Result<Self> {
        let options: PgConnectOptions = url.parse()?;
        let admin = PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await?;
        Ok(Self { admin, options, server: None })
    }

    /// On a server of its own.
    pub async fn of(server: Server) -> Result<Self> {
        let ground = Self::on(&server.url).await?;
        Ok(Self { server: Some(server), ..ground })
    }

    /// The peer on a fresh database of its own, with nothing left to write back.
    pub async fn fresh(&self, peer: Peer, tuning: Tuning) -> Result<Arc<dyn Queue>> {
        let name = database(peer);
        for sql in [format!("drop database if exists {name} with (force)"), format!("create database {name}")] {
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.admin).await?;
        }
        let queue = peer.open(self.options.clone().database(&name).to_url_lossy().as_str(), tuning).await?;
        self.checkpoint().await?;
        Ok(queue)
    }

    /// Leaves the peer's tables as autovacuum leaves those that have stood for a while.
    pub async fn settle(&self, peer: Peer) -> Result<()> {
        let mut connection = self.connect(peer).await?;
        sqlx::raw_sql("vacuum analyze").execute(&mut connection).await?;
        connection.close().await?;
        self.checkpoint().await
    }

    /// A connection to the peer's database.
    pub async fn connect(&self, peer: Peer) -> Result<PgConnection> {
        Ok(self.options.clone().database(&database(peer)).connect().await?)
    }

    async fn checkpoint(&self) -> Result<()> {
        sqlx::raw_sql("checkpoint").execute(&self.admin).await?;
        Ok(())
    }

    /// What the server has written so far.
    pub async fn cost(&self) -> Result<Cost> {
        let (wal_bytes, commits) = sqlx::query_as(
            "select (pg_current_wal_lsn() - '0/0')::float8, (select sum(xact_commit)::float8 from pg_stat_database)",
        )
        .fetch_one(&self.admin)
        .await?;
        Ok(Cost { wal_bytes, commits })
    }

    /// What of its settings bears on speed.
    pub async fn settings(&self) -> Result<Value> {
        let settings: Vec<(String, String)> = sqlx::query_as(
            "select name, current_setting(name) from pg_settings where name in ('server_version', 'synchronous_commit', 'fsync',
                'full_page_writes', 'shared_buffers', 'max_wal_size', 'jit', 'wal_level', 'wal_compression')",
        )
        .fetch_all(&self.admin)
        .await?;
        Ok(Value::Object(settings.into_iter().map(|(name, value)| (name, Value::String(value))).collect::<Map<_, _>>()))
    }

    /// Removes what was made on a server that goes on without us.
    pub async fn clear(self, peers: &[Peer]) -> Result<()> {
        for peer in peers.iter().filter(|_| self.server.is_none()) {
            let sql = format!("drop database if exists {} with (force)", database(*peer));
            sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&self.admin).await?;
        }
        self.admin.close().await;
        Ok(())
    }
}

fn database(peer: Peer) -> String {
    format!("peers_bench_{}", peer.name())
}

impl Cost {
    pub fn since(self, before: Cost) -> Cost {
        Cost { wal_bytes: self.wal_bytes - before.wal_bytes, commits: self.commits - before.commits }
    }

    /// Bytes of the write-ahead log and commits for each of so many tasks.
    pub fn each(self, tasks: u32) -> (f64, f64) {
        let tasks = f64::from(tasks.max(1));
        (self.wal_bytes / tasks, self.commits / tasks)
    }
}
