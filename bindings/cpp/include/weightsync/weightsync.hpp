/**
 * weightsync for C++17: the handles of weightsync.h as types that own them.
 *
 *   auto source = weightsync::Layout::from_json(trainer_text);
 *   auto destination = weightsync::Layout::from_json(server_text);
 *   auto plan = weightsync::Plan::create(source, destination);
 *
 * Every function that can fail comes twice. The short one throws
 * weightsync::Error. The other one takes an ErrorRecord last, is noexcept, and
 * reports the failure there; its result is then empty. Without exceptions
 * (-fno-exceptions) only the second kind is declared. RTTI is never used.
 *
 * What a function does, which threads may call it, and what it may answer
 * stands in weightsync.h, under the name that the C function has here:
 * Plan::program_info is wsync_plan_program_info. A const member function may be
 * called by many threads at once; others are exclusive, but for abort.
 *
 * Copyright the weightsync authors. Licensed under the Apache License 2.0.
 */

#ifndef WEIGHTSYNC_WEIGHTSYNC_HPP
#define WEIGHTSYNC_WEIGHTSYNC_HPP

#include <weightsync.h>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS)
#define WEIGHTSYNC_EXCEPTIONS 1
#include <stdexcept>
#else
#define WEIGHTSYNC_EXCEPTIONS 0
#endif

