//! The layout file: examples, round trips, and what bad files are told.

mod layout_support;

use layout_support::{Dice, explicit, random_layout};
use weightsync::layout::check::{FindingKind, check_pair};
use weightsync::layout::{LAYOUT_SCHEMA, Layout};
use weightsync::{Error, Rank, Status};

fn example(name: &str) -> Layout {
    let path = format!("{}/tests/layouts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read(path).unwrap();
    Layout::from_json(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn examples_are_read_and_written_back_unchanged() {
    for name in [
        "trainer_tp2_pp2_dp2",
        "inference_2x_tp4",
        "explicit_two_ranks",
    ] {
        let layout = example(name);
        let text = layout.to_json();
        let again = Layout::from_json(text.as_bytes()).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(layout.spec(), again.spec(), "{name}");
    }
}

#[test]
fn a_megatron_like_trainer_interleaves_and_counts_layers_by_stage() {
    let layout = example("trainer_tp2_pp2_dp2");
    assert_eq!(layout.rank_count(), 8);
    assert_eq!(layout.copy_count(), 2);
    assert_eq!(layout.copy_of(Rank(3)), Some(1));
    let names = |rank| -> Vec<String> {
        layout
            .buffers(Rank(rank))
            .into_iter()
            .map(|b| b.name)
            .collect()
    };
    assert!(names(0).contains(&"embedding.word_embeddings.weight".to_string()));
    assert!(names(7).contains(&"output_layer.weight".to_string()));
    assert!(names(7).contains(&"decoder.layers.1.mlp.linear_fc1.weight".to_string()));
    let qkv = layout
        .buffers(Rank(1))
        .into_iter()
        .find(|b| b.name == "decoder.layers.0.self_attention.linear_qkv.weight")
        .unwrap();
    assert_eq!(qkv.bytes, 2 * (128 + 64 + 64) * 256 * 2);
    let k = layout
        .find_tensor("model.layers.0.self_attn.k_proj.weight")
        .unwrap();
    let v = layout
        .views(Rank(1))
        .into_iter()
        .find(|v| v.tensor == k)
        .unwrap();
    assert_eq!(v.offset, 128 * 256 * 2);
    assert_eq!(v.strides.as_slice(), [256 * 256 * 2, 512, 2]);
}

fn example_text(name: &str) -> String {
    let path = format!("{}/tests/layouts/{name}.json", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).unwrap()
}

/// What a file is told after one piece of the trainer example is replaced.
fn told(from: &str, to: &str) -> Error {
    let text = example_text("trainer_tp2_pp2_dp2");
    assert!(text.contains(from), "{from}");
    Layout::from_json(text.replacen(from, to, 1).as_bytes()).unwrap_err()
}

#[test]
fn errors_name_the_line_the_field_and_what_is_accepted() {
    let cases: &[(&str, &str, &[&str])] = &[
        (
            "\"dtype\": \"bf16\"",
            "\"dtype\": \"bf17\"",
            &[
                "line 10 column",
                "at tensors[0].dtype:",
                "\"bf17\" is unknown",
                "bf16",
            ],
        ),
        (
            "\"shape\": [30522, 256]",
            "\"shap\": [1]",
            &["at tensors[0].shap:", "unknown field `shap`", "`shape`"],
        ),
        (
            "\"shape\": [30522, 256]",
            "\"shape\": [-1]",
            &["at tensors[0].shape[0]:", "integer `-1`"],
        ),
        (
            "\"shape\": [30522, 256]",
            "\"shape\": [1.5]",
            &["at tensors[0].shape[0]:", "floating point"],
        ),
        (
            "\"shape\": [30522, 256]",
            "\"shape\": null",
            &["at tensors[0].shape:", "null"],
        ),
        (
            "{\"chunk\": 15360}",
            "{\"chunks\": 1}",
            &[
                "at tensors[0].cuts[0].kind",
                "unknown variant `chunks`",
                "`blocks`",
            ],
        ),
        (
            "{\"chunk\": 15360}",
            "\"evn\"",
            &["at tensors[0].cuts[0].kind", "`evn`", "`even`"],
        ),
        (
            "{\"dim\": 0, \"axes\": [\"tp\"], ",
            "{\"axes\": [\"tp\"], ",
            &["at tensors[0].cuts[0]:", "missing field `dim`"],
        ),
        (
            "\"axes\": [\"tp\"]",
            "\"axes\": [\"tpp\"]",
            &[
                "at tensors[0].cuts[0].axes:",
                "no axis \"tpp\"",
                "\"pp\", \"dp\", \"tp\"",
            ],
        ),
        (
            "\"dim\": 0",
            "\"dim\": 8",
            &["at tensors[0].cuts[0].dim:", "axis 8", "at most 8"],
        ),
        (
            "\"pad\": true",
            "\"pad\": 1",
            &["at tensors[0].cuts[0].pad:", "boolean"],
        ),
        (
            "{\"first\": 0, \"count\": 8}",
            "{\"first\": 0}",
            &["at ranks:", "missing field `count`"],
        ),
        (
            "{\"first\": 0, \"count\": 8}",
            "\"all\"",
            &["at ranks:", "or a list of ranks"],
        ),
        (
            "{\"first\": 0, \"count\": 8}",
            "[0, 1, 1]",
            &["at ranks:", "rank 1 is listed twice"],
        ),
        (
            "{\"first\": 0, \"count\": 8}",
            "{\"first\": 4294967295, \"count\": 8}",
            &["at ranks:", "out of range"],
        ),
        (
            "{\"first\": 0, \"count\": 8}",
            "{\"first\": 0, \"count\": 4}",
            &["8 positions (pp 2 x dp 2 x tp 2) for 4 ranks"],
        ),
        (
            "\"copies\": {\"axes\": [\"dp\"]}",
            "\"copies\": {\"axes\": [\"ddp\"]}",
            &["at copies.axes:", "no axis \"ddp\""],
        ),
        (
            "\"copies\": {\"axes\": [\"dp\"]}",
            "\"copies\": {\"mesh\": \"x\", \"axes\": []}",
            &["at copies.mesh:", "no mesh \"x\"", "\"dense\""],
        ),
        (
            "\"decoder\": [0, 0, 1, 1]",
            "\"decoder\": [0, 0, 1, 1], \"decoder\": []",
            &["at stages", "\"decoder\" is given twice"],
        ),
        (
            "\"decoder\": [0, 0, 1, 1]",
            "\"decoder\": [0, 0, 2, 1]",
            &["layers.2", "stage 2 is out of range", "0 to 1"],
        ),
        (
            "\"layers\": \"decoder\"",
            "\"layers\": \"encoder\"",
            &[
                "at tensors[2].layers:",
                "no table \"encoder\"",
                "\"decoder\"",
            ],
        ),
        (
            "\"layers\": \"decoder\"",
            "\"layers\": 3",
            &["at tensors[2].layers:", "list of layers"],
        ),
        (
            "\"layers\": \"decoder\",",
            "",
            &["at tensors[2].name:", "\"layers\" is missing"],
        ),
        (
            "\"layers\": \"decoder\",",
            "\"layers\": {\"first\": 0, \"count\": 5},",
            &["at tensors[2].stage.table:", "4 layers", "layer 4"],
        ),
        (
            "\"layers\": \"decoder\",",
            "\"layers\": {\"first\": 0, \"count\": 4294967295},",
            &["spells out more than"],
        ),
        (
            "\"layers\": \"decoder\",",
            "\"layers\": {\"first\": 9, \"count\": 4294967295},",
            &["at tensors[2].layers:", "too many"],
        ),
        (
            "{\"axis\": \"pp\", \"at\": 0}",
            "{\"axis\": \"pp\"}",
            &["at tensors[0].stage:", "\"table\"", "\"at\""],
        ),
        (
            "{\"axis\": \"pp\", \"at\": 0}",
            "{\"axis\": \"qq\", \"at\": 0}",
            &["at tensors[0].stage.axis:", "no axis \"qq\""],
        ),
        (
            "{\"axis\": \"pp\", \"at\": 0}",
            "{\"axis\": \"pp\", \"table\": \"decoder\"}",
            &["at tensors[0].stage.table:", "\"layers\" is missing"],
        ),
        (
            "\"name\": \"lm_head.weight\"",
            "\"name\": \"head\"",
            &["at tensors[1]:", "\"head\" has no \"shape\""],
        ),
        (
            "{\"lm_head.weight\": \"model.embed_tokens.weight\"}",
            "{\"a\": \"b\", \"b\": \"c\"}",
            &["at tensors[1]:"],
        ),
        (
            "\"shared_dims\": 1",
            "\"shared_dims\": 4",
            &["share 4 axes", "has 3"],
        ),
        (
            "        \"model.layers.{layer}.self_attn.k_proj.weight\",\n",
            "        \"k\",\n",
            &[
                "at fused[0].members:",
                "\"k\" is the same for all \"layers\"",
            ],
        ),
        (
            "        \"model.layers.{layer}.self_attn.k_proj.weight\",\n",
            "        \"k.{layer}\",\n",
            &[
                "at fused[0].members:",
                "no entry of this part places its member \"k.0\"",
            ],
        ),
        (
            "\"weightsync_layout\": 1,",
            "",
            &["missing field `weightsync_layout`"],
        ),
        (
            "\"ranks\": {\"first\": 0, \"count\": 8},",
            "",
            &["at meshes:", "\"meshes\" belongs to a part"],
        ),
        (
            "\"ranks\": {\"first\": 0, \"count\": 8},",
            "\"ranks\": [0], \"parts\": [{\"ranks\": [1]}],",
            &["at parts:", "not both"],
        ),
    ];
    let mut wrong = Vec::new();
    for (from, to, words) in cases {
        let e = told(from, to);
        assert!(
            matches!(e.status, Status::LayoutInvalid | Status::LimitExceeded),
            "{e:?}"
        );
        let missing = words.iter().filter(|w| !e.message.contains(**w));
        wrong.extend(missing.map(|w| format!("no {w:?} in: {}", e.message)));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn another_version_is_a_version_mismatch_whatever_else_it_holds() {
    let e = told("\"weightsync_layout\": 1", "\"weightsync_layout\": 2");
    assert_eq!(e.status, Status::VersionMismatch);
    assert!(
        e.message.contains("version 2") && e.message.contains("version 1"),
        "{e}"
    );
    let e = Layout::from_json(br#"{"weightsync_layout": 3, "news": []}"#).unwrap_err();
    assert_eq!(e.status, Status::VersionMismatch);
    for bad in [
        "",
        "[]",
        "{}",
        "nul",
        "{\"weightsync_layout\": \"1\"}",
        "\u{feff}{}",
        "{\"weightsync_layout\": 1} x",
    ] {
        let e = Layout::from_json(bad.as_bytes()).unwrap_err();
        assert_eq!(e.status, Status::LayoutInvalid, "{bad}: {e}");
    }
    let deep = "[".repeat(1 << 16);
    assert!(Layout::from_json(deep.as_bytes()).is_err());
    assert!(
        Layout::from_json(b"{\"weightsync_layout\": 1, \"aliases\": {\"\xff\": \"a\"}}").is_err()
    );
}

#[test]
fn faults_of_all_entries_are_told() {
    let entry = |name: &str, axis: &str| {
        format!(
            r#"{{"name": "{name}", "shape": [8], "dtype": "f32",
                "cuts": [{{"dim": 0, "axes": ["{axis}"]}}]}}"#
        )
    };
    let file = |tensors: &[String]| {
        format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 2}},
                "meshes": {{"m": [["tp", 2]]}}, "tensors": [{}]}}"#,
            tensors.join(",")
        )
    };
    let some = [entry("a", "tpp"), entry("b", "tp"), entry("c", "pt")];
    let e = Layout::from_json(file(&some).as_bytes()).unwrap_err();
    for told in [
        "at tensors[0].cuts[0]",
        "\"tpp\"",
        "; at tensors[2].cuts[0]",
        "\"pt\"",
    ] {
        assert!(e.message.contains(told), "{told:?} is not in: {e}");
    }
    assert!(!e.message.contains("tensors[1]"), "{e}");
    let many: Vec<String> = (0..30).map(|i| entry(&format!("t{i}"), "no")).collect();
    let e = Layout::from_json(file(&many).as_bytes()).unwrap_err();
    assert!(
        e.message.contains("tensors[19]") && e.message.ends_with("; and 10 more"),
        "{e}"
    );
}

