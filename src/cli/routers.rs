//! `crossover routers`: who decides stages, and by which flags; and who else accounts wait for when they are armed.

use std::process::ExitCode;

use uuid::Uuid;

use super::{Context, Outcome, print_json, table};
use crate::flips::{FlipStore, SILENT_AFTER};

/// Show the registered routers and workers, and the flags they decide by; take one out whose process is gone
///
/// Flips and the arming of accounts wait for every one of them. Forget one only after you have seen that its process is
/// stopped: a router that is cut off from Postgres is silent and goes on starting work on Temporal, and an account armed without
/// it could run such work twice. Its state_dir must not be started again while Postgres is away; delete it.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take this process out: you have confirmed that it is stopped for good
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
    let mut rows = table(&["ID", "PROCESS", "DOES", "SINCE", "FLAGS", "IN FORCE SINCE", "STATE"]);
    for r in &routers {
        let silent = r.silent_seconds > SILENT_AFTER.as_secs_f64();
        let mut state = if silent { format!("SILENT for {:.0} s", r.silent_seconds) } else { "reports".to_owned() };
        if r.in_doubt > 0 {
            state.push_str(&format!(", {} starts in doubt", r.in_doubt));
        }
        if r.spooled > 0 {
            state.push_str(&format!(", {} starts to write", r.spooled));
        }
        if let Some(trouble) = &r.trouble {
            state.push_str(&format!(", {trouble}"));
        }
        let at = |time: chrono::DateTime<chrono::Utc>| time.format("%F %T").to_string();
        let (does, flags) = (r.roles.join(", "), if r.decides() { r.revision.clone() } else { "-".to_owned() });
        rows.add_row([r.id.to_string(), r.name.clone(), does, at(r.started_at), flags, at(r.seen_at), state]);
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
            "would take out {}, silent for {:.0} s{}. Confirm on its machine that the process is stopped (a router that is only cut \
             off from Postgres is silent, too, and may still start work), delete its state_dir or see that it isn't started while \
             Postgres is away, and repeat with --yes",
            router.name,
            router.silent_seconds,
            if router.fails_open { "; while it lives without Postgres, it starts work without a pin" } else { "" },
        ),
    }
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(super::flip::NOT_DONE) })
}