namespace weightsync {
// Keeps two versions apart that meet in one process.
inline namespace v0 {

// ---- values ---------------------------------------------------------------

enum class Status : std::int32_t {
  ok = WSYNC_OK,
  in_progress = WSYNC_IN_PROGRESS,
  invalid_argument = WSYNC_ERR_INVALID_ARGUMENT,
  bad_handle = WSYNC_ERR_BAD_HANDLE,
  buffer_too_small = WSYNC_ERR_BUFFER_TOO_SMALL,
  unsupported = WSYNC_ERR_UNSUPPORTED,
  busy = WSYNC_ERR_BUSY,
  limit_exceeded = WSYNC_ERR_LIMIT_EXCEEDED,
  not_found = WSYNC_ERR_NOT_FOUND,
  invalid_state = WSYNC_ERR_INVALID_STATE,
  plan_mismatch = WSYNC_ERR_PLAN_MISMATCH,
  layout_invalid = WSYNC_ERR_LAYOUT_INVALID,
  corrupt = WSYNC_ERR_CORRUPT,
  version_mismatch = WSYNC_ERR_VERSION_MISMATCH,
  buffer_mismatch = WSYNC_ERR_BUFFER_MISMATCH,
  staging_too_small = WSYNC_ERR_STAGING_TOO_SMALL,
  checksum_mismatch = WSYNC_ERR_CHECKSUM_MISMATCH,
  infeasible = WSYNC_ERR_INFEASIBLE,
  library_not_found = WSYNC_ERR_LIBRARY_NOT_FOUND,
  library_too_old = WSYNC_ERR_LIBRARY_TOO_OLD,
  io = WSYNC_ERR_IO,
  out_of_memory = WSYNC_ERR_OUT_OF_MEMORY,
  system = WSYNC_ERR_SYSTEM,
  agreement_timeout = WSYNC_ERR_AGREEMENT_TIMEOUT,
  refused = WSYNC_ERR_REFUSED,
  peer_lost = WSYNC_ERR_PEER_LOST,
  stalled = WSYNC_ERR_STALLED,
  aborted = WSYNC_ERR_ABORTED,
  meet_timeout = WSYNC_ERR_MEET_TIMEOUT,
  protocol = WSYNC_ERR_PROTOCOL,
  internal = WSYNC_ERR_INTERNAL,
  poisoned = WSYNC_ERR_POISONED,
};

enum class Side : std::uint32_t {
  source = WSYNC_SIDE_SOURCE,
  destination = WSYNC_SIDE_DESTINATION,
};

enum class Memory : std::uint32_t {
  host = WSYNC_MEMORY_HOST,
  pinned_host = WSYNC_MEMORY_PINNED_HOST,
  device = WSYNC_MEMORY_DEVICE,
};

enum class Outcome : std::uint32_t {
  untouched = WSYNC_OUTCOME_UNTOUCHED,
  complete = WSYNC_OUTCOME_COMPLETE,
  torn = WSYNC_OUTCOME_TORN,
};

enum class State : std::uint32_t {
  idle = WSYNC_STATE_IDLE,
  preparing = WSYNC_STATE_PREPARING,
  ready = WSYNC_STATE_READY,
  running = WSYNC_STATE_RUNNING,
  settling = WSYNC_STATE_SETTLING,
  done = WSYNC_STATE_DONE,
  failed = WSYNC_STATE_FAILED,
};

enum class TransportKind : std::uint32_t {
  loopback = WSYNC_TRANSPORT_KIND_LOOPBACK,
  shm = WSYNC_TRANSPORT_KIND_SHM,
  nccl = WSYNC_TRANSPORT_KIND_NCCL,
};

enum class NcclMode : std::uint32_t {
  own = WSYNC_NCCL_MODE_OWN,
  split = WSYNC_NCCL_MODE_SPLIT,
  direct = WSYNC_NCCL_MODE_DIRECT,
};

/** Which ranks of a host exchange bytes by CUDA IPC; 0 is where NCCL needs it. */
enum class NcclIpc : std::uint32_t {
  off = WSYNC_NCCL_IPC_OFF,
  device = WSYNC_NCCL_IPC_DEVICE,
  domain = WSYNC_NCCL_IPC_DOMAIN,
};

enum class MappingKind : std::uint32_t {
  two_stage = WSYNC_MAPPING_KIND_TWO_STAGE,
  single_stage = WSYNC_MAPPING_KIND_SINGLE_STAGE,
  expert = WSYNC_MAPPING_KIND_EXPERT,
};

enum class MappingList : std::uint32_t {
  pairs = WSYNC_MAPPING_LIST_PAIRS,
  forwards = WSYNC_MAPPING_LIST_FORWARDS,
  routed = WSYNC_MAPPING_LIST_ROUTED,
  same_device = WSYNC_MAPPING_LIST_SAME_DEVICE,
};

enum class RegroupKind : std::uint32_t {
  none = WSYNC_REGROUP_KIND_NONE,
  all_to_all = WSYNC_REGROUP_KIND_ALL_TO_ALL,
  all_gather = WSYNC_REGROUP_KIND_ALL_GATHER,
};

/** Which way bytes take. */
enum class Strategy : std::uint32_t {
  by_default = WSYNC_STRATEGY_DEFAULT,
  direct = WSYNC_STRATEGY_DIRECT,
  two_stage = WSYNC_STRATEGY_TWO_STAGE,
  relay = WSYNC_STRATEGY_RELAY,
  fanout = WSYNC_STRATEGY_FANOUT,
  automatic = WSYNC_STRATEGY_AUTO,
};

/** Which of several holders sends. */
enum class SourceRule : std::uint32_t {
  by_default = WSYNC_SOURCE_RULE_DEFAULT,
  wrap = WSYNC_SOURCE_RULE_WRAP,
  rotate = WSYNC_SOURCE_RULE_ROTATE,
};

/** How the NVLink domains of one copy pass it on to each other. */
enum class Spread : std::uint32_t {
  by_default = WSYNC_SPREAD_DEFAULT,
  scatter = WSYNC_SPREAD_SCATTER,
  chain = WSYNC_SPREAD_CHAIN,
};

/** Which bytes travel first. */
enum class Order : std::uint32_t {
  by_default = WSYNC_ORDER_DEFAULT,
  fraction = WSYNC_ORDER_FRACTION,
  layer = WSYNC_ORDER_LAYER,
};

/** Flags of one execution; several are joined by `|`. */
enum class RequestFlag : std::uint32_t {
  verify = WSYNC_REQUEST_FLAG_VERIFY,
  dry_run = WSYNC_REQUEST_FLAG_DRY_RUN,
};

/** Flags of a mapping; several are joined by `|`. */
enum class MappingFlag : std::uint32_t {
  colocated = WSYNC_MAPPING_FLAG_COLOCATED,
  keep_same_device = WSYNC_MAPPING_FLAG_KEEP_SAME_DEVICE,
  vllm = WSYNC_MAPPING_FLAG_VLLM,
  apart = WSYNC_MAPPING_FLAG_APART,
};

constexpr RequestFlag operator|(RequestFlag a, RequestFlag b) noexcept {
  return static_cast<RequestFlag>(static_cast<std::uint32_t>(a) | static_cast<std::uint32_t>(b));
}

constexpr MappingFlag operator|(MappingFlag a, MappingFlag b) noexcept {
  return static_cast<MappingFlag>(static_cast<std::uint32_t>(a) | static_cast<std::uint32_t>(b));
}

/** Whose code a native error code is. */
enum class NativeDomain : std::uint32_t {
  none = WSYNC_NATIVE_DOMAIN_NONE,
  os = WSYNC_NATIVE_DOMAIN_ERRNO,
  nccl = WSYNC_NATIVE_DOMAIN_NCCL,
  cuda = WSYNC_NATIVE_DOMAIN_CUDA,
  ucx = WSYNC_NATIVE_DOMAIN_UCX,
};

enum class LogLevel : std::uint32_t {
  off = WSYNC_LOG_LEVEL_OFF,
  error = WSYNC_LOG_LEVEL_ERROR,
  warn = WSYNC_LOG_LEVEL_WARN,
  info = WSYNC_LOG_LEVEL_INFO,
  debug = WSYNC_LOG_LEVEL_DEBUG,
};

/** "BUFFER_TOO_SMALL" and the like. */
inline const char *name(Status status) noexcept {
  return wsync_status_name(static_cast<std::int32_t>(status));
}

/** The same request may be tried again on the same transport. */
inline bool is_retryable(Status status) noexcept {
  return wsync_status_is_retryable(static_cast<std::int32_t>(status)) != 0;
}

/** The transport is lost and has to be made anew. */
inline bool is_transport_lost(Status status) noexcept {
  return wsync_status_is_transport_lost(static_cast<std::int32_t>(status)) != 0;
}

/** Element types that are common in weights. */
namespace dtype {
inline constexpr wsync_dtype f32{WSYNC_DTYPE_CODE_FLOAT, 32, 1};
inline constexpr wsync_dtype f16{WSYNC_DTYPE_CODE_FLOAT, 16, 1};
inline constexpr wsync_dtype bf16{WSYNC_DTYPE_CODE_BFLOAT, 16, 1};
inline constexpr wsync_dtype f8e4m3fn{WSYNC_DTYPE_CODE_FLOAT8_E4M3FN, 8, 1};
inline constexpr wsync_dtype f8e5m2{WSYNC_DTYPE_CODE_FLOAT8_E5M2, 8, 1};
inline constexpr wsync_dtype f4e2m1fnx2{WSYNC_DTYPE_CODE_FLOAT4_E2M1FN, 4, 2};
inline constexpr wsync_dtype i64{WSYNC_DTYPE_CODE_INT, 64, 1};
inline constexpr wsync_dtype i32{WSYNC_DTYPE_CODE_INT, 32, 1};
inline constexpr wsync_dtype i8{WSYNC_DTYPE_CODE_INT, 8, 1};
inline constexpr wsync_dtype u8{WSYNC_DTYPE_CODE_UINT, 8, 1};
} // namespace dtype

/** Time from a call on. */
using Deadline = std::chrono::nanoseconds;
/** One that never comes. */
inline constexpr Deadline no_deadline = Deadline::max();

/** Pointer and count, from anything that has data() and size(), or in braces. */
template <class T> class Span {
public:
  constexpr Span() noexcept = default;
  constexpr Span(T *data, std::size_t size) noexcept : data_(data), size_(size) {}
  template <std::size_t N>
  constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
  template <class C,
            class = std::enable_if_t<std::is_convertible_v<
                std::remove_pointer_t<decltype(std::declval<C &>().data())> (*)[], T (*)[]>>,
            class = decltype(std::declval<C &>().size())>
  constexpr Span(C &&container) noexcept : data_(container.data()), size_(container.size()) {}
  /** For arguments: {4, 4} lives as long as the call. */
  template <class U = T, class = std::enable_if_t<std::is_const_v<U>>>
  constexpr Span(std::initializer_list<std::remove_const_t<T>> list) noexcept
      : Span(list.begin(), list.size()) {}

  constexpr T *data() const noexcept { return data_; }
  constexpr std::size_t size() const noexcept { return size_; }
  constexpr bool empty() const noexcept { return size_ == 0; }
  constexpr T *begin() const noexcept { return data_; }
  constexpr T *end() const noexcept { return data_ + size_; }
  constexpr T &operator[](std::size_t i) const noexcept { return data_[i]; }

private:
  T *data_ = nullptr;
  std::size_t size_ = 0;
};

using Bytes = Span<const std::uint8_t>;

/** A NUL-terminated name that somebody else keeps. */
class Name {
public:
  Name(const char *text) noexcept : text_(text) {}
  Name(const std::string &text) noexcept : text_(text.c_str()) {}
  const char *c_str() const noexcept { return text_; }

private:
  const char *text_;
};

using Fingerprint = wsync_fingerprint;
using Pair = wsync_pair;
using RankLoad = wsync_rank_load;
using MovedPair = wsync_moved_pair;

/** Side, name, size and memory of a buffer that a rank binds. */
struct BufferInfo {
  std::string name;
  std::uint64_t bytes = 0;
  /** Of a plan; a layout may serve as either. */
  std::optional<Side> side;
  Memory memory = Memory::host;
  std::uint32_t device = 0;
};

/** How the caller sees memory that it binds; plans that see it otherwise refuse it. */
struct Array {
  wsync_dtype dtype{};
  /** Elements along each axis; empty if that is not told. */
  Span<const std::uint64_t> shape{};
  /** Bytes between neighbours along each axis; empty means without gaps. */
  Span<const std::int64_t> strides{};
};

/** What became of destination memory. */
struct Outcomes {
  /** This rank's. */
  Outcome rank = Outcome::untouched;
  /** That of the whole copy the rank belongs to. */
  Outcome copy = Outcome::untouched;
};

/** What wsync_layout_check finds. */
struct Findings {
  /** How many hinder a plan. */
  std::size_t error_count = 0;
  /** All of them. */
  std::string json;
};

// ---- options: the C structs, all defaults until a field is set --------------

struct TwoStageOptions : wsync_two_stage_options {
  TwoStageOptions() noexcept : wsync_two_stage_options WSYNC_TWO_STAGE_OPTIONS_INIT {}
};

struct TopologyOptions : wsync_topology_options {
  TopologyOptions() noexcept : wsync_topology_options WSYNC_TOPOLOGY_OPTIONS_INIT {}
};

struct RankPlace : wsync_rank_place {
  RankPlace() noexcept : wsync_rank_place WSYNC_RANK_PLACE_INIT {}
};

struct SimulateOptions : wsync_simulate_options {
  SimulateOptions() noexcept : wsync_simulate_options WSYNC_SIMULATE_OPTIONS_INIT {}
};

struct PlanOptions : wsync_plan_options {
  PlanOptions() noexcept : wsync_plan_options WSYNC_PLAN_OPTIONS_INIT {}
  explicit PlanOptions(Strategy way, SourceRule rule = SourceRule::by_default) noexcept
      : PlanOptions() {
    strategy = static_cast<std::uint32_t>(way);
    source_rule = static_cast<std::uint32_t>(rule);
  }
};

/** Everything, only what has a property, or only what has it not. */
enum class Choice : std::uint32_t {
  any = WSYNC_SELECT_ANY,
  only = WSYNC_SELECT_ONLY,
  without = WSYNC_SELECT_WITHOUT,
};

/** What a plan moves; what is left empty selects all, what is given must all hold. */
struct Selector {
  /** Globs on names; `exclude` takes names out again. */
  std::vector<std::string_view> include{};
  std::vector<std::string_view> exclude{};
  /** Ranges of layers and of experts, the end excluded. */
  std::vector<wsync_number_range> layers{};
  std::vector<wsync_number_range> experts{};
  /** Destination copies; the plan numbers them anew. */
  std::vector<std::uint32_t> copies{};
  /** By the marks "frozen" and "draft" of both layouts. */
  Choice trainable = Choice::any;
  Choice draft = Choice::any;
};

struct TransportOptions : wsync_transport_options {
  TransportOptions() noexcept : wsync_transport_options WSYNC_TRANSPORT_OPTIONS_INIT {}
};

/** What NCCL's ranks find each other by. */
using NcclId = std::array<std::uint8_t, WSYNC_NCCL_ID_BYTES>;

/** How a transport uses NCCL. What it points to is read when a transport is made. */
struct NcclOptions : wsync_nccl_options {
  NcclOptions() noexcept : wsync_nccl_options WSYNC_NCCL_OPTIONS_INIT {}
  /** From a unique id, the same on all ranks. */
  explicit NcclOptions(const NcclId &unique_id) noexcept : NcclOptions() { id = unique_id.data(); }
  /** With an ncclComm_t of the caller's. */
  NcclOptions(NcclMode how, void *nccl_comm) noexcept : NcclOptions() {
    mode = static_cast<std::uint32_t>(how);
    comm = nccl_comm;
  }

  void set_ipc(NcclIpc scope) noexcept { ipc = static_cast<std::uint32_t>(scope); }
};

struct SessionOptions : wsync_session_options {
  SessionOptions() noexcept : wsync_session_options WSYNC_SESSION_OPTIONS_INIT {}
};

struct RequestOptions : wsync_request_options {
  RequestOptions() noexcept : wsync_request_options WSYNC_REQUEST_OPTIONS_INIT {}
  explicit RequestOptions(std::uint64_t weights_version, std::uint32_t request_flags = 0) noexcept
      : RequestOptions() {
    version = weights_version;
    flags = request_flags;
  }
  RequestOptions(std::uint64_t weights_version, RequestFlag flag) noexcept
      : RequestOptions(weights_version, static_cast<std::uint32_t>(flag)) {}
};

struct MappingOptions : wsync_mapping_options {
  MappingOptions() noexcept : wsync_mapping_options WSYNC_MAPPING_OPTIONS_INIT {}
  explicit MappingOptions(MappingKind which) noexcept : MappingOptions() {
    kind = static_cast<std::uint32_t>(which);
  }
  MappingOptions(MappingKind which, MappingFlag flag) noexcept : MappingOptions(which) {
    flags = static_cast<std::uint32_t>(flag);
  }
};

struct ProgramInfo : wsync_program_info {
  ProgramInfo() noexcept : wsync_program_info WSYNC_PROGRAM_INFO_INIT {}
};

// ---- errors -----------------------------------------------------------------

/** Why a call failed; false until one does, and again when the next begins. */
class ErrorRecord {
public:
  explicit operator bool() const noexcept { return raw_.status != WSYNC_OK; }
  Status status() const noexcept { return static_cast<Status>(raw_.status); }
  const char *message() const noexcept { return raw_.message; }
  std::int32_t native_code() const noexcept { return raw_.native_code; }
  NativeDomain native_domain() const noexcept {
    return static_cast<NativeDomain>(raw_.native_domain);
  }
  /** The rank to blame, if there is one. */
  std::optional<std::uint32_t> rank() const noexcept {
    if (!*this || raw_.rank == WSYNC_RANK_NONE) return std::nullopt;
    return raw_.rank;
  }

  void clear() noexcept {
    raw_.status = WSYNC_OK;
    raw_.message[0] = '\0';
  }
  wsync_error *c_ptr() noexcept { return &raw_; }

private:
  wsync_error raw_ = WSYNC_ERROR_INIT;
};

#if WEIGHTSYNC_EXCEPTIONS
/** What every function without an ErrorRecord throws. */
class Error : public std::runtime_error {
public:
  explicit Error(const ErrorRecord &record)
      : std::runtime_error(record.message()), status_(record.status()), rank_(record.rank()),
        native_code_(record.native_code()), native_domain_(record.native_domain()) {}

  Status status() const noexcept { return status_; }
  std::optional<std::uint32_t> rank() const noexcept { return rank_; }
  std::int32_t native_code() const noexcept { return native_code_; }
  NativeDomain native_domain() const noexcept { return native_domain_; }

private:
  Status status_;
  std::optional<std::uint32_t> rank_;
  std::int32_t native_code_;
  NativeDomain native_domain_;
};
#endif

/** True if the loaded library fits the header that this was compiled with. */
inline bool header_matches() noexcept { return wsync_header_matches() != 0; }

/** Version of the loaded library: major, minor and patch, 8 bits each. */
inline std::uint32_t library_version() noexcept { return wsync_version(); }

/** The same as text, such as "0.1.0". */
inline const char *library_version_string() noexcept { return wsync_version_string(); }

/** Number of the library's binary interface. */
inline std::uint32_t abi_version() noexcept { return wsync_abi_version(); }

/** The environment variables that the library knows, and what holds in this process. */
inline std::vector<wsync_env_info> environment() {
  std::vector<wsync_env_info> found(wsync_env_count(), wsync_env_info WSYNC_ENV_INFO_INIT);
  for (std::size_t i = 0; i < found.size(); i++) wsync_env_at(i, &found[i], nullptr);
  return found;
}

/** The file that the library was loaded from. */
inline const char *library_file() noexcept { return wsync_library_file(); }

namespace detail {

/** Calls a C function; the record is last among its arguments. */
template <class... Parameters, class... Arguments>
Status call(ErrorRecord &err, wsync_status (*function)(Parameters...),
            Arguments &&...arguments) noexcept {
  err.clear();
  return static_cast<Status>(function(std::forward<Arguments>(arguments)..., err.c_ptr()));
}

} // namespace detail

/** Like header_matches; the record says which file was loaded and what to do. */
inline Status header_check(ErrorRecord &err) noexcept {
  return detail::call(err, wsync_header_check, WSYNC_VERSION, WSYNC_ABI_VERSION);
}

namespace detail {

/** Like call, for what makes the first objects: checks the library once. */
template <class... Parameters, class... Arguments>
Status first_call(ErrorRecord &err, wsync_status (*function)(Parameters...),
                  Arguments &&...arguments) noexcept {
  static const bool matches = wsync_header_matches() != 0;
  if (!matches) return header_check(err);
  return call(err, function, std::forward<Arguments>(arguments)...);
}

#if WEIGHTSYNC_EXCEPTIONS
/** The one place that throws. */
[[noreturn]] inline void raise(const ErrorRecord &record) { throw Error(record); }

/** Runs the noexcept half of a function and throws what it reports. */
template <class F> auto checked(F &&half) -> decltype(half(std::declval<ErrorRecord &>())) {
  ErrorRecord err;
  if constexpr (std::is_void_v<decltype(half(err))>) {
    half(err);
    if (err) raise(err);
  } else {
    auto result = half(err);
    if (err) raise(err);
    return result;
  }
}
#endif

/**
 * Asks for a result of any length and fetches it. `fetch` takes the buffer, its
 * capacity, the place for the size, and the record.
 */
template <class Container, class F> Container fetch_all(ErrorRecord &err, F &&fetch) noexcept {
  Container out;
  for (;;) {
    std::size_t needed = 0;
    err.clear();
    if (fetch(nullptr, 0, &needed, err.c_ptr()) != WSYNC_OK) return Container();
    out.resize(needed);
    const wsync_status status = fetch(out.data(), out.size(), &needed, err.c_ptr());
    if (status == WSYNC_OK) {
      err.clear();
      out.resize(needed);
      return out;
    }
    // What reports on something that runs may grow in between.
    if (status != WSYNC_ERR_BUFFER_TOO_SMALL) return Container();
  }
}

/** The same for text, whose NUL a string need not count. */
template <class F> std::string fetch_text(ErrorRecord &err, F &&fetch) noexcept {
  std::string out = fetch_all<std::string>(err, std::forward<F>(fetch));
  if (!out.empty()) out.pop_back();
  return out;
}

inline std::uint64_t nanoseconds(Deadline deadline) noexcept {
  if (deadline == no_deadline) return WSYNC_NO_DEADLINE;
  return deadline.count() < 0 ? 0 : static_cast<std::uint64_t>(deadline.count());
}

inline wsync_text text(std::string_view text) noexcept {
  return wsync_text{text.data(), text.size()};
}

/** One number per axis; more than there is room for are counted, not copied. */
template <class T>
void copy_numbers(T (&to)[WSYNC_DIM_COUNT_MAX], Span<const T> from) noexcept {
  for (std::size_t i = 0; i < from.size() && i < WSYNC_DIM_COUNT_MAX; i++) to[i] = from[i];
}

inline BufferInfo buffer_info(const wsync_buffer_info &raw) {
  BufferInfo info;
  info.name.assign(raw.name, raw.name_bytes);
  info.bytes = raw.bytes;
  if (raw.side != 0) info.side = static_cast<Side>(raw.side);
  info.memory = static_cast<Memory>(raw.memory);
  info.device = raw.device;
  return info;
}

/** Owns a handle: moves, does not copy, destroys. */
template <class T, void (*destroy)(T *)> class Handle {
public:
  Handle() noexcept = default;
  /** Takes over what a C function made. */
  explicit Handle(T *raw) noexcept : raw_(raw) {}

  explicit operator bool() const noexcept { return raw_ != nullptr; }
  T *c_ptr() const noexcept { return raw_.get(); }
  /** Gives the handle up to the caller, who destroys it. */
  [[nodiscard]] T *release() noexcept { return raw_.release(); }
  void reset() noexcept { raw_.reset(); }

private:
  struct Destroy {
    void operator()(T *raw) const noexcept { destroy(raw); }
  };
  std::unique_ptr<T, Destroy> raw_;
};

} // namespace detail

// ---- layouts ------------------------------------------------------------------

/** Collects what one rank holds; Layout::from_views reads it. */
class RankViews {
public:
  explicit RankViews(std::uint32_t rank, std::uint32_t copy = 0) : rank_(rank), copy_(copy) {}

  /** Declares a tensor; the number is for add_view. */
  std::uint32_t add_tensor(std::string name, wsync_dtype type, Span<const std::uint64_t> shape,
                           Span<const std::uint64_t> granule = {}) {
    wsync_tensor tensor{};
    tensor.dim_count = static_cast<std::uint32_t>(shape.size());
    tensor.dtype = type;
    detail::copy_numbers(tensor.shape, shape);
    detail::copy_numbers(tensor.granule, granule);
    tensors_.push_back(tensor);
    tensor_names_.push_back(std::move(name));
    return static_cast<std::uint32_t>(tensors_.size() - 1);
  }

  /** Declares a buffer; the number is for add_view. */
  std::uint32_t add_buffer(std::string name, std::uint64_t bytes, Memory memory = Memory::host,
                           std::uint32_t device = 0) {
    wsync_buffer buffer{};
    buffer.bytes = bytes;
    buffer.memory = static_cast<std::uint32_t>(memory);
    buffer.device = device;
    buffers_.push_back(buffer);
    buffer_names_.push_back(std::move(name));
    return static_cast<std::uint32_t>(buffers_.size() - 1);
  }

  /** The box [lo, hi) of a tensor; without strides it is stored without gaps. */
  void add_view(std::uint32_t tensor, Span<const std::uint64_t> lo, Span<const std::uint64_t> hi,
                std::uint32_t buffer, std::uint64_t offset = 0,
                Span<const std::int64_t> strides = {}, wsync_dtype type = {}) {
    wsync_view view{};
    view.tensor = tensor;
    view.buffer = buffer;
    view.offset = offset;
    view.dtype = type;
    detail::copy_numbers(view.lo, lo);
    detail::copy_numbers(view.hi, hi);
    detail::copy_numbers(view.strides, strides);
    views_.push_back(view);
  }

  /** Another name of a tensor. */
  void add_alias(std::string alias, std::string name) {
    aliases_.emplace_back(std::move(alias), std::move(name));
  }

private:
  friend class Layout;

  std::uint32_t rank_;
  std::uint32_t copy_;
  std::vector<wsync_tensor> tensors_;
  std::vector<std::string> tensor_names_;
  std::vector<wsync_buffer> buffers_;
  std::vector<std::string> buffer_names_;
  std::vector<wsync_view> views_;
  std::vector<std::pair<std::string, std::string>> aliases_;
};

/** One side's description: which rank holds which part of which tensor. */
class Layout : public detail::Handle<wsync_layout, wsync_layout_destroy> {
public:
  using Handle::Handle;

  static Layout from_json(std::string_view json, ErrorRecord &err) noexcept {
    wsync_layout *out = nullptr;
    detail::first_call(err, wsync_layout_create_from_json, json.data(), json.size(), &out);
    return Layout(out);
  }

  /** The layout of the model of a Hugging Face config.json: `framework` is
   * "megatron", "vllm", "sglang", "hf" or "dtensor", `sizes` its parallel
   * sizes, such as "tp=4,pp=8,frozen=lm_head.*"; for "dtensor" the text of a
   * DTensor file. describe() has remarks and hazards. */
  static Layout from_model(std::string_view config_json, const char *framework,
                           std::string_view sizes, std::uint32_t first_rank,
                           ErrorRecord &err) noexcept {
    wsync_layout *out = nullptr;
    detail::first_call(err, wsync_layout_from_model, config_json.data(), config_json.size(),
                       framework, sizes.data(), sizes.size(), first_rank, &out);
    return Layout(out);
  }

  static Layout from_views(const RankViews &views, ErrorRecord &err) noexcept {
    std::vector<wsync_tensor> tensors = views.tensors_;
    std::vector<wsync_buffer> buffers = views.buffers_;
    std::vector<wsync_alias> aliases;
    for (std::size_t i = 0; i < tensors.size(); i++) {
      tensors[i].name = detail::text(views.tensor_names_[i]);
    }
    for (std::size_t i = 0; i < buffers.size(); i++) {
      buffers[i].name = detail::text(views.buffer_names_[i]);
    }
    for (const auto &[alias, name] : views.aliases_) {
      aliases.push_back(wsync_alias{detail::text(alias), detail::text(name)});
    }
    wsync_rank_views raw = WSYNC_RANK_VIEWS_INIT;
    raw.rank = views.rank_;
    raw.copy = views.copy_;
    raw.tensors = tensors.data();
    raw.tensor_count = tensors.size();
    raw.buffers = buffers.data();
    raw.buffer_count = buffers.size();
    raw.views = views.views_.data();
    raw.view_count = views.views_.size();
    raw.aliases = aliases.data();
    raw.alias_count = aliases.size();
    wsync_layout *out = nullptr;
    detail::first_call(err, wsync_layout_create_from_views, &raw, &out);
    return Layout(out);
  }

  static Layout from_bytes(Bytes bytes, ErrorRecord &err) noexcept {
    wsync_layout *out = nullptr;
    detail::first_call(err, wsync_layout_create_from_bytes, bytes.data(), bytes.size(), &out);
    return Layout(out);
  }

  static Layout merge(Span<const Layout> layouts, ErrorRecord &err) noexcept {
    std::vector<const wsync_layout *> raw;
    for (const Layout &layout : layouts) raw.push_back(layout.c_ptr());
    wsync_layout *out = nullptr;
    detail::first_call(err, wsync_layout_merge, raw.data(), raw.size(), &out);
    return Layout(out);
  }

  std::vector<std::uint8_t> serialize(ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<std::uint8_t>>(
        err, [this](void *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_layout_serialize(c_ptr(), buffer, capacity, needed, e);
        });
  }

  std::string to_json(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_layout_to_json(c_ptr(), buffer, capacity, needed, e);
        });
  }

