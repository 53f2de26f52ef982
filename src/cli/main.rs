//! The `weightsync` command.

use clap::{Parser, Subcommand};

mod map;

#[derive(Parser)]
#[command(name = "weightsync", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Map trainer ranks to inference ranks
    Map(map::MapArgs),
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Map(args) => map::run(args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weightsync: {e}");
            std::process::ExitCode::FAILURE
        }
    }
}
