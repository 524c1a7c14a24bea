// TV-L1 on a CPU: from pairs of frames to their flows, and the backward pass. tvl1_cpu.py compiles and calls this file;
// flow.py explains the scheme, tvl1.py its iterations. REAL is float or double, ROOT its square root. LEARNT is 1 for
// learnt kernels, of which each pair has TAPS weights.
//
// One pair at a time, so that its planes stay in the cache, and row by row: an iteration moves the duals of a row, then
// its flow, which needs the duals of this row and of the row above.
//
// A plane has one column more than the frame, at the right, and one row more, above. A flow's column repeats its last
// one, and the row below its last one is that one itself, so forward differences across a border are 0. A dual's column
// and row are 0, so backward differences across a border are right as well. Learnt differences across a border are set to 0.
// Index -1 of a row is the column of the row
// above. x and y parts of a flow are two planes; a dual has four: direction x of both parts, then direction y of both.

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef REAL real;

#define EACH_PIXEL _Pragma("omp simd") for (long x = 0; x < width; x++)
#define TO_BORDER(value) (LEARNT ? inner[x] * (value) : (value))  // 0 in the last column

typedef struct {
    long width, height, stride, size;  // a plane's row and a plane, in numbers
    real tau, offset, slope, gradient, flow;  // the units of the iterations
    real flat;  // a smaller squared image gradient counts as 0
    real least;  // a smaller norm would overflow in a division
    const real *inner;  // per column: 1, and 0 for the last one
} Frame;

// A pair's learnt weights: of the image gradient, the differences and the divergence. Each for x, then for y, and from
// the near (left, upper) to the far pixel.
enum { OF_IMAGE, OF_DIFFERENCES = 6, OF_DIVERGENCE = 10, TAPS = 14 };

typedef struct { real near_x, far_x, near_y, far_y; } Weights;  // of differences or of the divergence

static Weights weights(const real *taps, int at) {
    return LEARNT ? (Weights){taps[at], taps[at + 1], taps[at + 2], taps[at + 3]} : (Weights){-1, 1, -1, 1};
}

// The weights with which the differences are minus the adjoint of the divergence, and the other way round.
static Weights adjoint(Weights of) {
    return (Weights){-of.far_x, -of.near_x, -of.far_y, -of.near_y};
}

// Differences on row y: those to the row below the last one are 0.
static Weights on_row(const Frame *frame, Weights of, long y) {
    if (y + 1 == frame->height) of.near_y = of.far_y = 0;
    return of;
}

static real weighted(real near, real far, real near_weight, real far_weight) {
    return LEARNT ? near_weight * near + far_weight * far : far - near;
}

static real divergence(Weights of, real left, real dual_x, real upper, real dual_y) {
    if (!LEARNT) return dual_x - left + dual_y - upper;
    return of.near_x * left + of.far_x * dual_x + of.near_y * upper + of.far_y * dual_y;
}

// The planes that all iterations read: offset, slope per image gradient, image gradient (x, y).
enum { OFFSET, SLOPE, GRADIENT };

static real *zeros(long numbers) {
    return calloc(numbers, sizeof(real));
}

// A row of a plane. Row 0 is the frame's first.
static long row(const Frame *frame, long plane, long y) {
    return plane * frame->size + (y + 1) * frame->stride;
}

static long row_below(const Frame *frame, long y) {
    return y + 1 < frame->height ? frame->stride : 0;
}

static void repeat_last_column(const Frame *frame, real *row) {
    row[frame->width] = row[frame->width - 1];
}

static real clamped(real residual) {  // NaN stays NaN
    return residual > 1 ? 1 : residual < -1 ? -1 : residual;
}

