//! `weightsync explain`: what a saved plan does, in text, as a page, or for
//! one element.

use super::account::Account;
use super::check::of_file;
use super::plan::show_ops;
use super::table::{Table, print, print_json, read_file};
use clap::Args;
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use weightsync::plan::Plan;
use weightsync::plan::origin::{Cell, Origin};
use weightsync::plan::traffic::Traffic;
use weightsync::{Error, Rank, Result};

mod chart;
mod page;
mod terminal;

/// Up to this many ranks all are counted; of more, evenly spaced ones.
const RANK_COUNT_MAX: usize = 16_384;

/// Say what a saved plan amounts to
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// File that `plan -o` wrote
    plan: PathBuf,
    /// Write a page with traffic matrix, loads and steps, for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say where one element on one rank comes from, such as
    /// `model.norm.weight[5]@12`
    #[arg(long, value_name = "TENSOR[I,J]@RANK", conflicts_with_all = ["html", "ops"])]
    element: Option<Element>,
    /// Print the operations of one rank instead, one JSON object a line; an
    /// array with --json
    #[arg(long, value_name = "RANK")]
    ops: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// `TENSOR[I,J]@RANK`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Element {
    tensor: String,
    index: Vec<u64>,
    rank: Rank,
}

impl FromStr for Element {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Element, String> {
        let wanted = || {
            format!(
                "\"{text}\" is no element; write TENSOR[I,J]@RANK, such as model.norm.weight[5]@12"
            )
        };
        let (element, rank) = text.rsplit_once('@').ok_or_else(wanted)?;
        let inner = element.strip_suffix(']').ok_or_else(wanted)?;
        let (tensor, index) = inner.rsplit_once('[').ok_or_else(wanted)?;
        let numbers = index.split(',').map(str::trim).filter(|n| !n.is_empty());
        let index: std::result::Result<Vec<u64>, _> = numbers.map(str::parse).collect();
        Ok(Element {
            tensor: tensor.to_string(),
            index: index.map_err(|_| wanted())?,
            rank: Rank(rank.trim().parse().map_err(|_| wanted())?),
        })
    }
}

/// Runs `weightsync explain`.
pub fn run(args: &ExplainArgs) -> Result<()> {
    let bytes = read_file(&args.plan)?;
    let plan = Plan::from_bytes(&bytes).map_err(|e| of_file(&args.plan, e))?;
    if let Some(rank) = args.ops {
        return show_ops(&plan, Rank(rank), args.json);
    }
    if let Some(e) = &args.element {
        return element(&plan, e, args.json);
    }
    let account = Account::of(&plan)?;
    if args.html.is_none() && args.json {
        return print_json(&account);
    }
    let (traffic, note) = count(&plan)?;
    if let Some(path) = &args.html {
        write_page(path, &page::draw(&account, &traffic, note.as_deref()))?;
    }
    match args.json {
        true => print_json(&account),
        false => print(format_args!("{account}\n{}", terminal::draw(&traffic))),
    }
}

/// The traffic of the plan, and what to say if not all ranks were counted.
fn count(plan: &Plan) -> Result<(Traffic, Option<String>)> {
    let all = plan.participants();
    let stride = all.len().div_ceil(RANK_COUNT_MAX).max(1);
    let ranks: Vec<Rank> = all.iter().copied().step_by(stride).collect();
    let bar = ProgressBar::new(ranks.len() as u64).with_message("programs");
    let traffic = plan.traffic(&ranks, || bar.inc(1))?;
    bar.finish_and_clear();
    let note = format!(
        "Counted at {} of {} ranks, evenly spaced.",
        ranks.len(),
        all.len()
    );
    Ok((traffic, (stride > 1).then_some(note)))
}

fn write_page(path: &Path, page: &str) -> Result<()> {
    std::fs::write(path, page)
        .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))
}

fn element(plan: &Plan, e: &Element, json: bool) -> Result<()> {
    let origin = plan.origin(e.rank, &e.tensor, &e.index)?;
    match json {
        true => print_json(&origin),
        false => print(origin_text(&origin)),
    }
}

/// The way of an element, a line a stop.
fn origin_text(o: &Origin) -> String {
    let mut t = Table::default();
    let place = |c: &Cell| format!("\"{}\" at byte {}", c.buffer, c.offset);
    if let Some(first) = o.hops.first() {
        let rank = format!("rank {}", first.from.rank);
        t.row(["held by", &rank, &place(&first.from), ""]);
    }
    for hop in &o.hops {
        let how = if hop.is_sent { "sent to" } else { "copied to" };
        let rank = format!("rank {}", hop.to.rank);
        let when = match hop.is_sent {
            true => format!(
                "step {}, bucket {}, stage {}",
                hop.step, hop.bucket, hop.stage
            ),
            false => format!("step {}", hop.step),
        };
        t.row([how, &rank, &place(&hop.to), &when]);
    }
    format!("\"{}\" {:?}\n{t}", o.tensor, o.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_as_they_are_written() {
        let e: Element = "a.b[3, 4]@12".parse().unwrap();
        assert_eq!((e.tensor.as_str(), e.rank), ("a.b", Rank(12)));
        assert_eq!(e.index, [3, 4]);
        assert_eq!("scalar[]@0".parse::<Element>().unwrap().index.len(), 0);
        for bad in ["", "a", "a[1]", "a@1", "a[x]@1", "a[1]@x", "a[1]@-1"] {
            let error = bad.parse::<Element>().unwrap_err();
            assert!(error.contains("TENSOR[I,J]@RANK"), "{error}");
        }
    }
}
