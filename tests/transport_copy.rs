//! Copies of random regions, against an element-by-element reference.

mod transport_support;

use std::sync::Arc;
use transport_support::*;
use weightsync::device::copy::{End, Halt, MessageCopy, MessageCursor, Stop, copy_local};
use weightsync::device::digest::{digest_destination, digest_source, mix};
use weightsync::device::fence::AbortCell;
use weightsync::device::{Binding, MemoryRange};
use weightsync::layout::dtype::Dtype;
use weightsync::layout::tensor::{IndexBox, Tensor};
use weightsync::plan::program::*;
use weightsync::{Error, Status};

fn random_box(random: &mut Random, is_large: bool) -> (Vec<u64>, IndexBox) {
    // Large ones cross batches, quanta, and the size that is written past the
    // cache.
    let dims = random.range(1, if is_large { 3 } else { 8 }) as usize;
    let most = match is_large {
        true => [600_000, 900, 90][dims - 1],
        false => [40, 20, 9, 6, 4, 3, 3, 2][dims - 1],
    };
    let shape: Vec<u64> = (0..dims).map(|_| random.range(1, most)).collect();
    let spans: Vec<(u64, u64)> = shape
        .iter()
        .map(|&n| {
            let lo = random.below(n);
            (lo, random.range(lo + 1, n))
        })
        .collect();
    (shape, bounds(&spans))
}

/// A sender's and a receiver's program of one message of `parts` items.
struct Case {
    source: Memory,
    target: Memory,
    views: Vec<(View, View)>,
    from: Arc<Binding>,
    to: Arc<Binding>,
    abort: Arc<AbortCell>,
}

impl Case {
    fn new(random: &mut Random) -> Case {
        Case::of_size(random, false)
    }

    fn of_size(random: &mut Random, is_large: bool) -> Case {
        let parts = random.range(1, 4);
        let (a, b) = random_dtypes(random);
        let wire = if random.below(8) == 0 && a.is_castable() {
            FLOATS[random.below(3) as usize]
        } else {
            Dtype::wire(a, b)
        };
        let mut views = vec![];
        let mut tensors = vec![];
        let (mut source_bytes, mut target_bytes) = (0, 0);
        for _ in 0..parts {
            let (shape, cut) = random_box(random, is_large);
            let (mut from, n) = random_view(random, 0, 0, &cut, a, false);
            from.offset += source_bytes;
            source_bytes += n;
            let (mut to, n) = random_view(random, 1, 0, &cut, b, false);
            to.offset += target_bytes;
            target_bytes += n;
            views.push((from, to));
            tensors.push(Tensor::new(format!("t{}", tensors.len()), &shape, b).unwrap());
        }
        let tensors: Arc<[Tensor]> = tensors.into();
        let mut sender = Builder::new(0, &tensors);
        let mut receiver = Builder::new(1, &tensors);
        sender.buffer(Side::Source);
        receiver.buffer(Side::Destination);
        let of = |pick: fn(&(View, View)) -> &View| -> Vec<(&View, IndexBox)> {
            views
                .iter()
                .map(|v| (pick(v), pick(v).bounds.clone()))
                .collect()
        };
        sender.message(0, 1, Direction::Send, &of(|v| &v.0), wire);
        receiver.message(0, 0, Direction::Receive, &of(|v| &v.1), wire);
        for (i, (from, to)) in views.iter().enumerate() {
            sender.digest(Side::Source, i as u32, from, &from.bounds, b);
            receiver.digest(Side::Destination, i as u32, to, &to.bounds, b);
        }
        let mut source = Memory::new(source_bytes as usize);
        let mut target = Memory::new(target_bytes as usize);
        random.fill(source.bytes_mut());
        let abort: Arc<AbortCell> = Arc::default();
        let bind = |program: Program, memory: &mut Memory| {
            let none = MemoryRange::EMPTY;
            bind(&Arc::new(program), vec![memory.range()], none, &abort).unwrap()
        };
        Case {
            from: bind(sender.build(1), &mut source),
            to: bind(receiver.build(1), &mut target),
            source,
            target,
            views,
            abort,
        }
    }

    fn wire(&self) -> Dtype {
        self.from.program.pieces[0].wire
    }

    /// The message as it must look, gaps zeroed.
    fn expected_wire(&self) -> Vec<u8> {
        let mut all = vec![];
        for (from, _) in &self.views {
            all.resize(all.len().next_multiple_of(16), 0);
            for i in indices(&from.bounds) {
                let at = from.at(&i) as usize;
                let bytes = &self.source.bytes()[at..at + from.dtype.bytes() as usize];
                all.extend(cast_one(from.dtype, self.wire(), bytes));
            }
        }
        all
    }

    /// The target's memory as it must look: nothing but the regions changed.
    fn expected_target(&self) -> Vec<u8> {
        let mut all = vec![0x5a; self.target.bytes().len()];
        for (from, to) in &self.views {
            for i in indices(&from.bounds) {
                let at = from.at(&i) as usize;
                let bytes = &self.source.bytes()[at..at + from.dtype.bytes() as usize];
                let bytes = cast_one(from.dtype, self.wire(), bytes);
                let bytes = cast_one(self.wire(), to.dtype, &bytes);
                let at = to.at(&i) as usize;
                all[at..at + bytes.len()].copy_from_slice(&bytes);
            }
        }
        all
    }
}

