//! Ranks as processes of one host: rings in shared memory.
//!
//! ```text
//!   rank 0                                        rank 1
//!   progress ── gather ──► ring 0→1 ── scatter ─► progress
//!      ▲                   (memfd)                   │
//!      └───────── bell of 0 ◄── "slot free" ─────────┘
//!   door ═══════════ Unix socket, stays open ═══════ door
//! ```
//!
//! Bytes are copied twice: the sender gathers pieces straight into a slot of
//! the pair's ring, the receiver scatters them from it. Rings are memfds: their
//! pages are allocated when they are made, so that too little memory is an
//! error and never SIGBUS, and they vanish with the last process that maps
//! them. Sockets are abstract: nothing is left in any file system, whatever
//! kills a process. A socket that closes is a peer that died; a child that was
//! forked without exec keeps its parent's sockets open and hides that.
//!
//! A rank makes the rings that it sends on and connects to the peers that
//! receive from it; who it receives from connects to it. Both sides must run
//! under the same user, and a sender must know the receiver's 128-bit token,
//! which travels with the address.

mod bell;
mod door;
mod progress;
mod ring;
mod stream;
mod sys;
mod wire;

use super::queue::{Faults, StepQueue, check_step, lock};
use super::waits::Waits;
use super::{Fault, Progress, Transport};
use crate::device::Binding;
use crate::device::fence::{AbortCell, Fence, Watch};
use crate::error::{Error, Result, Status};
use crate::limits::RANK_COUNT_MAX;
use crate::plan::program::{Direction, Program};
use crate::rank::Rank;
use crate::transport::host::boot_id;
use bell::{Bell, Fate};
use ring::{Ring, Shape};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wire::{Address, Hello, REPLY_BYTES, Reply};

/// The smallest slot that a ring gets while the budget allows it: a later plan
/// may send more than the one the ring was made for.
const SLOT_BYTES_WANTED: u64 = 256 << 10;

/// In place of a rank.
const NOBODY: u32 = u32::MAX;

/// How often a wait for a peer looks at the abort word.
const LOOK: Duration = Duration::from_millis(20);

/// How much memory the rings of one rank may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmOptions {
    /// Bytes of all rings that this rank makes, which are those it sends on.
    pub ring_bytes_max: u64,
    /// Slots of a ring, 2 to 64.
    pub slot_count: u32,
    /// Bytes of a slot; fewer where the budget or the messages are small.
    pub slot_bytes_max: u64,
}

impl Default for ShmOptions {
    fn default() -> ShmOptions {
        ShmOptions {
            ring_bytes_max: 128 << 20,
            slot_count: 8,
            slot_bytes_max: 1 << 20,
        }
    }
}

/// A ring to or from a peer, and the peer's bell.
#[derive(Debug)]
struct Link {
    rank: Rank,
    ring: Ring,
    bell: Bell,
    /// The peer's end of the socket is closed.
    is_gone: AtomicBool,
}

impl Link {
    fn new(rank: Rank, ring: Ring, bell: Bell) -> Link {
        Link {
            rank,
            ring,
            bell,
            is_gone: AtomicBool::new(false),
        }
    }

    fn fate(&self) -> Fate {
        match self.bell.fate() {
            Fate::Running if self.is_gone.load(Ordering::Acquire) => {
                Fate::Aborted(self.lost("died"))
            }
            fate => fate,
        }
    }

    fn lost(&self, how: &str) -> Error {
        let (done, enqueued) = self.bell.steps();
        lost(self.rank, how, done, enqueued)
    }
}

fn lost(rank: Rank, how: &str, done: u64, enqueued: u64) -> Error {
    Error::new(
        Status::PeerLost,
        format!("rank {rank} {how} after {done} of the {enqueued} steps it was given"),
    )
    .by(rank)
}

/// What the threads of one rank share.
#[derive(Debug)]
struct Shared {
    rank: Rank,
    options: ShmOptions,
    address: Address,
    abort: Arc<AbortCell>,
    queue: StepQueue,
    faults: Faults,
    bell: Bell,
    bell_fd: OwnedFd,
    /// Where peers listen.
    addresses: Mutex<BTreeMap<Rank, Address>>,
    outgoing: Mutex<BTreeMap<Rank, Arc<Link>>>,
    incoming: Mutex<BTreeMap<Rank, Arc<Link>>>,
    /// Connections that the door shall watch from now on.
    new_links: Mutex<Vec<(UnixStream, Arc<Link>)>>,
    doorbell: File,
    is_closing: AtomicBool,
    is_door_closing: AtomicBool,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    /// The peer that the running step waits for, or `NOBODY`.
    waits_for: AtomicU32,
    /// Ranks that we know of, this one included.
    ranks: AtomicUsize,
    processors: usize,
}

