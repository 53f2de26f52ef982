//! Proof that somebody knows a secret, without saying it.
//!
//! HMAC-SHA-256 (RFC 2104), compared in constant time. A secret never travels;
//! what does is a keyed hash over fresh random bytes of the other side.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use subtle::ConstantTimeEq;

/// Bytes of a proof.
pub const MAC_BYTES: usize = 32;

/// The keyed hash of `parts`, each preceded by its length, so that no two
/// lists of parts look alike.
pub fn mac(key: &[u8], parts: &[&[u8]]) -> [u8; MAC_BYTES] {
    let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(key) else {
        unreachable!("HMAC takes keys of any length")
    };
    for part in parts {
        hmac.update(&(part.len() as u64).to_le_bytes());
        hmac.update(part);
    }
    hmac.finalize().into_bytes().into()
}

/// Compares without telling, by the time it takes, where the difference is.
pub fn are_equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's hmac and hashlib.
    #[test]
    fn the_hash_is_hmac_sha_256_over_lengths_and_parts() {
        let hex = |bytes: [u8; 32]| bytes.map(|b| format!("{b:02x}")).concat();
        assert_eq!(
            hex(mac(b"Jefe", &[b"what do ya", b" want for nothing?"])),
            "7d7345a5bbaf8f5e136b5da5207911e88ee73e0e1201643e31a57b549ecfd4f3"
        );
        assert_eq!(
            hex(mac(&[0xaa; 131], &[])),
            "44b545def5b97eb719d856a15e327833e520e4770619c0e3eefbde24b71285a7"
        );
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(mac(b"k", &[b"ab", b"c"]), mac(b"k", &[b"a", b"bc"]));
        assert_ne!(mac(b"k", &[b"ab"]), mac(b"l", &[b"ab"]));
        assert!(are_equal(b"same", b"same"));
        assert!(!are_equal(b"same", b"sama"));
        assert!(!are_equal(b"same", b"sames"));
    }
}
