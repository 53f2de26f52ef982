// Moves and checksums of strided boxes, as the GPU and the tests run them.
//
// A launch does all jobs of one step. A job is a number of *units* (a few
// elements that are read and written at once) and two walks that say where
// unit n lies on either side; jobs are cut into tiles, and blocks take tiles:
//
//   jobs    |----- 0 -----|- 1 -|---------- 2 ----------|
//   tiles   |  0 |  1 | 2 |  3  |  4 |  5 |  6 |  7 | 8 |
//   blocks     0    1   2    0     1    2    0    1   2
//
// Everything here is plain arithmetic on a thread's numbers. NVRTC makes PTX of
// it (kernels.cu); g++ compiles the same lines with numbers from loops, so
// that machines without a GPU run them too.

#ifndef WEIGHTSYNC_KERNEL_BODIES_H
#define WEIGHTSYNC_KERNEL_BODIES_H

typedef unsigned char wsync_u8;
typedef unsigned short wsync_u16;
typedef unsigned int wsync_u32;
typedef unsigned long long wsync_u64;
typedef long long wsync_i64;

#ifdef __CUDACC__
#define WSYNC_DEVICE __device__ __forceinline__
#define WSYNC_DEVICE_CALL static __device__ __noinline__
#define WSYNC_NO_UNROLL _Pragma("unroll 1")
#define WSYNC_UNROLL _Pragma("unroll")
// Memory as the GPU sees it.
#define WSYNC_AT(type, address) reinterpret_cast<type *>(address)
#else
#define WSYNC_DEVICE static inline
#define WSYNC_DEVICE_CALL static inline
#define WSYNC_NO_UNROLL
#define WSYNC_UNROLL
// Where a device address lies for the host; the includer may say.
#ifndef WSYNC_AT
#define WSYNC_AT(type, address) reinterpret_cast<type *>(address)
#endif
#endif

// Axes of a walk around its run.
#define WSYNC_AXES 8
// Units that one thread of a block takes from a tile, and threads of a block.
#define WSYNC_UNITS_PER_THREAD 8
#define WSYNC_UNITS_IN_FLIGHT 4
#define WSYNC_THREADS 256
#define WSYNC_TILE_UNITS (WSYNC_THREADS * WSYNC_UNITS_PER_THREAD)

// What happens to a unit.
#define WSYNC_ZERO 0
#define WSYNC_COPY 1
#define WSYNC_CAST 2
#define WSYNC_SUM 3

// Types that are cast.
#define WSYNC_F32 0
#define WSYNC_F16 1
#define WSYNC_BF16 2
#define WSYNC_NO_CAST 3

// Where units lie: runs of `run` units, `depth` axes around them, innermost
// first. Of a sum's second walk, "address" is an index of the whole tensor.
struct WsyncWalk {
  wsync_u64 start;
  // Units before the first one of the job.
  wsync_u64 skip;
  // Units of a run, and bytes from unit to unit in it.
  wsync_u64 run;
  wsync_u32 unit;
  wsync_u32 depth;
  wsync_u64 count[WSYNC_AXES];
  wsync_i64 stride[WSYNC_AXES];
};

struct WsyncJob {
  wsync_u64 units;
  // Tiles of all jobs before this one.
  wsync_u64 first_tile;
  wsync_u32 kind;
  // Elements of a unit.
  wsync_u32 elements;
  // Bytes of an element on either side; a copy's unit is one element.
  wsync_u32 from_size;
  wsync_u32 to_size;
  // Types of a cast: in memory, on the wire, where it goes.
  wsync_u32 from_type;
  wsync_u32 wire_type;
  wsync_u32 to_type;
  wsync_u32 reserved;
  // Of a sum: counters to add to (0 is none), the second one weighted.
  wsync_u64 sum;
  wsync_u64 weighted_sum;
  wsync_u64 weight;
  WsyncWalk from;
  WsyncWalk to;
};

struct WsyncLaunch {
  wsync_u64 jobs;
  wsync_u64 job_count;
  wsync_u64 tiles;
  // A u32: nothing is written unless it is zero.
  wsync_u64 abort;
  // A u64 that becomes `sequence` before the first write; 0 is none.
  wsync_u64 mark;
  wsync_u64 sequence;
};

