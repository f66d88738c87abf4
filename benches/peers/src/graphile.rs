//! graphile_worker. What waits it runs as its own benchmark `perf_test` does, with a local queue; what comes in one by one as its
//! guide's "throughput-oriented worker" does, but without the local queue: in 0.14.1 that one sleeps until its cache expires (five
//! minutes) when handlers empty the cache before the fetch has noted that it is filled, which small fetches bring about soon.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use graphile_worker::{
    IntoTaskHandlerResult, JobSpec, LocalQueueConfig, TaskHandler, WorkerContext, WorkerOptions, WorkerUtils,
};
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::task::JoinHandle;

use crate::queue::{Pace, Queue, Tuning, Worker};
use crate::run::{Noop, Run};
use crate::{CONNECTIONS, Result};

pub const HISTORY: &str = "none: the row of a job that succeeded is deleted";
const SCHEMA: &str = "graphile_worker";
const POLL: Duration = Duration::from_millis(5);
const FLUSH: Duration = Duration::from_millis(5);
const POLL_OF_STREAM: Duration = Duration::from_millis(500);
const CONCURRENCY_FOR_LATENCY: usize = 8;

/// See [`HISTORY`].
pub struct Graphile {
    pool: PgPool,
    utils: WorkerUtils,
    url: String,
    tuning: Tuning,
}

impl TaskHandler for Noop {
    const IDENTIFIER: &'static str = "noop";

    async fn run(self, ctx: WorkerContext) -> impl IntoTaskHandlerResult {
        match ctx.get_ext::<Arc<Run>>() {
            Some(run) => {
                run.one(&self);
                Ok(())
            }
            None => Err("a worker without a run".to_owned()),
        }
    }
}

pub fn settings(pace: Pace, tuning: &Tuning) -> Value {
    let common = json!({ "connections": CONNECTIONS, "driver": "sqlx", "notifications": true });
    let of_pace = match pace {
        Pace::Backlog => json!({
            "concurrency": tuning.graphile_concurrency, "local_queue": tuning.graphile_local_queue,
            "local_queues": tuning.graphile_local_queues, "poll_ms": ms(POLL), "complete_batch_delay_ms": ms(FLUSH),
        }),
        Pace::Stream => json!({
            "concurrency": tuning.graphile_stream_concurrency, "local_queue": null, "poll_ms": ms(POLL_OF_STREAM),
            "complete_batch_delay_ms": ms(FLUSH),
        }),
        Pace::Latency => json!({ "concurrency": CONCURRENCY_FOR_LATENCY, "local_queue": null, "poll_ms": 1_000 }),
    };
    crate::merged(common, of_pace)
}

fn ms(time: Duration) -> u64 {
    time.as_millis() as u64
}

async fn pool(url: &str) -> Result<PgPool> {
    Ok(PgPoolOptions::new().max_connections(CONNECTIONS).connect(url).await?)
}

impl Graphile {
    pub async fn open(url: &str, tuning: Tuning) -> Result<Self> {
        let pool = pool(url).await?;
        // Made for its schema and for what it hands to those who put jobs in; it never runs.
        let worker = WorkerOptions::default().schema(SCHEMA).pg_pool(pool.clone()).define_job::<Noop>().init().await?;
        Ok(Self { utils: worker.create_utils(), pool, url: url.to_owned(), tuning })
    }
}

#[async_trait]
impl Queue for Graphile {
    async fn put(&self, n: u32) -> Result<()> {
        self.utils.add_job(Noop::new(n), JobSpec::default()).await?;
        Ok(())
    }

    async fn put_many(&self, range: Range<u32>) -> Result<()> {
        let spec = JobSpec::default();
        let jobs: Vec<(Noop, &JobSpec)> = range.map(|n| (Noop::new(n), &spec)).collect();
        let added = self.utils.add_jobs(&jobs).await?;
        if added.len() == jobs.len() { Ok(()) } else { Err("jobs were not taken in".into()) }
    }

    async fn worker(&self, pace: Pace, run: Arc<Run>) -> Result<Box<dyn Worker>> {
        let options = WorkerOptions::default().schema(SCHEMA).pg_pool(pool(&self.url).await?).define_job::<Noop>();
        // Signals end the measurement, not the worker alone.
        let options = options.add_extension(run).listen_os_shutdown_signals(false);
        let options = match pace {
            Pace::Backlog => {
                let local = LocalQueueConfig::default().with_size(self.tuning.graphile_local_queue);
                let local = local.with_queue_count(self.tuning.graphile_local_queues);
                let options = options.concurrency(self.tuning.graphile_concurrency).poll_interval(POLL);
                options.complete_job_batch_delay(FLUSH).local_queue(local)
            }
            Pace::Stream => {
                let options =
                    options.concurrency(self.tuning.graphile_stream_concurrency).poll_interval(POLL_OF_STREAM);
                options.complete_job_batch_delay(FLUSH)
            }
            Pace::Latency => options.concurrency(CONCURRENCY_FOR_LATENCY),
        };
        Ok(Box::new(Working { worker: Arc::new(options.init().await?), running: None }))
    }

    async fn left(&self, first: u32) -> Result<i64> {
        // Jobs are numbered as they are put in, and taken in this order.
        let left = sqlx::query_scalar("select count(*) from graphile_worker._private_jobs where id <= $1");
        Ok(left.bind(i64::from(first)).fetch_one(&self.pool).await?)
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

struct Working {
    worker: Arc<graphile_worker::Worker>,
    running: Option<JoinHandle<std::result::Result<(), String>>>,
}

#[async_trait]
impl Worker for Working {
    async fn begin(&mut self) -> Result<()> {
        let worker = self.worker.clone();
        self.running = Some(tokio::spawn(async move { worker.run().await.map_err(|error| error.to_string()) }));
        Ok(())
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.worker.request_shutdown();
        if let Some(running) = self.running {
            running.await??;
        }
        Ok(())
    }
}
