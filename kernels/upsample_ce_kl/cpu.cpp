// upsample_ce_kl on a CPU. Both directions work on a room: some label rows that lie between the same two low-resolution rows, for all
// classes, not yet brought to the label columns; pixels exist in registers only. The forward then takes LANES pixels through all classes.
// The backward takes LANES quads, whose weights stay in the nearest cache, and sums over their pixels one class after the other.
//
// Within a row, pixels are kept in phases: phase r holds the r-th pixel of every quad (kernels/tables.py), side by side. So both
// neighbours of lane l are values l and l + 1 of the low-resolution row, and every loop runs over contiguous floats, at any scale.
// A phase that a quad does not have repeats its left value and weighs nothing. The student is held as x log2(e) / 4, the teacher as
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
};

struct Maps {  // (B, H, W) each
    float *ce, *kl, *ls, *lt;
};

struct Upstream {  // (B, H, W) each, or one number where the stride is 0
    const float *a, *b;
    int a_stride, b_stride;
};

double exponentials(const Problem& p) { return (p.teacher.values ? 3. : 1.) * p.B * p.C * p.labels.H * p.labels.W; }

int largest_quad(const Axis& axis, int n) {  // pixels
    int most = 1;
    for (int l = 0; l <= n; l++) most = std::max(most, axis.start[l + 1] - axis.start[l]);
    return most;
}

// Where the pixels of any row lie on the student's columns and on the teacher's, in phases.
struct Places {
    int L, P;  // lanes of a phase, pixels of a row in all phases
    std::vector<int> pixel;  // (P): which column of the labels, or -1
    std::vector<float> fraction, teacher_fraction;
    std::vector<int> teacher_quad;

    explicit Places(const Problem& p)
        : L(padded(p.student.w + 1)), P(L * largest_quad(p.student.columns, p.student.w)), pixel(P, -1), fraction(P), teacher_fraction(P),
          teacher_quad(P) {
        for (int i = 0; i < P; i++) {
            int r = i / L, l = i % L;
            if (l > p.student.w || p.student.columns.start[l] + r >= p.student.columns.start[l + 1]) continue;
            int X = pixel[i] = p.student.columns.start[l] + r;
            fraction[i] = p.student.columns.fraction[X];
            if (p.teacher.values) teacher_fraction[i] = p.teacher.columns.fraction[X], teacher_quad[i] = p.teacher.columns.quad[X];
        }
    }
};

// The low-resolution row at label row Y, times `scale`, from quad -1 on: column[l] and column[l + 1] are the neighbours in quad l - 1.
INLINE void lerp_rows(const Grid& g, size_t plane, int Y, float scale, float* column) {
    const int k = g.rows.quad[Y];
    const float* values = g.values + plane * g.h * g.w;
    const float *top = values + size_t(std::max(k, 0)) * g.w, *bottom = values + size_t(std::min(k + 1, g.h - 1)) * g.w;
    const float f = g.rows.fraction[Y];
    for (int j = 0; j < g.w; j++) column[j + 1] = scale * (top[j] + f * (bottom[j] - top[j]));
    column[0] = column[1], column[g.w + 1] = column[g.w];
}

INLINE float between(const float* left, float fraction) { return left[0] + fraction * (left[1] - left[0]); }

// LANES pixels of a phase, from the first one's left neighbour on.
INLINE Floats between(const float* column, const float* fraction) {
    Floats left = load(column);
    return left + load(fraction) * (load(column + 1) - left);
}

struct Room {
    static constexpr int MOST = 8;
    int rows, step;  // label rows, and floats from one to the next
    std::vector<float> x, u;  // (C, rows, step)
    std::vector<float> column;  // a teacher on a grid of its own passes through here, and u is (C, P) of one row

    Room(const Problem& p, const Places& s)
        : rows(p.teacher.values && !p.same ? 1 : std::min(MOST, largest_quad(p.student.rows, p.student.h))), step(s.L + LANES),
          x(size_t(p.C) * rows * step), u(!p.teacher.values ? 0 : p.same ? x.size() : size_t(p.C) * s.P), column(p.teacher.w + 2) {}

