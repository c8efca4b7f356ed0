// channel_kl on a CPU: one job per row of pixels, two reads of it forward and one backward, nothing of its size written but the gradient.
#include "../cpu.h"

namespace {

constexpr int BLOCK = 4096;  // pixels summed in float before they join a sum in double: long rows lose no digits

struct Pair {
    Floats s, t;
};

// The lanes of both rows from pixel i on, times `scale`; lanes beyond the end count for nothing.
INLINE Pair lanes(const float* s, const float* t, int i, int n, float scale) {
    if (i + LANES <= n) return {load(s + i) * scale, load(t + i) * scale};
    float a[LANES], b[LANES];
    for (int k = 0; k < LANES; k++) a[k] = i + k < n ? s[i + k] * scale : LOWEST, b[k] = i + k < n ? t[i + k] * scale : LOWEST;
    return {load(a), load(b)};
}

INLINE double total(Floats v) {
    double sum = 0;
    for (int k = 0; k < LANES; k++) sum += v[k];
    return sum;
}

INLINE float largest(Floats v) {
    float most = v[0];
    for (int k = 1; k < LANES; k++) most = std::max(most, v[k]);
    return most;
}

void forward_row(const float* s, const float* t, int n, float scale, float* kl, float* ls, float* lt) {
    Floats most_s = all(LOWEST), most_t = all(LOWEST);
    for (int i = 0; i < n; i += LANES) {
        Pair x = lanes(s, t, i, n, scale);
        most_s = larger(most_s, x.s), most_t = larger(most_t, x.t);
    }
    float ms = largest(most_s), mt = largest(most_t);
    double sum_s = 0, sum_t = 0, cross = 0;
    for (int from = 0; from < n; from += BLOCK) {
        Floats as = {}, at = {}, ac = {};
        for (int i = from; i < std::min(n, from + BLOCK); i += LANES) {
            Pair x = lanes(s, t, i, n, scale);
            Floats e = power2(x.t - mt);
            as += power2(x.s - ms), at += e, ac += e * ((x.t - mt) - (x.s - ms));
        }
        sum_s += total(as), sum_t += total(at), cross += total(ac);
    }
    double logs = std::log2(sum_s), logt = std::log2(sum_t);
    *kl = float(0.6931471805599453 * (cross / sum_t + logs - logt));
    *ls = float(ms + logs), *lt = float(mt + logt);
}

void backward_row(const float* s, const float* t, int n, float scale, float ls, float lt, float factor, float* out) {
    for (int i = 0; i < n; i += LANES) {
        Pair x = lanes(s, t, i, n, scale);
        Floats g = (power2(x.s - ls) - power2(x.t - lt)) * factor;
        if (i + LANES <= n) store(out + i, g);
        else for (int k = 0; i + k < n; k++) out[i + k] = g[k];
    }
}

}  // namespace

extern "C" void channel_kl_forward(const float* s, const float* t, int rows, int n, float temperature, float* kl, float* ls, float* lt,
                                   int threads) {
    auto job = [=](int row) {
        size_t at = size_t(row) * n;
        forward_row(s + at, t + at, n, LOG2E / temperature, kl + row, ls + row, lt + row);
    };
    spread(rows, worth(2. * rows * n, threads), [=] { return job; });
}

extern "C" void channel_kl_backward(const float* s, const float* t, const float* ls, const float* lt, const float* upstream, int rows, int n,
                                    float temperature, float* out, int threads) {
    auto job = [=](int row) {
        size_t at = size_t(row) * n;
        backward_row(s + at, t + at, n, LOG2E / temperature, ls[row], lt[row], upstream[row] / temperature, out + at);
    };
    spread(rows, worth(2. * rows * n, threads), [=] { return job; });
}
