//! Programs in C and C++ against the built library: compiled by every
//! standard that the headers promise, run, and run again under valgrind.
//!
//! They link to the shared library that was built beside this test, through
//! its SONAME, as installed programs do.

#[path = "exec_support/address.rs"]
mod address;
mod fake_gpu;

use address::free_address;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What the headers promise to compile as, without a warning.
const C: &[&str] = &["c99", "c11", "c2x"];
const CXX: &[&str] = &["c++11", "c++14", "c++17", "c++20"];
/// What the C++ binding promises.
const CXX_BINDING: &[&str] = &["c++17", "c++20"];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A folder of this test's own for what it builds.
fn scratch() -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("c_programs");
    std::fs::create_dir_all(&folder).expect("the target folder is writable");
    folder
}

/// The shared library that cargo built for this test.
fn library() -> PathBuf {
    let here = std::env::current_exe().expect("a test knows its own path");
    let deps = here.parent().expect("a test lies in a folder");
    let library = deps.join("libweightsync.so");
    assert!(library.exists(), "{} was not built", library.display());
    library
}

/// A folder in which the library has the names that linkers and loaders look
/// for.
fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = scratch().join("lib");
        std::fs::create_dir_all(&folder).expect("the target folder is writable");
        for name in ["libweightsync.so", "libweightsync.so.0"] {
            let link = folder.join(name);
            let _ = std::fs::remove_file(&link);
            std::os::unix::fs::symlink(library(), &link).expect("links can be made");
        }
        folder
    })
}

fn run(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{:?} cannot be run: {e}", command.get_program()));
    assert!(
        output.status.success(),
        "{command:?}\n{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// A compiler with every warning an error, and the headers.
fn compiler(standard: &str) -> Command {
    let is_cxx = standard.starts_with("c++");
    let mut command = Command::new(if is_cxx { "g++" } else { "gcc" });
    command
        .args(["-Wall", "-Wextra", "-pedantic", "-Werror", "-Wconversion"])
        .args(["-Wshadow", "-pthread", "-g", "-D_POSIX_C_SOURCE=200809L"])
        .arg(format!("-std={standard}"))
        .arg("-I")
        .arg(root().join("include"))
        .arg("-I")
        .arg(root().join("bindings/cpp/include"))
        .args(if is_cxx { ["-x", "c++"] } else { ["-x", "c"] });
    if !is_cxx {
        command.arg("-Wstrict-prototypes");
    }
    command
}

/// Compiles and links; returns the program.
fn build(sources: &[PathBuf], standard: &str, flags: &[&str], name: &str) -> PathBuf {
    let program = scratch().join(format!("{name}-{standard}"));
    let lib = library_folder();
    run(compiler(standard)
        .args(flags)
        .args(sources)
        .arg("-o")
        .arg(&program)
        .args(["-x", "none", "-L"])
        .arg(lib)
        .arg("-lweightsync")
        .arg(format!("-Wl,-rpath,{}", lib.display())));
    program
}

fn has(tool: &str) -> bool {
    Command::new(tool)
        .arg("--version")
        .output()
        .is_ok_and(|o| o.status.success())
}

/// Runs a program under valgrind, which sees what it and the library leak or
/// touch wrongly.
fn valgrind(program: &Path) {
    if !has("valgrind") {
        eprintln!(
            "SKIPPED: valgrind is not installed; {} ran without it",
            program.display()
        );
        return;
    }
    run(Command::new("valgrind")
        .args(["-q", "--leak-check=full", "--error-exitcode=9"])
        .arg(format!(
            "--suppressions={}",
            root().join("tests/c/valgrind.supp").display()
        ))
        .arg(program));
}

/// Builds a C program by every standard, runs each, and one under valgrind.
fn check_c(name: &str, standards: &[&str]) {
    let source = root().join(format!("tests/c/{name}.c"));
    for standard in standards {
        let program = build(std::slice::from_ref(&source), standard, &[], name);
        run(&mut Command::new(&program));
        if *standard == "c11" {
            valgrind(&program);
        }
    }
}

fn all_standards() -> Vec<&'static str> {
    C.iter().chain(CXX).copied().collect()
}

#[test]
fn header_c99() {
    check_c("header_c99", &all_standards());
}

#[test]
fn layout() {
    // Static assertions are younger than C99.
    let standards: Vec<&str> = all_standards()
        .into_iter()
        .filter(|s| *s != "c99")
        .collect();
    check_c("layout", &standards);
}

#[test]
fn lifecycle() {
    check_c("lifecycle", &all_standards());
}

#[test]
fn mapping() {
    check_c("mapping", &all_standards());
}

#[test]
fn models() {
    check_c("models", &["c99", "c11", "c++17"]);
}

#[test]
fn misuse() {
    check_c("misuse", &all_standards());
}

#[test]
fn threads() {
    check_c("threads", &all_standards());
}

/// Runs the environment program with these variables set, and no others of
/// ours; returns what it printed and what was logged.
fn environment(program: &Path, set: &[(&str, &str)]) -> (String, String) {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("WSYNC_")) {
        command.env_remove(name);
    }
    let output = run(command.envs(set.iter().copied()));
    let text = |bytes| String::from_utf8(bytes).expect("the output is UTF-8");
    (text(output.stdout), text(output.stderr))
}

