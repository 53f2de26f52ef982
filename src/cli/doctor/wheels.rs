//! NVIDIA's Python wheels in the environment that this command belongs to.

use std::path::{Path, PathBuf};

/// Every libnccl.so.2 of a wheel: first in the active environment, then in the
/// one that this command is installed in.
pub fn nccl() -> Vec<PathBuf> {
    find(&["nvidia/nccl/lib/libnccl.so.2"])
}

/// Every libcudart.so of a wheel, of the newest CUDA first.
pub fn cudart() -> Vec<PathBuf> {
    find(&[
        "nvidia/cu13/lib/libcudart.so.13",
        "nvidia/cuda_runtime/lib/libcudart.so.12",
    ])
}

fn find(files: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for packages in environments().iter().flat_map(|e| site_packages(e)) {
        let here = files.iter().map(|file| packages.join(file));
        found.extend(here.filter(|path| path.is_file()));
    }
    found.dedup();
    found
}

fn environments() -> Vec<PathBuf> {
    let active = ["VIRTUAL_ENV", "CONDA_PREFIX"].map(std::env::var_os);
    let mut all: Vec<PathBuf> = active.into_iter().flatten().map(PathBuf::from).collect();
    // <environment>/bin/weightsync
    let own = std::env::current_exe().ok();
    let own = own.as_deref().and_then(Path::parent).and_then(Path::parent);
    all.extend(own.map(Path::to_path_buf));
    all
}

/// `<environment>/lib/python3.*/site-packages`.
fn site_packages(environment: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(environment.join("lib")) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| e.file_name().to_string_lossy().starts_with("python3"))
        .map(|e| e.path().join("site-packages"))
        .collect();
    found.sort();
    found
}
