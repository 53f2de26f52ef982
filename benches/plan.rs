//! How long planning takes, and what a plan weighs.

mod models;

use divan::{Bencher, black_box};
use std::sync::{Arc, OnceLock};
use weightsync::Rank;
use weightsync::plan::Plan;
use weightsync::plan::decision::{PlanOptions, Strategy};

fn main() {
    weigh();
    divan::main();
}

/// Says what the large plan adds to the process: the layouts it holds, its
/// tables, and what it keeps of a program that was asked for.
fn weigh() {
    let before = resident_bytes();
    let plan = large();
    let program = plan.program(Rank(60_003)).unwrap();
    let after = resident_bytes();
    println!(
        "plan of 102,400 ranks, {} tensors: {:.1} MB resident, {:.1} MB serialised",
        plan.tensors().len(),
        after.saturating_sub(before) as f64 / 1e6,
        plan.to_bytes().unwrap().len() as f64 / 1e6
    );
    println!(
        "program of rank {}: {} messages, {} pieces",
        program.rank,
        program.messages.len(),
        program.pieces.len()
    );
}

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// PP16 EP64 trainers with data parallel to 51,200 ranks, and as many
/// inference ranks in replicas of 16: 102,400 ranks.
fn large() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| large_by(Strategy::Direct))
}

fn large_by(strategy: Strategy) -> Plan {
    let source = models::deepseek(0, 16, 3200, 1, 64, false);
    let destination = models::deepseek(51_200, 1, 3200, 16, 16, true);
    let options = PlanOptions {
        strategy,
        bucket_count: 16,
        staging_bytes_max: 64 << 30,
        ..PlanOptions::default()
    };
    Plan::create(Arc::new(source), Arc::new(destination), &options).unwrap()
}

/// Strategies whose routes have stages, for a sender and a receiver.
#[divan::bench(args = [
    ("relay", 25_600), ("relay", 60_003),
    ("fanout", 25_600), ("fanout", 60_003),
    ("two_stage", 17), ("two_stage", 60_003),
])]
fn program_in_stages_at_102400_ranks(b: Bencher<'_, '_>, (name, rank): (&str, u32)) {
    let plan = large_by(Strategy::from_name(name).unwrap());
    b.bench(|| plan.program(black_box(Rank(rank))).unwrap());
}

#[divan::bench(args = [0, 17, 25_600, 51_199])]
fn program_of_a_sender_at_102400_ranks(b: Bencher<'_, '_>, rank: u32) {
    let plan = large();
    b.bench(|| plan.program(black_box(Rank(rank))).unwrap());
}

#[divan::bench(args = [51_200, 60_003, 102_399])]
fn program_of_a_receiver_at_102400_ranks(b: Bencher<'_, '_>, rank: u32) {
    let plan = large();
    b.bench(|| plan.program(black_box(Rank(rank))).unwrap());
}

/// DeepSeek-V3, 256 trainers to 8 replicas of 16: every rank's program.
#[divan::bench(sample_count = 3, sample_size = 1)]
fn programs_of_all_384_ranks(b: Bencher<'_, '_>) {
    let source = Arc::new(models::deepseek(0, 16, 16, 1, 16, false));
    let destination = Arc::new(models::deepseek(256, 1, 8, 16, 16, true));
    let options = PlanOptions {
        bucket_count: 16,
        staging_bytes_max: 16 << 30,
        ..PlanOptions::default()
    };
    let plan = Plan::create(source, destination, &options).unwrap();
    b.bench(|| {
        for r in 0..384 {
            black_box(plan.program(Rank(r)).unwrap());
        }
    });
}