// Write the fixed planes of a pair, and the flow to start from. Without a start, start_x and start_y are NULL.
static void prepare(
    const Frame *frame, const real *taps, const real *first, const real *second, const real *start_x,
    const real *start_y, real *fixed, real *flow
) {
    const long width = frame->width, height = frame->height;
    const real left = LEARNT ? taps[0] : 0, middle_x = LEARNT ? taps[1] : 0, right = LEARNT ? taps[2] : 0;
    const real upper = LEARNT ? taps[3] : 0, middle_y = LEARNT ? taps[4] : 0, lower = LEARNT ? taps[5] : 0;
    for (long y = 0; y < height; y++) {
        const real *from = first + y * width, *to = second + y * width;
        real *offset = fixed + row(frame, OFFSET, y), *slope = fixed + row(frame, SLOPE, y);
        real *gradient_x = fixed + row(frame, GRADIENT, y), *gradient_y = fixed + row(frame, GRADIENT + 1, y);
        real *flow_x = flow + row(frame, 0, y), *flow_y = flow + row(frame, 1, y);
        const int inside = 0 < y && y < height - 1;
        if (LEARNT) {
            for (long x = 1; x < width - 1; x++) gradient_x[x] = left * to[x - 1] + middle_x * to[x] + right * to[x + 1];
            if (inside) EACH_PIXEL gradient_y[x] = upper * to[x - width] + middle_y * to[x] + lower * to[x + width];
        } else {
            for (long x = 1; x < width - 1; x++) gradient_x[x] = (to[x + 1] - to[x - 1]) * (real)0.5;
            if (inside) EACH_PIXEL gradient_y[x] = (to[x + width] - to[x - width]) * (real)0.5;
        }
        EACH_PIXEL {
            const real squared = gradient_x[x] * gradient_x[x] + gradient_y[x] * gradient_y[x];
            const real inverse = squared < frame->flat ? 0 : 1 / squared;
            offset[x] = (to[x] - from[x]) * inverse * frame->offset;
            slope[x] = inverse * frame->slope;
        }
        if (start_x) {
            const real *given_x = start_x + y * width, *given_y = start_y + y * width;
            EACH_PIXEL {
                const real along = gradient_x[x] * given_x[x] + gradient_y[x] * given_y[x];
                offset[x] -= along * slope[x] * (frame->offset / frame->slope);
                flow_x[x] = given_x[x] / frame->flow;
                flow_y[x] = given_y[x] / frame->flow;
            }
        } else {
            memset(flow_x, 0, width * sizeof(real));
            memset(flow_y, 0, width * sizeof(real));
        }
        repeat_last_column(frame, flow_x);
        repeat_last_column(frame, flow_y);
    }
}

// One iteration, from the old flow and dual to the new ones, which may be the same arrays. The first leaves the dual.
static void advance(
    const Frame *frame, int is_first, const real *taps, const real *fixed, const real *old_flow, const real *old_dual,
    real *flow, real *dual
) {
    const long width = frame->width, stride = frame->stride;
    const real tau = frame->tau, unit = frame->gradient, *inner = frame->inner;
    const Weights of = weights(taps, OF_DIVERGENCE);
    for (long y = 0; y < frame->height; y++) {
        const long below = row_below(frame, y);
        const Weights to = on_row(frame, weights(taps, OF_DIFFERENCES), y);
        for (int part = 0; part < 2 && !is_first; part++) {
            const real *now = old_flow + row(frame, part, y);
            const real *old_x = old_dual + row(frame, part, y), *old_y = old_dual + row(frame, 2 + part, y);
            real *dual_x = dual + row(frame, part, y), *dual_y = dual + row(frame, 2 + part, y);
            EACH_PIXEL {
                const real along_x = TO_BORDER(weighted(now[x], now[x + 1], to.near_x, to.far_x));
                const real along_y = weighted(now[x], now[x + below], to.near_y, to.far_y);
                const real damping = 1 / (1 + ROOT(along_x * along_x + along_y * along_y));
                dual_x[x] = (old_x[x] + tau * along_x) * damping;
                dual_y[x] = (old_y[x] + tau * along_y) * damping;
            }
        }
        const real *offset = fixed + row(frame, OFFSET, y), *slope = fixed + row(frame, SLOPE, y);
        const real *gradient_x = fixed + row(frame, GRADIENT, y), *gradient_y = fixed + row(frame, GRADIENT + 1, y);
        const real *old_x = old_flow + row(frame, 0, y), *old_y = old_flow + row(frame, 1, y);
        real *flow_x = flow + row(frame, 0, y), *flow_y = flow + row(frame, 1, y);
        const real *xx = dual + row(frame, 0, y), *xy = dual + row(frame, 1, y);
        const real *yx = dual + row(frame, 2, y), *yy = dual + row(frame, 3, y);
        EACH_PIXEL {
            const real along = gradient_x[x] * old_x[x] + gradient_y[x] * old_y[x];
            const real step = unit * clamped(offset[x] + slope[x] * along);
            flow_x[x] = old_x[x] - step * gradient_x[x] + divergence(of, xx[x - 1], xx[x], yx[x - stride], yx[x]);
            flow_y[x] = old_y[x] - step * gradient_y[x] + divergence(of, xy[x - 1], xy[x], yy[x - stride], yy[x]);
        }
        repeat_last_column(frame, flow_x);
        repeat_last_column(frame, flow_y);
    }
}

