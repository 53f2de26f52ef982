//! The NICs of this host that a GPU is near to, as Linux shows its devices.
//!
//! ```text
//!   /sys/bus/pci/devices/0000:1b:00.0  ──►  devices/pci0000:15/0000:15:01.0/0000:1b:00.0
//!   /sys/class/infiniband/mlx5_0/device ─►  devices/pci0000:15/0000:15:01.0/0000:1a:00.0
//!   /sys/class/infiniband/mlx5_1/device ─►  devices/pci0000:37/0000:37:01.0/0000:3a:00.0
//! ```
//!
//! The GPU shares a bridge with `mlx5_0`, and nothing with `mlx5_1`.

use std::path::{Path, PathBuf};

/// Where Linux shows its devices.
pub const SYS: &str = "/sys";

/// A NIC and the device that it is.
struct Nic {
    name: String,
    device: PathBuf,
}

/// The names of the NICs nearest to the device at a PCI address, sorted:
/// RDMA devices with an active port or, where there are none, network
/// interfaces that are up. Near is who shares most bridges, then who is on the
/// same NUMA node. Empty if several NICs are there and none is near.
pub fn near(sys: &Path, pci_address: &str) -> Vec<String> {
    let address = pci_address.to_ascii_lowercase();
    let Ok(gpu) = sys.join("bus/pci/devices").join(address).canonicalize() else {
        return Vec::new();
    };
    let mut nics = nics(sys, "infiniband", has_active_port);
    if nics.is_empty() {
        nics = self::nics(sys, "net", is_up);
    }
    nearest(&gpu, &nics)
}

fn nearest(gpu: &Path, nics: &[Nic]) -> Vec<String> {
    let closeness: Vec<_> = nics.iter().map(|n| closeness(gpu, &n.device)).collect();
    let Some(best) = closeness.iter().max() else {
        return Vec::new();
    };
    if nics.len() > 1 && *best == (0, false) {
        return Vec::new();
    }
    let near = nics.iter().zip(&closeness).filter(|(_, c)| *c == best);
    near.map(|(n, _)| n.name.clone()).collect()
}

/// Bridges that two devices share, and whether they are on one NUMA node.
fn closeness(gpu: &Path, nic: &Path) -> (usize, bool) {
    let shared = gpu.components().zip(nic.components());
    let bridges = shared
        .take_while(|(a, b)| a == b)
        .filter(|(a, _)| is_pci(&a.as_os_str().to_string_lossy()));
    let node = |device: &Path| read(&device.join("numa_node")).filter(|n| n != "-1");
    let is_one_node = node(gpu).is_some_and(|n| node(nic) == Some(n));
    (bridges.count(), is_one_node)
}

/// True for a root complex, such as `pci0000:15`, and for a PCI address.
fn is_pci(part: &str) -> bool {
    let is_address = || part.split(':').count() == 3 && part.contains('.');
    part.starts_with("pci") || is_address()
}

/// Those of a class that are PCI devices and fit, by name.
fn nics(sys: &Path, class: &str, fits: fn(&Path) -> bool) -> Vec<Nic> {
    let entries = std::fs::read_dir(sys.join("class").join(class));
    let entries = entries.into_iter().flatten().flatten();
    let mut nics: Vec<Nic> = entries
        .filter(|e| fits(&e.path()))
        .filter_map(|e| {
            Some(Nic {
                name: e.file_name().into_string().ok()?,
                device: e.path().join("device").canonicalize().ok()?,
            })
        })
        .collect();
    nics.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    nics
}

/// An RDMA device says, for example, `4: ACTIVE`.
fn has_active_port(device: &Path) -> bool {
    let ports = std::fs::read_dir(device.join("ports"));
    let mut ports = ports.into_iter().flatten().flatten();
    ports.any(|p| read(&p.path().join("state")).is_some_and(|s| s.ends_with("ACTIVE")))
}

fn is_up(interface: &Path) -> bool {
    read(&interface.join("operstate")).is_some_and(|s| s == "up")
}

