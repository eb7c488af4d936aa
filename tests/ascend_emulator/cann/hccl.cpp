// libhccl.so: collectives between the processes of one machine, over POSIX shared memory.
//
// Every rank has a slot in the shared segment. A collective copies a chunk into the own slot, waits for all, computes
// from all slots in the order of the ranks (so that every rank gets the same bits), and waits again before slots are
// written anew. A rank that does not come makes the others time out, after HCCL_EXEC_TIMEOUT as with real HCCL.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

#include "emulator.h"
#include "hccl/hccl_types.h"

#define API ASCEND_EMULATOR_API
typedef void* aclrtStream;

namespace {

constexpr size_t SLOT = 4u << 20;
constexpr size_t HEADER = 4096;

struct Header {
  std::atomic<uint32_t> arrived, generation;
};

struct Comm {
  uint32_t size, rank;
  std::string name;
  Header* header = nullptr;
  char* slots = nullptr;

  char* slot(uint32_t r) const { return slots + r * SLOT; }
  size_t length() const { return HEADER + size * SLOT; }
};

int seconds(const char* name, int otherwise) {
  const char* value = getenv(name);
  return value && *value ? atoi(value) : otherwise;
}

// Wait until all ranks are here.
bool meet(Comm* c, int limit) {
  uint32_t generation = c->header->generation.load();
  if (c->header->arrived.fetch_add(1) + 1 == c->size) {
    c->header->arrived = 0;
    c->header->generation.fetch_add(1);
    return true;
  }
  auto start = std::chrono::steady_clock::now();
  for (int spins = 0; c->header->generation.load() == generation; spins++) {
    if (spins < 200) { sched_yield(); continue; }
    usleep(100);
    if (std::chrono::steady_clock::now() - start > std::chrono::seconds(limit)) {
      fprintf(stderr, "[ascend emulator] HCCL: rank %u of %u waited %d s for the others\n", c->rank, c->size, limit);
      return false;
    }
  }
  return true;
}
bool meet(Comm* c) {
  static const int limit = seconds("HCCL_EXEC_TIMEOUT", 1800);
  return meet(c, limit);
}

// Count a collective, and let an injected fault strike.
void enter(Counter counter, size_t bytes) {
  ascend_emulator_add(counter, 1);
  ascend_emulator_add(COLLECTIVE_BYTES, bytes);
  static std::atomic<int64_t> collectives{0};
  for (collectives++; collectives > ascend_emulator_fault("hang");) sleep(1);
}

size_t item_size(HcclDataType type) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8: case HCCL_DATA_TYPE_UINT8: return 1;
    case HCCL_DATA_TYPE_INT16: case HCCL_DATA_TYPE_UINT16: return 2;
    case HCCL_DATA_TYPE_FP16: case HCCL_DATA_TYPE_BFP16: return 2;
    case HCCL_DATA_TYPE_INT32: case HCCL_DATA_TYPE_UINT32: case HCCL_DATA_TYPE_FP32: return 4;
    default: return 8;
  }
}

#ifdef __aarch64__
using fp16 = __fp16;  // GCC 12 has no _Float16 in C++ on this machine
#else
using fp16 = _Float16;
#endif

// fp16 and bf16 are summed in float and rounded once
struct Half {
  static float load(uint16_t v) { fp16 f; memcpy(&f, &v, 2); return static_cast<float>(f); }
  static uint16_t store(float v) {
    if (ascend_emulator_saturates()) v = std::max(-65504.f, std::min(65504.f, v));
    fp16 f = static_cast<fp16>(v); uint16_t u; memcpy(&u, &f, 2); return u;
  }
};
struct BFloat16 {
  static float load(uint16_t v) { uint32_t u = static_cast<uint32_t>(v) << 16; float f; memcpy(&f, &u, 4); return f; }
  static uint16_t store(float v) { uint32_t u; memcpy(&u, &v, 4); return (u + 0x7fff + ((u >> 16) & 1)) >> 16; }
};