#[test]
fn variables_are_read_told_and_checked() {
    let source = root().join("tests/c/environment.c");
    let program = build(&[source], "c11", &[], "environment");

    let (told, logged) = environment(&program, &[]);
    assert!(told.contains("WSYNC_LOG=off\n"), "{told}");
    assert!(told.contains("WSYNC_STAGING_BYTES_MAX=512MiB\n"), "{told}");
    assert!(told.contains("plan: OK\n"), "{told}");
    assert_eq!(logged, "");

    let set = [("WSYNC_LOG", "warn"), ("WSYNC_STAGGING", "1")];
    let (told, logged) = environment(&program, &set);
    assert!(told.contains("WSYNC_LOG=warn\n"), "{told}");
    let line = logged.lines().next().unwrap_or_default();
    assert!(line.starts_with("weightsync["), "{logged}");
    assert!(
        line.contains("warn: variable WSYNC_STAGGING is unknown;"),
        "{logged}"
    );

    let set = [("WSYNC_STAGING_BYTES_MAX", "plenty"), ("WSYNC_LOG", "loud")];
    let (told, logged) = environment(&program, &set);
    assert!(
        told.contains("WSYNC_STAGING_BYTES_MAX is \"plenty\""),
        "{told}"
    );
    assert!(logged.contains("WSYNC_LOG is \"loud\""), "{logged}");

    let (told, _) = environment(&program, &[("WSYNC_STAGING_BYTES_MAX", "1KiB")]);
    assert!(told.contains("plan: OK\n"), "{told}");
}

/// Runs an example as three processes, which deliver three versions.
fn deliver(program: &Path) {
    let address = free_address();
    let ranks: Vec<_> = (0..3)
        .map(|rank| {
            Command::new(program)
                .args([&rank.to_string(), &address])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the example was built")
        })
        .collect();
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output().expect("it can be waited for");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "rank {rank}: {told}");
        let wanted: String = (1..=3)
            .map(|v| format!("rank {rank} has version {v}\n"))
            .collect();
        assert_eq!(String::from_utf8_lossy(&output.stdout), wanted);
    }
}

/// What the README shows.
#[test]
fn deliver_in_c() {
    for standard in C {
        let source = root().join("tests/c/deliver.c");
        deliver(&build(&[source], standard, &[], "deliver_c"));
    }
}

#[test]
fn deliver_in_cxx() {
    for standard in CXX_BINDING {
        let source = root().join("bindings/cpp/examples/deliver.cc");
        deliver(&build(&[source], standard, &[], "deliver_cc"));
    }
}

const NO_EXCEPTIONS: &[&str] = &["-fno-exceptions", "-fno-rtti"];

/// Builds a test of the C++ binding by every standard, runs each, and one
/// under valgrind.
fn check_cxx(name: &str, sources: &[&str], flags: &[&str]) {
    let folder = root().join("bindings/cpp/tests");
    let sources: Vec<PathBuf> = sources.iter().map(|s| folder.join(s)).collect();
    for standard in CXX_BINDING {
        let program = build(&sources, standard, flags, name);
        run(&mut Command::new(&program));
        if *standard == "c++17" {
            valgrind(&program);
        }
    }
}

#[test]
fn cxx_ownership() {
    check_cxx("raii", &["raii.cc"], &[]);
}