WSYNC_DEVICE_CALL wsync_u64 wsync_divide_long(wsync_u64 n, wsync_u64 d) { return n / d; }

WSYNC_DEVICE wsync_u64 wsync_divide(wsync_u64 n, wsync_u64 d) {
  // Long division is many times slower, and seldom needed.
  if (((n | d) >> 32) == 0)
    return static_cast<wsync_u32>(n) / static_cast<wsync_u32>(d);
  return wsync_divide_long(n, d);
}

// Bytes to row `row`, of a walk with more than one axis.
WSYNC_DEVICE_CALL wsync_u64 wsync_row(const WsyncWalk &walk, wsync_u64 row) {
  wsync_u64 rest = row, place = 0;
  WSYNC_NO_UNROLL
  for (wsync_u32 i = 0; i + 1 < walk.depth; i++) {
    wsync_u64 count = walk.count[i];
    wsync_u64 outer = wsync_divide(rest, count);
    place += static_cast<wsync_u64>(walk.stride[i]) * (rest - outer * count);
    rest = outer;
  }
  return place + static_cast<wsync_u64>(walk.stride[walk.depth - 1]) * rest;
}

// Where unit `n` of the job lies.
WSYNC_DEVICE wsync_u64 wsync_place(const WsyncWalk &walk, wsync_u64 n) {
  wsync_u64 at = n + walk.skip;
  const wsync_u64 unit = walk.unit;
  if (walk.depth == 0)
    return walk.start + at * unit;
  wsync_u64 row = wsync_divide(at, walk.run);
  wsync_u64 place = walk.start + (at - row * walk.run) * unit;
  if (walk.depth == 1)
    return place + static_cast<wsync_u64>(walk.stride[0]) * row;
  return place + wsync_row(walk, row);
}

// The job that a tile belongs to.
WSYNC_DEVICE wsync_u64 wsync_job_of(const WsyncJob *jobs, wsync_u64 job_count, wsync_u64 tile) {
  wsync_u64 lo = 0, hi = job_count;
  while (hi - lo > 1) {
    wsync_u64 middle = lo + (hi - lo) / 2;
    if (jobs[middle].first_tile <= tile)
      lo = middle;
    else
      hi = middle;
  }
  return lo;
}

// Casts. Bit for bit those of src/device/cast.rs.

WSYNC_DEVICE wsync_u32 wsync_float_bits(float x) {
  union {
    float f;
    wsync_u32 u;
  } bits;
  bits.f = x;
  return bits.u;
}

WSYNC_DEVICE float wsync_float(wsync_u32 x) {
  union {
    float f;
    wsync_u32 u;
  } bits;
  bits.u = x;
  return bits.f;
}

WSYNC_DEVICE wsync_u32 wsync_f32_to_bf16(wsync_u32 x) {
  if ((x & 0x7fffffffu) > 0x7f800000u)
    return (x >> 16) | 0x40u;
  return (x + 0x7fffu + ((x >> 16) & 1u)) >> 16;
}

WSYNC_DEVICE wsync_u32 wsync_bf16_to_f32(wsync_u32 x) {
  wsync_u32 quiet = (x & 0x7fffu) > 0x7f80u ? 0x40u : 0u;
  return (x | quiet) << 16;
}

WSYNC_DEVICE wsync_u32 wsync_f32_to_f16(wsync_u32 bits) {
  const wsync_u32 infinity = 255u << 23, overflow = (127u + 16u) << 23, normal = (127u - 14u) << 23;
  // A float whose last bit is worth the last bit of a denormal f16.
  const wsync_u32 shifter = ((127u - 15u) + (23u - 10u) + 1u) << 23;
  wsync_u32 sign = bits & 0x80000000u;
  wsync_u32 x = bits ^ sign;
  wsync_u32 half;
  if (x >= overflow)
    half = x > infinity ? 0x7e00u | ((x >> 13) & 0x3ffu) : 0x7c00u;
  else if (x < normal)
    half = wsync_float_bits(wsync_float(x) + wsync_float(shifter)) - shifter;
  else
    half = (x - ((127u - 15u) << 23) + 0xfffu + ((x >> 13) & 1u)) >> 13;
  return half | (sign >> 16);
}

