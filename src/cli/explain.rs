//! `weightsync explain`: what a saved plan does, in text, as a page, or for
//! one element.

use super::account::Account;
use super::plan::{read_plan, show_ops};
use super::simulate::topology_of;
use super::table::{print, print_json};
use clap::Args;
use element::Element;
use indicatif::ProgressBar;
use std::path::{Path, PathBuf};
use weightsync::plan::Plan;
use weightsync::plan::topology::Topology;
use weightsync::plan::traffic::Traffic;
use weightsync::{Error, Rank, Result};

mod element;
mod links;
mod page;
mod terminal;

/// Up to this many ranks all are counted; of more, evenly spaced ones.
const RANK_COUNT_MAX: usize = 16_384;

/// Say what a saved plan amounts to
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// File that `plan -o` wrote
    plan: PathBuf,
    /// Write a page with traffic matrix, loads and timeline, for a browser
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Say where one element on one rank comes from and over which links, such
    /// as `model.norm.weight[5]@12`
    #[arg(long, value_name = "TENSOR[I,J]@RANK", conflicts_with_all = ["html", "ops"])]
    element: Option<Element>,
    /// Print the operations of one rank instead, one JSON object a line; an
    /// array with --json
    #[arg(long, value_name = "RANK")]
    ops: Option<u32>,
    /// Topology file to place the ranks by, instead of the one the plan was
    /// made for
    #[arg(long, value_name = "FILE", conflicts_with = "ops")]
    topology: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync explain`.
pub fn run(args: &ExplainArgs) -> Result<()> {
    let plan = read_plan(&args.plan)?;
    if let Some(rank) = args.ops {
        return show_ops(&plan, Rank(rank), args.json);
    }
    let topology = topology_of(&plan, args.topology.as_deref())?;
    if let Some(e) = &args.element {
        return element::show(&plan, &topology, e, args.json);
    }
    let account = Account::of(&plan, &topology)?;
    if args.html.is_none() && args.json {
        return print_json(&account);
    }
    let (traffic, note) = count(&plan, &topology)?;
    if let Some(path) = &args.html {
        write_page(path, &page::draw(&account, &traffic, note.as_deref()))?;
    }
    match args.json {
        true => print_json(&account),
        false => print(text(&account, &traffic)),
    }
}

fn text(account: &Account, traffic: &Traffic) -> String {
    let certificate = account.certificate.as_ref();
    let links = certificate.map_or_else(String::new, |c| format!("{}\n", links::draw(c)));
    format!("{account}\n{links}{}", terminal::draw(traffic))
}

/// The traffic of the plan, and what to say if not all ranks were counted.
fn count(plan: &Plan, topology: &Topology) -> Result<(Traffic, Option<String>)> {
    let all = plan.participants();
    let stride = all.len().div_ceil(RANK_COUNT_MAX).max(1);
    let ranks: Vec<Rank> = all.iter().copied().step_by(stride).collect();
    let bar = ProgressBar::new(ranks.len() as u64).with_message("programs");
    let traffic = plan.traffic(topology, &ranks, || bar.inc(1))?;
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
