//! `weightsync manual`.
//!
//! One page for the command and one for each of its subcommands, as `git` has
//! them: weightsync.1, weightsync-demo.1, weightsync-sync.1 and so on.

use super::table::print;
use clap::{Args, Command};
use clap_mangen::Man;
use std::io;
use std::path::{Path, PathBuf};
use weightsync::{Error, Result};

/// Write the manual pages of this command
#[derive(Args, Debug)]
pub struct ManualArgs {
    /// Write all pages into this folder, instead of the first one to standard
    /// output
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Runs `weightsync manual`.
pub fn run(args: &ManualArgs, command: Command) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    match &args.out {
        Some(folder) => write_pages(&command, "weightsync", folder),
        None => {
            let page = render(&command, "weightsync").map_err(not_rendered)?;
            print(String::from_utf8_lossy(&page))
        }
    }
}

/// Writes the page of `command`, whose full name is `name`, and of what is
/// below it.
fn write_pages(command: &Command, name: &str, folder: &Path) -> Result<()> {
    let page = render(command, name).map_err(not_rendered)?;
    let path = folder.join(format!("{name}.1"));
    std::fs::write(&path, page)
        .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))?;
    for sub in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_pages(sub, &format!("{name}-{}", sub.get_name()), folder)?;
    }
    Ok(())
}

fn render(command: &Command, name: &str) -> io::Result<Vec<u8>> {
    let version = concat!("weightsync ", env!("CARGO_PKG_VERSION"));
    let mut page = Vec::new();
    Man::new(command.clone())
        .title(name)
        .source(version)
        .manual("weightsync manual")
        .render(&mut page)?;
    Ok(page)
}

fn not_rendered(e: io::Error) -> Error {
    Error::os("cannot make a manual page", &e)
}