  std::string describe(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_layout_describe(c_ptr(), buffer, capacity, needed, e);
        });
  }

  /** Everything that is wrong, alone or on the way to `destination`. */
  Findings check(const Layout *destination, ErrorRecord &err) const noexcept {
    Findings findings;
    const wsync_layout *other = destination == nullptr ? nullptr : destination->c_ptr();
    findings.json = detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_layout_check(c_ptr(), other, buffer, capacity, needed,
                                    &findings.error_count, e);
        });
    return findings;
  }

  /** The same from the texts of layout files, which may be ill-formed. */
  static Findings check_json(std::string_view source, std::string_view destination,
                             ErrorRecord &err) noexcept {
    Findings findings;
    findings.json = detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_layout_check_json(source.data(), source.size(), destination.data(),
                                         destination.size(), buffer, capacity, needed,
                                         &findings.error_count, e);
        });
    return findings;
  }

  std::uint32_t rank_count() const noexcept { return wsync_layout_rank_count(c_ptr()); }
  std::uint32_t tensor_count() const noexcept { return wsync_layout_tensor_count(c_ptr()); }
  std::uint32_t copy_count() const noexcept { return wsync_layout_copy_count(c_ptr()); }

  /** Every buffer that `rank` binds, in order of name. */
  std::vector<BufferInfo> buffers(std::uint32_t rank, ErrorRecord &err) const noexcept {
    std::vector<BufferInfo> out;
    const std::size_t count = wsync_layout_buffer_count(c_ptr(), rank);
    err.clear();
    for (std::size_t i = 0; i < count; i++) {
      wsync_buffer_info raw = WSYNC_BUFFER_INFO_INIT;
      if (detail::call(err, wsync_layout_buffer_at, c_ptr(), rank, i, &raw) != Status::ok) {
        return {};
      }
      out.push_back(detail::buffer_info(raw));
    }
    return out;
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Layout from_json(std::string_view json) {
    return detail::checked([&](ErrorRecord &e) { return from_json(json, e); });
  }
  static Layout from_model(std::string_view config_json, const char *framework,
                           std::string_view sizes = {}, std::uint32_t first_rank = 0) {
    return detail::checked([&](ErrorRecord &e) {
      return from_model(config_json, framework, sizes, first_rank, e);
    });
  }
  static Layout from_views(const RankViews &views) {
    return detail::checked([&](ErrorRecord &e) { return from_views(views, e); });
  }
  static Layout from_bytes(Bytes bytes) {
    return detail::checked([&](ErrorRecord &e) { return from_bytes(bytes, e); });
  }
  static Layout merge(Span<const Layout> layouts) {
    return detail::checked([&](ErrorRecord &e) { return merge(layouts, e); });
  }
  std::vector<std::uint8_t> serialize() const {
    return detail::checked([&](ErrorRecord &e) { return serialize(e); });
  }
  std::string to_json() const {
    return detail::checked([&](ErrorRecord &e) { return to_json(e); });
  }
  std::string describe() const {
    return detail::checked([&](ErrorRecord &e) { return describe(e); });
  }
  Findings check(const Layout *destination = nullptr) const {
    return detail::checked([&](ErrorRecord &e) { return check(destination, e); });
  }
  static Findings check_json(std::string_view source, std::string_view destination = {}) {
    return detail::checked([&](ErrorRecord &e) { return check_json(source, destination, e); });
  }
  std::vector<BufferInfo> buffers(std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return buffers(rank, e); });
  }
