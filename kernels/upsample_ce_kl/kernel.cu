// The backward of upsample_ce_kl in CUDA C++: the gradient of the low-resolution logits from the maps of the forward, without atomics.
//
// The same march as in triton_.py, whose comments say why four sums per quad are enough. Here the unit is a warp: a lane is one quad
// column (-1 .. w-1) of one segment of low-resolution rows of one image, for CLASSES classes at once. It goes down the quad rows,
// reads only the pixels that its quad has, and writes the low-resolution value at the upper left. What belongs to the column on its
// right is handed over by one shuffle per class and low-resolution row; lane 0 repeats the last lane of the warp before, to hand it on.
// So there is no barrier and no shared memory, and the order of sums is the same however a map is cut into segments and blocks.
//
// Symbols in base 2: with x' = x log2(e) / T and u' likewise, softmax(x / T) = 2^(x' - ls), softmax(u / T) = 2^(u' - lt) and
// softmax(x) = 2^(T x' - l1). For T = 2 and 4 the last is taken as softmax(x / T)^T 2^(T ls - l1): a GPU makes 4 to 8 products in the
// time of one power of two. That factor lies between 1 and C^(T - 1).
//
// Compiled ahead of time by kernels/nvcc.py. tests/kernels/test_upsample_ce_kl_cuda.py runs the same file on a CPU.
#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

constexpr int WARP = 32, WARPS = 4;  // in a block
constexpr float LN2 = 0.6931471805599453f;

struct Arguments {  // as in cuda_.py, word for word
    const void *student, *teacher, *labels;  // (B, C, h, w), (B, C, th, tw), (B, H, W)
    const float *l1, *ls, *lt, *a, *b;  // (B, H, W); a and b may be one number
    const int* start_y;  // from here to grad: see kernels/tables.py
    const float* fraction_y;
    const int* start_x;
    const float* fraction_x;
    const int* teacher_quad_y;
    const float* teacher_fraction_y;
    const int* teacher_quad_x;
    const float* teacher_fraction_x;
    void* grad;  // (B, C, h, w)
    int C, h, w, th, tw, H, W;
    int chunks, segments, rows, lanes;  // chunks of classes; segments of a map and their low-resolution rows; B * segments * (w + 1)
    int ignore, label_bytes;  // 1 or 4
    int a_step, b_step;  // 0 where it is one number
    float scale, temperature;  // log2(e) / T, T
};

enum Teacher { NONE, SAME, OTHER };  // SAME: on the student's grid