WSYNC_DEVICE wsync_u32 wsync_f16_to_f32(wsync_u32 x) {
  const wsync_u32 smallest = (127u - 14u) << 23;
  wsync_u32 sign = (x & 0x8000u) << 16;
  wsync_u32 magnitude = (x & 0x7fffu) << 13;
  wsync_u32 exponent = magnitude & (0x1fu << 23);
  wsync_u32 bits;
  if (exponent == 0x1fu << 23)
    bits = magnitude | (255u << 23) | ((x & 0x7fffu) > 0x7c00u ? 1u << 22 : 0u);
  else if (exponent == 0)
    bits = wsync_float_bits(wsync_float(magnitude + smallest) - wsync_float(smallest));
  else
    bits = magnitude + ((127u - 15u) << 23);
  return bits | sign;
}

WSYNC_DEVICE wsync_u32 wsync_widen(wsync_u32 type, wsync_u32 x) {
  if (type == WSYNC_BF16)
    return wsync_bf16_to_f32(x);
  return type == WSYNC_F16 ? wsync_f16_to_f32(x) : x;
}

WSYNC_DEVICE wsync_u32 wsync_narrow(wsync_u32 type, wsync_u32 x) {
  if (type == WSYNC_BF16)
    return wsync_f32_to_bf16(x);
  return type == WSYNC_F16 ? wsync_f32_to_f16(x) : x;
}

// One element from its type in memory, by way of the wire, to where it goes.
WSYNC_DEVICE_CALL wsync_u32 wsync_cast(const WsyncJob &job, wsync_u32 x) {
  x = wsync_widen(job.from_type, x);
  if (job.wire_type != WSYNC_NO_CAST)
    x = wsync_widen(job.wire_type, wsync_narrow(job.wire_type, x));
  return wsync_narrow(job.to_type, x);
}

// A unit of a copy, read and written in one access.

template <int SIZE> struct WsyncUnit;
template <> struct alignas(16) WsyncUnit<16> {
  wsync_u32 words[4];
};
template <> struct WsyncUnit<8> {
  wsync_u64 word;
};
template <> struct WsyncUnit<4> {
  wsync_u32 word;
};
template <> struct WsyncUnit<2> {
  wsync_u16 word;
};
template <> struct WsyncUnit<1> {
  wsync_u8 word;
};

// Copies: all loads of a batch before its stores, so that many are on the way.
template <int SIZE>
WSYNC_DEVICE void wsync_copy_tile(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                  wsync_u32 thread) {
  typedef WsyncUnit<SIZE> Unit;
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS * WSYNC_UNITS_IN_FLIGHT) {
    Unit units[WSYNC_UNITS_IN_FLIGHT];
WSYNC_UNROLL
    for (int i = 0; i < WSYNC_UNITS_IN_FLIGHT; i++) {
      wsync_u64 at = n + i * WSYNC_THREADS;
      if (at < end)
        units[i] = *WSYNC_AT(const Unit, wsync_place(job.from, at));
    }
WSYNC_UNROLL
    for (int i = 0; i < WSYNC_UNITS_IN_FLIGHT; i++) {
      wsync_u64 at = n + i * WSYNC_THREADS;
      if (at < end)
        *WSYNC_AT(Unit, wsync_place(job.to, at)) = units[i];
    }
  }
}

template <int SIZE>
WSYNC_DEVICE void wsync_zero_tile(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                  wsync_u32 thread) {
  typedef WsyncUnit<SIZE> Unit;
  const Unit zero = {};
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS)
    *WSYNC_AT(Unit, wsync_place(job.to, n)) = zero;
}

template <wsync_u32 TYPE> struct WsyncWord {
  typedef wsync_u16 Word;
};
template <> struct WsyncWord<WSYNC_F32> {
  typedef wsync_u32 Word;
};

