//! The cost of rank mappings: linear in the number of pairs and forwards.
//!
//! `cargo bench --bench mapping`; `weightsync bench map` shows the largest case
//! of two stages beside its target.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use weightsync::plan::mapping::{
    DestinationSizes, MappingSpec, SourceSizes, single_stage, two_stage,
};

fn main() {
    divan::main();
}

/// Source TP 8, PP 16, DP 32; so many replicas of TP 32.
fn large(replicas: u32) -> MappingSpec {
    let source = SourceSizes {
        tp: 8,
        pp: 16,
        dp: 32,
        ..SourceSizes::ONE
    };
    let destination = DestinationSizes {
        tp: 32,
        replicas,
        ..DestinationSizes::ONE
    };
    MappingSpec {
        source,
        destination,
        source_devices: (0..4096).collect(),
        destination_devices: (4096..4096 + 32 * replicas).collect(),
        ..MappingSpec::default()
    }
}

#[divan::bench(args = [64, 128, 256, 512])]
fn two_stage_4096_ranks(bencher: Bencher, replicas: u32) {
    let spec = large(replicas);
    let mapping = two_stage(&spec).unwrap();
    bencher
        .counter(ItemsCount::new(
            mapping.pairs.len() + mapping.forwards.len(),
        ))
        .bench(|| two_stage(black_box(&spec)));
}

/// The same on the trainer's own devices, in reverse, so that pairs collide.
#[divan::bench]
fn two_stage_4096_ranks_colocated(bencher: Bencher) {
    let mut spec = large(512);
    spec.destination_devices = (0..32 * 512).collect();
    spec.destination_devices[..4096].reverse();
    bencher.bench(|| two_stage(black_box(&spec)));
}

/// What a user of the mapping asks next.
#[divan::bench]
fn peer_lists_4096_ranks(bencher: Bencher) {
    let mapping = two_stage(&large(512)).unwrap();
    bencher.bench(|| {
        let mapping = black_box(&mapping);
        (mapping.sends(), mapping.receives(), mapping.loads())
    });
}

#[divan::bench]
fn single_stage_4096_ranks(bencher: Bencher) {
    let mut spec = large(512);
    spec.destination.tp = 8;
    spec.destination_devices.truncate(8 * 512);
    bencher.bench(|| single_stage(black_box(&spec)));
}

/// Groups of 64 fed by 64 stages: nearly all of the outcome is forwards.
#[divan::bench]
fn two_stage_wide_groups(bencher: Bencher) {
    let mut spec = large(16);
    spec.source = SourceSizes {
        tp: 1,
        pp: 64,
        dp: 64,
        ..SourceSizes::ONE
    };
    spec.destination.tp = 64;
    spec.destination_devices = (4096..4096 + 64 * 16).collect();
    bencher.bench(|| two_stage(black_box(&spec)));
}
