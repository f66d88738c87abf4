//! `crossover token`: tokens for callers of the API.

use std::process::ExitCode;

use super::{Context, Outcome, print_json};
use crate::config::tokens::{Scope, digest};
use crate::interaction::hex;
use crate::router::request::name_fault;

/// Make tokens for callers of the API
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Make a token, print it once, and print what to add to the file that http.tokens_file names
    New {
        /// Whose it is; it stands in the logs
        #[arg(long)]
        name: String,
        /// What it allows: enqueue (put work in), read (look work and metrics up), operate (call off what waits), work (keep and end what a runner took away)
        #[arg(long, value_enum, value_delimiter = ',', required = true)]
        scope: Vec<Scope>,
        /// With the scope work: the groups whose work it may take and end; all, if none is named
        #[arg(long, value_delimiter = ',')]
        group: Vec<String>,
    },
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let Command::New { name, scope, group } = args.command;
    if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err("--name must have 1 to 100 characters and no control characters".into());
    }
    if !group.is_empty() && !scope.contains(&Scope::Work) {
        return Err("--group says whose work a token may do, so it needs --scope work".into());
    }
    if let Some(fault) = group.iter().find_map(|group| name_fault(group, 100)) {
        return Err(format!("--group: {fault}").into());
    }
    // 256 bits of a generator fit for secrets.
    let secret: [u8; 32] = rand::random();
    let token = format!("cro_{}", hex(&secret));
    let hash = hex(&digest(&token));
    let scopes: Vec<String> = scope.iter().map(|s| format!("\"{s}\"")).collect();
    // TOML's own writer escapes the name.
    let quoted = toml::Value::from(name.as_str());
    let groups: Vec<String> = group.iter().map(|group| toml::Value::from(group.as_str()).to_string()).collect();
    let groups = if groups.is_empty() { String::new() } else { format!("groups = [{}]\n", groups.join(", ")) };
    let entry =
        format!("[[tokens]]\nname = {quoted}\nscopes = [{}]\n{groups}sha256 = \"{hash}\"", scopes.join(", "));
    if context.json {
        let groups = Some(group).filter(|group| !group.is_empty());
        print_json(
            &serde_json::json!({ "name": name, "token": token, "sha256": hash, "scopes": scope, "groups": groups }),
        )?;
    } else {
        println!("{token}\n");
        println!("It is not shown again. Add this to the file that http.tokens_file names, and restart `serve`:\n");
        println!("{entry}");
    }
    Ok(ExitCode::SUCCESS)
}
