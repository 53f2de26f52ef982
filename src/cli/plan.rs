//! `weightsync plan`: what will move, before it does.

use super::account::Account;
use super::check::of_file;
use super::select::SelectArgs;
use super::table::{Table, bytes, grouped, print, print_json, read_file};
use super::waiting::while_waiting;
use clap::Args;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weightsync::layout::Layout;
use weightsync::plan::Plan;
use weightsync::plan::decision::{
    DIRECT_BYTES_MIN_DEFAULT, Order, PlanOptions, STAGING_BYTES_DEFAULT, SourceRule, Spread,
    Strategy,
};
use weightsync::plan::report::{Op, PlanReport};
use weightsync::plan::topology::TopologySpec;
use weightsync::plan::two_stage::TwoStageOptions;
use weightsync::{Error, Rank, Result, env, tune};

/// Plan the way from one layout to another
#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Layout file of the source
    source: PathBuf,
    /// Layout file of the destination
    destination: PathBuf,
    /// Write the plan to a file
    #[arg(short, long, value_name = "PLAN")]
    output: Option<PathBuf>,
    /// Print the operations of one rank instead of the report, one JSON object
    /// a line; an array with --json
    #[arg(long, value_name = "RANK")]
    ops: Option<u32>,
    /// Keep the decision of a plan that was made for other ranks; the topology,
    /// too, unless another is given
    #[arg(long, value_name = "PLAN", conflicts_with_all = [
        "staging_bytes_max", "bucket_count", "rotate", "strategy", "copy_count",
        "avoid_same_device", "allow_unused",
    ])]
    like: Option<PathBuf>,
    #[command(flatten)]
    options: OptionArgs,
    #[command(flatten)]
    select: SelectArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How to plan; shared by all commands that do.
#[derive(Args, Debug)]
pub struct OptionArgs {
    /// Staging memory per rank that the plan may use
    #[arg(long, value_name = "N")]
    staging_bytes_max: Option<u64>,
    /// Parts that every pair's bytes are cut into; as few as staging allows,
    /// unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    bucket_count: Option<u32>,
    /// Take the next holder for every item, instead of cutting all items at
    /// the same places
    #[arg(long)]
    rotate: bool,
    /// Which way bytes take; auto takes what is predicted to be fastest
    #[arg(long, value_name = "NAME", default_value = "direct", value_parser = way)]
    strategy: Way,
    /// With strategy fanout, copies that leave the source; as many as can leave
    /// while the fullest NVLink domain receives, unless given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    copy_count: Option<u32>,
    /// With strategy fanout, how the NVLink domains of one copy pass it on:
    /// scatter or chain
    #[arg(long, value_name = "NAME", default_value = "scatter", value_parser = spread)]
    spread: Spread,
    /// With strategies relay and fanout, let bytes leave a source domain
    /// through the NICs of all its source ranks
    #[arg(long)]
    source_relay: bool,
    /// Which bytes travel first: fraction keeps all links busy, layer completes
    /// early layers early
    #[arg(long, value_name = "NAME", default_value = "fraction", value_parser = order)]
    order: Order,
    /// With strategy two_stage, choose another receiver where a pair would be
    /// within one device
    #[arg(long)]
    avoid_same_device: bool,
    /// Topology file: hosts, NVLink domains, NICs and the ranks on them
    #[arg(long, value_name = "FILE")]
    topology: Option<PathBuf>,
    /// Source tensors that the destination may leave unused; may be given
    /// several times
    #[arg(long, value_name = "GLOB")]
    allow_unused: Vec<String>,
}

impl OptionArgs {
    /// Options over environment variables over defaults.
    fn to_options(&self) -> Result<PlanOptions> {
        let staging_bytes_max = match self.staging_bytes_max {
            Some(n) => n,
            None => env::staging_bytes_max()?.unwrap_or(STAGING_BYTES_DEFAULT),
        };
        let source_rule = match self.rotate {
            true => SourceRule::Rotate,
            false => SourceRule::Wrap,
        };
        Ok(PlanOptions {
            strategy: match self.strategy {
                Way::Auto => Strategy::default(),
                Way::Of(strategy) => strategy,
            },
            copy_count: self.copy_count.unwrap_or(0),
            spread: self.spread,
            source_relay: self.source_relay,
            order: self.order,
            two_stage: TwoStageOptions {
                avoid_same_device: self.avoid_same_device,
                ..TwoStageOptions::default()
            },
            source_rule,
            staging_bytes_max,
            direct_bytes_min: env::direct_bytes_min()?.unwrap_or(DIRECT_BYTES_MIN_DEFAULT),
            bucket_count: self.bucket_count.unwrap_or(0),
            unused_allowed: self.allow_unused.clone(),
            topology: self.to_topology()?,
            ..PlanOptions::default()
        })
    }

    fn to_topology(&self) -> Result<Option<TopologySpec>> {
        self.topology.as_deref().map(read_topology).transpose()
    }

    /// Plans as these options say.
    pub fn plan(&self, source: Arc<Layout>, destination: Arc<Layout>) -> Result<Plan> {
        let options = self.to_options()?;
        match self.strategy {
            Way::Auto => while_waiting("trying strategies", || {
                tune::plan(source, destination, &options)
            }),
            Way::Of(_) => Plan::create(source, destination, &options),
        }
    }
}

