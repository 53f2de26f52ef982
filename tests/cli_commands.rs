//! `weightsync` as a user runs it: all commands but `map`.

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const TRAINER: &str = "tests/layouts/trainer_tp2_pp2_dp2.json";
const INFERENCE: &str = "tests/layouts/inference_2x_tp4.json";

fn weightsync(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Standard output of a command that succeeds.
fn succeed(args: &[&str]) -> String {
    let output = weightsync(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&succeed(args)).unwrap()
}

/// Standard error of a command that fails with status 1.
fn fail(args: &[&str]) -> String {
    let output = weightsync(args);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
    stderr
}

/// A folder of this test's own, empty.
fn folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A small checkpoint and two layouts of it: two source ranks that cut rows
/// and store f32, three destination ranks that cut columns unevenly.
struct Small {
    folder: PathBuf,
    x: Vec<f32>,
}

const ROWS: usize = 6;
const COLS: usize = 7;

impl Small {
    fn new(name: &str) -> Small {
        let folder = folder(name);
        let x: Vec<f32> = (0..ROWS * COLS).map(|i| i as f32 + 0.25).collect();
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let ids: Vec<u8> = (1..=5i64).flat_map(i64::to_le_bytes).collect();
        // Another shape than the layout's, with as many elements.
        let x_view = TensorView::new(Dtype::F32, vec![2, 3, COLS], &bytes).unwrap();
        let ids_view = TensorView::new(Dtype::I64, vec![5], &ids).unwrap();
        let path = folder.join("model.safetensors");
        safetensors::serialize_to_file([("x", x_view), ("ids", ids_view)], None, &path).unwrap();
        let small = Small { folder, x };
        small.write("source", 0, 2, 0, "");
        small.write("destination", 4, 3, 1, ", \"kind\": \"floor\"");
        small
    }

    fn write(&self, side: &str, first: u32, count: u32, dim: u32, kind: &str) {
        let text = format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": {first}, "count": {count}}},
            "meshes": {{"m": [["tp", {count}]]}},
            "tensors": [
              {{"name": "ids", "shape": [5], "dtype": "i64"}},
              {{"name": "x", "shape": [{ROWS}, {COLS}], "dtype": "f32",
                "cuts": [{{"dim": {dim}, "axes": ["tp"]{kind}}}]}}]}}"#
        );
        std::fs::write(self.layout(side), text).unwrap();
    }

    fn layout(&self, side: &str) -> String {
        self.folder
            .join(format!("{side}.json"))
            .display()
            .to_string()
    }

    /// Changes the text of a layout.
    fn edit(&self, side: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.layout(side)).unwrap();
        assert!(text.contains(from));
        std::fs::write(self.layout(side), text.replace(from, to)).unwrap();
    }

    fn arguments(&self) -> Vec<String> {
        let checkpoint = self.folder.join("model.safetensors").display().to_string();
        [
            "sync",
            "--checkpoint",
            &checkpoint,
            "--source",
            &self.layout("source"),
        ]
        .into_iter()
        .chain(["--destination", &self.layout("destination")])
        .map(String::from)
        .collect()
    }

    fn with<'a>(arguments: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
        arguments
            .iter()
            .map(String::as_str)
            .chain(more.iter().copied())
            .collect()
    }
}

#[test]
fn help_lists_the_commands() {
    let help = succeed(&["--help"]);
    for command in [
        "demo", "sync", "plan", "explain", "check", "map", "env", "version",
    ] {
        assert!(help.contains(&format!("  {command}")), "{command}: {help}");
    }
    assert!(!help.contains("  rank"), "{help}");
    assert_eq!(weightsync(&["nonsense"]).status.code(), Some(2));
}

#[test]
fn variables_and_versions_are_listed() {
    let list = json(&["env", "--json"]);
    assert!(
        list.as_array()
            .unwrap()
            .iter()
            .any(|v| v["name"] == "WSYNC_LOG")
    );
    assert!(succeed(&["env"]).contains("WSYNC_STAGING_BYTES_MAX"));
    assert_eq!(
        json(&["version", "--json"])["version"],
        env!("CARGO_PKG_VERSION")
    );
}

#[test]
fn layouts_are_checked_alone_and_as_a_pair() {
    assert!(succeed(&["check", TRAINER]).contains("0 errors"));
    let report = json(&["check", TRAINER, INFERENCE, "--json"]);
    assert_eq!(report["errors"], 0);
    assert_eq!(
        report["pair"]["source"]["matched_bytes"],
        report["pair"]["source"]["bytes"]
    );
}

#[test]
fn everything_that_is_wrong_is_printed() {
    let small = Small::new("check");
    small.edit("destination", ", \"kind\": \"floor\"", "");
    let source = small.layout("source");
    let args = ["check", &source, &small.layout("destination")];
    let output = weightsync(&args);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("error") && text.contains("\"x\"") && text.contains('7'),
        "{text}"
    );
}

