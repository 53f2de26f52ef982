//! `weightsync bench map`: how fast ranks are mapped, with targets beside.

use super::{Timing, timing};
use crate::map;
use clap::Args;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use weightsync::Result;
use weightsync::plan::mapping::{self, DestinationSizes, MappingSpec, SourceSizes};

/// How often each measurement is taken; the middle one counts.
const RUNS: usize = 5;
/// Records that go through JSON, both ways.
const RECORDS: usize = 10_000;

#[derive(Args, Debug)]
pub(super) struct MapBenchArgs {
    /// Print JSON, one object a row
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &MapBenchArgs) -> Result<()> {
    super::print_timings(&[large()?, records()?], args.json)
}

/// 4,096 trainer ranks to 512 replicas, on devices of their own.
fn large() -> Result<Timing> {
    let spec = MappingSpec {
        source: SourceSizes {
            tp: 8,
            pp: 16,
            dp: 32,
            ..SourceSizes::ONE
        },
        destination: DestinationSizes {
            tp: 32,
            replicas: 512,
            ..DestinationSizes::ONE
        },
        source_devices: (0..4096).collect(),
        destination_devices: (4096..4096 + 32 * 512).collect(),
        ..MappingSpec::default()
    };
    let took = median(|| {
        std::hint::black_box(mapping::two_stage(std::hint::black_box(&spec))?);
        Ok(())
    })?;
    let what = "two-stage, tp=8,pp=16,dp=32 -> tp=32,replicas=512".to_string();
    Ok(timing(what, took, 0.1))
}

/// Records of the sizes that were recorded of the original, as text.
fn records() -> Result<Timing> {
    let text = Value::from((0..RECORDS).map(record).collect::<Vec<_>>()).to_string();
    let took = median(|| {
        std::hint::black_box(map::two_stage_text(text.as_bytes())?);
        Ok(())
    })?;
    Ok(timing(
        format!("{RECORDS} records of `map two-stage`, JSON included"),
        took,
        5.0,
    ))
}

/// The n-th record: 15 trainer ranks and 22 receivers on average, about as many
/// as the recorded ones have.
fn record(n: usize) -> Value {
    let of = |sizes: [usize; 4], n: usize| sizes[n % 4];
    let (tp, pp) = (of([1, 2, 4, 1], n), of([4, 2, 1, 8], n / 4));
    let (m, dp) = (of([2, 4, 2, 8], n / 16), of([1, 2, 1, 4], n / 64));
    let replicas = of([1, 2, 3, 5], n / 256);
    let (trainers, receivers) = (tp * pp * dp, tp * m * replicas);
    let shared = n.is_multiple_of(2);
    let first = if shared { 0 } else { trainers };
    let devices: Vec<usize> = (first..first + receivers).rev().collect();
    json!({
        "src": {"tp": tp, "pp": pp, "ep": 1, "dp": dp, "cp": 1},
        "dst": {"tp": tp * m, "pp": 1, "ep": 1, "replicas": replicas},
        "src_gpu": (0..trainers).collect::<Vec<_>>(),
        "dst_gpu": devices,
    })
}

fn median(mut run: impl FnMut() -> Result<()>) -> Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[RUNS / 2])
}
