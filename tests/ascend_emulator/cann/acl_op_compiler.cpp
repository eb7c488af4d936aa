// libacl_op_compiler.so: the single operators that torch_npu launches itself, past torch's dispatcher, and the
// compiler's options. Operators that torch dispatches are the router's (../router.cpp).
#include <cmath>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "acl/acl.h"
#include "acl/acl_op_compiler.h"
#include "emulator.h"

#define API ASCEND_EMULATOR_API

struct aclTensorDesc {
  aclDataType type;
  std::vector<int64_t> dims;
  aclFormat format;

  size_t numel() const {
    size_t n = 1;
    for (int64_t d : dims) n *= d;
    return n;
  }
};
struct aclDataBuffer {
  void* data;
  size_t bytes;
};
struct aclopAttr {  // what the operators below read
  std::map<std::string, std::string> texts;
  std::map<std::string, bool> flags;
};

// --- descriptors -----------------------------------------------------------------------------------------------------

API aclTensorDesc* aclCreateTensorDesc(aclDataType type, int count, const int64_t* dims, aclFormat format) {
  return new aclTensorDesc{type, std::vector<int64_t>(dims, dims + count), format};
}
API void aclDestroyTensorDesc(const aclTensorDesc* desc) { delete desc; }
API aclDataBuffer* aclCreateDataBuffer(void* data, size_t bytes) { return new aclDataBuffer{data, bytes}; }
API aclError aclDestroyDataBuffer(const aclDataBuffer* buffer) { delete buffer; return ACL_SUCCESS; }
API aclDataType aclGetTensorDescType(const aclTensorDesc* desc) { return desc->type; }
API aclFormat aclGetTensorDescFormat(const aclTensorDesc* desc) { return desc->format; }
API size_t aclGetTensorDescNumDims(const aclTensorDesc* desc) { return desc->dims.size(); }
API aclError aclGetTensorDescDimV2(const aclTensorDesc* desc, size_t i, int64_t* dim) {
  *dim = desc->dims[i];
  return ACL_SUCCESS;
}
API void aclSetTensorDescName(aclTensorDesc*, const char*) {}
API aclError aclSetTensorFormat(aclTensorDesc*, aclFormat) { return ACL_SUCCESS; }
API aclError aclSetTensorPlaceMent(aclTensorDesc*, aclMemType) { return ACL_SUCCESS; }
API aclError aclSetTensorShape(aclTensorDesc*, int, const int64_t*) { return ACL_SUCCESS; }

API aclopAttr* aclopCreateAttr() { return new aclopAttr; }
API void aclopDestroyAttr(const aclopAttr* attr) { delete attr; }
API aclError aclopSetAttrBool(aclopAttr* attr, const char* name, uint8_t value) {
  attr->flags[name] = value;
  return ACL_SUCCESS;
}
API aclError aclopSetAttrDataType(aclopAttr*, const char*, aclDataType) { return ACL_SUCCESS; }
API aclError aclopSetAttrFloat(aclopAttr*, const char*, float) { return ACL_SUCCESS; }
API aclError aclopSetAttrInt(aclopAttr*, const char*, int64_t) { return ACL_SUCCESS; }
API aclError aclopSetAttrListBool(aclopAttr*, const char*, int, const uint8_t*) { return ACL_SUCCESS; }
API aclError aclopSetAttrListFloat(aclopAttr*, const char*, int, const float*) { return ACL_SUCCESS; }
API aclError aclopSetAttrListInt(aclopAttr*, const char*, int, const int64_t*) { return ACL_SUCCESS; }
API aclError aclopSetAttrListListInt(aclopAttr*, const char*, int, const int*, const int64_t* const[]) {
  return ACL_SUCCESS;
}
API aclError aclopSetAttrString(aclopAttr* attr, const char* name, const char* value) {
  attr->texts[name] = value;
  return ACL_SUCCESS;
}

// --- operators -------------------------------------------------------------------------------------------------------

namespace {

size_t item_size(aclDataType type) {
  switch (type) {
    case ACL_INT8: case ACL_UINT8: case ACL_BOOL: return 1;
    case ACL_FLOAT16: case ACL_BF16: case ACL_INT16: case ACL_UINT16: return 2;
    case ACL_FLOAT: case ACL_INT32: case ACL_UINT32: return 4;
    case ACL_DOUBLE: case ACL_INT64: case ACL_UINT64: return 8;
    default: return 0;
  }
}

// Constant padding: input 1 holds (before, after) of every dimension, input 2 the value.
void pad(const aclTensorDesc* const in[], const aclDataBuffer* const data[], int inputs, const aclTensorDesc& out,
         char* result, size_t size) {
  size_t rank = in[0]->dims.size();
  std::vector<int64_t> before(rank);
  for (size_t i = 0; i < rank; i++)
    before[i] = in[1]->type == ACL_INT64 ? static_cast<int64_t*>(data[1]->data)[2 * i]
                                         : static_cast<int32_t*>(data[1]->data)[2 * i];
  const std::vector<char> zero(size);
  const void* value = inputs > 2 && data[2]->data ? data[2]->data : zero.data();
  for (size_t i = 0; i < out.numel(); i++) memcpy(result + i * size, value, size);
  for (size_t i = 0; i < in[0]->numel(); i++) {
    size_t rest = i, target = 0, stride = 1;
    for (size_t d = rank; d-- > 0;) {
      target += (rest % in[0]->dims[d] + before[d]) * stride;
      rest /= in[0]->dims[d];
      stride *= out.dims[d];
    }
    memcpy(result + target * size, static_cast<char*>(data[0]->data) + i * size, size);
  }
}

// Repeat the input along the dimensions that it lacks or has once.
void broadcast(const aclTensorDesc& in, const char* data, const aclTensorDesc& out, char* result, size_t size) {
  size_t shift = out.dims.size() - in.dims.size();
  for (size_t i = 0; i < out.numel(); i++) {
    size_t rest = i, source = 0, stride = 1;
    for (size_t d = out.dims.size(); d-- > 0;) {
      size_t index = rest % out.dims[d];
      rest /= out.dims[d];
      if (d < shift) continue;
      if (in.dims[d - shift] != 1) source += index * stride;
      stride *= in.dims[d - shift];
    }
    memcpy(result + i * size, data + source * size, size);
  }
}

// Conversion between the types that batch norm's statistics and counters have.
template <class From> bool cast_from(const From* from, void* to, aclDataType type, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (type == ACL_FLOAT) static_cast<float*>(to)[i] = from[i];
    else if (type == ACL_INT32) static_cast<int32_t*>(to)[i] = from[i];
    else if (type == ACL_INT64) static_cast<int64_t*>(to)[i] = from[i];
    else return false;
  }
  return true;
}
bool cast(const void* from, aclDataType from_type, void* to, aclDataType type, size_t n) {
  switch (from_type) {
    case ACL_FLOAT: return cast_from(static_cast<const float*>(from), to, type, n);
    case ACL_INT32: return cast_from(static_cast<const int32_t*>(from), to, type, n);
    case ACL_INT64: return cast_from(static_cast<const int64_t*>(from), to, type, n);
    case ACL_BOOL: return cast_from(static_cast<const bool*>(from), to, type, n);
    default: return false;
  }
}

