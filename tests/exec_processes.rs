//! Ranks as processes that are really killed and stopped.
//!
//! Every rank is this test's own binary, started again to run nothing but
//! [`a_rank`]. Greetings travel over its standard input and output, which
//! shows that any channel does.

mod exec_support;

use exec_support::*;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};
use weightsync::exec::*;
use weightsync::transport::bootstrap::Shm;
use weightsync::transport::shm::ShmTransport;
use weightsync::transport::{Fault, FaultKind};
use weightsync::{Rank, Status};

const SHAPE: Shape = Shape::Apart;
const STEPS: u32 = 3;
const STALL: u64 = 1000 * MS;
/// How much later than its deadline a rank may return on a busy machine.
const MARGIN: Duration = Duration::from_secs(5);

// --- one rank ---------------------------------------------------------------

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

/// Not a test of its own: what the processes of the others run.
#[test]
fn a_rank() {
    let Ok(rank) = std::env::var("WSYNC_TEST_RANK") else {
        return;
    };
    let rank: u32 = rank.parse().unwrap();
    let fault = std::env::var("WSYNC_TEST_FAULT").unwrap();
    let step: u64 = std::env::var("WSYNC_TEST_STEP").unwrap().parse().unwrap();
    let transport = ShmTransport::new(Rank(rank)).unwrap();
    let kind = match fault.as_str() {
        "kill" => Some(FaultKind::Die),
        "stop" | "exit" => Some(FaultKind::Stall),
        _ => None,
    };
    if let Some(kind) = kind {
        let rank = Rank(rank);
        transport.inject(Fault { rank, step, kind });
    }
    let ranks = RankSet::count(SHAPE.rank_count()).unwrap();
    let endpoint = Endpoint::new(Rank(rank), ranks, Box::new(Shm::of(transport))).unwrap();
    println!("\n@greeting {}", hex(endpoint.greeting()));
    let mut lines = std::io::stdin().lock().lines();
    let greetings: Vec<Vec<u8>> = (0..SHAPE.rank_count())
        .map(|_| unhex(&lines.next().unwrap().unwrap()))
        .collect();
    endpoint.meet(&greetings, 20 * SECOND).unwrap();

    let world = World::new(Carrier::Loopback, SHAPE, STEPS);
    let rig = world.rig(endpoint, &|_| SHAPE.plan(STEPS));
    if fault == "stop" || fault == "exit" {
        let fault = fault.clone();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            if fault == "exit" {
                std::process::exit(7);
            }
            // SAFETY: stops this process, which is what the test is about.
            unsafe { libc::raise(libc::SIGSTOP) };
        });
    }
    rig.store(1);
    let before = rig.snapshot();
    let start = Instant::now();
    let result = rig
        .request
        .submit(&RequestOptions {
            stall_deadline_ns: STALL,
            ..options(1)
        })
        .and_then(|()| rig.request.wait(60 * SECOND));
    let took = start.elapsed();
    let verdict = rig.verdict(&world, 1, &before);
    let (status, culprit) = match &result {
        Ok(_) => (Status::Ok, None),
        Err(e) => (e.status, e.rank),
    };
    let (own, copy) = verdict.outcome.unwrap();
    println!(
        "\n@result {} {} {} {} {} {} {}",
        status.code(),
        culprit.map_or(-1, |r| i64::from(r.0)),
        own as u8,
        copy as u8,
        u8::from(verdict.is_new),
        u8::from(verdict.is_old),
        took.as_millis()
    );
    // Leaves when all are through.
    lines.next();
}

// --- all ranks --------------------------------------------------------------

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(rank: u32, fault: &str, step: u32) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_rank", "--exact", "--nocapture", "--test-threads=1"])
            .env("WSYNC_TEST_RANK", rank.to_string())
            .env("WSYNC_TEST_FAULT", fault)
            .env("WSYNC_TEST_STEP", step.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Process {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// What the process says under `name`; `None` if it ends without.
    fn hear(&mut self, name: &str) -> Option<String> {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap() > 0 {
            if let Some(text) = line.trim().strip_prefix(&format!("@{name} ")) {
                return Some(text.to_string());
            }
            line.clear();
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Ending {
    status: Status,
    culprit: i64,
    took: Duration,
    verdict: Verdict,
}

fn parse(rank: u32, text: &str) -> Ending {
    let n: Vec<i64> = text.split(' ').map(|t| t.parse().unwrap()).collect();
    let outcome = |code: i64| Outcome::from_code(code as u8).unwrap();
    Ending {
        status: Status::from_code(n[0] as i32).unwrap(),
        culprit: n[1],
        took: Duration::from_millis(n[6] as u64),
        verdict: Verdict {
            rank,
            copy: SHAPE.copy_of(rank),
            outcome: Some((outcome(n[2]), outcome(n[3]))),
            is_new: n[4] == 1,
            is_old: n[5] == 1,
        },
    }
}

/// Runs all ranks as processes, one of them with a fault; returns how the
/// others ended.
fn run(victim: Option<u32>, fault: &str, step: u32) -> Vec<Ending> {
    let mut processes: Vec<Process> = (0..SHAPE.rank_count())
        .map(|r| Process::start(r, if victim == Some(r) { fault } else { "none" }, step))
        .collect();
    let greetings: Vec<String> = processes
        .iter_mut()
        .map(|p| p.hear("greeting").unwrap())
        .collect();
    for process in &mut processes {
        for greeting in &greetings {
            writeln!(process.input, "{greeting}").unwrap();
        }
    }
    let others = processes
        .iter_mut()
        .zip(0..)
        .filter(|(_, r)| victim != Some(*r));
    let endings = others.map(|(p, r)| parse(r, &p.hear("result").unwrap()));
    endings.collect()
}

fn check(fault: &str, victim: u32, step: u32, status: Status, limit: Duration) {
    let what = format!("rank {victim}: {fault} at step {step}");
    let endings = run(Some(victim), fault, step);
    for e in &endings {
        let rank = e.verdict.rank;
        assert_eq!(e.status, status, "{what}: rank {rank}");
        assert_eq!(e.culprit, i64::from(victim), "{what}: rank {rank}");
        assert!(
            e.took < limit + MARGIN,
            "{what}: rank {rank} took {:?}",
            e.took
        );
    }
    let verdicts: Vec<Verdict> = endings.into_iter().map(|e| e.verdict).collect();
    check_verdicts(&verdicts, &what);
}

#[test]
fn processes_deliver() {
    let complete = Some((Outcome::Complete, Outcome::Complete));
    for e in run(None, "none", 0) {
        assert_eq!(e.status, Status::Ok);
        assert_eq!(e.verdict.outcome, complete);
        assert!(e.verdict.is_new);
    }
}

#[test]
fn a_process_that_is_killed_at_any_step_is_named() {
    for victim in [0, 1, 2, 5] {
        for step in 0..STEPS {
            check("kill", victim, step, Status::PeerLost, Duration::ZERO);
        }
    }
}

#[test]
fn a_process_that_exits_in_mid_transfer_is_named() {
    for victim in [0, 4] {
        check("exit", victim, 1, Status::PeerLost, Duration::ZERO);
    }
}

#[test]
fn a_process_that_is_stopped_is_named() {
    for (victim, step) in [(0, 1), (1, 0), (3, 2)] {
        let limit = Duration::from_nanos(STALL);
        check("stop", victim, step, Status::Stalled, limit);
    }
}
