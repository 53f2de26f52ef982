//! `weightsync env` and `weightsync version`.

use super::table::{Table, print, print_json};
use clap::Args;
use serde_json::json;
use weightsync::Result;
use weightsync::layout::{LAYOUT_BLOB_VERSION, LAYOUT_FILE_VERSION};
use weightsync::plan::PLANNER_VERSION;

/// List the environment variables that are read
#[derive(Args, Debug)]
pub struct EnvArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say which version this is
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync env`.
pub fn run(args: &EnvArgs) -> Result<()> {
    let all = weightsync::env::effective();
    if args.json {
        let list: Vec<_> = all
            .iter()
            .map(|e| {
                json!({
                    "name": e.variable.name,
                    "default": e.variable.default,
                    "value": e.value,
                    "is_set": e.is_set,
                    "meaning": e.variable.meaning,
                })
            })
            .collect();
        return print_json(&list);
    }
    let mut table = Table::default();
    table.row(["VARIABLE", "DEFAULT", "VALUE", "MEANING"]);
    for e in all {
        let value = if e.is_set { &e.value } else { "(default)" };
        let default = match e.variable.default {
            "" => "-",
            text => text,
        };
        table.row([e.variable.name, default, value, e.variable.meaning]);
    }
    print(table)
}

/// Runs `weightsync version`.
pub fn version(args: &VersionArgs) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    if args.json {
        return print_json(&json!({
            "version": version,
            "planner": PLANNER_VERSION,
            "layout_file": LAYOUT_FILE_VERSION,
            "layout_blob": LAYOUT_BLOB_VERSION,
        }));
    }
    print(format_args!(
        "weightsync {version} (planner {PLANNER_VERSION}, layout file {LAYOUT_FILE_VERSION}, layout blob {LAYOUT_BLOB_VERSION})\n"
    ))
}
