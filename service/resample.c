/* Resize and crop of packed 8-bit RGB, bit for bit as Pillow does it (libImaging/Resample.c, release 13), but only for
 * the pixels that survive the crop.
 *
 * Equality binds the arithmetic: coefficients in double, normalised, rounded to 22 fractional bits; each pass sums in
 * 32-bit integers and rounds back to 8 bits; which pass goes first follows from the sizes. Compile with
 * -ffp-contract=off: a fused multiply-add would round the coefficients differently.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FRACTION 22
#define HALF (1 << (FRACTION - 1))
#define BLOCK 64 /* channel values of a row that are summed in registers */
#define ROWS 8   /* that are summed together; gcc 12 unrolls the loops over a smaller GROUP and then makes no vectors */
#define GROUP (4 * ROWS)

/* One clone for each instruction set, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__)
#define EACH_CPU __attribute__((target_clones("avx2", "sse4.1", "default")))
#else
#define EACH_CPU
#endif

enum { BILINEAR, BICUBIC, LANCZOS };
static const double SUPPORT[] = {1.0, 2.0, 3.0};

static double sinc(double x) {
    if (x == 0.0) return 1.0;
    x *= M_PI;
    return sin(x) / x;
}

static double weight(int filter, double x) {
    if (filter == LANCZOS) return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    x = fabs(x);
    if (filter == BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1;
    return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0.0;
}

/* Where the taps of each output index start, how many there are, and their coefficients, `most` for each. */
typedef struct {
    int *start, *taps;
    int32_t *coefficients;
    int most;
} Kernel;

static int make_kernel(Kernel *kernel, int filter, int in, int out, int from, int count) {
    double scale = (double)in / out, stretch = scale < 1.0 ? 1.0 : scale, per_stretch = 1.0 / stretch;
    double support = SUPPORT[filter] * stretch;
    kernel->most = (int)ceil(support) * 2 + 1;
    double *weights = malloc(sizeof(double) * kernel->most);
    kernel->coefficients = malloc(sizeof(int32_t) * kernel->most * count);
    kernel->start = malloc(sizeof(int) * count * 2);
    if (!weights || !kernel->coefficients || !kernel->start) {
        free(weights);
        return 0;
    }
    kernel->taps = kernel->start + count;
    for (int i = 0; i < count; i++) {
        double centre = (from + i + 0.5) * scale, sum = 0.0;
        int first = (int)(centre - support + 0.5), last = (int)(centre + support + 0.5);
        if (first < 0) first = 0;
        if (last > in) last = in;
        kernel->start[i] = first;
        kernel->taps[i] = last - first;
        for (int t = 0; t < last - first; t++) sum += weights[t] = weight(filter, (t + first - centre + 0.5) * per_stretch);
        for (int t = 0; t < last - first; t++) {
            double share = (sum != 0.0 ? weights[t] / sum : weights[t]) * (1 << FRACTION);
            kernel->coefficients[i * kernel->most + t] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
        }
    }
    free(weights);
    return 1;
}

static void free_kernel(Kernel *kernel) {
    free(kernel->coefficients);
    free(kernel->start);
}

static int end_of(const Kernel *kernel, int count) { return kernel->start[count - 1] + kernel->taps[count - 1]; }

static inline uint8_t rounded(int32_t sum) {
    int32_t value = sum >> FRACTION;
    return value < 0 ? 0 : value > 255 ? 255 : value;
}

/* Up to ROWS rows at once, so that one instruction serves the same column of several. `in` points at the column `first`
 * of the first row; of each row `used` pixels are needed, and `side_by_side` has room for GROUP values for each of them.
 * A pixel is handled as four values, of which the last is the next one's and is not kept.
 */
