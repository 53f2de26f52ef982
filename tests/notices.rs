//! What the binaries contain of others, and the notices that come with it.
//!
//! `WSYNC_BLESS=1 cargo test --test notices` writes THIRD_PARTY_NOTICES anew.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

const HEAD: &str = "\
The library and the command of weightsync contain the Rust standard library
(Copyright The Rust Project Developers; MIT or Apache-2.0, taken under
Apache-2.0, whose text is in LICENSE) and the crates below, each under the
licence that follows it. Crates with a dash behind them are in the command only.

Made by tests/notices.rs from what cargo resolves; do not edit.
";

/// What cargo resolves for Linux, with every feature.
fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .arg("--manifest-path")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .output()
        .expect("cargo can be run");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

/// Packages by their id.
fn packages(metadata: &Value) -> BTreeMap<&str, &Value> {
    let all = list(metadata, "packages").iter();
    all.map(|p| (text(p, "id"), p)).collect()
}

/// Macros run in the compiler and are in no binary.
fn is_macro(package: &Value) -> bool {
    let kinds = list(package, "targets")
        .iter()
        .flat_map(|t| list(t, "kind"));
    kinds.into_iter().any(|k| k == "proc-macro")
}

/// Whether `package` takes `name` for the command alone.
fn is_in_command_only(package: &Value, name: &str) -> bool {
    let named = |d: &&Value| text(d, "name") == name;
    let found = list(package, "dependencies").iter().find(named);
    found.is_some_and(|d| d["optional"] == true)
}

/// What is linked, by id: all that the root reaches by normal dependencies,
/// and, if `with_command` is not set, by those that the library has.
fn linked(metadata: &Value, with_command: bool) -> BTreeSet<&str> {
    let packages = packages(metadata);
    let nodes: BTreeMap<&str, &Value> = list(&metadata["resolve"], "nodes")
        .iter()
        .map(|n| (text(n, "id"), n))
        .collect();
    let root = text(&metadata["resolve"], "root");
    let (mut found, mut open) = (BTreeSet::new(), vec![root]);
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        for edge in list(nodes[id], "deps") {
            let dependency = text(edge, "pkg");
            let is_normal = list(edge, "dep_kinds").iter().any(|k| k["kind"].is_null());
            let is_left_out = !with_command
                && id == root
                && is_in_command_only(packages[root], text(packages[dependency], "name"));
            if is_normal && !is_left_out && !is_macro(packages[dependency]) {
                open.push(dependency);
            }
        }
    }
    found
}

/// The notice that a crate carries: its MIT licence where it offers one, which
/// names the authors.
fn notice(package: &Value) -> String {
    let manifest = Path::new(text(package, "manifest_path"));
    let folder = manifest.parent().expect("a manifest lies in a folder");
    let read = |file: &str| std::fs::read_to_string(folder.join(file)).ok();
    let found = read("LICENSE-MIT").or_else(|| read("LICENSE"));
    let found = found.unwrap_or_else(|| panic!("no licence in {}", folder.display()));
    let lines: Vec<&str> = found.trim().lines().map(str::trim_end).collect();
    lines.join("\n")
}

fn notices() -> String {
    let metadata = metadata();
    let (library, all) = (linked(&metadata, false), linked(&metadata, true));
    // Crates of one text stand together.
    let mut crates_of: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (id, package) in packages(&metadata) {
        // Ours have no source from elsewhere.
        if package["source"].is_null() || !all.contains(id) {
            continue;
        }
        let where_ = if library.contains(id) { "" } else { " -" };
        let line = format!(
            "{} {} ({}){where_}",
            text(package, "name"),
            text(package, "version"),
            text(package, "license"),
        );
        crates_of.entry(notice(package)).or_default().insert(line);
    }
    let mut groups: Vec<(BTreeSet<String>, String)> =
        crates_of.into_iter().map(|(t, c)| (c, t)).collect();
    groups.sort();
    let rule = "-".repeat(78);
    groups
        .into_iter()
        .fold(HEAD.to_string(), |out, (crates, notice)| {
            let crates: Vec<String> = crates.into_iter().collect();
            format!("{out}\n{rule}\n{}\n\n{notice}\n", crates.join("\n"))
        })
}

#[test]
fn third_party_notices_are_current() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("THIRD_PARTY_NOTICES");
    let made = notices();
    for name in ["serde_json", "subtle", "clap"] {
        assert!(made.contains(&format!("\n{name} ")), "{name} is missing");
    }
    if std::env::var_os("WSYNC_BLESS").is_some() {
        std::fs::write(&path, &made).expect("the file can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        made == committed,
        "THIRD_PARTY_NOTICES is not what cargo resolves; run WSYNC_BLESS=1 cargo test --test \
         notices and review the change"
    );
}