template <class T> T combine(T a, T b, HcclReduceOp op) {
  switch (op) {
    case HCCL_REDUCE_SUM: return a + b;
    case HCCL_REDUCE_PROD: return a * b;
    case HCCL_REDUCE_MAX: return std::max(a, b);
    default: return std::min(a, b);
  }
}
template <class T> void reduce_as(Comm* c, char* out, size_t n, HcclReduceOp op) {
  T* result = reinterpret_cast<T*>(out);
  memcpy(result, c->slot(0), n * sizeof(T));
  for (uint32_t r = 1; r < c->size; r++) {
    const T* other = reinterpret_cast<const T*>(c->slot(r));
    for (size_t i = 0; i < n; i++) result[i] = combine(result[i], other[i], op);
  }
}
template <class Format> void reduce_16(Comm* c, char* out, size_t n, HcclReduceOp op) {
  uint16_t* result = reinterpret_cast<uint16_t*>(out);
  for (size_t i = 0; i < n; i++) {
    float value = Format::load(reinterpret_cast<uint16_t*>(c->slot(0))[i]);
    for (uint32_t r = 1; r < c->size; r++)
      value = combine(value, Format::load(reinterpret_cast<uint16_t*>(c->slot(r))[i]), op);
    result[i] = Format::store(value);
  }
}
// The types that HCCL reduces; float64 is not among them.
bool reduces(HcclDataType type) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8: case HCCL_DATA_TYPE_INT16: case HCCL_DATA_TYPE_INT32: case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_FP16: case HCCL_DATA_TYPE_BFP16: case HCCL_DATA_TYPE_FP32: return true;
    default: return false;
  }
}
void reduce(Comm* c, char* out, size_t n, HcclDataType type, HcclReduceOp op) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8: return reduce_as<int8_t>(c, out, n, op);
    case HCCL_DATA_TYPE_INT16: return reduce_as<int16_t>(c, out, n, op);
    case HCCL_DATA_TYPE_INT32: return reduce_as<int32_t>(c, out, n, op);
    case HCCL_DATA_TYPE_INT64: return reduce_as<int64_t>(c, out, n, op);
    case HCCL_DATA_TYPE_FP16: return reduce_16<Half>(c, out, n, op);
    case HCCL_DATA_TYPE_BFP16: return reduce_16<BFloat16>(c, out, n, op);
    default: return reduce_as<float>(c, out, n, op);
  }
}

HcclResult unsupported(const char* what, HcclDataType type) {
  fprintf(stderr, "[ascend emulator] HCCL: %s of data type %d is not supported\n", what, static_cast<int>(type));
  return HCCL_E_NOT_SUPPORT;
}

// Run `step(offset, count)` on pieces of `total` items that fit into a slot.
template <class Step> HcclResult in_chunks(size_t total, size_t per_chunk, Step step) {
  for (size_t offset = 0; offset < total; offset += per_chunk)
    if (!step(offset, std::min(per_chunk, total - offset))) return HCCL_E_TIMEOUT;
  return HCCL_SUCCESS;
}

}  // namespace

// --- communicators ---------------------------------------------------------------------------------------------------

