//! Ranks as processes: this test binary starts itself again, one process per
//! rank, talks to them over pipes, and kills them.

mod transport_support;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use transport_support::Random;
use transport_support::world::*;
use weightsync::device::host::HostDevice;
use weightsync::device::{Binding, Device, MemoryRange, fence::Fence};
use weightsync::transport::shm::{ShmOptions, ShmTransport};
use weightsync::transport::{Fault, FaultKind, Transport};
use weightsync::{Error, Rank, Status};

const CHILD: &str = "WSYNC_TEST_CHILD";

fn soon() -> Instant {
    Instant::now() + LONG
}

/// Transports of several ranks in this process, told of each other.
fn transports(ranks: u32, options: ShmOptions) -> Vec<Arc<ShmTransport>> {
    let all: Vec<_> = (0..ranks)
        .map(|r| ShmTransport::with(Rank(r), options).unwrap())
        .collect();
    let addresses: Vec<_> = all.iter().map(|t| (t.rank(), t.address())).collect();
    for t in &all {
        t.set_peers(addresses.clone()).unwrap();
    }
    all
}

fn host_devices(ranks: u32) -> Vec<Arc<dyn Device>> {
    (0..ranks)
        .map(|_| Arc::new(HostDevice::new().unwrap()) as Arc<dyn Device>)
        .collect()
}

fn run(world: &World, options: ShmOptions, versions: u64) {
    let transports: Vec<Arc<dyn Transport>> = transports(world.ranks, options)
        .into_iter()
        .map(|t| t as Arc<dyn Transport>)
        .collect();
    run_world(world, &transports, &host_devices(world.ranks), versions);
}

#[test]
fn random_worlds_arrive_through_rings_of_any_size() {
    for seed in 300..330 {
        let mut random = Random(seed);
        let ranks = random.range(2, 5) as u32;
        let world = World::random(seed, ranks, random.range(1, 5) as u32);
        let options = ShmOptions {
            slot_count: random.range(2, 9) as u32,
            slot_bytes_max: 4096 << random.below(6),
            ..ShmOptions::default()
        };
        run(&world, options, 3);
    }
}

#[test]
fn large_messages_go_round_the_ring() {
    let world = World::stream(24 << 20, 3 << 10, 64, 3);
    run(&world, ShmOptions::default(), 2);
    let small = ShmOptions {
        ring_bytes_max: 30_000,
        ..ShmOptions::default()
    };
    run(&world, small, 1);
}

#[test]
fn rings_stay_inside_their_budget() {
    let world = World::random(7, 5, 2);
    for budget in [100_000, 1 << 20, 1 << 30] {
        let options = ShmOptions {
            ring_bytes_max: budget,
            ..ShmOptions::default()
        };
        let all = transports(5, options);
        for (rank, t) in all.iter().enumerate() {
            let mut memory = world.memory(rank as u32, 1);
            let none = MemoryRange::EMPTY;
            let binding = world.bind(rank as u32, &mut memory, none, t.abort_cell());
            t.connect(&binding, soon()).unwrap();
            t.connect(&binding, soon()).unwrap();
            assert!(t.ring_bytes() <= budget);
        }
    }
    let world = World::stream(1 << 16, 1 << 10, 0, 1);
    let options = ShmOptions {
        ring_bytes_max: 10_000,
        ..ShmOptions::default()
    };
    let all = transports(2, options);
    let mut memory = world.memory(0, 1);
    let binding = world.bind(0, &mut memory, MemoryRange::EMPTY, all[0].abort_cell());
    let e = all[0].connect(&binding, soon()).unwrap_err();
    assert_eq!(e.status, Status::StagingTooSmall);
    assert!(e.message.contains("10000"), "{e}");
}

#[test]
fn later_plans_find_room_for_their_rings() {
    let budget = 1 << 20;
    let options = ShmOptions {
        ring_bytes_max: budget,
        ..ShmOptions::default()
    };
    let world = World::stream(24 << 20, 1 << 10, 0, 1);
    for (ranks, most) in [(2, budget), (3, budget / 2)] {
        let all = transports(ranks, options);
        let mut memory = world.memory(0, 1);
        let binding = world.bind(0, &mut memory, MemoryRange::EMPTY, all[0].abort_cell());
        all[0].connect(&binding, soon()).unwrap();
        let used = all[0].ring_bytes();
        assert!(
            used <= most && used > most / 2,
            "{used} of {budget}, {ranks} ranks"
        );
    }
}