#[test]
fn messages_are_gathered_and_scattered_in_slots_of_any_size() {
    let mut random = Random(1);
    for i in 0..600 {
        let case = Case::of_size(&mut random, i % 100 == 0);
        let want = case.expected_wire();
        let cells = [&*case.abort];
        let stop = Stop(&cells);
        let sent = &case.from.program.messages[0];
        let received = &case.to.program.messages[0];
        assert_eq!(sent.bytes, want.len() as u64);
        let slot = [16, 32, 48, 4096, 1 << 20][random.below(5) as usize];
        let mut wire = vec![0xffu8; want.len()];
        let mut gather = MessageCursor::new(sent);
        let mut scatter = MessageCursor::new(received);
        for chunk in wire.chunks_mut(slot) {
            let n = chunk.len() as u64;
            // SAFETY: the chunk is ours and has `n` bytes.
            unsafe {
                gather
                    .gather(&case.from, sent, chunk.as_mut_ptr(), n, stop)
                    .unwrap()
            };
        }
        assert_eq!(wire, want);
        assert_eq!(gather.at(), sent.bytes);
        for chunk in wire.chunks(slot) {
            let n = chunk.len() as u64;
            // SAFETY: as above.
            unsafe {
                scatter
                    .scatter(&case.to, received, chunk.as_ptr(), n, stop)
                    .unwrap()
            };
        }
        assert_eq!(case.target.bytes(), case.expected_target());
    }
}

#[test]
fn any_range_can_be_gathered() {
    let mut random = Random(2);
    for _ in 0..400 {
        let case = Case::new(&mut random);
        let want = case.expected_wire();
        let message = &case.from.program.messages[0];
        let cells = [&*case.abort];
        for _ in 0..8 {
            let grain = if case.wire() == case.views[0].0.dtype {
                1
            } else {
                16
            };
            let lo = random.below(want.len() as u64 + 1) / grain * grain;
            let hi = random.range(lo, want.len() as u64);
            let hi = if hi.is_multiple_of(grain) {
                hi
            } else {
                want.len() as u64
            };
            let mut part = vec![0xffu8; (hi - lo) as usize];
            let mut cursor = MessageCursor::seek(&case.from, message, lo);
            // SAFETY: the part is ours and has as many bytes.
            unsafe {
                cursor
                    .gather(
                        &case.from,
                        message,
                        part.as_mut_ptr(),
                        hi - lo,
                        Stop(&cells),
                    )
                    .unwrap();
            }
            assert_eq!(part, want[lo as usize..hi as usize], "{lo}..{hi}");
        }
    }
}

#[test]
fn messages_are_copied_view_to_view_at_any_pace() {
    let mut random = Random(3);
    for i in 0..800 {
        let case = Case::of_size(&mut random, i % 100 == 0);
        let end = |binding| End {
            binding,
            message: &binding.program.messages[0],
        };
        let cells = [&*case.abort];
        let pace = [17, 100, 4096, 1 << 20, 1 << 30][random.below(5) as usize];
        let mut copy = MessageCopy::new(end(&case.from), end(&case.to));
        while !copy.is_done() {
            copy.advance(pace, Stop(&cells)).unwrap();
        }
        assert_eq!(case.target.bytes(), case.expected_target());
    }
}

#[test]
fn local_copies_convert_and_touch_nothing_else() {
    let mut random = Random(4);
    for _ in 0..400 {
        let (shape, cut) = random_box(&mut random, false);
        let (a, b) = random_dtypes(&mut random);
        let tensors: Arc<[Tensor]> = vec![Tensor::new("t", &shape, b).unwrap()].into();
        let mut builder = Builder::new(0, &tensors);
        builder.buffer(Side::Source);
        builder.buffer(Side::Destination);
        let (from, n) = random_view(&mut random, 0, 0, &cut, a, false);
        let (to, m) = random_view(&mut random, 0, 1, &cut, b, false);
        builder.local(0, &from, &to, &cut);
        let (mut source, mut target) = (Memory::new(n as usize), Memory::new(m as usize));
        random.fill(source.bytes_mut());
        let abort = Arc::default();
        let program = Arc::new(builder.build(1));
        let memory = vec![source.range(), target.range()];
        let binding = bind(&program, memory, MemoryRange::EMPTY, &abort).unwrap();
        copy_local(&binding, &program.locals[0], Stop(&[&abort])).unwrap();
        let mut want = vec![0x5a; m as usize];
        for i in indices(&cut) {
            let at = from.at(&i) as usize;
            let bytes = cast_one(a, b, &source.bytes()[at..at + a.bytes() as usize]);
            let at = to.at(&i) as usize;
            want[at..at + bytes.len()].copy_from_slice(&bytes);
        }
        assert_eq!(target.bytes(), want);
    }
}

