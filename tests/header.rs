//! The committed header and symbol list are what `src/capi` says.
//!
//! `WSYNC_BLESS=1 cargo test --test header` writes both anew.

use std::path::{Path, PathBuf};

/// In the order in which the header introduces them.
const SOURCES: &[&str] = &[
    "types",
    "version",
    "log",
    "env",
    "views",
    "layout",
    "topology",
    "mapping",
    "plan",
    "nccl",
    "transport",
    "session",
    "request",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn bindings() -> cbindgen::Bindings {
    let config = cbindgen::Config::from_file(root().join("include/cbindgen.toml"))
        .expect("include/cbindgen.toml is well-formed");
    let sources = SOURCES
        .iter()
        .map(|s| root().join(format!("src/capi/{s}.rs")));
    sources
        .fold(cbindgen::Builder::new().with_config(config), |b, s| {
            b.with_src(s)
        })
        .generate()
        .expect("src/capi is readable")
}

fn header() -> String {
    let mut text = Vec::new();
    bindings().write(&mut text);
    String::from_utf8(text).expect("the header is UTF-8")
}

fn symbols() -> String {
    let bindings = bindings();
    let mut names: Vec<&str> = bindings.functions.iter().map(|f| f.path.name()).collect();
    names.sort_unstable();
    names.join("\n") + "\n"
}

/// Compares with the committed file, or writes it if told so.
fn check(path: &Path, made: &str) {
    if std::env::var_os("WSYNC_BLESS").is_some() {
        std::fs::write(path, made).expect("the file can be written");
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let line = made
        .lines()
        .zip(committed.lines())
        .position(|(a, b)| a != b);
    assert!(
        made == committed,
        "{} differs from src/capi, first in line {}; run WSYNC_BLESS=1 cargo test --test header \
         and review the change",
        path.display(),
        line.unwrap_or_else(|| committed.lines().count()) + 1
    );
}

#[test]
fn the_committed_header_is_current() {
    check(&root().join("include/weightsync.h"), &header());
}

#[test]
fn the_committed_symbol_list_is_current() {
    check(&root().join("include/weightsync.sym"), &symbols());
}

/// Every source file of the C layer that exports something is in the header.
#[test]
fn no_exporting_file_is_forgotten() {
    let folder = std::fs::read_dir(root().join("src/capi")).expect("src/capi is there");
    for entry in folder {
        let path = entry.expect("the folder is readable").path();
        let text = std::fs::read_to_string(&path).expect("sources are text");
        let stem = path
            .file_stem()
            .and_then(|s| s.to_str())
            .unwrap_or_default();
        if text.contains("no_mangle") {
            assert!(SOURCES.contains(&stem), "{stem}.rs is not in the header");
        }
    }
}

/// The header speaks to C readers: each function says what threads may call it
/// and since when it exists, and no comment speaks Rust.
#[test]
fn every_function_is_documented_for_c() {
    let header = header();
    for f in &bindings().functions {
        let name = f.path.name();
        let doc = f.documentation.doc_comment.join("\n");
        assert!(
            doc.contains("Thread safety: "),
            "{name} does not say which threads"
        );
        assert!(doc.contains("Since: 0.1"), "{name} does not say since when");
        assert!(
            doc.contains("Errors: ") || !header.contains(&format!("\nwsync_status {name}(")),
            "{name} does not say which errors"
        );
        for rust in ["# Safety", "`Option", "[`", "Vec<", "&str", "usize"] {
            assert!(!doc.contains(rust), "{name} says {rust}");
        }
    }
}

/// Every constant and every field of a struct says what it is.
#[test]
fn constants_and_fields_are_documented() {
    for c in &bindings().constants {
        let doc = c.documentation.doc_comment.join("\n");
        assert!(
            doc.contains("Since: "),
            "{} is not documented",
            c.export_name
        );
    }
    let header = header();
    for body in header.split("\ntypedef struct wsync_").skip(1) {
        let Some((name, fields)) = body.split_once(" {\n") else {
            continue;
        };
        let mut above = "";
        for line in fields.lines().take_while(|l| !l.starts_with('}')) {
            let is_field = line.ends_with(';') && !line.trim_start().starts_with('*');
            assert!(
                !is_field || above.ends_with("*/"),
                "wsync_{name}: not documented: {line}"
            );
            above = line;
        }
    }
}

/// The comment of a handle lists the functions of its noun, all of them.
#[test]
fn handles_list_their_functions() {
    let bindings = bindings();
    let functions: Vec<&str> = bindings.functions.iter().map(|f| f.path.name()).collect();
    for noun in [
        "layout",
        "topology",
        "mapping",
        "plan",
        "transport",
        "session",
        "request",
    ] {
        let prefix = format!("wsync_{noun}");
        let listed = index_of(&prefix);
        for function in functions
            .iter()
            .filter(|f| f.starts_with(&format!("{prefix}_")))
        {
            assert!(
                listed.contains(&function.to_string()),
                "{prefix} does not list {function}"
            );
        }
        for name in listed {
            assert!(functions.contains(&name.as_str()), "{prefix} lists {name}");
        }
    }
}

/// The functions that stand in the comment above an opaque handle.
fn index_of(handle: &str) -> Vec<String> {
    let header = header();
    let declared = format!("typedef struct {handle} {handle};");
    let before = header
        .split(&declared)
        .next()
        .expect("the handle is declared");
    let comment = before.rsplit("/**").next().unwrap_or_default();
    let words = comment.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|w| w.starts_with(&format!("{handle}_")));
    names.map(str::to_string).collect()
}

#[test]
fn comments_fit_into_a_line() {
    for line in header().lines().filter(|l| l.trim_start().starts_with('*')) {
        assert!(line.len() <= 88, "{line}");
    }
}

/// The C++ header offers all that the C header does. Element types have names
/// in C++ where they are common.
#[test]
fn the_cpp_header_uses_every_function_and_every_value() {
    let path = root().join("bindings/cpp/include/weightsync/weightsync.hpp");
    let cpp = std::fs::read_to_string(path).expect("the C++ header is there");
    let words: std::collections::BTreeSet<&str> = cpp
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let bindings = bindings();
    for f in &bindings.functions {
        let name = f.path.name();
        assert!(words.contains(name), "C++ offers no {name}");
    }
    let header = header();
    let values = header.lines().filter_map(|l| l.strip_prefix("  WSYNC_"));
    for value in values.filter_map(|l| Some(l.split_once(" = ")?.0)) {
        let name = format!("WSYNC_{value}");
        let is_dtype = name.starts_with("WSYNC_DTYPE_CODE_");
        assert!(
            is_dtype || words.contains(name.as_str()),
            "C++ offers no {name}"
        );
    }
}

/// The header tells every field of the report of a check, and no other.
#[test]
fn the_report_of_a_check_is_documented() {
    use weightsync::layout::LayoutSpec;
    use weightsync::layout::check::Inspection;

    let spec = |first: u32, tensor: &str| {
        let text = format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": {first}, "count": 1}},
            "tensors": [{{"name": "{tensor}", "shape": [4], "dtype": "u8"}}]}}"#
        );
        LayoutSpec::from_json(text.as_bytes()).expect("the layout is well-formed")
    };
    let found = Inspection::of(&spec(0, "a"), Some(&spec(1, "b"))).expect("both can be read");
    assert!(found.errors > 0);
    let report = serde_json::to_value(&found).expect("a report is JSON");
    let bindings = bindings();
    let function = bindings
        .functions
        .iter()
        .find(|f| f.path.name() == "wsync_layout_check");
    let doc = function
        .expect("it is in the header")
        .documentation
        .doc_comment
        .join("\n");
    let mut fields = std::collections::BTreeSet::new();
    collect_fields(&report, &mut fields);
    let told: std::collections::BTreeSet<String> = doc
        .split('"')
        .zip(doc.split('"').skip(1))
        .zip(doc.split('"').skip(2))
        .filter(|((_, _), after)| after.starts_with(':'))
        .map(|((_, name), _)| name.to_string())
        .collect();
    assert_eq!(told, fields);
}

fn collect_fields(value: &serde_json::Value, into: &mut std::collections::BTreeSet<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                into.insert(name.clone());
                collect_fields(value, into);
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|v| collect_fields(v, into)),
        _ => (),
    }
}
