// CUDA's runtime and driver for a card that is not there: what torch's CUDA build and Triton call of them, no more.
//
// Memory of the card is memory of the host, at addresses that nobody may read: a second mapping, `shadow`, holds its
// bytes, and copies go by way of that. Kernels are counted and not run. While a stream is captured, what a card refuses
// then is refused, with the error that a card gives, and named in the log (STAND_IN_LOG) with Python's stack.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>
#include <dlfcn.h>
#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

namespace {

constexpr size_t TOTAL = size_t(80) << 30, SPACE = size_t(1) << 42, LONG = size_t(1) << 26;
constexpr unsigned WIDEST = 65535;  // programs of a grid in its second and third direction
constexpr int SHARED = 232448;      // bytes of shared memory a block may ask for

struct Memory {
  char *card, *shadow;
  size_t next = 1 << 21, used = 0;
  std::map<size_t, size_t> sizes;      // by place
  std::multimap<size_t, size_t> free;  // places by size

  Memory() {
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    card = static_cast<char*>(mmap(nullptr, SPACE, PROT_NONE, flags, -1, 0));
    shadow = static_cast<char*>(mmap(nullptr, SPACE, PROT_READ | PROT_WRITE, flags, -1, 0));
  }
  bool holds(const void* at) const { return at >= card && at < card + SPACE; }
  char* bytes(const void* at) const {
    auto* byte = static_cast<char*>(const_cast<void*>(at));
    return holds(at) ? shadow + (byte - card) : byte;
  }
  void* take(size_t size) {
    size = (size + 511) & ~size_t(511);
    if (used + size > TOTAL) return nullptr;
    size_t place = next;
    if (auto found = free.find(size); found != free.end()) {
      place = found->second;
      free.erase(found);
    } else {
      next += size + 4096;
    }
    sizes[place] = size, used += size;
    return card + place;
  }
  void let_go(void* at) {
    auto found = sizes.find(static_cast<char*>(at) - card);
    if (found == sizes.end()) return;
    madvise(shadow + found->first, found->second & ~size_t(4095), MADV_DONTNEED);
    used -= found->second, free.emplace(found->second, found->first), sizes.erase(found);
  }
};

Memory memory;
std::recursive_mutex mutex;
std::map<const void*, size_t> pinned;                      // memory of the host that a card can read by itself
std::unordered_map<const void*, std::string> names;        // of torch's own kernels
std::unordered_map<CUstream_st*, bool> capturing;          // by stream
std::unordered_map<CUevent_st*, bool> captured_events;     // recorded within a capture
std::unordered_map<CUevent_st*, double> times;             // of events, ms
bool is_capture = false, is_invalid = false, for_all_threads = false;
size_t nodes = 0;
uintptr_t handles = 0x1000;
thread_local bool is_mine = false;  // whether this thread captures
thread_local cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
thread_local cudaError_t last = cudaSuccess;

using Lock = std::lock_guard<std::recursive_mutex>;

FILE* log_file() {
  static FILE* file = std::getenv("STAND_IN_LOG") ? std::fopen(std::getenv("STAND_IN_LOG"), "a") : stderr;
  return file;
}

void fault(const std::string& what) {
  std::fprintf(log_file(), "FAULT %s\n", what.c_str());
  std::fflush(log_file());
  static thread_local bool is_asking = false;
  auto holds = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
  auto run = reinterpret_cast<int (*)(const char*)>(dlsym(RTLD_DEFAULT, "PyRun_SimpleString"));
  if (is_asking || !holds || !run || !holds()) return;
  is_asking = true;
  run("import os, traceback\nwith open(os.environ.get('STAND_IN_LOG', '/dev/stderr'), 'a') as log:\n"
      "    traceback.print_stack(limit=12, file=log)\n");
  is_asking = false;
}

cudaError_t refused(const std::string& what) {
  fault(what);
  is_invalid = is_capture;
  return last = cudaErrorStreamCaptureUnsupported;
}

bool captures(CUstream_st* stream) {
  auto found = capturing.find(stream);
  return found != capturing.end() && found->second;
}

// Whether a capture forbids this thread what could disturb it.
bool is_forbidden() {
  return is_capture && (is_mine || for_all_threads) && mode != cudaStreamCaptureModeRelaxed;
}

bool is_pinned(const void* at) {
  auto found = pinned.upper_bound(at);
  if (found == pinned.begin()) return false;
  --found;
  return at < static_cast<const char*>(found->first) + found->second;
}

void launched(const std::string& name, CUstream_st* stream) {
  Lock lock(mutex);
  if (captures(stream)) nodes++;
  else if (is_forbidden() && !stream) fault("launch of " + name + " on the default stream during a capture");
}

std::string readable(const void* kernel) {
  auto found = names.find(kernel);
  if (found == names.end()) return "an unknown kernel";
  char* plain = abi::__cxa_demangle(found->second.c_str(), nullptr, nullptr, nullptr);
  std::string name = plain ? plain : found->second;
  std::free(plain);
  return name.substr(0, 150);
}

cudaError_t copied(void* to, const void* from, size_t size, CUstream_st* stream, bool waits) {
  Lock lock(mutex);
  bool ends_there = memory.holds(to), begins_there = memory.holds(from);
  std::string what = "a copy of " + std::to_string(size) + " bytes " +
                     (ends_there ? begins_there ? "on the card" : "to the card" : "from the card");
  if (captures(stream)) {
    if (ends_there && begins_there) return nodes++, cudaSuccess;
    return refused(what + (is_pinned(ends_there ? from : to) ? ", pinned," : ", pageable,") + " within a capture");
  }
  if (is_forbidden() && (waits || !stream)) return refused(what + " during a capture");
  if (size) std::memcpy(memory.bytes(to), memory.bytes(from), size);
  return cudaSuccess;
}

cudaError_t filled(void* to, int value, size_t size, CUstream_st* stream) {
  Lock lock(mutex);
  if (captures(stream)) nodes++;
  else if (size < LONG) std::memset(memory.bytes(to), value, size);  // longer ones would take the host's memory
  return cudaSuccess;
}

cudaError_t waited(const char* what, CUstream_st* stream = nullptr) {
  Lock lock(mutex);
  return is_forbidden() || captures(stream) ? refused(std::string(what) + " during a capture") : cudaSuccess;
}

struct Graph {
  size_t nodes;
};

struct Module {
  std::string name;
};

}  // namespace