// Sums over the iterations: of the gradient of the offset, of that times the flow before (x, y), and of minus the step
// times the gradient of the flow after (x, y).
enum { OFFSET_GRAD, TIMES_FLOW, STEP_TIMES_GRAD = 3, TOTALS = 5 };

// Add to sums (x near, x far, y near, y far) the products of a row of a dual with the near and far pixels of a flow.
static void add_products(
    const real *dual_x, const real *dual_y, const real *flow, long width, long below, real sign, double *sums
) {
    real near_x = 0, far_x = 0, near_y = 0, far_y = 0;
    _Pragma("omp simd reduction(+ : near_x, far_x, near_y, far_y)") for (long x = 0; x < width; x++) {
        near_x += dual_x[x] * flow[x];
        far_x += dual_x[x] * flow[x + 1];
        near_y += dual_y[x] * flow[x];
        far_y += dual_y[x] * flow[x + below];
    }
    sums[0] += sign * near_x;
    sums[1] += sign * far_x;
    sums[2] += sign * near_y;
    sums[3] += sign * far_y;
}

// The adjoint of `advance`: from the gradients of the flow and dual after an iteration to those before it.
// before: the flow before. dual: the dual after. pushes: scratch, with 0 in its first row and columns. Adds the
// gradients of the taps; that of the divergence has its far weights first. Returns the iteration's part of the gradient
// of tau.
static double retrace(
    const Frame *frame, int is_first, const real *taps, const real *fixed, const real *before, const real *dual,
    real *grad, real *dual_grad, real *totals, real *pushes, real *along_slope, double *taps_grad
) {
    const long width = frame->width, stride = frame->stride;
    const real tau = frame->tau, unit = frame->gradient, least = frame->least, *inner = frame->inner;
    const Weights of = adjoint(weights(taps, OF_DIFFERENCES));
    double tau_grad = 0;
    for (long y = 0; y < frame->height; y++) {
        const long below = row_below(frame, y);
        const Weights to = on_row(frame, weights(taps, OF_DIFFERENCES), y);
        const Weights back = on_row(frame, adjoint(weights(taps, OF_DIVERGENCE)), y);
        const real *offset = fixed + row(frame, OFFSET, y), *slope = fixed + row(frame, SLOPE, y);
        const real *gradient_x = fixed + row(frame, GRADIENT, y), *gradient_y = fixed + row(frame, GRADIENT + 1, y);
        const real *before_x = before + row(frame, 0, y), *before_y = before + row(frame, 1, y);
        real *grad_x = grad + row(frame, 0, y), *grad_y = grad + row(frame, 1, y);
        real *offset_grad = totals + row(frame, OFFSET_GRAD, y);
        real *times_x = totals + row(frame, TIMES_FLOW, y), *times_y = totals + row(frame, TIMES_FLOW + 1, y);
        real *step_x = totals + row(frame, STEP_TIMES_GRAD, y), *step_y = totals + row(frame, STEP_TIMES_GRAD + 1, y);
        EACH_PIXEL {
            const real along = gradient_x[x] * before_x[x] + gradient_y[x] * before_y[x];
            const real residual = offset[x] + slope[x] * along, step = clamped(residual);
            const real along_grad = gradient_x[x] * grad_x[x] + gradient_y[x] * grad_y[x];
            const real step_grad = residual > -1 && residual < 1 ? -unit * along_grad : 0;
            offset_grad[x] += step_grad;
            times_x[x] += step_grad * before_x[x];
            times_y[x] += step_grad * before_y[x];
            step_x[x] -= step * grad_x[x];
            step_y[x] -= step * grad_y[x];
            along_slope[x] = step_grad * slope[x];
        }
        for (int part = 0; part < 2; part++) {
            const real *now = before + row(frame, part, y), *gradient = fixed + row(frame, GRADIENT + part, y);
            const real *dual_x = dual + row(frame, part, y), *dual_y = dual + row(frame, 2 + part, y);
            real *after = grad + row(frame, part, y);
            real *q_x = dual_grad + row(frame, part, y), *q_y = dual_grad + row(frame, 2 + part, y);
            real *push_x = pushes + row(frame, part, y), *push_y = pushes + row(frame, 2 + part, y);
            if (is_first) {
                EACH_PIXEL after[x] += along_slope[x] * gradient[x];
                continue;
            }
            real part_of_row = 0;
            _Pragma("omp simd reduction(+ : part_of_row)") for (long x = 0; x < width; x++) {
                const real along_x = TO_BORDER(weighted(now[x], now[x + 1], to.near_x, to.far_x));
                const real along_y = weighted(now[x], now[x + below], to.near_y, to.far_y);
                real norm = ROOT(along_x * along_x + along_y * along_y);
                norm = norm < least ? least : norm;
                const real inverse = 1 / (norm * (1 + norm));  // one division for 1 / (1 + norm) and 1 / norm
                const real damping = norm * inverse;
                // The adjoint of the divergence: minus the differences.
                const real back_x = TO_BORDER(weighted(after[x], after[x + 1], back.near_x, back.far_x));
                const real back_y = weighted(after[x], after[x + below], back.near_y, back.far_y);
                const real own_x = (q_x[x] - back_x) * damping, own_y = (q_y[x] - back_y) * damping;
                const real factor = (own_x * dual_x[x] + own_y * dual_y[x]) * (inverse + damping);
                part_of_row += own_x * along_x + own_y * along_y;
                push_x[x] = along_x * factor - tau * own_x;
                push_y[x] = along_y * factor - tau * own_y;
                q_x[x] = own_x;
                q_y[x] = own_y;
            }
            tau_grad += part_of_row;
            if (LEARNT) {
                add_products(push_x, push_y, now, width, below, -1, taps_grad + OF_DIFFERENCES);
                add_products(dual_x, dual_y, after, width, below, 1, taps_grad + OF_DIVERGENCE);
            }
            EACH_PIXEL {
                const real pushed = divergence(of, push_x[x - 1], push_x[x], push_y[x - stride], push_y[x]);
                after[x] += along_slope[x] * gradient[x] + pushed;
            }
        }
        repeat_last_column(frame, grad_x);
        repeat_last_column(frame, grad_y);
    }
    return tau_grad;
}

