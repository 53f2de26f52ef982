//! The house: which room may use which, and where `unsafe` may stand.
//!
//! ```text
//!   cli, capi ─► tune ─► sim ─► plan ─► layout
//!       └──────► exec ─► transport ─► device ─► plan
//! ```

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Every room and those that it uses. What belongs to no room (errors, ranks,
/// limits, threads that share work, the environment, the log) is for all.
const ROOMS: &[(&str, &[&str])] = &[
    ("layout", &[]),
    ("plan", &["layout"]),
    ("sim", &["layout", "plan"]),
    ("tune", &["layout", "plan", "sim"]),
    ("device", &["layout", "plan"]),
    ("transport", &["device", "plan"]),
    ("exec", &["device", "layout", "plan", "transport"]),
    (
        "capi",
        &[
            "device",
            "exec",
            "layout",
            "plan",
            "sim",
            "transport",
            "tune",
        ],
    ),
];

/// Rooms that are values and arithmetic: no environment, no log, no clock.
const PURE: &[&str] = &["layout", "plan", "sim", "tune"];

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The Rust files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder is there");
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.expect("the folder is readable").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// The code of a file: no comments, and nothing after its own tests begin.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).expect("sources are text");
    let text = text.split("#[cfg(test)]\nmod").next().unwrap_or_default();
    let without_comment = |line: &str| line.split("//").next().unwrap_or_default().to_string();
    let lines: Vec<String> = text.lines().map(without_comment).collect();
    lines.join("\n")
}

/// The modules of this crate that `code` names.
fn used(code: &str) -> BTreeSet<&str> {
    let name = |rest: &'_ str| rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
    code.split("crate::")
        .skip(1)
        .map(|rest| &rest[..name(rest).unwrap_or(rest.len())])
        .filter(|name| !name.is_empty())
        .collect()
}

#[test]
fn rooms_use_what_lies_below_them() {
    for (room, below) in ROOMS {
        for file in files(&source().join(room)) {
            let code = code(&file);
            assert!(
                !code.contains("use crate::{"),
                "{}: one `use` per module, so that it can be seen",
                file.display()
            );
            for name in used(&code) {
                let is_room = ROOMS.iter().any(|(other, _)| *other == name);
                assert!(
                    !is_room || name == *room || below.contains(&name),
                    "{} uses {name}, which does not lie below {room}",
                    file.display()
                );
            }
        }
    }
}

#[test]
fn a_room_below_uses_none_above() {
    let below = |room: &str| {
        let found = ROOMS.iter().find(|(name, _)| *name == room);
        found.map_or(&[] as &[&str], |(_, below)| *below)
    };
    for (room, rooms) in ROOMS {
        for other in *rooms {
            assert!(
                !below(other).contains(room),
                "{room} and {other} use each other"
            );
        }
    }
}

#[test]
fn pure_rooms_ask_nobody() {
    let asks = [
        "crate::env",
        "crate::log",
        "std::env",
        "std::fs",
        "std::net",
        "Instant::",
        "SystemTime",
        "std::thread",
    ];
    for file in PURE.iter().flat_map(|room| files(&source().join(room))) {
        let code = code(&file);
        for word in asks {
            assert!(!code.contains(word), "{} asks {word}", file.display());
        }
    }
}

/// The compiler refuses `unsafe` where this attribute stands; here is where it
/// has to.
#[test]
fn unsafe_stays_in_its_rooms() {
    let may = ["capi", "device", "transport"];
    let rooms = ROOMS.iter().filter(|(room, _)| !may.contains(room));
    let heads = rooms.map(|(room, _)| format!("{room}/mod.rs"));
    let alone = ["crew", "env", "error", "limits", "log", "rank"].map(|name| format!("{name}.rs"));
    for head in heads.chain(alone) {
        let text = std::fs::read_to_string(source().join(&head)).expect("sources are text");
        assert!(
            text.contains("\n#![forbid(unsafe_code)]\n"),
            "src/{head} does not forbid unsafe code"
        );
    }
    // The command maps the files of checkpoints, and does nothing else of the kind.
    for file in files(&source().join("cli")) {
        let maps = ["checkpoint.rs", "worker.rs"].map(|name| source().join("cli").join(name));
        assert!(
            maps.contains(&file) || !code(&file).contains("unsafe {"),
            "{} has unsafe code",
            file.display()
        );
    }
}
