// libascendcl.so: the ACL runtime over host memory. Devices are numbers, device memory is malloc'ed, streams are
// synchronous (whatever is queued is done at once), events are time stamps.
//
// The declarations are CANN's own, from the headers in the torch_npu wheel, so that a wrong signature does not compile.
#include <atomic>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <string>
#include <unordered_map>

#include "acl/acl.h"
#include "emulator.h"

#define API ASCEND_EMULATOR_API

namespace {

constexpr int MAX_DEVICES = 64;
constexpr size_t ALIGNMENT = 512;  // of CANN's allocations

const char* setting(const char* name, const char* otherwise) {
  const char* value = getenv(name);
  return value && *value ? value : otherwise;
}

int device_count() {
  static const int count = atoi(setting("ASCEND_EMULATOR_DEVICES", "8"));
  return count;
}

const char* soc_name() {
  static const std::string name = setting("ASCEND_EMULATOR_SOC", "Ascend910B1");
  return name.c_str();
}

size_t device_memory() {
  static const size_t bytes = strtoull(setting("ASCEND_EMULATOR_MEMORY_MB", "65536"), nullptr, 10) << 20;
  return bytes;
}

void trace(const char* function) {
  static const bool on = *setting("ASCEND_EMULATOR_TRACE", "") != 0;
  if (on) fprintf(stderr, "[ascend emulator] %s\n", function);
}
#define TRACE() trace(__func__)

double now_ms() {
  using namespace std::chrono;
  return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// --- counters and faults ---------------------------------------------------------------------------------------------

namespace {
std::atomic<int64_t> counters[NUM_COUNTERS];
std::atomic<bool> overflow_flags[MAX_DEVICES];

struct Fault {
  std::string kind;
  int64_t after = 0;
};

// KIND[:rank=R][:after=N] of this rank
const Fault& fault() {
  static const Fault parsed = [] {
    Fault f;
    std::string text = setting("ASCEND_EMULATOR_FAULT", "");
    const char* rank = setting("RANK", "0");
    bool mine = true;
    for (size_t start = 0; start < text.size();) {
      size_t end = std::min(text.find(':', start), text.size());
      std::string part = text.substr(start, end - start);
      if (part.rfind("rank=", 0) == 0) mine = part.substr(5) == rank;
      else if (part.rfind("after=", 0) == 0) f.after = atoll(part.c_str() + 6);
      else f.kind = part;
      start = end + 1;
    }
    if (!mine) f.kind.clear();
    return f;
  }();
  return parsed;
}

aclError device_state() {
  return counters[OPERATORS] > ascend_emulator_fault("device_lost") ? ACL_ERROR_RT_LOST_HEARTBEAT : ACL_SUCCESS;
}

aclError host_wait() {
  counters[HOST_WAITS]++;
  return device_state();
}
}  // namespace

void ascend_emulator_add(int counter, int64_t by) { counters[counter] += by; }
int64_t ascend_emulator_read(int counter) { return counters[counter]; }
int64_t ascend_emulator_fault(const char* kind) { return fault().kind == kind ? fault().after : INT64_MAX; }

bool ascend_emulator_saturates() {
  // the first generation: 910A, 910ProA, 910PremiumA, and 910B without a digit
  static const bool first = [] {
    std::string name = soc_name();
    return name == "Ascend910B" || name == "Ascend910ProB" || (name.rfind("Ascend910", 0) == 0 && name.back() == 'A');
  }();
  return first;
}
bool ascend_emulator_overflowed(int device) { return overflow_flags[device]; }
void ascend_emulator_set_overflow(int device, bool overflowed) { overflow_flags[device] = overflowed; }

// --- process, devices, contexts --------------------------------------------------------------------------------------

namespace {
thread_local int current_device = 0;
int contexts[MAX_DEVICES];  // a context is the address of its device's entry
int64_t system_options[64];
}  // namespace

API aclError aclInit(const char*) { TRACE(); return ACL_SUCCESS; }
API aclError aclFinalize() { TRACE(); return ACL_SUCCESS; }
API const char* aclGetRecentErrMsg() {
  return device_state() == ACL_SUCCESS ? "" : "the emulated device was lost, as ASCEND_EMULATOR_FAULT asks";
}
API const char* aclrtGetSocName() { return soc_name(); }
API aclError aclrtGetDeviceCount(uint32_t* count) { *count = device_count(); return ACL_SUCCESS; }
API aclError aclrtSetDevice(int32_t device) {
  TRACE();
  if (device < 0 || device >= device_count()) return ACL_ERROR_RT_INVALID_DEVICEID;
  current_device = device;
  return ACL_SUCCESS;
}
API aclError aclrtGetDevice(int32_t* device) { *device = current_device; return ACL_SUCCESS; }
API aclError aclrtResetDevice(int32_t) { TRACE(); return ACL_SUCCESS; }
API aclError aclrtGetCurrentContext(aclrtContext* context) { *context = &contexts[current_device]; return ACL_SUCCESS; }
API aclError aclrtSetCurrentContext(aclrtContext context) {
  if (context) current_device = static_cast<int*>(context) - contexts;
  return ACL_SUCCESS;
}
API aclError aclrtGetPrimaryCtxState(int32_t, uint32_t* flags, int32_t* active) {
  if (flags) *flags = 0;
  *active = 1;
  return ACL_SUCCESS;
}
API aclError aclrtGetLogicDevIdByUserDevId(const int32_t user, int32_t* const logical) {
  *logical = user;
  return ACL_SUCCESS;
}
API aclError aclrtDeviceCanAccessPeer(int32_t* can, int32_t, int32_t) { *can = 1; return ACL_SUCCESS; }
API aclError aclrtDeviceEnablePeerAccess(int32_t, uint32_t) { return ACL_SUCCESS; }
API aclError aclrtDeviceGetBareTgid(int32_t* pid) { *pid = 0; return ACL_SUCCESS; }
API aclError aclrtDeviceTaskAbort(int32_t, uint32_t) { return ACL_SUCCESS; }

// cores and the like: 24, a 910B1's cube cores
API aclError aclGetDeviceCapability(uint32_t, aclDeviceInfo, int64_t* value) { *value = 24; return ACL_SUCCESS; }
API aclError aclrtGetDeviceInfo(uint32_t, aclrtDevAttr, int64_t* value) { *value = 24; return ACL_SUCCESS; }
API aclError aclGetCannAttribute(aclCannAttr attribute, int32_t* value) {
  bool asks_for_new = attribute == ACL_CANN_ATTR_INF_NAN || attribute == ACL_CANN_ATTR_BF16;
  *value = asks_for_new && !ascend_emulator_saturates();
  return ACL_SUCCESS;
}

API aclError aclrtSetSysParamOpt(aclSysParamOpt option, int64_t value) {
  if (static_cast<unsigned>(option) < 64) system_options[option] = value;
  return ACL_SUCCESS;
}
API aclError aclrtGetSysParamOpt(aclSysParamOpt option, int64_t* value) {
  *value = static_cast<unsigned>(option) < 64 ? system_options[option] : 0;
  return ACL_SUCCESS;
}
API aclError aclrtCtxSetSysParamOpt(aclSysParamOpt option, int64_t value) { return aclrtSetSysParamOpt(option, value); }
API aclError aclrtSetDeviceSatMode(aclrtFloatOverflowMode) { return ACL_SUCCESS; }
API aclError aclrtSetOpExecuteTimeOut(uint32_t) { return ACL_SUCCESS; }
API aclError aclrtSetOpWaitTimeout(uint32_t) { return ACL_SUCCESS; }
API aclError aclrtPeekAtLastError(aclrtLastErrLevel) { return device_state(); }
API aclError aclrtGetLastError(aclrtLastErrLevel) { return device_state(); }

// --- memory ----------------------------------------------------------------------------------------------------------

namespace {
struct Block {
  size_t bytes;
  int device;
};
std::mutex memory_lock;
std::unordered_map<void*, Block> blocks;
size_t used[MAX_DEVICES];

aclError copy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  memmove(to, from, bytes);
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE) counters[COPIES_TO_DEVICE]++;
  else if (kind == ACL_MEMCPY_DEVICE_TO_HOST) counters[COPIES_TO_HOST]++;
  else counters[COPIES_ON_DEVICE]++;
  return ACL_SUCCESS;
}
}  // namespace

