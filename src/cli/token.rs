//! `crossover token`: tokens for callers of the API.

use std::process::ExitCode;

use super::{Context, Outcome, print_json};
use crate::config::tokens::{Scope, digest};
use crate::interaction::hex;

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
    },
}

/// See [`Args`].
pub async fn run(args: Args, context: Context) -> Outcome {
    let Command::New { name, scope } = args.command;
    if name.is_empty() || name.len() > 100 || name.chars().any(char::is_control) {
        return Err("--name must have 1 to 100 characters and no control characters".into());
    }
    // 256 bits of a generator fit for secrets.
    let secret: [u8; 32] = rand::random();
    let token = format!("cro_{}", hex(&secret));
    let hash = hex(&digest(&token));
    let scopes: Vec<String> = scope.iter().map(|s| format!("\"{s}\"")).collect();
    // TOML's own writer escapes the name.
    let quoted = toml::Value::from(name.as_str());
    let entry = format!("[[tokens]]\nname = {quoted}\nscopes = [{}]\nsha256 = \"{hash}\"", scopes.join(", "));
    if context.json {
        print_json(&serde_json::json!({ "name": name, "token": token, "sha256": hash, "scopes": scope }))?;
    } else {
        println!("{token}\n");
        println!("It is not shown again. Add this to the file that http.tokens_file names, and restart `serve`:\n");
        println!("{entry}");
    }
    Ok(ExitCode::SUCCESS)
}