extern "C" {

// For computing.py: where the host finds the bytes of the card.
void* stand_in_bytes(const void* at) { return memory.bytes(at); }

// For functions that nobody needed so far (__main__.py makes them).
int stand_in_unknown(const char* name) {
  fault(std::string(name) + " is not simulated");
  return cudaErrorNotSupported;
}

// ---- the runtime: devices ----
cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr what, int) {
  static const std::map<int, int> known = {
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, SHARED},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrL2CacheSize, 50 << 20},
  };
  auto found = known.find(what);
  return *value = found == known.end() ? 1 : found->second, cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* about, int) {
  *about = {};
  std::strcpy(about->name, "stand-in");
  about->totalGlobalMem = TOTAL;
  about->major = 9, about->minor = 0, about->warpSize = 32, about->multiProcessorCount = 132;
  about->sharedMemPerBlock = 49152, about->sharedMemPerBlockOptin = SHARED, about->sharedMemPerMultiprocessor = 233472;
  about->regsPerBlock = about->regsPerMultiprocessor = 65536;
  about->maxThreadsPerBlock = 1024, about->maxThreadsPerMultiProcessor = 2048, about->l2CacheSize = 50 << 20;
  for (int i = 0; i < 3; i++) about->maxThreadsDim[i] = i < 2 ? 1024 : 64, about->maxGridSize[i] = i ? WIDEST : INT32_MAX;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int) { return std::snprintf(id, size, "0000:00:00.0"), cudaSuccess; }
cudaError_t cudaDeviceGetStreamPriorityRange(int* low, int* high) { return *low = 0, *high = -5, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return waited("cudaDeviceSynchronize"); }
cudaError_t cudaGetLastError() {
  cudaError_t error = last;
  return last = cudaSuccess, error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorName(cudaError_t) { return "an error of the stand-in"; }
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return error == cudaErrorStreamCaptureUnsupported ? "operation not permitted when stream is capturing" : "error";
}