/// Two ranks in this process, connected.
struct Pair {
    transports: Vec<Arc<ShmTransport>>,
    memory: Vec<RankMemory>,
    bindings: Vec<Arc<Binding>>,
    world: World,
}

impl Pair {
    fn new(world: World) -> Pair {
        let transports = transports(2, ShmOptions::default());
        let mut memory: Vec<_> = (0..2).map(|r| world.memory(r, 1)).collect();
        let bindings: Vec<_> = transports
            .iter()
            .zip(&mut memory)
            .map(|(t, m)| world.bind(t.rank().0, m, MemoryRange::EMPTY, t.abort_cell()))
            .collect();
        for (t, b) in transports.iter().zip(&bindings) {
            t.connect(b, soon()).unwrap();
        }
        Pair {
            transports,
            memory,
            bindings,
            world,
        }
    }

    fn enqueue(&self, rank: usize, sequence: u64) -> Vec<Fence> {
        (0..self.world.steps)
            .map(|step| {
                self.transports[rank]
                    .enqueue(&self.bindings[rank], step, sequence, &Fence::default())
                    .unwrap()
            })
            .collect()
    }

    fn reason(&self, rank: usize) -> Error {
        self.transports[rank].abort_cell().reason().unwrap()
    }
}

#[test]
fn a_receiver_may_come_before_its_sender_is_connected() {
    let world = World::stream(1 << 16, 1 << 10, 0, 2);
    let all = transports(2, ShmOptions::default());
    let mut memory: Vec<_> = (0..2).map(|r| world.memory(r, 1)).collect();
    let bind = |r: usize, m: &mut RankMemory| {
        world.bind(r as u32, m, MemoryRange::EMPTY, all[r].abort_cell())
    };
    let to = bind(1, &mut memory[1]);
    all[1].connect(&to, soon()).unwrap();
    let received = all[1].enqueue(&to, 0, 1, &Fence::default()).unwrap();
    assert!(!received.wait(Duration::from_millis(50)));
    let from = bind(0, &mut memory[0]);
    all[0].connect(&from, soon()).unwrap();
    let sent = all[0].enqueue(&from, 0, 1, &Fence::default()).unwrap();
    assert!(sent.wait(LONG) && received.wait(LONG));
}

#[test]
fn an_abort_reaches_every_fence_and_the_peer_learns_the_reason() {
    for delay in [0, 100, 1000, 5000] {
        let pair = Pair::new(World::stream(64 << 20, 1 << 20, 0, 8));
        let sent = pair.enqueue(0, 1);
        let received = pair.enqueue(1, 1);
        std::thread::sleep(Duration::from_micros(delay));
        let reason = Error::new(Status::ChecksumMismatch, "the true reason").by(Rank(7));
        pair.transports[0].abort_cell().set(reason.clone());
        pair.transports[0].wake();
        assert!(wait_all(&sent, LONG) && wait_all(&received, LONG));
        assert_eq!(pair.reason(1), reason);
        let now = pair.memory[1].target.bytes().to_vec();
        assert!(wait_all(&pair.enqueue(1, 2), LONG));
        assert!(pair.memory[1].target.bytes() == now);
    }
}

#[test]
fn a_rank_that_leaves_when_all_is_done_harms_nobody() {
    let mut pair = Pair::new(World::stream(1 << 20, 1 << 10, 0, 4));
    let (sent, received) = (pair.enqueue(0, 1), pair.enqueue(1, 1));
    assert!(wait_all(&sent, LONG));
    drop(pair.transports.remove(0));
    assert!(wait_all(&received, LONG));
    assert_eq!(pair.memory[1].target.bytes(), pair.world.expected(1, 1));
    assert_eq!(pair.transports[0].abort_cell().reason(), None);
    let again = pair.transports[0]
        .enqueue(&pair.bindings[1], 0, 2, &Fence::default())
        .unwrap();
    assert!(again.wait(LONG));
    let reason = pair.reason(0);
    assert_eq!(
        (reason.status, reason.rank),
        (Status::PeerLost, Some(Rank(0)))
    );
}

