//! README, examples and limits say the same thing.

use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The examples that other tests compile and run are the ones people read.
#[test]
fn examples_are_the_files_that_tests_run() {
    let readme = read("README.md");
    for (language, file) in [
        ("c", "tests/c/deliver.c"),
        ("cpp", "bindings/cpp/examples/deliver.cc"),
        ("python", "bindings/python/examples/deliver.py"),
    ] {
        let block = format!("```{language}\n{}\n```", read(file).trim_end());
        assert!(
            readme.contains(&block),
            "README.md does not show {file} as it is"
        );
    }
}

#[test]
fn limits_are_those_of_the_library() {
    use weightsync::limits;
    let readme = read("README.md");
    for (what, number) in [
        ("ranks", limits::RANK_COUNT_MAX as usize),
        ("tensors of a layout", limits::TENSOR_COUNT_MAX),
        ("axes of a tensor, of a mesh", limits::DIM_COUNT_MAX),
        ("bytes of a name", limits::NAME_BYTES_MAX),
        ("buckets of a plan", limits::BUCKET_COUNT_MAX as usize),
    ] {
        let row = format!("| {what} | {} |", grouped(number));
        assert!(readme.contains(&row), "README.md has no row {row}");
    }
    assert_eq!(limits::FILE_BYTES_MAX, 256 << 20);
}

fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// Every dependency has its reason in the README. Crates of this workspace are
/// none.
#[test]
fn dependencies_are_listed() {
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let from = manifest.find("[dependencies]").unwrap();
    let to = manifest.find("[dev-dependencies]").unwrap();
    let is_dependency = |l: &&str| l.contains('=') && !l.contains("path =");
    for line in manifest[from..to].lines().filter(is_dependency) {
        let name = line.split('=').next().unwrap().trim();
        assert!(
            readme.contains(&format!("`{name}`")),
            "README.md does not mention {name}"
        );
    }
}

/// One version number, in all places.
#[test]
fn versions_agree() {
    let version = env!("CARGO_PKG_VERSION");
    assert!(read("CHANGELOG.md").contains(&format!("## {version}")));
    let python = read("bindings/python/pyproject.toml") + &read("bindings/python/hatch_build.py");
    assert!(
        python.contains(version) || python.contains("Cargo.toml"),
        "Python has another version"
    );
}
