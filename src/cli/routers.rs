//! `crossover routers`: who decides stages, and by which flags; and who else accounts wait for when they are armed.

use std::process::ExitCode;

use uuid::Uuid;

use super::{Context, Outcome, print_json, table};
use crate::arming::lasts;
use crate::flips::{FlipStore, Forgetting, RouterRow, SILENT_AFTER};

/// Show the registered routers and workers, and the flags they decide by; take one out whose process is gone
///
/// Flips and the arming of accounts wait for every one of them. Forget one only after you have seen that its process is
/// stopped: a router that is cut off from Postgres is silent and goes on starting work on Temporal, and an account armed without
/// it could run such work twice.
///
/// A process that is started again on its state_dir while Postgres is away goes by what it held there, for router.disk_valid (1 h)
/// after its last beat. So it can be forgotten a tenth after that, or at once with --disk-gone.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Take this process out: you have confirmed that it is stopped for good
    #[arg(long, value_name = "ID")]
    forget: Option<Uuid>,
    /// Its state_dir is deleted, or will not be used again: don't wait until it is too old
    #[arg(long, requires = "forget")]
    disk_gone: bool,
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let store = store(&context).await?;
    match args.forget {
        Some(id) => forget(&store, id, &args, context.json).await,
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

async fn forget(store: &FlipStore, id: Uuid, &Args { disk_gone, yes, .. }: &Args, json: bool) -> Outcome {
    let routers = store.routers(None).await?;
    let router = routers.iter().find(|router| router.id == id);
    let router = router.ok_or_else(|| unknown(id))?;
    if router.silent_seconds <= SILENT_AFTER.as_secs_f64() {
        return Err(lives(router).into());
    }
    if !disk_gone && router.disk_holds_seconds.is_none_or(|left| left > 0.0) {
        return Err(disk_holds(router).into());
    }
    if yes {
        match store.forget(id, disk_gone).await? {
            Forgetting::Forgotten => {}
            Forgetting::Unknown => return Err(unknown(id).into()),
            Forgetting::DiskHolds => return Err(format!("{} has reported meanwhile, so it lives; stop it first", router.name).into()),
        }
    }
    match (json, yes) {
        (true, _) => print_json(&serde_json::json!({ "router": router, "done": yes }))?,
        (false, true) => println!("{} is taken out", router.name),
        (false, false) => println!(
            "would take out {}, silent for {:.0} s{}. Confirm on its machine that the process is stopped (a router that is only cut \
             off from Postgres is silent, too, and may still start work){}, and repeat with --yes",
            router.name,
            router.silent_seconds,
            if router.fails_open {
                "; while it lives without Postgres, it starts work without a pin, so accounts that are not armed yet will wait for a whole \
                 window"
            } else {
                ""
            },
            if disk_gone { " and that its state_dir is deleted" } else { "" },
        ),
    }
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(super::flip::NOT_DONE) })
}

fn lives(router: &RouterRow) -> String {
    format!("{} reported {:.0} s ago, so it lives; stop it first", router.name, router.silent_seconds)
}

fn unknown(id: Uuid) -> String {
    format!("no router {id} is registered; `crossover routers` lists them")
}

/// Why a process can't be forgotten yet, and when it can.
fn disk_holds(router: &RouterRow) -> String {
    let (how_long, then) = match router.disk_holds_seconds {
        Some(left) => (lasts(left), "Forget it after that, or now with --disk-gone"),
        None => ("ever, being of an older version,".to_owned(), "Forget it with --disk-gone"),
    };
    format!(
        "{} is silent, but for {how_long} it could be started again on its state_dir while Postgres is away, go by what it held there, and \
         start work that nobody hears of. {then}, once its process is stopped and its state_dir is deleted",
        router.name
    )
}
