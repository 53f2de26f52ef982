//! Any bytes as a serialised layout, as they are and behind a good checksum.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weightsync::layout::{LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, Layout, frame};

fuzz_target!(|payload: &[u8]| {
    let _ = Layout::from_bytes(payload);
    let sealed = frame::seal(LAYOUT_BLOB_MAGIC, LAYOUT_BLOB_VERSION, payload);
    if let Ok(layout) = Layout::from_bytes(&sealed) {
        let again = Layout::from_bytes(&layout.to_bytes()).unwrap();
        assert_eq!(again.spec(), layout.spec());
        for rank in layout.ranks().into_iter().take(4) {
            let _ = layout.buffers(rank);
        }
    }
});