#[test]
fn the_examples_fit_each_other() {
    let (trainer, inference) = (example("trainer_tp2_pp2_dp2"), example("inference_2x_tp4"));
    let report = check_pair(&trainer, &inference);
    // The embedding is padded to other sizes, which is worth knowing.
    let found: Vec<_> = report.findings.iter().map(|f| f.kind).collect();
    assert_eq!(found, [FindingKind::Padding], "{report:#?}");
    assert_eq!(report.source.bytes, report.destination.matched_bytes);
    assert_eq!(inference.copy_count(), 2);
    let about = trainer.describe();
    assert_eq!(about["ranks"], 8);
    assert_eq!(about["rank_runs"][0], "0..8");
    assert_eq!(about["bytes"], report.source.bytes);
    assert_eq!(about["largest"][0]["name"], "model.embed_tokens.weight");
    assert_eq!(about["parts"][0]["meshes"]["dense"], "pp 2 x dp 2 x tp 2");
}

/// A file with something of everything that a schema can get wrong.
const VARIED: &str = r#"{"weightsync_layout": 1, "frozen": ["e.*"], "draft": ["d"],
    "parts": [
        {"ranks": {"first": 0, "count": 2}, "meshes": {"m": [["tp", 2]]}, "tensors": [
            {"name": "e.w", "shape": [4, 6], "dtype": "bf16", "split": 0, "buffer": "e.{local}"},
            {"name": "d", "shape": [8], "dtype": "f32",
                "cuts": [{"dim": 0, "axes": ["tp"], "kind": {"blocks": 2}}]},
            {"name": "at", "shape": [9], "dtype": "f32",
                "cuts": [{"dim": 0, "axes": ["tp"], "kind": {"at": [0, 2, 9]}}]},
            {"name": "q", "shape": [8, 2], "dtype": "f32",
                "cuts": [{"dim": 0, "axes": ["tp"], "kind": "floor"}]},
            {"name": "k", "shape": [4, 2], "dtype": "f32", "spacer": true,
                "cuts": [{"dim": 0, "axes": ["tp"], "kind": "floor"}]}],
         "fused": [{"buffer": "qk", "members": ["q", "k"], "groups": 4}]},
        {"ranks": [4, 2], "tensors": [{"name": "d"}]}]}"#;

