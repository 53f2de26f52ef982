// A stand-in for libnccl.so.2, for machines without a GPU. It behaves like the
// real one where that hurts:
//
//   - nothing is on the stream before the outermost ncclGroupEnd; for a
//     non-blocking communicator not before ncclCommGetAsyncError has said
//     success, so that an event recorded earlier guards nothing
//   - a send ends when its receive has it; operations of a group have no order
//   - a lost peer leaves kernels spinning until somebody aborts
//   - versions, duplicate GPUs and config structs are judged as there
//   - two threads inside NCCL with one communicator, or launching on one device,
//     end the process, as does a freed communicator: the real one would corrupt
//
// Environment:
//   FAKE_NCCL_VERSION     what ncclGetVersion says (23007; 21805 if built old)
//   FAKE_NCCL_POLLS       how often a non-blocking call has to be polled (2)
//   FAKE_NCCL_FAULT       rank:group:kind[=value];..  kind: hang, die, error,
//                         delay; group counts the groups of a communicator
//   FAKE_NCCL_FAIL        call:nth=result;..
//   FAKE_NCCL_PEER_DEATH  error: a dead peer is an error after a while
//   FAKE_NCCL_SLOW_INIT_MS  how long communicators take to be made
// Built with -DFAKE_NCCL_OLD it has what NCCL 2.18 has and no more, with
// -DFAKE_NCCL_NO_REVOKE what 2.28.3 has: ncclCommShrink, not ncclCommRevoke.

#include "nccl_comm.h"

#include <chrono>
#include <climits>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <map>
#include <string>
#include <unistd.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

using namespace fake_nccl;

struct UniqueId {
  char internal[128];
};

