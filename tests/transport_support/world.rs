//! Several ranks with their memory, and a small executor for their programs.

use super::*;
use std::time::{Duration, Instant};
use weightsync::device::fence::Fence;
use weightsync::device::{Device, Task, Work};
use weightsync::transport::Transport;

/// A piece of a tensor on its way from one view to another.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub from: View,
    pub to: View,
    pub cut: IndexBox,
    pub wire: Dtype,
    pub step: u32,
    /// Pieces of one pair and step with the same number are one message.
    pub group: u64,
}

/// Programs of all ranks, and what they must do.
#[derive(Clone, Debug)]
pub struct World {
    pub ranks: u32,
    pub steps: u32,
    pub programs: Vec<Arc<Program>>,
    /// Bytes of buffer 0 (source) and 1 (destination) of each rank.
    pub bytes: Vec<[u64; 2]>,
    pub transfers: Vec<Transfer>,
    is_aligned: bool,
}

/// The memory of one rank: source and destination buffer.
#[derive(Debug)]
pub struct RankMemory {
    pub source: Memory,
    pub target: Memory,
}

impl World {
    /// Tensors cut one way over the ranks as sources, and another way as
    /// destinations, in views of any order; the same for the same seed.
    pub fn random(seed: u64, ranks: u32, steps: u32) -> World {
        World::made(seed, ranks, steps, false)
    }

    /// The same with every value at a multiple of its size, as GPUs want it.
    pub fn random_aligned(seed: u64, ranks: u32, steps: u32) -> World {
        World::made(seed, ranks, steps, true)
    }

    fn made(seed: u64, ranks: u32, steps: u32, is_aligned: bool) -> World {
        let mut random = Random(seed);
        let mut world = World {
            is_aligned,
            ranks,
            steps,
            programs: vec![],
            bytes: vec![[0; 2]; ranks as usize],
            transfers: vec![],
        };
        let count = random.range(2, 6);
        let mut tensors = vec![];
        let mut held: Vec<(u32, View, bool)> = vec![];
        for t in 0..count as u32 {
            let dims = random.range(1, 3) as usize;
            let shape: Vec<u64> = (0..dims).map(|_| random.range(1, 40)).collect();
            let (a, b) = random_dtypes(&mut random);
            tensors.push(Tensor::new(format!("t{t}"), &shape, b).unwrap());
            let from = world.place(&mut random, &shape, a, 0);
            let to = world.place(&mut random, &shape, b, 1);
            for from in &from {
                for to in &to {
                    let cut = from.bounds.intersect(&to.bounds);
                    if !cut.is_empty() {
                        world.transfers.push(Transfer {
                            from: from.clone(),
                            to: to.clone(),
                            cut,
                            wire: Dtype::wire(a, b),
                            step: random.below(u64::from(steps)) as u32,
                            group: random.below(2),
                        });
                    }
                }
            }
            held.extend(from.into_iter().map(|v| (t, v, true)));
            held.extend(to.into_iter().map(|v| (t, v, false)));
        }
        world.finish(&tensors.into(), &held);
        world
    }

    /// One transfer per step from rank 0 to rank 1: `bytes` in rows of `row`
    /// bytes of bf16, `gap` bytes apart at the source.
    pub fn stream(bytes: u64, row: u64, gap: u64, steps: u32) -> World {
        let rows = bytes / row;
        let shape = [rows, row / 2];
        let whole = IndexBox::whole(&shape);
        let view = |rank, slot, stride: u64| View {
            rank,
            slot,
            offset: 0,
            dtype: Dtype::BF16,
            bounds: whole.clone(),
            strides: vec![stride as i64, 2],
        };
        let (from, to) = (view(0, 0, row + gap), view(1, 1, row));
        let transfers = (0..u64::from(steps)).map(|s| {
            let of = |s| s * rows / u64::from(steps);
            Transfer {
                from: from.clone(),
                to: to.clone(),
                cut: bounds(&[(of(s), of(s + 1)), (0, row / 2)]),
                wire: Dtype::BF16,
                step: s as u32,
                group: 0,
            }
        });
        let mut world = World {
            is_aligned: true,
            ranks: 2,
            steps,
            programs: vec![],
            bytes: vec![[rows * (row + gap), 0], [0, bytes]],
            transfers: transfers.filter(|t| !t.cut.is_empty()).collect(),
        };
        let tensor = Tensor::new("t", &shape, Dtype::BF16).unwrap();
        world.finish(&vec![tensor].into(), &[(0, from, true), (0, to, false)]);
        world
    }

