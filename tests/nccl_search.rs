//! Which NCCL and which CUDA are found, and what is said of those that will not
//! do: by `weightsync doctor` and by transports, each in a process of its own
//! because what is loaded stays. On the stand-ins.

mod fake_gpu;

use fake_gpu::nccl::{nccl as current, nccl_old as old};
use serde_json::Value;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use weightsync::transport::nccl::Nccl;

/// `weightsync doctor` where nothing is set but this; its report.
fn doctor(set: &[(&str, &OsStr)]) -> Value {
    let cuda = fake_gpu::cudart();
    let mut command = Command::new(env!("CARGO_BIN_EXE_weightsync"));
    command.args(["doctor", "--json"]);
    for name in [
        "WSYNC_NCCL_LIBRARY",
        "VLLM_NCCL_SO_PATH",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
    ] {
        command.env_remove(name);
    }
    let output = command
        .env("WSYNC_CUDART_LIBRARY", &cuda)
        .env("WSYNC_CUDA_LIBRARY", &cuda)
        .env("FAKE_GPU_DEVICES", "2")
        .envs(set.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// It is not ready, and this is why.
fn has_problem(report: &Value, why: &str) {
    assert_eq!(report["ready"], false, "{report}");
    let findings = report["findings"].as_array().unwrap();
    let is_it = |f: &Value| f["severity"] == "problem" && f["text"].as_str().unwrap().contains(why);
    assert!(findings.iter().any(is_it), "{why}: {report}");
    let advice = |f: &Value| !f["advice"].as_str().unwrap().is_empty();
    assert!(findings.iter().all(advice), "{report}");
}

/// A folder in which the loader finds this file as libnccl.so.2.
fn folder_with(library: &Path) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nccl_search");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(library, folder.join("libnccl.so.2")).unwrap();
    folder
}

#[test]
fn doctor_says_what_is_found_and_what_it_can_do() {
    let report = doctor(&[("WSYNC_NCCL_LIBRARY", current().as_os_str())]);
    assert_eq!(report["ready"], true, "{report}");
    assert_eq!(report["nccl"]["version"], "2.30.7");
    assert_eq!(report["nccl"]["path"], current().to_str().unwrap());
    assert_eq!(report["cuda"]["devices"].as_array().unwrap().len(), 2);
    let abilities = report["nccl"]["abilities"].as_array().unwrap();
    assert!(abilities.iter().all(|a| a["has"] == true), "{report}");

    let report = doctor(&[("WSYNC_NCCL_LIBRARY", old().as_os_str())]);
    assert_eq!(report["ready"], true, "{report}");
    let abilities = report["nccl"]["abilities"].as_array().unwrap();
    assert!(abilities.iter().any(|a| a["has"] == false), "{report}");
}

#[test]
fn nccl_is_searched_in_the_order_that_is_documented() {
    let (first, second) = (current(), old());
    let folder = folder_with(&first);
    let loader = ("LD_LIBRARY_PATH", folder.as_os_str());
    let preloaded = ("LD_PRELOAD", second.as_os_str());
    let vllm = ("VLLM_NCCL_SO_PATH", second.as_os_str());
    let ours = ("WSYNC_NCCL_LIBRARY", first.as_os_str());
    let found = |set: &[(&str, &OsStr)]| {
        let nccl = &doctor(set)["nccl"];
        let text = |name: &str| nccl[name].as_str().unwrap().to_string();
        (text("version"), text("found"))
    };
    let told = |version: &str, found: &str| (version.to_string(), found.to_string());
    let loaded = told("2.30.7", "found by the system's loader");
    assert_eq!(found(&[loader]), loaded);
    let in_process = told("2.18.5", "already in the process");
    assert_eq!(found(&[loader, preloaded]), in_process);
    let by_vllm = told("2.18.5", "asked for by VLLM_NCCL_SO_PATH");
    assert_eq!(found(&[loader, vllm]), by_vllm);
    let by_us = told("2.30.7", "asked for by WSYNC_NCCL_LIBRARY");
    assert_eq!(found(&[loader, vllm, ours]), by_us);
}

#[test]
fn a_library_that_will_not_do_is_named() {
    let nowhere = OsStr::new("/nowhere/libnccl.so.2");
    let report = doctor(&[("WSYNC_NCCL_LIBRARY", nowhere)]);
    has_problem(
        &report,
        "NCCL at /nowhere/libnccl.so.2, asked for by WSYNC_NCCL_LIBRARY",
    );

    let (library, version) = (old(), OsStr::new("21602"));
    let too_old = [
        ("WSYNC_NCCL_LIBRARY", library.as_os_str()),
        ("FAKE_NCCL_VERSION", version),
    ];
    has_problem(&doctor(&too_old), "is NCCL 2.16.2; 2.18 or later is needed");

    let report = doctor(&[("WSYNC_NCCL_LIBRARY", fake_gpu::cudart().as_os_str())]);
    has_problem(&report, "2.18 or later is needed");

    let (library, other) = (current(), old());
    let twice = [
        ("WSYNC_NCCL_LIBRARY", library.as_os_str()),
        ("LD_PRELOAD", other.as_os_str()),
    ];
    has_problem(&doctor(&twice), "two copies of NCCL are in the process");

    let many = OsStr::new("1");
    let not_yet = [
        ("WSYNC_NCCL_LIBRARY", other.as_os_str()),
        ("NCCL_MULTI_RANK_GPU_ENABLE", many),
    ];
    has_problem(&doctor(&not_yet), "NCCL_MULTI_RANK_GPU_ENABLE is set");
}

#[test]
fn a_machine_without_cuda_a_driver_or_a_gpu_is_told_apart() {
    let library = current();
    let nccl = ("WSYNC_NCCL_LIBRARY", library.as_os_str());
    let with = |name, value| doctor(&[nccl, (name, OsStr::new(value))]);
    let no_cuda = with("WSYNC_CUDART_LIBRARY", "/nowhere/libcudart.so.13");
    has_problem(&no_cuda, "/nowhere/libcudart.so.13");
    has_problem(&with("FAKE_GPU_NO_DRIVER", "1"), "no NVIDIA driver");
    has_problem(&with("FAKE_GPU_DEVICES", "0"), "no CUDA-capable device");
    has_problem(
        &with("FAKE_GPU_DRIVER", "12000"),
        "the driver takes CUDA 12.0",
    );
}

// --- communicators of others -------------------------------------------------

/// Loads what SEARCH_LOADED names, then looks for the copy that made a borrowed
/// communicator.
#[test]
#[ignore = "a process of the test below"]
fn as_process() {
    let Some(loaded) = std::env::var_os("SEARCH_LOADED") else {
        return;
    };
    for path in std::env::split_paths(&loaded).filter(|p| !p.as_os_str().is_empty()) {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: the stand-in; its path is a C string.
        assert!(!unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) }.is_null());
    }
    let asked = std::env::var_os("SEARCH_ASKED").map(PathBuf::from);
    match Nccl::find_loaded(asked.as_deref()) {
        Ok(nccl) => println!("found {}", nccl.version_text()),
        Err(e) => println!("{:?}: {e}", e.status),
    }
}

