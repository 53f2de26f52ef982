//! Jobs: what the kernels of `kernels/bodies.h` are told to do.
//!
//! A job is a number of units and two walks. The unit is the widest that both
//! sides allow, sixteen bytes where addresses, runs and strides are multiples
//! of sixteen:
//!
//! ```text
//!   from  ████████░░░░████████░░░░     run 8, one axis of stride 12
//!   to    ████████████████             run 16, no axis
//! ```

use crate::device::walk::Walk;
use crate::error::{Error, Result};
use crate::layout::dtype::Dtype;
use crate::limits::DIM_COUNT_MAX;

/// Threads of a block; `WSYNC_THREADS` of the kernels.
pub const THREADS: u32 = 256;
/// Units of a tile.
pub const TILE_UNITS: u64 = 2048;

const COPY: u32 = 1;
const CAST: u32 = 2;
const SUM: u32 = 3;
const ZERO: u32 = 0;

const NO_CAST: u32 = 3;

/// `WsyncWalk`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobWalk {
    start: u64,
    skip: u64,
    run: u64,
    unit: u32,
    depth: u32,
    count: [u64; DIM_COUNT_MAX],
    stride: [i64; DIM_COUNT_MAX],
}

/// `WsyncJob`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    pub units: u64,
    pub first_tile: u64,
    kind: u32,
    elements: u32,
    from_size: u32,
    to_size: u32,
    from_type: u32,
    wire_type: u32,
    to_type: u32,
    reserved: u32,
    sum: u64,
    weighted_sum: u64,
    weight: u64,
    from: JobWalk,
    to: JobWalk,
}

/// `WsyncLaunch`, the kernels' only parameter.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    pub jobs: u64,
    pub job_count: u64,
    pub tiles: u64,
    pub abort: u64,
    pub mark: u64,
    pub sequence: u64,
}

const _: () = {
    assert!(size_of::<JobWalk>() == 160);
    assert!(size_of::<Job>() == 392);
    assert!(size_of::<Launch>() == 48);
};

/// One side of a job: a walk, and the bytes of it that come before the job.
#[derive(Clone, Debug)]
pub(crate) struct Side {
    pub walk: Walk,
    pub skip_bytes: u64,
}

impl Side {
    /// A side from its start.
    pub(crate) fn whole(walk: Walk) -> Side {
        Side {
            walk,
            skip_bytes: 0,
        }
    }

    /// Bytes at an address.
    pub(crate) fn run(address: usize, bytes: u64) -> Side {
        Side::whole(Walk::new(address, bytes, &[]))
    }

    /// True if address, skip, run and strides are multiples of `bytes`.
    fn is_multiple_of(&self, bytes: u64) -> bool {
        let (address, run) = self.walk.first_run();
        let stride = |(_, stride): (u64, i64)| stride.unsigned_abs().is_multiple_of(bytes);
        (address as u64).is_multiple_of(bytes)
            && self.skip_bytes.is_multiple_of(bytes)
            && self.has_runs_of(bytes)
            && (run > 0)
            && self.walk.loops().all(stride)
    }

    /// True if runs and the skip are multiples of `bytes`.
    fn has_runs_of(&self, bytes: u64) -> bool {
        let (_, run) = self.walk.first_run();
        run.is_multiple_of(bytes) && self.skip_bytes.is_multiple_of(bytes)
    }

    /// In units of `unit` bytes.
    fn units(&self, unit: u64) -> JobWalk {
        let (start, run) = self.walk.first_run();
        let mut out = JobWalk {
            start: start as u64,
            skip: self.skip_bytes / unit,
            run: run / unit,
            unit: unit as u32,
            depth: self.walk.loops().len() as u32,
            count: [1; DIM_COUNT_MAX],
            stride: [0; DIM_COUNT_MAX],
        };
        for (i, (count, stride)) in self.walk.loops().enumerate() {
            out.count[i] = count;
            out.stride[i] = stride;
        }
        out
    }
}

/// What happens to values between two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Types {
    pub from: Dtype,
    pub wire: Dtype,
    pub to: Dtype,
}

impl Types {
    pub fn is_copy(self) -> bool {
        self.from == self.to && (self.wire == self.from || !is_float(self.wire))
    }
}

fn is_float(dtype: Dtype) -> bool {
    code(dtype) != NO_CAST
}

fn code(dtype: Dtype) -> u32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
        _ => NO_CAST,
    }
}

