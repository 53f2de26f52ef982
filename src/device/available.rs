//! How much memory there is to take.
//!
//! Linux promises more memory than it has, and kills somebody when it is asked
//! to keep the promise. Pages that we have the kernel provide at once are
//! therefore asked for only where the system, and the control group that this
//! process is in, say that they are there.

use crate::error::{Error, Result, Status};
use std::fs::read_to_string;

/// Refuses `bytes` bytes of memory that the system does not have.
pub(crate) fn check_available(what: &str, bytes: u64) -> Result<()> {
    let available = available();
    if bytes <= available {
        return Ok(());
    }
    Err(Error::new(
        Status::OutOfMemory,
        format!("{bytes} bytes of {what}; {available} bytes of memory are available"),
    ))
}

/// Bytes that can be had without anybody being killed. `u64::MAX` where
/// nothing says so.
fn available() -> u64 {
    let system = read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| field(&text, "MemAvailable:"))
        .map_or(u64::MAX, |kib| kib.saturating_mul(1024));
    group().map_or(system, |group| group.min(system))
}

/// What the control group of this process leaves, by either of its versions.
fn group() -> Option<u64> {
    let groups = read_to_string("/proc/self/cgroup").ok()?;
    let path = |is_wanted: fn(&str) -> bool| {
        groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            is_wanted(controllers).then_some(path)
        })
    };
    let v1 = path(|c| c.split(',').any(|c| c == "memory")).and_then(|p| {
        left(
            "/sys/fs/cgroup/memory",
            p,
            ["limit_in_bytes", "usage_in_bytes"],
        )
    });
    let v2 = path(str::is_empty).and_then(|p| left("/sys/fs/cgroup", p, ["max", "current"]));
    v1.into_iter().chain(v2).min()
}

/// The least that any group from `path` up to the root leaves.
fn left(mount: &str, path: &str, names: [&str; 2]) -> Option<u64> {
    let mut path = path.trim_end_matches('/');
    let mut least = None;
    loop {
        let dir = format!("{mount}{path}");
        let number = |name: &str| {
            let text = read_to_string(format!("{dir}/memory.{name}")).ok()?;
            text.trim().parse::<u64>().ok()
        };
        if let (Some(limit), Some(used)) = (number(names[0]), number(names[1])) {
            let stat = read_to_string(format!("{dir}/memory.stat")).unwrap_or_default();
            // Cached files are given up when memory is needed.
            let cached = ["inactive_file ", "active_file "]
                .iter()
                .filter_map(|name| field(&stat, name))
                .sum::<u64>();
            let here = limit.saturating_sub(used.saturating_sub(cached));
            least = Some(least.map_or(here, |l: u64| l.min(here)));
        }
        match path.rfind('/') {
            Some(i) => path = &path[..i],
            None => return least,
        }
    }
}

/// The number behind `name` at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_is_there_and_a_petabyte_is_not() {
        check_available("memory", 4096).unwrap();
        let e = check_available("memory", 1 << 50).unwrap_err();
        assert_eq!(e.status, Status::OutOfMemory);
        assert!(e.message.contains(&(1u64 << 50).to_string()), "{e}");
    }

    #[test]
    fn numbers_are_found_by_their_names() {
        let text = "MemTotal:  100 kB\nMemAvailable:   42 kB\nactive_file 7\n";
        assert_eq!(field(text, "MemAvailable:"), Some(42));
        assert_eq!(field(text, "active_file "), Some(7));
        assert_eq!(field(text, "Nothing:"), None);
    }
}