namespace fake_nccl {
namespace {

std::mutex &lock = *new std::mutex;
auto &calls = *new std::map<std::string, uint64_t>;
auto &failures = *new std::map<std::string, std::map<uint64_t, int>>;
auto &faults = *new std::vector<Fault>;
auto &comms = *new std::map<void *, std::shared_ptr<Comm>>;
auto &launchers = *new std::map<int, std::mutex>;
char last_error[512];
uintptr_t next_handle = 0x4e43434c0000;

struct Queued {
  std::shared_ptr<Comm> comm;
  Op op;
};
thread_local int depth = 0;
thread_local std::vector<Queued> queued;

int number(const char *name, int otherwise) {
  const char *text = getenv(name);
  return text == nullptr ? otherwise : atoi(text);
}

void read_environment() {
  if (const char *text = getenv("FAKE_NCCL_FAULT")) {
    std::string all = std::string(text) + ";";
    for (size_t from = 0, to; (to = all.find(';', from)) != std::string::npos; from = to + 1) {
      Fault fault = {0, 0, Fault::HANG, 0};
      unsigned long long group;
      char kind[16] = {};
      if (sscanf(all.substr(from, to - from).c_str(), "%d:%llu:%15[a-z]=%d", &fault.rank, &group,
                 kind, &fault.value) < 3)
        continue;
      fault.group = group;
      fault.kind = !strcmp(kind, "die")     ? Fault::DIE
                   : !strcmp(kind, "error") ? Fault::ERROR
                   : !strcmp(kind, "delay") ? Fault::DELAY
                                            : Fault::HANG;
      faults.push_back(fault);
    }
  }
  if (const char *text = getenv("FAKE_NCCL_FAIL")) {
    std::string all = std::string(text) + ";";
    for (size_t from = 0, to; (to = all.find(';', from)) != std::string::npos; from = to + 1) {
      char name[64];
      unsigned long long nth;
      int result;
      if (sscanf(all.substr(from, to - from).c_str(), "%63[^:]:%llu=%d", name, &nth, &result) == 3)
        failures[name][nth] = result;
    }
  }
}

/// Counts the call; what it shall fail with, if anything.
int enter(const char *name) {
  static std::once_flag once;
  std::call_once(once, read_environment);
  std::lock_guard guard(lock);
  auto &mine = failures[name];
  auto it = mine.find(++calls[name]);
  if (it == mine.end())
    return SUCCESS;
  snprintf(last_error, sizeof last_error, "%s fails on command", name);
  return it->second;
}

/// A thread inside NCCL with a communicator. There may be one at a time.
class Use {
public:
  Use(void *handle, const char *call) {
    {
      std::lock_guard guard(lock);
      auto it = comms.find(handle);
      if (it != comms.end())
        comm = it->second;
    }
    if (comm == nullptr)
      misuse("%s: %p is no communicator, or one that was freed", call, handle);
    if (!comm->user.try_lock())
      misuse("%s: another thread is inside NCCL with this communicator", call);
    // Long enough for a second thread to be caught.
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  ~Use() { comm->user.unlock(); }
  Comm *operator->() const { return comm.get(); }
  std::shared_ptr<Comm> comm;
};

/// A thread that launches on a device. There may be one at a time.
class Launch {
public:
  Launch(int device, const char *call) {
    {
      std::lock_guard guard(lock);
      mutex = &launchers[device];
    }
    if (!mutex->try_lock())
      misuse("%s: another thread is launching on device %d", call, device);
  }
  ~Launch() { mutex->unlock(); }

private:
  std::mutex *mutex;
};

void *add(std::shared_ptr<Comm> comm) {
  std::lock_guard guard(lock);
  next_handle += 16;
  auto handle = reinterpret_cast<void *>(next_handle);
  comms[handle] = std::move(comm);
  return handle;
}

void forget(void *handle) {
  // Its threads end when it goes, and they may want the lock.
  std::shared_ptr<Comm> last;
  {
    std::lock_guard guard(lock);
    last = std::move(comms[handle]);
    comms.erase(handle);
  }
}

// The head of every ncclConfig_t, then its integers and pointers.
struct Config {
  size_t size;
  unsigned magic;
  unsigned version;
  int blocking, cgaClusterSize, minCTAs, maxCTAs;
  const char *netName;
  int splitShare, trafficClass;
  const char *commName;
  int collnetEnable, CTAPolicy, shrinkShare, nvlsCTAs;
  int nChannelsPerNetPeer, nvlinkCentricSched;
  int graphUsageMode, numRmaCtx;
  int maxP2pPeers, graphStreamOrdering;
};

size_t own_config_size() {
  int v = version();
  return v < 21800 ? 40 : v < 22700 ? 48 : v < 22800 ? 72 : v < 22900 ? 80 : v < 23000 ? 88 : 96;
}

Config unset_config() {
  Config c;
  memset(&c, 0, sizeof c);
  c.blocking = c.cgaClusterSize = c.minCTAs = c.maxCTAs = c.splitShare = c.trafficClass = INT_MIN;
  c.collnetEnable = c.CTAPolicy = c.shrinkShare = c.nvlsCTAs = c.nChannelsPerNetPeer = INT_MIN;
  c.nvlinkCentricSched = c.graphUsageMode = c.numRmaCtx = c.maxP2pPeers = INT_MIN;
  c.graphStreamOrdering = INT_MIN;
  return c;
}

/// Takes the config as the real one does: the smaller size, then the fields
/// that the claimed version has.
Result parse(const void *given, Config &own) {
  own = unset_config();
  if (given == nullptr)
    return SUCCESS;
  Config read = unset_config();
  size_t size;
  memcpy(&size, given, sizeof size);
  memcpy(&read, given, std::min(size, own_config_size()));
  if (read.magic != 0xcafebeef) {
    say("ncclConfig_t argument not initialized via NCCL_CONFIG_INITIALIZER");
    return INVALID_ARGUMENT;
  }
  own.blocking = read.blocking;
  if (read.version >= 21700) {
    own.cgaClusterSize = read.cgaClusterSize;
    own.minCTAs = read.minCTAs;
    own.maxCTAs = read.maxCTAs;
    own.netName = read.netName;
  }
  if (read.version >= 21800)
    own.splitShare = read.splitShare;
  if (read.version >= 23000)
    own.maxP2pPeers = read.maxP2pPeers;
  auto is_flag = [](int v) { return v == INT_MIN || v == 0 || v == 1; };
  auto is_count = [](int v) { return v == INT_MIN || v > 0; };
  if (!is_flag(own.blocking) || !is_flag(own.splitShare) || !is_count(own.minCTAs) ||
      !is_count(own.maxCTAs) || own.minCTAs > own.maxCTAs || !is_count(own.maxP2pPeers)) {
    say("Invalid config attribute value");
    return INVALID_ARGUMENT;
  }
  return SUCCESS;
}

Card card_of(const Comm &comm) {
  Card card;
  card.rank = comm.rank;
  card.count = comm.count;
  card.version = version();
  card.device = comm.device;
  card.shares_gpu = version() >= 23003 && number("NCCL_MULTI_RANK_GPU_ENABLE", 0) != 0;
  if (const char *id = getenv("NCCL_HOSTID"))
    strncpy(card.host, id, sizeof card.host - 1);
  else
    gethostname(card.host, sizeof card.host - 1);
  return card;
}

/// Has `work` make the communicator: here, or beside the caller.
template <typename Work> Result build(Comm &comm, bool blocking, Work work) {
  // The thread must not keep alive what joins it.
  auto body = [&comm, work] {
    std::this_thread::sleep_for(std::chrono::milliseconds(number("FAKE_NCCL_SLOW_INIT_MS", 0)));
    Result result = work();
    // Whoever sees the result may go on at once.
    comm.is_building = false;
    comm.state = result;
    return result;
  };
  if (blocking)
    return body();
  comm.state = IN_PROGRESS;
  comm.is_building = true;
  comm.builder = std::thread(body);
  return IN_PROGRESS;
}

/// As ncclCommEnsureReady: nothing is done with a communicator that is busy.
Result ready(Comm &comm) {
  int state = comm.state;
  if (state == IN_PROGRESS || comm.is_building) {
    say("Attempt to use communicator before the previous operation returned ncclSuccess");
    return INVALID_ARGUMENT;
  }
  if (comm.is_revoked) {
    say("the communicator was revoked");
    return INVALID_USAGE;
  }
  return static_cast<Result>(state);
}

Result launch_groups() {
  auto all = std::move(queued);
  queued.clear();
  Result worst = SUCCESS;
  while (!all.empty()) {
    auto comm = all.front().comm;
    std::vector<Op> mine;
    std::erase_if(all, [&](Queued &q) {
      if (q.comm != comm)
        return false;
      mine.push_back(q.op);
      return true;
    });
    for (const Op &op : mine) {
      if (op.stream != mine[0].stream)
        misuse("ncclGroupEnd: one communicator on two streams in a group");
      if (gpu()->stream_device(op.stream) != comm->device)
        misuse("ncclGroupEnd: the stream is on device %d and the communicator on %d",
               gpu()->stream_device(op.stream), comm->device);
    }
    Launch launching(comm->device, "ncclGroupEnd");
    std::this_thread::sleep_for(std::chrono::microseconds(10));
    if (comm->blocking) {
      if (Result result = comm->launch(std::move(mine)); result != SUCCESS)
        worst = result;
      continue;
    }
    comm->pending = std::move(mine);
    comm->polls_left = number("FAKE_NCCL_POLLS", 2);
    comm->go(SUCCESS, IN_PROGRESS);
    if (worst == SUCCESS)
      worst = IN_PROGRESS;
  }
  return worst;
}

Result add_op(const char *call, Op op, void *handle) {
  if (int fails = enter(call); fails != SUCCESS)
    return static_cast<Result>(fails);
  Use comm(handle, call);
  if (Result result = ready(*comm.comm); result != SUCCESS)
    return result;
  if (op.peer < 0 || op.peer >= comm->count || (op.buffer == nullptr && op.bytes > 0)) {
    say("%s: peer %d of %d ranks", call, op.peer, comm->count);
    return INVALID_ARGUMENT;
  }
  queued.push_back({comm.comm, op});
  return depth > 0 ? SUCCESS : launch_groups();
}

int width(int type) {
  static const int widths[] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2, 1, 1};
  return type >= 0 && type < 12 ? widths[type] : 0;
}

/// A communicator out of another one.
Result branch(Comm &parent, std::vector<int> participants, int color, int key, bool blocking,
              void **out) {
  // The real one runs the job as its parent runs jobs, whatever the child is.
  auto child = std::make_shared<Comm>(0, 1, parent.device, blocking);
  Card card = card_of(parent);
  card.color = color;
  card.key = key;
  auto keep = parent.shared_from_this();
  Comm *raw = child.get();
  Result result = build(*child, parent.blocking && !parent.is_revoked, [keep, raw, participants, card] {
    return keep->make_child(*raw, participants, card);
  });
  *out = color < 0 || (result != SUCCESS && result != IN_PROGRESS) ? nullptr : add(child);
  return result;
}

} // namespace

void say(const char *format, ...) {
  std::lock_guard guard(lock);
  va_list list;
  va_start(list, format);
  vsnprintf(last_error, sizeof last_error, format, list);
  va_end(list);
}

void misuse(const char *format, ...) {
  va_list list;
  va_start(list, format);
  fprintf(stderr, "fake nccl: misuse: ");
  vfprintf(stderr, format, list);
  fprintf(stderr, "\n");
  va_end(list);
  abort();
}

int version() {
#ifdef FAKE_NCCL_OLD
  return number("FAKE_NCCL_VERSION", 21805);
#elif defined FAKE_NCCL_NO_REVOKE
  return number("FAKE_NCCL_VERSION", 22803);
#else
  return number("FAKE_NCCL_VERSION", 23007);
#endif
}

void add_fault(Fault fault) {
  std::lock_guard guard(lock);
  faults.push_back(fault);
}

bool find_fault(int rank, uint64_t group, Fault &found) {
  std::lock_guard guard(lock);
  for (const Fault &fault : faults)
    if (fault.rank == rank && fault.group == group) {
      found = fault;
      return true;
    }
  return false;
}

const Gpu *gpu() {
  static const Gpu *found = [] {
    static Gpu table;
    auto visit = [](dl_phdr_info *info, size_t, void *) {
      void *handle = dlopen(info->dlpi_name, RTLD_NOW | RTLD_NOLOAD);
      if (handle == nullptr)
        return 0;
      void *enqueue = dlsym(handle, "fake_gpu_enqueue");
      if (enqueue == nullptr)
        return 0;
      auto set = [&](auto &member, const char *name) {
        member = reinterpret_cast<std::decay_t<decltype(member)>>(dlsym(handle, name));
      };
      set(table.enqueue, "fake_gpu_enqueue");
      set(table.host, "fake_gpu_host");
      set(table.current_device, "fake_gpu_current_device");
      set(table.stream_device, "fake_gpu_stream_device");
      set(table.fault, "fake_gpu_fault");
      return 1;
    };
    return dl_iterate_phdr(visit, nullptr) == 1 ? &table : nullptr;
  }();
  return found;
}

} // namespace fake_nccl

