//! Any bytes as a plan: behind an intact frame, so that the payload is reached.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weightsync::layout::frame;
use weightsync::plan::{PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, Plan};

fuzz_target!(|bytes: &[u8]| {
    let _ = Plan::from_bytes(bytes);
    let framed = frame::seal(PLAN_BLOB_MAGIC, PLAN_BLOB_VERSION, bytes);
    if let Ok(plan) = Plan::from_bytes(&framed) {
        for rank in plan.ranks().into_iter().take(4) {
            let _ = plan.program(rank);
        }
    }
});
