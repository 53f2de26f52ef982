//! `weightsync sync`: a real checkpoint, from one layout to another.

use super::checkpoint::Checkpoint;
use super::drive::{Delivery, drive};
use super::message::Carrier;
use super::plan::{OptionArgs, read_layout, report_text};
use super::reference::Origin;
use super::table::{print, print_json};
use clap::Args;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use weightsync::layout::Layout;
use weightsync::{Error, Result};

/// Deliver a checkpoint from one layout to another and check every byte
///
/// Starts one process per rank, loads each source rank's shard, plans,
/// transfers, and compares every destination byte with the checkpoint.
#[derive(Args, Debug)]
pub struct SyncArgs {
    /// Checkpoint to deliver
    #[arg(long, value_name = "FILE.safetensors")]
    checkpoint: PathBuf,
    /// Layout file of the source
    #[arg(long, value_name = "LAYOUT")]
    source: PathBuf,
    /// Layout file of the destination
    #[arg(long, value_name = "LAYOUT")]
    destination: PathBuf,
    /// What carries the bytes
    #[arg(long, value_enum, default_value = "shm")]
    transport: Carrier,
    /// How many times to deliver it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    repeat: u64,
    /// Write each destination rank's buffers to DIR/rank_R.safetensors, with
    /// their views as JSON in its metadata
    #[arg(long, value_name = "DIR")]
    save: Option<PathBuf>,
    #[command(flatten)]
    options: OptionArgs,
    /// Seconds that any step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync sync`.
pub fn run(args: &SyncArgs) -> Result<()> {
    let source = read_layout(&args.source)?;
    let destination = read_layout(&args.destination)?;
    let absolute = std::path::absolute(&args.checkpoint).map_err(|e| {
        Error::os(
            format_args!("cannot find {}", args.checkpoint.display()),
            &e,
        )
    })?;
    let checkpoint = Checkpoint::open(&absolute)?;
    let used = look_up(&checkpoint, &source)?;
    let plan = args.options.plan(Arc::new(source), Arc::new(destination))?;
    let summary = drive(&Delivery {
        plan: Arc::new(plan),
        origin: Origin::Checkpoint(absolute),
        carrier: args.transport,
        versions: args.repeat,
        save: args.save.clone(),
        deadline: Duration::from_secs(args.deadline),
    })?;
    if args.json {
        return print_json(&summary);
    }
    print(format_args!(
        "checkpoint  {} of {} tensors of {}\n{}\n{}",
        used,
        checkpoint.tensor_count(),
        args.checkpoint.display(),
        report_text(&summary.plan),
        summary.text()
    ))
}

/// Looks up every tensor that a source rank holds, so that mistakes are found
/// before any process is started. Returns how many there are.
fn look_up(checkpoint: &Checkpoint, source: &Layout) -> Result<usize> {
    let ranks = source.ranks();
    let views = ranks.iter().flat_map(|&r| source.views(r));
    let held: BTreeSet<_> = views.map(|v| v.tensor).collect();
    for &tensor in &held {
        checkpoint.values(source, tensor)?;
    }
    Ok(held.len())
}