#endif
};

// ---- topologies -----------------------------------------------------------------

/** What stands between the ranks: hosts, NVLink domains, NICs. */
class Topology : public detail::Handle<wsync_topology, wsync_topology_destroy> {
public:
  using Handle::Handle;

  static Topology create(const TopologyOptions &options, ErrorRecord &err) noexcept {
    wsync_topology *out = nullptr;
    detail::first_call(err, wsync_topology_create, &options, &out);
    return Topology(out);
  }

  static Topology from_json(std::string_view json, ErrorRecord &err) noexcept {
    wsync_topology *out = nullptr;
    detail::first_call(err, wsync_topology_create_from_json, json.data(), json.size(), &out);
    return Topology(out);
  }

  /** Where one rank is, as bytes to be gathered from all ranks. */
  static std::vector<std::uint8_t> place(const RankPlace &place, ErrorRecord &err) noexcept {
    return detail::fetch_all<std::vector<std::uint8_t>>(
        err, [&](void *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_topology_place(&place, buffer, capacity, needed, e);
        });
  }

  /** The topology of ranks that said where they are. */
  static Topology from_places(Span<const Bytes> places, ErrorRecord &err) noexcept {
    std::vector<wsync_bytes> raw;
    for (const Bytes &place : places) raw.push_back({place.data(), place.size()});
    wsync_topology *out = nullptr;
    const wsync_topology_options *like = nullptr;
    detail::first_call(err, wsync_topology_create_from_places, raw.data(), raw.size(), like, &out);
    return Topology(out);
  }

