//! The frame around serialised bytes: it tells ours from foreign, whole from
//! truncated, and intact from damaged.
//!
//! ```text
//!   0        8         12        20           36
//!   │ magic  │ version │ length  │ xxh3-128   │ payload .. │
//!   │ 8 bytes│ u32     │ u64     │ u128       │ length     │   little endian
//! ```
//!
//! The checksum covers everything but itself. It finds accidents, not
//! malice: a payload is validated again by whoever reads it.

use crate::error::{Error, Result, Status};
use crate::limits::FILE_BYTES_MAX;
use xxhash_rust::xxh3::Xxh3;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 36;

/// Wraps a payload into a frame.
pub fn seal(magic: [u8; 8], version: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend(magic);
    out.extend(version.to_le_bytes());
    out.extend((payload.len() as u64).to_le_bytes());
    out.extend(checksum(&out, payload).to_le_bytes());
    out.extend(payload);
    out
}

/// The payload of a frame; `what` is what it should hold, for messages.
///
/// Foreign, truncated and damaged bytes are [`Status::Corrupt`], bytes of
/// another version [`Status::VersionMismatch`]. Nothing is allocated.
pub fn open<'a>(magic: [u8; 8], version: u32, what: &str, bytes: &'a [u8]) -> Result<&'a [u8]> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(Error::limit(format!(
            "{} bytes are too many for {what}; at most {FILE_BYTES_MAX} are allowed",
            bytes.len()
        )));
    }
    let known = magic.len().min(bytes.len());
    if bytes[..known] != magic[..known] || bytes.is_empty() {
        return Err(Error::corrupt(format!(
            "these {} bytes are not {what}",
            bytes.len()
        )));
    }
    let Some((header, payload)) = bytes.split_at_checked(HEADER_BYTES) else {
        return Err(Error::corrupt(format!(
            "{what} is truncated: {} bytes, and the header alone has {HEADER_BYTES}",
            bytes.len()
        )));
    };
    let found = u32::from_le_bytes(field(header, 8));
    if found != version {
        return Err(Error::new(
            Status::VersionMismatch,
            format!("{what} has version {found}; this library reads version {version}"),
        ));
    }
    let length = u64::from_le_bytes(field(header, 12));
    if length != payload.len() as u64 {
        return Err(Error::corrupt(format!(
            "{what} says it has {length} bytes of payload and has {}",
            payload.len()
        )));
    }
    if checksum(&header[..20], payload) != u128::from_le_bytes(field(header, 20)) {
        return Err(Error::corrupt(format!(
            "{what} is damaged: its checksum does not fit"
        )));
    }
    Ok(payload)
}

/// The `N` bytes at `at` of a complete header.
fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&header[at..at + N]);
    out
}

fn checksum(head: &[u8], payload: &[u8]) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(head);
    hash.update(payload);
    hash.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAGIC: [u8; 8] = *b"WSYNCTST";

    #[test]
    fn a_frame_gives_back_its_payload() {
        for payload in [&b""[..], b"x", &[7; 1000]] {
            let bytes = seal(MAGIC, 3, payload);
            assert_eq!(open(MAGIC, 3, "a test", &bytes).unwrap(), payload);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_found() {
        let bytes = seal(MAGIC, 3, b"payload");
        for cut in 0..bytes.len() {
            let e = open(MAGIC, 3, "a test", &bytes[..cut]).unwrap_err();
            assert_eq!(e.status, Status::Corrupt, "{cut} bytes: {e}");
        }
        for bit in 0..8 * bytes.len() {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let e = open(MAGIC, 3, "a test", &bad).unwrap_err();
            let of_version = (64..96).contains(&bit);
            let want = if of_version {
                Status::VersionMismatch
            } else {
                Status::Corrupt
            };
            assert_eq!(e.status, want, "bit {bit}: {e}");
        }
        let longer = [&bytes[..], b"!"].concat();
        assert_eq!(
            open(MAGIC, 3, "a test", &longer).unwrap_err().status,
            Status::Corrupt
        );
    }
}
