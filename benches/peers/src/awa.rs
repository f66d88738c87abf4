//! awa, set up as its guide says for many short jobs: COPY into the queue storage, no deadlines (the compact receipts), a worker
//! capacity of 1,024 (four completion shards), and a queue in partitions.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use awa::{
    Client, InsertOpts, InsertParams, JobArgs, JobResult, PartitionedQueue, QueueConfig, QueueStorage,
    QueueStorageConfig,
};
use serde_json::{Value, json};
use sqlx_of_awa::PgPool;
use sqlx_of_awa::postgres::PgPoolOptions;

use crate::queue::{Pace, Queue, Tuning, Worker};
use crate::run::{Noop, Run};
use crate::{CONNECTIONS, Result};

pub const HISTORY: &str =
    "succeeded jobs for 16 s (16 ring slots, turned each second and emptied by truncate), then their number only";
const LOGICAL: &str = "bench";
const ROTATE: Duration = Duration::from_secs(1);

/// See [`HISTORY`].
pub struct Awa {
    pool: PgPool,
    store: QueueStorage,
    queue: PartitionedQueue,
    url: String,
    tuning: Tuning,
}

impl JobArgs for Noop {
    fn kind() -> &'static str {
        "noop"
    }
}

pub fn settings(pace: Pace, tuning: &Tuning) -> Value {
    let config = config(pace, tuning);
    json!({
        "connections": CONNECTIONS, "partitions": tuning.awa_partitions,
        "max_workers_of_a_partition": config.max_workers, "claim_batch_size": config.claim_batch_size,
        "claimers": config.claimers, "poll_ms": config.poll_interval.as_millis() as u64,
        "deadline_s": config.deadline_duration.as_secs(), "ring_rotate_ms": ROTATE.as_millis() as u64,
        "completion": "512 each 1 ms, the defaults", "bulk": "enqueue_params_copy", "single": "insert_with",
    })
}

fn config(pace: Pace, tuning: &Tuning) -> QueueConfig {
    let common = QueueConfig { deadline_duration: Duration::ZERO, ..QueueConfig::default() };
    match pace {
        Pace::Backlog | Pace::Stream => {
            let max_workers = (tuning.awa_workers / tuning.awa_partitions.max(1) as u32).max(1);
            QueueConfig { max_workers, ..common }
        }
        Pace::Latency => common,
    }
}

async fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?)
}

impl Awa {
    pub async fn open(url: &str, tuning: Tuning) -> Result<Self> {
        let pool = pool(url).await?;
        awa::migrations::run(&pool).await?;
        let store = QueueStorage::new(QueueStorageConfig::default())?;
        store.install(&pool).await?;
        let queue = PartitionedQueue::new(LOGICAL, tuning.awa_partitions)?;
        Ok(Self { pool, store, queue, url: url.to_owned(), tuning })
    }

    fn options(&self, n: u32) -> InsertOpts {
        self.queue.route_opts_by_index(InsertOpts::default(), n as usize)
    }

    fn params(&self, n: u32) -> Result<InsertParams> {
        Ok(awa::model::insert::params_with(&Noop::new(n), self.options(n))?)
    }
}

#[async_trait]
impl Queue for Awa {
    async fn put(&self, n: u32) -> Result<()> {
        awa::insert_with(&self.pool, &Noop::new(n), self.options(n)).await?;
        Ok(())
    }

    async fn put_many(&self, range: Range<u32>) -> Result<()> {
        let jobs = range.map(|n| self.params(n)).collect::<Result<Vec<_>>>()?;
        let taken = self.store.enqueue_params_copy(&self.pool, &jobs).await?;
        if taken == jobs.len() { Ok(()) } else { Err("jobs were not taken in".into()) }
    }

    async fn worker(&self, pace: Pace, run: Arc<Run>) -> Result<Box<dyn Worker>> {
        let builder = Client::builder(pool(&self.url).await?);
        let builder = builder.partitioned_queue(&self.queue, config(pace, &self.tuning));
        let builder = builder.queue_storage(QueueStorageConfig::default(), ROTATE, ROTATE);
        let client = builder.register::<Noop, _, _>(move |task, _| {
            run.one(&task);
            std::future::ready(Ok(JobResult::Completed))
        });
        Ok(Box::new(Working(client.build()?)))
    }

    async fn left(&self, first: u32) -> Result<i64> {
        // What the rings hold, and the number of what they held.
        let ended: i64 = sqlx_of_awa::query_scalar(
            "select (coalesce((select sum(completed_count) from awa.receipt_completion_batches), 0)
                   + (select count(*) from awa.done_entries)
                   + coalesce((select sum(pruned_completed_count) from awa.queue_terminal_rollups), 0))::bigint",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok((i64::from(first) - ended).max(0))
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

struct Working(Client);

#[async_trait]
impl Worker for Working {
    async fn begin(&mut self) -> Result<()> {
        Ok(self.0.start().await?)
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.0.shutdown(Duration::from_secs(10)).await;
        Ok(())
    }
}