#[test]
fn nothing_is_written_once_the_abort_word_is_set() {
    let mut random = Random(5);
    for _ in 0..50 {
        let case = Case::new(&mut random);
        case.abort.set(Error::new(Status::Aborted, "test"));
        let cells = [&*case.abort];
        let end = |binding| End {
            binding,
            message: &binding.program.messages[0],
        };
        let mut copy = MessageCopy::new(end(&case.from), end(&case.to));
        assert_eq!(copy.advance(1, Stop(&cells)), Err(Halt::Aborted));
        let message = &case.to.program.messages[0];
        let slot = vec![1u8; message.bytes as usize];
        let mut cursor = MessageCursor::new(message);
        // SAFETY: the slot is ours and holds the message.
        let halted = unsafe {
            cursor.scatter(
                &case.to,
                message,
                slot.as_ptr(),
                message.bytes,
                Stop(&cells),
            )
        };
        assert_eq!(halted, Err(Halt::Aborted));
        assert!(case.target.bytes().iter().all(|&b| b == 0x5a));
    }
}

fn bits(bytes: &[u8]) -> u64 {
    let words: Vec<u64> = bytes
        .chunks(8)
        .map(|c| {
            let mut w = [0; 8];
            w[..c.len()].copy_from_slice(c);
            u64::from_le_bytes(w)
        })
        .collect();
    words[1..].iter().fold(words[0], |a, &w| mix(a, w))
}

#[test]
fn digests_do_not_depend_on_layout() {
    let mut random = Random(6);
    for _ in 0..400 {
        let case = Case::new(&mut random);
        let cells = [&*case.abort];
        let stop = Stop(&cells);
        let end = |binding| End {
            binding,
            message: &binding.program.messages[0],
        };
        let mut copy = MessageCopy::new(end(&case.from), end(&case.to));
        while !copy.is_done() {
            copy.advance(1 << 20, stop).unwrap();
        }
        // Twice: a digest starts from zero each time.
        for _ in 0..2 {
            digest_source(&case.from, stop).unwrap();
            digest_destination(&case.to, stop).unwrap();
        }
        let load = |sums: &Vec<std::sync::atomic::AtomicU64>| -> Vec<u64> {
            sums.iter()
                .map(|s| s.load(std::sync::atomic::Ordering::Relaxed))
                .collect()
        };
        let held = load(&case.to.sums.held);
        for (i, (_, to)) in case.views.iter().enumerate() {
            let shape = &case.to.program.tensors[i].shape;
            let mut want = 0u64;
            for index in indices(&to.bounds) {
                let flat = index.iter().zip(shape).fold(0, |f, (i, n)| f * n + i);
                let at = to.at(&index) as usize;
                let bytes = &case.target.bytes()[at..at + to.dtype.bytes() as usize];
                want = want.wrapping_add(mix(flat, bits(bytes)));
            }
            assert_eq!(held[i], want);
        }
        let wire = case.wire();
        if wire == case.views[0].0.dtype || wire == case.views[0].1.dtype {
            assert_eq!(load(&case.from.sums.once), held);
            assert_eq!(load(&case.from.sums.sent), held);
        }
    }
}

#[test]
fn digests_see_any_swap_and_any_change() {
    let mut random = Random(7);
    for _ in 0..300 {
        let mut case = Case::new(&mut random);
        random.fill(case.target.bytes_mut());
        let cells = [&*case.abort];
        let held = |case: &Case| -> u64 {
            digest_destination(&case.to, Stop(&cells)).unwrap();
            case.to.sums.held[0].load(std::sync::atomic::Ordering::Relaxed)
        };
        let before = held(&case);
        let to = case.views[0].1.clone();
        let all = indices(&to.bounds);
        let n = to.dtype.bytes() as usize;
        let a = to.at(&all[random.below(all.len() as u64) as usize]) as usize;
        let b = to.at(&all[random.below(all.len() as u64) as usize]) as usize;
        let (x, y) = (
            case.target.bytes()[a..a + n].to_vec(),
            case.target.bytes()[b..b + n].to_vec(),
        );
        case.target.bytes_mut()[a..a + n].copy_from_slice(&y);
        case.target.bytes_mut()[b..b + n].copy_from_slice(&x);
        assert_eq!(held(&case) == before, x == y);
        case.target.bytes_mut()[a] ^= 1;
        assert_ne!(held(&case), before);
    }
}

#[test]
fn a_region_outside_its_memory_is_refused() {
    let mut random = Random(8);
    for _ in 0..100 {
        let case = Case::new(&mut random);
        let program = case.to.program.clone();
        let (_, to) = case.views.last().unwrap();
        let last = indices(&to.bounds)
            .iter()
            .map(|i| to.at(i) + to.dtype.bytes())
            .max()
            .unwrap();
        let mut range = case.to.memory[0];
        let abort = Arc::default();
        range.bytes = last;
        assert!(bind(&program, vec![range], MemoryRange::EMPTY, &abort).is_ok());
        range.bytes = last - 1;
        let e = bind(&program, vec![range], MemoryRange::EMPTY, &abort).unwrap_err();
        assert_eq!(e.status, Status::BufferMismatch);
        assert!(e.message.contains(&last.to_string()), "{e}");
    }
}