    void enter(const Problem& p, const Places& s, int b, int first, int end) {  // label rows of one quad row
        for (int i = 0; i < p.C * (end - first); i++) {
            const int c = i / (end - first), row = i % (end - first);
            const size_t plane = size_t(b) * p.C + c, at = (size_t(c) * rows + row) * step;
            lerp_rows(p.student, plane, first + row, LOG2E / 4, &x[at]);
            if (!p.teacher.values) continue;
            lerp_rows(p.teacher, plane, first + row, LOG2E / p.temperature, p.same ? &u[at] : column.data());
            if (p.same) continue;
            for (int j = 0; j < s.P; j++) u[size_t(c) * s.P + j] = between(&column[s.teacher_quad[j] + 1], s.teacher_fraction[j]);
        }
    }

    float student(const Places& s, int c, int row, int i) const {  // at pixel i of a row
        return between(&x[(size_t(c) * rows + row) * step + i % s.L], s.fraction[i]);
    }
};

// 2^(4d / T) from q = 2^d; T is the temperature where it is 1, 2 or 4, else 0.
template <int T>
INLINE Floats soft(Floats q, Floats d, float cooled) {
    if (T == 4) return q;
    if (T == 2) return q * q;
    if (T == 1) return (q * q) * (q * q);
    return power2(d * cooled);
}

template <class Run>
INLINE void at_temperature(float temperature, Run run) {
    if (temperature == 1.f) return run(std::integral_constant<int, 1>());
    if (temperature == 2.f) return run(std::integral_constant<int, 2>());
    if (temperature == 4.f) return run(std::integral_constant<int, 4>());
    run(std::integral_constant<int, 0>());
}

struct Sums {  // per pixel, of one row in phases: log2 of the sums of exponentials, of the student at temperature 1 and of both at T; KL
    std::vector<float> l1, ls, lt, kl;
    explicit Sums(int P) : l1(P), ls(P), lt(P), kl(P) {}
};

template <int T>
INLINE void judge(const Problem& p, const Places& s, const Room& room, int row, Sums& out) {
    const float cooled = 4.f / p.temperature;
    const size_t step = size_t(room.rows) * room.step;
    for (int i = 0; i < s.P; i += LANES) {
        const size_t at = size_t(row) * room.step + i % s.L;
        const float *fraction = s.fraction.data() + i, *x = room.x.data() + at, *u = room.u.data() + (p.same ? at : i);
        auto student = [=](int c) { return between(x + c * step, fraction); };
        auto teacher = [=, &p, &s](int c) { return p.same ? between(u + c * step, fraction) : load(u + size_t(c) * s.P); };
        Floats ms = student(0), mt = p.teacher.values ? teacher(0) : Floats{};
        for (int c = 1; c < p.C; c++) {
            ms = larger(student(c), ms);
            if (p.teacher.values) mt = larger(teacher(c), mt);
        }
        Floats s1 = {}, ss = {}, st = {}, cross = {};
        for (int c = 0; c < p.C; c++) {
            Floats d = student(c) - ms, q = power2(d);
            s1 += (q * q) * (q * q);
            if (!p.teacher.values) continue;
            Floats k = teacher(c) - mt, f = power2(k);
            ss += soft<T>(q, d, cooled), st += f, cross += f * (k - d * cooled);
        }
        store(out.l1.data() + i, 4.f * ms + logarithm2(s1));
        if (!p.teacher.values) continue;
        Floats log_s = logarithm2(ss), log_t = logarithm2(st);
        store(out.ls.data() + i, ms * cooled + log_s);
        store(out.lt.data() + i, mt + log_t);
        store(out.kl.data() + i, LN2 * (cross / st + log_s - log_t));
    }
}

