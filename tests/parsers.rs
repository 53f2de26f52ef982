//! Damaged input of the two parsers: an error that says so, never a panic and
//! never a plan that differs from the one that was written.

use proptest::prelude::*;
use std::sync::{Arc, OnceLock};
use weightsync::layout::models::Inventory;
use weightsync::layout::{Layout, frame};
use weightsync::limits::FILE_BYTES_MAX;
use weightsync::plan::decision::PlanOptions;
use weightsync::plan::topology::TopologySpec;
use weightsync::plan::{PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, Plan, Selector};
use weightsync::{Rank, Status};

const TRAINER: &str = include_str!("layouts/trainer_tp2_pp2_dp2.json");
const ENGINE: &str = include_str!("layouts/inference_2x_tp4.json");

fn plan() -> &'static Plan {
    static PLAN: OnceLock<Plan> = OnceLock::new();
    PLAN.get_or_init(|| {
        let source = Layout::from_json(TRAINER.as_bytes()).unwrap();
        let destination = Layout::from_json(ENGINE.as_bytes()).unwrap();
        Plan::create(
            Arc::new(source),
            Arc::new(destination),
            &PlanOptions::default(),
        )
        .unwrap()
    })
}

#[test]
fn a_plan_of_the_example_layouts_is_right() {
    plan().verify().unwrap();
    assert!(plan().report().unwrap().bytes_moved > 0);
}

#[test]
fn a_plan_is_equal_after_a_trip_through_bytes() {
    let bytes = plan().to_bytes().unwrap();
    let again = Plan::from_bytes(&bytes).unwrap();
    assert_eq!(again.fingerprint(), plan().fingerprint());
    assert_eq!(again.to_bytes().unwrap(), bytes);
    for rank in plan().ranks() {
        assert_eq!(again.program(rank).unwrap(), plan().program(rank).unwrap());
    }
}

/// Damage reaches the parser only behind a frame that it takes for its own.
#[test]
fn a_payload_in_a_frame_of_its_own_is_accepted() {
    let bytes = plan().to_bytes().unwrap();
    let again = frame::seal(
        PLAN_BLOB_MAGIC,
        PLAN_BLOB_VERSION,
        &bytes[frame::HEADER_BYTES..],
    );
    assert_eq!(again, bytes);
    assert_eq!(
        Plan::from_bytes(&again).unwrap().fingerprint(),
        plan().fingerprint()
    );
}

#[test]
fn bytes_behind_the_payload_of_a_plan_are_refused() {
    let bytes = plan().to_bytes().unwrap();
    let longer = [&bytes[frame::HEADER_BYTES..], b"junk"].concat();
    let e =
        Plan::from_bytes(&frame::seal(PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, &longer)).unwrap_err();
    assert_eq!(e.status, Status::Corrupt);
    assert!(e.message.contains("4 bytes"), "{e}");
}

#[test]
fn a_file_that_is_too_long_is_refused_unread() {
    // Zeros that nobody looks at take no memory.
    let long = vec![0u8; FILE_BYTES_MAX + 1];
    let refusals = [
        Layout::from_json(&long).map(drop),
        Inventory::from_config(&long).map(drop),
        TopologySpec::from_json(&long).map(drop),
    ];
    for refusal in refusals {
        let told = refusal.unwrap_err();
        assert_eq!(told.status, Status::LimitExceeded);
        let numbers = format!("{} bytes; at most {FILE_BYTES_MAX}", long.len());
        assert!(told.message.contains(&numbers), "{}", told.message);
    }
}

#[test]
fn every_truncation_of_a_plan_is_refused() {
    let bytes = plan().to_bytes().unwrap();
    for n in 0..bytes.len() {
        let e = Plan::from_bytes(&bytes[..n]).unwrap_err();
        assert_eq!(e.status, Status::Corrupt, "{n} bytes: {e}");
    }
}

#[test]
fn a_plan_of_another_version_is_told_apart_from_a_damaged_one() {
    let mut bytes = plan().to_bytes().unwrap();
    bytes[8] ^= 2;
    assert_eq!(
        Plan::from_bytes(&bytes).unwrap_err().status,
        Status::VersionMismatch
    );
}

#[test]
fn the_difference_of_two_plans_names_tensors_and_ranks() {
    let part = plan()
        .select(&Selector {
            include: vec!["*mlp*".into()],
            ..Selector::default()
        })
        .unwrap();
    assert_ne!(part.fingerprint(), plan().fingerprint());
    part.verify().unwrap();
    let diff = plan().diff(&part).unwrap();
    assert!(!diff.is_equal && diff.tensors_added.is_empty());
    assert!(diff.tensors_removed.iter().any(|t| t.contains("q_proj")));
    assert!(plan().diff(plan()).unwrap().is_equal);
}

#[test]
fn the_order_of_a_layout_file_does_not_matter() {
    let mut value: serde_json::Value = serde_json::from_str(ENGINE).unwrap();
    value["tensors"].as_array_mut().unwrap().reverse();
    let shuffled = Layout::from_json(value.to_string().as_bytes()).unwrap();
    let again = Plan::create(
        plan().source().clone(),
        Arc::new(shuffled),
        &PlanOptions::default(),
    )
    .unwrap();
    assert_eq!(again.to_bytes().unwrap(), plan().to_bytes().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_flipped_bit_in_a_plan_is_refused(at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = plan().to_bytes().unwrap();
        let i = at.index(bytes.len());
        bytes[i] ^= 1 << bit;
        prop_assert!(Plan::from_bytes(&bytes).is_err());
    }

    /// Behind an intact frame, too: the payload is not trusted.
    #[test]
    fn a_damaged_payload_is_an_error_or_another_sound_plan(
        at: prop::sample::Index, byte: u8, cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let bytes = plan().to_bytes().unwrap();
        let mut payload = bytes[frame::HEADER_BYTES..].to_vec();
        let i = at.index(payload.len());
        payload[i] = byte;
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        if let Ok(p) = Plan::from_bytes(&frame::seal(PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, &payload)) {
            for rank in [0, 1, 8, 15] {
                let _ = p.program(Rank(rank));
            }
        }
    }

    #[test]
    fn a_damaged_layout_file_is_an_error_or_a_sound_layout(
        at: prop::sample::Index, byte in 32u8..127, cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut text = TRAINER.as_bytes().to_vec();
        let i = at.index(text.len());
        text[i] = byte;
        if let Some(cut) = cut {
            text.truncate(cut.index(text.len()));
        }
        match Layout::from_json(&text) {
            Ok(layout) => {
                for rank in layout.ranks().into_iter().take(2) {
                    let _ = layout.buffers(rank);
                }
            }
            Err(e) => prop_assert!(!e.message.is_empty()),
        }
    }
}
