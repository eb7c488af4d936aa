// torch keeps one set of the names of allocator settings for all devices. From 2.10 on its CUDA build fills it when it is
// loaded, torch_npu registers some of the same names, and the process aborts. These tests may use a CUDA build (see
// make_venv.py): between torch and torch_npu the set is emptied, which no public function does.
#include <array>
#include <atomic>
#include <functional>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include <c10/core/DeviceType.h>
#include <c10/util/Exception.h>
#define private public
#include <c10/core/AllocatorConfig.h>

extern "C" void ascend_emulator_forget_allocator_keys() {
  c10::CachingAllocator::AcceleratorAllocatorConfig::getMutableKeys().clear();
}
