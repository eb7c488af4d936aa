// Runs aten operators of npu tensors on the CPU, without copying: device memory is host memory (cann/ascendcl.cpp), so
// a CPU tensor can alias an npu tensor's. One boxed kernel serves all operators. What torch_npu does besides computing
// (allocation, copies between host and device, views, streams, events, collectives) stays its own.
#include <map>
#include <set>
#include <string>

#include <torch/extension.h>
#include <torch/library.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/NativeFunctions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "cann/emulator.h"

// of libtorch_npu: torch's own way to it, `globalContext().defaultGenerator`, works from torch_npu 2.13 on
namespace at_npu::detail {
const at::Generator& getDefaultNPUGenerator(c10::DeviceIndex device);
}

namespace {

using c10::IValue;
using torch::jit::Stack;

constexpr auto NPU = c10::DeviceType::PrivateUse1;

std::map<std::string, int64_t> calls;  // of every operator, while they are counted
bool counting = false;

// --- tensors ---------------------------------------------------------------------------------------------------------

// A CPU tensor on the memory of an npu tensor.
at::Tensor alias_on_cpu(const at::Tensor& npu) {
  c10::StorageImpl* memory = npu.storage().unsafeGetStorageImpl();
  c10::Storage storage(
      c10::Storage::use_byte_size_t(), memory->nbytes(),
      at::DataPtr(memory->mutable_data(), c10::Device(c10::kCPU)), c10::GetCPUAllocator(), /*resizable=*/true);
  auto cpu = at::detail::make_tensor<c10::TensorImpl>(
      std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), npu.dtype());
  cpu.unsafeGetTensorImpl()->set_sizes_and_strides(npu.sizes(), npu.strides(), npu.storage_offset());
  if (npu.unsafeGetTensorImpl()->is_wrapped_number()) cpu.unsafeGetTensorImpl()->set_wrapped_number(true);
  return cpu;
}

// A new npu tensor, from torch_npu's allocator, with the values and strides of a CPU tensor.
at::Tensor move_to_npu(const at::Tensor& cpu, c10::Device device) {
  auto npu = at::empty_strided(cpu.sizes(), cpu.strides(), cpu.options().device(device));
  size_t available = cpu.storage().nbytes() - cpu.storage_offset() * cpu.itemsize();
  if (npu.numel()) memcpy(npu.mutable_data_ptr(), cpu.const_data_ptr(), std::min(npu.storage().nbytes(), available));
  return npu;
}

bool is_half(const at::Tensor& t) {
  return t.defined() && (t.scalar_type() == at::kHalf || t.scalar_type() == at::kBFloat16);
}

// The tensors of one call on both sides.
class Call {
 public:
  c10::Device device{NPU, -1};

  at::Tensor enter(const at::Tensor& t) {
    if (!t.defined() || t.device().type() != NPU) return t;
    if (device.index() < 0) device = t.device();
    for (auto& [npu, cpu] : tensors_)
      if (npu.is_same(t)) return cpu;
    tensors_.emplace_back(t, alias_on_cpu(t));
    return tensors_.back().second;
  }

  at::Tensor leave(const at::Tensor& result) {
    if (!result.defined()) return result;
    for (auto& [npu, cpu] : tensors_)
      if (cpu.is_same(result)) return npu;
    for (auto& [npu, cpu] : tensors_)
      if (result.storage().is_alias_of(cpu.storage()))  // a view of an input
        return npu.as_strided(result.sizes(), result.strides(), result.storage_offset());
    return move_to_npu(result, device);
  }

  // Inputs that the operator gave another shape, as out= may.
  void write_back_resized() {
    for (auto& [npu, cpu] : tensors_) {
      if (npu.sizes() == cpu.sizes() && npu.strides() == cpu.strides()) continue;
      bool moved = npu.storage().data() != cpu.storage().data();
      npu.resize_(cpu.sizes());
      if (cpu.numel() && (moved || npu.strides() != cpu.strides())) alias_on_cpu(npu).copy_(cpu);
    }
  }

 private:
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
};

c10::Device current_device() { return c10::impl::VirtualGuardImpl(NPU).getDevice(); }

// --- what an NPU does differently from a CPU -------------------------------------------------------------------------

// The 910A has no infinities in fp16: a result that overflows saturates, NaN becomes 0, and the device's flag is set.
void saturate(const at::Tensor& cpu, c10::Device device) {
  if (!cpu.defined() || cpu.scalar_type() != at::kHalf || !cpu.numel()) return;
  if (at::isfinite(cpu).all().item<bool>()) return;
  ascend_emulator_add(OVERFLOWS, 1);
  ascend_emulator_set_overflow(device.index(), true);
  at::nan_to_num_(const_cast<at::Tensor&>(cpu), 0., 65504., -65504.);
}