  std::string to_json(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_topology_to_json(c_ptr(), buffer, capacity, needed, e);
        });
  }

  wsync_site site(std::uint32_t rank, ErrorRecord &err) const noexcept {
    wsync_site out = WSYNC_SITE_INIT;
    detail::first_call(err, wsync_topology_site, c_ptr(), rank, &out);
    return out;
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Topology create(const TopologyOptions &options = {}) {
    return detail::checked([&](ErrorRecord &e) { return create(options, e); });
  }
  static Topology from_json(std::string_view json) {
    return detail::checked([&](ErrorRecord &e) { return from_json(json, e); });
  }
  static std::vector<std::uint8_t> place(const RankPlace &where) {
    return detail::checked([&](ErrorRecord &e) { return place(where, e); });
  }
  static Topology from_places(Span<const Bytes> places) {
    return detail::checked([&](ErrorRecord &e) { return from_places(places, e); });
  }
  std::string to_json() const {
    return detail::checked([&](ErrorRecord &e) { return to_json(e); });
  }
  wsync_site site(std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return site(rank, e); });
  }
#endif
};

// ---- mappings -------------------------------------------------------------------

/** Who sends to whom, from sizes and devices alone. */
class Mapping : public detail::Handle<wsync_mapping, wsync_mapping_destroy> {
public:
  using Handle::Handle;

  static Mapping create(const MappingOptions &options, ErrorRecord &err) noexcept {
    wsync_mapping *out = nullptr;
    detail::first_call(err, wsync_mapping_create, &options, &out);
    return Mapping(out);
  }

  std::vector<Pair> pairs(MappingList list, ErrorRecord &err) const noexcept {
    const auto number = static_cast<std::uint32_t>(list);
    return detail::fetch_all<std::vector<Pair>>(
        err, [&](Pair *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_pairs(c_ptr(), number, buffer, capacity, count, e);
        });
  }

  /** Whom `rank` sends to in `list`, in order. */
  std::vector<std::uint32_t> sends(MappingList list, std::uint32_t rank,
                                   ErrorRecord &err) const noexcept {
    const auto number = static_cast<std::uint32_t>(list);
    return detail::fetch_all<std::vector<std::uint32_t>>(
        err, [&](std::uint32_t *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_sends(c_ptr(), number, rank, buffer, capacity, count, e);
        });
  }

  /** Whom `rank` receives from in `list`, in order. */
  std::vector<std::uint32_t> receives(MappingList list, std::uint32_t rank,
                                      ErrorRecord &err) const noexcept {
    const auto number = static_cast<std::uint32_t>(list);
    return detail::fetch_all<std::vector<std::uint32_t>>(
        err, [&](std::uint32_t *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_receives(c_ptr(), number, rank, buffer, capacity, count, e);
        });
  }

  /** How many pairs of `list` end at each destination rank. */
  std::vector<RankLoad> loads(MappingList list, ErrorRecord &err) const noexcept {
    const auto number = static_cast<std::uint32_t>(list);
    return detail::fetch_all<std::vector<RankLoad>>(
        err, [&](RankLoad *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_loads(c_ptr(), number, buffer, capacity, count, e);
        });
  }

  /** The pairs that were moved to avoid a shared device. */
  std::vector<MovedPair> moved(ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<MovedPair>>(
        err, [&](MovedPair *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_moved(c_ptr(), buffer, capacity, count, e);
        });
  }

  std::uint32_t group_size() const noexcept { return wsync_mapping_group_size(c_ptr()); }
  RegroupKind regroup_kind() const noexcept {
    return static_cast<RegroupKind>(wsync_mapping_regroup_kind(c_ptr()));
  }
  std::size_t regroup_count() const noexcept { return wsync_mapping_regroup_count(c_ptr()); }

  std::vector<std::uint32_t> regroup_at(std::size_t index, ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<std::uint32_t>>(
        err, [&](std::uint32_t *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_mapping_regroup_at(c_ptr(), index, buffer, capacity, count, e);
        });
  }

  std::string report(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_mapping_report(c_ptr(), buffer, capacity, needed, e);
        });
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Mapping create(const MappingOptions &options) {
    return detail::checked([&](ErrorRecord &e) { return create(options, e); });
  }
  std::vector<Pair> pairs(MappingList list) const {
    return detail::checked([&](ErrorRecord &e) { return pairs(list, e); });
  }
  std::vector<std::uint32_t> sends(MappingList list, std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return sends(list, rank, e); });
  }
  std::vector<std::uint32_t> receives(MappingList list, std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return receives(list, rank, e); });
  }
  std::vector<RankLoad> loads(MappingList list = MappingList::pairs) const {
    return detail::checked([&](ErrorRecord &e) { return loads(list, e); });
  }
  std::vector<MovedPair> moved() const {
    return detail::checked([&](ErrorRecord &e) { return moved(e); });
  }
  std::vector<std::uint32_t> regroup_at(std::size_t index) const {
    return detail::checked([&](ErrorRecord &e) { return regroup_at(index, e); });
  }
  std::string report() const {
    return detail::checked([&](ErrorRecord &e) { return report(e); });
  }
#endif
};

// ---- plans ------------------------------------------------------------------------

/** How bytes get from one layout to the other. */
class Plan : public detail::Handle<wsync_plan, wsync_plan_destroy> {
public:
  using Handle::Handle;

  static Plan create(const Layout &source, const Layout &destination, const PlanOptions &options,
                     ErrorRecord &err) noexcept {
    wsync_plan *out = nullptr;
    detail::first_call(err, wsync_plan_create, source.c_ptr(), destination.c_ptr(), &options,
                       &out);
    return Plan(out);
  }