    /// Cuts a tensor along a random axis and puts the parts on random ranks.
    fn place(&mut self, random: &mut Random, shape: &[u64], dtype: Dtype, slot: u32) -> Vec<View> {
        let axis = random.below(shape.len() as u64) as usize;
        let parts = random.range(1, u64::from(self.ranks));
        let first = random.below(u64::from(self.ranks));
        let mut views = vec![];
        for i in 0..parts {
            let mut cut = IndexBox::whole(shape);
            let n = shape[axis];
            cut.0[axis] = Span::new(i * n / parts, (i + 1) * n / parts);
            if cut.is_empty() {
                continue;
            }
            let rank = ((first + i) % u64::from(self.ranks)) as u32;
            let (mut view, bytes) = random_view(random, rank, slot, &cut, dtype, self.is_aligned);
            let used = &mut self.bytes[rank as usize][slot as usize];
            view.offset += *used;
            *used += bytes;
            if self.is_aligned {
                *used = used.next_multiple_of(16);
            }
            views.push(view);
        }
        views
    }

    /// Derives the programs from the transfers.
    fn finish(&mut self, tensors: &Arc<[Tensor]>, held: &[(u32, View, bool)]) {
        let mut builders: Vec<Builder> = (0..self.ranks)
            .map(|r| {
                let mut b = Builder::new(r, tensors);
                b.buffer(Side::Source);
                b.buffer(Side::Destination);
                b
            })
            .collect();
        for (tensor, view, is_source) in held {
            let dtype = tensors[*tensor as usize].dtype;
            let side = if *is_source {
                Side::Source
            } else {
                Side::Destination
            };
            builders[view.rank as usize].digest(side, *tensor, view, &view.bounds, dtype);
        }
        let mut rest = self.transfers.clone();
        while !rest.is_empty() {
            let key = |t: &Transfer| (t.from.rank, t.to.rank, t.step, t.group, t.wire);
            let first = key(&rest[0]);
            let (group, others): (Vec<_>, Vec<_>) = rest.into_iter().partition(|t| key(t) == first);
            rest = others;
            let (from, to, step, _, wire) = first;
            if from == to {
                for t in &group {
                    builders[from as usize].local(step, &t.from, &t.to, &t.cut);
                }
                continue;
            }
            let parts: Vec<_> = group.iter().map(|t| (&t.from, t.cut.clone())).collect();
            builders[from as usize].message(step, to, Direction::Send, &parts, wire);
            let parts: Vec<_> = group.iter().map(|t| (&t.to, t.cut.clone())).collect();
            builders[to as usize].message(step, from, Direction::Receive, &parts, wire);
        }
        self.programs = builders
            .into_iter()
            .map(|b| Arc::new(b.build(self.steps)))
            .collect();
    }

    /// Memory of one rank: random source, poisoned destination.
    pub fn memory(&self, rank: u32, version: u64) -> RankMemory {
        let [source, target] = self.bytes[rank as usize];
        let mut memory = RankMemory {
            source: Memory::new(source as usize),
            target: Memory::new(target as usize),
        };
        memory.refill(rank, version);
        memory
    }

    pub fn bind(
        &self,
        rank: u32,
        memory: &mut RankMemory,
        staging: MemoryRange,
        abort: &Arc<AbortCell>,
    ) -> Arc<Binding> {
        let ranges = vec![memory.source.range(), memory.target.range()];
        bind(&self.programs[rank as usize], ranges, staging, abort).unwrap()
    }

