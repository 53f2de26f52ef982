//! Addresses to meet at.

use std::net::TcpListener;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Ports that the system gives to nobody who does not ask for one by number,
/// so that none is taken between our look and its use.
const FIRST: u32 = 10_000;
const COUNT: u32 = 20_000;

/// An address of this machine at which nobody listens.
pub fn free_address() -> String {
    static TRIED: AtomicU32 = AtomicU32::new(0);
    loop {
        // Processes beside this one look elsewhere.
        let tried = TRIED.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (process::id().wrapping_mul(131) + tried) % COUNT;
        let address = format!("127.0.0.1:{port}");
        if TcpListener::bind(&address).is_ok() {
            return address;
        }
    }
}
