/* The class of every pixel, from logits on a smaller grid, without the logits at the size of the picture.
 *
 * This one file is all there is to it: C99, the standard library and nothing else.
 *     cc -O3 -shared -fPIC argmax.c -o argmax.so
 *
 *     int upsample_argmax(const float *logits, int batch, int classes, int h, int w, int height, int width, int align_corners,
 *                         int part, int parts, unsigned char *classmap)
 *
 * logits (batch, classes, h, w), 1 to 256 classes; classmap (batch, height, width), written whole. Any scale, up or down. Returns 0, or 1
 * where there is no memory. A caller with threads calls it once from each, with the same arguments but for `part`: 0 .. parts - 1 of
 * `parts` shares of the work; one without says part 0 of 1. The result is the same, bit for bit, for any number of parts, on any machine.
 *
 * What it computes is the argmax over classes of bilinear interpolation, in float32,
 *     ((w00 * a + w01 * b) + w10 * c) + w11 * d,  weights w00 = (1 - fy) * (1 - fx) and so on, fractions fy, fx rounded from float64,
 * and of classes that are equal there the lowest. A NaN counts as -1e38, and what lies beyond -1e38 .. 1e38 as that bound.
 *
 * How it does that fast: within one cell of the grid a pixel is a mean of the cell's four corners, and in this arithmetic, too, it never
 * falls when a corner rises. So a class that is the best at all four corners is the best in all of the cell; elsewhere only those classes
 * are looked at whose largest corner reaches the largest of all smallest corners. What is left out lies below another class at all four
 * corners: it can be equal to it only by rounding, and is not given then, even if its number is lower.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC optimize("fp-contract=off") /* a fused multiplication and addition rounds once: other bits on other machines */
#if __GNUC__ >= 8
#pragma GCC optimize("no-loop-unroll-and-jam") /* which takes the loops over LANES apart: a third of the speed */
#endif
#endif
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define ARGMAX_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define ARGMAX_CLONES
#endif
#if defined(__GNUC__)
#define ARGMAX_INLINE static inline __attribute__((always_inline))
#else
#define ARGMAX_INLINE static inline
#endif

enum { LANES = 16, TILE = 64 }; /* floats that are worked on side by side; pixels of a cell that are judged together */
static const float LARGEST = 1e38f; /* so that no sum of four products overflows */

/* How the pixels of an axis lie in cells: cell i, 0 .. n, lies between values i - 1 and i, clamped to 0 .. n - 1. */
typedef struct {
    int *start;       /* (n + 2): cell i holds the pixels start[i] .. start[i + 1] - 1 */
    float *near, *far; /* (pixels): weights of value i - 1 and of value i */
} ArgmaxAxis;

/* A row of the grid. */
typedef struct {
    int row;              /* its number in all rows of the batch, or -1 */
    float *top, *values;  /* (w) the largest logits; (w, step) all of them, class beside class, in those blocks of columns that are ready */
    int32_t *best;        /* (w) the first class with the largest logit */
    unsigned char *ready; /* (blocks of LANES columns) */
} ArgmaxRow;

typedef struct {
    const float *logits;
    int classes, h, w, step; /* step: classes, rounded up to LANES */
} ArgmaxGrid;

ARGMAX_INLINE float argmax_finite(float v) {
    v = v > -LARGEST ? v : -LARGEST; /* a NaN is larger than nothing */
    return v < LARGEST ? v : LARGEST;
}

static void argmax_axis(ArgmaxAxis axis, int n, int pixels, int align_corners) {
    const double scale = align_corners ? (pixels > 1 ? (double)(n - 1) / (pixels - 1) : 0.0) : (double)n / pixels;
    int cell = 0;
    for (int y = 0; y < pixels; y++) {
        const double source = align_corners ? y * scale : (y + 0.5) * scale - 0.5;
        int quad = (int)source;
        if (quad > source) quad--; /* rounded down, not towards 0 */
        if (quad > n - 1) quad = n - 1;
        const double fraction = quad < 0 ? 1.0 : quad > n - 2 ? 0.0 : source - quad; /* where there is no other value, all of the one */
        axis.far[y] = (float)fraction, axis.near[y] = 1.0f - axis.far[y];
        while (cell <= quad + 1) axis.start[cell++] = y;
    }
    while (cell < n + 2) axis.start[cell++] = pixels;
}

ARGMAX_INLINE const float *argmax_row_of_class(const ArgmaxGrid *grid, int row, int c) {
    const size_t image = (size_t)(row / grid->h), y = (size_t)(row % grid->h);
    return grid->logits + ((image * grid->classes + c) * grid->h + y) * grid->w;
}

