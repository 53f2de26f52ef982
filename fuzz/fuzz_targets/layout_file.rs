//! Any bytes as a layout file: an error or a layout that can be used.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weightsync::layout::check::check;
use weightsync::layout::{Layout, LayoutSpec};

fuzz_target!(|text: &[u8]| {
    let Ok(spec) = LayoutSpec::from_json(text) else {
        return;
    };
    let report = check(&spec);
    match Layout::new(spec) {
        Ok(layout) => {
            assert!(report.is_ok());
            let again = Layout::from_json(layout.to_json().as_bytes()).unwrap();
            assert_eq!(again.spec(), layout.spec());
            for rank in layout.ranks().into_iter().take(4) {
                let _ = layout.buffers(rank);
            }
        }
        Err(_) => assert!(!report.is_ok()),
    }
});