// Count an operator; refuse bf16 where the chip has none; let an injected fault strike.
void launch(const c10::OperatorHandle& op, const Stack& stack, c10::Device device) {
  static std::set<std::string> data_dependent{
      // their result's size is known to the device only: the host waits for it
      "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive",
      "aten::bincount", "aten::equal", "aten::repeat_interleave"};
  ascend_emulator_add(OPERATORS, 1);
  if (data_dependent.count(op.schema().name())) ascend_emulator_add(HOST_WAITS, 1);
  if (counting) calls[toString(op.schema().operator_name())]++;
  if (!ascend_emulator_saturates()) return;
  if (ascend_emulator_read(OPERATORS) > ascend_emulator_fault("overflow"))
    ascend_emulator_set_overflow(device.index(), true);
  for (size_t i = stack.size() - op.schema().arguments().size(); i < stack.size(); i++)
    TORCH_CHECK(!stack[i].isTensor() || !stack[i].toTensor().defined() ||
                    stack[i].toTensor().scalar_type() != at::kBFloat16,
                op.schema().name(), ": bfloat16 is not supported by this chip (emulated 910A)");
}

// Random operators draw from the npu's generator: its seed and offset seed the CPU's for the time of the call.
class NpuRandomness {
 public:
  NpuRandomness(const c10::OperatorHandle& op, std::optional<at::Generator> generator, c10::Device device) {
    if (!op.hasTag(at::Tag::nondeterministic_seeded)) return;
    npu_ = generator && generator->defined() ? *generator : at_npu::detail::getDefaultNPUGenerator(device.index());
    if (npu_.device().type() != NPU) { npu_ = at::Generator(); return; }
    cpu_ = at::detail::getDefaultCPUGenerator();
    std::lock_guard<std::mutex> guard(cpu_.mutex());
    state_ = cpu_.get_state();
    uint64_t offset = npu_.get_offset();
    cpu_.set_current_seed(npu_.current_seed() * 6364136223846793005ull + offset * 1442695040888963407ull);
    npu_.set_offset(offset + 4);  // Philox counts in fours
  }
  ~NpuRandomness() {
    if (!cpu_.defined()) return;
    std::lock_guard<std::mutex> guard(cpu_.mutex());
    cpu_.set_state(state_);
  }

 private:
  at::Generator npu_, cpu_;
  at::Tensor state_;
};

// The cube unit multiplies fp16 and accumulates in fp32, and rounds once. CPUs without fp16 units would take ten times
// as long in fp16.
bool accumulates_in_float(const c10::OperatorHandle& op) {
  static const std::set<std::string> cube{
      "aten::convolution", "aten::convolution_backward", "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"};
  return op.schema().overload_name().empty() && cube.count(op.schema().name());
}

// --- the kernel ------------------------------------------------------------------------------------------------------

void run_on_cpu(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  Call call;
  std::optional<at::Generator> generator;
  std::optional<at::ScalarType> rounded_to;
  std::vector<at::Tensor> written;
  const bool in_float = accumulates_in_float(op);

  for (size_t i = first; i < stack->size(); i++) {
    IValue& v = (*stack)[i];
    if (v.isTensor()) {
      auto cpu = call.enter(v.toTensor());
      auto info = schema.arguments()[i - first].alias_info();
      if (info && info->isWrite()) written.push_back(cpu);
      if (in_float && is_half(cpu)) {
        at::AutoDispatchBelowADInplaceOrView guard;
        rounded_to = cpu.scalar_type();
        cpu = cpu.to(at::kFloat);
      }
      v = cpu;
    } else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : v.toTensorVector()) list.push_back(call.enter(t));
      v = list;
    } else if (v.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (auto t : v.toOptionalTensorVector()) list.push_back(t ? std::make_optional(call.enter(*t)) : std::nullopt);
      v = list;
    } else if (v.isDevice() && v.toDevice().type() == NPU) {
      call.device = v.toDevice();
      v = c10::Device(c10::kCPU);
    } else if (v.isGenerator()) {
      generator = v.toGenerator();
      v = IValue();
    }
  }
  if (call.device.index() < 0) call.device = current_device();

  launch(op, *stack, call.device);
  {
    at::AutoDispatchBelowADInplaceOrView guard;
    NpuRandomness random(op, generator, call.device);
    op.callBoxed(stack);
  }
  call.write_back_resized();

  const bool saturates = ascend_emulator_saturates();
  at::AutoDispatchBelowADInplaceOrView guard;
  if (saturates)
    for (auto& t : written) saturate(t, call.device);
  auto finish = [&](at::Tensor result) {
    if (rounded_to && result.defined()) result = result.to(*rounded_to);
    if (saturates) saturate(result, call.device);
    return call.leave(result);
  };
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); i++) {
    IValue& v = (*stack)[i];
    if (v.isTensor()) {
      v = finish(v.toTensor());
    } else if (v.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& t : v.toTensorVector()) list.push_back(finish(t));
      v = list;
    }
  }
}