fn read(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    /// A folder that looks like `/sys`.
    struct Tree(PathBuf);

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    impl Tree {
        fn new(name: &str) -> Tree {
            let name = format!("weightsync_nics_{}_{name}", std::process::id());
            Tree(std::env::temp_dir().join(name))
        }

        fn sys(&self) -> &Path {
            &self.0
        }

        /// A PCI device below the bridges that `path` names.
        fn device(&self, path: &str, node: i32) -> PathBuf {
            let device = self.sys().join("devices").join(path);
            create_dir_all(&device).unwrap();
            write(device.join("numa_node"), format!("{node}\n")).unwrap();
            let by_address = self.sys().join("bus/pci/devices");
            create_dir_all(&by_address).unwrap();
            symlink(&device, by_address.join(device.file_name().unwrap())).unwrap();
            device
        }

        fn rdma(&self, name: &str, path: &str, node: i32, state: &str) {
            let nic = self.sys().join("class/infiniband").join(name);
            create_dir_all(nic.join("ports/1")).unwrap();
            write(nic.join("ports/1/state"), format!("{state}\n")).unwrap();
            symlink(self.device(path, node), nic.join("device")).unwrap();
        }

        fn net(&self, name: &str, path: &str, state: &str) {
            let nic = self.sys().join("class/net").join(name);
            create_dir_all(&nic).unwrap();
            write(nic.join("operstate"), format!("{state}\n")).unwrap();
            symlink(self.device(path, 0), nic.join("device")).unwrap();
        }
    }

    #[test]
    fn the_nic_behind_the_same_bridge_is_near() {
        let t = Tree::new("bridge");
        t.device("pci0000:15/0000:15:01.0/0000:1b:00.0", 0);
        t.rdma(
            "mlx5_0",
            "pci0000:15/0000:15:01.0/0000:1a:00.0",
            0,
            "4: ACTIVE",
        );
        t.rdma(
            "mlx5_1",
            "pci0000:15/0000:15:02.0/0000:2a:00.0",
            0,
            "4: ACTIVE",
        );
        t.rdma(
            "mlx5_2",
            "pci0000:37/0000:37:01.0/0000:3a:00.0",
            0,
            "4: ACTIVE",
        );
        assert_eq!(near(t.sys(), "0000:1B:00.0"), ["mlx5_0"]);
        assert!(near(t.sys(), "0000:99:00.0").is_empty(), "no such GPU");
    }

    #[test]
    fn nics_without_an_active_port_do_not_count() {
        let t = Tree::new("ports");
        t.device("pci0000:15/0000:15:01.0/0000:1b:00.0", 0);
        t.rdma(
            "mlx5_0",
            "pci0000:15/0000:15:01.0/0000:1a:00.0",
            0,
            "1: DOWN",
        );
        t.rdma(
            "mlx5_1",
            "pci0000:15/0000:15:02.0/0000:2a:00.0",
            0,
            "4: ACTIVE",
        );
        assert_eq!(near(t.sys(), "0000:1b:00.0"), ["mlx5_1"]);
    }

    #[test]
    fn where_no_bridge_is_shared_the_numa_node_decides() {
        let t = Tree::new("numa");
        t.device("pci0000:15/0000:1b:00.0", 1);
        t.rdma("mlx5_0", "pci0000:20/0000:2a:00.0", 0, "4: ACTIVE");
        t.rdma("mlx5_1", "pci0000:30/0000:3a:00.0", 1, "4: ACTIVE");
        t.rdma("mlx5_2", "pci0000:40/0000:4a:00.0", 1, "4: ACTIVE");
        assert_eq!(near(t.sys(), "0000:1b:00.0"), ["mlx5_1", "mlx5_2"]);
    }

    #[test]
    fn nics_that_are_all_far_say_nothing() {
        let t = Tree::new("far");
        t.device("pci0000:15/0000:1b:00.0", -1);
        t.rdma("mlx5_0", "pci0000:20/0000:2a:00.0", -1, "4: ACTIVE");
        t.rdma("mlx5_1", "pci0000:30/0000:3a:00.0", -1, "4: ACTIVE");
        assert!(near(t.sys(), "0000:1b:00.0").is_empty());
    }

    #[test]
    fn without_rdma_interfaces_that_are_up_count() {
        let t = Tree::new("net");
        t.device("pci0000:15/0000:1b:00.0", 0);
        assert!(near(t.sys(), "0000:1b:00.0").is_empty(), "no NIC");
        t.net("ens1", "pci0000:15/0000:1c:00.0", "up");
        t.net("ens2", "pci0000:15/0000:1d:00.0", "down");
        create_dir_all(t.sys().join("class/net/lo")).unwrap();
        assert_eq!(near(t.sys(), "0000:1b:00.0"), ["ens1"]);
    }
}