#[test]
fn a_rank_that_leaves_in_mid_transfer_is_named() {
    let mut pair = Pair::new(World::stream(64 << 20, 1 << 20, 0, 4));
    let received = pair.enqueue(1, 1);
    let sent = pair.transports[0]
        .enqueue(&pair.bindings[0], 0, 1, &Fence::default())
        .unwrap();
    assert!(sent.wait(LONG));
    let gate = Arc::new(weightsync::device::fence::Timeline::default());
    let never = Fence::new(&gate, 1);
    let late = pair.transports[0]
        .enqueue(&pair.bindings[0], 1, 1, &never)
        .unwrap();
    drop(pair.transports.remove(0));
    assert!(late.wait(LONG) && wait_all(&received, LONG));
    let reason = pair.reason(0);
    assert_eq!(
        (reason.status, reason.rank),
        (Status::PeerLost, Some(Rank(0)))
    );
}

#[test]
fn labels_that_differ_are_a_protocol_error_with_the_numbers() {
    let pair = Pair::new(World::stream(1 << 16, 1 << 10, 0, 2));
    let other = World::stream(1 << 15, 1 << 10, 0, 2);
    let mut memory = other.memory(1, 1);
    let abort = pair.transports[1].abort_cell();
    let binding = other.bind(1, &mut memory, MemoryRange::EMPTY, abort);
    let sent = pair.enqueue(0, 1);
    let received = pair.transports[1]
        .enqueue(&binding, 0, 1, &Fence::default())
        .unwrap();
    assert!(received.wait(LONG) && wait_all(&sent, LONG));
    let e = pair.reason(1);
    assert_eq!((e.status, e.rank), (Status::Protocol, Some(Rank(0))));
    for number in ["32768", "16384", "step 0"] {
        assert!(e.message.contains(number), "{e}");
    }
    assert!(memory.target.bytes().iter().all(|&b| b == 0x5a));
}

#[test]
fn who_is_not_invited_does_not_come_in() {
    let all = transports(2, ShmOptions::default());
    let address = all[1].address();
    let stranger = ShmTransport::new(Rank(0)).unwrap();
    let world = World::stream(1 << 16, 1 << 10, 0, 1);
    let mut memory = world.memory(0, 1);
    let binding = world.bind(0, &mut memory, MemoryRange::EMPTY, stranger.abort_cell());
    let e = stranger.connect(&binding, soon()).unwrap_err();
    assert_eq!((e.status, e.rank), (Status::NotFound, Some(Rank(1))));
    // The token is the last field.
    let mut guess = address.clone();
    guess[63] ^= 1;
    stranger.set_peers(vec![(Rank(1), guess)]).unwrap();
    let e = stranger.connect(&binding, soon()).unwrap_err();
    assert_eq!((e.status, e.rank), (Status::Protocol, Some(Rank(1))));
    // Another host, another rank, another length.
    let mut far = address.clone();
    far[20] ^= 1;
    assert!(stranger.set_peers(vec![(Rank(1), far)]).is_err());
    assert!(
        stranger
            .set_peers(vec![(Rank(2), address.clone())])
            .is_err()
    );
    assert!(
        stranger
            .set_peers(vec![(Rank(1), address[..63].to_vec())])
            .is_err()
    );
    // The true one still may.
    all[0].connect(&binding, soon()).unwrap();
    // Nobody listens any more.
    drop(all);
    stranger.set_peers(vec![(Rank(1), address)]).unwrap();
    let e = stranger.connect(&binding, soon()).unwrap_err();
    assert_eq!((e.status, e.rank), (Status::PeerLost, Some(Rank(1))));
}

#[test]
fn guests_that_say_nothing_or_nonsense_keep_nobody_out() {
    use std::os::linux::net::SocketAddrExt;
    let all = transports(2, ShmOptions::default());
    let name: String = all[1].address()[32..48]
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect();
    let name = std::os::unix::net::SocketAddr::from_abstract_name(format!("wsync-{name}")).unwrap();
    let connect = || std::os::unix::net::UnixStream::connect_addr(&name).unwrap();
    let silent: Vec<_> = (0..20).map(|_| connect()).collect();
    let mut loud = connect();
    loud.write_all(&[0x77; 200]).unwrap();
    let world = World::stream(1 << 16, 1 << 10, 0, 1);
    let mut memory = world.memory(0, 1);
    let binding = world.bind(0, &mut memory, MemoryRange::EMPTY, all[0].abort_cell());
    all[0].connect(&binding, soon()).unwrap();
    assert_eq!(all[1].abort_cell().reason(), None);
    drop(silent);
}

