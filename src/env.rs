//! Every environment variable that the library reads, in one table.
//!
//! The environment is read once, at the first use of any variable, and what
//! was read then holds for the process: a later `setenv` neither changes
//! anything nor races with us. An explicit option wins over a variable, a
//! variable over the default; only `WSYNC_LOG` wins over the caller, so that
//! an operator can listen to any program.

#![forbid(unsafe_code)]

use crate::error::{Error, Result};
use crate::log::{self, Level};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// One variable: what it is called, what holds without it, what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    pub name: &'static str,
    pub default: &'static str,
    pub meaning: &'static str,
}

const LOG: &str = "WSYNC_LOG";
const STAGING_BYTES_MAX: &str = "WSYNC_STAGING_BYTES_MAX";
const DIRECT_BYTES_MIN: &str = "WSYNC_DIRECT_BYTES_MIN";
const AGREE_DEADLINE_MS: &str = "WSYNC_AGREE_DEADLINE_MS";
const STALL_DEADLINE_MS: &str = "WSYNC_STALL_DEADLINE_MS";
const SHM_RING_BYTES_MAX: &str = "WSYNC_SHM_RING_BYTES_MAX";
const LIBRARY: &str = "WSYNC_LIBRARY";
const NCCL_LIBRARY: &str = "WSYNC_NCCL_LIBRARY";
/// Not ours: vLLM's, honoured so that both use one copy.
const VLLM_NCCL_SO_PATH: &str = "VLLM_NCCL_SO_PATH";
const CUDART_LIBRARY: &str = "WSYNC_CUDART_LIBRARY";
const CUDA_LIBRARY: &str = "WSYNC_CUDA_LIBRARY";
const CUDA_COPY: &str = "WSYNC_CUDA_COPY";

/// All of them. Sizes are bytes and may end in `KiB`, `MiB` or `GiB`.
pub const VARIABLES: &[Variable] = &[
    Variable {
        name: LOG,
        default: "off",
        meaning: "log level: off, error, warn, info or debug; lines go to standard error unless the program takes them",
    },
    Variable {
        name: STAGING_BYTES_MAX,
        default: "512MiB",
        meaning: "staging memory per rank that a plan may use; must be the same on all ranks",
    },
    Variable {
        name: DIRECT_BYTES_MIN,
        default: "256KiB",
        meaning: "contiguous runs from this size on travel without staging; must be the same on all ranks",
    },
    Variable {
        name: AGREE_DEADLINE_MS,
        default: "60000",
        meaning: "milliseconds that peers get to agree on a request before any byte moves",
    },
    Variable {
        name: STALL_DEADLINE_MS,
        default: "30000",
        meaning: "milliseconds that a running request may go without finishing a step",
    },
    Variable {
        name: SHM_RING_BYTES_MAX,
        default: "128MiB",
        meaning: "shared memory for all that a rank sends over the shm transport",
    },
    Variable {
        name: LIBRARY,
        default: "",
        meaning: "full path of the library that the Python package loads",
    },
    Variable {
        name: NCCL_LIBRARY,
        default: "",
        meaning: "full path of the NCCL to use, instead of the one in the process or on the loader's path",
    },
    Variable {
        name: VLLM_NCCL_SO_PATH,
        default: "",
        meaning: "the same, as vLLM reads it; WSYNC_NCCL_LIBRARY comes first",
    },
    Variable {
        name: CUDART_LIBRARY,
        default: "",
        meaning: "full path of the CUDA runtime to load; else the copy in the process, else the loader's",
    },
    Variable {
        name: CUDA_LIBRARY,
        default: "",
        meaning: "full path of the CUDA driver library to load; else libcuda.so.1",
    },
    Variable {
        name: CUDA_COPY,
        default: "kernels",
        meaning: "who copies on a GPU: kernels, or engines, which take no multiprocessor",
    },
];

