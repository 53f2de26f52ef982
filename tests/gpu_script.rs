//! tests/gpu/run without a GPU, and packed, with programs that end as they like.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// How a program that was skipped ends.
const SKIPPED: i32 = 77;

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gpu")
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// A packed folder whose programs say their names and end with these numbers.
fn packed(name: &str, ends: &[(&str, i32)]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    for part in ["programs", "bin"] {
        std::fs::create_dir_all(folder.join(part)).unwrap();
    }
    for part in ["run", "nccl"] {
        std::fs::copy(scripts().join(part), folder.join(part)).unwrap();
    }
    for (program, end) in ends {
        let text = format!("echo {program} \"$@\"\nexit {end}");
        script(&folder.join("programs").join(program), &text);
    }
    folder
}

const FINE: [(&str, i32); 9] = [
    ("cuda_kernels", 0),
    ("cuda_device", 0),
    ("cuda_processes", 0),
    ("exec_transfer", 0),
    ("exec_faults", 0),
    ("nccl_one_gpu", 0),
    ("nccl_colocated", 0),
    ("bench_gpu", 0),
    ("weightsync", 0),
];

/// The search path of a machine with so many GPUs and with compute-sanitizer.
fn machine(folder: &Path, gpus: usize) -> String {
    let bin = folder.join("bin");
    let list = (0..gpus).map(|i| format!("echo GPU {i}: a pretence"));
    script(
        &bin.join("nvidia-smi"),
        &list.collect::<Vec<_>>().join("\n"),
    );
    let skip = "while [ ! -x \"$1\" ]; do shift; done\necho checked:\n\"$@\"";
    script(&bin.join("compute-sanitizer"), skip);
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

fn run(folder: &Path, gpus: usize, arguments: &[&str]) -> (Output, String) {
    let output = Command::new(folder.join("run"))
        .args(arguments)
        .env("PATH", machine(folder, gpus))
        .env("WSYNC_CUDART_LIBRARY", "/nowhere/libcudart.so.13")
        .env("WSYNC_NCCL_LIBRARY", "/nowhere/libnccl.so.2")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (output, said)
}

#[test]
fn without_a_gpu_everything_is_skipped() {
    let folder = packed("gpu_script_none", &FINE);
    let (output, said) = run(&folder, 0, &[]);
    assert_eq!(
        (output.status.code(), &*said),
        (Some(SKIPPED), "skipped: no GPU\n")
    );
    let mut nccl = Command::new(folder.join("nccl"));
    let nccl = nccl.env("PATH", machine(&folder, 0)).output().unwrap();
    assert_eq!(nccl.status.code(), Some(SKIPPED));
    assert_eq!(nccl.stdout, b"skipped: no GPU\n");
}

#[test]
fn what_was_run_and_what_was_not_is_said() {
    let mut ends = FINE;
    ends[5].1 = SKIPPED;
    let folder = packed("gpu_script_skips", &ends);
    let (output, said) = run(&folder, 1, &[]);
    assert!(output.status.success(), "{said}");
    let summary = said.split("== summary").nth(1).unwrap();
    assert!(summary.contains("run:      kernels"), "{said}");
    assert!(
        summary.contains("not run:  NCCL on one GPU: skipped"),
        "{said}"
    );
    assert!(
        summary.contains("not run:  compute-sanitizer: ask"),
        "{said}"
    );
    assert!(!summary.contains("failed: "), "{said}");
}

#[test]
fn a_compressed_nccl_is_unpacked_for_as_long_as_it_is_used() {
    let folder = packed("gpu_script_xz", &FINE);
    let told = folder.join("programs/nccl_one_gpu");
    script(
        &told,
        "echo \"$WSYNC_NCCL_LIBRARY\"\ncat \"$WSYNC_NCCL_LIBRARY\"",
    );
    let library = folder.join("libnccl-small.so");
    std::fs::write(&library, "a library\n").unwrap();
    let Ok(done) = Command::new("xz").arg(&library).status() else {
        return eprintln!("skipped: xz is not installed");
    };
    assert!(done.success());
    let mut nccl = Command::new(folder.join("nccl"));
    nccl.env("PATH", machine(&folder, 1));
    nccl.env_remove("WSYNC_NCCL_LIBRARY");
    let output = nccl.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
    let mut lines = said.lines().skip(1);
    let unpacked = PathBuf::from(lines.next().unwrap());
    assert!(unpacked.ends_with("libnccl.so.2"), "{said}");
    assert_eq!(lines.next(), Some("a library"));
    assert!(!unpacked.exists(), "it is left behind");
}

#[test]
fn a_program_that_fails_fails_all() {
    let mut ends = FINE;
    ends[1].1 = 101;
    let folder = packed("gpu_script_fails", &ends);
    let (output, said) = run(&folder, 1, &[]);
    assert!(!output.status.success());
    let summary = said.split("== summary").nth(1).unwrap();
    assert!(summary.contains("failed:   streams, fences"), "{said}");
    assert!(
        summary.contains("run:      figures"),
        "the rest is run: {said}"
    );
}

#[test]
fn every_test_program_is_run_under_the_sanitizer() {
    let folder = packed("gpu_script_checked", &FINE);
    let (output, said) = run(&folder, 1, &["--memcheck"]);
    assert!(output.status.success(), "{said}");
    for (program, _) in &FINE[..7] {
        assert_eq!(said.matches(&format!("\n{program} ")).count(), 2, "{said}");
        let checked = said.contains(&format!("checked:\n{program} "));
        assert!(checked, "{program} is not checked: {said}");
    }
}