// Gradient of the Kullback-Leibler divergence in the input: inputs are its gradient, the input and the target.
bool kl_div_grad(const aclTensorDesc* const in[], const aclDataBuffer* const data[], const aclopAttr& attr,
                 const aclTensorDesc& out, void* result) {
  for (int i = 0; i < 3; i++)
    if (in[i]->type != ACL_FLOAT) return false;
  auto reduction = attr.texts.find("reduction");
  auto log_target = attr.flags.find("log_target");
  const std::string kind = reduction == attr.texts.end() ? "mean" : reduction->second;
  const auto* grad = static_cast<const float*>(data[0]->data);
  const auto* target = static_cast<const float*>(data[2]->data);
  const float count = kind == "mean" ? out.numel() : kind == "batchmean" ? out.dims[0] : 1;
  for (size_t i = 0; i < out.numel(); i++) {
    float p = log_target != attr.flags.end() && log_target->second ? std::exp(target[i]) : target[i];
    static_cast<float*>(result)[i] = -p * grad[in[0]->numel() == out.numel() ? i : 0] / count;
  }
  return true;
}

}  // namespace

API aclError aclopCompileAndExecute(
    const char* type, int inputs, const aclTensorDesc* const in[], const aclDataBuffer* const in_data[], int,
    const aclTensorDesc* const out[], aclDataBuffer* const out_data[], const aclopAttr* attr, aclopEngineType,
    aclopCompileType, const char*, aclrtStream) {
  const std::string op = type;
  char* result = static_cast<char*>(out_data[0]->data);
  size_t n = out[0]->numel(), size = item_size(out[0]->type);
  ascend_emulator_add(OPERATORS, 1);
  if (size && op == "ZerosLike") { memset(result, 0, n * size); return ACL_SUCCESS; }
  if (size && op == "Fill") {
    for (size_t i = 0; i < n; i++) memcpy(result + i * size, in_data[1]->data, size);
    return ACL_SUCCESS;
  }
  if (size && op == "BroadcastTo" && in[0]->type == out[0]->type) {
    broadcast(*in[0], static_cast<char*>(in_data[0]->data), *out[0], result, size);
    return ACL_SUCCESS;
  }
  if (size && op == "PadV3") { pad(in, in_data, inputs, *out[0], result, size); return ACL_SUCCESS; }
  if (size && (op == "Identity" || op == "TensorMove" || op == "Cast") && in[0]->type == out[0]->type) {
    memmove(result, in_data[0]->data, n * size);
    return ACL_SUCCESS;
  }
  if (op == "KlDivLossGrad" && inputs == 3 && kl_div_grad(in, in_data, *attr, *out[0], result)) return ACL_SUCCESS;
  if (op == "Cast" && cast(in_data[0]->data, in[0]->type, result, out[0]->type, n)) return ACL_SUCCESS;
  fprintf(stderr, "[ascend emulator] operator %s (type %d to %d) is not emulated\n", type,
          inputs ? static_cast<int>(in[0]->type) : -1, static_cast<int>(out[0]->type));
  return ACL_ERROR_OP_NOT_FOUND;
}

// --- options ---------------------------------------------------------------------------------------------------------

namespace {
// whether operators are compiled just in time; as in CANN, the first generation's default. Where they are, torch_npu
// also converts formats, with operators that are not emulated
std::string& jit_compile() {
  static std::string value = ascend_emulator_saturates() ? "enable" : "disable";
  return value;
}
}  // namespace

API aclError aclSetCompileopt(aclCompileOpt option, const char* value) {
  if (option == ACL_OP_JIT_COMPILE) jit_compile() = value;
  return ACL_SUCCESS;
}
API aclError aclopSetCompileFlag(aclOpCompileFlag) { return ACL_SUCCESS; }
API size_t aclGetCompileoptSize(aclCompileOpt) { return 256; }
API aclError aclGetCompileopt(aclCompileOpt option, char* value, size_t length) {
  strncpy(value, option == ACL_OP_JIT_COMPILE ? jit_compile().c_str() : "disable", length);
  return ACL_SUCCESS;
}
