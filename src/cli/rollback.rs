//! `crossover rollback`: back to a lower stage.

use super::flip::{self, Order};
use super::{Context, Outcome};
use crate::interaction::Stage;

/// Roll an account back: to shadow, where Temporal executes, or with --to to another lower stage
///
/// From shadow the way back is `--to off`; from complete, `--to live` is one step. What Postgres owns ends on Postgres.
/// Says what it will do, asks (or takes --yes), changes the flags where they live, and waits until every live router
/// decides by them. Exit code 2: nothing was changed; 3: changed, but a router is silent or late.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    order: Order,
    /// The stage to go back to: off, shadow or live
    #[arg(long, value_name = "STAGE", default_value = "shadow")]
    to: Stage,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    flip::run(args.order, args.to, down, context).await
}

fn down(from: Stage, to: Stage) -> Result<(), String> {
    match from < to {
        true => Err(format!("it is in {from}, which is below {to}: a rollback never goes up, nothing was changed")),
        false => Ok(()),
    }
}
