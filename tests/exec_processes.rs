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

/// A variable that the test gives its processes.
fn given(name: &str) -> Option<String> {
    std::env::var(format!("WSYNC_TEST_{name}")).ok()
}

/// Not a test of its own: what the processes of the others run.
#[test]
fn a_rank() {
    let Some(rank) = given("RANK") else {
        return;
    };
    let rank = Rank(rank.parse().unwrap());
    let fault = given("FAULT").unwrap();
    let step: u64 = given("STEP").unwrap().parse().unwrap();
    let mut version: u64 = given("VERSION").unwrap().parse().unwrap();
    let mut lines = std::io::stdin().lock().lines();
    loop {
        let transport = ShmTransport::new(rank).unwrap();
        let kind = match fault.as_str() {
            "kill" => Some(FaultKind::Die),
            "stop" | "exit" => Some(FaultKind::Stall),
            _ => None,
        };
        if let Some(kind) = kind {
            transport.inject(Fault { rank, step, kind });
        }
        let ranks = RankSet::count(SHAPE.rank_count()).unwrap();
        let endpoint = Endpoint::new(rank, ranks, Box::new(Shm::of(transport))).unwrap();
        println!("\n@greeting {}", hex(endpoint.greeting()));
        let greetings: Vec<Vec<u8>> = (0..SHAPE.rank_count())
            .map(|_| unhex(&lines.next().unwrap().unwrap()))
            .collect();
        endpoint.meet(&greetings, 20 * SECOND).unwrap();
        println!("\n@result {}", deliver(endpoint, &fault, version));
        // Leaves when all are through, or meets the others once more.
        match lines.next() {
            Some(Ok(line)) if line == "again" => version += 1,
            _ => return,
        }
    }
}

/// One version, and how it ended.
fn deliver(endpoint: Endpoint, fault: &str, version: u64) -> String {
    let world = World::new(Carrier::Loopback, SHAPE, STEPS);
    let rig = world.rig(endpoint, &|_| SHAPE.plan(STEPS));
    if fault == "stop" || fault == "exit" {
        let is_exit = fault == "exit";
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            if is_exit {
                std::process::exit(7);
            }
            // SAFETY: stops this process, which is what the test is about.
            unsafe { libc::raise(libc::SIGSTOP) };
        });
    }
    rig.store(version);
    let before = rig.snapshot();
    let start = Instant::now();
    let result = rig
        .request
        .submit(&RequestOptions {
            stall_deadline_ns: STALL,
            ..options(version)
        })
        .and_then(|()| rig.request.wait(60 * SECOND));
    let took = start.elapsed();
    let verdict = rig.verdict(&world, version, &before);
    let (status, culprit) = match &result {
        Ok(_) => (Status::Ok, None),
        Err(e) => (e.status, e.rank),
    };
    let (own, copy) = verdict.outcome.unwrap();
    format!(
        "{} {} {} {} {} {} {} {}",
        status.code(),
        culprit.map_or(-1, |r| i64::from(r.0)),
        own as u8,
        copy as u8,
        u8::from(verdict.is_new),
        u8::from(verdict.is_old),
        took.as_millis(),
        u8::from(verdict.has_all_steps)
    )
}

// --- all ranks --------------------------------------------------------------

struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(rank: u32, fault: &str, step: u32, version: u64) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["a_rank", "--exact", "--nocapture", "--test-threads=1"])
            .env("WSYNC_TEST_RANK", rank.to_string())
            .env("WSYNC_TEST_FAULT", fault)
            .env("WSYNC_TEST_STEP", step.to_string())
            .env("WSYNC_TEST_VERSION", version.to_string())
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
            has_all_steps: n[7] == 1,
        },
    }
}

/// All ranks as processes.
struct Processes {
    all: Vec<Process>,
    /// What they said of where they are, this time and before.
    greetings: Vec<String>,
}

impl Processes {
    /// One of them has a fault.
    fn start(victim: Option<u32>, fault: &str, step: u32) -> Processes {
        let ranks = 0..SHAPE.rank_count();
        let fault_of = |r| if victim == Some(r) { fault } else { "none" };
        Processes {
            all: ranks
                .map(|r| Process::start(r, fault_of(r), step, 1))
                .collect(),
            greetings: Vec::new(),
        }
    }

    /// Lets them meet and deliver a version; returns how it ended, but for the
    /// victim.
    fn deliver(&mut self, victim: Option<u32>) -> Vec<Ending> {
        let hear = |p: &mut Process| p.hear("greeting").unwrap();
        let greetings: Vec<String> = self.all.iter_mut().map(hear).collect();
        for process in &mut self.all {
            for greeting in &greetings {
                writeln!(process.input, "{greeting}").unwrap();
            }
        }
        self.greetings.extend(greetings);
        let others = self.all.iter_mut().zip(0..);
        let others = others.filter(|(_, r)| victim != Some(*r));
        let endings = others.map(|(p, r)| parse(r, &p.hear("result").unwrap()));
        endings.collect()
    }

    /// Has the others meet again, with a new process in place of the victim.
    fn again(&mut self, victim: u32) {
        for (process, _) in self.all.iter_mut().zip(0..).filter(|(_, r)| *r != victim) {
            writeln!(process.input, "again").unwrap();
        }
        self.all[victim as usize] = Process::start(victim, "none", 0, 2);
    }

    /// Ends them, and fails if a socket of theirs is left.
    fn end(self) {
        drop(self.all);
        let is_theirs = |name: &str| self.greetings.iter().any(|g| g.contains(name));
        let left = || {
            let all = std::fs::read_to_string("/proc/net/unix").unwrap();
            let names = all.lines().filter_map(|l| l.split('@').nth(1));
            let names = names.filter(|n| socket_names(n).iter().any(|n| is_theirs(n)));
            names.map(str::to_string).collect::<Vec<_>>()
        };
        assert!(eventually(|| left().is_empty()), "{:?}", left());
    }
}

/// How greetings may spell the random part of a socket's name.
fn socket_names(name: &str) -> Vec<String> {
    let random = name.rsplit('-').next().unwrap_or_default();
    if random.len() != 32 || !random.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Vec::new();
    }
    let reversed: Vec<u8> = unhex(random).into_iter().rev().collect();
    vec![random.to_string(), hex(&reversed)]
}

/// Runs all ranks as processes, one of them with a fault; returns how the
/// others ended.
fn run(victim: Option<u32>, fault: &str, step: u32) -> Vec<Ending> {
    let mut processes = Processes::start(victim, fault, step);
    let endings = processes.deliver(victim);
    processes.end();
    endings
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
fn survivors_meet_again_and_deliver_the_next_version() {
    for (victim, step) in [(0, 1), (3, 0)] {
        let mut processes = Processes::start(Some(victim), "kill", step);
        for e in processes.deliver(Some(victim)) {
            assert_eq!((e.status, e.culprit), (Status::PeerLost, i64::from(victim)));
        }
        processes.again(victim);
        for e in processes.deliver(None) {
            assert_eq!(e.status, Status::Ok, "rank {}", e.verdict.rank);
            let complete = Some((Outcome::Complete, Outcome::Complete));
            assert_eq!(e.verdict.outcome, complete);
            assert!(e.verdict.is_new);
        }
        processes.end();
    }
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
    let steps = |victim| (0..STEPS).map(move |step| (victim, step));
    for (victim, step) in [0, 1, 3].into_iter().flat_map(steps) {
        let limit = Duration::from_nanos(STALL);
        check("stop", victim, step, Status::Stalled, limit);
    }
}
