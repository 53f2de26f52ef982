//! `weightsync explain` and `weightsync diff`: text, page, one element.
//!
//! What a browser makes of the page is in `tests/browser`.

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
    assert!(rows[0].contains("receivers are ranks 8-15"), "{out}");
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
    for chart in [
        "traffic matrix",
        "links against the bound",
        "timeline",
        "sends",
        "receives",
        "bytes by step",
    ] {
        let label = format!("aria-label=\"{chart}\"");
        assert_eq!(html.matches(&label).count(), 1, "{chart}");
    }
    for class in used_classes(&html) {
        let rule = format!(".{class} {{");
        assert!(html.contains(&rule), "the style has no rule for {class}");
    }
    assert!(
        html.contains("rank 8, step 4: "),
        "receivers have a row in the timeline"
    );
    assert!(html.contains("step 4: "), "the last step is drawn");
    assert!(html.contains("rank 0 to rank 8: "), "pairs say their bytes");
}

/// The classes that marks of drawings have.
fn used_classes(html: &str) -> std::collections::BTreeSet<&str> {
    let marks = html.split("<rect class=\"").skip(1);
    let classes = marks.filter_map(|m| m.split('"').next());
    classes.flat_map(str::split_whitespace).collect()
}

/// Trainer and engine in a pod each, on hosts of four GPUs.
const PODS: &str = r#"{"weightsync_topology": 1, "hosts": [{"count": 4, "gpus": 4}],
    "cuts": [{"name": "pods", "hosts": 2, "out_bytes_per_s": 90000000000, "in_bytes_per_s": 80000000000}]}"#;

#[test]
fn many_ranks_are_drawn_as_hosts() {
    let [source, destination, plan, page] =
        ["source.json", "destination.json", "plan", "page.html"].map(|name| {
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("explain_hosts_{name}"))
        });
    let config = "tests/models/qwen3-8b.json";
    let layout = |sizes: [&str; 2], file: &Path, first: &str| {
        let made = [
            "layout",
            "--config",
            config,
            sizes[0],
            sizes[1],
            "-o",
            text(file),
        ];
        succeed(&[&made[..], &["--first-rank", first]].concat());
    };
    layout(["--megatron", "tp=2,pp=4,dp=16"], &source, "0");
    layout(["--vllm", "tp=4,replicas=20"], &destination, "128");
    succeed(&["plan", text(&source), text(&destination), "-o", text(&plan)]);
    let said = succeed(&["explain", text(&plan), "--html", text(&page)]);
    assert!(said.contains("receivers are hosts 16-25"), "{said}");
    let html = std::fs::read_to_string(&page).unwrap();
    assert!(
        html.contains("Rows are hosts that send"),
        "the matrix is of hosts"
    );
    assert!(
        html.contains("host 25, step 0: "),
        "the timeline is of hosts"
    );
}

#[test]
fn loads_of_links_stand_beside_the_bound() {
    let plan = plan("explain_links.plan", &[]);
    let json: Value = serde_json::from_str(&succeed(&["explain", text(&plan), "--json"])).unwrap();
    let c = &json["certificate"];
    let busiest = c["links_busiest"].as_array().unwrap();
    assert_eq!(busiest.len(), 12, "of 16 NICs");
    assert_eq!(busiest[0], c["bottleneck"]);
    let said = succeed(&["explain", text(&plan)]);
    let row = said.lines().find(|l| l.starts_with("NIC out  8 ")).unwrap();
    let percent = 100.0 * c["links"][0]["time_max_s"].as_f64().unwrap()
        / c["lower_bound_s"].as_f64().unwrap();
    assert!(row.ends_with(&format!("{percent:.0} %")), "{row}");
    let name = format!("NIC out of {}", busiest[0]["place"].as_str().unwrap());
    assert!(said.lines().any(|l| l.starts_with(&name)), "{said}");
}