/* Takes another row: its best classes at once, its values only where they are asked for. */
ARGMAX_INLINE void argmax_take(const ArgmaxGrid *grid, ArgmaxRow *held, int row) {
    float *__restrict top = held->top;
    int32_t *__restrict best = held->best;
    const int w = grid->w;
    held->row = row;
    memset(held->ready, 0, (size_t)(w + LANES - 1) / LANES);
    for (int x = 0; x < w; x++) top[x] = -2 * LARGEST, best[x] = 0;
    for (int c = 0; c < grid->classes; c++) {
        const float *from = argmax_row_of_class(grid, row, c);
        for (int x = 0; x < w; x++) {
            const float v = argmax_finite(from[x]);
            best[x] = v > top[x] ? c : best[x];
            top[x] = v > top[x] ? v : top[x];
        }
    }
}

/* The logits of all classes in column x. */
ARGMAX_INLINE const float *argmax_column(const ArgmaxGrid *grid, ArgmaxRow *held, int x) {
    const int block = x / LANES, first = block * LANES, last = first + LANES < grid->w ? first + LANES : grid->w;
    if (!held->ready[block]) {
        held->ready[block] = 1;
        for (int c = 0; c < grid->classes; c++) {
            const float *from = argmax_row_of_class(grid, held->row, c);
            for (int i = first; i < last; i++) held->values[(size_t)i * grid->step + c] = argmax_finite(from[i]);
        }
    }
    return held->values + (size_t)x * grid->step;
}

/* Those classes that can win somewhere between four corners, in order; how many. `most` is room for `step` floats. */
ARGMAX_INLINE int argmax_contenders(const ArgmaxGrid *grid, const float *const corner[4], float *__restrict most, int *__restrict list) {
    const float *a = corner[0], *b = corner[1], *c = corner[2], *d = corner[3];
    float least[LANES], bound = -2 * LARGEST;
    int n = 0;
    for (int l = 0; l < LANES; l++) least[l] = bound;
    for (int k = 0; k < grid->step; k += LANES) {
        for (int l = 0; l < LANES; l++) {
            const float p = a[k + l], q = b[k + l], r = c[k + l], s = d[k + l];
            const float low = p < q ? p : q, low2 = r < s ? r : s, high = p > q ? p : q, high2 = r > s ? r : s;
            const float lowest = low < low2 ? low : low2;
            most[k + l] = high > high2 ? high : high2;
            least[l] = least[l] > lowest ? least[l] : lowest;
        }
    }
    for (int l = 0; l < LANES; l++) bound = bound > least[l] ? bound : least[l];
    for (int k = 0; k < grid->classes; k++) list[n] = k, n += most[k] >= bound;
    return n;
}

/* The pixels (rows, columns) of a cell, at most TILE of them, among `n` classes. */
ARGMAX_INLINE void argmax_judge(const float *const corner[4], const int *list, int n, const float *up, const float *down, int rows,
                                const float *left, const float *right, int columns, unsigned char *out, int width) {
    float w00[TILE], w01[TILE], w10[TILE], w11[TILE];
    int32_t which[TILE];
    const int pixels = rows * columns;
    for (int y = 0, p = 0; y < rows; y++)
        for (int x = 0; x < columns; x++, p++) {
            w00[p] = up[y] * left[x], w01[p] = up[y] * right[x];
            w10[p] = down[y] * left[x], w11[p] = down[y] * right[x];
        }
    for (int p = pixels; p % LANES; p++) w00[p] = w01[p] = w10[p] = w11[p] = 0.0f;
    for (int p = 0; p < pixels; p += LANES) {
        float best[LANES];
        int32_t index[LANES];
        for (int l = 0; l < LANES; l++) best[l] = -2 * LARGEST, index[l] = 0;
        for (int i = 0; i < n; i++) {
            const int32_t k = list[i];
            const float a = corner[0][k], b = corner[1][k], c = corner[2][k], d = corner[3][k];
            for (int l = 0; l < LANES; l++) {
                const float v = w00[p + l] * a + w01[p + l] * b + w10[p + l] * c + w11[p + l] * d;
                const int32_t more = -(v > best[l]); /* all bits or none */
                index[l] = (k & more) | (index[l] & ~more);
                best[l] = v > best[l] ? v : best[l];
            }
        }
        memcpy(which + p, index, sizeof index);
    }
    for (int y = 0, p = 0; y < rows; y++)
        for (int x = 0; x < columns; x++, p++) out[(size_t)y * width + x] = (unsigned char)which[p];
}