// Casts: a unit is eight elements, both sides aligned.
template <wsync_u32 FROM, wsync_u32 TO>
WSYNC_DEVICE void wsync_cast_tile(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                  wsync_u32 thread) {
  struct alignas(16) Source {
    typename WsyncWord<FROM>::Word x[8];
  };
  struct alignas(16) Target {
    typename WsyncWord<TO>::Word x[8];
  };
  const int in_flight = WSYNC_UNITS_IN_FLIGHT / 2;
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS * in_flight) {
    Source units[in_flight];
WSYNC_UNROLL
    for (int i = 0; i < in_flight; i++) {
      wsync_u64 at = n + i * WSYNC_THREADS;
      if (at < end)
        units[i] = *WSYNC_AT(const Source, wsync_place(job.from, at));
    }
WSYNC_UNROLL
    for (int i = 0; i < in_flight; i++) {
      wsync_u64 at = n + i * WSYNC_THREADS;
      if (at >= end)
        break;
      Target target;
WSYNC_UNROLL
      for (int e = 0; e < 8; e++)
        target.x[e] = static_cast<typename WsyncWord<TO>::Word>(
            wsync_narrow(TO, wsync_widen(FROM, units[i].x[e])));
      *WSYNC_AT(Target, wsync_place(job.to, at)) = target;
    }
  }
}

// Casts of single elements, and those that the wire makes two of.
WSYNC_DEVICE void wsync_cast_elements(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                      wsync_u32 thread) {
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS) {
    wsync_u64 from = wsync_place(job.from, n), to = wsync_place(job.to, n);
    wsync_u32 x = job.from_size == 4 ? *WSYNC_AT(const wsync_u32, from)
                                     : *WSYNC_AT(const wsync_u16, from);
    x = wsync_cast(job, x);
    if (job.to_size == 4)
      *WSYNC_AT(wsync_u32, to) = x;
    else
      *WSYNC_AT(wsync_u16, to) = static_cast<wsync_u16>(x);
  }
}

// One thread's part of one tile of a copy, a cast or zeros.
WSYNC_DEVICE void wsync_move_tile(const WsyncJob &job, wsync_u64 tile, wsync_u32 thread) {
  wsync_u64 first = (tile - job.first_tile) * WSYNC_TILE_UNITS;
  wsync_u64 end = first + WSYNC_TILE_UNITS < job.units ? first + WSYNC_TILE_UNITS : job.units;
  if (job.kind == WSYNC_COPY) {
    switch (job.to_size) {
    case 16: return wsync_copy_tile<16>(job, first, end, thread);
    case 8: return wsync_copy_tile<8>(job, first, end, thread);
    case 4: return wsync_copy_tile<4>(job, first, end, thread);
    case 2: return wsync_copy_tile<2>(job, first, end, thread);
    default: return wsync_copy_tile<1>(job, first, end, thread);
    }
  }
  if (job.kind == WSYNC_CAST) {
    switch (job.elements == 8 ? job.from_type * 4 + job.to_type : WSYNC_NO_CAST * 4) {
    case WSYNC_F32 * 4 + WSYNC_F16: return wsync_cast_tile<WSYNC_F32, WSYNC_F16>(job, first, end, thread);
    case WSYNC_F32 * 4 + WSYNC_BF16: return wsync_cast_tile<WSYNC_F32, WSYNC_BF16>(job, first, end, thread);
    case WSYNC_F16 * 4 + WSYNC_F32: return wsync_cast_tile<WSYNC_F16, WSYNC_F32>(job, first, end, thread);
    case WSYNC_F16 * 4 + WSYNC_BF16: return wsync_cast_tile<WSYNC_F16, WSYNC_BF16>(job, first, end, thread);
    case WSYNC_BF16 * 4 + WSYNC_F32: return wsync_cast_tile<WSYNC_BF16, WSYNC_F32>(job, first, end, thread);
    case WSYNC_BF16 * 4 + WSYNC_F16: return wsync_cast_tile<WSYNC_BF16, WSYNC_F16>(job, first, end, thread);
    default: return wsync_cast_elements(job, first, end, thread);
    }
  }
  switch (job.to_size) {
  case 16: return wsync_zero_tile<16>(job, first, end, thread);
  case 8: return wsync_zero_tile<8>(job, first, end, thread);
  case 4: return wsync_zero_tile<4>(job, first, end, thread);
  case 2: return wsync_zero_tile<2>(job, first, end, thread);
  default: return wsync_zero_tile<1>(job, first, end, thread);
  }
}

// One thread's part of a launch of moves; the abort word has been read.
WSYNC_DEVICE void wsync_move(const WsyncLaunch &launch, wsync_u32 block, wsync_u32 blocks,
                             wsync_u32 thread) {
  const WsyncJob *jobs = WSYNC_AT(const WsyncJob, launch.jobs);
  for (wsync_u64 tile = block; tile < launch.tiles; tile += blocks)
    wsync_move_tile(jobs[wsync_job_of(jobs, launch.job_count, tile)], tile, thread);
}

