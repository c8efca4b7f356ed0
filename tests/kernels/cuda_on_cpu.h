// Runs a CUDA kernel on a CPU, lane by lane, so that its numbers can be tested where there is no GPU. Only what our kernels use.
//
// A warp is 32 coroutines. Each runs until it exchanges a value, then the next one does; so all lanes of a warp must exchange
// together, and one that does not is an error. Warps and blocks run one after the other: __syncthreads and atomics do not exist here.
// The functions at the end stand in for the CUDA driver: what kernels/driver.py calls, with the kernels of this library.
#pragma once
#include <dlfcn.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

using std::max;
using std::min;

struct Index {
    int x;
};
inline Index threadIdx, blockIdx;

struct __nv_bfloat16 {
    uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
    uint32_t bits = uint32_t(v.bits) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

inline __nv_bfloat16 __float2bfloat16_rn(float v) {  // to the nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    if (v != v) return {0x7fff};
    return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

struct __half {};  // not every compiler has one: its kernels are left out
float __half2float(__half);
__half __float2half_rn(float);

namespace on_cpu {

struct Lane {
    ucontext_t at;
    alignas(64) char stack[1 << 16];
    float gives;
    bool done;
};
inline Lane lanes[32];
inline ucontext_t caller;
inline int running, waiting;
inline void (*body)();

inline void rest() {
    waiting++;
    swapcontext(&lanes[running].at, &caller);
}

inline void start() {
    body();
    lanes[running].done = true;
    swapcontext(&lanes[running].at, &caller);
}

// False where some lanes of the warp ended while others wait for them.
inline bool warp(int first) {
    for (Lane& lane : lanes) {
        getcontext(&lane.at);
        lane.done = false, lane.at.uc_stack.ss_sp = lane.stack, lane.at.uc_stack.ss_size = sizeof lane.stack;
        makecontext(&lane.at, start, 0);
    }
    do {
        waiting = 0;
        for (running = 0; running < 32; running++) threadIdx.x = first + running, swapcontext(&caller, &lanes[running].at);
        if (waiting % 32) return false;
    } while (waiting);
    return true;
}

}  // namespace on_cpu

inline float __shfl_up_sync(unsigned, float value, int by) {
    using namespace on_cpu;
    lanes[running].gives = value;
    rest();  // until all have given
    float taken = lanes[running < by ? running : running - by].gives;
    rest();  // until all have taken
    return taken;
}

template <class Arguments>
int launch(void* kernel, int blocks, int threads, void** given) {
    static Arguments arguments;
    static void (*called)(Arguments);
    std::memcpy(&arguments, given[0], sizeof arguments), called = reinterpret_cast<void (*)(Arguments)>(kernel);
    on_cpu::body = [] { called(arguments); };
    for (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++)
        for (int first = 0; first < threads; first += 32)
            if (!on_cpu::warp(first)) return 1;
    return 0;
}

extern "C" {
int cuInit(unsigned) { return 0; }
int cuDeviceGet(int*, int) { return 0; }
int cuDevicePrimaryCtxRetain(void**, int) { return 0; }
int cuCtxSetCurrent(void*) { return 0; }
int cuModuleLoadData(void**, const char*) { return 0; }

int cuModuleGetFunction(void** function, void*, const char* name) {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&cuInit), &self);
    *function = dlsym(dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD), name);
    return *function ? 0 : 2;
}

int cuGetErrorString(int code, const char** said) {
    *said = code == 1 ? "some lanes of a warp exchanged a value and others did not" : "no such kernel";
    return 0;
}
}
