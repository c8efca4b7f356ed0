// upsample_ce_kl on a CPU: one row of label pixels at a time is brought to life for all classes, judged, and forgotten.
//
// Within a row, pixels are kept in phases: phase r holds the r-th pixel of every quad (kernels/tables.py), side by side. So both
// neighbours of lane l are values l and l + 1 of the low-resolution row, and every loop runs over contiguous floats, at any scale.
// A phase that a quad does not have repeats its left value and weighs nothing. The student is held as x log2(e), the teacher as
// u log2(e) / T. So cross-entropy takes the same steps with and without a teacher: a teacher without weight changes no bit.
#include "../cpu.h"

namespace {

struct Axis {  // see kernels/tables.py
    const int32_t *quad, *start;
    const float* fraction;
};

struct Grid {  // logits (B, C, h, w), and how the labels' grid lies on theirs
    const float* values;
    int h, w;
    Axis rows, columns;
};

struct Labels {  // (B, H, W)
    const void* values;
    int bytes, ignore, H, W;
};

INLINE int64_t label(const Labels& labels, size_t i) {
    if (labels.bytes == 1) return static_cast<const uint8_t*>(labels.values)[i];
    if (labels.bytes == 4) return static_cast<const int32_t*>(labels.values)[i];
    return static_cast<const int64_t*>(labels.values)[i];
}

struct Problem {
    Grid student, teacher;  // teacher.values may be null
    Labels labels;
    int B, C;
    float temperature;
    bool same;  // both grids are one

    int lanes() const { return padded(student.w + 1); }
    int phases() const {
        int most = 1;
        for (int l = 0; l <= student.w; l++) most = std::max(most, student.columns.start[l + 1] - student.columns.start[l]);
        return most;
    }
};

double exponentials(const Problem& p) { return (p.teacher.values ? 3. : 1.) * p.B * p.C * p.labels.H * p.labels.W; }

// Where the pixels of any row lie on the student's columns and on the teacher's, in phases.
struct Places {
    int L, P;  // lanes of a phase, pixels of a row in all phases
    std::vector<int> pixel;  // (P): which column of the labels, or -1
    std::vector<float> fraction, teacher_fraction;
    std::vector<int> teacher_quad;