// Checksums. Bit for bit those of src/device/digest.rs.

WSYNC_DEVICE wsync_u64 wsync_mix(wsync_u64 index, wsync_u64 bits) {
  wsync_u64 x = ((index + 1) * 0x9e3779b97f4a7c15ull) ^ bits;
  x = (x ^ (x >> 27)) * 0x3c79ac492ba7b653ull;
  x = (x ^ (x >> 33)) * 0x1c69b3f74ac4ae35ull;
  return x ^ (x >> 27);
}

// `ELEMENTS` elements of a numeric size that lie and count side by side.
template <typename Word, int ELEMENTS>
WSYNC_DEVICE wsync_u64 wsync_sum_tile(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                      wsync_u32 thread) {
  struct alignas(ELEMENTS == 1 ? sizeof(Word) : 16) Unit {
    Word x[ELEMENTS];
  };
  wsync_u64 sum = 0;
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS) {
    Unit unit = *WSYNC_AT(const Unit, wsync_place(job.from, n));
    wsync_u64 index = wsync_place(job.to, n);
WSYNC_UNROLL
    for (int e = 0; e < ELEMENTS; e++) {
      wsync_u64 bits = unit.x[e];
      if ((sizeof(Word) == 2 || sizeof(Word) == 4) && job.from_type != WSYNC_NO_CAST)
        bits = wsync_cast(job, static_cast<wsync_u32>(bits));
      sum += wsync_mix(index + e, bits);
    }
  }
  return sum;
}

// Elements of odd sizes, of more than eight bytes, and unaligned ones.
WSYNC_DEVICE wsync_u64 wsync_sum_bytes(const WsyncJob &job, wsync_u64 first, wsync_u64 end,
                                       wsync_u32 thread) {
  wsync_u64 sum = 0;
  WSYNC_NO_UNROLL
  for (wsync_u64 n = first + thread; n < end; n += WSYNC_THREADS) {
    wsync_u64 at = wsync_place(job.from, n);
    wsync_u64 bits = 0;
    for (wsync_u32 from = 0; from < job.from_size; from += 8) {
      wsync_u64 word = 0;
      for (wsync_u32 b = from; b < job.from_size && b < from + 8; b++)
        word |= static_cast<wsync_u64>(*WSYNC_AT(const wsync_u8, at + b)) << (8 * (b - from));
      bits = from == 0 ? word : wsync_mix(bits, word);
    }
    if (job.from_type != WSYNC_NO_CAST)
      bits = wsync_cast(job, static_cast<wsync_u32>(bits));
    sum += wsync_mix(wsync_place(job.to, n), bits);
  }
  return sum;
}

// One thread's part of one tile of a checksum.
WSYNC_DEVICE wsync_u64 wsync_sum_of(const WsyncJob &job, wsync_u64 tile, wsync_u32 thread) {
  wsync_u64 first = (tile - job.first_tile) * WSYNC_TILE_UNITS;
  wsync_u64 end = first + WSYNC_TILE_UNITS < job.units ? first + WSYNC_TILE_UNITS : job.units;
  // What the host found about alignment is in `to_size`: 0 asks for bytes.
  switch (job.to_size == 0 ? 0 : job.from_size * 256 + job.elements) {
  case 1 * 256 + 16: return wsync_sum_tile<wsync_u8, 16>(job, first, end, thread);
  case 1 * 256 + 1: return wsync_sum_tile<wsync_u8, 1>(job, first, end, thread);
  case 2 * 256 + 8: return wsync_sum_tile<wsync_u16, 8>(job, first, end, thread);
  case 2 * 256 + 1: return wsync_sum_tile<wsync_u16, 1>(job, first, end, thread);
  case 4 * 256 + 4: return wsync_sum_tile<wsync_u32, 4>(job, first, end, thread);
  case 4 * 256 + 1: return wsync_sum_tile<wsync_u32, 1>(job, first, end, thread);
  case 8 * 256 + 2: return wsync_sum_tile<wsync_u64, 2>(job, first, end, thread);
  case 8 * 256 + 1: return wsync_sum_tile<wsync_u64, 1>(job, first, end, thread);
  default: return wsync_sum_bytes(job, first, end, thread);
  }
}

#endif