#[test]
fn cxx_two_translation_units() {
    check_cxx("two_tu", &["two_tu_a.cc", "two_tu_b.cc"], &[]);
}

#[test]
fn cxx_without_exceptions() {
    check_cxx("no_exceptions", &["no_exceptions.cc"], NO_EXCEPTIONS);
}

/// Two ranks share a GPU of the stand-in.
#[test]
fn cxx_delivers_over_nccl() {
    let source = root().join("bindings/cpp/tests/nccl.cc");
    let cuda = fake_gpu::cudart();
    for standard in CXX_BINDING {
        let sources = std::slice::from_ref(&source);
        let program = build(sources, standard, &[], "nccl");
        run(Command::new(&program)
            .env("WSYNC_CUDART_LIBRARY", &cuda)
            .env("WSYNC_CUDA_LIBRARY", &cuda)
            .env("WSYNC_NCCL_LIBRARY", fake_gpu::nccl::nccl())
            .env("NCCL_MULTI_RANK_GPU_ENABLE", "1")
            .env("NCCL_MAX_CTAS", "4"));
    }
}

/// The C++ header needs nothing before it, by any standard it promises.
#[test]
fn cxx_header_alone() {
    let source = scratch().join("standalone.cc");
    let text = "#include <weightsync/weightsync.hpp>\n#include <weightsync/weightsync.hpp>\n";
    std::fs::write(&source, text).expect("the target folder is writable");
    for standard in CXX_BINDING {
        for flags in [&[] as &[&str], NO_EXCEPTIONS] {
            run(compiler(standard)
                .args(flags)
                .arg("-fsyntax-only")
                .arg(&source));
        }
    }
}

/// The symbols that a shared library defines for others.
fn exports(library: &Path) -> Vec<String> {
    let output = run(Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut names: Vec<String> = text
        .lines()
        .filter_map(|l| l.split_whitespace().nth(2))
        .map(str::to_string)
        .collect();
    names.sort();
    names
}

fn symbols() -> Vec<String> {
    let text = std::fs::read_to_string(root().join("include/weightsync.sym"));
    let text = text.expect("include/weightsync.sym is committed");
    text.lines().map(str::to_string).collect()
}

#[test]
fn the_library_exports_the_symbol_list_and_nothing_else() {
    let exported = exports(&library());
    let listed = symbols();
    let missing: Vec<&String> = listed.iter().filter(|s| !exported.contains(s)).collect();
    let extra: Vec<&String> = exported.iter().filter(|s| !listed.contains(s)).collect();
    assert!(missing.is_empty(), "listed and not exported: {missing:?}");
    assert!(extra.is_empty(), "exported and not listed: {extra:?}");
}

/// Declared in the header, exported by the library, reachable by a C linker.
#[test]
fn every_listed_symbol_is_declared_and_links() {
    let mut text = String::from("#include \"weightsync.h\"\n\ntypedef void (*any)(void);\n");
    text += "int main(void) {\n  const any all[] = {\n";
    for name in symbols() {
        text += &format!("    (any){name},\n");
    }
    text += "  };\n  size_t i;\n";
    text += "  for (i = 0; i < sizeof all / sizeof all[0]; i++) {\n";
    text += "    if (all[i] == NULL) return 1;\n  }\n  return 0;\n}\n";
    let source = scratch().join("symbols.c");
    std::fs::write(&source, text).expect("the target folder is writable");
    // The casts are the point here, and gcc's to complain about.
    let program = build(&[source], "c11", &["-Wno-cast-function-type"], "symbols");
    run(&mut Command::new(program));
}

#[test]
fn the_library_has_its_soname_and_stays_loaded() {
    let output = run(Command::new("readelf").arg("-d").arg(library()));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let soname = text
        .lines()
        .find(|l| l.contains("(SONAME)"))
        .unwrap_or_default();
    assert!(soname.contains("[libweightsync.so.0]"), "{text}");
    assert!(text.contains("NODELETE"), "{text}");
}

/// A standalone header needs nothing before it, and nothing but the C library.
#[test]
fn the_header_includes_two_headers_only() {
    let text = std::fs::read_to_string(root().join("include/weightsync.h"));
    let text = text.expect("include/weightsync.h is committed");
    let includes: Vec<&str> = text.lines().filter(|l| l.starts_with("#include")).collect();
    assert_eq!(includes, ["#include <stddef.h>", "#include <stdint.h>"]);
}
