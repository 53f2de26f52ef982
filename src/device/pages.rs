//! Page-aligned memory that can be refused.
//!
//! The heap would end the process where memory is short; a mapping says no.

use super::MemoryRange;
use super::available::check_available;
use crate::error::{Error, Result, Status};
use std::io;
use std::ptr::{null_mut, with_exposed_provenance_mut};
use std::sync::{Mutex, PoisonError};

/// Mappings of one device. Unmapped when given back, or with the device.
#[derive(Debug, Default)]
pub(super) struct Pages {
    live: Mutex<Vec<MemoryRange>>,
}

impl Pages {
    /// Zeroed, writable, page-aligned memory, touched already: a first touch
    /// inside a transfer would cost more than the transfer.
    pub(super) fn allocate(&self, bytes: u64) -> Result<MemoryRange> {
        if bytes == 0 {
            return Ok(MemoryRange::EMPTY);
        }
        check_available("memory", bytes)?;
        let range = map(bytes)?;
        self.lock().push(range);
        touch(range).inspect_err(|_| self.free(range))?;
        Ok(range)
    }

    /// Unmaps what `allocate` gave; anything else is ignored.
    pub(super) fn free(&self, range: MemoryRange) {
        let mut live = self.lock();
        if let Some(i) = live.iter().position(|r| *r == range) {
            unmap(live.swap_remove(i));
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<MemoryRange>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for range in self.lock().drain(..) {
            unmap(range);
        }
    }
}

fn refused(bytes: u64, e: &io::Error) -> Error {
    let os = Error::os(format_args!("allocating {bytes} bytes"), e);
    Error {
        status: Status::OutOfMemory,
        ..os
    }
}

fn map(bytes: u64) -> Result<MemoryRange> {
    let length = usize::try_from(bytes)
        .map_err(|_| refused(bytes, &io::Error::from_raw_os_error(libc::ENOMEM)))?;
    // SAFETY: an anonymous mapping at an address of the kernel's choice
    // touches no memory of ours.
    let start = unsafe {
        libc::mmap(
            null_mut(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(refused(bytes, &io::Error::last_os_error()));
    }
    Ok(MemoryRange {
        address: start.expose_provenance(),
        bytes,
    })
}

/// Has the kernel provide all pages, large ones where it can.
fn touch(range: MemoryRange) -> Result<()> {
    let start = with_exposed_provenance_mut(range.address);
    let length = range.bytes as usize;
    // SAFETY: advice on a whole mapping of ours; neither advice changes what
    // the memory holds.
    let populated = unsafe {
        libc::madvise(start, length, libc::MADV_HUGEPAGE);
        libc::madvise(start, length, libc::MADV_POPULATE_WRITE)
    };
    if populated == 0 {
        return Ok(());
    }
    let e = io::Error::last_os_error();
    match e.raw_os_error() {
        // Kernels before 5.14: pages come when they are touched.
        Some(libc::EINVAL) => Ok(()),
        _ => Err(refused(range.bytes, &e)),
    }
}

fn unmap(range: MemoryRange) {
    // SAFETY: a whole mapping of ours, taken off the list: nobody unmaps it
    // twice. Its user gave it back or dropped the device.
    unsafe {
        libc::munmap(
            with_exposed_provenance_mut(range.address),
            range.bytes as usize,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ptr::with_exposed_provenance;

    #[test]
    fn memory_is_zeroed_page_aligned_and_given_back() {
        let pages = Pages::default();
        let range = pages.allocate(10_000).unwrap();
        assert_eq!(range.address % 4096, 0);
        // SAFETY: just mapped, and nobody else knows it.
        let bytes = unsafe {
            std::slice::from_raw_parts(with_exposed_provenance::<u8>(range.address), 10_000)
        };
        assert!(bytes.iter().all(|&b| b == 0));
        pages.free(range);
        pages.free(range);
        assert!(pages.lock().is_empty());
        assert_eq!(pages.allocate(0).unwrap(), MemoryRange::EMPTY);
    }

    #[test]
    fn too_much_is_an_error() {
        let pages = Pages::default();
        for bytes in [1 << 46, 1 << 60, u64::MAX] {
            let e = pages.allocate(bytes).unwrap_err();
            assert_eq!(e.status, Status::OutOfMemory);
            assert!(e.message.contains(&bytes.to_string()), "{e}");
        }
    }
}