EXPORT int ncclGetVersion(int *out) {
  if (int fails = enter("ncclGetVersion"))
    return fails;
  *out = version();
  return SUCCESS;
}

EXPORT const char *ncclGetErrorString(int result) {
  static const char *const texts[] = {"no error",
                                      "unhandled cuda error",
                                      "unhandled system error",
                                      "internal error",
                                      "invalid argument",
                                      "invalid usage",
                                      "remote process exited or there was a network error",
                                      "NCCL operation in progress"};
  return result >= 0 && result < 8 ? texts[result] : "unknown result code";
}

EXPORT const char *ncclGetLastError(void *) { return last_error; }

EXPORT int ncclGetUniqueId(UniqueId *out) {
  if (int fails = enter("ncclGetUniqueId"))
    return fails;
  memset(out, 0, sizeof *out);
  strncpy(out->internal, open_root().c_str(), sizeof out->internal - 1);
  return SUCCESS;
}

EXPORT int ncclCommInitRankConfig(void **out, int count, UniqueId id, int rank, void *given) {
  *out = nullptr;
  if (int fails = enter("ncclCommInitRankConfig"))
    return fails;
  Config config;
  if (Result result = parse(given, config); result != SUCCESS)
    return result;
  if (rank < 0 || rank >= count || id.internal[0] == 0) {
    say("Invalid rank requested : %d/%d, or an id of zeroes", rank, count);
    return INVALID_ARGUMENT;
  }
  if (gpu() == nullptr) {
    say("Cuda failure 'CUDA driver version is insufficient for CUDA runtime version'");
    return CUDA_ERROR;
  }
  bool blocking = config.blocking != 0;
  auto comm = std::make_shared<Comm>(rank, count, gpu()->current_device(), blocking);
  Card card = card_of(*comm);
  std::string root = id.internal;
  Comm *raw = comm.get();
  Result result = build(*comm, blocking, [raw, root, card] { return raw->meet(root, card); });
  if (result == SUCCESS || result == IN_PROGRESS)
    *out = add(comm);
  return result;
}

