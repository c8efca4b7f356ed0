// upsample_ce_kl on a CPU. A job of the forward is a quad row: all label rows that lie between the same two low-resolution rows. These
// are read once, from planes far apart, and brought to each label row side by side for all classes; pixels exist in registers only. The
// backward takes one class at a time, for there the pixel's sums over classes are known, and everything fits into the nearest cache.
//
// Within a row, pixels are kept in phases: phase r holds the r-th pixel of every quad (kernels/tables.py), side by side. So both
// neighbours of lane l are values l and l + 1 of the low-resolution row, and every loop runs over contiguous floats, at any scale.
// A phase that a quad does not have repeats its left value and weighs nothing. The student is held as x log2(e), the teacher as
// u log2(e) / T. Cross-entropy takes e^x as (e^(x/4))^4, with and without a teacher: a teacher without weight changes no bit, and
// where T is 1, 2 or 4 its KL needs no exponentials of the student of its own.
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
    int phases() const { return most(student.columns, student.w); }
    int rows() const { return most(student.rows, student.h); }

    static int most(const Axis& axis, int n) {  // pixels in the largest quad
        int found = 1;
        for (int l = 0; l <= n; l++) found = std::max(found, axis.start[l + 1] - axis.start[l]);
        return found;
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

// The low-resolution row at label row Y, from quad -1 on: column[l] and column[l + 1] are the neighbours in quad l - 1.
INLINE void lerp_rows(const float* plane, const Grid& g, int Y, float scale, float* column) {
    int k = g.rows.quad[Y];
    const float *top = plane + size_t(std::max(k, 0)) * g.w, *bottom = plane + size_t(std::min(k + 1, g.h - 1)) * g.w;
    float f = g.rows.fraction[Y];
    for (int j = 0; j < g.w; j++) column[j + 1] = scale * (top[j] + f * (bottom[j] - top[j]));
    column[0] = column[1], column[g.w + 1] = column[g.w];
}

// LANES pixels of a phase, from the row that begins at their first left neighbour.
INLINE Floats between(const float* column, const float* fraction) {
    Floats left = load(column);
    return left + load(fraction) * (load(column + 1) - left);
}

INLINE void lerp_columns(const Places& s, const float* column, float* out) {
    for (int i = 0; i < s.P; i += s.L)
        for (int l = 0; l < s.L; l += LANES) store(out + i + l, between(column + l, s.fraction.data() + i + l));
}

// A teacher's row on a grid of its own, on the student's phases.
INLINE void lerp_foreign(const Places& s, const float* column, float* out) {
    for (int i = 0; i < s.P; i++) {
        const float* left = column + s.teacher_quad[i] + 1;
        out[i] = left[0] + s.teacher_fraction[i] * (left[1] - left[0]);
    }
}

std::vector<float> column_for(const Problem& p) { return std::vector<float>(padded(std::max(p.student.w, p.teacher.w) + 2) + LANES); }

// A row of P pixels of one class, of the student and of the teacher; `column` is room for a low-resolution row.
INLINE void fill(const Problem& p, const Places& s, int b, int c, int Y, float* column, float* x, float* u) {
    const size_t plane = size_t(b) * p.C + c;
    lerp_rows(p.student.values + plane * p.student.h * p.student.w, p.student, Y, LOG2E, column);
    lerp_columns(s, column, x);
    if (!p.teacher.values) return;
    lerp_rows(p.teacher.values + plane * p.teacher.h * p.teacher.w, p.teacher, Y, LOG2E / p.temperature, column);
    p.same ? lerp_columns(s, column, u) : lerp_foreign(s, column, u);
}

constexpr int ROWS = 8;  // label rows of a quad row that are held at once

// What a thread works with in the forward: some label rows of a quad row for all classes, not yet brought to the label columns; of a
// teacher on a grid of its own one row that is.
struct Room {
    int rows, step;  // floats from one row to the next
    std::vector<float> column, x, u, foreign;  // (.), (C, rows, step), (C, rows, step), (C, P)
    Room(const Problem& p, const Places& s)
        : rows(std::min(ROWS, p.rows())), step(s.L + LANES), column(column_for(p)), x(size_t(p.C) * rows * step),
          u(p.teacher.values && p.same ? x.size() : 0), foreign(p.teacher.values && !p.same ? size_t(p.C) * s.P : 0) {}
};

struct Sums {  // per pixel, of one row in phases: log2 of the sums of exponentials, of the student at temperature 1 and of both at T; KL
    std::vector<float> l1, ls, lt, kl;
    explicit Sums(int P) : l1(P), ls(P), lt(P), kl(P) {}
};

// 2^(d / T) from q = 2^(d / 4); T is the temperature where it is 1, 2 or 4, else 0.
template <int T>
INLINE Floats soft(Floats q, Floats d, float cooled) {
    if (T == 4) return q;
    if (T == 2) return q * q;
    if (T == 1) return (q * q) * (q * q);
    return power2(d * cooled);
}

// Row `row` of those in the room.
template <int T>
INLINE void judge(const Problem& p, const Places& s, const Room& room, int row, Sums& out) {
    const float cooled = 1.f / p.temperature;
    const size_t step = size_t(room.rows) * room.step;
    for (int i = 0; i < s.P; i += LANES) {
        const float *fraction = s.fraction.data() + i, *x = room.x.data() + row * room.step + i % s.L;
        const float *u = room.u.data() + row * room.step + i % s.L, *foreign = room.foreign.data() + i;
        auto student = [=](int c) __attribute__((always_inline)) { return between(x + c * step, fraction); };
        auto teacher = [=, &p, &s](int c) __attribute__((always_inline)) {
            return p.same ? between(u + c * step, fraction) : load(foreign + size_t(c) * s.P);
        };
        Floats ms = student(0), mt = p.teacher.values ? teacher(0) : Floats{};
        for (int c = 1; c < p.C; c++) {
            ms = larger(student(c), ms);
            if (p.teacher.values) mt = larger(teacher(c), mt);
        }
        Floats s1 = {}, ss = {}, st = {}, cross = {};
        for (int c = 0; c < p.C; c++) {
            Floats d = student(c) - ms, q = power2(d * 0.25f);
            s1 += (q * q) * (q * q);
            if (!p.teacher.values) continue;
            Floats k = teacher(c) - mt, f = power2(k);
            ss += soft<T>(q, d, cooled), st += f, cross += f * (k - d * cooled);
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

INLINE int whole(float temperature) { return temperature == 1.f || temperature == 2.f || temperature == 4.f ? int(temperature) : 0; }

// The maps of label row Y, which is row `row` of those in the room. False where a label is no class.
INLINE bool write_maps(const Problem& p, const Places& s, const Room& room, int b, int Y, int row, const Sums& sums, const Maps& out) {
    bool good = true;
    const size_t begin = (size_t(b) * p.labels.H + Y) * p.labels.W;
    for (int i = 0; i < s.P; i++) {
        if (s.pixel[i] < 0) continue;
        size_t at = begin + s.pixel[i];
        int64_t y = label(p.labels, at);
        bool counts = y != p.labels.ignore, known = y >= 0 && y < p.C;
        good &= known || !counts;
        out.ce[at] = 0.f;
        if (counts && known) {
            const float* left = room.x.data() + (size_t(y) * room.rows + row) * room.step + i % s.L;
            out.ce[at] = LN2 * (sums.l1[i] - (left[0] + s.fraction[i] * (left[1] - left[0])));
        }
        if (p.teacher.values) out.kl[at] = sums.kl[i], out.ls[at] = sums.ls[i], out.lt[at] = sums.lt[i];
    }
    return good;
}

// Quad row k. False where a label is no class.
bool forward_quads(const Problem& p, const Places& s, int b, int k, Room& room, Sums& sums, const Maps& out) {
    const size_t student = size_t(p.student.h) * p.student.w, teacher = size_t(p.teacher.h) * p.teacher.w;
    const float scale = LOG2E / p.temperature;  // of the teacher
    const int end = p.student.rows.start[k + 2];
    bool good = true;
    for (int first = p.student.rows.start[k + 1]; first < end; first += room.rows) {
        const int rows = std::min(room.rows, end - first);
        for (int i = 0; i < p.C * rows; i++) {
            size_t c = i / rows, row = i % rows, at = (c * room.rows + row) * room.step, plane = size_t(b) * p.C + c;
            lerp_rows(p.student.values + plane * student, p.student, first + row, LOG2E, room.x.data() + at);
            if (!room.u.empty()) lerp_rows(p.teacher.values + plane * teacher, p.teacher, first + row, scale, room.u.data() + at);
        }
        for (int row = 0; row < rows; row++) {
            for (size_t c = 0; c * s.P < room.foreign.size(); c++) {
                const float* plane = p.teacher.values + (size_t(b) * p.C + c) * teacher;
                lerp_rows(plane, p.teacher, first + row, scale, room.column.data());
                lerp_foreign(s, room.column.data(), room.foreign.data() + c * s.P);
            }
            switch (whole(p.temperature)) {
                case 1: judge<1>(p, s, room, row, sums); break;
                case 2: judge<2>(p, s, room, row, sums); break;
                case 4: judge<4>(p, s, room, row, sums); break;
                default: judge<0>(p, s, room, row, sums);
            }
            good &= write_maps(p, s, room, b, first + row, row, sums, out);
        }
    }
    return good;
}

// A row as the backward sees it, per pixel in phases. Where there is no pixel all weights are 0 and all exponentials nothing.
struct Weighted {
    std::vector<float> l1, ls, lt, a, b, of_student;  // of_student: b, times what makes softmax(x / T) of 2^((x - l1) / T)
    std::vector<int32_t> label;  // -1: ignored
    explicit Weighted(int P) : l1(P), ls(P), lt(P), a(P), b(P), of_student(P), label(P) {}
};

// x at one pixel.
INLINE float at_pixel(const Grid& g, const float* plane, int Y, int X) {
    int k = g.rows.quad[Y], l = g.columns.quad[X];
    const float *top = plane + size_t(std::max(k, 0)) * g.w, *bottom = plane + size_t(std::min(k + 1, g.h - 1)) * g.w;
    int left = std::max(l, 0), right = std::min(l + 1, g.w - 1);
    float f = g.rows.fraction[Y], first = top[left] + f * (bottom[left] - top[left]);
    float second = top[right] + f * (bottom[right] - top[right]);
    return LOG2E * (first + g.columns.fraction[X] * (second - first));
}

INLINE void weigh(const Problem& p, const Places& s, int b, int Y, const Maps& maps, const Upstream& up, Weighted& out) {
    const size_t row = (size_t(b) * p.labels.H + Y) * p.labels.W, plane = size_t(p.student.h) * p.student.w;
    for (int i = 0; i < s.P; i++) {
        out.a[i] = out.b[i] = 0.f, out.label[i] = -1;
        out.ls[i] = out.lt[i] = -LOWEST;
        size_t at = row + s.pixel[i];
        bool there = s.pixel[i] >= 0;
        if (there && p.teacher.values) out.ls[i] = maps.ls[at], out.lt[i] = maps.lt[at], out.b[i] = up.b[at * up.b_stride] / p.temperature;
        out.l1[i] = p.temperature * out.ls[i];  // where there is no label, any l1 will do that keeps the student's exponentials in range
        int64_t y = there ? label(p.labels, at) : p.labels.ignore;
        if (y == p.labels.ignore) continue;
        out.label[i] = int32_t(y), out.a[i] = up.a[at * up.a_stride];
        out.l1[i] = maps.ce[at] * LOG2E + at_pixel(p.student, p.student.values + (size_t(b) * p.C + y) * plane, Y, s.pixel[i]);
    }
    for (int i = 0; p.teacher.values && i < s.P; i += LANES) {
        Floats apart = load(out.l1.data() + i) * (1.f / p.temperature) - load(out.ls.data() + i);
        store(out.of_student.data() + i, load(out.b.data() + i) * power2(apart));
    }
}

// What a thread works with in the backward: all label rows of a quad row, and one class of them at a time.
struct Desk {
    std::vector<float> column, x, u, sums, above;  // (P), (P), (4, L), (C, 2, L)
    std::vector<Weighted> rows;
    Desk(const Problem& p, const Places& s)
        : column(column_for(p)), x(s.P), u(s.P), sums(4 * s.L), above(size_t(p.C) * 2 * s.L) {}
};

// The sums over the pixels of each quad of row k, (4, L): of the gradient g of class c, of g times the fraction across, down, and both.
template <int T>
INLINE void gather(const Problem& p, const Places& s, int b, int c, int k, Desk& desk) {
    const float cooled = 1.f / p.temperature, *x = desk.x.data(), *u = desk.u.data();
    const int first = p.student.rows.start[k + 1], end = p.student.rows.start[k + 2];
    std::fill(desk.sums.begin(), desk.sums.end(), 0.f);
    for (int Y = first; Y < end; Y++) {
        fill(p, s, b, c, Y, desk.column.data(), desk.x.data(), desk.u.data());
        const Weighted& w = desk.rows[Y - first];
        const float down = p.student.rows.fraction[Y];
        for (int l = 0; l < s.L; l += LANES) {
            Floats g = {}, across = {};
            for (int i = l; i < s.P; i += s.L) {
                Ints label;
                std::memcpy(&label, w.label.data() + i, sizeof label);
                Floats d = load(x + i) - load(w.l1.data() + i), q = power2(d * 0.25f), a = load(w.a.data() + i);
                Floats one = a * ((q * q) * (q * q)) - (label == c ? a : Floats{});
                if (p.teacher.values) {
                    Floats student = T ? load(w.of_student.data() + i) * soft<T>(q, d, cooled)
                                       : load(w.b.data() + i) * power2(load(x + i) * cooled - load(w.ls.data() + i));
                    one += student - load(w.b.data() + i) * power2(load(u + i) - load(w.lt.data() + i));
                }
                g += one, across += one * load(s.fraction.data() + i);
            }
            float* at = desk.sums.data() + l;
            store(at, load(at) + g), store(at + s.L, load(at + s.L) + across);
            store(at + 2 * s.L, load(at + 2 * s.L) + g * down), store(at + 3 * s.L, load(at + 3 * s.L) + across * down);
        }
    }
}

// Row k of the gradient of class c: what its own quads keep of their sums, and what the quads above handed down; then hands down.
INLINE void write_row(const Problem& p, int L, int b, int c, int k, bool own, Desk& desk, float* gradient) {
    const float *g = desk.sums.data(), *across = g + L, *down = g + 2 * L, *both = g + 3 * L;
    float *from = desk.above.data() + size_t(c) * 2 * L, *from_across = from + L;
    float* out = gradient + ((size_t(b) * p.C + c) * p.student.h + k) * p.student.w;
    for (int j = 0; own && j < p.student.w; j++) {  // column j lies left in lane j + 1 and right in lane j
        float left = (g[j + 1] - down[j + 1] + from[j + 1]) - (across[j + 1] - both[j + 1] + from_across[j + 1]);
        out[j] = left + (across[j] - both[j] + from_across[j]);
    }
    std::memcpy(from, down, L * sizeof(float)), std::memcpy(from_across, both, L * sizeof(float));
}

// Quad row k of all classes; `own` where row k of the gradient is this job's to write.
void backward_quads(const Problem& p, const Places& s, int b, int k, bool own, const Maps& maps, const Upstream& up, Desk& desk,
                           float* gradient) {
    const int first = p.student.rows.start[k + 1], end = p.student.rows.start[k + 2];
    while (int(desk.rows.size()) < end - first) desk.rows.emplace_back(s.P);
    for (int Y = first; Y < end; Y++) weigh(p, s, b, Y, maps, up, desk.rows[Y - first]);
    for (int c = 0; c < p.C; c++) {
        switch (whole(p.temperature)) {
            case 1: gather<1>(p, s, b, c, k, desk); break;
            case 2: gather<2>(p, s, b, c, k, desk); break;
            case 4: gather<4>(p, s, b, c, k, desk); break;
            default: gather<0>(p, s, b, c, k, desk);
        }
        write_row(p, s.L, b, c, k, own, desk, gradient);
    }
}

}  // namespace

extern "C" int upsample_ce_kl_forward(const Problem* problem, const Maps* out, int threads) {
    const Problem& p = *problem;
    const Places places(p);
    std::atomic<bool> good{true};
    const int quads = p.student.h + 1;
    spread(p.B * quads, worth(exponentials(p), threads), [&] {
        return [&, room = Room(p, places), sums = Sums(places.P)](int job) mutable {
            if (!forward_quads(p, places, job / quads, job % quads - 1, room, sums, *out)) good = false;
        };
    });
    return good;
}

extern "C" void upsample_ce_kl_backward(const Problem* problem, const Maps* maps, const Upstream* up, float* gradient, int threads) {
    const Problem& p = *problem;
    const Places places(p);
    const int h = p.student.h, run = 16, runs = (h + run - 1) / run;  // low-resolution rows of a job; one more is done twice
    spread(p.B * runs, worth(exponentials(p), threads), [&] {
        return [&, desk = Desk(p, places)](int job) mutable {
            int b = job / runs, first = job % runs * run;
            for (int k = first - 1; k < std::min(h, first + run); k++)  // the row before is only for what it hands down
                backward_quads(p, places, b, k, k >= first, *maps, *up, desk, gradient);
        };
    });
}