API aclError aclrtMalloc(void** p, size_t bytes, aclrtMemMallocPolicy) {
  TRACE();
  std::lock_guard<std::mutex> guard(memory_lock);
  if (used[current_device] + bytes > device_memory()) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  if (posix_memalign(p, ALIGNMENT, bytes ? bytes : ALIGNMENT)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  blocks[*p] = {bytes, current_device};
  used[current_device] += bytes;
  counters[ALLOCATIONS]++;
  return ACL_SUCCESS;
}
API aclError aclrtMallocAlign32(void** p, size_t bytes, aclrtMemMallocPolicy policy) {
  return aclrtMalloc(p, bytes, policy);
}
API aclError aclrtFree(void* p) {
  TRACE();
  std::lock_guard<std::mutex> guard(memory_lock);
  auto it = blocks.find(p);
  if (it == blocks.end()) return ACL_ERROR_RT_PARAM_INVALID;
  used[it->second.device] -= it->second.bytes;
  blocks.erase(it);
  free(p);
  return ACL_SUCCESS;
}
API aclError aclrtMallocHost(void** p, size_t bytes) {
  return posix_memalign(p, ALIGNMENT, bytes ? bytes : ALIGNMENT) ? ACL_ERROR_RT_MEMORY_ALLOCATION : ACL_SUCCESS;
}
API aclError aclrtFreeHost(void* p) { free(p); return ACL_SUCCESS; }
API aclError aclrtHostUnregister(void*) { return ACL_SUCCESS; }
API aclError aclrtGetMemInfo(aclrtMemAttr, size_t* available, size_t* total) {
  std::lock_guard<std::mutex> guard(memory_lock);
  *total = device_memory();
  *available = *total - used[current_device];
  return ACL_SUCCESS;
}
API aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind) {
  TRACE();
  aclError error = copy(to, room, from, bytes, kind);
  return error ? error : host_wait();
}
API aclError aclrtMemset(void* p, size_t room, int32_t value, size_t bytes) {
  if (bytes > room) return ACL_ERROR_INVALID_PARAM;
  memset(p, value, bytes);
  return ACL_SUCCESS;
}
API aclError aclrtMemsetAsync(void* p, size_t room, int32_t value, size_t bytes, aclrtStream) {
  return aclrtMemset(p, room, value, bytes);
}