impl Watch for Shared {
    fn moved(&self) {
        self.bell.ring();
    }
}

impl Shared {
    fn lost(&self) -> Error {
        lost(self.rank, "left", self.queue.done(), self.queue.enqueued())
    }

    /// True if there are more ranks than processors.
    fn is_crowded(&self) -> bool {
        self.ranks.load(Ordering::Relaxed) > self.processors
    }

    /// Wakes the door.
    fn knock(&self) {
        // Fails only if the count is at its maximum, and then it is awake.
        let _ = (&self.doorbell).write_all(&1u64.to_ne_bytes());
    }
}

/// The data plane of one process on a host.
#[derive(Debug)]
pub struct ShmTransport {
    shared: Arc<Shared>,
    /// Held while rings are made, which is also when the budget is counted.
    connecting: Mutex<u64>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl ShmTransport {
    /// A transport that listens and is not connected to anybody, with the
    /// default options.
    pub fn new(rank: Rank) -> Result<Arc<ShmTransport>> {
        ShmTransport::with(rank, ShmOptions::default())
    }

    /// The same, with options.
    pub fn with(rank: Rank, options: ShmOptions) -> Result<Arc<ShmTransport>> {
        if rank.0 >= RANK_COUNT_MAX {
            return Err(Error::limit(format!(
                "rank {rank}; at most {RANK_COUNT_MAX} ranks are allowed"
            )));
        }
        let address = Address {
            rank,
            host: host_id(),
            name: sys::random()?,
            token: sys::random()?,
        };
        let listener = listen(&address)?;
        let (bell, bell_fd) = Bell::create()?;
        let shared = Arc::new(Shared {
            rank,
            options,
            address,
            abort: Arc::default(),
            queue: StepQueue::new(),
            faults: Faults::default(),
            bell,
            bell_fd,
            addresses: Mutex::default(),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            new_links: Mutex::default(),
            doorbell: sys::eventfd()?,
            is_closing: AtomicBool::new(false),
            is_door_closing: AtomicBool::new(false),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
            waits_for: AtomicU32::new(NOBODY),
            ranks: AtomicUsize::new(1),
            processors: std::thread::available_parallelism().map_or(1, |n| n.get()),
        });
        let transport = ShmTransport {
            shared: shared.clone(),
            connecting: Mutex::new(0),
            threads: Mutex::default(),
        };
        // From here on dropping the transport ends what was started.
        let runner = progress::Runner::new(shared.clone());
        transport.spawn(format!("wsync-shm-{rank}"), move || runner.run())?;
        let door = door::Door::new(shared, listener);
        transport.spawn(format!("wsync-door-{rank}"), move || door.run())?;
        Ok(Arc::new(transport))
    }

    fn spawn(&self, name: String, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn(body)
            .map_err(|e| Error::os("starting a shm thread", &e))?;
        lock(&self.threads).push(thread);
        Ok(())
    }

    /// Where this rank listens: 64 bytes for the peers' [`set_peers`]. They
    /// contain the token; whoever has them may send to this rank.
    ///
    /// [`set_peers`]: ShmTransport::set_peers
    pub fn address(&self) -> Vec<u8> {
        self.shared.address.encode()
    }

    /// Tells where peers listen. Adds to what was told before; refuses
    /// addresses of other ranks and other hosts.
    pub fn set_peers(&self, peers: Vec<(Rank, Vec<u8>)>) -> Result<()> {
        let mut known = BTreeMap::new();
        for (rank, bytes) in peers {
            let address = Address::decode(&bytes).map_err(|e| e.by(rank))?;
            if address.rank != rank {
                return Err(Error::invalid(format!(
                    "the address given for rank {rank} is that of rank {}",
                    address.rank
                )));
            }
            if address.host != self.shared.address.host {
                return Err(Error::invalid(format!(
                    "rank {rank} is on another host; shm reaches one host only"
                ))
                .by(rank));
            }
            known.insert(rank, address);
        }
        let mut addresses = lock(&self.shared.addresses);
        addresses.append(&mut known);
        let others = addresses.keys().filter(|r| **r != self.shared.rank).count();
        self.shared.ranks.store(1 + others, Ordering::Relaxed);
        Ok(())
    }

    /// How many bytes for rings stay for the peers of plans to come: half of
    /// what there is, if this one connects to `wanted` and leaves some out.
    fn kept_for_later(&self, wanted: usize, used: u64) -> u64 {
        let peers = self.shared.ranks.load(Ordering::Relaxed) - 1;
        match peers > lock(&self.shared.outgoing).len() + wanted {
            true => self.shared.options.ring_bytes_max.saturating_sub(used) / 2,
            false => 0,
        }
    }

    /// Has this rank misbehave at a step, counted from 0 over all steps that
    /// it begins on this transport. For tests.
    pub fn inject(&self, fault: Fault) {
        self.shared.faults.add(fault);
    }

    /// Bytes of the rings made so far.
    pub fn ring_bytes(&self) -> u64 {
        *lock(&self.connecting)
    }

    /// Makes a ring, connects to `peer` and hands the ring over.
    fn link(&self, peer: Rank, shape: Shape, deadline: Instant) -> Result<()> {
        let shared = &self.shared;
        let Some(address) = lock(&shared.addresses).get(&peer).cloned() else {
            return Err(Error::new(
                Status::NotFound,
                format!("the address of rank {peer} is not known"),
            )
            .by(peer));
        };
        let stream = self.reach(&address, deadline)?;
        if !sys::is_same_user(&stream)? {
            return Err(Error::new(
                Status::Refused,
                format!("rank {peer} runs under another user"),
            )
            .by(peer));
        }
        let (ring, ring_fd) = Ring::create(shape)?;
        let hello = Hello {
            from: shared.rank,
            to: peer,
            shape,
            token: address.token,
        };
        let fds = [ring_fd.as_raw_fd(), shared.bell_fd.as_raw_fd()];
        sys::send(&stream, &hello.encode(), &fds).map_err(|_| gone(peer))?;
        let bell = self.await_reply(&stream, peer, deadline)?;
        let link = Arc::new(Link::new(peer, ring, bell));
        lock(&shared.outgoing).insert(peer, link.clone());
        lock(&shared.new_links).push((stream, link));
        shared.knock();
        Ok(())
    }

    /// Connects, waiting while the peer's queue is full.
    fn reach(&self, address: &Address, deadline: Instant) -> Result<UnixStream> {
        let name = address.socket_name();
        loop {
            match sys::connect(&name) {
                Ok(stream) => return Ok(stream),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.check_patience(address.rank, deadline)?;
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {
                    return Err(gone(address.rank));
                }
                Err(e) => return Err(Error::os("connecting to a peer", &e).by(address.rank)),
            }
        }
    }

    /// Waits for the peer's answer, which brings its bell.
    fn await_reply(&self, stream: &UnixStream, peer: Rank, deadline: Instant) -> Result<Bell> {
        let mut said = [0; REPLY_BYTES];
        let mut got = 0;
        let mut fds = Vec::new();
        while got < REPLY_BYTES {
            let mut news = [libc::pollfd {
                fd: stream.as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            }];
            sys::poll(&mut news, Some(LOOK));
            match sys::receive(stream, &mut said[got..], &mut fds) {
                Ok(0) => return Err(gone(peer)),
                Ok(n) => got += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    self.check_patience(peer, deadline)?;
                }
                Err(_) => return Err(gone(peer)),
            }
        }
        let reply = Reply::decode(&said)?;
        match (fds.first(), reply.status) {
            (Some(fd), 0) if reply.rank == peer => Bell::open(fd),
            (_, code) => Err(Error::new(
                Status::from_code(code)
                    .filter(|s| s.code() < 0)
                    .unwrap_or(Status::Protocol),
                format!("rank {peer} refused the connection with status {code}"),
            )
            .by(peer)),
        }
    }

