//! Which host and which GPU, in words that every process of a host agrees on.

use crate::device::cuda::gpu::Gpu;
use crate::error::{Error, Result, Status};

/// What tells hosts apart, best first.
const HOST_NAMES: [&str; 2] = [
    "/proc/sys/kernel/random/boot_id",
    "/proc/sys/kernel/hostname",
];

/// A hash of the boot id: the same for all processes of a host, in whatever
/// container. Where it cannot be read, of the host's name: then at least no two
/// hosts are taken for one.
pub(super) fn host_id() -> Result<[u8; 16]> {
    host_of(&HOST_NAMES.map(|path| std::fs::read_to_string(path).unwrap_or_default()))
}

/// The first of the names that says something.
fn host_of(names: &[String]) -> Result<[u8; 16]> {
    let Some(name) = names.iter().map(|n| n.trim()).find(|n| !n.is_empty()) else {
        return Err(Error::new(
            Status::System,
            format!(
                "neither {} nor {} can be read: ranks could not tell one host from another",
                HOST_NAMES[0], HOST_NAMES[1]
            ),
        ));
    };
    Ok(xxhash_rust::xxh3::xxh3_128(name.as_bytes()).to_le_bytes())
}

/// The PCI address, padded with zeroes.
pub(super) fn gpu_id(gpu: &Gpu) -> Result<[u8; 16]> {
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(gpu.address()?.bytes()) {
        *to = from;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_that_has_no_name_is_not_any_other() {
        let names = |a: &str, b: &str| [a.to_string(), b.to_string()];
        let by_boot = host_of(&names("id\n", "a")).unwrap();
        assert_eq!(host_of(&names("id", "b")), Ok(by_boot));
        let by_name = |name| host_of(&names("", name)).unwrap();
        assert_ne!(by_name("a"), by_name("b"));
        assert_eq!(host_of(&names(" ", "")).unwrap_err().status, Status::System);
        assert_eq!(host_id(), host_id());
    }
}
