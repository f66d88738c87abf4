//! `crossover cutover`: Postgres executes, Temporal rehearses.

use super::flip::{self, Order};
use super::{Context, Outcome};
use crate::interaction::Stage;

/// Cut an account over to live: Postgres executes, Temporal rehearses
///
/// Says what it will do, asks (or takes --yes), changes the flags where they live, and waits until every live router
/// decides by them and the account is armed. Exit code 2: nothing was changed; 3: changed, but a router is silent or
/// late; 4: changed, but the account is not armed yet, so Temporal still executes.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    order: Order,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    flip::run(args.order, Stage::Live, |_, _| Ok(()), context).await
}