  static Plan from_bytes(Bytes bytes, ErrorRecord &err) noexcept {
    wsync_plan *out = nullptr;
    detail::first_call(err, wsync_plan_create_from_bytes, bytes.data(), bytes.size(), &out);
    return Plan(out);
  }

  /** This plan for sides or a topology that changed a little; nullptr keeps. */
  Plan replan(const Layout *source, const Layout *destination, const Topology *topology,
              ErrorRecord &err) const noexcept {
    wsync_plan *out = nullptr;
    detail::call(err, wsync_plan_replan, c_ptr(), source == nullptr ? nullptr : source->c_ptr(),
                 destination == nullptr ? nullptr : destination->c_ptr(),
                 topology == nullptr ? nullptr : topology->c_ptr(), &out);
    return Plan(out);
  }

  /** The plan of what is selected. */
  Plan select(const Selector &what, ErrorRecord &err) const noexcept {
    std::vector<wsync_text> in;
    std::vector<wsync_text> out_again;
    for (std::string_view glob : what.include) in.push_back(detail::text(glob));
    for (std::string_view glob : what.exclude) out_again.push_back(detail::text(glob));
    wsync_selector selector = WSYNC_SELECTOR_INIT;
    selector.include = in.data();
    selector.include_count = in.size();
    selector.exclude = out_again.data();
    selector.exclude_count = out_again.size();
    selector.layers = what.layers.data();
    selector.layers_count = what.layers.size();
    selector.experts = what.experts.data();
    selector.experts_count = what.experts.size();
    selector.copies = what.copies.data();
    selector.copies_count = what.copies.size();
    selector.trainable = static_cast<std::uint32_t>(what.trainable);
    selector.draft = static_cast<std::uint32_t>(what.draft);
    wsync_plan *out = nullptr;
    detail::call(err, wsync_plan_select, c_ptr(), &selector, &out);
    return Plan(out);
  }

  std::vector<std::uint8_t> serialize(ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<std::uint8_t>>(
        err, [this](void *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_serialize(c_ptr(), buffer, capacity, needed, e);
        });
  }

  Fingerprint fingerprint(ErrorRecord &err) const noexcept {
    Fingerprint out{};
    detail::call(err, wsync_plan_fingerprint, c_ptr(), &out);
    return out;
  }

  void verify(ErrorRecord &err) const noexcept {
    detail::call(err, wsync_plan_verify, c_ptr());
  }

  std::uint32_t rank_count() const noexcept { return wsync_plan_rank_count(c_ptr()); }
  std::uint32_t tensor_count() const noexcept { return wsync_plan_tensor_count(c_ptr()); }
  std::uint32_t step_count() const noexcept { return wsync_plan_step_count(c_ptr()); }

  std::vector<std::uint32_t> ranks(ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<std::uint32_t>>(
        err,
        [this](std::uint32_t *buffer, std::size_t capacity, std::size_t *count, wsync_error *e) {
          return wsync_plan_ranks(c_ptr(), buffer, capacity, count, e);
        });
  }

  ProgramInfo program_info(std::uint32_t rank, ErrorRecord &err) const noexcept {
    ProgramInfo info;
    detail::call(err, wsync_plan_program_info, c_ptr(), rank, &info);
    return info;
  }

  /** What each of `ranks` does, in their order, on several threads. */
  std::vector<ProgramInfo> program_infos(const std::vector<std::uint32_t> &ranks,
                                         ErrorRecord &err) const noexcept {
    std::vector<ProgramInfo> infos(ranks.size());
    detail::call(err, wsync_plan_program_infos, c_ptr(), ranks.data(), ranks.size(), infos.data(),
                 sizeof(ProgramInfo));
    return infos;
  }

  /** Every buffer that `rank` binds for this plan, the source side first. */
  std::vector<BufferInfo> buffers(std::uint32_t rank, ErrorRecord &err) const noexcept {
    std::vector<BufferInfo> out;
    const std::size_t count = wsync_plan_buffer_count(c_ptr(), rank);
    err.clear();
    for (std::size_t i = 0; i < count; i++) {
      wsync_buffer_info raw = WSYNC_BUFFER_INFO_INIT;
      if (detail::call(err, wsync_plan_buffer_at, c_ptr(), rank, i, &raw) != Status::ok) {
        return {};
      }
      out.push_back(detail::buffer_info(raw));
    }
    return out;
  }

  /** The last step that brings `rank` bytes of the tensor; none if none does. */
  std::optional<std::uint32_t> tensor_last_step(std::uint32_t rank, Name tensor,
                                                ErrorRecord &err) const noexcept {
    std::uint32_t step = WSYNC_STEP_NONE;
    detail::call(err, wsync_plan_tensor_last_step, c_ptr(), rank, tensor.c_str(), &step);
    if (step == WSYNC_STEP_NONE) return std::nullopt;
    return step;
  }

  std::string rank_ops(std::uint32_t rank, ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_rank_ops(c_ptr(), rank, buffer, capacity, needed, e);
        });
  }

  std::string report(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_report(c_ptr(), buffer, capacity, needed, e);
        });
  }

  /** Where an element on a destination rank comes from and over which links, as JSON. */
  std::string origin(std::uint32_t rank, Name tensor, const std::vector<std::uint64_t> &index,
                     ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_origin(c_ptr(), rank, tensor.c_str(), index.data(), index.size(), buffer,
                                   capacity, needed, e);
        });
  }

  /** Bound, prediction and ratio as JSON, on a topology or the plan's own. */
  std::string certificate(const Topology *topology, ErrorRecord &err) const noexcept {
    const wsync_topology *ground = topology == nullptr ? nullptr : topology->c_ptr();
    return detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_certificate(c_ptr(), ground, buffer, capacity, needed, e);
        });
  }

  /** What happens with some ranks slow and some dying, as JSON. */
  std::string simulate(const Topology *topology, const SimulateOptions &options,
                       ErrorRecord &err) const noexcept {
    const wsync_topology *ground = topology == nullptr ? nullptr : topology->c_ptr();
    return detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_simulate(c_ptr(), ground, &options, buffer, capacity, needed, e);
        });
  }

  std::string diff(const Plan &other, ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [&](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_plan_diff(c_ptr(), other.c_ptr(), buffer, capacity, needed, e);
        });
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Plan create(const Layout &source, const Layout &destination,
                     const PlanOptions &options = {}) {
    return detail::checked(
        [&](ErrorRecord &e) { return create(source, destination, options, e); });
  }
  static Plan from_bytes(Bytes bytes) {
    return detail::checked([&](ErrorRecord &e) { return from_bytes(bytes, e); });
  }
  Plan replan(const Layout *source, const Layout *destination,
              const Topology *topology = nullptr) const {
    return detail::checked(
        [&](ErrorRecord &e) { return replan(source, destination, topology, e); });
  }
  Plan select(const Selector &what) const {
    return detail::checked([&](ErrorRecord &e) { return select(what, e); });
  }
  /** The plan of the tensors that match `include` (all if empty) less `exclude`. */
  Plan select(Span<const std::string_view> include,
              Span<const std::string_view> exclude = {}) const {
    Selector what;
    what.include.assign(include.data(), include.data() + include.size());
    what.exclude.assign(exclude.data(), exclude.data() + exclude.size());
    return select(what);
  }
  std::vector<std::uint8_t> serialize() const {
    return detail::checked([&](ErrorRecord &e) { return serialize(e); });
  }
  Fingerprint fingerprint() const {
    return detail::checked([&](ErrorRecord &e) { return fingerprint(e); });
  }
  void verify() const {
    detail::checked([&](ErrorRecord &e) { verify(e); });
  }
  std::vector<std::uint32_t> ranks() const {
    return detail::checked([&](ErrorRecord &e) { return ranks(e); });
  }
  ProgramInfo program_info(std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return program_info(rank, e); });
  }
  std::vector<ProgramInfo> program_infos(const std::vector<std::uint32_t> &ranks) const {
    return detail::checked([&](ErrorRecord &e) { return program_infos(ranks, e); });
  }
  std::vector<BufferInfo> buffers(std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return buffers(rank, e); });
  }
  std::optional<std::uint32_t> tensor_last_step(std::uint32_t rank, Name tensor) const {
    return detail::checked([&](ErrorRecord &e) { return tensor_last_step(rank, tensor, e); });
  }
  std::string rank_ops(std::uint32_t rank) const {
    return detail::checked([&](ErrorRecord &e) { return rank_ops(rank, e); });
  }
  std::string report() const {
    return detail::checked([&](ErrorRecord &e) { return report(e); });
  }
  std::string origin(std::uint32_t rank, Name tensor,
                     const std::vector<std::uint64_t> &index) const {
    return detail::checked([&](ErrorRecord &e) { return origin(rank, tensor, index, e); });
  }
  std::string certificate(const Topology *topology = nullptr) const {
    return detail::checked([&](ErrorRecord &e) { return certificate(topology, e); });
  }
  std::string simulate(const Topology *topology = nullptr,
                       const SimulateOptions &options = {}) const {
    return detail::checked([&](ErrorRecord &e) { return simulate(topology, options, e); });
  }
  std::string diff(const Plan &other) const {
    return detail::checked([&](ErrorRecord &e) { return diff(other, e); });
  }
