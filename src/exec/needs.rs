//! The buffers that a program needs, and whether what is bound will do.

use super::PlanView;
use crate::device::{Device, MemoryRange};
use crate::error::{Error, Result, Status};
use crate::layout::BufferKey;
use crate::layout::array::Array;
use crate::layout::view::{Memory, View};
use crate::plan::program::{BufferUse, Program, Side};
use crate::rank::Rank;

/// A buffer that a program needs.
#[derive(Debug)]
pub(super) struct Need {
    pub side: Side,
    pub key: BufferKey,
    pub name: String,
    pub bytes: u64,
    pub memory: Memory,
}

/// Memory that stands for a name.
#[derive(Clone, Debug)]
pub(super) struct Bound {
    pub range: MemoryRange,
    pub memory: Memory,
    /// How its owner sees it, if that was told.
    pub array: Option<Array>,
}

/// What one program needs, in the order of its buffers.
#[derive(Debug)]
pub(super) struct Needs {
    rank: Rank,
    list: Vec<Need>,
}

impl Needs {
    pub fn of(plan: &dyn PlanView, program: &Program) -> Result<Needs> {
        let need = |used: &BufferUse| {
            let named = plan.buffer(program.rank, used).ok_or_else(|| {
                Error::internal(format!("the plan does not know its own buffer {used:?}"))
            })?;
            Ok(Need {
                side: used.side,
                key: used.key,
                name: named.name,
                bytes: named.bytes,
                memory: named.memory,
            })
        };
        Ok(Needs {
            rank: program.rank,
            list: program.buffers.iter().map(need).collect::<Result<_>>()?,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Need> {
        self.list.iter()
    }

    pub fn contain(&self, side: Side, name: &str) -> bool {
        self.iter().any(|n| n.side == side && n.name == name)
    }

    /// Checks that every needed buffer is bound, large enough, of the right
    /// kind and seen by its owner as by the plan. Names all that are missing
    /// at once.
    pub fn check<'a>(
        &self,
        plan: &dyn PlanView,
        find: impl Fn(&Need) -> Option<&'a Bound>,
    ) -> Result<()> {
        let mut missing = Vec::new();
        let mut bound = Vec::with_capacity(self.list.len());
        for need in &self.list {
            match find(need) {
                Some(found) => bound.push((need, found)),
                None => missing.push(format!(
                    "\"{}\" ({}, {} bytes)",
                    need.name, need.side, need.bytes
                )),
            }
        }
        if !missing.is_empty() {
            let (count, list) = (missing.len(), missing.join(", "));
            return Err(mismatch(format!("{count} buffers are not bound: {list}")));
        }
        for (need, bound) in &bound {
            need.check_range(bound)?;
        }
        for side in [Side::Source, Side::Destination] {
            let told = bound.iter().copied();
            let told = told.filter(|(need, bound)| need.side == side && bound.array.is_some());
            self.check_arrays(plan, side, told.collect())?;
        }
        Ok(())
    }

    /// Has the device look at what is bound, in the order of the needs, and names
    /// the buffer that it refuses.
    pub fn check_memory(&self, device: &dyn Device, bound: &[Bound]) -> Result<()> {
        for (need, bound) in self.list.iter().zip(bound) {
            let checked = device.check_memory(bound.range, bound.memory);
            checked.map_err(|e| Error {
                message: format!("{need}: {}", e.message),
                ..e
            })?;
        }
        Ok(())
    }

    /// Checks that a program which reads its sources where they lie was not
    /// given host memory since, which has to be staged. `takes_host` says by
    /// need where it may be.
    pub fn check_staged(&self, takes_host: &[bool], bound: &[Bound]) -> Result<()> {
        for ((need, takes_host), bound) in self.list.iter().zip(takes_host).zip(bound) {
            let is_read = need.side == Side::Source;
            if is_read && !takes_host && bound.memory == Memory::Host {
                return Err(mismatch(format!(
                    "{need} is bound as Host and was bound as {:?} when the plan was loaded: load \
                     the plan again, so that the buffer is staged",
                    Memory::PinnedHost
                )));
            }
        }
        Ok(())
    }

    /// Holds arrays against the plan's views of one side.
    fn check_arrays(
        &self,
        plan: &dyn PlanView,
        side: Side,
        mut told: Vec<(&Need, &Bound)>,
    ) -> Result<()> {
        if told.is_empty() {
            return Ok(());
        }
        told.sort_by_key(|(need, _)| need.key);
        let layout = plan.layout(side);
        for view in layout.views(self.rank) {
            let Ok(at) = told.binary_search_by_key(&view.buffer, |(need, _)| need.key) else {
                continue;
            };
            let (need, bound) = told[at];
            let tensor = &layout.tensors()[view.tensor.index()].name;
            match &bound.array {
                Some(array) if !array.holds(&view) => {
                    return Err(need.differs(array, tensor, &view));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Need {
    fn check_range(&self, bound: &Bound) -> Result<()> {
        if bound.range.bytes < self.bytes {
            return Err(mismatch(format!(
                "{self} is bound with {} bytes; the plan needs {}",
                bound.range.bytes, self.bytes
            )));
        }
        if is_host(bound.memory) != is_host(self.memory) {
            return Err(mismatch(format!(
                "{self} is bound as {:?}; the layout says {:?}",
                bound.memory, self.memory
            )));
        }
        Ok(())
    }

    fn differs(&self, array: &Array, tensor: &str, view: &View<BufferKey>) -> Error {
        let shape: Vec<u64> = view.bounds.spans().iter().map(|s| s.len()).collect();
        mismatch(format!(
            "{self} is bound as {array}; the plan has tensor \"{tensor}\" there, {} {shape:?} with \
             strides {:?} from byte {}; bind an array of that form, or its plain bytes",
            view.dtype, view.strides, view.offset
        ))
    }
}

impl std::fmt::Display for Need {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "buffer \"{}\" ({})", self.name, self.side)
    }
}

fn is_host(memory: Memory) -> bool {
    match memory {
        Memory::Host | Memory::PinnedHost => true,
        Memory::Device(_) => false,
    }
}

fn mismatch(message: String) -> Error {
    Error::new(Status::BufferMismatch, message)
}