// The maps of label row Y, which is row `row` of the room. False where a label is no class.
INLINE bool write_maps(const Problem& p, const Places& s, const Room& room, int b, int Y, int row, const Sums& sums, const Maps& out) {
    bool good = true;
    const size_t begin = (size_t(b) * p.labels.H + Y) * p.labels.W;
    for (int i = 0; i < s.P; i++) {
        if (s.pixel[i] < 0) continue;
        size_t at = begin + s.pixel[i];
        int64_t y = label(p.labels, at);
        bool counts = y != p.labels.ignore, known = y >= 0 && y < p.C;
        good &= known || !counts;
        out.ce[at] = counts && known ? LN2 * (sums.l1[i] - 4.f * room.student(s, y, row, i)) : 0.f;
        if (p.teacher.values) out.kl[at] = sums.kl[i], out.ls[at] = sums.ls[i], out.lt[at] = sums.lt[i];
    }
    return good;
}

// Quad row k. False where a label is no class.
bool forward_quads(const Problem& p, const Places& s, int b, int k, Room& room, Sums& sums, const Maps& out) {
    const int last = p.student.rows.start[k + 2];
    bool good = true;
    for (int first = p.student.rows.start[k + 1]; first < last; first += room.rows) {
        const int end = std::min(last, first + room.rows);
        room.enter(p, s, b, first, end);
        for (int Y = first; Y < end; Y++) {
            at_temperature(p.temperature, [&](auto T) { judge<T>(p, s, room, Y - first, sums); });
            good &= write_maps(p, s, room, b, Y, Y - first, sums, out);
        }
    }
    return good;
}

// A row as the backward sees it, per pixel in phases. Where there is no pixel all weights are 0 and all exponentials nothing.
struct Weighted {
    std::vector<float> l1, ls, lt, a, b, of_student;  // l1 as x; of_student: b, times what makes softmax(x / T) of 2^(4 (x - l1) / T)
    std::vector<int32_t> label;  // -1: ignored
    explicit Weighted(int P) : l1(P), ls(P), lt(P), a(P), b(P), of_student(P), label(P) {}
};

INLINE void weigh(const Problem& p, const Places& s, const Room& room, int b, int Y, int row, const Maps& maps, const Upstream& up,
                  Weighted& out) {
    const size_t begin = (size_t(b) * p.labels.H + Y) * p.labels.W;
    const float warmed = p.temperature / 4;
    for (int i = 0; i < s.P; i++) {
        out.a[i] = out.b[i] = 0.f, out.label[i] = -1;
        out.ls[i] = out.lt[i] = -LOWEST;
        size_t at = begin + s.pixel[i];
        bool there = s.pixel[i] >= 0;
        if (there && p.teacher.values) out.ls[i] = maps.ls[at], out.lt[i] = maps.lt[at], out.b[i] = up.b[at * up.b_stride] / p.temperature;
        out.l1[i] = warmed * out.ls[i];  // where there is no label, any l1 will do that keeps the student's exponentials in range
        int64_t y = there ? label(p.labels, at) : p.labels.ignore;
        if (y == p.labels.ignore) continue;
        out.label[i] = int32_t(y), out.a[i] = up.a[at * up.a_stride];
        out.l1[i] = maps.ce[at] * (LOG2E / 4) + room.student(s, y, row, i);
    }
    for (int i = 0; p.teacher.values && i < s.P; i += LANES) {
        Floats apart = load(out.l1.data() + i) * (4.f / p.temperature) - load(out.ls.data() + i);
        store(out.of_student.data() + i, load(out.b.data() + i) * power2(apart));
    }
}

// What a thread works with in the backward. Of the gradient, two rows of all classes grow at a time, from column -1 on.
struct Desk {
    Room room;
    std::vector<Weighted> rows;
    std::vector<float> upper, lower;  // (C, step)
    Desk(const Problem& p, const Places& s)
        : room(p, s), rows(room.rows, Weighted(s.P)), upper(size_t(p.C) * room.step), lower(upper.size()) {}
};

