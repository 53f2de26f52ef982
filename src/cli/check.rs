//! `weightsync check`: everything that is wrong, not the first thing only.
//!
//! Each layout is looked at on its own; if both are well-formed, the pair is.

use super::table::{Table, grouped, print, print_json, read_file};
use clap::Args;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use weightsync::layout::check::{Finding, PairReport, check, check_pair};
use weightsync::layout::{Layout, LayoutSpec};
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

/// What was found in one file, or between two.
struct Found {
    title: String,
    findings: Vec<Finding>,
    omitted: u64,
}

impl Found {
    fn errors(&self) -> u64 {
        let errors = self.findings.iter().filter(|f| f.kind.is_error());
        errors.count() as u64 + self.omitted
    }

    fn json(&self) -> Value {
        json!({
            "of": self.title,
            "findings": self.findings,
            "omitted": self.omitted,
            "errors": self.errors(),
        })
    }

    fn text(&self, out: &mut String) {
        let (errors, all) = (self.errors(), self.findings.len() as u64 + self.omitted);
        out.push_str(&format!(
            "{}: {errors} errors, {} remarks\n",
            self.title,
            all - errors
        ));
        for f in &self.findings {
            let weight = if f.kind.is_error() { "error" } else { "remark" };
            let side = f.side.map_or(String::new(), |s| format!(" ({s})"));
            out.push_str(&format!("  {weight}{side}: {}\n", f.message));
        }
        if self.omitted > 0 {
            out.push_str(&format!("  and {} more of these kinds\n", self.omitted));
        }
    }
}

/// Runs `weightsync check`.
pub fn run(args: &CheckArgs) -> Result<()> {
    let mut all = Vec::new();
    let source = look_at(&args.source, &mut all)?;
    let mut pair = None;
    if let Some(path) = &args.destination {
        let destination = look_at(path, &mut all)?;
        if all.iter().all(|f| f.errors() == 0) {
            let (source, destination) = (Layout::new(source)?, Layout::new(destination)?);
            let report = check_pair(&source, &destination);
            all.push(Found {
                title: "source to destination".into(),
                findings: report.findings.clone(),
                omitted: report.omitted,
            });
            pair = Some(report);
        }
    }
    let errors: u64 = all.iter().map(Found::errors).sum();
    if args.json {
        let looked_at: Vec<Value> = all.iter().map(Found::json).collect();
        print_json(&json!({
            "is_ok": errors == 0,
            "errors": errors,
            "looked_at": looked_at,
            "pair": pair,
        }))?;
    } else {
        print(text(&all, pair.as_ref()))?;
    }
    match errors {
        0 => Ok(()),
        1 => Err(Error::layout("1 error was found")),
        n => Err(Error::layout(format!("{n} errors were found"))),
    }
}

fn look_at(path: &Path, all: &mut Vec<Found>) -> Result<LayoutSpec> {
    let spec = LayoutSpec::from_json(&read_file(path)?).map_err(|e| of_file(path, e))?;
    let report = check(&spec);
    all.push(Found {
        title: path.display().to_string(),
        findings: report.findings,
        omitted: report.omitted,
    });
    Ok(spec)
}

/// `e`, with the file it is about.
pub fn of_file(path: &Path, e: Error) -> Error {
    Error {
        message: format!("{}: {}", path.display(), e.message),
        ..e
    }
}

fn text(all: &[Found], pair: Option<&PairReport>) -> String {
    let mut out = String::new();
    for found in all {
        found.text(&mut out);
    }
    let Some(pair) = pair else { return out };
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
    out.push_str(&table.to_string());
    out
}