EXPORT int ncclCommInitRank(void **out, int count, UniqueId id, int rank) {
  return ncclCommInitRankConfig(out, count, id, rank, nullptr);
}

EXPORT int ncclCommSplit(void *handle, int color, int key, void **out, void *given) {
  *out = nullptr;
  if (int fails = enter("ncclCommSplit"))
    return fails;
  Use parent(handle, "ncclCommSplit");
  if (Result result = ready(*parent.comm); result != SUCCESS)
    return result;
  if (!parent->is_idle())
    misuse("ncclCommSplit: the parent has work on its stream");
  Config config;
  if (Result result = parse(given, config); result != SUCCESS)
    return result;
  bool blocking = config.blocking == INT_MIN ? parent->blocking : config.blocking != 0;
  std::vector<int> all;
  for (int i = 0; i < parent->count; i++)
    all.push_back(i);
  return branch(*parent.comm, all, color, key, blocking, out);
}

EXPORT int ncclCommGetAsyncError(void *handle, int *out) {
  if (int fails = enter("ncclCommGetAsyncError"))
    return fails;
  Use comm(handle, "ncclCommGetAsyncError");
  if (!comm->pending.empty() && --comm->polls_left <= 0) {
    // The pending job is done by whoever polls.
    Launch launching(comm->device, "ncclCommGetAsyncError");
    auto ops = std::move(comm->pending);
    comm->pending.clear();
    comm->go(IN_PROGRESS, SUCCESS);
    if (Result result = comm->launch(std::move(ops)); result != SUCCESS)
      comm->state = result;
  }
  if (comm->is_revoking && --comm->polls_left <= 0)
    comm->revoke();
  if (comm->is_finalizing && comm->is_idle())
    comm->go(IN_PROGRESS, SUCCESS);
  *out = comm->state;
  return SUCCESS;
}