/// A variable as it is in this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    pub variable: Variable,
    /// What was set, or the default.
    pub value: String,
    pub is_set: bool,
}

/// All variables with their values, as they were at the first use.
pub fn effective() -> &'static [Effective] {
    static VALUES: OnceLock<Vec<Effective>> = OnceLock::new();
    VALUES.get_or_init(|| {
        let of = |variable: &Variable| {
            let set = std::env::var_os(variable.name);
            Effective {
                variable: *variable,
                is_set: set.is_some(),
                value: match set {
                    Some(text) => text.to_string_lossy().into_owned(),
                    None => variable.default.to_string(),
                },
            }
        };
        VARIABLES.iter().map(of).collect()
    })
}

/// What `name` is set to, if it is.
fn get(name: &str) -> Option<&'static str> {
    let found = effective().iter().find(|e| e.variable.name == name)?;
    found.is_set.then_some(found.value.as_str())
}

/// The level that the operator asks for; `warn` where that is none.
pub fn log_level() -> Option<Level> {
    get(LOG).map(|text| Level::from_name(text).unwrap_or(Level::Warn))
}

/// Staging per rank, for plans that do not say.
pub fn staging_bytes_max() -> Result<Option<u64>> {
    bytes(STAGING_BYTES_MAX)
}

/// The shortest direct message, for plans that do not say.
pub fn direct_bytes_min() -> Result<Option<u64>> {
    bytes(DIRECT_BYTES_MIN)
}

/// How long `prepare` gives peers, in nanoseconds.
pub fn agree_deadline_ns() -> Result<Option<u64>> {
    milliseconds(AGREE_DEADLINE_MS)
}

/// How long a step may take, in nanoseconds.
pub fn stall_deadline_ns() -> Result<Option<u64>> {
    milliseconds(STALL_DEADLINE_MS)
}

/// Bytes of all rings of a rank of the shm transport.
pub fn shm_ring_bytes_max() -> Result<Option<u64>> {
    bytes(SHM_RING_BYTES_MAX)
}

/// The CUDA runtime to load, and no other.
pub fn cudart_library() -> Option<&'static Path> {
    get(CUDART_LIBRARY).filter(|p| !p.is_empty()).map(Path::new)
}

/// The CUDA driver to load, and no other.
pub fn cuda_library() -> Option<&'static Path> {
    get(CUDA_LIBRARY).filter(|p| !p.is_empty()).map(Path::new)
}

/// True if copy engines shall copy on a GPU, false if kernels.
pub fn cuda_copies_by_engines() -> Result<bool> {
    match get(CUDA_COPY) {
        None | Some("" | "kernels") => Ok(false),
        Some("engines") => Ok(true),
        Some(other) => Err(Error::invalid(format!(
            "{CUDA_COPY} is \"{other}\"; it is kernels or engines"
        ))),
    }
}

/// The NCCL that the environment asks for, and the variable that does.
pub fn nccl_library() -> Option<(&'static str, PathBuf)> {
    let asked = |name| {
        let path = get(name).filter(|path| !path.is_empty())?;
        Some((name, PathBuf::from(path)))
    };
    asked(NCCL_LIBRARY).or_else(|| asked(VLLM_NCCL_SO_PATH))
}

fn bytes(name: &str) -> Result<Option<u64>> {
    let read = |text| {
        let wanted = "a number of bytes from 1 on, such as 512MiB";
        parse_bytes(text).ok_or_else(|| refused(name, text, wanted))
    };
    get(name).map(read).transpose()
}

fn milliseconds(name: &str) -> Result<Option<u64>> {
    let read = |text| {
        let wanted = "a number of milliseconds from 1 on";
        parse_milliseconds(text).ok_or_else(|| refused(name, text, wanted))
    };
    get(name).map(read).transpose()
}

/// Milliseconds as nanoseconds.
fn parse_milliseconds(text: &str) -> Option<u64> {
    let ms = text.trim().parse::<u64>().ok()?;
    ms.checked_mul(1_000_000).filter(|ns| *ns > 0)
}