API const char* HcclGetErrorString(HcclResult error) {
  return error == HCCL_E_TIMEOUT ? "timeout: another rank did not come (emulated HCCL)" : "error (emulated HCCL)";
}
API HcclResult HcclGetRootInfo(HcclRootInfo* info) {
  static std::atomic<int> count{0};
  memset(info, 0, sizeof *info);
  snprintf(info->internal, 100, "/ascend_emulator_%d_%d_%lld", getpid(), count++,
           static_cast<long long>(std::chrono::steady_clock::now().time_since_epoch().count()));
  return HCCL_SUCCESS;
}
API HcclResult HcclCommInitRootInfo(uint32_t size, const HcclRootInfo* info, uint32_t rank, HcclComm* comm) {
  auto c = new Comm{size, rank, info->internal, nullptr, nullptr};
  int fd = shm_open(info->internal, O_RDWR | O_CREAT, 0600);
  if (fd < 0 || ftruncate(fd, c->length())) { perror("[ascend emulator] HCCL: shared memory"); return HCCL_E_SYSCALL; }
  void* memory = mmap(nullptr, c->length(), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (memory == MAP_FAILED) return HCCL_E_MEMORY;
  c->header = static_cast<Header*>(memory);
  c->slots = static_cast<char*>(memory) + HEADER;
  bool all_here = meet(c, seconds("HCCL_CONNECT_TIMEOUT", 120));
  if (rank == 0) shm_unlink(info->internal);
  if (!all_here) return HCCL_E_TIMEOUT;
  *comm = c;
  return HCCL_SUCCESS;
}
API HcclResult HcclCommInitRootInfoConfig(
    uint32_t size, const HcclRootInfo* info, uint32_t rank, const HcclCommConfig*, HcclComm* comm) {
  return HcclCommInitRootInfo(size, info, rank, comm);
}
API HcclResult HcclCommDestroy(HcclComm comm) {
  auto c = static_cast<Comm*>(comm);
  munmap(c->header, c->length());
  delete c;
  return HCCL_SUCCESS;
}
API HcclResult HcclGetCommName(HcclComm comm, char* name) {
  strncpy(name, static_cast<Comm*>(comm)->name.c_str() + 1, 127);
  return HCCL_SUCCESS;
}
API HcclResult HcclGetCommAsyncError(HcclComm, HcclResult* error) { *error = HCCL_SUCCESS; return HCCL_SUCCESS; }
API HcclResult HcclGetRankSize(HcclComm comm, uint32_t* size) {
  *size = static_cast<Comm*>(comm)->size;
  return HCCL_SUCCESS;
}
API HcclResult HcclGetRankId(HcclComm comm, uint32_t* rank) {
  *rank = static_cast<Comm*>(comm)->rank;
  return HCCL_SUCCESS;
}
API uint32_t HcclGetCommConfigCapability() { return 0; }
API HcclResult HcclSetConfig(HcclConfig, HcclConfigValue) { return HCCL_SUCCESS; }

// --- collectives -----------------------------------------------------------------------------------------------------

API HcclResult HcclAllReduce(
    void* send, void* receive, uint64_t n, HcclDataType type, HcclReduceOp op, HcclComm comm, aclrtStream) {
  if (!reduces(type)) return unsupported("all-reduce", type);
  auto c = static_cast<Comm*>(comm);
  size_t size = item_size(type);
  enter(ALL_REDUCES, n * size);
  return in_chunks(n, SLOT / size, [=](size_t offset, size_t k) {
    memcpy(c->slot(c->rank), static_cast<char*>(send) + offset * size, k * size);
    if (!meet(c)) return false;
    reduce(c, static_cast<char*>(receive) + offset * size, k, type, op);
    return meet(c);
  });
}
API HcclResult HcclReduce(
    void* send, void* receive, uint64_t n, HcclDataType type, HcclReduceOp op, uint32_t root, HcclComm comm,
    aclrtStream) {
  if (!reduces(type)) return unsupported("reduce", type);
  auto c = static_cast<Comm*>(comm);
  size_t size = item_size(type);
  enter(REDUCES, n * size);
  return in_chunks(n, SLOT / size, [=](size_t offset, size_t k) {
    memcpy(c->slot(c->rank), static_cast<char*>(send) + offset * size, k * size);
    if (!meet(c)) return false;
    if (c->rank == root) reduce(c, static_cast<char*>(receive) + offset * size, k, type, op);
    return meet(c);
  });
}
API HcclResult HcclBroadcast(void* buffer, uint64_t n, HcclDataType type, uint32_t root, HcclComm comm, aclrtStream) {
  auto c = static_cast<Comm*>(comm);
  size_t size = item_size(type);
  enter(BROADCASTS, c->rank == root ? n * size : 0);
  return in_chunks(n, SLOT / size, [=](size_t offset, size_t k) {
    char* own = static_cast<char*>(buffer) + offset * size;
    if (c->rank == root) memcpy(c->slot(root), own, k * size);
    if (!meet(c)) return false;
    if (c->rank != root) memcpy(own, c->slot(root), k * size);
    return meet(c);
  });
}
API HcclResult HcclAllGather(void* send, void* receive, uint64_t n, HcclDataType type, HcclComm comm, aclrtStream) {
  auto c = static_cast<Comm*>(comm);
  size_t size = item_size(type);
  enter(ALL_GATHERS, n * size);
  return in_chunks(n, SLOT / size, [=](size_t offset, size_t k) {
    memcpy(c->slot(c->rank), static_cast<char*>(send) + offset * size, k * size);
    if (!meet(c)) return false;
    for (uint32_t r = 0; r < c->size; r++)
      memcpy(static_cast<char*>(receive) + (r * n + offset) * size, c->slot(r), k * size);
    return meet(c);
  });
}
API HcclResult HcclReduceScatter(
    void* send, void* receive, uint64_t n, HcclDataType type, HcclReduceOp op, HcclComm comm, aclrtStream) {
  if (!reduces(type)) return unsupported("reduce-scatter", type);
  auto c = static_cast<Comm*>(comm);
  size_t size = item_size(type);
  enter(REDUCE_SCATTERS, n * c->size * size);
  for (uint32_t owner = 0; owner < c->size; owner++) {
    HcclResult result = in_chunks(n, SLOT / size, [&](size_t offset, size_t k) {
      memcpy(c->slot(c->rank), static_cast<char*>(send) + (owner * n + offset) * size, k * size);
      if (!meet(c)) return false;
      if (c->rank == owner) reduce(c, static_cast<char*>(receive) + offset * size, k, type, op);
      return meet(c);
    });
    if (result != HCCL_SUCCESS) return result;
  }
  return HCCL_SUCCESS;
}
API HcclResult HcclBarrier(HcclComm comm, aclrtStream) {
  auto c = static_cast<Comm*>(comm);
  enter(BARRIERS, 0);
  return meet(c) ? HCCL_SUCCESS : HCCL_E_TIMEOUT;
}