/// A strategy, or whichever is fastest.
#[derive(Clone, Copy, Debug)]
enum Way {
    Auto,
    Of(Strategy),
}

/// What is called `name`.
fn way(name: &str) -> std::result::Result<Way, String> {
    if name == "auto" {
        return Ok(Way::Auto);
    }
    Strategy::from_name(name).map(Way::Of).ok_or_else(|| {
        let names: Vec<_> = Strategy::ALL.iter().map(|s| s.name()).collect();
        format!("strategies are auto, {}", names.join(", "))
    })
}

fn order(name: &str) -> std::result::Result<Order, String> {
    Order::from_name(name).ok_or_else(|| "orders are fraction and layer".to_string())
}

fn spread(name: &str) -> std::result::Result<Spread, String> {
    Spread::from_name(name).ok_or_else(|| "spreads are scatter and chain".to_string())
}

/// Runs `weightsync plan`.
pub fn run(args: &PlanArgs) -> Result<()> {
    let source = Arc::new(read_layout(&args.source)?);
    let destination = Arc::new(read_layout(&args.destination)?);
    let plan = match &args.like {
        None => args.options.plan(source, destination)?,
        Some(path) => {
            let topology = args.options.to_topology()?;
            read_plan(path)?.replan(source, destination, topology)?
        }
    };
    let plan = args.select.apply(plan)?;
    if let Some(path) = &args.output {
        std::fs::write(path, plan.to_bytes()?)
            .map_err(|e| Error::os(format_args!("cannot write {}", path.display()), &e))?;
    }
    show(&plan, args.ops, args.json)
}

/// The layout in a file; the error names the file.
pub fn read_layout(path: &Path) -> Result<Layout> {
    Layout::from_json(&read_file(path)?).map_err(|e| of_file(path, e))
}

/// The plan in a file; the error names the file.
pub fn read_plan(path: &Path) -> Result<Plan> {
    Plan::from_bytes(&read_file(path)?).map_err(|e| of_file(path, e))
}

/// The topology in a file; the error names the file.
pub fn read_topology(path: &Path) -> Result<TopologySpec> {
    let read = TopologySpec::from_json(&read_file(path)?);
    read.map_err(|e| of_file(path, e))
}

fn show(plan: &Plan, ops: Option<u32>, json: bool) -> Result<()> {
    if let Some(rank) = ops {
        return show_ops(plan, Rank(rank), json);
    }
    let account = Account::of(plan, plan.topology())?;
    match json {
        true => print_json(&account),
        false => print(account),
    }
}

/// Prints the operations of one rank: as an array, or one object a line.
pub fn show_ops(plan: &Plan, rank: Rank, json: bool) -> Result<()> {
    let ops = plan.ops(rank)?;
    match json {
        true => print_json(&ops),
        false => print(lines(&ops)?),
    }
}

fn lines(ops: &[Op]) -> Result<String> {
    let mut out = String::new();
    for op in ops {
        let line = serde_json::to_string(op)
            .map_err(|e| Error::internal(format!("an operation is no JSON: {e}")))?;
        out.push_str(&line);
        out.push('\n');
    }
    Ok(out)
}

/// The report as a small table.
pub fn report_text(r: &PlanReport) -> String {
    let mut t = Table::default();
    t.row(["plan", &r.fingerprint]);
    t.row(["tensors", &grouped(r.tensors)]);
    let ranks = format!(
        "{} source, {} destination in {} copies",
        r.source_ranks, r.destination_ranks, r.destination_copies
    );
    t.row(["ranks", &ranks]);
    let moved = format!(
        "{} ({} bytes)",
        bytes(r.bytes_moved),
        grouped(r.bytes_moved)
    );
    t.row(["moved", &moved]);
    if r.bytes_forwarded > 0 {
        let name = r.strategy.name();
        let forwarded = format!("{} of them, strategy {name}", bytes(r.bytes_forwarded));
        t.row(["forwarded", &forwarded]);
    }
    let local = format!(
        "{} ({} bytes)",
        bytes(r.bytes_local),
        grouped(r.bytes_local)
    );
    t.row(["copied locally", &local]);
    let pairs = format!(
        "{}, at most {} peers per rank",
        grouped(r.pairs),
        r.peers_max
    );
    t.row(["pairs", &pairs]);
    let messages = format!(
        "{}, {} of them without staging",
        grouped(r.messages),
        grouped(r.messages_direct)
    );
    t.row(["messages", &messages]);
    t.row(["buckets", &grouped(r.steps.into())]);
    t.row(["order", r.order.name()]);
    let staging = format!(
        "{} at most on a rank, {} allowed",
        bytes(r.staging_bytes_peak),
        bytes(r.staging_bytes_max)
    );
    t.row(["staging", &staging]);
    let sender = format!(
        "rank {} with {}; {} on average",
        r.busiest_sender,
        bytes(r.sent_bytes_max),
        bytes(r.sent_bytes_mean)
    );
    t.row(["busiest sender", &sender]);
    let receiver = format!(
        "rank {} with {}",
        r.busiest_receiver,
        bytes(r.received_bytes_max)
    );
    t.row(["busiest receiver", &receiver]);
    if !r.is_exact {
        let sampled = format!("totals are of a sample of {} ranks", r.ranks_counted);
        t.row(["note", &sampled]);
    }
    t.to_string()
}
