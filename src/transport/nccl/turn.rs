//! One lock per device.
//!
//! NCCL does not allow several threads to launch on one device at a time, even
//! on communicators that have nothing to do with each other. All our calls
//! take the device's turn; a watchdog only tries to.

use crate::transport::queue::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;

/// The lock of GPU `device` in this process. Lasts as long as the process.
pub(super) fn turn_of(device: u32) -> &'static Mutex<()> {
    static TURNS: Mutex<BTreeMap<u32, &'static Mutex<()>>> = Mutex::new(BTreeMap::new());
    lock(&TURNS)
        .entry(device)
        .or_insert_with(|| Box::leak(Box::default()))
}