/* A row of cells: all pixels of an image that lie between two rows of the grid. `out` is the image. */
ARGMAX_CLONES
static void argmax_cells(const ArgmaxGrid *grid, ArgmaxRow *above, ArgmaxRow *below, int first, int last, ArgmaxAxis rows,
                         ArgmaxAxis columns, float *most, int *list, unsigned char *out, int width) {
    const int w = grid->w;
    for (int i = 0; i <= w; i++) {
        int x0 = i > 0 ? i - 1 : 0, x1 = i < w ? i : w - 1;
        const int32_t best = above->best[x0];
        const int begin = columns.start[i];
        if (begin == columns.start[i + 1]) continue;
        if (above->best[x1] == best && below->best[x0] == best && below->best[x1] == best) {
            while (i < w) { /* the cells to its right that are the same */
                x1 = i + 1 < w ? i + 1 : w - 1;
                if (above->best[x1] != best || below->best[x1] != best) break;
                i++;
            }
            for (int y = first; y < last; y++) memset(out + (size_t)y * width + begin, best, (size_t)(columns.start[i + 1] - begin));
            continue;
        }
        const float *const corner[4] = {argmax_column(grid, above, x0), argmax_column(grid, above, x1), argmax_column(grid, below, x0),
                                        argmax_column(grid, below, x1)};
        const int n = argmax_contenders(grid, corner, most, list), end = columns.start[i + 1];
        const int wide = end - begin < TILE ? end - begin : TILE, tall = TILE / wide;
        for (int y = first; y < last; y += tall)
            for (int x = begin; x < end; x += wide)
                argmax_judge(corner, list, n, rows.near + y, rows.far + y, last - y < tall ? last - y : tall, columns.near + x,
                             columns.far + x, end - x < wide ? end - x : wide, out + (size_t)y * width + x, width);
    }
}

ARGMAX_CLONES
static void argmax_begin(const ArgmaxGrid *grid, ArgmaxRow *held, int row) { argmax_take(grid, held, row); }

static size_t argmax_rounded(size_t n) { return (n + LANES - 1) / LANES * LANES; }

int upsample_argmax(const float *logits, int batch, int classes, int h, int w, int height, int width, int align_corners, int part,
                    int parts, unsigned char *classmap) {
    const ArgmaxGrid grid = {logits, classes, h, w, (int)argmax_rounded((size_t)classes)};
    const size_t lanes = argmax_rounded((size_t)w), values = lanes * grid.step, tall = (size_t)height + 1, wide = (size_t)width + 1;
    const long long all = (long long)batch * (h + 1);
    const size_t floats = 2 * (tall + wide) + grid.step + 2 * (lanes + values);
    const size_t ints = (size_t)h + 2 + w + 2 + grid.step + 2 * lanes;
    float *memory = (float *)malloc(floats * sizeof(float) + ints * sizeof(int32_t) + 2 * lanes), *f = memory;
    int32_t *i;
    ArgmaxAxis rows, columns;
    ArgmaxRow held[2];
    float *most;
    int *list;
    if (!memory) return 1;
    most = f, f += grid.step;
    rows.near = f, f += tall, rows.far = f, f += tall, columns.near = f, f += wide, columns.far = f, f += wide;
    for (int k = 0; k < 2; k++) held[k].row = -1, held[k].top = f, f += lanes, held[k].values = f, f += values;
    i = (int32_t *)f;
    list = (int *)i, i += grid.step, rows.start = (int *)i, i += h + 2, columns.start = (int *)i, i += w + 2;
    for (int k = 0; k < 2; k++) held[k].best = i, i += lanes;
    for (int k = 0; k < 2; k++) held[k].ready = (unsigned char *)i + k * lanes;
    for (int k = 0; k < 2; k++) /* the room behind the last class, which never wins */
        for (size_t x = 0; x < lanes; x++)
            for (int c = classes; c < grid.step; c++) held[k].values[x * grid.step + c] = -LARGEST;
    argmax_axis(rows, h, height, align_corners);
    argmax_axis(columns, w, width, align_corners);
    for (long long job = all * part / parts; job < all * (part + 1) / parts; job++) {
        const int image = (int)(job / (h + 1)), cell = (int)(job % (h + 1)), first = rows.start[cell], last = rows.start[cell + 1];
        const int wanted[2] = {image * h + (cell > 0 ? cell - 1 : 0), image * h + (cell < h ? cell : h - 1)};
        if (first == last) continue;
        if (held[0].row != wanted[0]) { /* most often it is the lower one of before */
            const ArgmaxRow other = held[0];
            held[0] = held[1], held[1] = other;
        }
        if (held[0].row != wanted[0]) argmax_begin(&grid, &held[0], wanted[0]);
        if (wanted[1] != wanted[0] && held[1].row != wanted[1]) argmax_begin(&grid, &held[1], wanted[1]);
        argmax_cells(&grid, &held[0], &held[wanted[1] != wanted[0]], first, last, rows, columns, most, list,
                     classmap + (size_t)image * height * width, width);
    }
    free(memory);
    return 0;
}

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif
