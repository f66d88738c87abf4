//! `crossover serve`: one process of the bridge.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{Context, Outcome};
use crate::app::{App, Roles, Servers};
use crate::telemetry;

/// Serve: take interactions in, run them on both sides, deliver what was left behind
///
/// Where no Postgres or Temporal is configured, it starts its own and keeps their data in provision.data_dir.
/// SIGTERM or Ctrl-C drains: nothing new is taken in, what runs may end, then it exits with 0.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// What this process does; several processes share one Postgres
    #[arg(long, value_delimiter = ',', value_name = "ROLE", default_values = ["router", "worker", "relay"],
        value_parser = ["router", "worker", "relay"])]
    roles: Vec<String>,
    /// Migrate the database first, if it is behind
    #[arg(long)]
    migrate: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let config = context.load()?;
    let telemetry = telemetry::start(&config)?;
    let has = |role: &str| args.roles.iter().any(|r| r == role);
    let roles = Roles { router: has("router"), worker: has("worker"), relay: has("relay") };
    // Before anything is started, so that a signal at any moment drains.
    let mut terminate = signal(SignalKind::terminate())?;
    let servers = Servers::provide(&config, context.progress()).await?;
    servers.note(&config)?;
    if args.migrate {
        super::migrate::ledger(&config, &servers.postgres_url)?.migrate().await?;
    }
    let app = App::start(&config, roles, servers).await?;
    if context.json {
        super::print_json(&serde_json::json!({ "listening": app.address().to_string() }))?;
    } else {
        println!("crossover serves on http://{}", app.address());
    }
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: draining"),
        interrupted = tokio::signal::ctrl_c() => { interrupted?; tracing::info!("interrupted: draining") }
    }
    tokio::select! {
        () = async { app.stop().await; telemetry.stop().await } => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Err("a second SIGTERM: ended at once; what ran is run again elsewhere".into()),
        _ = tokio::signal::ctrl_c() => Err("interrupted again: ended at once; what ran is run again elsewhere".into()),
    }
}