    explicit Places(const Problem& p) : L(p.lanes()), P(p.phases() * L), pixel(P, -1), fraction(P), teacher_fraction(P), teacher_quad(P) {
        for (int i = 0; i < P; i++) {
            int r = i / L, l = i % L;
            if (l > p.student.w || p.student.columns.start[l] + r >= p.student.columns.start[l + 1]) continue;
            int X = pixel[i] = p.student.columns.start[l] + r;
            fraction[i] = p.student.columns.fraction[X];
            if (p.teacher.values) teacher_fraction[i] = p.teacher.columns.fraction[X], teacher_quad[i] = p.teacher.columns.quad[X];
        }
    }
};

// What one thread works with: the row of pixels, for all classes.
struct Room {
    std::vector<float> column, x, u;  // (w + 2 and padding), (C, P), (C, P)
    Room(const Problem& p, const Places& s)
        : column(padded(std::max(p.student.w, p.teacher.w) + 2) + LANES), x(size_t(p.C) * s.P), u(p.teacher.values ? size_t(p.C) * s.P : 0) {}
};

// The low-resolution row at label row Y, from quad -1 on: column[l] and column[l + 1] are the neighbours in quad l - 1.
INLINE void lerp_rows(const float* plane, const Grid& g, int Y, float scale, float* column) {
    int k = g.rows.quad[Y];
    const float *top = plane + size_t(std::max(k, 0)) * g.w, *bottom = plane + size_t(std::min(k + 1, g.h - 1)) * g.w;
    float f = g.rows.fraction[Y];
    for (int j = 0; j < g.w; j++) column[j + 1] = scale * (top[j] + f * (bottom[j] - top[j]));
    column[0] = column[1], column[g.w + 1] = column[g.w];
}

INLINE void fill(const Problem& p, const Places& s, int b, int Y, Room& room) {
    float* column = room.column.data();
    for (int c = 0; c < p.C; c++) {
        lerp_rows(p.student.values + (size_t(b) * p.C + c) * p.student.h * p.student.w, p.student, Y, LOG2E, column);
        float* x = room.x.data() + size_t(c) * s.P;
        for (int i = 0; i < s.P; i += s.L)
            for (int l = 0; l < s.L; l += LANES) {
                Floats left = load(column + l);
                store(x + i + l, left + load(s.fraction.data() + i + l) * (load(column + l + 1) - left));
            }
        if (!p.teacher.values) continue;
        lerp_rows(p.teacher.values + (size_t(b) * p.C + c) * p.teacher.h * p.teacher.w, p.teacher, Y, LOG2E / p.temperature, column);
        float* u = room.u.data() + size_t(c) * s.P;
        if (p.same)
            for (int i = 0; i < s.P; i += s.L)
                for (int l = 0; l < s.L; l += LANES) {
                    Floats left = load(column + l);
                    store(u + i + l, left + load(s.fraction.data() + i + l) * (load(column + l + 1) - left));
                }
        else
            for (int i = 0; i < s.P; i++) {
                const float* left = column + s.teacher_quad[i] + 1;
                u[i] = left[0] + s.teacher_fraction[i] * (left[1] - left[0]);
            }
    }
}

struct Sums {  // per pixel, of one row in phases: base-2 logarithms of the sums of exponentials, and the KL
    std::vector<float> l1, ls, lt, kl;
    explicit Sums(int P) : l1(P), ls(P), lt(P), kl(P) {}
};

INLINE void judge(const Problem& p, const Places& s, const Room& room, Sums& out) {
    const float cooled = 1.f / p.temperature;
    for (int i = 0; i < s.P; i += LANES) {
        const float *x = room.x.data() + i, *u = room.u.data() + i;
        Floats ms = load(x), mt = {};
        for (int c = 1; c < p.C; c++) ms = larger(load(x + size_t(c) * s.P), ms);
        if (p.teacher.values) {
            mt = load(u);
            for (int c = 1; c < p.C; c++) mt = larger(load(u + size_t(c) * s.P), mt);
        }
        Floats s1 = {}, ss = {}, st = {}, cross = {};
        for (int c = 0; c < p.C; c++) {
            Floats d = load(x + size_t(c) * s.P) - ms, e = power2(d);
            s1 += e;
            if (!p.teacher.values) continue;
            Floats k = load(u + size_t(c) * s.P) - mt, f = power2(k);
            ss += p.temperature == 1.f ? e : power2(d * cooled), st += f, cross += f * (k - d * cooled);
        }
        store(out.l1.data() + i, ms + logarithm2(s1));
        if (!p.teacher.values) continue;
        Floats log_s = logarithm2(ss), log_t = logarithm2(st);
        store(out.ls.data() + i, ms * cooled + log_s);
        store(out.lt.data() + i, mt + log_t);
        store(out.kl.data() + i, LN2 * (cross / st + log_s - log_t));
    }
}

struct Maps {  // (B, H, W) each
    float *ce, *kl, *ls, *lt;
};

struct Upstream {  // (B, H, W) each, or one number where the stride is 0
    const float *a, *b;
    int a_stride, b_stride;
};

// False where a label is no class.
CLONES bool forward_row(const Problem& p, const Places& s, int b, int Y, Room& room, Sums& sums, const Maps& out) {
    fill(p, s, b, Y, room);
    judge(p, s, room, sums);
    bool good = true;
    size_t row = (size_t(b) * p.labels.H + Y) * p.labels.W;
    for (int i = 0; i < s.P; i++) {
        if (s.pixel[i] < 0) continue;
        size_t at = row + s.pixel[i];
        int64_t y = label(p.labels, at);
        bool counts = y != p.labels.ignore, known = y >= 0 && y < p.C;
        good &= known || !counts;
        out.ce[at] = counts && known ? LN2 * (sums.l1[i] - room.x[size_t(y) * s.P + i]) : 0.f;
        if (p.teacher.values) out.kl[at] = sums.kl[i], out.ls[at] = sums.ls[i], out.lt[at] = sums.lt[i];
    }
    return good;
}

// A row as the backward sees it, per pixel in phases. Where there is no pixel all weights are 0 and all exponentials nothing.
struct Weighted {
    std::vector<float> l1, ls, lt, a, b;
    std::vector<int> label;
    explicit Weighted(int P) : l1(P), ls(P), lt(P), a(P), b(P), label(P) {}
};

INLINE void weigh(const Problem& p, const Places& s, int b, int Y, const Room& room, const Maps& maps, const Upstream& up, Weighted& out) {
    size_t row = (size_t(b) * p.labels.H + Y) * p.labels.W;
    for (int i = 0; i < s.P; i++) {
        out.a[i] = out.b[i] = 0.f, out.label[i] = -1;
        out.l1[i] = out.ls[i] = out.lt[i] = -LOWEST;
        if (s.pixel[i] < 0) continue;
        size_t at = row + s.pixel[i];
        if (p.teacher.values) out.ls[i] = maps.ls[at], out.lt[i] = maps.lt[at], out.b[i] = up.b[at * up.b_stride] / p.temperature;
        int64_t y = label(p.labels, at);
        if (y == p.labels.ignore) continue;
        out.label[i] = int(y), out.a[i] = up.a[at * up.a_stride];
        out.l1[i] = maps.ce[at] * LOG2E + room.x[size_t(y) * s.P + i];
    }
}

// Adds to the sums over the pixels of each quad, (C, 4, L): of g, of g times the fraction across, down, and both.
INLINE void gather(const Problem& p, const Places& s, const Room& room, const Weighted& w, float down, float* sums) {
    const float cooled = 1.f / p.temperature;
    for (int c = 0; c < p.C; c++)
        for (int l = 0; l < s.L; l += LANES) {
            Floats g = {}, across = {};
            for (int i = l; i < s.P; i += s.L) {
                Floats x = load(room.x.data() + size_t(c) * s.P + i);
                Floats one = load(w.a.data() + i) * power2(x - load(w.l1.data() + i));
                if (p.teacher.values) {
                    Floats u = load(room.u.data() + size_t(c) * s.P + i);
                    one += load(w.b.data() + i) * (power2(x * cooled - load(w.ls.data() + i)) - power2(u - load(w.lt.data() + i)));
                }
                g += one, across += one * load(s.fraction.data() + i);
            }
            float* at = sums + size_t(c) * 4 * s.L + l;
            store(at, load(at) + g), store(at + s.L, load(at + s.L) + across);
            store(at + 2 * s.L, load(at + 2 * s.L) + g * down), store(at + 3 * s.L, load(at + 3 * s.L) + across * down);
        }
    for (int i = 0; i < s.P; i++) {  // the one-hot label
        if (w.label[i] < 0) continue;
        float *at = sums + size_t(w.label[i]) * 4 * s.L + i % s.L, a = w.a[i], f = s.fraction[i];
        at[0] -= a, at[s.L] -= a * f, at[2 * s.L] -= a * down, at[3 * s.L] -= a * f * down;
    }
}

CLONES void backward_row(const Problem& p, const Places& s, int b, int Y, Room& room, Weighted& w, const Maps& maps, const Upstream& up,
                         float* sums) {
    fill(p, s, b, Y, room);
    weigh(p, s, b, Y, room, maps, up, w);
    float down = p.student.rows.fraction[Y];
    gather(p, s, room, w, down, sums);
}

// Row k of the gradient: what its own quads keep of their sums, and what the quads above handed down, (C, 2, L); then hands down.
CLONES void write_row(const Problem& p, int L, int b, int k, bool own, const float* sums, float* above, float* gradient) {
    int h = p.student.h, w = p.student.w;
    for (int c = 0; c < p.C; c++) {
        const float *g = sums + size_t(c) * 4 * L, *across = g + L, *down = g + 2 * L, *both = g + 3 * L;
        float *from = above + size_t(c) * 2 * L, *from_across = from + L;
        float* out = gradient + ((size_t(b) * p.C + c) * h + k) * w;
        for (int j = 0; own && j < w; j++) {  // column j lies left in lane j + 1 and right in lane j
            float left = (g[j + 1] - down[j + 1] + from[j + 1]) - (across[j + 1] - both[j + 1] + from_across[j + 1]);
            out[j] = left + (across[j] - both[j] + from_across[j]);
        }
        std::memcpy(from, down, L * sizeof(float)), std::memcpy(from_across, both, L * sizeof(float));
    }
}

}  // namespace

