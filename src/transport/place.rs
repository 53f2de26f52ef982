//! Where this process is, as far as its host and its GPU tell.

use super::host::boot_id;
use super::nics;
use crate::device::cuda::gpu::{Gpu, current_device};
use crate::error::{Error, Result};
use crate::plan::topology::RankPlace;
use std::path::Path;

/// A place with what its rank did not say. Without a host it is on this one,
/// whose boot id names it; without a device it has the GPU that is current on
/// this thread and, unless it names NICs, those near to that.
///
/// Fails if a device has to be found and there is no GPU.
pub fn complete(mut place: RankPlace) -> Result<RankPlace> {
    if place.host.is_empty() {
        place.host = boot_id();
    }
    if !place.device.is_empty() {
        return Ok(place);
    }
    let gpu = current_device().and_then(Gpu::new);
    let gpu = gpu.map_err(|e| {
        let rank = place.rank;
        Error::invalid(format!(
            "rank {rank} names no device, and there is no GPU to ask: {}",
            e.message
        ))
        .by(rank)
    })?;
    let address = gpu.address()?;
    place.device = match gpu.uuid()? {
        0 => format!("{} {address}", place.host),
        uuid => uuid_text(uuid),
    };
    if place.nics.is_empty() {
        place.nics = nics::near(Path::new(nics::SYS), &address);
    }
    Ok(place)
}

/// As `nvidia-smi -L` writes it.
fn uuid_text(uuid: u128) -> String {
    let digits: String = uuid
        .to_le_bytes()
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|at| &digits[at]);
    format!("GPU-{}", parts.join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rank::Rank;

    #[test]
    fn what_a_rank_says_is_kept() {
        let said = RankPlace {
            rank: Rank(3),
            host: "a".into(),
            device: "gpu".into(),
            nics: vec!["mlx5_3".into()],
            ..RankPlace::default()
        };
        assert_eq!(complete(said.clone()), Ok(said.clone()));
        let here = complete(RankPlace {
            host: String::new(),
            ..said
        });
        assert_eq!(here.unwrap().host, boot_id());
    }

    #[test]
    fn an_id_reads_as_the_driver_writes_it() {
        let bytes: [u8; 16] = std::array::from_fn(|i| 0x10 * i as u8 + 1);
        let text = uuid_text(u128::from_le_bytes(bytes));
        assert_eq!(text, "GPU-01112131-4151-6171-8191-a1b1c1d1e1f1");
    }
}