fn borrowed(loaded: &[PathBuf], asked: Option<&Path>) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "as_process", "--ignored", "--nocapture"]);
    command.env_remove("WSYNC_NCCL_LIBRARY");
    command.env_remove("VLLM_NCCL_SO_PATH");
    command.env("SEARCH_LOADED", std::env::join_paths(loaded).unwrap());
    if let Some(asked) = asked {
        command.env("SEARCH_ASKED", asked);
    }
    let output = command.output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_borrowed_communicator_belongs_to_the_copy_that_is_there() {
    let (one, two) = (current(), old());
    let said = borrowed(&[], None);
    assert!(said.contains("no NCCL is in the process"), "{said}");
    let said = borrowed(std::slice::from_ref(&one), None);
    assert!(said.contains("found 2.30.7"), "{said}");
    let said = borrowed(std::slice::from_ref(&one), Some(&two));
    assert!(said.contains("is not in the process; a borrowed"), "{said}");
    let both = [one.clone(), two.clone()];
    let said = borrowed(&both, None);
    assert!(
        said.contains("2 copies of NCCL are in the process"),
        "{said}"
    );
    assert!(
        said.contains(one.to_str().unwrap()) && said.contains(two.to_str().unwrap()),
        "{said}"
    );
    assert!(borrowed(&both, Some(&two)).contains("found 2.18.5"));
}