// --- streams and events ----------------------------------------------------------------------------------------------

namespace {
struct Stream {
  int id;
  int device;
  bool is_first;  // torch_npu makes a device's default stream before any other
};
struct Event {
  double time = 0;
};
std::atomic<int> next_stream{1};
std::atomic<bool> has_stream[MAX_DEVICES];
}  // namespace

API aclError aclrtCreateStreamWithConfig(aclrtStream* stream, uint32_t, uint32_t) {
  TRACE();
  *stream = new Stream{next_stream++, current_device, !has_stream[current_device].exchange(true)};
  return ACL_SUCCESS;
}
API aclError aclrtCreateStream(aclrtStream* stream) { return aclrtCreateStreamWithConfig(stream, 0, 0); }
API aclError aclrtDestroyStream(aclrtStream stream) { delete static_cast<Stream*>(stream); return ACL_SUCCESS; }
API aclError aclrtDestroyStreamForce(aclrtStream stream) { return aclrtDestroyStream(stream); }
API aclError aclrtStreamGetId(aclrtStream stream, int32_t* id) {
  *id = stream ? static_cast<Stream*>(stream)->id : 0;
  return ACL_SUCCESS;
}
API aclError aclrtMemcpyAsync(
    void* to, size_t room, const void* from, size_t bytes, aclrtMemcpyKind kind, aclrtStream stream) {
  TRACE();
  if (kind == ACL_MEMCPY_HOST_TO_DEVICE && stream && !static_cast<Stream*>(stream)->is_first)
    counters[SIDE_STREAM_COPIES]++;
  return copy(to, room, from, bytes, kind);
}
API aclError aclrtSynchronizeStream(aclrtStream) { TRACE(); return host_wait(); }
API aclError aclrtSynchronizeStreamWithTimeout(aclrtStream, int32_t) { TRACE(); return host_wait(); }
API aclError aclrtSynchronizeDevice() { TRACE(); return host_wait(); }
API aclError aclrtSynchronizeDeviceWithTimeout(int32_t) { TRACE(); return host_wait(); }
API aclError aclrtStreamQuery(aclrtStream, aclrtStreamStatus* status) {
  *status = ACL_STREAM_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
API aclError aclrtStreamWaitEvent(aclrtStream, aclrtEvent) { counters[STREAM_WAITS]++; return ACL_SUCCESS; }
API aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
API aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }
API aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) { return ACL_SUCCESS; }
API aclError aclrtSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }
API aclError aclrtUnSubscribeReport(uint64_t, aclrtStream) { return ACL_SUCCESS; }

