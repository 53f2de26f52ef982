//! What `demo` and `sync` have in common: workers, versions, checks.

use super::fleet::Fleet;
use super::message::{Answer, Carrier, Job, Moved, Order, to_hex};
use super::reference::Origin;
use super::summary::{Summary, VersionSummary};
use indicatif::{ProgressBar, ProgressStyle};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weightsync::plan::Plan;
use weightsync::{Error, Rank, Result};

/// Bytes of the memcpy that we compare with; less if less moves.
const YARDSTICK_BYTES_MAX: u64 = 256 << 20;
/// How often it is taken; the median counts.
const YARDSTICK_ROUNDS: usize = 5;

/// What is to be delivered.
pub struct Delivery {
    pub plan: Arc<Plan>,
    pub origin: Origin,
    pub carrier: Carrier,
    pub versions: u64,
    /// Where destination ranks write what they got.
    pub save: Option<PathBuf>,
    /// How long any step may take.
    pub deadline: Duration,
}

/// Delivers all versions. Every destination byte has been checked when this
/// succeeds.
pub fn drive(delivery: &Delivery) -> Result<Summary> {
    let plan = &delivery.plan;
    let ranks = plan.ranks();
    let bar = progress(delivery.versions * 3 * ranks.len() as u64);
    let begun = Instant::now();
    bar.set_message("starting ranks");
    let mut fleet = Fleet::start(&ranks, delivery.carrier, delivery.deadline)?;
    let buffer_bytes = meet(&mut fleet, delivery, &ranks)?;
    let start_ns = begun.elapsed().as_nanos() as u64;
    bar.set_message("measuring memcpy");
    let report = plan.report()?;
    let yardstick = yardstick(report.bytes_moved + report.bytes_local);
    let mut versions = Vec::new();
    for version in 1..=delivery.versions {
        versions.push(deliver(&mut fleet, version, &bar)?);
    }
    if let Some(folder) = &delivery.save {
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::os(format_args!("cannot create {}", folder.display()), &e))?;
        fleet.all("saving", |_| Order::Save(folder.clone()), || ())?;
    }
    fleet.all("leaving", |_| Order::Leave, || ())?;
    fleet.join()?;
    bar.finish_and_clear();
    Ok(Summary::new(
        delivery,
        report,
        start_ns,
        buffer_bytes,
        yardstick,
        versions,
    ))
}

/// Has all ranks find each other and load the plan. Returns the bytes of all
/// buffers.
fn meet(fleet: &mut Fleet, delivery: &Delivery, ranks: &[Rank]) -> Result<u64> {
    let plan = to_hex(&delivery.plan.to_bytes()?);
    let job = |rank| {
        Order::Job(Job {
            rank,
            ranks: ranks.to_vec(),
            carrier: delivery.carrier,
            plan: plan.clone(),
            origin: delivery.origin.clone(),
            deadline_ns: delivery.deadline.as_nanos() as u64,
        })
    };
    let greetings: Result<Vec<String>> = fleet
        .all("starting", job, || ())?
        .into_iter()
        .map(|(rank, answer)| match answer {
            Answer::Greeting(greeting) => Ok(greeting),
            other => Err(unexpected(rank, &other)),
        })
        .collect();
    let greetings = greetings?;
    let mut bytes = 0;
    for (rank, answer) in fleet.all("meeting", |_| Order::Meet(greetings.clone()), || ())? {
        match answer {
            Answer::Met { buffer_bytes } => bytes += buffer_bytes,
            other => return Err(unexpected(rank, &other)),
        }
    }
    Ok(bytes)
}

fn deliver(fleet: &mut Fleet, version: u64, bar: &ProgressBar) -> Result<VersionSummary> {
    let timed = |fleet: &mut Fleet, what: &str, order: Order| {
        bar.set_message(format!("version {version}: {what}"));
        let begun = Instant::now();
        let what = format!("{what} version {version}");
        let answers = fleet.all(&what, |_| order.clone(), || bar.inc(1))?;
        Ok::<_, Error>((answers, begun.elapsed().as_nanos() as u64))
    };
    let (_, fill_ns) = timed(fleet, "filling", Order::Fill(version))?;
    let (answers, move_wall_ns) = timed(fleet, "moving", Order::Move(version))?;
    let mut moved: Vec<(Rank, Moved)> = Vec::new();
    for (rank, answer) in answers {
        match answer {
            Answer::Moved(m) => moved.push((rank, m)),
            other => return Err(unexpected(rank, &other)),
        }
    }
    let (answers, check_ns) = timed(fleet, "checking", Order::Check(version))?;
    let mut bytes_checked = 0;
    for (rank, answer) in answers {
        match answer {
            Answer::Checked { destination_bytes } => bytes_checked += destination_bytes,
            other => return Err(unexpected(rank, &other)),
        }
    }
    Ok(VersionSummary::new(
        version,
        moved,
        [fill_ns, move_wall_ns, check_ns],
        bytes_checked,
    ))
}

fn unexpected(rank: Rank, answer: &Answer) -> Error {
    Error::internal(format!("rank {rank} answered {answer:?}"))
}

/// Shown only if standard error is a terminal.
fn progress(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {percent:>3}% {msg}") {
        bar.set_style(style);
    }
    bar
}

/// Bytes per second of a plain copy by one thread between memory that has
/// been touched.
fn yardstick(bytes: u64) -> f64 {
    let bytes = bytes.clamp(1 << 20, YARDSTICK_BYTES_MAX) as usize;
    let from = vec![0x5au8; bytes];
    let mut to = vec![0xa5u8; bytes];
    let mut times: Vec<Duration> = (0..YARDSTICK_ROUNDS)
        .map(|_| {
            let begun = Instant::now();
            std::hint::black_box(&mut to).copy_from_slice(std::hint::black_box(&from));
            begun.elapsed()
        })
        .collect();
    times.sort_unstable();
    bytes as f64 / times[YARDSTICK_ROUNDS / 2].as_secs_f64().max(1e-9)
}
