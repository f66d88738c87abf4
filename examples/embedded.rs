//! The queue inside a program of your own: handlers by kind, with the type of their argument beside them, and no runner to call.
//!
//!     cargo run --example embedded --no-default-features
//!
//! It starts a Postgres of its own; `postgres.url` in `crossover.toml` (or CROSSOVER_POSTGRES_URL) names yours. With the feature `temporal` the
//! same program is one process of a migration.

use std::error::Error;
use std::num::NonZeroUsize;
use std::time::Duration;

use crossover::app::{App, Roles, Servers};
use crossover::config::Config;
use crossover::executor::{Context, HandlerError, HandlerOptions, Handlers};
use crossover::flags::DocumentBuilder;
use crossover::interaction::{Interaction, Payload, Stage};
use crossover::ledger::Ended;
use crossover::policy::Policy;
use crossover::provision::Progress;
use serde::{Deserialize, Serialize};

#[derive(Deserialize, Serialize)]
struct Mail {
    to: String,
}

#[derive(Serialize)]
struct Sent {
    to: String,
    /// What makes a repetition harmless at whoever sends it.
    idempotency_key: String,
}

#[derive(Deserialize, Serialize)]
struct Report {
    days: u32,
}

/// A payload that is not of its handler's type fails for good, and the failure names the field.
fn handlers() -> Handlers {
    // However many wait, two at once in this process; mails get by.
    let two = HandlerOptions { capacity: NonZeroUsize::new(2) };
    Handlers::new()
        .register("mail", |mail: Mail, call: Context| async move {
            Ok(Sent { to: mail.to, idempotency_key: call.id.to_string() })
        })
        .register_with("report", two, |report: Report, call: Context| async move {
            // A wish to cancel, a time-out or a lost lease drops this future at its next await, and tells what it has spawned.
            let over = call.over.clone();
            tokio::spawn(async move { over.cancelled().await });
            for _day in 0..report.days {
                tokio::time::sleep(Duration::from_millis(5)).await;
                // For a policy with `heartbeat_timeout_ms`.
                call.heartbeat.beat();
            }
            if report.days > 366 { Err(HandlerError::permanent("days: at most a year")) } else { Ok(report.days) }
        })
}

fn work(kind: &str, key: &str, argument: &impl Serialize) -> Result<Interaction, serde_json::Error> {
    Ok(Interaction {
        account: "acme".to_owned(),
        kind: kind.to_owned(),
        // Who repeats a key gets the first answer.
        key: key.to_owned(),
        key_made: false,
        after: None,
        exclusive: None,
        payload: Payload::parse(serde_json::to_string(argument)?)?,
        series: None,
        group: None,
        run_at: None,
        priority: 0,
        policy: Policy::default(),
    })
}

/// Takes some work in, runs it, and says how it ended.
pub async fn run(mut config: Config, servers: Servers) -> Result<Vec<Ended>, Box<dyn Error>> {
    // Everybody's work is Postgres' alone. A flags file, or Unleash, decides it in a migration.
    config.flags.file = config.state_dir.join("flags.json");
    std::fs::create_dir_all(&config.state_dir)?;
    let flags =
        DocumentBuilder::default().everybody(Stage::Complete).build().map_err(|faults| format!("{faults:?}"))?;
    flags.write_to(&config.flags.file)?;
    config.router.fail_open = false;

    let app = App::start_with(&config, Roles::ALL, servers, handlers()).await?;
    let router = app.router().ok_or("a process with the role router has one")?;
    let mut ids = Vec::new();
    for n in 0..10 {
        let mail = Mail { to: format!("{n}@example.org") };
        ids.push(router.enqueue(&work("mail", &format!("mail-{n}"), &mail)?).await?.id);
        ids.push(router.enqueue(&work("report", &format!("report-{n}"), &Report { days: n })?).await?.id);
    }
    let ended = loop {
        let ended = app.ledger().ended(&ids).await?;
        if ended.len() == ids.len() {
            break ended;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    // What runs may end, and every end is recorded.
    app.stop().await;
    Ok(ended)
}

#[tokio::main]
#[allow(dead_code, reason = "the tests run the rest of it")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config::load(None)?;
    config.http.listen = "127.0.0.1:0".parse()?;
    let servers = Servers::provide(&config, Progress::stderr()).await?;
    for ended in run(config, servers).await? {
        println!("{} {} {}", ended.id, ended.outcome, ended.result.as_ref().map_or("", Payload::get));
    }
    Ok(())
}