// The adjoint of `prepare`. grad: the gradient of the flow to start from. Adds the units' gradients, except that of tau.
// Without a start, start_x_grad and start_y_grad are NULL.
static void finish(
    const Frame *frame, const real *taps, const real *fixed, const real *second, const real *start, const real *grad,
    real *totals, real *first_grad, real *second_grad, real *start_x_grad, real *start_y_grad, double *units_grad,
    double *taps_grad
) {
    const long width = frame->width, height = frame->height;
    const real per_unit = 1 / frame->flow, per_slope = 1 / frame->slope, per_offset = 1 / frame->offset;
    for (long y = 0; y < height; y++) {
        const real *offset = fixed + row(frame, OFFSET, y), *slope = fixed + row(frame, SLOPE, y);
        const real *gradient_x = fixed + row(frame, GRADIENT, y), *gradient_y = fixed + row(frame, GRADIENT + 1, y);
        const real *start_x = start + row(frame, 0, y), *start_y = start + row(frame, 1, y);
        const real *grad_x = grad + row(frame, 0, y), *grad_y = grad + row(frame, 1, y);
        const real *offset_grad = totals + row(frame, OFFSET_GRAD, y);
        const real *times_x = totals + row(frame, TIMES_FLOW, y), *times_y = totals + row(frame, TIMES_FLOW + 1, y);
        real *step_x = totals + row(frame, STEP_TIMES_GRAD, y), *step_y = totals + row(frame, STEP_TIMES_GRAD + 1, y);
        real *to_first = first_grad + y * width, *to_second = second_grad + y * width;
        real of_offset = 0, of_slope = 0, of_gradient = 0, of_flow = 0;
        _Pragma("omp simd reduction(+ : of_offset, of_slope, of_gradient, of_flow)") for (long x = 0; x < width; x++) {
            const real along = gradient_x[x] * times_x[x] + gradient_y[x] * times_y[x];
            const real for_offset = offset_grad[x] * offset[x], for_slope = slope[x] * along;
            of_offset += for_offset;
            of_slope += for_slope;
            of_gradient += gradient_x[x] * step_x[x] + gradient_y[x] * step_y[x];
            of_flow -= grad_x[x] * start_x[x] + grad_y[x] * start_y[x];
            // Offset and slope both contain the inverse of the squared image gradient.
            const real squared_grad = -(for_offset + for_slope) * slope[x] * per_slope;
            const real residual_grad = offset_grad[x] * slope[x] * (frame->offset * per_slope);
            const real warped = residual_grad * frame->flow;
            step_x[x] = frame->gradient * step_x[x] + slope[x] * times_x[x] + 2 * squared_grad * gradient_x[x] -
                        warped * start_x[x];
            step_y[x] = frame->gradient * step_y[x] + slope[x] * times_y[x] + 2 * squared_grad * gradient_y[x] -
                        warped * start_y[x];
            to_first[x] = -residual_grad;
            to_second[x] = residual_grad;
        }
        units_grad[1] += of_offset * per_offset;
        units_grad[2] += of_slope * per_slope;
        units_grad[3] += of_gradient;
        units_grad[4] += of_flow * per_unit;
        if (start_x_grad) {
            real *to_x = start_x_grad + y * width, *to_y = start_y_grad + y * width;
            EACH_PIXEL {
                to_x[x] = grad_x[x] * per_unit + to_first[x] * gradient_x[x];
                to_y[x] = grad_y[x] * per_unit + to_first[x] * gradient_y[x];
            }
        }
    }
    for (long y = 0; y < height; y++) {  // the adjoint of the image gradient
        const real *of_x = totals + row(frame, STEP_TIMES_GRAD, y), *of_y = totals + row(frame, STEP_TIMES_GRAD + 1, y);
        const real *image = second + y * width;
        real *to_second = second_grad + y * width;
        const int inside = 0 < y && y < height - 1;
        if (!LEARNT) {
            for (long x = 1; x < width - 1; x++) to_second[x + 1] += of_x[x] * (real)0.5;
            for (long x = 1; x < width - 1; x++) to_second[x - 1] -= of_x[x] * (real)0.5;
            if (inside) EACH_PIXEL to_second[x + width] += of_y[x] * (real)0.5;
            if (inside) EACH_PIXEL to_second[x - width] -= of_y[x] * (real)0.5;
            continue;
        }
        for (int tap = 0; tap < 3; tap++) {
            const real weight_x = taps[tap], weight_y = taps[3 + tap];
            const long shift_x = tap - 1, shift_y = (tap - 1) * width;
            real for_x = 0, for_y = 0;
            for (long x = 1; x < width - 1; x++) to_second[x + shift_x] += of_x[x] * weight_x;
            _Pragma("omp simd reduction(+ : for_x)") for (long x = 1; x < width - 1; x++)
                for_x += of_x[x] * image[x + shift_x];
            taps_grad[tap] += for_x;
            if (!inside) continue;
            EACH_PIXEL to_second[x + shift_y] += of_y[x] * weight_y;
            _Pragma("omp simd reduction(+ : for_y)") for (long x = 0; x < width; x++)
                for_y += of_y[x] * image[x + shift_y];
            taps_grad[3 + tap] += for_y;
        }
    }
}