    /// What the destination of `rank` must hold after `version`.
    pub fn expected(&self, rank: u32, version: u64) -> Vec<u8> {
        let mut all = vec![0x5a; self.bytes[rank as usize][1] as usize];
        let mut sources: Vec<Option<Memory>> = (0..self.ranks).map(|_| None).collect();
        for t in self.transfers.iter().filter(|t| t.to.rank == rank) {
            let source = sources[t.from.rank as usize]
                .get_or_insert_with(|| self.memory(t.from.rank, version).source);
            for i in indices(&t.cut) {
                let at = t.from.at(&i) as usize;
                let bytes = &source.bytes()[at..at + t.from.dtype.bytes() as usize];
                let bytes = cast_one(t.from.dtype, t.to.dtype, bytes);
                let at = t.to.at(&i) as usize;
                all[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        all
    }
}

impl RankMemory {
    pub fn refill(&mut self, rank: u32, version: u64) {
        Random(version * 1000 + u64::from(rank) + 1).fill(self.source.bytes_mut());
        self.target.bytes_mut().fill(0x5a);
    }
}

/// Enqueues a whole request: packs, steps, local copies, unpacks. Returns the
/// fences of everything that must be over.
pub fn enqueue_all(
    transport: &dyn Transport,
    device: &dyn Device,
    binding: &Arc<Binding>,
    sequence: u64,
) -> Result<Vec<Fence>> {
    let steps = binding.program.steps.len() as u32;
    let work = |task| Work {
        binding: binding.clone(),
        task,
        sequence,
    };
    let mut fences: Vec<Fence> = vec![];
    let mut moved: Vec<Fence> = vec![];
    for step in 0..steps {
        let mut after = Fence::default();
        if !transport.gathers() {
            // Two halves of staging: step s reuses what s-2 had. The queue is
            // in order, so the pack also comes after that unpack.
            if step >= 2 {
                let there = &moved[step as usize - 2];
                fences.push(device.enqueue(work(Task::Unpack { step: step - 2 }), there)?);
                after = there.clone();
            }
            after = device.enqueue(work(Task::Pack { step }), &after)?;
        }
        moved.push(transport.enqueue(binding, step, sequence, &after)?);
        fences.push(device.enqueue(work(Task::Local { step }), &Fence::default())?);
    }
    if !transport.gathers() {
        for step in steps.saturating_sub(2)..steps {
            let there = &moved[step as usize];
            fences.push(device.enqueue(work(Task::Unpack { step }), there)?);
        }
    }
    fences.extend(moved);
    Ok(fences)
}

/// Runs `versions` requests of a world, one thread per rank, and compares
/// every byte after each.
pub fn run_world(
    world: &World,
    transports: &[Arc<dyn Transport>],
    devices: &[Arc<dyn Device>],
    versions: u64,
) {
    let barrier = std::sync::Barrier::new(world.ranks as usize);
    std::thread::scope(|scope| {
        for (transport, device) in transports.iter().zip(devices) {
            let barrier = &barrier;
            scope.spawn(move || {
                run_rank(world, &**transport, &**device, versions, || {
                    barrier.wait();
                })
            });
        }
    });
}

/// One rank's part of [`run_world`]; `meet` waits for all ranks.
pub fn run_rank(
    world: &World,
    transport: &dyn Transport,
    device: &dyn Device,
    versions: u64,
    meet: impl Fn(),
) {
    let rank = transport.rank().0;
    let mut memory = world.memory(rank, 0);
    let program = &world.programs[rank as usize];
    let staging = match transport.gathers() {
        true => MemoryRange::EMPTY,
        false => device.allocate(program.staging_bytes).unwrap(),
    };
    let binding = world.bind(rank, &mut memory, staging, transport.abort_cell());
    transport.connect(&binding, Instant::now() + LONG).unwrap();
    for version in 1..=versions {
        memory.refill(rank, version);
        meet();
        let fences = enqueue_all(transport, device, &binding, version).unwrap();
        assert!(wait_all(&fences, LONG), "rank {rank} waits for ever");
        assert_eq!(transport.abort_cell().reason(), None);
        let want = world.expected(rank, version);
        assert!(memory.target.bytes() == want, "rank {rank} got other bytes");
        let receives = program.bytes_received > 0 || !program.locals.is_empty();
        assert_eq!(binding.has_written(version), receives);
        meet();
    }
    let done = transport.progress();
    assert_eq!(done.steps_done, versions * u64::from(world.steps));
}

/// Long enough for anything that is not broken.
pub const LONG: Duration = Duration::from_secs(20);

/// Waits for all; true if all were reached in time.
pub fn wait_all(fences: &[Fence], timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    fences
        .iter()
        .all(|f| f.wait(end.saturating_duration_since(Instant::now())))
}
