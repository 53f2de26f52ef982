//! NVIDIA's own libraries, as their Python wheels bring them: what works
//! without a GPU. The folder named by WSYNC_TEST_WHEELS, or target/wheels, holds
//! the unpacked wheels; `tests/run` fetches them. Skipped where they are not.

use nccl_sys::*;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with `nvidia/` in it.
fn wheels() -> Option<PathBuf> {
    let folder = match std::env::var_os("WSYNC_TEST_WHEELS") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("target/wheels"),
    };
    let is_there = folder.join("nvidia/nccl/lib/libnccl.so.2").is_file();
    if !is_there {
        eprintln!("skipped: no NVIDIA wheels in {}", folder.display());
    }
    is_there.then_some(folder)
}

fn nccl(wheels: &Path) -> Library {
    // NCCL's sockets stay on this machine.
    // SAFETY: the only thread of this test that touches the environment, before
    // NCCL reads it.
    unsafe { std::env::set_var("NCCL_SOCKET_IFNAME", "lo") };
    let search = Search {
        asked: Some(Asked {
            by: "the test".into(),
            path: wheels.join("nvidia/nccl/lib/libnccl.so.2"),
        }),
        only_loaded: false,
    };
    // SAFETY: NVIDIA's library.
    unsafe { nccl_sys::load(&search) }.unwrap()
}

#[test]
fn the_real_nccl_is_what_the_bindings_say() {
    let Some(wheels) = wheels() else { return };
    let nccl = nccl(&wheels);
    assert!(
        nccl.version >= VERSION_MIN && nccl.version < 30000,
        "{}",
        nccl.version
    );
    for symbol in OPTIONAL {
        let is_due = nccl.version >= symbol.since;
        assert_eq!(nccl.api.has(symbol.name), is_due, "{}", symbol.name);
    }
    assert!(
        nccl.copies.iter().any(|c| c.starts_with(&wheels)),
        "{:?}",
        nccl.copies
    );

    // Found again without being asked for, and as the copy in the process.
    for only_loaded in [false, true] {
        let search = Search {
            asked: None,
            only_loaded,
        };
        // SAFETY: as above.
        let again = unsafe { nccl_sys::load(&search) }.unwrap();
        assert_eq!(
            (again.found, again.path),
            (Found::InProcess, nccl.path.clone())
        );
    }

    let mut id = ncclUniqueId::from_bytes([0; 128]);
    // SAFETY: a place for an id.
    let result = unsafe { (nccl.api.ncclGetUniqueId)(&mut id) };
    assert_eq!(result, ncclResult_t::SUCCESS);
    assert_ne!(id.to_bytes(), [0; 128]);

    let text = |result| {
        // SAFETY: a string of the library.
        unsafe { CStr::from_ptr((nccl.api.ncclGetErrorString)(result)) }
            .to_str()
            .unwrap()
    };
    assert_eq!(text(ncclResult_t::SUCCESS), "no error");
    assert!(text(ncclResult_t::INVALID_USAGE).starts_with("invalid usage"));
    assert!(text(ncclResult_t(99)).contains("unknown"));
}

/// The fields of `ncclConfig_t` are those of the header beside the library, in
/// its order.
#[test]
fn the_config_is_that_of_the_header() {
    let Some(wheels) = wheels() else { return };
    let version = nccl(&wheels).version;
    let header = std::fs::read_to_string(wheels.join("nvidia/nccl/include/nccl.h")).unwrap();
    let body = header.split("typedef struct ncclConfig_v").nth(1).unwrap();
    let body = &body[body.find('{').unwrap() + 1..body.find('}').unwrap()];
    let fields: Vec<&str> = body
        .split(';')
        .filter_map(|field| field.split_whitespace().last())
        .map(|name| name.trim_start_matches('*'))
        .filter(|name| !name.starts_with("*/") && !name.is_empty())
        .collect();
    let known = CONFIG_FIELDS.iter().filter(|f| f.since <= version);
    let known: Vec<&str> = known.map(|f| f.name).collect();
    assert_eq!(fields[..3], ["size", "magic", "version"]);
    assert_eq!(fields[3..], known);
    for name in REQUIRED {
        assert!(header.contains(&format!("{name}(")), "{name}");
    }
}

#[test]
fn without_a_driver_it_is_said() {
    let Some(wheels) = wheels() else { return };
    let doctor = Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .args(["doctor", "--json", "--nccl"])
        .arg(wheels.join("nvidia/nccl/lib/libnccl.so.2"))
        .env("WSYNC_CUDART_LIBRARY", cudart(&wheels))
        .output()
        .unwrap();
    assert!(doctor.status.success(), "{doctor:?}");
    let report: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    assert!(report["cuda"]["runtime"].as_str().is_some(), "{report}");
    assert!(
        report["nccl"]["version"]
            .as_str()
            .unwrap()
            .starts_with("2.")
    );
    if !report["cuda"]["driver"].is_null() {
        return eprintln!("skipped: there is a driver here");
    }
    assert_eq!(report["ready"], false);
    let findings = report["findings"].to_string();
    assert!(findings.contains("no NVIDIA driver"), "{findings}");

    // NCCL itself, through our table: an error and no communicator.
    let nccl = nccl(&wheels);
    let (mut comm, mut config) = (ncclComm_t::NULL, ncclConfig_t::default());
    let mut id = ncclUniqueId::from_bytes([0; 128]);
    // SAFETY: places for what is written.
    let result = unsafe {
        (nccl.api.ncclGetUniqueId)(&mut id);
        (nccl.api.ncclCommInitRankConfig)(&mut comm, 1, id, 0, &mut config)
    };
    assert_eq!(result, ncclResult_t::UNHANDLED_CUDA_ERROR);
    assert!(comm.is_null());
    // SAFETY: a string of the library.
    let said = unsafe { CStr::from_ptr((nccl.api.ncclGetLastError)(ncclComm_t::NULL)) };
    let said = said.to_string_lossy();
    assert!(said.contains("driver version is insufficient"), "{said}");
}

fn cudart(wheels: &Path) -> PathBuf {
    wheels.join("nvidia/cu13/lib/libcudart.so.13")
}
