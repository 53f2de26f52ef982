//! Any bytes as a layout file: an error or a layout, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;
use weightsync::layout::Layout;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(layout) = Layout::from_json(bytes) {
        let again = Layout::from_json(layout.to_json().as_bytes()).expect("what we write we read");
        assert_eq!(layout.spec(), again.spec());
    }
});