impl Job {
    /// Moves `elements` elements, converting them where types differ. Fails
    /// for values to be converted that lie at odd addresses.
    pub(crate) fn transfer(from: &Side, to: &Side, types: Types, elements: u64) -> Result<Job> {
        if types.is_copy() {
            return Ok(Job::copy(from, to, elements * types.from.bytes()));
        }
        let (a, b) = (types.from.bytes(), types.to.bytes());
        if !from.is_multiple_of(a) || !to.is_multiple_of(b) {
            return Err(Error::invalid(format!(
                "values of {} and {} are converted on the GPU and do not lie at multiples of \
                 their size",
                types.from, types.to
            )));
        }
        // Eight elements are one or two accesses of sixteen bytes.
        let is_wide = types.wire == types.from || types.wire == types.to;
        let fits = |side: &Side, size: u64| side.is_multiple_of(16) && side.has_runs_of(8 * size);
        let wide = is_wide && elements.is_multiple_of(8) && fits(from, a) && fits(to, b);
        let per_unit = if wide { 8 } else { 1 };
        Ok(Job {
            units: elements / per_unit,
            kind: CAST,
            elements: per_unit as u32,
            from_size: a as u32,
            to_size: b as u32,
            from_type: code(types.from),
            wire_type: if is_wide { NO_CAST } else { code(types.wire) },
            to_type: code(types.to),
            from: from.units(a * per_unit),
            to: to.units(b * per_unit),
            ..Job::nothing()
        })
    }

    /// Moves bytes.
    fn copy(from: &Side, to: &Side, bytes: u64) -> Job {
        let fits = |unit: &u64| {
            bytes.is_multiple_of(*unit) && from.is_multiple_of(*unit) && to.is_multiple_of(*unit)
        };
        let unit = [16, 8, 4, 2].into_iter().find(fits).unwrap_or(1);
        Job {
            units: bytes / unit,
            kind: COPY,
            elements: 1,
            from_size: unit as u32,
            to_size: unit as u32,
            from: from.units(unit),
            to: to.units(unit),
            ..Job::nothing()
        }
    }

    /// Zeroes bytes.
    pub(crate) fn zero(to: &Side, bytes: u64) -> Job {
        Job {
            kind: ZERO,
            ..Job::copy(to, to, bytes)
        }
    }

    /// Sums `mix(index, bits)` over `elements` elements, as `to` stores them,
    /// into the counters at `sum` and, weighted, `weighted_sum`; 0 is none.
    pub(crate) fn sum(
        from: &Side,
        indices: Walk,
        (memory, digest): (Dtype, Dtype),
        elements: u64,
        (sum, weighted_sum, weight): (u64, u64, u64),
    ) -> Job {
        let size = memory.bytes();
        let indices = Side::whole(indices);
        let is_word = matches!(size, 1 | 2 | 4 | 8) && from.is_multiple_of(size);
        let wide = (16 / size).max(1);
        let is_wide = is_word
            && elements.is_multiple_of(wide)
            && from.is_multiple_of(16)
            && indices.has_runs_of(wide);
        let per_unit = if is_wide { wide } else { 1 };
        let is_cast = memory != digest;
        let mut to = indices.units(1);
        // Units of so many indices; strides of the walk are indices already.
        to.run /= per_unit;
        to.unit = per_unit as u32;
        Job {
            units: elements / per_unit,
            kind: SUM,
            elements: per_unit as u32,
            from_size: size as u32,
            to_size: u32::from(is_word),
            from_type: if is_cast { code(memory) } else { NO_CAST },
            to_type: if is_cast { code(digest) } else { NO_CAST },
            sum,
            weighted_sum,
            weight,
            from: from.units(size * per_unit),
            to,
            ..Job::nothing()
        }
    }

    fn nothing() -> Job {
        let nowhere = JobWalk {
            start: 0,
            skip: 0,
            run: 1,
            unit: 1,
            depth: 0,
            count: [1; DIM_COUNT_MAX],
            stride: [0; DIM_COUNT_MAX],
        };
        Job {
            units: 0,
            first_tile: 0,
            kind: ZERO,
            elements: 1,
            from_size: 1,
            to_size: 1,
            from_type: NO_CAST,
            wire_type: NO_CAST,
            to_type: NO_CAST,
            reserved: 0,
            sum: 0,
            weighted_sum: 0,
            weight: 0,
            from: nowhere,
            to: nowhere,
        }
    }

    /// Tiles of this job.
    pub fn tiles(&self) -> u64 {
        self.units.div_ceil(TILE_UNITS)
    }
}

/// Numbers the tiles of jobs that are launched together; returns how many.
pub fn number_tiles(jobs: &mut [Job]) -> u64 {
    let mut tiles = 0;
    for job in jobs {
        job.first_tile = tiles;
        tiles += job.tiles();
    }
    tiles
}
