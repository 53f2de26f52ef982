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

const FINE: [(&str, i32); 8] = [
    ("cuda_kernels", 0),
    ("cuda_device", 0),
    ("cuda_processes", 0),
    ("exec_transfer", 0),
    ("exec_faults", 0),
    ("nccl_one_gpu", 0),
    ("bench_gpu", 0),
    ("weightsync", 0),
];

/// Runs it as on a machine with so many GPUs and with compute-sanitizer.
fn run(folder: &Path, gpus: usize, arguments: &[&str]) -> (Output, String) {
    let bin = folder.join("bin");
    let list = (0..gpus).map(|i| format!("echo GPU {i}: a pretence"));
    script(
        &bin.join("nvidia-smi"),
        &list.collect::<Vec<_>>().join("\n"),
    );
    let skip = "while [ ! -x \"$1\" ]; do shift; done\necho checked:\n\"$@\"";
    script(&bin.join("compute-sanitizer"), skip);
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let output = Command::new(folder.join("run"))
        .args(arguments)
        .env("PATH", path)
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
    let path = folder.join("bin").display().to_string() + ":/usr/bin:/bin";
    let nccl = Command::new(folder.join("nccl")).env("PATH", path).output();
    let nccl = nccl.unwrap();
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
    for (program, _) in &FINE[..6] {
        assert_eq!(said.matches(&format!("\n{program} ")).count(), 2, "{said}");
        let checked = said.contains(&format!("checked:\n{program} "));
        assert!(checked, "{program} is not checked: {said}");
    }
}
