//! Builds the stand-in GPU libraries, once per content, for tests that load
//! them.

#![allow(dead_code)]

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The stand-in for libcudart.so and libcuda.so.
pub fn cudart() -> PathBuf {
    let sources = ["cudart.cc", "memory.cc", "stream.cc"];
    build("libcudart.so.13", &sources, &[])
}

/// The stand-in for libnccl.so.2, as a current one.
pub fn nccl() -> PathBuf {
    build("libnccl.so.2", NCCL, &[])
}

/// The same with what NCCL 2.18 has and no more.
pub fn nccl_old() -> PathBuf {
    build("libnccl.so.2", NCCL, &["-DFAKE_NCCL_OLD"])
}

const NCCL: &[&str] = &["nccl.cc", "nccl_meet.cc", "nccl_run.cc", "nccl_wire.cc"];

fn build(soname: &str, sources: &[&str], flags: &[&str]) -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_gpu");
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/kernels");
    let folder = target().join("fake_gpu").join(key(&here, &kernels, flags));
    let library = folder.join(soname);
    if library.exists() {
        return library;
    }
    fs::create_dir_all(&folder).unwrap();
    let fresh = folder.join(format!("{soname}.{}", std::process::id()));
    let output = Command::new("g++")
        .args(["-std=c++20", "-O1", "-g", "-Wall", "-Wextra"])
        .args(["-fPIC", "-shared", "-fvisibility=hidden", "-pthread"])
        .arg(format!("-Wl,-soname,{soname}"))
        .args(flags)
        .arg("-I")
        .arg(&kernels)
        .arg("-o")
        .arg(&fresh)
        .args(sources.iter().map(|s| here.join(s)))
        .arg("-ldl")
        .output()
        .expect("g++ runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    assert!(said.is_empty(), "{said}");
    // Whoever is last wins; both are the same.
    fs::rename(&fresh, &library).unwrap();
    library
}

/// Changes with every source.
fn key(here: &Path, kernels: &Path, flags: &[&str]) -> String {
    let mut files: Vec<PathBuf> = [here, kernels]
        .iter()
        .flat_map(|folder| fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| matches!(path.extension(), Some(e) if e == "cc" || e == "h"))
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    flags.hash(&mut hasher);
    for file in files {
        fs::read(file).unwrap().hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}

fn target() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).to_path_buf()
}
