//! Gathers the greetings of all ranks over TCP.
use crate::error::{Error, Result, Status};
use crate::rank::Rank;
use std::time::Instant;

/// Gathers the greetings of `ranks`.
pub fn gather(
    _own: (Rank, &[u8]),
    _ranks: &[Rank],
    _address: &str,
    _token: &[u8],
    _deadline: Instant,
) -> Result<Vec<Vec<u8>>> {
    Err(Error::new(Status::Unsupported, "not yet"))
}
