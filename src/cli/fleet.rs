//! All workers of a command: starts them, talks to them, ends them.
//!
//! ```text
//!             ┌─ channel ─► writer ─ stdin ─►┐
//!   command ──┤                              ├ process of rank r
//!             └◄─ events ◄─ reader ◄─ stdout ┘     stderr ─► its last lines
//! ```
//!
//! The command never waits for a pipe, only for events and with a deadline.
//! When a worker fails or dies, the others are ended too.

use super::message::{Answer, Carrier, Failure, Order};
use super::worker;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use weightsync::{Error, Rank, Result, Status};

/// How long we listen on after a failure, to hear who is to blame.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// How much of a worker's standard error is kept.
const STDERR_BYTES_MAX: usize = 4096;

/// The workers, one per rank, ascending.
pub struct Fleet {
    members: BTreeMap<Rank, Member>,
    events: Receiver<(Rank, Event)>,
    /// Those that went after their last answer: a worker that has left ends,
    /// maybe before others leave.
    gone: BTreeSet<Rank>,
    deadline: Duration,
}

struct Member {
    orders: Sender<Order>,
    /// None if the worker is a thread.
    process: Option<Process>,
}

struct Process {
    child: Child,
    stderr: Arc<Mutex<Vec<u8>>>,
}

enum Event {
    Said(Answer),
    /// It will say nothing more.
    Gone,
}

impl Fleet {
    /// Starts a worker for every rank. No step of theirs may take longer than
    /// `deadline`.
    pub fn start(ranks: &[Rank], carrier: Carrier, deadline: Duration) -> Result<Fleet> {
        let (said, events) = channel();
        let mut fleet = Fleet {
            members: BTreeMap::new(),
            events,
            gone: BTreeSet::new(),
            deadline,
        };
        for &rank in ranks {
            let member = match carrier {
                Carrier::Shm => spawn_process(rank, said.clone())?,
                Carrier::Loopback => spawn_thread(rank, said.clone())?,
            };
            fleet.members.insert(rank, member);
        }
        Ok(fleet)
    }

    /// Gives every worker an order and waits for all answers, which come back
    /// by rank. `heard` is called as each one arrives.
    pub fn all(
        &mut self,
        what: &str,
        order: impl Fn(Rank) -> Order,
        mut heard: impl FnMut(),
    ) -> Result<Vec<(Rank, Answer)>> {
        for (&rank, member) in &self.members {
            // Whoever cannot hear it any more is found to be gone.
            let _ = member.orders.send(order(rank));
        }
        if let Some(&rank) = self.gone.first() {
            return Err(self.failed(rank, None, what));
        }
        let until = Instant::now() + self.deadline;
        let mut answers = BTreeMap::new();
        while answers.len() < self.members.len() {
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok((rank, Event::Said(Answer::Failed(failure)))) => {
                    return Err(self.failed(rank, Some(failure), what));
                }
                Ok((rank, Event::Said(answer))) => {
                    answers.insert(rank, answer);
                    heard();
                }
                Ok((rank, Event::Gone)) if answers.contains_key(&rank) => {
                    self.gone.insert(rank);
                }
                Ok((rank, Event::Gone)) => return Err(self.failed(rank, None, what)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Err(self.late(&answers, what));
                }
            }
        }
        Ok(answers.into_iter().collect())
    }

    /// Waits until every process has ended, and ended well.
    pub fn join(mut self) -> Result<()> {
        let until = Instant::now() + self.deadline;
        for (rank, member) in &mut self.members {
            let Some(process) = &mut member.process else {
                continue;
            };
            match process.wait(until) {
                Some(status) if status.success() => {}
                Some(status) => return Err(died(*rank, Some(status), process, "leaving")),
                None => {
                    let text = format!("rank {rank} has left but its process does not end");
                    return Err(Error::new(Status::PeerLost, text).by(*rank));
                }
            }
        }
        Ok(())
    }

    fn late(&self, answers: &BTreeMap<Rank, Answer>, what: &str) -> Error {
        let late: Vec<Rank> = self
            .members
            .keys()
            .filter(|r| !answers.contains_key(r))
            .copied()
            .collect();
        let first = late.first().copied().unwrap_or_default();
        let text = format!(
            "{what}: {} of {} ranks did not answer within {} s, the first is rank {first}",
            late.len(),
            self.members.len(),
            self.deadline.as_secs()
        );
        Error::new(Status::Stalled, text).by(first)
    }

    /// Finds out who is to blame: a rank that died before one that failed,
    /// and of those the first one to say so.
    fn failed(&mut self, first: Rank, failure: Option<Failure>, what: &str) -> Error {
        let mut failures: Vec<(Rank, Failure)> = Vec::new();
        let mut dead = Vec::new();
        match failure {
            // Who it blames may have gone after an answer of its own.
            Some(f) => {
                dead.extend(f.culprit.filter(|c| self.gone.contains(c)));
                failures.push((first, f));
            }
            None => dead.push(first),
        }
        let until = Instant::now() + AFTERMATH;
        while dead.is_empty() {
            // A rank that blames itself or nobody needs no second opinion.
            let is_clear = |(rank, f): &(Rank, Failure)| f.culprit.is_none_or(|c| c == *rank);
            if failures.iter().any(is_clear) {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok((rank, Event::Said(Answer::Failed(f)))) => failures.push((rank, f)),
                Ok((_, Event::Said(_))) => {}
                Ok((rank, Event::Gone)) if failures.iter().any(|(r, _)| *r == rank) => {}
                Ok((rank, Event::Gone)) => dead.push(rank),
                Err(_) => break,
            }
        }
        if let Some(&rank) = dead.first() {
            return self.describe_death(rank, what);
        }
        let own = failures
            .iter()
            .position(|(rank, f)| f.culprit.is_none_or(|c| c == *rank));
        let (rank, f) = failures.swap_remove(own.unwrap_or(0));
        Error {
            rank: f.culprit.or(Some(rank)),
            ..Error::new(
                Status::from_code(f.status).unwrap_or(Status::Aborted),
                format!("{what}: rank {rank}: {}", f.message),
            )
        }
    }

    fn describe_death(&mut self, rank: Rank, what: &str) -> Error {
        let member = self.members.get_mut(&rank);
        match member.and_then(|m| m.process.as_mut()) {
            Some(process) => {
                let status = process.wait(Instant::now() + AFTERMATH);
                died(rank, status, process, what)
            }
            None => {
                let text = format!("{what}: the thread of rank {rank} has panicked");
                Error::new(Status::PeerLost, text).by(rank)
            }
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        for process in self.members.values_mut().filter_map(|m| m.process.as_mut()) {
            // It may have ended already, which is what we want.
            let _ = process.child.kill();
        }
        for process in self.members.values_mut().filter_map(|m| m.process.as_mut()) {
            let _ = process.child.wait();
        }
    }
}