EXPORT int ncclCommFinalize(void *handle) {
  if (int fails = enter("ncclCommFinalize"))
    return fails;
  Use comm(handle, "ncclCommFinalize");
  if (Result result = ready(*comm.comm); result != SUCCESS)
    return result;
  comm->is_finalizing = true;
  if (comm->blocking) {
    comm->wait_idle();
    return SUCCESS;
  }
  comm->state = IN_PROGRESS;
  return IN_PROGRESS;
}

EXPORT int ncclCommDestroy(void *handle) {
  if (int fails = enter("ncclCommDestroy"))
    return fails;
  {
    Use comm(handle, "ncclCommDestroy");
    if (!comm->is_revoked)
      comm->wait_idle();
    comm->stop = true;
    comm->stop_work();
  }
  forget(handle);
  return SUCCESS;
}

EXPORT int ncclCommAbort(void *handle) {
  if (int fails = enter("ncclCommAbort"))
    return fails;
  {
    Use comm(handle, "ncclCommAbort");
    comm->stop = true;
    comm->stop_work();
    comm->wait_idle();
  }
  forget(handle);
  return SUCCESS;
}

EXPORT int ncclCommCount(void *handle, int *out) {
  Use comm(handle, "ncclCommCount");
  *out = comm->count;
  return ready(*comm.comm);
}

EXPORT int ncclCommCuDevice(void *handle, int *out) {
  Use comm(handle, "ncclCommCuDevice");
  *out = comm->device;
  return ready(*comm.comm);
}

EXPORT int ncclCommUserRank(void *handle, int *out) {
  Use comm(handle, "ncclCommUserRank");
  *out = comm->rank;
  return ready(*comm.comm);
}

EXPORT int ncclGroupStart() {
  if (int fails = enter("ncclGroupStart"))
    return fails;
  depth++;
  return SUCCESS;
}