extern "C" int upsample_ce_kl_forward(const Problem* problem, const Maps* out, int threads) {
    const Problem& p = *problem;
    const Places places(p);
    std::atomic<bool> good{true};
    spread(p.B * p.labels.H, worth(exponentials(p), threads), [&] {
        return [&, room = Room(p, places), sums = Sums(places.P)](int job) mutable {
            if (!forward_row(p, places, job / p.labels.H, job % p.labels.H, room, sums, *out)) good = false;
        };
    });
    return good;
}

extern "C" void upsample_ce_kl_backward(const Problem* problem, const Maps* maps, const Upstream* up, float* gradient, int threads) {
    const Problem& p = *problem;
    const Places places(p);
    const int h = p.student.h, L = places.L, run = std::clamp(p.B * h / 32, 8, 16), runs = (h + run - 1) / run;  // rows of a job
    spread(p.B * runs, worth(exponentials(p), threads), [&] {
        std::vector<float> sums(size_t(p.C) * 4 * L), above(size_t(p.C) * 2 * L);
        return [&, room = Room(p, places), w = Weighted(places.P), sums, above](int job) mutable {
            int b = job / runs, first = job % runs * run;
            for (int k = first - 1; k < std::min(h, first + run); k++) {  // the row before is only for what it hands down
                std::fill(sums.begin(), sums.end(), 0.f);
                for (int Y = p.student.rows.start[k + 1]; Y < p.student.rows.start[k + 2]; Y++)
                    backward_row(p, places, b, Y, room, w, *maps, *up, sums.data());
                write_row(p, L, b, k, k >= first, sums.data(), above.data(), gradient);
            }
        };
    });
}
