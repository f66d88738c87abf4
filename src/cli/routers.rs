//! `crossover routers`: who decides stages, and by which flags.

use std::process::ExitCode;

use uuid::Uuid;

use super::{Context, Outcome, print_json, table};
use crate::flips::{FlipStore, SILENT_AFTER};

/// Show the registered routers and the flags they decide by; take one out whose process is gone
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take this router out: its process is gone for good. One that lives registers again
    #[arg(long, value_name = "ID")]
    forget: Option<Uuid>,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let store = store(&context).await?;
    match args.forget {
        Some(id) => forget(&store, id, args.yes, context.json).await,
        None => list(&store, context.json).await,
    }
}

/// The store of a single command.
pub(super) async fn store(context: &Context) -> Result<FlipStore, Box<dyn std::error::Error + Send + Sync>> {
    let config = context.load()?;
    let ledger = super::migrate::known_ledger(&config)?;
    ledger.check_schema().await?;
    Ok(FlipStore::new(ledger.pool().clone()))
}

async fn list(store: &FlipStore, json: bool) -> Outcome {
    let routers = store.routers(None).await?;
    if json {
        print_json(&routers)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = table(&["ID", "ROUTER", "SINCE", "FLAGS", "IN FORCE SINCE", "STATE"]);
    for r in &routers {
        let silent = r.silent_seconds > SILENT_AFTER.as_secs_f64();
        let state = if silent { format!("SILENT for {:.0} s", r.silent_seconds) } else { "reports".to_owned() };
        let at = |time: chrono::DateTime<chrono::Utc>| time.format("%F %T").to_string();
        rows.add_row([r.id.to_string(), r.name.clone(), at(r.started_at), r.revision.clone(), at(r.seen_at), state]);
    }
    match routers.is_empty() {
        true => println!("no router is registered"),
        false => println!("{}", rows.trim_fmt()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn forget(store: &FlipStore, id: Uuid, yes: bool, json: bool) -> Outcome {
    let routers = store.routers(None).await?;
    let router = routers.iter().find(|router| router.id == id);
    let router = router.ok_or_else(|| format!("no router {id} is registered; `crossover routers` lists them"))?;
    if router.silent_seconds <= SILENT_AFTER.as_secs_f64() {
        return Err(format!("{} reported {:.0} s ago, so it lives; stop it first", router.name, router.silent_seconds).into());
    }
    if yes {
        store.deregister(id).await?;
    }
    match (json, yes) {
        (true, _) => print_json(&serde_json::json!({ "router": router, "done": yes }))?,
        (false, true) => println!("{} is taken out", router.name),
        (false, false) => println!(
            "would take out {}, silent for {:.0} s; be sure that its process is gone, and repeat with --yes",
            router.name, router.silent_seconds
        ),
    }
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(super::flip::NOT_DONE) })
}
