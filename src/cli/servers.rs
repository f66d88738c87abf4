//! `crossover servers`: for developers and tests. Starts the servers, prints where they are, and keeps them until
//! its standard input ends.

use std::process::ExitCode;

use serde_json::json;
use tokio::io::AsyncReadExt;

use super::{Context, Outcome, print_json};
use crate::provision::{Options, postgres};

/// Start Postgres and Temporal, print where they are, and keep them until standard input ends
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Keep the data where `provision.data_dir` says, instead of removing it in the end
    #[arg(long)]
    keep: bool,
    /// Start an Unleash too (needs node)
    #[arg(long)]
    unleash: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let mut options = Options::from(&context.load()?).telling(context.progress());
    if !args.keep {
        options.data_dir = None;
    }
    let mut postgres = postgres(&options).await?;
    let mut shown = serde_json::Map::new();
    let (pid, ports) = (postgres.server.pid, &postgres.server.ports);
    shown.insert("postgres".into(), json!({ "url": postgres.url, "pid": pid, "ports": ports }));
    #[cfg(feature = "temporal")]
    let mut temporal = {
        let temporal = crate::provision::temporal(&options).await?;
        let (pid, ports) = (temporal.server.pid, &temporal.server.ports);
        let (address, http, metrics) = (&temporal.address, &temporal.http, &temporal.metrics);
        let found = json!({ "address": address, "http": http, "metrics": metrics, "pid": pid, "ports": ports });
        shown.insert("temporal".into(), found);
        temporal
    };
    let mut unleash = match args.unleash {
        true => Some(crate::provision::unleash(&options, &postgres.database("unleash").await?).await?),
        false => None,
    };
    if let Some(unleash) = &unleash {
        let (pid, ports, environment) = (unleash.server.pid, &unleash.server.ports, &unleash.environment);
        let (url, admin, password) = (&unleash.url, &unleash.admin_token, &unleash.admin_password);
        let found = json!({ "url": url, "token": unleash.backend_token, "admin_token": admin, "admin_password": password,
            "environment": environment, "project": unleash.project, "pid": pid, "ports": ports });
        shown.insert("unleash".into(), found);
    }
    print_json(&shown)?;
    tokio::io::stdin().read_to_end(&mut Vec::new()).await?;
    if let Some(unleash) = &mut unleash {
        unleash.server.stop().await?;
    }
    postgres.server.stop().await?;
    #[cfg(feature = "temporal")]
    temporal.server.stop().await?;
    Ok(ExitCode::SUCCESS)
}