INLINE void add(float* to, Floats v) { store(to, load(to) + v); }

// Adds what the quads from lane l on give to their four neighbours in class c: `rows` label rows from Y on, those of the room.
template <int T>
INLINE void gather(const Problem& p, const Places& s, int c, int Y, int rows, int l, Desk& desk) {
    const float cooled = 4.f / p.temperature;
    Floats sum = {}, across = {}, down = {}, both = {};  // of the gradient, of it times the fraction across, down, and both
    for (int row = 0; row < rows; row++) {
        const Weighted& w = desk.rows[row];
        const size_t at = (size_t(c) * desk.room.rows + row) * desk.room.step + l;
        const float *x = desk.room.x.data() + at, *u = desk.room.u.data() + at;
        Floats row_sum = {}, row_across = {};
        for (int i = l; i < s.P; i += s.L) {
            Ints label;
            std::memcpy(&label, w.label.data() + i, sizeof label);
            Floats fraction = load(s.fraction.data() + i), here = between(x, s.fraction.data() + i), d = here - load(w.l1.data() + i);
            Floats q = power2(d), a = load(w.a.data() + i), g = a * ((q * q) * (q * q)) - (label == c ? a : Floats{});
            if (p.teacher.values) {
                Floats teacher = p.same ? between(u, s.fraction.data() + i) : load(desk.room.u.data() + size_t(c) * s.P + i);
                g += T ? load(w.of_student.data() + i) * soft<T>(q, d, cooled)
                       : load(w.b.data() + i) * power2(here * cooled - load(w.ls.data() + i));
                g -= load(w.b.data() + i) * power2(teacher - load(w.lt.data() + i));
            }
            row_sum += g, row_across += g * fraction;
        }
        const float f = p.student.rows.fraction[Y + row];
        sum += row_sum, across += row_across, down += f * row_sum, both += f * row_across;
    }
    float *upper = desk.upper.data() + size_t(c) * desk.room.step + l, *lower = desk.lower.data() + size_t(c) * desk.room.step + l;
    add(upper, (sum - down) - (across - both)), add(lower, down - both);
    add(upper + 1, across - both), add(lower + 1, both);
}

// Quad row k: completes row k of the gradient, which is upper, and begins the next.
void backward_quads(const Problem& p, const Places& s, int b, int k, const Maps& maps, const Upstream& up, Desk& desk) {
    std::swap(desk.upper, desk.lower);
    std::fill(desk.lower.begin(), desk.lower.end(), 0.f);
    const int last = p.student.rows.start[k + 2];
    for (int first = p.student.rows.start[k + 1]; first < last; first += desk.room.rows) {
        const int end = std::min(last, first + desk.room.rows);
        desk.room.enter(p, s, b, first, end);
        for (int Y = first; Y < end; Y++) weigh(p, s, desk.room, b, Y, Y - first, maps, up, desk.rows[Y - first]);
        at_temperature(p.temperature, [&](auto T) {
            for (int l = 0; l < s.L; l += LANES)
                for (int c = 0; c < p.C; c++) gather<T>(p, s, c, first, end - first, l, desk);
        });
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
    const int h = p.student.h, w = p.student.w;
    threads = worth(exponentials(p), threads);
    const int run = std::max(8, p.B * h / (4 * threads)), runs = (h + run - 1) / run;  // rows of a job: some jobs for each thread
    spread(p.B * runs, threads, [&] {
        return [&, desk = Desk(p, places)](int job) mutable {
            const int b = job / runs, first = job % runs * run;
            for (int k = first - 1; k < std::min(h, first + run); k++) {  // the row before is only for what it gives to the next
                backward_quads(p, places, b, k, *maps, *up, desk);
                for (int c = 0; k >= first && c < p.C; c++)
                    std::copy_n(&desk.upper[size_t(c) * desk.room.step + 1], w, gradient + ((size_t(b) * p.C + c) * h + k) * w);
            }
        };
    });
}