// inner: memory for a row.
static Frame frame_of(long height, long width, const real *units, const real *limits, real *inner) {
    for (long x = 0; x < width; x++) inner[x] = x + 1 < width;
    return (Frame){
        .width = width, .height = height, .stride = width + 1, .size = (height + 1) * (width + 1),
        .tau = units[0], .offset = units[1], .slope = units[2], .gradient = units[3], .flow = units[4],
        .flat = limits[0], .least = limits[1], .inner = inner,
    };
}

// The exported functions take pairs begin to stop of all. Frames are (pairs, height, width), flows (2, pairs, height,
// width); without a start, start is NULL. Taps are (pairs, TAPS), or NULL. They return 0, or 1 if there is no memory.

int solve(
    long begin, long stop, long pairs, long height, long width, long iterations, const real *units, const real *limits,
    const real *first, const real *second, const real *start, const real *taps, real *out
) {
    const long pixels = height * width, size = (height + 1) * (width + 1);
    real *memory = zeros(10 * size + width);
    if (!memory) return 1;
    real *fixed = memory, *flow = fixed + 4 * size, *dual = flow + 2 * size;
    const Frame frame = frame_of(height, width, units, limits, dual + 4 * size);
    for (long pair = begin; pair < stop; pair++) {
        const real *start_x = start ? start + pair * pixels : NULL, *start_y = start ? start_x + pairs * pixels : NULL;
        const real *own_taps = LEARNT ? taps + pair * TAPS : NULL;
        prepare(
            &frame, own_taps, first + pair * pixels, second + pair * pixels, start_x, start_y, fixed, flow
        );
        memset(dual, 0, 4 * size * sizeof(real));
        for (long i = 0; i < iterations; i++) advance(&frame, i == 0, own_taps, fixed, flow, dual, flow, dual);
        for (int part = 0; part < 2; part++)
            for (long y = 0; y < height; y++) {
                const real *from = flow + row(&frame, part, y);
                real *to = out + (part * pairs + pair) * pixels + y * width;
                EACH_PIXEL to[x] = from[x] * frame.flow;
            }
    }
    free(memory);
    return 0;
}