// ---- processes ------------------------------------------------------------

/// What a child does: rank, world and whether it dies on the way.
#[derive(Clone, Copy, Debug)]
struct Role {
    rank: u32,
    seed: u64,
    ranks: u32,
    steps: u32,
    versions: u64,
    /// The step before which the rank kills itself; -1 is never.
    dies_at: i64,
}

impl Role {
    fn encode(&self) -> String {
        let Role {
            rank,
            seed,
            ranks,
            steps,
            versions,
            dies_at,
        } = self;
        format!("{rank} {seed} {ranks} {steps} {versions} {dies_at}")
    }

    fn decode(text: &str) -> Role {
        let n: Vec<i64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
        Role {
            rank: n[0] as u32,
            seed: n[1] as u64,
            ranks: n[2] as u32,
            steps: n[3] as u32,
            versions: n[4] as u64,
            dies_at: n[5],
        }
    }

    /// Seed 0 is a long stream from rank 0 to rank 1.
    fn world(&self) -> World {
        match self.seed {
            0 => World::stream(64 << 20, 1 << 20, 0, self.steps),
            seed => World::random(seed, self.ranks, self.steps),
        }
    }
}

/// A rank in a process of its own.
struct Process {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    address: String,
}

impl Process {
    fn start(role: Role) -> Process {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "this_is_the_child",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD, role.encode())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let to = child.stdin.take().unwrap();
        let from = BufReader::new(child.stdout.take().unwrap());
        let mut process = Process {
            child,
            to,
            from,
            address: String::new(),
        };
        process.address = process.hear("address").unwrap();
        process
    }

    /// The rest of the next line that starts with `word`.
    fn hear(&mut self, word: &str) -> Option<String> {
        let mut line = String::new();
        while self.from.read_line(&mut line).ok()? > 0 {
            // The harness's own words may stand before ours.
            if let Some(i) = line.find(&format!("child:{word} ")) {
                let rest = &line[i + word.len() + 7..];
                return Some(rest.trim().to_string());
            }
            line.clear();
        }
        None
    }

    fn say(&mut self, line: &str) {
        // It may be dead already, and that may be the point.
        let _ = writeln!(self.to, "{line}");
    }
}