    fn check_patience(&self, peer: Rank, deadline: Instant) -> Result<()> {
        if let Some(reason) = self.shared.abort.reason() {
            return Err(reason);
        }
        if Instant::now() < deadline {
            return Ok(());
        }
        Err(Error::new(
            Status::MeetTimeout,
            format!("rank {peer} did not answer in time"),
        )
        .by(peer))
    }
}

fn gone(peer: Rank) -> Error {
    Error::new(
        Status::PeerLost,
        format!("rank {peer} does not listen any more"),
    )
    .by(peer)
}

/// Listens on an abstract socket: the name goes with the process.
fn listen(address: &Address) -> Result<UnixListener> {
    let doing = "listening for peers";
    let name = SocketAddr::from_abstract_name(address.socket_name());
    let name = name.map_err(|e| Error::os(doing, &e))?;
    let listener = UnixListener::bind_addr(&name).map_err(|e| Error::os(doing, &e))?;
    listener
        .set_nonblocking(true)
        .map_err(|e| Error::os(doing, &e))?;
    Ok(listener)
}

/// The boot id: the same for all processes of a host. Zeroes where unknown.
fn host_id() -> [u8; 16] {
    let digits: Vec<u8> = boot_id()
        .chars()
        .filter_map(|c| c.to_digit(16))
        .map(|d| d as u8)
        .collect();
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    id
}