/// Ways to get it wrong: what to replace by what.
const FAULTS: [(&str, &str); 14] = [
    (r#""frozen": ["e.*"]"#, r#""frozen": "e.*""#),
    (r#""draft": ["d"]"#, r#""draft": [1]"#),
    (r#"[4, 2], "tensors""#, r#"[4, 4], "tensors""#),
    (
        r#"{"ranks": [4, 2], "tensors": [{"name": "d"}]}"#,
        r#"{"tensors": [{"name": "d"}]}"#,
    ),
    (
        r#"{"ranks": [4, 2], "#,
        r#"{"ranks": [4, 2], "rules": [], "#,
    ),
    (r#""split": 0"#, r#""split": 1"#),
    (r#""split": 0"#, r#""split": [0]"#),
    (r#"{"blocks": 2}"#, r#"{"blocks": -2}"#),
    (r#"{"at": [0, 2, 9]}"#, r#"{"at": 2}"#),
    (r#"{"at": [0, 2, 9]}"#, r#""at""#),
    (r#""kind": "floor""#, r#""kind": {"floor": 2}"#),
    (r#""groups": 4"#, r#""groups": [4]"#),
    (r#""spacer": true"#, r#""spacer": "yes""#),
    (r#""members": ["q", "k"]"#, r#""members": []"#),
];

/// Runs Python's jsonschema over files; false, said aloud, where it is absent.
fn validate(files: &[(String, String)]) -> Option<Vec<String>> {
    let dir = std::env::temp_dir().join(format!("weightsync-schema-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("schema.json"), LAYOUT_SCHEMA).unwrap();
    for (name, text) in files {
        std::fs::write(dir.join(name), text).unwrap();
    }
    let script = "import json, sys\n\
        try:\n    import jsonschema\nexcept ImportError:\n    sys.exit(77)\n\
        load = lambda p: json.load(open(p))\n\
        schema = load('schema.json')\n\
        v = jsonschema.Draft202012Validator\n\
        v.check_schema(schema)\n\
        [print(p) for p in sys.argv[1:] if v(schema).is_valid(load(p))]\n";
    let run = std::process::Command::new("python3")
        .args(["-c", script])
        .args(files.iter().map(|(name, _)| name))
        .current_dir(&dir)
        .output();
    std::fs::remove_dir_all(&dir).unwrap();
    let out = match run {
        Ok(out) if out.status.code() != Some(77) => out,
        _ => {
            eprintln!("SKIPPED: the schema needs python3 with jsonschema to be tried");
            return None;
        }
    };
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    let valid = String::from_utf8(out.stdout).unwrap();
    Some(valid.lines().map(str::to_string).collect())
}

#[test]
fn the_schema_accepts_what_is_read_and_refuses_what_is_not() {
    let names = [
        "trainer_tp2_pp2_dp2",
        "inference_2x_tp4",
        "explicit_two_ranks",
    ];
    let mut files: Vec<(String, String)> = Vec::new();
    for name in names {
        files.push((name.into(), example_text(name)));
    }
    for seed in 0..60 {
        let layout = random_layout(&mut Dice(seed));
        let layout = if seed % 4 == 0 {
            explicit(&layout)
        } else {
            layout
        };
        files.push((format!("random{seed}"), layout.to_json()));
    }
    files.push(("varied".into(), VARIED.into()));
    for (name, of) in [("w0", 0), ("w1", 1), ("w2", 2)] {
        let layout = example(names[of]);
        let some = layout
            .restrict(|n| n.contains("k_proj") || n.contains("bias"))
            .unwrap();
        files.push((
            name.into(),
            if of == 1 {
                some.to_json()
            } else {
                layout.to_json()
            },
        ));
    }
    let good = files.len();
    let trainer = example_text(names[0]);
    for (name, from, to) in [
        ("b0", "\"shape\": [30522, 256]", "\"shape\": [-1]"),
        ("b1", "\"dtype\": \"bf16\"", "\"dtype\": \"bf17\""),
        ("b2", "{\"chunk\": 15360}", "{\"chunk\": 1, \"blocks\": 2}"),
        ("b3", "\"ranks\": {\"first\": 0, \"count\": 8},", ""),
        ("b4", "\"weightsync_layout\": 1", "\"weightsync_layout\": 2"),
        ("b5", "\"pad\": true", "\"pads\": true"),
        ("b6", "{\"axis\": \"pp\", \"at\": 0}", "{\"axis\": \"pp\"}"),
    ] {
        files.push((name.into(), trainer.replacen(from, to, 1)));
    }
    for (i, (from, to)) in FAULTS.iter().enumerate() {
        assert!(VARIED.contains(from), "{from}");
        files.push((format!("bad{i}"), VARIED.replacen(from, to, 1)));
    }
    if let Some(valid) = validate(&files) {
        let want: Vec<&str> = files[..good].iter().map(|f| f.0.as_str()).collect();
        assert_eq!(valid, want);
    }
    for (name, text) in &files {
        let is_read = Layout::from_json(text.as_bytes()).is_ok();
        assert_eq!(is_read, !name.starts_with('b'), "{name}");
    }
}

#[test]
fn numbers_of_layers_may_be_given_instead_of_counted() {
    let file = |numbers: &str| {
        format!(
            r#"{{"weightsync_layout": 1, "ranks": {{"first": 0, "count": 2}},
            "meshes": {{"m": [["pp", 2]]}}, "stages": {{"decoder": [0, 1, 0, 1]}},
            "local_layers": {{"decoder": {numbers}}},
            "tensors": [{{"name": "w.{{layer}}", "layers": "decoder", "shape": [4], "dtype": "f32",
                "stage": {{"axis": "pp", "table": "decoder"}}, "buffer": "b.{{local_layer}}"}}]}}"#
        )
    };
    let layout = Layout::from_json(file("[7, 0, 9, 1]").as_bytes()).unwrap();
    let names: Vec<String> = layout
        .buffers(Rank(0))
        .into_iter()
        .map(|b| b.name)
        .collect();
    assert_eq!(names, ["b.7", "b.9"]);
    let e = Layout::from_json(file("[0, 0]").as_bytes()).unwrap_err();
    assert!(
        e.message
            .contains("numbers 2 layers of table \"decoder\", which has 4"),
        "{e}"
    );
}
