// What the stand-ins share: settings, counters and injected faults. All of it lives in libascendcl.so.
//
// Settings are environment variables, read once a process:
//   ASCEND_EMULATOR_DEVICES    number of NPUs (8)
//   ASCEND_EMULATOR_SOC        name of the chip (Ascend910B1); Ascend910A saturates on overflow and has no bf16
//   ASCEND_EMULATOR_MEMORY_MB  memory of one NPU (65536)
//   ASCEND_EMULATOR_FAULT      KIND[:rank=R][:after=N], see Fault
//   ASCEND_EMULATOR_TRACE      1: print every call of the runtime
#pragma once
#include <cstdint>

#define ASCEND_EMULATOR_API extern "C" __attribute__((visibility("default")))

// Counters that tests read by name, see emulator.py.
enum Counter : int {
  HOST_WAITS,          // the host waited for the device: synchronise, .item(), a copy that blocks
  COPIES_TO_DEVICE,
  COPIES_TO_HOST,
  COPIES_ON_DEVICE,
  SIDE_STREAM_COPIES,  // copies to the device that were queued on another stream than the default one
  STREAM_WAITS,        // a stream was told to wait for an event of another
  ALLOCATIONS,         // of device memory, from the runtime: torch_npu's caching allocator asks rarely
  OPERATORS,           // operators that ran on the device
  OVERFLOWS,           // operators whose fp16 result overflowed
  ALL_REDUCES,
  BROADCASTS,
  ALL_GATHERS,
  REDUCE_SCATTERS,
  REDUCES,
  BARRIERS,
  COLLECTIVE_BYTES,    // sent by this rank
  NUM_COUNTERS
};

ASCEND_EMULATOR_API void ascend_emulator_add(int counter, int64_t by);
ASCEND_EMULATOR_API int64_t ascend_emulator_read(int counter);

// Faults: the N of a fault of this kind on this rank, INT64_MAX if there is none. The rank is the environment's RANK;
// without `rank=` every rank has the fault.
//   device_lost  after N operators the device no longer answers: whatever waits for it fails
//   hang         after N collectives this rank enters no more: the others time out
//   overflow     after N operators every operator overflows (910A: the device's flag is set; later chips: nothing)
ASCEND_EMULATOR_API int64_t ascend_emulator_fault(const char* kind);

// The 910A's overflow flag, one a device.
ASCEND_EMULATOR_API bool ascend_emulator_saturates();
ASCEND_EMULATOR_API bool ascend_emulator_overflowed(int device);
ASCEND_EMULATOR_API void ascend_emulator_set_overflow(int device, bool overflowed);
