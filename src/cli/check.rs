//! `weightsync check`: everything that is wrong, not the first thing only.
//!
//! Each layout is looked at on its own, and the pair as far as both are
//! well-formed.

use super::table::{Table, grouped, print, print_json, read_file};
use clap::Args;
use std::path::{Path, PathBuf};
use weightsync::layout::LayoutSpec;
use weightsync::layout::check::{Finding, Inspection, PairReport};
use weightsync::{Error, Result};

/// Say everything that is wrong with a layout, or between two
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Layout file; the source, if there are two
    source: PathBuf,
    /// Layout file of the destination
    destination: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync check`.
pub fn run(args: &CheckArgs) -> Result<()> {
    let source = read_spec(&args.source)?;
    let destination = args.destination.as_deref().map(read_spec).transpose()?;
    let found = Inspection::of(&source, destination.as_ref())?;
    if args.json {
        print_json(&found)?;
    } else {
        print(text(args, &found))?;
    }
    match found.errors {
        0 => Ok(()),
        1 => Err(Error::layout("1 error was found")),
        n => Err(Error::layout(format!("{n} errors were found"))),
    }
}

fn read_spec(path: &Path) -> Result<LayoutSpec> {
    LayoutSpec::from_json(&read_file(path)?).map_err(|e| of_file(path, e))
}

/// `e`, with the file it is about.
pub fn of_file(path: &Path, e: Error) -> Error {
    Error {
        message: format!("{}: {}", path.display(), e.message),
        ..e
    }
}

fn text(args: &CheckArgs, found: &Inspection) -> String {
    let mut out = String::new();
    let source = &found.source;
    let title = args.source.display().to_string();
    list(
        &mut out,
        &title,
        &source.findings,
        source.errors,
        source.omitted,
    );
    if let (Some(path), Some(report)) = (&args.destination, &found.destination) {
        let title = path.display().to_string();
        list(
            &mut out,
            &title,
            &report.findings,
            report.errors,
            report.omitted,
        );
    }
    if !found.unpaired.is_empty() {
        out.push_str(&format!(
            "left out of what follows: {}, which have errors or share a buffer with one that has\n",
            found.unpaired.join(", ")
        ));
    }
    if let Some(pair) = &found.pair {
        let title = "source to destination";
        list(&mut out, title, &pair.findings, pair.errors, pair.omitted);
        out.push_str(&coverage(pair));
    }
    out
}

fn list(out: &mut String, title: &str, findings: &[Finding], errors: u64, omitted: u64) {
    let remarks = findings.len() as u64 + omitted - errors;
    out.push_str(&format!("{title}: {errors} errors, {remarks} remarks\n"));
    for f in findings {
        let weight = if f.kind.is_error() { "error" } else { "remark" };
        let side = f.side.map_or(String::new(), |s| format!(" ({s})"));
        out.push_str(&format!("  {weight}{side}: {}\n", f.message));
    }
    if omitted > 0 {
        out.push_str(&format!("  and {omitted} more of these kinds\n"));
    }
}

fn coverage(pair: &PairReport) -> String {
    let mut table = Table::default();
    table.row(["", "TENSORS", "BYTES", "BYTES ON BOTH SIDES"]);
    for (name, side) in [("source", pair.source), ("destination", pair.destination)] {
        table.row([
            name,
            &grouped(side.tensors),
            &grouped(side.bytes),
            &grouped(side.matched_bytes),
        ]);
    }
    table.to_string()
}