impl Process {
    fn wait(&mut self, until: Instant) -> Option<ExitStatus> {
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

fn died(rank: Rank, status: Option<ExitStatus>, process: &Process, what: &str) -> Error {
    let how = match status.map(|s| (s.signal(), s.code())) {
        Some((Some(signal), _)) => format!("was killed by signal {signal}"),
        Some((None, Some(code))) => format!("ended with status {code}"),
        Some((None, None)) | None => "closed its output".into(),
    };
    let kept = process
        .stderr
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let said = match String::from_utf8_lossy(&kept).trim() {
        "" => "it wrote nothing to standard error".to_string(),
        text => format!("its standard error: {text}"),
    };
    let text = format!("{what}: rank {rank} {how}; {said}");
    Error::new(Status::PeerLost, text).by(rank)
}

fn spawn_process(rank: Rank, said: Sender<(Rank, Event)>) -> Result<Member> {
    let failed = |e: std::io::Error| Error::os(format_args!("cannot start rank {rank}"), &e);
    let mut child = Command::new(std::env::current_exe().map_err(failed)?)
        .args(["rank", "--parent", &std::process::id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let stderr = Arc::default();
    let process = Some(Process {
        child,
        stderr: Arc::clone(&stderr),
    });
    let (orders, to_write) = channel::<Order>();
    let (Some(mut stdin), Some(stdout), Some(mut errors)) = pipes else {
        return Err(Error::internal("a process was started without pipes"));
    };
    named(rank, "orders", move || {
        for order in to_write {
            let Ok(mut line) = serde_json::to_vec(&order) else {
                return;
            };
            line.push(b'\n');
            if stdin.write_all(&line).and_then(|()| stdin.flush()).is_err() {
                return;
            }
        }
    })?;
    named(rank, "answers", move || {
        for line in BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok)
        {
            let Ok(answer) = serde_json::from_str(&line) else {
                break;
            };
            if said.send((rank, Event::Said(answer))).is_err() {
                return;
            }
        }
        // Nobody listens any more if this fails.
        let _ = said.send((rank, Event::Gone));
    })?;
    named(rank, "errors", move || {
        let mut chunk = [0; 1024];
        while let Ok(n @ 1..) = errors.read(&mut chunk) {
            let mut kept = stderr.lock().unwrap_or_else(PoisonError::into_inner);
            kept.extend_from_slice(&chunk[..n]);
            let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
            kept.drain(..excess);
        }
    })?;
    Ok(Member { orders, process })
}

fn spawn_thread(rank: Rank, said: Sender<(Rank, Event)>) -> Result<Member> {
    /// Says that the thread has ended, however it does.
    struct Farewell(Rank, Sender<(Rank, Event)>);
    impl Drop for Farewell {
        fn drop(&mut self) {
            // Nobody listens any more if this fails.
            let _ = self.1.send((self.0, Event::Gone));
        }
    }
    let (orders, to_do) = channel();
    named(rank, "worker", move || {
        let farewell = Farewell(rank, said.clone());
        worker::serve(
            || to_do.recv().ok(),
            |answer| {
                let gone = |_| Error::new(Status::Aborted, "the command has gone");
                said.send((rank, Event::Said(answer))).map_err(gone)
            },
        );
        drop(farewell);
    })?;
    Ok(Member {
        orders,
        process: None,
    })
}

fn named(rank: Rank, what: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(format!("{what} {rank}"))
        .spawn(body)
        .map(drop)
        .map_err(|e| Error::os(format_args!("cannot start a thread for rank {rank}"), &e))
}