/// By peer that we send to, the most bytes that go to it in one step.
fn largest_streams(program: &Program) -> BTreeMap<Rank, u64> {
    let mut largest = BTreeMap::new();
    for step in &program.steps {
        let mut here: BTreeMap<Rank, u64> = BTreeMap::new();
        let messages = program.messages_of(step).iter();
        for m in messages.filter(|m| m.direction == Direction::Send) {
            *here.entry(m.peer).or_default() += m.bytes.next_multiple_of(16);
        }
        for (peer, bytes) in here {
            let most = largest.entry(peer).or_default();
            *most = bytes.max(*most);
        }
    }
    largest
}

impl Transport for ShmTransport {
    fn name(&self) -> &'static str {
        "shm"
    }

    fn rank(&self) -> Rank {
        self.shared.rank
    }

    fn gathers(&self) -> bool {
        true
    }

    fn connect(&self, binding: &Binding, deadline: Instant) -> Result<()> {
        let mut used = lock(&self.connecting);
        let mut wanted = largest_streams(&binding.program);
        wanted.retain(|peer, _| !lock(&self.shared.outgoing).contains_key(peer));
        let options = &self.shared.options;
        let mut left = wanted.len() as u64;
        let kept = self.kept_for_later(wanted.len(), *used);
        for (peer, bytes) in wanted {
            let all = options.ring_bytes_max.saturating_sub(*used) / left;
            let share = options.ring_bytes_max.saturating_sub(*used + kept) / left;
            let slot_bytes = bytes
                .max(SLOT_BYTES_WANTED)
                .min(options.slot_bytes_max)
                .next_multiple_of(4096);
            let fit = |share| Shape::fit(share, options.slot_count, slot_bytes);
            let Some(shape) = fit(share).or_else(|| fit(all)) else {
                return Err(Error::new(
                    Status::StagingTooSmall,
                    format!(
                        "rank {} sends to {left} more ranks; {} bytes for rings, {} of them \
                         taken, leave {all} for each",
                        self.shared.rank, options.ring_bytes_max, *used
                    ),
                ));
            };
            self.link(peer, shape, deadline)?;
            *used += shape.bytes();
            left -= 1;
        }
        Ok(())
    }

    fn enqueue(
        &self,
        binding: &Arc<Binding>,
        step: u32,
        sequence: u64,
        after: &Fence,
    ) -> Result<Fence> {
        check_step(binding, step, true)?;
        let fence = self.shared.queue.push(binding, step, sequence, after);
        let watch: Arc<dyn Watch> = self.shared.clone();
        after.watch(&watch);
        self.shared.bell.ring();
        Ok(fence)
    }

    fn abort_cell(&self) -> &Arc<AbortCell> {
        &self.shared.abort
    }

    fn wake(&self) {
        self.shared.bell.ring();
    }

    fn waits_for(&self) -> Waits {
        let peer = self.shared.waits_for.load(Ordering::Relaxed);
        Waits::from((peer != NOBODY).then_some(Rank(peer)))
    }

    fn progress(&self) -> Progress {
        Progress {
            steps_enqueued: self.shared.queue.enqueued(),
            steps_done: self.shared.queue.done(),
            bytes_sent: self.shared.bytes_sent.load(Ordering::Relaxed),
            bytes_received: self.shared.bytes_received.load(Ordering::Relaxed),
        }
    }
}

impl Drop for ShmTransport {
    /// Says goodbye, then closes the sockets. Steps that are not finished are
    /// aborted; peers that still wait for us learn that we are lost.
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.bell.ring();
        let mut threads = std::mem::take(&mut *lock(&self.threads)).into_iter();
        if let Some(progress) = threads.next() {
            // The thread catches panics; its end is all we wait for.
            let _ = progress.join();
        }
        self.shared.is_door_closing.store(true, Ordering::Release);
        self.shared.knock();
        for door in threads {
            // As above.
            let _ = door.join();
        }
        // Links that the door has not seen.
        lock(&self.shared.new_links).clear();
    }
}