fn start_all(role: Role) -> Vec<Process> {
    let mut all: Vec<_> = (0..role.ranks)
        .map(|rank| Process::start(Role { rank, ..role }))
        .collect();
    let addresses: Vec<_> = all.iter().map(|p| p.address.clone()).collect();
    for process in &mut all {
        process.say(&addresses.join(" "));
    }
    for process in &mut all {
        process.hear("connected").unwrap();
    }
    for process in &mut all {
        process.say("go");
    }
    all
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

/// Not a test: the body of the processes that the tests start.
#[test]
fn this_is_the_child() {
    let Ok(role) = std::env::var(CHILD) else {
        return;
    };
    let role = Role::decode(&role);
    let world = role.world();
    let transport = ShmTransport::new(Rank(role.rank)).unwrap();
    println!("child:address {}", hex(&transport.address()));
    let mut lines = std::io::stdin().lines();
    let mut hear = || lines.next().unwrap().unwrap();
    let addresses = hear();
    let addresses = addresses.split(' ').enumerate();
    let peers = addresses.map(|(r, a)| (Rank(r as u32), unhex(a))).collect();
    transport.set_peers(peers).unwrap();
    if role.dies_at >= 0 {
        transport.inject(Fault {
            rank: Rank(role.rank),
            step: role.dies_at as u64,
            kind: FaultKind::Die,
        });
    }
    let device = HostDevice::new().unwrap();
    let mut memory = world.memory(role.rank, 1);
    let binding = world.bind(
        role.rank,
        &mut memory,
        MemoryRange::EMPTY,
        transport.abort_cell(),
    );
    transport.connect(&binding, soon()).unwrap();
    println!("child:connected .");
    hear();
    for version in 1..=role.versions {
        memory.refill(role.rank, version);
        let fences = enqueue_all(&*transport, &device, &binding, version).unwrap();
        assert!(wait_all(&fences, LONG), "rank {} waits for ever", role.rank);
        if let Some(e) = transport.abort_cell().reason() {
            println!("child:aborted {:?} {:?} {}", e.status, e.rank, e.message);
            hear();
            return;
        }
        assert!(memory.target.bytes() == world.expected(role.rank, version));
        println!("child:version {version}");
        // The next one only after all ranks have this one.
        hear();
    }
    println!("child:done .");
    hear();
}

#[test]
fn processes_exchange_random_worlds() {
    for seed in 1..4 {
        let ranks = 2 + seed as u32 % 3;
        let mut all = start_all(Role {
            rank: 0,
            seed,
            ranks,
            steps: 3,
            versions: 3,
            dies_at: -1,
        });
        for version in 1..=3 {
            for p in &mut all {
                assert_eq!(p.hear("version"), Some(version.to_string()));
            }
            for p in &mut all {
                p.say("next");
            }
        }
        for p in &mut all {
            assert_eq!(p.hear("done"), Some(".".into()));
        }
        for p in &mut all {
            p.say("bye");
            assert!(p.child.wait().unwrap().success());
        }
    }
}

/// Names of ours that are left in the system: sockets, files.
fn remains() -> BTreeSet<String> {
    let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
    let mut names: BTreeSet<String> = sockets
        .lines()
        .filter_map(|l| l.split("@wsync-").nth(1))
        .map(|n| format!("@wsync-{n}"))
        .collect();
    for dir in ["/dev/shm", "/tmp", "/run", "/var/tmp"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.contains("wsync-") {
                names.insert(format!("{dir}/{name}"));
            }
        }
    }
    names
}

/// Fails if anything is left of these processes.
fn check_remains(addresses: &[String]) {
    for address in addresses {
        let name = &address[64..96];
        let left: Vec<_> = remains().into_iter().filter(|n| n.contains(name)).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_process_that_dies_at_any_step_is_named_and_leaves_nothing() {
    const STEPS: u32 = 4;
    for dies_at in 0..i64::from(STEPS) {
        for victim in [0, 1] {
            let role = Role {
                rank: 0,
                seed: 0,
                ranks: 2,
                steps: STEPS,
                versions: 1,
                dies_at: -1,
            };
            let mut all: Vec<_> = (0..2)
                .map(|rank| {
                    let dies_at = if rank == victim { dies_at } else { -1 };
                    Process::start(Role {
                        rank,
                        dies_at,
                        ..role
                    })
                })
                .collect();
            let addresses: Vec<_> = all.iter().map(|p| p.address.clone()).collect();
            all.iter_mut().for_each(|p| p.say(&addresses.join(" ")));
            all.iter_mut().for_each(|p| {
                p.hear("connected").unwrap();
            });
            all.iter_mut().for_each(|p| p.say("go"));
            let survivor = &mut all[1 - victim as usize];
            let said = survivor.hear("aborted").unwrap();
            let want =
                format!("PeerLost Some(Rank({victim})) rank {victim} died after {dies_at} of");
            assert!(said.starts_with(&want), "{said}");
            survivor.say("bye");
            all.iter_mut().for_each(|p| {
                p.child.wait().unwrap();
            });
            check_remains(&addresses);
        }
    }
}

#[test]
fn killed_in_mid_transfer_nothing_is_left() {
    for delay_ms in [0, 1, 3, 7, 15] {
        let mut all = start_all(Role {
            rank: 0,
            seed: 0,
            ranks: 2,
            steps: 4,
            versions: 1000,
            dies_at: -1,
        });
        let addresses: Vec<_> = all.iter().map(|p| p.address.clone()).collect();
        std::thread::sleep(Duration::from_millis(delay_ms));
        for p in &mut all {
            p.child.kill().unwrap();
        }
        for p in &mut all {
            p.child.wait().unwrap();
        }
        check_remains(&addresses);
    }
}