fn refused(name: &str, text: &str, wanted: &str) -> Error {
    Error::invalid(format!(
        "the environment variable {name} is \"{text}\"; it is to be {wanted}"
    ))
}

/// `4096`, `64KiB`, `512MiB`, `2GiB`.
fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let unit = units
        .iter()
        .find_map(|(u, shift)| Some((text.strip_suffix(u)?, *shift)));
    let (digits, shift) = unit.unwrap_or((text, 0));
    let n = digits.trim().parse::<u64>().ok()?;
    n.checked_mul(1 << shift).filter(|n| *n > 0)
}

/// Warns, once, of what is set and cannot be meant: `WSYNC_*` variables that
/// nothing reads, mostly typing errors, and levels that are none.
pub fn warn_of_unknown() {
    // No `Once`: the first line that is logged comes here again.
    static IS_DONE: AtomicBool = AtomicBool::new(false);
    if IS_DONE.swap(true, Ordering::AcqRel) {
        return;
    }
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("WSYNC_") && !VARIABLES.iter().any(|v| v.name == name) {
            log::line(
                Level::Warn,
                format_args!(
                    "variable {name} is unknown; \"weightsync env\" lists those that are read"
                ),
            );
        }
    }
    if let Some(text) = get(LOG).filter(|text| Level::from_name(text).is_none()) {
        let names: Vec<&str> = Level::ALL.iter().map(|l| l.name()).collect();
        let known = names.join(", ");
        log::line(
            Level::Warn,
            format_args!("variable {LOG} is \"{text}\"; levels are {known}"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{AGREE_DEADLINE_DEFAULT_NS, STALL_DEADLINE_DEFAULT_NS};
    use crate::plan::decision::{DIRECT_BYTES_MIN_DEFAULT, STAGING_BYTES_DEFAULT};
    use crate::transport::shm::ShmOptions;

    #[test]
    fn sizes_have_units_and_nonsense_is_refused() {
        assert_eq!(parse_bytes("4096"), Some(4096));
        assert_eq!(parse_bytes(" 64 KiB"), Some(64 << 10));
        assert_eq!(parse_bytes("512MiB"), Some(STAGING_BYTES_DEFAULT));
        assert_eq!(parse_bytes("2GiB"), Some(2 << 30));
        for bad in ["", "0", "-1", "1.5GiB", "MiB", "99999999999GiB", "1 TB"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn defaults_in_the_table_are_the_defaults_in_force() {
        let default = |name: &str| VARIABLES.iter().find(|v| v.name == name).unwrap().default;
        assert_eq!(
            parse_bytes(default(STAGING_BYTES_MAX)),
            Some(STAGING_BYTES_DEFAULT)
        );
        assert_eq!(
            parse_bytes(default(DIRECT_BYTES_MIN)),
            Some(DIRECT_BYTES_MIN_DEFAULT)
        );
        let rings = ShmOptions::default().ring_bytes_max;
        assert_eq!(parse_bytes(default(SHM_RING_BYTES_MAX)), Some(rings));
        let agree = parse_milliseconds(default(AGREE_DEADLINE_MS));
        assert_eq!(agree, Some(AGREE_DEADLINE_DEFAULT_NS));
        let stall = parse_milliseconds(default(STALL_DEADLINE_MS));
        assert_eq!(stall, Some(STALL_DEADLINE_DEFAULT_NS));
        assert_eq!(default(LOG), Level::Off.name());
    }

    #[test]
    fn names_are_prefixed_and_unique() {
        for (i, a) in VARIABLES.iter().enumerate() {
            assert!(a.name.starts_with("WSYNC_") || a.name == VLLM_NCCL_SO_PATH);
            assert!(VARIABLES[i + 1..].iter().all(|b| a.name != b.name));
        }
    }
}
