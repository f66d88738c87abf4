//! The program: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;
use crossover::cli::Cli;

#[tokio::main]
async fn main() -> ExitCode {
    Cli::parse().run().await
}
