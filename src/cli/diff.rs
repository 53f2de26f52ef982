//! `weightsync diff`: what a second plan does otherwise than a first.

use super::plan::read_plan;
use super::table::{Table, print, print_json};
use clap::Args;
use std::path::PathBuf;
use weightsync::Result;
use weightsync::plan::PlanDiff;

/// How many names or ranks are printed of a list; JSON has all.
const SHOWN_COUNT: usize = 8;

/// Say what a second plan does otherwise than a first
#[derive(Args, Debug)]
pub struct DiffArgs {
    /// File that `plan -o` wrote
    first: PathBuf,
    /// Another
    second: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync diff`.
pub fn run(args: &DiffArgs) -> Result<()> {
    let diff = read_plan(&args.first)?.diff(&read_plan(&args.second)?)?;
    match args.json {
        true => print_json(&diff),
        false => print(text(&diff)),
    }
}

fn text(d: &PlanDiff) -> String {
    let mut t = Table::default();
    t.row(["first", &d.fingerprints[0]]);
    t.row(["second", &d.fingerprints[1]]);
    let parts = [
        ("source", d.source_differs),
        ("destination", d.destination_differs),
        ("decision", d.decision_differs),
        ("selection", d.selection_differs),
        ("topology", d.topology_differs),
    ];
    let differing: Vec<&str> = parts.iter().filter(|p| p.1).map(|p| p.0).collect();
    match differing.as_slice() {
        [] => t.row(["differ in", "nothing"]),
        some => t.row(["differ in", &some.join(", ")]),
    }
    let lists = [
        ("tensors only in the first", shown(&d.tensors_removed)),
        ("tensors only in the second", shown(&d.tensors_added)),
        ("ranks only in the first", shown(&d.ranks_removed)),
        ("ranks only in the second", shown(&d.ranks_added)),
        ("ranks with another program", shown(&d.ranks_changed)),
    ];
    for (what, list) in lists.iter().filter(|l| !l.1.is_empty()) {
        t.row([what, list]);
    }
    t.to_string()
}

/// The first of a list, and how many there are; empty for an empty one.
fn shown(list: &[impl ToString]) -> String {
    let first: Vec<String> = list
        .iter()
        .take(SHOWN_COUNT)
        .map(ToString::to_string)
        .collect();
    match list.len() {
        0 => String::new(),
        n if n <= SHOWN_COUNT => first.join(" "),
        n => format!("{n}: {} ...", first.join(" ")),
    }
}