#[test]
fn a_plan_is_reported_saved_and_read() {
    let saved = folder("plan").join("plan.bin").display().to_string();
    let made = json(&["plan", TRAINER, INFERENCE, "--json", "-o", &saved]);
    assert_eq!(made["destination_copies"], 2);
    assert_eq!(made, json(&["explain", &saved, "--json"]));
    let ops = succeed(&["plan", TRAINER, INFERENCE, "--ops", "8"]);
    let mut received = 0;
    for line in ops.lines() {
        let op: Value = serde_json::from_str(line).unwrap();
        assert_eq!(op["direction"], "receive");
        received += op["bytes"].as_u64().unwrap();
    }
    assert!(received > 0);
    let array = json(&["plan", TRAINER, INFERENCE, "--ops", "8", "--json"]);
    assert_eq!(array, json(&["explain", &saved, "--ops", "8", "--json"]));
    assert_eq!(array.as_array().unwrap().len(), ops.lines().count());
    let first: Value = serde_json::from_str(ops.lines().next().unwrap()).unwrap();
    assert_eq!(array[0], first);
    let refused = fail(&["plan", TRAINER, INFERENCE, "--ops", "99"]);
    assert!(refused.contains("rank 99 is in neither layout; they have 16 ranks, 0 to 15"));
    let part = json(&[
        "plan",
        TRAINER,
        INFERENCE,
        "--include",
        "*.norm.weight",
        "--json",
    ]);
    assert_eq!(part["tensors"], 1);
    let rotated = json(&[
        "plan",
        TRAINER,
        INFERENCE,
        "--rotate",
        "--bucket-count",
        "3",
        "--json",
    ]);
    assert_eq!(
        (&rotated["source_rule"], &rotated["steps"]),
        (&"rotate".into(), &3.into())
    );
    let options = ["--order", "layer", "--bucket-count", "8", "--json"];
    let layers = json(&[&["plan", TRAINER, INFERENCE][..], &options].concat());
    assert_eq!(layers["order"], "layer");
    // Each order with its cost, the taken one as in the certificate.
    let orders = layers["orders"].as_array().unwrap();
    let predicted = |i: usize| orders[i]["predicted_ns"].as_u64().unwrap();
    assert_eq!(orders[1]["order"], "layer");
    assert_eq!(layers["certificate"]["predicted_ns"], predicted(1));
    assert!(predicted(0) < predicted(1));
    let text = std::fs::read(&saved).unwrap();
    std::fs::write(&saved, &text[..text.len() - 1]).unwrap();
    assert!(fail(&["explain", &saved]).contains("plan.bin"));
}

/// A model with experts, a draft and something that is not trained, from one
/// rank to two copies; the layout files.
fn model_files(name: &str) -> [String; 2] {
    let folder = folder(name);
    let config = folder.join("config.json").display().to_string();
    let text = r#"{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": 16,
        "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 128,
        "intermediate_size": 32, "moe_intermediate_size": 8, "n_routed_experts": 8,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 2,
        "v_head_dim": 4, "num_nextn_predict_layers": 1}"#;
    std::fs::write(&config, text).unwrap();
    let [source, destination] =
        ["source.json", "destination.json"].map(|f| folder.join(f).display().to_string());
    let frozen = ["--frozen", "model.embed_tokens.*", "--frozen", "lm_head.*"];
    let hf = ["layout", "--config", &config, "--hf", "-o", &source];
    succeed(&[&hf[..], &frozen].concat());
    let vllm = ["layout", "--config", &config, "--vllm", "tp=2,replicas=2"];
    succeed(&[&vllm[..], &["--first-rank", "1", "-o", &destination]].concat());
    let idle = [&hf[..], &["--frozen", "head"]].concat();
    assert!(fail(&idle).contains("no tensor is named \"head\""));
    [source, destination]
}

