//! `crossover bench`: measurements against real servers of its own, thrown away afterwards.

mod outage;

use clap::Subcommand;

use super::{Context, Outcome};

/// Measure on real servers of its own: what callers feel while Postgres is away
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Outage(outage::Args),
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    match args.what {
        What::Outage(args) => outage::run(args, context).await,
    }
}
