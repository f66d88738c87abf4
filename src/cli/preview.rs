//! `crossover preview`: what a flip would do.

use super::flip::{self, Order};
use super::{Context, Outcome};
use crate::interaction::Stage;

/// Show what putting an account into a stage would change, and what would wait for what
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account
    account: String,
    /// The stage: off, shadow, live or complete
    #[arg(long, value_name = "STAGE")]
    to: Stage,
    /// One kind of its interactions, instead of all
    #[arg(long)]
    kind: Option<String>,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let order = Order { account: args.account, kind: args.kind, reason: None, yes: false, timeout: Default::default() };
    flip::preview(order, args.to, context).await
}
