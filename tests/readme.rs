//! README, examples and limits say the same thing.

use std::path::Path;

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The first block of `language` in `page`.
fn block<'a>(page: &'a str, language: &str) -> &'a str {
    let fence = format!("```{language}\n");
    let from = page.find(&fence).expect("the page has such a block") + fence.len();
    let to = page[from..].find("```").expect("the block ends");
    &page[from..from + to]
}

/// Lines without their indentation.
fn flat(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().map(str::trim).collect();
    lines.join("\n")
}

/// The examples that other tests compile and run are the ones people read, and
/// they are read in a minute.
#[test]
fn examples_are_those_that_tests_run_and_short() {
    let readme = read("README.md");
    for (language, file, line_count_max) in [
        ("c", "tests/c/deliver.c", 25),
        ("cpp", "bindings/cpp/examples/deliver.cc", 20),
        ("python", "bindings/python/examples/deliver.py", 30),
    ] {
        let shown = block(&readme, language);
        assert!(
            flat(&read(file)).contains(&flat(shown)),
            "README.md does not show lines of {file} as they are"
        );
        assert!(readme.contains(&format!("]({file})")), "no link to {file}");
        let line_count = shown.lines().count();
        assert!(
            line_count <= line_count_max,
            "README.md: {line_count} lines of {language}, at most {line_count_max}"
        );
    }
}

/// The lines of a page between a heading and the next one.
fn section<'a>(page: &'a str, heading: &str) -> &'a str {
    let rest = page.split(&format!("\n## {heading}\n")).nth(1);
    let rest = rest.unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ").next().unwrap_or(rest)
}

/// What stands in backquotes.
fn spans(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The table has each command of `weightsync --help`, and no other.
#[cfg(feature = "cli")]
#[test]
fn commands_are_those_of_the_help() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .arg("--help")
        .output()
        .expect("the command was built");
    let help = String::from_utf8(help.stdout).expect("help is text");
    let list = help.split("Commands:\n").nth(1).expect("help has commands");
    let mut offered: Vec<&str> = list
        .lines()
        .take_while(|l| !l.is_empty())
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    let readme = read("README.md");
    let rows = section(&readme, "Command line").lines();
    let mut told: Vec<&str> = rows
        .filter(|l| l.starts_with("| `"))
        .flat_map(|row| spans(row.split(" | ").next().unwrap_or(row)))
        .filter(|span| !span.starts_with('-'))
        .filter_map(|span| span.split_whitespace().next())
        .collect();
    offered.sort_unstable();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told, offered);
}

/// The guide has each variable that the library reads, as it tells them.
#[test]
fn environment_variables_are_those_of_the_library() {
    let rows = weightsync::env::VARIABLES.iter().map(|v| {
        let default = match v.default {
            "" => "-".to_string(),
            text => format!("`{text}`"),
        };
        format!("| `{}` | {default} | {} |\n", v.name, v.meaning)
    });
    let table: String = ["| variable | default | meaning |\n|---|---|---|\n".to_string()]
        .into_iter()
        .chain(rows)
        .collect();
    let page = read("docs/environment.md");
    assert!(
        page.contains(&format!("\n\n{table}\n")),
        "the table of docs/environment.md is to be\n{table}"
    );
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

/// The names below a heading of the manifest, and whether they are optional.
fn dependencies(manifest: &str) -> Vec<(&str, bool)> {
    let from = manifest.split("\n[dependencies]\n").nth(1);
    let lines = from.expect("there are dependencies").lines();
    lines
        .take_while(|l| !l.starts_with('['))
        // Crates of this workspace are none.
        .filter(|l| l.contains(" = ") && !l.contains("path ="))
        .filter_map(|l| Some((l.split(" = ").next()?, l.contains("optional = true"))))
        .collect()
}

/// Every dependency has its reason in the README, and what has one is a
/// dependency.
#[test]
fn dependencies_have_their_reasons() {
    let (manifest, readme) = (read("Cargo.toml"), read("README.md"));
    let tables = section(&readme, "What it depends on");
    let (library, command) = tables
        .split_once("| in the command only | for |")
        .expect("there are two tables");
    for (table, is_optional) in [(library, false), (command, true)] {
        let rows = table.lines().filter_map(|l| l.strip_prefix("| `"));
        let mut told = Vec::new();
        for row in rows {
            let (names, reason) = row.split_once(" | ").expect("a row has two columns");
            assert!(reason.len() > " |".len() + 4, "no reason: {row}");
            told.extend(names.split("`").filter(|n| !n.is_empty() && *n != ", "));
        }
        let mut wanted: Vec<&str> = dependencies(&manifest)
            .into_iter()
            .filter(|(_, optional)| *optional == is_optional)
            .map(|(name, _)| name)
            .collect();
        told.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(told, wanted);
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
