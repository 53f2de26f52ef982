//! `weightsync completions`.

use super::table::print;
use clap::{Args, Command};
use clap_complete::{Shell, generate};
use weightsync::Result;

/// Print what lets a shell complete this command
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell that reads it
    shell: Shell,
}

/// Runs `weightsync completions`.
pub fn run(args: &CompletionsArgs, command: &Command) -> Result<()> {
    // The generator of fish shows what is hidden, so it is told nothing of it.
    let visible = command.get_subcommands().filter(|c| !c.is_hide_set());
    let mut command = Command::new("weightsync")
        .version(env!("CARGO_PKG_VERSION"))
        .subcommands(visible.cloned());
    // Into memory first: the generator panics where it cannot write.
    let mut text = Vec::new();
    generate(args.shell, &mut command, "weightsync", &mut text);
    print(String::from_utf8_lossy(&text))
}