// ---- memory ----
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) { return *free = TOTAL - memory.used, *total = TOTAL, cudaSuccess; }
cudaError_t cudaMalloc(void** at, size_t size) {
  Lock lock(mutex);
  if (is_forbidden()) return refused("cudaMalloc during a capture");
  *at = memory.take(size);
  return *at ? cudaSuccess : last = cudaErrorMemoryAllocation;
}
cudaError_t cudaFree(void* at) {
  Lock lock(mutex);
  if (is_forbidden()) return refused("cudaFree during a capture");
  if (at) memory.let_go(at);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** at, size_t size, unsigned) {
  Lock lock(mutex);
  if (is_forbidden()) return refused("cudaHostAlloc during a capture");
  *at = std::aligned_alloc(4096, (size + 4095) & ~size_t(4095));
  return pinned[*at] = size, cudaSuccess;
}
cudaError_t cudaFreeHost(void* at) {
  Lock lock(mutex);
  return pinned.erase(at), std::free(at), cudaSuccess;
}
cudaError_t cudaHostRegister(void* at, size_t size, unsigned) {
  Lock lock(mutex);
  return pinned[at] = size, cudaSuccess;
}
cudaError_t cudaHostUnregister(void* at) {
  Lock lock(mutex);
  return pinned.erase(at), cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* about, const void* at) {
  Lock lock(mutex);
  *about = {};
  about->type = memory.holds(at) ? cudaMemoryTypeDevice : is_pinned(at) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
  about->devicePointer = const_cast<void*>(at);
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) { return copied(to, from, size, nullptr, true); }
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t stream) {
  return copied(to, from, size, stream, false);
}
cudaError_t cudaMemcpy2DAsync(void* to, size_t step, const void* from, size_t other, size_t width, size_t height,
                              cudaMemcpyKind, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  for (size_t i = 0; i < height && error == cudaSuccess; i++)
    error = copied(static_cast<char*>(to) + i * step, static_cast<const char*>(from) + i * other, width, stream, false);
  return error;
}
cudaError_t cudaMemset(void* to, int value, size_t size) { return filled(to, value, size, nullptr); }
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) { return filled(to, value, size, stream); }
cudaError_t cudaGetSymbolAddress(void** at, const void*) {
  static void* one = memory.take(1 << 20);
  return *at = one, cudaSuccess;
}
cudaError_t cudaMemcpyToSymbol(const void*, const void*, size_t, size_t, cudaMemcpyKind) { return cudaSuccess; }

// ---- streams and events ----
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  Lock lock(mutex);
  return *stream = reinterpret_cast<cudaStream_t>(handles += 16), cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return captures(stream) ? waited("cudaStreamQuery", stream) : cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return waited("cudaStreamSynchronize", stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Lock lock(mutex);
  if (captured_events[event]) capturing[stream] = true;
  return cudaSuccess;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void* with) { return call(with), cudaSuccess; }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  Lock lock(mutex);
  return *event = reinterpret_cast<cudaEvent_t>(handles += 16), cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
  Lock lock(mutex);
  auto now = std::chrono::steady_clock::now().time_since_epoch();
  times[event] = std::chrono::duration<double, std::milli>(now).count();
  return captured_events[event] = captures(stream), cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }
cudaError_t cudaEventQuery(cudaEvent_t) { return waited("cudaEventQuery"); }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return waited("cudaEventSynchronize"); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t first, cudaEvent_t second) {
  Lock lock(mutex);
  if (!times.count(first) || !times.count(second)) return last = cudaErrorInvalidResourceHandle;
  return *ms = float(times[second] - times[first]), cudaSuccess;
}

