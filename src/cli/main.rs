//! The `weightsync` command.
//!
//! ```text
//!   demo, sync ─► drive ─► fleet ─► one worker per rank
//!                   │                 └─ shard, reference, checkpoint
//!                   └────► summary ─► table, or JSON
//!   plan, check, explain, diff, map, doctor, env, version     need no ranks
//!   completions, manual                       made from the arguments below
//! ```
//!
//! Data goes to standard output and everything else to standard error. The
//! exit status is 0 only on success, 2 if the arguments cannot be understood,
//! and 1 if anything else is wrong.

use clap::{CommandFactory, Parser, Subcommand};
use std::process::ExitCode;

mod account;
mod bench;
mod check;
mod checkpoint;
mod completions;
mod demo;
mod diff;
mod doctor;
mod drive;
mod env;
mod explain;
mod fleet;
mod layout;
mod manual;
mod map;
mod message;
mod plan;
mod reference;
mod select;
mod shard;
mod simulate;
mod summary;
mod sync;
mod table;
mod waiting;
mod worker;

/// Moves weights from trainer ranks to inference ranks: any layout to any
/// layout, planned once, executed every step
#[derive(Parser)]
#[command(name = "weightsync", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Deliver a made-up model to two inference replicas and check every byte
    Demo(demo::DemoArgs),
    /// Deliver a checkpoint from one layout to another and check every byte
    Sync(sync::SyncArgs),
    /// Write the layout file of a model, from its config.json and parallel sizes
    Layout(layout::LayoutArgs),
    /// Plan the way from one layout to another
    Plan(plan::PlanArgs),
    /// Say what a saved plan amounts to
    Explain(explain::ExplainArgs),
    /// Run a saved plan in virtual time
    Simulate(simulate::SimulateArgs),
    /// Measure planning, with targets beside
    Bench(bench::BenchArgs),
    /// Say what a second plan does otherwise than a first
    Diff(diff::DiffArgs),
    /// Say everything that is wrong with a layout, or between two
    Check(check::CheckArgs),
    // What it reads and answers stands above `MapArgs`; a line here would hide it.
    Map(map::MapArgs),
    /// Say which NCCL and CUDA are found here, what they can do and what is wrong
    Doctor(doctor::DoctorArgs),
    /// List the environment variables that are read
    Env(env::EnvArgs),
    /// Say which version this is
    Version(env::VersionArgs),
    /// Print what lets a shell complete this command
    Completions(completions::CompletionsArgs),
    /// Write the manual pages of this command
    Manual(manual::ManualArgs),
    /// One rank of `demo` or `sync`
    #[command(hide = true)]
    Rank(worker::RankArgs),
}

fn main() -> ExitCode {
    weightsync::env::warn_of_unknown();
    let result = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
        Command::Sync(args) => sync::run(&args),
        Command::Layout(args) => layout::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Diff(args) => diff::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Map(args) => map::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Env(args) => env::run(&args),
        Command::Version(args) => env::version(&args),
        Command::Completions(args) => completions::run(&args, &Cli::command()),
        Command::Manual(args) => manual::run(&args, Cli::command()),
        Command::Rank(args) => return worker::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            table::complain(format_args!("weightsync: {e}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }
}