__device__ inline float wide(float v) { return v; }
__device__ inline float wide(__half v) { return __half2float(v); }
__device__ inline float wide(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline void put(float* at, float v) { *at = v; }
__device__ inline void put(__half* at, float v) { *at = __float2half_rn(v); }
__device__ inline void put(__nv_bfloat16* at, float v) { *at = __float2bfloat16_rn(v); }

// V neighbours in memory, in one load.
template <int V, class T>
struct alignas(V * sizeof(T)) Some {
    T v[V];
};

template <int V, class T>
__device__ inline Some<V, T> some(const T* from) {
    return *reinterpret_cast<const Some<V, T>*>(from);
}

template <int V>
__device__ inline Some<V, float> weights(const float* from, unsigned at, int step) {
    if (step) return some<V>(from + at);
    Some<V, float> out;
    for (int v = 0; v < V; v++) out.v[v] = *from;
    return out;
}

template <int V>
__device__ inline Some<V, int> classes(const void* from, unsigned at, int bytes) {
    if (bytes == 4) return some<V>(static_cast<const int*>(from) + at);
    auto small = some<V>(static_cast<const unsigned char*>(from) + at);
    Some<V, int> out;
    for (int v = 0; v < V; v++) out.v[v] = small.v[v];
    return out;
}

// Two neighbours in a row, for CLASSES classes: the left value, and how much more the right one is.
template <int CLASSES>
struct Ends {
    float left[CLASSES], step[CLASSES];
};

template <int CLASSES, class T>
__device__ inline Ends<CLASSES> ends(const void* values, unsigned left, unsigned right, unsigned size, int last, float scale) {
    const T* map = static_cast<const T*>(values);
    Ends<CLASSES> out;
#pragma unroll
    for (int i = 0; i < CLASSES; i++) {
        out.left[i] = wide(map[left]) * scale, out.step[i] = wide(map[right]) * scale - out.left[i];
        if (i < last) left += size, right += size;  // the last class again where there are no more
    }
    return out;
}

template <int CLASSES>
__device__ inline Ends<CLASSES> between(const Ends<CLASSES>& upper, const Ends<CLASSES>& lower, float fy) {
    Ends<CLASSES> out;
#pragma unroll
    for (int i = 0; i < CLASSES; i++) {
        out.left[i] = upper.left[i] + fy * (lower.left[i] - upper.left[i]);
        out.step[i] = upper.step[i] + fy * (lower.step[i] - upper.step[i]);
    }
    return out;
}

template <int CLASSES>
__device__ inline void along(const Ends<CLASSES>& row, float fx, float (&out)[CLASSES]) {
#pragma unroll
    for (int i = 0; i < CLASSES; i++) out[i] = row.left[i] + fx * row.step[i];
}

// Where a lane works: its image, its first class and how many more there are, its pixels across.
struct Place {
    int image, first, last, x_start, x_end;
};

// The teacher's logits at a pixel, where its grid is its own.
template <class Value, int CLASSES>
__device__ inline void elsewhere(const Arguments& p, const Place& place, int Y, int X, float (&out)[CLASSES]) {
    const int i = p.teacher_quad_y[Y], j = p.teacher_quad_x[X], size = p.th * p.tw;
    const unsigned map = (place.image * p.C + place.first) * size, left = map + max(j, 0), right = map + min(j + 1, p.tw - 1);
    const unsigned up = max(i, 0) * p.tw, down = min(i + 1, p.th - 1) * p.tw;
    const auto upper = ends<CLASSES, Value>(p.teacher, left + up, right + up, size, place.last, p.scale);
    const auto lower = ends<CLASSES, Value>(p.teacher, left + down, right + down, size, place.last, p.scale);
    along(between(upper, lower, p.teacher_fraction_y[Y]), p.teacher_fraction_x[X], out);
}

// The gradient of one pixel's loss by its logits x. T is the temperature where it is 1, 2 or 4, else 0.
template <bool KL, int T, int CLASSES>
__device__ inline void judge(const float (&x)[CLASSES], const float (&u)[CLASSES], float l1, float ls, float lt, float a, float b,
                             int label, float temperature, float (&g)[CLASSES]) {
    const float of_s = T > 1 ? a * exp2f(T * ls - l1) : a;
#pragma unroll
    for (int i = 0; i < CLASSES; i++) {
        float s = !KL || T == 0 ? exp2f(x[i] * temperature - l1) : 0.f;  // softmax(x), for T = 2 and 4 without its factor
        g[i] = 0.f;
        if (KL) {
            const float soft = exp2f(x[i] - ls), square = soft * soft;
            g[i] = b * (soft - exp2f(u[i] - lt));
            if (T > 0) s = T == 1 ? soft : T == 2 ? square : square * square;
        }
        g[i] += of_s * s;
    }
    if (unsigned(label) < CLASSES)  // mostly in no lane of a warp: then all skip it
#pragma unroll
        for (int i = 0; i < CLASSES; i++) g[i] -= label == i ? a : 0.f;  // g[label] would put g into memory
}

// Adds one label row of a quad to the sums of g and of fx g. V pixels are read at once: every quad begins at a multiple of V.
template <class Value, Teacher TEACHER, int T, int V, int CLASSES>
__device__ inline void row(const Arguments& p, const Place& place, int Y, const Ends<CLASSES>& xs, const Ends<CLASSES>& us,
                           float (&sum)[CLASSES], float (&across)[CLASSES]) {
    constexpr bool KL = TEACHER != NONE;
#pragma unroll 1
    for (int X = place.x_start; X < place.x_end; X += V) {
        const unsigned pixel = (place.image * p.H + Y) * p.W + X;
        const Some<V, float> fx = some<V>(p.fraction_x + X), l1 = some<V>(p.l1 + pixel), a = weights<V>(p.a, pixel, p.a_step);
        const Some<V, float> ls = KL && T != 1 ? some<V>(p.ls + pixel) : l1, lt = KL ? some<V>(p.lt + pixel) : l1;
        const Some<V, float> b = KL ? weights<V>(p.b, pixel, p.b_step) : a;
        const Some<V, int> label = classes<V>(p.labels, pixel, p.label_bytes);
#pragma unroll
        for (int v = 0; v < V; v++) {
            float x[CLASSES], u[CLASSES], g[CLASSES];
            along(xs, fx.v[v], x);
            if (TEACHER == SAME) along(us, fx.v[v], u);
            if (TEACHER == OTHER) elsewhere<Value>(p, place, Y, X + v, u);
            const float of_ce = label.v[v] == p.ignore ? 0.f : a.v[v], of_kl = b.v[v] * (p.scale * LN2);  // scale ln(2) = 1 / T
            judge<KL, T>(x, u, l1.v[v], ls.v[v], lt.v[v], of_ce, of_kl, label.v[v] - place.first, p.temperature, g);
#pragma unroll
            for (int i = 0; i < CLASSES; i++) sum[i] += g[i], across[i] += fx.v[v] * g[i];
        }
    }
}

template <class Value, Teacher TEACHER, int T, int V, int CLASSES>
__device__ inline void backward(const Arguments& p) {
    const int lane = threadIdx.x % WARP, asked = (blockIdx.x / p.chunks * WARPS + threadIdx.x / WARP) * (WARP - 1) + lane - 1;
    const bool live = asked >= 0 && asked < p.lanes;
    const int q = live ? asked : 0, column = q % (p.w + 1) - 1, top = q / (p.w + 1) % p.segments * p.rows;
    const int image = q / (p.w + 1) / p.segments, first = blockIdx.x % p.chunks * CLASSES, last = p.C - 1 - first, size = p.h * p.w;
    const Place place = {image, first, last, p.start_x[column + 1], p.start_x[column + 2]};
    const unsigned map = (image * p.C + first) * size, left = map + max(column, 0), right = map + min(column + 1, p.w - 1);
    const auto read = [&](const void* values, int k) {  // low-resolution row k, or the nearest there is
        const unsigned at = min(max(k, 0), p.h - 1) * p.w;
        return ends<CLASSES, Value>(values, left + at, right + at, size, last, p.scale);
    };
    Ends<CLASSES> z_lower = read(p.student, top - 1), t_lower;
    if (TEACHER == SAME) t_lower = read(p.teacher, top - 1);
    // Per class the sums of (1 - fy) g and (1 - fy) fx g, with what comes from the quad row above.
    float upper[CLASSES] = {}, upper_across[CLASSES] = {};
#pragma unroll 1
    for (int step = 0; step <= p.rows; step++) {
        const int k = top - 1 + step;
        const bool there = live && k < p.h;
        const int y_start = there ? p.start_y[k + 1] : 0, y_end = there ? p.start_y[k + 2] : 0;
        const Ends<CLASSES> z_upper = z_lower, t_upper = t_lower;
        z_lower = read(p.student, k + 1);
        if (TEACHER == SAME) t_lower = read(p.teacher, k + 1);
        float lower[CLASSES] = {}, lower_across[CLASSES] = {};  // the sums of fy g and fy fx g
#pragma unroll 1
        for (int Y = y_start; Y < y_end; Y++) {
            const float fy = p.fraction_y[Y];
            Ends<CLASSES> us;
            if (TEACHER == SAME) us = between(t_upper, t_lower, fy);
            float sum[CLASSES] = {}, across[CLASSES] = {};
            row<Value, TEACHER, T, V>(p, place, Y, between(z_upper, z_lower, fy), us, sum, across);
#pragma unroll
            for (int i = 0; i < CLASSES; i++) {
                upper[i] += (1 - fy) * sum[i], upper_across[i] += (1 - fy) * across[i];
                lower[i] += fy * sum[i], lower_across[i] += fy * across[i];
            }
        }
#pragma unroll
        for (int i = 0; i < CLASSES; i++) {
            const float handed = __shfl_up_sync(0xffffffff, upper_across[i], 1);
            if (there && step > 0 && lane > 0 && column >= 0 && i <= last)
                put(static_cast<Value*>(p.grad) + (map + i * size + k * p.w + column), upper[i] - upper_across[i] + handed);
            upper[i] = lower[i], upper_across[i] = lower_across[i];
        }
    }
}

#define KERNEL(name, type, teacher, T, V, n)                                                                      \
    extern "C" __global__ __launch_bounds__(WARP * WARPS, 4) void backward_##name##_##teacher##_T##T##_V##V##_C##n( \
        const __grid_constant__ Arguments p) {                                                                      \
        backward<type, teacher, T, V, n>(p);                                                                        \
    }
#define EACH_CHUNK(name, type, teacher, T, V) KERNEL(name, type, teacher, T, V, 4) KERNEL(name, type, teacher, T, V, 2)
#define EACH_TEMPERATURE(name, type, teacher, V)                                    \
    EACH_CHUNK(name, type, teacher, 0, V) EACH_CHUNK(name, type, teacher, 1, V)     \
    EACH_CHUNK(name, type, teacher, 2, V) EACH_CHUNK(name, type, teacher, 4, V)
#define KERNELS(name, type)                                                         \
    EACH_CHUNK(name, type, NONE, 1, 1) EACH_CHUNK(name, type, NONE, 1, 2)           \
    EACH_TEMPERATURE(name, type, SAME, 1) EACH_TEMPERATURE(name, type, SAME, 2)     \
    EACH_TEMPERATURE(name, type, OTHER, 1)  // two pixels at once would not fit into the registers

#ifdef ONLY  // some of them, for a test
ONLY
#else
KERNELS(fp32, float)
KERNELS(fp16, __half)
KERNELS(bf16, __nv_bfloat16)
#endif