#[test]
fn an_element_crosses_the_links_of_a_given_topology() {
    let plan = plan("explain_over.plan", &[]);
    let pods = plan.with_extension("topology.json");
    std::fs::write(&pods, PODS).unwrap();
    let element = "model.norm.weight[5]@12";
    let over = |options: &[&str]| -> Vec<String> {
        let args = ["explain", text(&plan), "--json", "--element", element];
        let way: Value = serde_json::from_str(&succeed(&[&args, options].concat())).unwrap();
        assert_eq!(way["hops"][0]["nvlink_domain"], Value::Null);
        let links = way["hops"][0]["links"].as_array().unwrap();
        let name = |l: &Value| {
            format!(
                "{} {}",
                l["kind"].as_str().unwrap(),
                l["place"].as_str().unwrap()
            )
        };
        links.iter().map(name).collect()
    };
    // Ranks 6 and 12 are on hosts 0 and 1 of eight GPUs, or 1 and 3 of four.
    assert_eq!(
        over(&[]),
        ["nic_out host 0, rail 6", "nic_in host 1, rail 4"]
    );
    let topology = ["--topology", text(&pods)];
    let cells = ["cut_out \"pods\", cell 0", "cut_in \"pods\", cell 1"];
    let across = [
        &["nic_out host 1, rail 2"],
        &cells[..],
        &["nic_in host 3, rail 0"],
    ]
    .concat();
    assert_eq!(over(&topology), across);
    let args = ["explain", text(&plan), "--element", element];
    let said = succeed(&[&args[..], &topology].concat());
    let words = "NIC out of host 1, rail 2 → cut out of \"pods\", cell 0 → ";
    assert!(said.contains(words), "{said}");
}

/// Both engines straddle the two hosts, the first half of one beside the second
/// half of the other, so each host takes in the whole model. With equal halves
/// beside each other it would take in half of it.
#[test]
fn a_placement_that_would_lower_the_bound_is_named() {
    let [topology, plan] = ["hint_topology.json", "hint.plan"]
        .map(|name| Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
    let straddling = r#"{"weightsync_topology": 1,
        "hosts": [{"count": 1, "gpus": 8}, {"count": 2, "gpus": 4}],
        "placement": [{"ranks": {"first": 0, "count": 8}, "gpu": 0},
                      {"ranks": [8, 9, 14, 15], "gpu": 8}, {"ranks": [10, 11, 12, 13], "gpu": 12}]}"#;
    std::fs::write(&topology, straddling).unwrap();
    succeed(&[
        "plan",
        TRAINER,
        INFERENCE,
        "--topology",
        text(&topology),
        "-o",
        text(&plan),
    ]);
    let json: Value = serde_json::from_str(&succeed(&["explain", text(&plan), "--json"])).unwrap();
    let (c, hint) = (&json["certificate"], &json["certificate"]["placement_hint"]);
    assert_eq!(
        (&hint["side"], &hint["axis"]),
        (&"destination".into(), &"replica".into())
    );
    assert_eq!(
        hint["axes_torn"],
        serde_json::json!([]),
        "no engine is on one host now"
    );
    // All halves but the latency of a message and the norms, which all ranks have.
    let latency_ns = 20_000;
    let [now, then] =
        [&c["lower_bound_ns"], &hint["lower_ns"]].map(|ns| ns.as_u64().unwrap() - latency_ns);
    assert!((now / 2..now / 2 + now / 1000).contains(&then), "{hint}");
    let said = succeed(&["explain", text(&plan)]);
    let row = said.lines().find(|l| l.starts_with("placement ")).unwrap();
    assert!(row.ends_with(hint["text"].as_str().unwrap()), "{row}");
    // Placed as it says, nothing is left to say.
    let together = straddling.replace("[8, 9, 14, 15]", "[8, 9, 12, 13]");
    std::fs::write(
        &topology,
        together.replace("[10, 11, 12, 13]", "[10, 11, 14, 15]"),
    )
    .unwrap();
    let args = ["explain", text(&plan), "--topology", text(&topology)];
    let better: Value = serde_json::from_str(&succeed(&[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!(better["certificate"]["placement_hint"], Value::Null);
    assert_eq!(better["certificate"]["lower_bound_ns"], hint["lower_ns"]);
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