EACH_CPU static void across(uint8_t *restrict out, long out_stride, const uint8_t *restrict in, long in_stride, int rows,
                            int first, int used, int width, const Kernel *kernel, uint8_t *restrict side_by_side) {
    for (int r = 0; r < rows; r++) {
        const uint8_t *row = in + r * in_stride;
        uint8_t *pixels = side_by_side + 4 * r;
        for (int x = 0; x < used - 1; x++) memcpy(pixels + x * (long)GROUP, row + 3L * x, 4);
        memcpy(pixels + (used - 1) * (long)GROUP, row + 3L * (used - 1), 3);
    }
    for (int x = 0; x < width; x++) {
        const int32_t *coefficients = kernel->coefficients + x * kernel->most;
        const uint8_t *pixels = side_by_side + (kernel->start[x] - first) * (long)GROUP;
        int32_t sums[GROUP];
        uint8_t done[GROUP];
        for (int i = 0; i < GROUP; i++) sums[i] = HALF;
        for (int t = 0; t < kernel->taps[x]; t++)
            for (int i = 0; i < GROUP; i++) sums[i] += pixels[t * (long)GROUP + i] * coefficients[t];
        for (int i = 0; i < GROUP; i++) done[i] = rounded(sums[i]);
        for (int r = 0; r < rows; r++) memcpy(out + r * out_stride + 3 * x, done + 4 * r, 3);
    }
}

/* The output row `y` from rows of which the first is `first`, `values` channel values of each. */
EACH_CPU static void down(uint8_t *restrict out, const uint8_t *restrict in, long stride, int first, int values, int y,
                          const Kernel *kernel) {
    const int32_t *coefficients = kernel->coefficients + y * kernel->most;
    in += (kernel->start[y] - first) * stride;
    for (int begin = 0; begin < values; begin += BLOCK) {
        int count = values - begin < BLOCK ? values - begin : BLOCK;
        int32_t sums[BLOCK];
        for (int i = 0; i < BLOCK; i++) sums[i] = HALF;
        for (int t = 0; t < kernel->taps[y]; t++) {
            const uint8_t *row = in + t * stride + begin;
            if (count == BLOCK)
                for (int i = 0; i < BLOCK; i++) sums[i] += row[i] * coefficients[t];
            else
                for (int i = 0; i < count; i++) sums[i] += row[i] * coefficients[t];
        }
        for (int i = 0; i < count; i++) out[begin + i] = rounded(sums[i]);
    }
}

/* Resizes `in` [in_height, in_width, 3] to out_width × out_height and writes the window that begins at (left, top) to
 * `out` [height, width, 3]. Returns 0 when there is no memory.
 */
int resample(const uint8_t *in, int in_width, int in_height, int out_width, int out_height, int filter, int left,
             int top, int width, int height, uint8_t *out) {
    Kernel columns = {0}, rows = {0};
    uint8_t *between = NULL, *side_by_side = NULL;
    int done = 0;
    if (!make_kernel(&columns, filter, in_width, out_width, left, width)) goto end;
    if (!make_kernel(&rows, filter, in_height, out_height, top, height)) goto end;
    int shrink = in_height - out_height, rows_first = shrink > 0 && shrink > (in_width - out_width) * 2;
    int first = columns.start[0], used = end_of(&columns, width) - first;
    int first_row = rows.start[0], used_rows = end_of(&rows, height) - first_row;
    long in_stride = 3L * in_width, out_stride = 3L * width, stride = rows_first ? 3L * used : out_stride;
    side_by_side = calloc(used, GROUP);
    between = malloc(stride * (rows_first ? ROWS : used_rows));
    if (!side_by_side || !between) goto end;
    in += 3L * first + first_row * in_stride;
    if (rows_first) {
        for (int y = 0; y < height; y += ROWS) {
            int count = height - y < ROWS ? height - y : ROWS;
            for (int r = 0; r < count; r++) down(between + r * stride, in, in_stride, first_row, 3 * used, y + r, &rows);
            across(out + y * out_stride, out_stride, between, stride, count, first, used, width, &columns, side_by_side);
        }
    } else {
        for (int y = 0; y < used_rows; y += ROWS) {
            int count = used_rows - y < ROWS ? used_rows - y : ROWS;
            across(between + y * stride, stride, in + y * in_stride, in_stride, count, first, used, width, &columns,
                   side_by_side);
        }
        for (int y = 0; y < height; y++) down(out + y * out_stride, between, stride, first_row, 3 * width, y, &rows);
    }
    done = 1;
end:
    free(side_by_side);
    free(between);
    free_kernel(&columns);
    free_kernel(&rows);
    return done;
}