// units_grad: (pairs, 5). taps_grad: (pairs, TAPS); that of the divergence has its far weights first.
int gradients(
    long begin, long stop, long pairs, long height, long width, long iterations, const real *units, const real *limits,
    const real *first, const real *second, const real *start, const real *taps, const real *flow_grad,
    real *first_grad, real *second_grad, real *start_grad, double *units_grad, double *taps_grad
) {
    const long pixels = height * width, size = (height + 1) * (width + 1);
    real *memory = zeros((6 * iterations + 22) * size + width);
    if (!memory) return 1;
    real *fixed = memory, *flows = fixed + 4 * size, *duals = flows + 2 * (iterations + 1) * size;
    real *grad = duals + 4 * iterations * size, *dual_grad = grad + 2 * size, *totals = dual_grad + 4 * size;
    real *pushes = totals + TOTALS * size, *along_slope = pushes + 4 * size;
    const Frame frame = frame_of(height, width, units, limits, along_slope + size);
    for (long pair = begin; pair < stop; pair++) {
        const real *start_x = start ? start + pair * pixels : NULL, *start_y = start ? start_x + pairs * pixels : NULL;
        const real *own_taps = LEARNT ? taps + pair * TAPS : NULL;
        prepare(
            &frame, own_taps, first + pair * pixels, second + pair * pixels, start_x, start_y, fixed, flows
        );
        for (long i = 0; i < iterations; i++) {
            const real *old_dual = i ? duals + 4 * (i - 1) * size : duals;
            advance(
                &frame, i == 0, own_taps, fixed, flows + 2 * i * size, old_dual, flows + 2 * (i + 1) * size,
                duals + 4 * i * size
            );
        }
        double *sums = units_grad + 5 * pair;
        memset(sums, 0, 5 * sizeof(double));
        double *taps_sums = LEARNT ? taps_grad + pair * TAPS : NULL;
        if (LEARNT) memset(taps_sums, 0, TAPS * sizeof(double));
        for (int part = 0; part < 2; part++)
            for (long y = 0; y < height; y++) {
                const real *from = flow_grad + (part * pairs + pair) * pixels + y * width;
                const real *flow = flows + 2 * iterations * size + row(&frame, part, y);
                real *to = grad + row(&frame, part, y), of_flow = 0;
                _Pragma("omp simd reduction(+ : of_flow)") for (long x = 0; x < width; x++) {
                    to[x] = from[x] * frame.flow;
                    of_flow += from[x] * flow[x];
                }
                sums[4] += of_flow;
                repeat_last_column(&frame, to);
            }
        memset(dual_grad, 0, 4 * size * sizeof(real));
        memset(totals, 0, TOTALS * size * sizeof(real));
        for (long i = iterations - 1; i >= 0; i--)
            sums[0] += retrace(
                &frame, i == 0, own_taps, fixed, flows + 2 * i * size, duals + 4 * i * size, grad, dual_grad, totals,
                pushes, along_slope, taps_sums
            );
        real *start_x_grad = start ? start_grad + pair * pixels : NULL;
        real *start_y_grad = start ? start_x_grad + pairs * pixels : NULL;
        finish(
            &frame, own_taps, fixed, second + pair * pixels, flows, grad, totals, first_grad + pair * pixels,
            second_grad + pair * pixels, start_x_grad, start_y_grad, sums, taps_sums
        );
    }
    free(memory);
    return 0;
}