#endif
};

// ---- transports ---------------------------------------------------------------------

/** The way of one rank to all others. */
class Transport : public detail::Handle<wsync_transport, wsync_transport_destroy> {
public:
  using Handle::Handle;

  static Transport create(const TransportOptions &options, ErrorRecord &err) noexcept {
    wsync_transport *out = nullptr;
    detail::first_call(err, wsync_transport_create, &options, &out);
    return Transport(out);
  }

  /** Rank `rank` of ranks 0, 1, .. rank_count - 1. */
  static Transport create(TransportKind kind, std::uint32_t rank, std::uint32_t rank_count,
                          ErrorRecord &err) noexcept {
    TransportOptions options;
    options.kind = static_cast<std::uint32_t>(kind);
    options.rank = rank;
    options.rank_count = rank_count;
    return create(options, err);
  }

  /** Rank `rank` of ranks 0, 1, .. rank_count - 1, on a GPU. */
  static Transport create(const NcclOptions &nccl, std::uint32_t rank, std::uint32_t rank_count,
                          ErrorRecord &err) noexcept {
    TransportOptions options;
    options.kind = static_cast<std::uint32_t>(TransportKind::nccl);
    options.rank = rank;
    options.rank_count = rank_count;
    options.nccl = &nccl;
    return create(options, err);
  }

  /** A unique id, for one rank to give to all; `library` may be NULL. */
  static NcclId nccl_id(const char *library, ErrorRecord &err) noexcept {
    NcclId id{};
    std::size_t needed = 0;
    detail::first_call(err, wsync_transport_nccl_id, library, id.data(), id.size(), &needed);
    return id;
  }

  /** The version of NCCL that a transport would use, 23007 for 2.30.7. */
  static std::uint32_t nccl_version(const char *library, ErrorRecord &err) noexcept {
    std::uint32_t version = 0;
    detail::first_call(err, wsync_transport_nccl_version, library, &version);
    return version;
  }

  std::vector<std::uint8_t> greeting(ErrorRecord &err) const noexcept {
    return detail::fetch_all<std::vector<std::uint8_t>>(
        err, [this](void *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_transport_greeting(c_ptr(), buffer, capacity, needed, e);
        });
  }

  void meet(Span<const std::vector<std::uint8_t>> greetings, Deadline deadline,
            ErrorRecord &err) noexcept {
    std::vector<wsync_bytes> raw;
    for (const auto &greeting : greetings) {
      raw.push_back(wsync_bytes{greeting.data(), greeting.size()});
    }
    detail::call(err, wsync_transport_meet, c_ptr(), raw.data(), raw.size(),
                 detail::nanoseconds(deadline));
  }

  void rendezvous(Name address, std::string_view token, Deadline deadline,
                  ErrorRecord &err) noexcept {
    detail::call(err, wsync_transport_rendezvous, c_ptr(), address.c_str(), token.data(),
                 token.size(), detail::nanoseconds(deadline));
  }

  std::uint32_t rank() const noexcept { return wsync_transport_rank(c_ptr()); }
  std::uint32_t rank_count() const noexcept { return wsync_transport_rank_count(c_ptr()); }

  /** The reason for which the transport was aborted, in the record, if it was. */
  void status(ErrorRecord &err) const noexcept {
    detail::call(err, wsync_transport_status, c_ptr());
  }

  /** From any thread, at any time. */
  void abort(Name reason) noexcept { wsync_transport_abort(c_ptr(), reason.c_str(), nullptr); }

  void finalize(Deadline deadline, ErrorRecord &err) noexcept {
    detail::call(err, wsync_transport_finalize, c_ptr(), detail::nanoseconds(deadline));
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Transport create(const TransportOptions &options) {
    return detail::checked([&](ErrorRecord &e) { return create(options, e); });
  }
  static Transport create(TransportKind kind, std::uint32_t rank, std::uint32_t rank_count) {
    return detail::checked([&](ErrorRecord &e) { return create(kind, rank, rank_count, e); });
  }
  static Transport create(const NcclOptions &nccl, std::uint32_t rank, std::uint32_t rank_count) {
    return detail::checked([&](ErrorRecord &e) { return create(nccl, rank, rank_count, e); });
  }
  static NcclId nccl_id(const char *library = nullptr) {
    return detail::checked([&](ErrorRecord &e) { return nccl_id(library, e); });
  }
  static std::uint32_t nccl_version(const char *library = nullptr) {
    return detail::checked([&](ErrorRecord &e) { return nccl_version(library, e); });
  }
  std::vector<std::uint8_t> greeting() const {
    return detail::checked([&](ErrorRecord &e) { return greeting(e); });
  }
  void meet(Span<const std::vector<std::uint8_t>> greetings, Deadline deadline) {
    detail::checked([&](ErrorRecord &e) { meet(greetings, deadline, e); });
  }
  void rendezvous(Name address, std::string_view token, Deadline deadline) {
    detail::checked([&](ErrorRecord &e) { rendezvous(address, token, deadline, e); });
  }
  /** Throws the reason for which the transport was aborted, if it was. */
  void check() const {
    detail::checked([&](ErrorRecord &e) { status(e); });
  }
  void finalize(Deadline deadline) {
    detail::checked([&](ErrorRecord &e) { finalize(deadline, e); });
  }
#endif
};

// ---- sessions -------------------------------------------------------------------------

/** One rank's buffers, by name, and the plans it has loaded. */
class Session : public detail::Handle<wsync_session, wsync_session_destroy> {
public:
  using Handle::Handle;

  static Session create(const Transport &transport, const SessionOptions &options,
                        ErrorRecord &err) noexcept {
    wsync_session *out = nullptr;
    detail::call(err, wsync_session_create, transport.c_ptr(), &options, &out);
    return Session(out);
  }

  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, Memory memory,
            std::uint32_t device, ErrorRecord &err) noexcept {
    detail::call(err, wsync_session_bind, c_ptr(), static_cast<std::uint32_t>(side), name.c_str(),
                 ptr, bytes, static_cast<std::uint32_t>(memory), device);
  }

  /** Host memory. */
  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, ErrorRecord &err) noexcept {
    bind(side, name, ptr, bytes, Memory::host, 0, err);
  }

  /** With what is known of the array, which plans are then held against. */
  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, const Array &array,
            Memory memory, std::uint32_t device, ErrorRecord &err) noexcept {
    wsync_binding binding{};
    binding.name = detail::text(name.c_str());
    binding.ptr = ptr;
    binding.bytes = bytes;
    binding.side = static_cast<std::uint32_t>(side);
    binding.memory = static_cast<std::uint32_t>(memory);
    binding.device = device;
    binding.dtype = array.dtype;
    binding.dim_count = static_cast<std::uint32_t>(array.shape.size());
    detail::copy_numbers(binding.shape, array.shape);
    detail::copy_numbers(binding.strides, array.strides);
    bind_many({binding}, err);
  }

  /** The same for host memory. */
  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, const Array &array,
            ErrorRecord &err) noexcept {
    bind(side, name, ptr, bytes, array, Memory::host, 0, err);
  }

  /** All of them or none. */
  void bind_many(Span<const wsync_binding> bindings, ErrorRecord &err) noexcept {
    detail::call(err, wsync_session_bind_many, c_ptr(), bindings.data(), bindings.size(),
                 sizeof(wsync_binding));
  }

  void unbind(Side side, Name name, ErrorRecord &err) noexcept {
    detail::call(err, wsync_session_unbind, c_ptr(), static_cast<std::uint32_t>(side),
                 name.c_str());
  }

  /** The slot that the plan takes. */
  std::uint32_t load(const Plan &plan, ErrorRecord &err) noexcept {
    std::uint32_t slot = 0;
    detail::call(err, wsync_session_load, c_ptr(), plan.c_ptr(), &slot);
    return slot;
  }

  void unload(std::uint32_t slot, ErrorRecord &err) noexcept {
    detail::call(err, wsync_session_unload, c_ptr(), slot);
  }

  void finalize(Deadline deadline, ErrorRecord &err) noexcept {
    detail::call(err, wsync_session_finalize, c_ptr(), detail::nanoseconds(deadline));
  }

  /** From any thread, at any time. */
  void abort(Name reason) noexcept { wsync_session_abort(c_ptr(), reason.c_str(), nullptr); }

