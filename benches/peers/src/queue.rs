//! What a peer must be able to do, and who they are.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use clap::ValueEnum;
use serde_json::Value;

use crate::run::Run;
use crate::{Result, awa, graphile};

/// A queue on a database of its own.
#[async_trait]
pub trait Queue: Send + Sync {
    /// Puts the n-th task in, in a transaction of its own.
    async fn put(&self, n: u32) -> Result<()>;
    /// Puts tasks in with one call.
    async fn put_many(&self, range: Range<u32>) -> Result<()>;
    /// A worker in this process that does not work yet.
    async fn worker(&self, pace: Pace, run: Arc<Run>) -> Result<Box<dyn Worker>>;
    /// How many of the first that were put in are not durably ended, as the database says.
    async fn left(&self, first: u32) -> Result<i64>;
    /// Lets go of the database.
    async fn close(&self);
}

/// A worker of a queue.
#[async_trait]
pub trait Worker: Send {
    /// Begins to work.
    async fn begin(&mut self) -> Result<()>;
    /// Ends what it has begun and nothing else.
    async fn stop(self: Box<Self>) -> Result<()>;
}

/// What a worker is set up for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// Many tasks that wait, in batches.
    Backlog,
    /// Tasks as they come in one by one, many in a second.
    Stream,
    /// One task, soon.
    Latency,
}

/// A queue that users could pick instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Peer {
    GraphileWorker,
    Awa,
}

/// What of the peers' set-up can be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::Args)]
pub struct Tuning {
    /// graphile_worker: handlers at once, where many tasks run
    #[arg(long, default_value_t = 500)]
    pub graphile_concurrency: usize,
    /// graphile_worker: handlers at once, where tasks come in one by one; each asks for a job of its own
    #[arg(long, default_value_t = 4)]
    pub graphile_stream_concurrency: usize,
    /// graphile_worker: jobs that a local queue fetches at once
    #[arg(long, default_value_t = 5_000)]
    pub graphile_local_queue: usize,
    /// graphile_worker: local queues
    #[arg(long, default_value_t = 1)]
    pub graphile_local_queues: usize,
    /// awa: handlers at once, of all partitions together, where many tasks run
    #[arg(long, default_value_t = 1_024)]
    pub awa_workers: u32,
    /// awa: physical queues behind the logical one
    #[arg(long, default_value_t = 4)]
    pub awa_partitions: usize,
}

impl Peer {
    pub fn name(self) -> &'static str {
        match self {
            Peer::GraphileWorker => "graphile_worker",
            Peer::Awa => "awa",
        }
    }

    /// What `Cargo.toml` asks for.
    pub fn version(self) -> &'static str {
        let asked = include_str!("../Cargo.toml").lines().find_map(|line| {
            let (name, version) = line.split_once(" = \"=")?;
            (name == self.name()).then(|| version.trim_end_matches('"'))
        });
        asked.unwrap_or("unknown")
    }

    /// What is left of a task that has ended.
    pub fn history(self) -> &'static str {
        match self {
            Peer::GraphileWorker => graphile::HISTORY,
            Peer::Awa => awa::HISTORY,
        }
    }

    pub fn settings(self, pace: Pace, tuning: &Tuning) -> Value {
        match self {
            Peer::GraphileWorker => graphile::settings(pace, tuning),
            Peer::Awa => awa::settings(pace, tuning),
        }
    }

    /// On an empty database.
    pub async fn open(self, url: &str, tuning: Tuning) -> Result<Arc<dyn Queue>> {
        Ok(match self {
            Peer::GraphileWorker => Arc::new(graphile::Graphile::open(url, tuning).await?),
            Peer::Awa => Arc::new(awa::Awa::open(url, tuning).await?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_are_those_that_are_built() {
        for peer in Peer::value_variants() {
            let locked = format!("name = \"{}\"\nversion = \"{}\"", peer.name(), peer.version());
            assert!(include_str!("../Cargo.lock").contains(&locked), "{locked}");
        }
    }
}