// --- operators that a device implements under another name -----------------------------------------------------------

at::Tensor convolution_overrideable(
    const at::Tensor& input, const at::Tensor& weight, const std::optional<at::Tensor>& bias, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups) {
  return at::convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward_overrideable(
    const at::Tensor& grad, const at::Tensor& input, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> mask) {
  std::vector<int64_t> bias{transposed ? weight.size(1) * groups : weight.size(0)};
  return at::convolution_backward(
      grad, input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, mask);
}

// Copies between host and device stay torch_npu's (pinned memory, streams, aclrtMemcpyAsync).
std::unique_ptr<c10::SafeKernelFunction> torch_npus_copy;

at::Tensor& copy_(c10::DispatchKeySet keys, at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  static auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  if (self.device() != source.device()) {
    Stack stack{self, source, non_blocking};
    torch_npus_copy->callBoxed(op, keys, &stack);
    return self;
  }
  at::AutoDispatchBelowADInplaceOrView guard;
  launch(op, Stack{self, source, non_blocking}, self.device());
  auto target = alias_on_cpu(self);
  target.copy_(alias_on_cpu(source));
  if (ascend_emulator_saturates()) saturate(target, self.device());
  return self;
}

// The 910A tells of an overflow by its flag, not by the gradients' values.
void amp_check_and_unscale(at::TensorList gradients, at::Tensor& found_inf, const at::Tensor& inverse_scale) {
  static auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::_amp_foreach_non_finite_check_and_unscale_", "");
  Stack stack{c10::List<at::Tensor>(gradients.vec()), found_inf, inverse_scale};
  run_on_cpu(op, {}, &stack);
  if (!ascend_emulator_saturates()) return;
  ascend_emulator_add(HOST_WAITS, 1);  // torch_npu reads the flag on the host
  if (ascend_emulator_overflowed(found_inf.device().index())) found_inf.fill_(1);
}

at::Tensor npu_get_float_status(const at::Tensor& status, int64_t) {
  ascend_emulator_add(OPERATORS, 1);
  status.fill_(ascend_emulator_overflowed(status.device().index()) ? 1 : 0);
  return status;
}

at::Tensor npu_clear_float_status(const at::Tensor& status, int64_t) {
  ascend_emulator_add(OPERATORS, 1);
  ascend_emulator_set_overflow(status.device().index(), false);
  return status.zero_();
}

// --- installation ----------------------------------------------------------------------------------------------------

std::vector<std::unique_ptr<torch::Library>> libraries;

torch::Library& library(const char* name_space, c10::DispatchKey key) {
  libraries.push_back(std::make_unique<torch::Library>(torch::Library::IMPL, name_space, key, __FILE__, __LINE__));
  return *libraries.back();
}

void install(const std::vector<std::string>& names) {
  auto copy = c10::Dispatcher::singleton().findSchemaOrThrow("aten::copy_", "");
  torch_npus_copy = std::make_unique<c10::SafeKernelFunction>(
      copy.getComputedKernelForDispatchKey(c10::DispatchKey::PrivateUse1));

  auto& aten = library("aten", c10::DispatchKey::PrivateUse1);
  for (const auto& name : names)
    aten.impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_cpu>());
  aten.impl("convolution_overrideable", TORCH_FN(convolution_overrideable));
  aten.impl("convolution_backward_overrideable", TORCH_FN(convolution_backward_overrideable));
  aten.impl("copy_", TORCH_FN(copy_));
  aten.impl("_to_copy", TORCH_FN(at::native::_to_copy));
  aten.impl("_amp_foreach_non_finite_check_and_unscale_", TORCH_FN(amp_check_and_unscale));

  // torch_npu derives these by operators of its own; torch composes them of others
  auto& autograd = library("aten", c10::DispatchKey::AutogradPrivateUse1);
  autograd.impl("matmul", TORCH_FN(at::native::matmul));
  autograd.impl("binary_cross_entropy_with_logits", TORCH_FN(at::native::binary_cross_entropy_with_logits));

  auto& npu = library("npu", c10::DispatchKey::PrivateUse1);
  npu.impl("npu_get_float_status", TORCH_FN(npu_get_float_status));
  npu.impl("npu_clear_float_status", TORCH_FN(npu_clear_float_status));
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("install", &install);
  m.def("count_calls", [](bool on) { counting = on; calls.clear(); });
  m.def("calls", [] { return calls; });
}