// ---- graphs ----
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode how) {
  Lock lock(mutex);
  if (!stream) return refused("a capture of the default stream");
  capturing[stream] = is_capture = is_mine = true, for_all_threads = how == cudaStreamCaptureModeGlobal, nodes = 0;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  Lock lock(mutex);
  capturing.clear(), captured_events.clear();
  bool is_refused = is_invalid;
  is_capture = is_mine = is_invalid = for_all_threads = false;
  if (is_refused) return *graph = nullptr, last = cudaErrorStreamCaptureInvalidated;
  std::fprintf(log_file(), "a capture of %zu nodes\n", nodes);
  std::fflush(log_file());
  return *graph = reinterpret_cast<cudaGraph_t>(new Graph{nodes}), cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  Lock lock(mutex);
  return *status = captures(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status, unsigned long long* id,
                                     cudaGraph_t* graph, const cudaGraphNode_t** before, const cudaGraphEdgeData** edges,
                                     size_t* count) {
  if (id) *id = 1;
  if (graph) *graph = nullptr;
  if (before) *before = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaStreamIsCapturing(stream, status);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* other) { return std::swap(mode, *other), cudaSuccess; }
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* made, cudaGraph_t graph, unsigned long long) {
  return *made = reinterpret_cast<cudaGraphExec_t>(graph), cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* found, size_t* count) {
  if (!found) *count = reinterpret_cast<Graph*>(graph)->nodes;
  return cudaSuccess;
}

// ---- torch's own kernels ----
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* about, const void*) {
  *about = {};
  return about->maxThreadsPerBlock = 1024, about->numRegs = 32, about->binaryVersion = about->ptxVersion = 90, cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) { return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  return *blocks = 2, cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launched(readable(kernel), stream), cudaSuccess;
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* how, const void* kernel, void**) {
  return launched(readable(kernel), how->stream), cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t stream) {
  return launched(readable(kernel), stream), cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  return *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host)), cudaSuccess;
}
char __cudaInitModule(void**) { return 1; }
thread_local struct {
  dim3 grid, block;
  size_t shared;
  void* stream;
} call;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  return call = {grid, block, shared, stream}, 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = call.grid, *block = call.block, *shared = call.shared;
  return *static_cast<void**>(stream) = call.stream, cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  names[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
CUresult stand_in_not_there() { return CUDA_ERROR_NOT_SUPPORTED; }
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* status) {
  *found = dlsym(RTLD_DEFAULT, name);
  if (!*found) *found = reinterpret_cast<void*>(stand_in_not_there);
  if (status) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---- the driver, for Triton ----
CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuGetErrorString(CUresult, const char** text) { return *text = "an error of the stand-in", CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int number) { return *device = number, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute what, CUdevice device) {
  return cudaDeviceGetAttribute(value, static_cast<cudaDeviceAttr>(what), device), CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = reinterpret_cast<CUcontext>(1), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return cuCtxGetCurrent(context); }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* is_active) {
  return *flags = 0, *is_active = 1, CUDA_SUCCESS;
}
CUresult cuModuleLoadData(CUmodule* module, const void*) {
  Lock lock(mutex);
  if (is_forbidden()) fault("a kernel's first use within a capture");
  return *module = reinterpret_cast<CUmodule>(1), CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule) { return CUDA_SUCCESS; }
CUresult cuModuleGetFunction(CUfunction* function, CUmodule, const char* name) {
  return *function = reinterpret_cast<CUfunction>(new Module{name}), CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int* value, CUfunction_attribute what, CUfunction) {
  return *value = what == CU_FUNC_ATTRIBUTE_NUM_REGS ? 64 : what == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0, CUDA_SUCCESS;
}
CUresult cuFuncSetAttribute(CUfunction, CUfunction_attribute, int) { return CUDA_SUCCESS; }
CUresult cuFuncSetCacheConfig(CUfunction, CUfunc_cache) { return CUDA_SUCCESS; }
CUresult cuPointerGetAttribute(void* found, CUpointer_attribute, CUdeviceptr at) {
  if (!memory.holds(reinterpret_cast<void*>(at))) return fault("a kernel is given memory of the host"), CUDA_ERROR_INVALID_VALUE;
  return *static_cast<CUdeviceptr*>(found) = at, CUDA_SUCCESS;
}
CUresult cuLaunchKernelEx(const CUlaunchConfig* how, CUfunction function, void**, void**) {
  const std::string& name = reinterpret_cast<Module*>(function)->name;
  if (!how->gridDimX || !how->gridDimY || !how->gridDimZ || how->gridDimY > WIDEST || how->gridDimZ > WIDEST ||
      how->sharedMemBytes > SHARED)
    return fault("the grid or the shared memory of " + name), CUDA_ERROR_INVALID_VALUE;
  return launched(name, how->hStream), CUDA_SUCCESS;
}
}