#if WEIGHTSYNC_EXCEPTIONS
  static Session create(const Transport &transport, const SessionOptions &options = {}) {
    return detail::checked([&](ErrorRecord &e) { return create(transport, options, e); });
  }
  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, Memory memory = Memory::host,
            std::uint32_t device = 0) {
    detail::checked([&](ErrorRecord &e) { bind(side, name, ptr, bytes, memory, device, e); });
  }
  void bind(Side side, Name name, void *ptr, std::uint64_t bytes, const Array &array,
            Memory memory = Memory::host, std::uint32_t device = 0) {
    detail::checked([&](ErrorRecord &e) { bind(side, name, ptr, bytes, array, memory, device, e); });
  }
  void bind_many(Span<const wsync_binding> bindings) {
    detail::checked([&](ErrorRecord &e) { bind_many(bindings, e); });
  }
  void unbind(Side side, Name name) {
    detail::checked([&](ErrorRecord &e) { unbind(side, name, e); });
  }
  std::uint32_t load(const Plan &plan) {
    return detail::checked([&](ErrorRecord &e) { return load(plan, e); });
  }
  void unload(std::uint32_t slot) {
    detail::checked([&](ErrorRecord &e) { unload(slot, e); });
  }
  void finalize(Deadline deadline) {
    detail::checked([&](ErrorRecord &e) { finalize(deadline, e); });
  }
#endif
};

// ---- requests ---------------------------------------------------------------------------

/**
 * One execution of a loaded plan, made once and used for every version.
 *
 * Its destructor does not wait: while it runs, bound buffers stay in use.
 */
class [[nodiscard]] Request : public detail::Handle<wsync_request, wsync_request_destroy> {
public:
  using Handle::Handle;

  static Request create(Session &session, std::uint32_t slot, ErrorRecord &err) noexcept {
    wsync_request *out = nullptr;
    detail::call(err, wsync_request_create, session.c_ptr(), slot, &out);
    return Request(out);
  }

  void prepare(const RequestOptions &options, ErrorRecord &err) noexcept {
    detail::call(err, wsync_request_prepare, c_ptr(), &options);
  }

  /** True once it is READY; false if the deadline came first, or on failure. */
  bool wait_ready(Deadline deadline, ErrorRecord &err) const noexcept {
    return detail::call(err, wsync_request_wait_ready, c_ptr(), detail::nanoseconds(deadline)) ==
           Status::ok;
  }

  void start(void *stream, ErrorRecord &err) noexcept {
    detail::call(err, wsync_request_start, c_ptr(), stream);
  }

  void submit(const RequestOptions &options, void *stream, ErrorRecord &err) noexcept {
    detail::call(err, wsync_request_submit, c_ptr(), &options, stream);
  }

  /** True once it is DONE; false if it is not yet, or failed. */
  bool test(ErrorRecord &err) const noexcept {
    return detail::call(err, wsync_request_test, c_ptr()) == Status::ok;
  }

  /** True once it is DONE; false if the deadline came first, or on failure. */
  bool wait(Deadline deadline, ErrorRecord &err) const noexcept {
    return detail::call(err, wsync_request_wait, c_ptr(), detail::nanoseconds(deadline)) ==
           Status::ok;
  }

  State state() const noexcept { return static_cast<State>(wsync_request_state(c_ptr())); }

  Outcomes outcome(ErrorRecord &err) const noexcept {
    auto rank = static_cast<std::uint32_t>(Outcome::untouched);
    auto copy = rank;
    detail::call(err, wsync_request_outcome, c_ptr(), &rank, &copy);
    return Outcomes{static_cast<Outcome>(rank), static_cast<Outcome>(copy)};
  }

  std::uint32_t step_count() const noexcept { return wsync_request_step_count(c_ptr()); }
  std::uint32_t steps_done() const noexcept { return wsync_request_steps_done(c_ptr()); }

  std::string report(ErrorRecord &err) const noexcept {
    return detail::fetch_text(
        err, [this](char *buffer, std::size_t capacity, std::size_t *needed, wsync_error *e) {
          return wsync_request_report(c_ptr(), buffer, capacity, needed, e);
        });
  }

  std::uint64_t tensor_digest(Name tensor, ErrorRecord &err) const noexcept {
    std::uint64_t digest = 0;
    detail::call(err, wsync_request_tensor_digest, c_ptr(), tensor.c_str(), &digest);
    return digest;
  }

#if WEIGHTSYNC_EXCEPTIONS
  static Request create(Session &session, std::uint32_t slot) {
    return detail::checked([&](ErrorRecord &e) { return create(session, slot, e); });
  }
  void prepare(const RequestOptions &options = {}) {
    detail::checked([&](ErrorRecord &e) { prepare(options, e); });
  }
  bool wait_ready(Deadline deadline = no_deadline) const {
    return detail::checked([&](ErrorRecord &e) { return wait_ready(deadline, e); });
  }
  void start(void *stream = nullptr) {
    detail::checked([&](ErrorRecord &e) { start(stream, e); });
  }
  void submit(const RequestOptions &options = {}, void *stream = nullptr) {
    detail::checked([&](ErrorRecord &e) { submit(options, stream, e); });
  }
  bool test() const {
    return detail::checked([&](ErrorRecord &e) { return test(e); });
  }
  bool wait(Deadline deadline = no_deadline) const {
    return detail::checked([&](ErrorRecord &e) { return wait(deadline, e); });
  }
  Outcomes outcome() const {
    return detail::checked([&](ErrorRecord &e) { return outcome(e); });
  }
  std::string report() const {
    return detail::checked([&](ErrorRecord &e) { return report(e); });
  }
  std::uint64_t tensor_digest(Name tensor) const {
    return detail::checked([&](ErrorRecord &e) { return tensor_digest(tensor, e); });
  }
#endif
};

// ---- log ----------------------------------------------------------------------------------

/**
 * Takes the library's log lines while it lives; afterwards they go where they
 * went by default. One at a time per process.
 *
 * The function is called from any thread, several at a time, and must not call
 * the library. An exception that leaves it ends the program.
 */
class LogSink {
public:
  using Function = std::function<void(LogLevel, std::string_view)>;

  LogSink(Function function, LogLevel max_level, ErrorRecord &err)
      : function_(std::make_unique<Function>(std::move(function))) {
    const auto level = static_cast<std::uint32_t>(max_level);
    const Status status = detail::call(err, wsync_set_log, trampoline, function_.get(), level);
    if (status != Status::ok) function_.reset();
  }
  LogSink(LogSink &&) noexcept = default;
  LogSink &operator=(LogSink &&) = delete;
  ~LogSink() {
    if (function_) wsync_set_log(nullptr, nullptr, WSYNC_LOG_LEVEL_OFF, nullptr);
  }

#if WEIGHTSYNC_EXCEPTIONS
  LogSink(Function function, LogLevel max_level)
      : LogSink(detail::checked([&](ErrorRecord &e) {
          return LogSink(std::move(function), max_level, e);
        })) {}
#endif

private:
  static void trampoline(void *user, std::uint32_t level, const char *message) noexcept {
    (*static_cast<Function *>(user))(static_cast<LogLevel>(level), message);
  }

  std::unique_ptr<Function> function_;
};

static_assert(sizeof(Layout) == sizeof(void *));
static_assert(sizeof(Mapping) == sizeof(void *));
static_assert(sizeof(Plan) == sizeof(void *));
static_assert(sizeof(Transport) == sizeof(void *));
static_assert(sizeof(Session) == sizeof(void *));
static_assert(sizeof(Request) == sizeof(void *));
static_assert(sizeof(TwoStageOptions) == sizeof(wsync_two_stage_options));
static_assert(sizeof(PlanOptions) == sizeof(wsync_plan_options));
static_assert(sizeof(TransportOptions) == sizeof(wsync_transport_options));
static_assert(sizeof(RequestOptions) == sizeof(wsync_request_options));
static_assert(!std::is_copy_constructible_v<Plan>);
static_assert(std::is_nothrow_move_constructible_v<Plan>);

} // namespace v0
} // namespace weightsync

#endif
