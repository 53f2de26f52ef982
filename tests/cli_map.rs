//! `weightsync map` as a user runs it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

use serde_json::{Value, json};

fn weightsync(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_weightsync"))
        .arg("map")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pipe = child.stdin.take().unwrap();
    let input = stdin.to_string();
    let writer = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    // The command may refuse its arguments before it reads anything.
    let _ = writer.join().unwrap();
    output
}

fn answers(args: &[&str], records: &Value) -> Vec<Value> {
    let output = weightsync(args, &records.to_string());
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn refusal(args: &[&str], stdin: &str) -> String {
    let output = weightsync(args, stdin);
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

/// TP 2, PP 2 to one replica of TP 4, on devices of its own.
fn record() -> Value {
    json!({
        "id": "left alone",
        "src": {"tp": 2, "pp": 2, "ep": 1, "dp": 1, "cp": 1},
        "dst": {"tp": 4, "pp": 1, "ep": 1, "replicas": 1},
        "src_gpu": [0, 1, 2, 3],
        "dst_gpu": [4, 5, 6, 7],
    })
}

fn with(changes: Value) -> Value {
    let mut record = record();
    for (key, value) in changes.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

#[test]
fn two_stage() {
    let got = answers(&["two-stage"], &json!([record()]));
    let expected = json!({
        "pair_list": [[0, 4], [1, 6], [2, 5], [3, 7]],
        "p2p_list": [[4, 5], [5, 4], [6, 7], [7, 6]],
    });
    assert_eq!(got, [expected]);
}

#[test]
fn single_stage() {
    let record = with(json!({
        "dst": {"tp": 2, "pp": 1, "ep": 1, "replicas": 2},
        "colocated_flag": false,
    }));
    let got = answers(&["single-stage"], &json!([record]));
    let expected = json!({
        "pair_list": [[0, 4], [1, 5], [2, 4], [3, 5], [0, 6], [1, 7], [2, 6], [3, 7]],
        "p2p_list": [],
        "regroup_groups": [[0, 1], [2, 3], [0, 1], [2, 3]],
    });
    assert_eq!(got, [expected]);
}

#[test]
fn hep() {
    let record = json!({
        "src": {"tp": 1, "pp": 1, "ep": 2, "dp": 1, "cp": 1},
        "dst": {"tp": 2, "pp": 1, "ep": 1, "replicas": 2},
        "src_gpu": [0, 1],
        "dst_gpu": [1, 0, 3, 2],
        "colocated_flag": true,
        "dst_is_vllm": true,
    });
    let got = answers(&["hep"], &json!([record]));
    let expected = json!({
        "routed_map": [[0, [2, 4]], [1, [3, 5]]],
        "stage1_map": [[0, [2]], [1, [4]]],
        "stage2_map": [[2, [3]], [4, [5]]],
        "regroup_groups": [[0, 1]],
    });
    assert_eq!(got, [expected]);
}

#[test]
fn explicit_lists() {
    let record = with(json!({
        "src_gpu": [0, 1, 2, 3, 8, 9],
        "src_ranks": [[4, 5, 2, 3]],
        "dst_ranks": [[9, 8, 7, 6]],
    }));
    let got = answers(&["two-stage"], &json!([record]));
    assert_eq!(got[0]["pair_list"], json!([[4, 9], [5, 7], [2, 8], [3, 6]]));
}

#[test]
fn refused_records_are_answers_too() {
    let records = json!([
        record(),
        with(json!({"dst": {"tp": 3, "pp": 1, "ep": 1, "replicas": 1}, "dst_gpu": [4, 5, 6]})),
        with(json!({"dst_gpu": [0, 0, 1, 1]})),
        with(json!({"dst_gpu": [4, 5, 6]})),
        with(json!({"src": {"tp": 2, "pp": 0}})),
        with(json!({"src": {"tp": 2, "pp": 2, "etp": 2}})),
        with(json!({"src_gpu": "none"})),
        with(json!({"src_gpu": [0, 1, 2, -3]})),
        with(json!({"src_ranks": [[0, 1, 2]]})),
        with(json!({"src_ranks": [[0, 1, 2, 7]]})),
        with(json!({"dst": {"tp": 4, "pp": 1, "ep": 1, "replicas": 4294967295u32}})),
        json!({}),
        json!([]),
        json!(null),
        record(),
    ]);
    let got = answers(&["two-stage"], &records);
    let kinds: Vec<_> = got
        .iter()
        .map(|answer| answer["error"]["kind"].as_str().unwrap_or("mapped"))
        .collect();
    let invalid = "invalid_input";
    assert_eq!(
        kinds,
        [
            "mapped",
            "constraint",
            "infeasible",
            invalid,
            invalid,
            invalid,
            invalid,
            invalid,
            "constraint",
            invalid,
            invalid,
            invalid,
            invalid,
            invalid,
            "mapped"
        ]
    );
    let message = |i: usize| got[i]["error"]["message"].as_str().unwrap();
    assert!(message(1).contains("destination TP 3 is not a multiple of source TP 2"));
    assert!(message(2).contains("rank 0 shares device 0 with its only candidates 4, 5"));
    assert!(message(2).contains("local copy"));
    assert!(message(3).contains("4 ranks, but devices of 3"));
    assert!(message(5).contains("etp"), "{}", message(5));

    let got = answers(&["hep"], &json!([record()]));
    assert_eq!(got[0]["error"]["message"], "missing field `dst_is_vllm`");
}

#[test]
fn same_device_pairs_can_be_kept() {
    let records = json!([with(json!({"dst_gpu": [0, 0, 1, 1]}))]);
    let got = answers(&["two-stage", "--keep-same-device", "--details"], &records);
    assert_eq!(got[0]["same_gpu_pairs"], json!([[0, 4], [1, 6]]));
    assert_eq!(got[0]["loads"], json!([[4, 1], [5, 1], [6, 1], [7, 1]]));

    let records = json!([with(json!({"dst_gpu": [0, 9, 8, 1]}))]);
    let got = answers(&["two-stage", "--details"], &records);
    assert_eq!(
        got[0]["moved"],
        json!([{"sender": 0, "receiver": 5, "avoided": 4}])
    );
}

#[test]
fn details_say_what_each_rank_sends_and_receives() {
    let got = answers(&["two-stage", "--details"], &json!([record()]));
    let expected = json!({
        "pair_list": [[0, 4], [1, 6], [2, 5], [3, 7]],
        "p2p_list": [[4, 5], [5, 4], [6, 7], [7, 6]],
        "sends": [[0, [4]], [1, [6]], [2, [5]], [3, [7]]],
        "receives": [[4, [0]], [6, [1]], [5, [2]], [7, [3]]],
        "forward_sends": [[4, [5]], [5, [4]], [6, [7]], [7, [6]]],
        "forward_receives": [[5, [4]], [4, [5]], [7, [6]], [6, [7]]],
        "routed_sends": [],
        "routed_receives": [],
        "loads": [[4, 1], [5, 1], [6, 1], [7, 1]],
        "routed_loads": [[4, 0], [5, 0], [6, 0], [7, 0]],
        "moved": [],
        "same_gpu_pairs": [],
    });
    assert_eq!(got, [expected]);
}

/// EP 2 to one replica of TP 2, with lists as a runtime has them.
fn expert_record(lists: Value) -> Value {
    let mut record = json!({
        "src": {"tp": 1, "pp": 1, "ep": 2, "dp": 2, "cp": 1},
        "dst": {"tp": 2, "pp": 1, "ep": 1, "replicas": 1},
        "src_gpu": [0, 1, 2, 3],
        "dst_gpu": [4, 5],
        "dst_is_vllm": true,
    });
    for (key, value) in lists.as_object().unwrap() {
        record[key] = value.clone();
    }
    record
}

#[test]
fn lists_of_routed_experts_and_of_the_rest() {
    let whole = json!([[2, 3], [0, 1]]);
    let records = json!([
        expert_record(json!({"src_ranks_expert": whole})),
        expert_record(json!({"src_ranks_except_routed": whole})),
        expert_record(json!({"src_ranks": whole})),
        expert_record(json!({"src_ranks": [[1, 0]], "src_ranks_expert": whole})),
        expert_record(json!({"src_ranks_except_routed": [[2], [3]]})),
    ]);
    let got = answers(&["hep"], &records);
    for answer in &got[..3] {
        assert_eq!(answer["routed_map"], json!([[2, [4]], [3, [5]]]));
        assert_eq!(answer["stage1_map"], json!([[2, [4]]]));
    }
    assert_eq!(got[3]["routed_map"], json!([[2, [4]], [3, [5]]]));
    assert_eq!(got[3]["stage1_map"], json!([[1, [4]]]));
    assert_eq!(got[4]["error"]["kind"], "invalid_input");
    let message = got[4]["error"]["message"].as_str().unwrap();
    assert!(message.contains("`src_ranks_expert`"), "{message}");
}

/// What is said on the page about mappings is what the command answers.
#[test]
fn the_documented_records() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| -> Value {
        let text = std::fs::read(root.join("docs/mapping").join(name)).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let got = answers(&["two-stage"], &read("records.json"));
    assert_eq!(Value::from(got), read("answers.json"));
}

#[test]
fn models_are_colocated_if_devices_are_shared_unless_told_otherwise() {
    let first = |devices: Value, flag: Value| {
        let mut record = json!({
            "src": {"tp": 1, "pp": 1, "dp": 2}, "dst": {"tp": 1, "pp": 1},
            "src_gpu": [0, 1], "dst_gpu": devices,
        });
        if !flag.is_null() {
            record["colocated_flag"] = flag;
        }
        answers(&["single-stage"], &json!([record]))[0]["pair_list"][0][0].clone()
    };
    assert_eq!(first(json!([2]), Value::Null), 0);
    assert_eq!(first(json!([1]), Value::Null), 1);
    assert_eq!(first(json!([1]), json!(false)), 0);
    assert_eq!(first(json!([2]), json!(true)), 1);
}

#[test]
fn help_says_what_is_read_and_answered() {
    let output = weightsync(&["--help"], "");
    assert!(output.status.success());
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "src_gpu",
        "dst_is_vllm",
        "colocated_flag",
        "src_ranks_except_routed",
        "pair_list",
        "stage2_map",
        "regroup_groups",
        "constraint",
        "infeasible",
        "invalid_input",
    ] {
        assert!(help.contains(word), "{word} is not in\n{help}");
    }
}

#[test]
fn what_is_no_array_of_records() {
    assert!(refusal(&["two-stage"], "").contains("not a JSON array"));
    assert!(refusal(&["two-stage"], "{}").contains("not a JSON array"));
    assert!(refusal(&["two-stage"], "[{}] more").contains("not a JSON array"));
    refusal(&["three-stage"], "[]");
    assert_eq!(answers(&["two-stage"], &json!([])), [] as [Value; 0]);
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

#[test]
fn pictures() {
    let path = scratch("mapping.svg");
    let file = path.to_str().unwrap();
    let records = json!([
        record(),
        with(json!({"dst": {"tp": 3, "pp": 1}, "dst_gpu": [4, 5, 6]}))
    ]);
    answers(&["two-stage", "--svg", file], &records);
    let picture = std::fs::read_to_string(&path).unwrap();
    assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    assert_eq!(
        picture.matches("<g>").count(),
        picture.matches("<title>rank ").count() - 8
    );
    for rank in 0..8 {
        assert!(picture.contains(&format!("<title>rank {rank}: device {rank}, ")));
    }
    assert!(picture.contains("rank 2 sends to rank 5"));
    assert!(picture.contains("rank 5 forwards to rank 4"));

    // A refused record was answered: there is no picture, and no failure.
    std::fs::remove_file(&path).unwrap();
    let output = weightsync(
        &["two-stage", "--svg", file, "--record", "1"],
        &records.to_string(),
    );
    assert!(output.status.success() && !path.exists());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("record 1 has no picture"), "{said}");
    assert!(said.contains("destination TP 3"), "{said}");
    let refused = refusal(
        &["two-stage", "--svg", file, "--record", "2"],
        &records.to_string(),
    );
    assert!(refused.contains("no record 2"), "{refused}");
    let refused = refusal(
        &["two-stage", "--svg", "/no/such/folder/a.svg"],
        &records.to_string(),
    );
    assert!(
        refused.contains("cannot write /no/such/folder/a.svg"),
        "{refused}"
    );
}

fn picture(name: &str, variant: &str, record: &Value) -> String {
    let path = scratch(name);
    answers(
        &[variant, "--svg", path.to_str().unwrap()],
        &json!([record]),
    );
    std::fs::read_to_string(&path).unwrap()
}

/// Routed experts may come from ranks that send nothing else.
#[test]
fn a_picture_seats_those_who_send_routed_experts_alone() {
    let record = expert_record(json!({
        "src_ranks_expert": [[0, 1]],
        "src_ranks_except_routed": [[2], [3]],
    }));
    let drawn = picture("routed.svg", "hep", &record);
    for rank in 0..6 {
        assert!(drawn.contains(&format!("<title>rank {rank}: ")), "{rank}");
    }
    assert!(drawn.contains("rank 0 sends to rank 4, routed experts"));
    // Three arrows start at trainers, two of them end at one rank.
    let counts = "3 pairs from trainer ranks (2 of them for routed experts), 1 forward, at most 2";
    assert!(drawn.contains(counts), "{drawn}");
}

/// 32 trainers and 64 receivers: what is alike is drawn once, what is not is
/// drawn apart.
#[test]
fn a_picture_of_many_ranks_draws_one_replica_of_each_kind() {
    let mut record = with(json!({
        "src": {"tp": 2, "pp": 2, "dp": 8},
        "dst": {"tp": 4, "pp": 1, "replicas": 16},
        "src_gpu": (0..32).collect::<Vec<_>>(),
        "dst_gpu": (32..96).collect::<Vec<_>>(),
    }));
    let drawn = picture("alike.svg", "two-stage", &record);
    assert_eq!(drawn.matches("<title>rank ").count(), 4 + 4 + 4 + 4);
    assert!(drawn.contains("replica 0\u{a0} × 16 alike"), "{drawn}");
    assert!(drawn.contains("Trainer: 1 of 8 copies<"));
    assert!(drawn.contains("Inference: 1 of 16 replicas<"));
    assert!(drawn.contains("64 pairs from trainer ranks, 64 forwards"));

    // Replica 3 has a receiver on the device of its sender.
    record["dst_gpu"][12] = json!(6);
    let drawn = picture("two_kinds.svg", "two-stage", &record);
    assert!(drawn.contains("replica 0\u{a0} × 15 alike"), "{drawn}");
    assert!(drawn.contains("Inference: 2 of 16 replicas<"));
    assert!(drawn.contains("replica 3<"), "{drawn}");
    assert!(drawn.contains("moved off a shared device"));
}

/// Ten thousand records of the recorded sizes in less than five seconds.
#[test]
fn ten_thousand_records() {
    let text = include_str!("golden/mapping/two_stage.json");
    let recorded: Vec<Value> = serde_json::from_str(text).unwrap();
    let record = |r: &Value| {
        let (src, dst) = (&r["sizes"][0], &r["sizes"][1]);
        json!({
            "src": {"tp": src[0], "pp": src[1], "ep": src[2], "dp": src[3], "cp": src[4]},
            "dst": {"tp": dst[0], "pp": dst[1], "ep": dst[2], "replicas": dst[3]},
            "src_gpu": r["devices"][0],
            "dst_gpu": r["devices"][1],
        })
    };
    let records: Vec<_> = recorded.iter().cycle().take(10_000).map(record).collect();
    let input = Value::from(records).to_string();
    let start = Instant::now();
    let output = weightsync(&["two-stage"], &input);
    let took = start.elapsed();
    assert!(output.status.success());
    let got: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(got.len(), 10_000);
    println!("10,000 records, {} bytes, in {took:?}", input.len());
    assert!(took.as_secs() < 5, "{took:?}");
}