EXPORT int ncclGroupEnd() {
  if (depth == 0) {
    say("ncclGroupEnd: not in a group call.");
    return INVALID_USAGE;
  }
  depth--;
  if (int fails = enter("ncclGroupEnd")) {
    queued.clear();
    return fails;
  }
  return depth > 0 ? SUCCESS : launch_groups();
}

EXPORT int ncclSend(const void *buffer, size_t count, int type, int peer, void *comm,
                    void *stream) {
  auto from = const_cast<char *>(static_cast<const char *>(buffer));
  size_t bytes = count * static_cast<size_t>(width(type));
  return add_op("ncclSend", {true, from, bytes, peer, stream}, comm);
}

EXPORT int ncclRecv(void *buffer, size_t count, int type, int peer, void *comm, void *stream) {
  size_t bytes = count * static_cast<size_t>(width(type));
  return add_op("ncclRecv", {false, static_cast<char *>(buffer), bytes, peer, stream}, comm);
}

#ifndef FAKE_NCCL_OLD
#ifndef FAKE_NCCL_NO_REVOKE

EXPORT int ncclCommRevoke(void *handle, int flags) {
  if (int fails = enter("ncclCommRevoke"))
    return fails;
  Use comm(handle, "ncclCommRevoke");
  if (flags != 0)
    return INVALID_ARGUMENT;
  if (comm->blocking) {
    comm->revoke();
    return SUCCESS;
  }
  // Nothing has stopped before somebody has polled.
  comm->is_revoking = true;
  comm->polls_left = number("FAKE_NCCL_POLLS", 2);
  comm->state = IN_PROGRESS;
  return IN_PROGRESS;
}

#endif

EXPORT int ncclCommShrink(void *handle, int *exclude, int exclude_count, void **out, void *given,
                          int flags) {
  *out = nullptr;
  if (int fails = enter("ncclCommShrink"))
    return fails;
  Use parent(handle, "ncclCommShrink");
  Config config;
  if (Result result = parse(given, config); result != SUCCESS)
    return result;
  if (flags == 0 && ready(*parent.comm) != SUCCESS)
    return ready(*parent.comm);
  if (parent->is_revoking) {
    say("ncclCommShrink: ncclCommRevoke is not over");
    return INVALID_USAGE;
  }
  if (flags == 1)
    parent->revoke();
  std::vector<int> survivors;
  for (int i = 0; i < parent->count; i++) {
    bool is_out = false;
    for (int k = 0; k < exclude_count; k++)
      is_out = is_out || exclude[k] == i;
    if (is_out && i == parent->rank) {
      say("ncclCommShrink: an excluded rank calls");
      return INVALID_USAGE;
    }
    if (!is_out)
      survivors.push_back(i);
  }
  bool blocking = config.blocking == INT_MIN ? parent->blocking : config.blocking != 0;
  return branch(*parent.comm, survivors, 0, parent->rank, blocking, out);
}

EXPORT int ncclCommRegister(void *handle, void *, size_t, void **out) {
  Use comm(handle, "ncclCommRegister");
  *out = handle;
  return SUCCESS;
}

EXPORT int ncclCommDeregister(void *handle, void *) {
  Use comm(handle, "ncclCommDeregister");
  return SUCCESS;
}

#endif

/// For tests: how often a function was called in this process.
EXPORT uint64_t fake_nccl_calls(const char *name) {
  std::lock_guard guard(lock);
  return calls[name];
}

/// For tests: the `nth` call from now on of a function returns `result`.
EXPORT void fake_nccl_fail(const char *name, uint64_t nth, int result) {
  std::lock_guard guard(lock);
  failures[name][calls[name] + nth] = result;
}

/// For tests: communicators that are not freed.
EXPORT uint64_t fake_nccl_comms() {
  std::lock_guard guard(lock);
  return comms.size();
}

/// For tests: has a rank of every communicator of this process do something
/// wrong at a group; kinds as in Fault.
EXPORT void fake_nccl_fault(int rank, uint64_t group, int kind, int value) {
  add_fault({rank, group, static_cast<Fault::Kind>(kind), value});
}

/// For tests: forgets all faults.
EXPORT void fake_nccl_heal() {
  std::lock_guard guard(lock);
  faults.clear();
}
