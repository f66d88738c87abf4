//! `crossover disarm`: the way back from armed.

use super::arm::{Report, agreed, not_done, store, tell};
use super::{Context, Outcome};
use crate::arming::State;

/// Take an account back to where its work starts without a pin
///
/// Refused while its flags say live or complete. From then on Postgres owns nothing new of it; it is open when what Postgres
/// owns has ended, a whole window has passed since, and every process has acknowledged. What is on its way to be armed goes
/// back at once. In shadow its next pin begins the way again, so flip it to off before.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The account
    account: String,
    /// Do it without asking
    #[arg(long)]
    yes: bool,
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let (config, store) = store(&context).await?;
    let Some(before) = store.of(&args.account).await? else {
        return Err(format!("nothing is known of account {}; see whether the name is right", args.account).into());
    };
    let from = before.state;
    let window = humantime::format_duration(config.window.idempotency);
    let what = match from {
        State::Open => "it is open already: its work may start without a pin".to_owned(),
        State::Disarming => "it is on its way back already".to_owned(),
        State::Armed => format!(
            "Postgres owns nothing new of it, and {window} after the last of what it owns has ended, work may start without a pin"
        ),
        _ => "it was never armed, so its work may start without a pin at once; what it has waited for is lost".to_owned(),
    };
    let mut report = Report { account: args.account, from, to: from, what, done: false, waits_for: None };
    if matches!(from, State::Open | State::Disarming) {
        report.done = true;
        return tell(report, &store, &config, context.json).await;
    }
    if !agreed(&report, args.yes, context.json)? {
        return not_done(&report, context.json);
    }
    let Some(after) = store.ask_back(&report.account).await? else {
        return Err(format!(
            "the flags want account {0} in live or complete; `crossover shadow {0}` (or off) comes first",
            report.account
        )
        .into());
    };
    (report.to, report.done) = (after.state, true);
    tell(report, &store, &config, context.json).await
}
