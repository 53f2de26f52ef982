//! `weightsync explain` and `weightsync diff`: text, page, one element.
//!
//! With `WSYNC_TEST_BROWSER` set to a Chromium, the page is opened in it.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const TRAINER: &str = "tests/layouts/trainer_tp2_pp2_dp2.json";
const INFERENCE: &str = "tests/layouts/inference_2x_tp4.json";

fn weightsync(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .args(args)
        .output()
        .unwrap()
}

fn succeed(args: &[&str]) -> String {
    let output = weightsync(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn fail(args: &[&str], status: i32) -> String {
    let output = weightsync(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
    stderr
}

/// A plan of the two layouts in a file of its own.
fn plan(name: &str, options: &[&str]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut args = vec!["plan", TRAINER, INFERENCE, "-o", path.to_str().unwrap()];
    args.extend(options);
    succeed(&args);
    path
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_matrix_has_a_row_for_every_sender() {
    let plan = plan("explain_text.plan", &[]);
    let out = succeed(&["explain", text(&plan)]);
    let rows: Vec<&str> = out
        .lines()
        .skip_while(|l| !l.starts_with("sender"))
        .collect();
    assert_eq!(rows.len(), 1 + 8, "{out}");
    assert!(rows[0].contains("receivers 8-15"), "{out}");
    assert!(
        rows[1..]
            .iter()
            .all(|r| r.contains('█') || r.contains('▓') || r.contains('▒'))
    );
}

#[test]
fn the_page_stands_alone_and_has_every_chart() {
    let plan = plan("explain_page.plan", &["--bucket-count", "5"]);
    let page = plan.with_extension("html");
    succeed(&["explain", text(&plan), "--html", text(&page)]);
    let html = std::fs::read_to_string(&page).unwrap();
    for foreign in ["<script", "http://", "https://", "src=", "@import", "url("] {
        assert!(!html.contains(foreign), "the page refers to {foreign}");
    }
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    for label in ["traffic matrix", "\"sends\"", "\"receives\"", "legend"] {
        assert!(
            html.contains(&format!("aria-label={label}")) || html.contains(label),
            "{label}"
        );
    }
    assert!(html.contains("step 4: "), "the last step is drawn");
    assert!(html.contains("rank 0 to rank 8: "), "pairs say their bytes");
    if let Some(browser) = std::env::var_os("WSYNC_TEST_BROWSER") {
        let url = format!("file://{}", page.canonicalize().unwrap().display());
        let flags = ["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"];
        let shown = Command::new(browser).args(flags).arg(url).output().unwrap();
        let dom = String::from_utf8_lossy(&shown.stdout);
        let marks = html.matches("<rect").count();
        assert_eq!(
            dom.matches("<rect").count(),
            marks,
            "the browser drops marks"
        );
    }
}

#[test]
fn an_element_is_followed_to_its_holder() {
    let plan = plan("explain_element.plan", &[]);
    let args = [
        "explain",
        text(&plan),
        "--element",
        "model.norm.weight[5]@12",
        "--json",
    ];
    let origin: Value = serde_json::from_str(&succeed(&args)).unwrap();
    assert_eq!(origin["tensor"], "model.norm.weight");
    let hop = &origin["hops"][0];
    assert_eq!(
        (&hop["to"]["rank"], &hop["to"]["offset"]),
        (&12.into(), &10.into())
    );
    let said = succeed(&args[..4]);
    let from = format!("rank {}", hop["from"]["rank"]);
    assert!(said.contains(&from) && said.contains("sent to"), "{said}");
}

#[test]
fn mistakes_say_what_to_write() {
    let plan = plan("explain_mistakes.plan", &[]);
    let element = |e: &str, status| fail(&["explain", text(&plan), "--element", e], status);
    assert!(element("model.norm.weight@12", 2).contains("TENSOR[I,J]@RANK"));
    assert!(element("model.norm.weight[999]@12", 1).contains("[256]"));
    assert!(element("model.norm.weight[5]@0", 1).contains("rank 0 receives no element"));
    assert!(element("nothing[5]@9", 1).contains("\"nothing\" is not in the plan"));
    assert!(fail(&["explain", TRAINER], 1).contains(TRAINER));
    let away = "/no/such/folder/page.html";
    assert!(fail(&["explain", text(&plan), "--html", away], 1).contains(away));
}

#[test]
fn a_diff_names_what_differs() {
    let one = plan("diff_one.plan", &[]);
    let other = plan(
        "diff_other.plan",
        &["--include", "*norm*", "--bucket-count", "2"],
    );
    let same = succeed(&["diff", text(&one), text(&one)]);
    assert!(same.contains("nothing"), "{same}");
    let said = succeed(&["diff", text(&one), text(&other)]);
    assert!(
        said.contains("differ in                   selection\n"),
        "{said}"
    );
    assert!(said.contains("tensors only in the first"), "{said}");
    let json: Value =
        serde_json::from_str(&succeed(&["diff", text(&one), text(&other), "--json"])).unwrap();
    assert_eq!(json["is_equal"], false);
    assert_eq!(json["source_differs"], false);
    assert_eq!(json["tensors_added"].as_array().unwrap().len(), 0);
}

#[test]
fn a_plan_made_like_another_differs_in_what_changed() {
    let one = plan("like_one.plan", &["--bucket-count", "3"]);
    let topology = Path::new(env!("CARGO_TARGET_TMPDIR")).join("like_topology.json");
    let drained = r#"{"weightsync_topology": 1, "speeds": [{"ranks": [1], "drained": true}]}"#;
    std::fs::write(&topology, drained).unwrap();
    let other = plan(
        "like_other.plan",
        &["--like", text(&one), "--topology", text(&topology)],
    );
    let said = succeed(&["diff", text(&one), text(&other)]);
    assert!(said.contains("  topology\n"), "{said}");
    // The decision is that of the plan: none may be given beside it.
    let args = ["plan", TRAINER, INFERENCE, "--like", text(&one), "--rotate"];
    assert!(fail(&args, 2).contains("--rotate"));
}
