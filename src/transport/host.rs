//! Which host this is.

/// The boot id: the same for all processes of a host, in whatever container,
/// and for no others. Empty where the system has none.
pub fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_string()
}