API aclError aclrtCreateEventWithFlag(aclrtEvent* event, uint32_t) { *event = new Event; return ACL_SUCCESS; }
API aclError aclrtCreateEventExWithFlag(aclrtEvent* event, uint32_t flag) {
  return aclrtCreateEventWithFlag(event, flag);
}
API aclError aclrtDestroyEvent(aclrtEvent event) { delete static_cast<Event*>(event); return ACL_SUCCESS; }
API aclError aclrtRecordEvent(aclrtEvent event, aclrtStream) {
  static_cast<Event*>(event)->time = now_ms();
  return ACL_SUCCESS;
}
API aclError aclrtResetEvent(aclrtEvent, aclrtStream) { return ACL_SUCCESS; }
API aclError aclrtSynchronizeEvent(aclrtEvent) { TRACE(); return host_wait(); }
API aclError aclrtQueryEventStatus(aclrtEvent, aclrtEventRecordedStatus* status) {
  *status = ACL_EVENT_RECORDED_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
API aclError aclrtQueryEventWaitStatus(aclrtEvent, aclrtEventWaitStatus* status) {
  *status = ACL_EVENT_WAIT_STATUS_COMPLETE;
  return ACL_SUCCESS;
}
API aclError aclrtEventElapsedTime(float* ms, aclrtEvent start, aclrtEvent end) {
  *ms = static_cast<float>(static_cast<Event*>(end)->time - static_cast<Event*>(start)->time);
  return ACL_SUCCESS;
}

// --- logging and profiling: accepted, not recorded -------------------------------------------------------------------

API void aclAppLog(aclLogLevel, const char*, const char*, uint32_t, const char*, ...) {}
API uint64_t MsprofSysCycleTime() { return static_cast<uint64_t>(now_ms() * 1e6); }
API uint64_t MsprofGetHashId(const char* text, size_t length) {
  uint64_t hash = 1469598103934665603ull;  // FNV-1a
  for (size_t i = 0; i < length; i++) hash = (hash ^ static_cast<unsigned char>(text[i])) * 1099511628211ull;
  return hash;
}
API int32_t MsprofRegisterCallback(uint32_t, void*) { return 0; }
API int32_t MsprofReportApi(uint32_t, const void*) { return 0; }
API int32_t MsprofReportCompactInfo(uint32_t, const void*, uint32_t) { return 0; }
API int32_t MsprofReportAdditionalInfo(uint32_t, const void*, uint32_t) { return 0; }