#[test]
fn every_flag_of_a_selection_leaves_something_out() {
    let [source, destination] = model_files("select");
    let plan = |flags: &[&str]| {
        let all = [&["plan", &source, &destination, "--json"], flags].concat();
        json(&all)
    };
    let tensors = |flags: &[&str]| plan(flags)["tensors"].as_u64().unwrap();
    let whole = plan(&[]);
    let all = whole["tensors"].as_u64().unwrap();
    // Attention and norms of a layer are 9 tensors; a dense layer has 3 more,
    // one with experts 8: router, bias, 3 of experts, 3 of shared ones.
    assert_eq!(tensors(&["--layers", "0"]), 12);
    assert_eq!(tensors(&["--layers", "0..2"]), 12 + 17);
    assert_eq!(tensors(&["--frozen"]), 2);
    assert_eq!(tensors(&["--trainable"]), all - 2);
    // The draft has a layer with experts, and 4 tensors of its own.
    assert_eq!(tensors(&["--draft"]), 17 + 4);
    assert_eq!(tensors(&["--no-draft"]), all - 21);
    assert_eq!(tensors(&["--include", "*.mlp.gate.weight"]), 3);
    assert_eq!(tensors(&["--exclude", "*.mlp.gate.weight"]), all - 3);
    // Half of the experts: other tensors have none, and are left out.
    let (some, every) = (plan(&["--experts", "0..4"]), plan(&["--experts", "0..8"]));
    assert_eq!(some["tensors"], every["tensors"]);
    let moved = |report: &Value| report["bytes_moved"].as_u64().unwrap();
    assert_eq!(2 * moved(&some), moved(&every));
    assert_eq!(2 * moved(&plan(&["--copies", "1"])), moved(&whole));
    let e = weightsync(&["plan", &source, &destination, "--draft", "--no-draft"]);
    assert_eq!(e.status.code(), Some(2));
}

#[test]
fn odd_variables_are_named_once_and_stop_nothing() {
    let output = Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .arg("version")
        .env("WSYNC_LOG", "warn")
        .env("WSYNC_LOGG", "1")
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.matches("WSYNC_LOGG is unknown").count(), 1, "{said}");
}

#[test]
fn a_reader_that_goes_away_is_an_error_and_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .args(["env", "--json"])
        .stdout(writer.try_clone().unwrap())
        .stderr(writer)
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
}

#[test]
fn files_without_end_are_refused() {
    let said = fail(&["check", "/dev/zero"]);
    assert!(said.contains("268435456 bytes"), "{said}");
}

#[test]
fn the_demo_delivers_every_byte() {
    for (transport, is_tied) in [("shm", true), ("loopback", false)] {
        let mut args = vec![
            "demo",
            "--megabytes",
            "8",
            "--json",
            "--transport",
            transport,
        ];
        if !is_tied {
            args.push("--untied");
        }
        let report = json(&args);
        assert_eq!(report["model"]["is_tied"], is_tied);
        let delivery = &report["delivery"];
        assert_eq!(delivery["transport"], transport);
        let versions = delivery["versions"].as_array().unwrap();
        assert_eq!(versions.len(), 3);
        for v in versions {
            assert_eq!(
                (&v["outcome"], &v["is_verified"]),
                (&"COMPLETE".into(), &true.into())
            );
            assert!(v["bytes_checked"].as_u64() >= v["bytes_delivered"].as_u64());
        }
        assert_ne!(versions[0]["digest"], versions[1]["digest"]);
    }
}

/// As the README runs it: three versions of 256 MB, to two replicas.
#[test]
fn the_demo_as_it_is_delivers_hundreds_of_megabytes() {
    let report = json(&["demo", "--json"]);
    let delivery = &report["delivery"];
    assert_eq!(delivery["transport"], "shm");
    let outcomes = delivery["versions"].as_array().unwrap().iter();
    assert!(outcomes.clone().all(|v| v["outcome"] == "COMPLETE"));
    assert_eq!(outcomes.count(), 3);
    let checked = delivery["bytes_checked"].as_u64().unwrap();
    assert!(checked > 3 * 2 * 250_000_000, "only {checked} bytes");
}

#[test]
fn a_checkpoint_is_delivered_and_saved() {
    let small = Small::new("sync");
    for transport in ["shm", "loopback"] {
        let out = small.folder.join(transport).display().to_string();
        let arguments = small.arguments();
        let more = [
            "--transport",
            transport,
            "--repeat",
            "2",
            "--save",
            &out,
            "--json",
        ];
        let report = json(&Small::with(&arguments, &more));
        let shard = (ROWS * COLS * 4 + 3 * 5 * 8) as u64;
        assert_eq!(report["bytes_checked"].as_u64(), Some(2 * shard));
        for (rank, columns) in [(4, 0..2), (5, 2..4), (6, 4..7)] {
            let path = Path::new(&out).join(format!("rank_{rank}.safetensors"));
            let bytes = std::fs::read(path).unwrap();
            let x = SafeTensors::deserialize(&bytes)
                .unwrap()
                .tensor("x")
                .unwrap();
            let want: Vec<u8> = (0..ROWS)
                .flat_map(|r| columns.clone().map(move |c| r * COLS + c))
                .flat_map(|i| small.x[i].to_le_bytes())
                .collect();
            assert_eq!(x.data(), want);
            let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
            let views = header.metadata().as_ref().unwrap()["views"].clone();
            let views: Value = serde_json::from_str(&views).unwrap();
            assert_eq!(views[1]["box"][1][0], columns.start);
        }
    }
}

