//! `weightsync sync`: a real checkpoint, from one layout to another.

use super::checkpoint::Checkpoint;
use super::drive::{Delivery, drive};
use super::message::Carrier;
use super::plan::{OptionArgs, read_layout, report_text};
use super::reference::Origin;
use super::select::SelectArgs;
use super::table::{print, print_json};
use clap::Args;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use weightsync::layout::Layout;
use weightsync::{Error, Result};

/// Deliver a checkpoint from one layout to another and check every byte
///
/// Starts one process per rank, loads each source rank's shard, plans,
/// transfers, and compares every destination byte with the checkpoint.
/// Without a source layout the checkpoint is the source itself: its files are
/// mapped by the readers, and nothing is loaded.
#[derive(Args, Debug)]
pub struct SyncArgs {
    /// Checkpoint to deliver: a .safetensors file, or a directory with several
    #[arg(long, value_name = "PATH")]
    checkpoint: PathBuf,
    /// Configuration of its model [default: config.json of the directory]
    #[arg(long, value_name = "CONFIG.json")]
    config: Option<PathBuf>,
    /// Layout file of the source [default: the files of the checkpoint]
    #[arg(long, value_name = "LAYOUT")]
    source: Option<PathBuf>,
    /// Ranks that read the files, where they are the source; they come after
    /// those of the destination
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..), conflicts_with = "source")]
    readers: u32,
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
    #[command(flatten)]
    select: SelectArgs,
    /// Seconds that any step may take
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    deadline: u64,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Runs `weightsync sync`.
pub fn run(args: &SyncArgs) -> Result<()> {
    let destination = read_layout(&args.destination)?;
    let path = absolute(&args.checkpoint)?;
    let config = args.config.as_deref().map(absolute).transpose()?;
    let checkpoint = Checkpoint::open(&path, config.as_deref())?;
    let source = match &args.source {
        Some(file) => read_layout(file)?,
        None => {
            let last = destination.ranks().last().map_or(0, |r| r.0);
            checkpoint.layout(last.saturating_add(1), args.readers)?
        }
    };
    let used = look_up(&checkpoint, &source)?;
    let plan = args.options.plan(Arc::new(source), Arc::new(destination))?;
    let plan = args.select.apply(plan)?;
    let summary = drive(&Delivery {
        plan: Arc::new(plan),
        origin: Origin::Checkpoint { path, config },
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

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path)
        .map_err(|e| Error::os(format_args!("cannot find {}", path.display()), &e))
}

/// Looks up every tensor that a source rank holds, so that mistakes are found
/// before any process is started. Returns how many there are.
fn look_up(checkpoint: &Checkpoint, source: &Layout) -> Result<usize> {
    let ranks = source.ranks();
    let views = ranks.iter().flat_map(|&r| source.views(r));
    let held: BTreeSet<_> = views.map(|v| v.tensor).collect();
    for &tensor in &held {
        checkpoint.look_up(source, tensor)?;
    }
    Ok(held.len())
}
