//! `crossover bench`: measurements against real servers of its own, thrown away afterwards.

#[cfg(feature = "temporal")]
mod outage;
mod queue;
mod schedules;

use clap::Subcommand;
use queue::Work;

use super::{Context, Outcome};

/// Measure on real servers of its own: what the Postgres queue does, and what callers feel while it is away
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run no-ops that wait, beside a minimal program on a minimal table
    BurnDown(queue::Args),
    /// Put tasks in one by one from many callers, while a worker runs them
    Enqueue(queue::Args),
    /// Put tasks in 1,000 at a time
    EnqueueBatch(queue::Args),
    /// From the call that puts a task in to the begin of its handler, one at a time
    Latency(queue::Args),
    /// The first 20,000 done with 10,000 waiting, and with many
    Backlog(queue::Args),
    /// A steady thousand a second, without and with a transaction held open all the while; timed is the last quarter
    HeldOpen(queue::Args),
    /// Run no-ops that wait, without and with a limit on their group
    Limited(queue::Args),
    /// Run no-ops that are pinned, as those of accounts that migrate are
    Pinned(queue::Args),
    Schedules(schedules::Args),
    #[cfg(feature = "temporal")]
    Outage(outage::Args),
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    match args.what {
        What::BurnDown(args) => queue::run(Work::BurnDown, args, context).await,
        What::Enqueue(args) => queue::run(Work::Enqueue, args, context).await,
        What::EnqueueBatch(args) => queue::run(Work::EnqueueBatch, args, context).await,
        What::Latency(args) => queue::run(Work::Latency, args, context).await,
        What::Backlog(args) => queue::run(Work::Backlog, args, context).await,
        What::HeldOpen(args) => queue::run(Work::HeldOpen, args, context).await,
        What::Limited(args) => queue::run(Work::Limited, args, context).await,
        What::Pinned(args) => queue::run(Work::Pinned, args, context).await,
        What::Schedules(args) => schedules::run(args, context).await,
        #[cfg(feature = "temporal")]
        What::Outage(args) => outage::run(args, context).await,
    }
}