#[test]
fn values_are_cast_as_the_layouts_say() {
    let small = Small::new("casts");
    let dtype = "\"dtype\": \"f32\"";
    small.edit("source", dtype, "\"dtype\": \"f32\", \"stored\": \"bf16\"");
    small.edit(
        "destination",
        dtype,
        "\"dtype\": \"f32\", \"stored\": \"f16\"",
    );
    let arguments = small.arguments();
    assert!(succeed(&Small::with(&arguments, &[])).contains("bytes checked: right"));
}

#[test]
fn mistakes_are_named() {
    assert!(fail(&["check", "/nowhere/layout.json"]).contains("/nowhere/layout.json"));
    let missing = ["sync", "--checkpoint", "/nowhere/x.safetensors"];
    let layouts = ["--source", TRAINER, "--destination", INFERENCE];
    let all: Vec<&str> = missing.into_iter().chain(layouts).collect();
    assert!(fail(&all).contains("/nowhere/x.safetensors"));

    let small = Small::new("unknown_tensor");
    small.edit("source", "\"x\"", "\"y\"");
    small.edit("destination", "\"x\"", "\"y\"");
    let arguments = small.arguments();
    let message = fail(&Small::with(&arguments, &[]));
    assert!(
        message.contains("\"y\" is not in the checkpoint"),
        "{message}"
    );

    let small = Small::new("wrong_dtype");
    small.edit("source", "\"f32\"", "\"bf16\"");
    let arguments = small.arguments();
    let message = fail(&Small::with(&arguments, &[]));
    assert!(
        message.contains("\"x\" is f32") && message.contains("bf16"),
        "{message}"
    );

    let small = Small::new("wrong_shape");
    small.edit("source", "[6, 7]", "[6, 8]");
    let arguments = small.arguments();
    let message = fail(&Small::with(&arguments, &[]));
    assert!(
        message.contains("42 elements") && message.contains("48"),
        "{message}"
    );
}

/// The children of a process that runs `weightsync rank`.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace()
        .map(|pid| pid.parse().unwrap())
        .collect()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn endless_demo() -> std::process::Child {
    Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .args(["demo", "--megabytes", "8", "--versions", "1000000"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn kill(pid: u32) {
    let status = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn a_rank_that_dies_is_named_and_the_others_end() {
    let demo = endless_demo();
    let pid = demo.id();
    until("16 ranks", || children(pid).len() == 16);
    std::thread::sleep(Duration::from_millis(700));
    let ranks = children(pid);
    kill(ranks[5]);
    let output = demo.wait_with_output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("rank 5 was killed by signal 9"), "{stderr}");
    until("no rank", || {
        ranks
            .iter()
            .all(|r| !Path::new(&format!("/proc/{r}")).exists())
    });
}

#[test]
fn ranks_end_with_the_command() {
    let mut demo = endless_demo();
    let pid = demo.id();
    until("16 ranks", || children(pid).len() == 16);
    let ranks = children(pid);
    demo.kill().unwrap();
    demo.wait().unwrap();
    let has_ended = |rank: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{rank}/stat"));
        stat.is_ok_and(|s| s.contains(") Z ")) || !Path::new(&format!("/proc/{rank}")).exists()
    };
    until("no rank", || ranks.iter().all(has_ended));
}

/// Whatever a shell completes and a manual explains, the parser knows.
#[test]
fn completions_and_manual_pages_are_made_from_the_arguments() {
    for shell in ["bash", "zsh", "fish"] {
        let text = succeed(&["completions", shell]);
        for word in ["explain", "destination", "checkpoint"] {
            assert!(text.contains(word), "{shell} does not complete {word}");
        }
        assert!(
            !text.contains("One rank of"),
            "{shell} completes what is hidden"
        );
    }
    let folder = folder("manual");
    succeed(&["manual", "--out", folder.to_str().unwrap()]);
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let first = succeed(&["manual"]);
    assert_eq!(first, read("weightsync.1"));
    assert!(first.contains(r"weightsync\-explain(1)"), "{first}");
    assert!(read("weightsync-sync.1").contains(r"\-\-checkpoint"));
    assert!(
        !folder.join("weightsync-rank.1").exists(),
        "hidden, and has a page"
    );
    assert!(fail(&["manual", "--out", "/nowhere"]).contains("/nowhere/weightsync.1"));
}

#[test]
fn bench_map_puts_targets_beside_what_it_measured() {
    let text = succeed(&["bench", "map", "--json"]);
    let rows: Vec<Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let targets: Vec<_> = rows.iter().map(|row| &row["target_s"]).collect();
    assert_eq!(targets, [&serde_json::json!(0.1), &serde_json::json!(5.0)]);
    for row in &rows {
        let is_met = row["time_s"].as_f64() < row["target_s"].as_f64();
        assert_eq!(row["is_met"], is_met, "{row}");
    }
    assert!(text.contains("replicas=512"));
}
