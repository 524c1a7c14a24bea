// TV-L1 on a CPU: from pairs of frames to their flows, and the backward pass. tvl1_cpu.py compiles and calls this file;
// flow.py explains the scheme, tvl1.py its iterations. REAL is float or double, ROOT its square root.
//
// One pair at a time, so that its planes stay in the cache, and row by row: an iteration moves the duals of a row, then
// its flow, which needs the duals of this row and of the row above.
//
// A plane has one column more than the frame, at the right, and one row more, above. A flow's column repeats its last
// one, and the row below its last one is that one itself, so forward differences across a border are 0. A dual's column
// and row are 0, so backward differences across a border are right as well. Index -1 of a row is the column of the row
// above. x and y parts of a flow are two planes; a dual has four: direction x of both parts, then direction y of both.

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef REAL real;

#define EACH_PIXEL _Pragma("omp simd") for (long x = 0; x < width; x++)

typedef struct {
    long width, height, stride, size;  // a plane's row and a plane, in numbers
    real tau, offset, slope, gradient, flow;  // the units of the iterations
    real flat;  // a smaller squared image gradient counts as 0
    real least;  // a smaller norm would overflow in a division
} Frame;

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
    const Frame *frame, const real *first, const real *second, const real *start_x, const real *start_y, real *fixed,
    real *flow
) {
    const long width = frame->width, height = frame->height;
    for (long y = 0; y < height; y++) {
        const real *from = first + y * width, *to = second + y * width;
        real *offset = fixed + row(frame, OFFSET, y), *slope = fixed + row(frame, SLOPE, y);
        real *gradient_x = fixed + row(frame, GRADIENT, y), *gradient_y = fixed + row(frame, GRADIENT + 1, y);
        real *flow_x = flow + row(frame, 0, y), *flow_y = flow + row(frame, 1, y);
        for (long x = 1; x < width - 1; x++) gradient_x[x] = (to[x + 1] - to[x - 1]) * (real)0.5;
        if (0 < y && y < height - 1) EACH_PIXEL gradient_y[x] = (to[x + width] - to[x - width]) * (real)0.5;
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
    const Frame *frame, int is_first, const real *fixed, const real *old_flow, const real *old_dual, real *flow,
    real *dual
) {
    const long width = frame->width, stride = frame->stride;
    const real tau = frame->tau, unit = frame->gradient;
    for (long y = 0; y < frame->height; y++) {
        const long below = row_below(frame, y);
        for (int part = 0; part < 2 && !is_first; part++) {
            const real *now = old_flow + row(frame, part, y);
            const real *old_x = old_dual + row(frame, part, y), *old_y = old_dual + row(frame, 2 + part, y);
            real *dual_x = dual + row(frame, part, y), *dual_y = dual + row(frame, 2 + part, y);
            EACH_PIXEL {
                const real along_x = now[x + 1] - now[x], along_y = now[x + below] - now[x];
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
            flow_x[x] = old_x[x] - step * gradient_x[x] + (xx[x] - xx[x - 1] + yx[x] - yx[x - stride]);
            flow_y[x] = old_y[x] - step * gradient_y[x] + (xy[x] - xy[x - 1] + yy[x] - yy[x - stride]);
        }
        repeat_last_column(frame, flow_x);
        repeat_last_column(frame, flow_y);
    }
}

// Sums over the iterations: of the gradient of the offset, of that times the flow before (x, y), and of minus the step
// times the gradient of the flow after (x, y).
enum { OFFSET_GRAD, TIMES_FLOW, STEP_TIMES_GRAD = 3, TOTALS = 5 };

// The adjoint of `advance`: from the gradients of the flow and dual after an iteration to those before it.
// before: the flow before. dual: the dual after. pushes: scratch, with 0 in its first row and columns. Returns the
// iteration's part of the gradient of tau.
static double retrace(
    const Frame *frame, int is_first, const real *fixed, const real *before, const real *dual, real *grad,
    real *dual_grad, real *totals, real *pushes, real *along_slope
) {
    const long width = frame->width, stride = frame->stride;
    const real tau = frame->tau, unit = frame->gradient, least = frame->least;
    double tau_grad = 0;
    for (long y = 0; y < frame->height; y++) {
        const long below = row_below(frame, y);
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
                const real along_x = now[x + 1] - now[x], along_y = now[x + below] - now[x];
                real norm = ROOT(along_x * along_x + along_y * along_y);
                norm = norm < least ? least : norm;
                const real inverse = 1 / (norm * (1 + norm));  // one division for 1 / (1 + norm) and 1 / norm
                const real damping = norm * inverse;
                // The adjoint of the divergence: minus the differences.
                const real own_x = (q_x[x] - (after[x + 1] - after[x])) * damping;
                const real own_y = (q_y[x] - (after[x + below] - after[x])) * damping;
                const real factor = (own_x * dual_x[x] + own_y * dual_y[x]) * (inverse + damping);
                part_of_row += own_x * along_x + own_y * along_y;
                push_x[x] = along_x * factor - tau * own_x;
                push_y[x] = along_y * factor - tau * own_y;
                q_x[x] = own_x;
                q_y[x] = own_y;
            }
            tau_grad += part_of_row;
            EACH_PIXEL {
                const real pushed = push_x[x] - push_x[x - 1] + push_y[x] - push_y[x - stride];
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
    const Frame *frame, const real *fixed, const real *start, const real *grad, real *totals, real *first_grad,
    real *second_grad, real *start_x_grad, real *start_y_grad, double *units_grad
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
        real *to_second = second_grad + y * width;
        for (long x = 1; x < width - 1; x++) to_second[x + 1] += of_x[x] * (real)0.5;
        for (long x = 1; x < width - 1; x++) to_second[x - 1] -= of_x[x] * (real)0.5;
        if (y == 0 || y == height - 1) continue;
        EACH_PIXEL to_second[x + width] += of_y[x] * (real)0.5;
        EACH_PIXEL to_second[x - width] -= of_y[x] * (real)0.5;
    }
}

static Frame frame_of(long height, long width, const real *units, const real *limits) {
    return (Frame){
        .width = width, .height = height, .stride = width + 1, .size = (height + 1) * (width + 1),
        .tau = units[0], .offset = units[1], .slope = units[2], .gradient = units[3], .flow = units[4],
        .flat = limits[0], .least = limits[1],
    };
}

// The exported functions take pairs begin to stop of all. Frames are (pairs, height, width), flows (2, pairs, height,
// width); without a start, start is NULL. They return 0, or 1 if there is no memory.

int solve(
    long begin, long stop, long pairs, long height, long width, long iterations, const real *units, const real *limits,
    const real *first, const real *second, const real *start, real *out
) {
    const Frame frame = frame_of(height, width, units, limits);
    const long pixels = height * width, size = frame.size;
    real *memory = zeros(10 * size);
    if (!memory) return 1;
    real *fixed = memory, *flow = fixed + 4 * size, *dual = flow + 2 * size;
    for (long pair = begin; pair < stop; pair++) {
        const real *start_x = start ? start + pair * pixels : NULL, *start_y = start ? start_x + pairs * pixels : NULL;
        prepare(&frame, first + pair * pixels, second + pair * pixels, start_x, start_y, fixed, flow);
        memset(dual, 0, 4 * size * sizeof(real));
        for (long i = 0; i < iterations; i++) advance(&frame, i == 0, fixed, flow, dual, flow, dual);
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

// units_grad: (pairs, 5).
int gradients(
    long begin, long stop, long pairs, long height, long width, long iterations, const real *units, const real *limits,
    const real *first, const real *second, const real *start, const real *flow_grad, real *first_grad,
    real *second_grad, real *start_grad, double *units_grad
) {
    const Frame frame = frame_of(height, width, units, limits);
    const long pixels = height * width, size = frame.size;
    real *memory = zeros((6 * iterations + 22) * size);
    if (!memory) return 1;
    real *fixed = memory, *flows = fixed + 4 * size, *duals = flows + 2 * (iterations + 1) * size;
    real *grad = duals + 4 * iterations * size, *dual_grad = grad + 2 * size, *totals = dual_grad + 4 * size;
    real *pushes = totals + TOTALS * size, *along_slope = pushes + 4 * size;
    for (long pair = begin; pair < stop; pair++) {
        const real *start_x = start ? start + pair * pixels : NULL, *start_y = start ? start_x + pairs * pixels : NULL;
        prepare(&frame, first + pair * pixels, second + pair * pixels, start_x, start_y, fixed, flows);
        for (long i = 0; i < iterations; i++) {
            const real *old_dual = i ? duals + 4 * (i - 1) * size : duals;
            advance(
                &frame, i == 0, fixed, flows + 2 * i * size, old_dual, flows + 2 * (i + 1) * size, duals + 4 * i * size
            );
        }
        double *sums = units_grad + 5 * pair;
        memset(sums, 0, 5 * sizeof(double));
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
                &frame, i == 0, fixed, flows + 2 * i * size, duals + 4 * i * size, grad, dual_grad, totals, pushes,
                along_slope
            );
        real *start_x_grad = start ? start_grad + pair * pixels : NULL;
        real *start_y_grad = start ? start_x_grad + pairs * pixels : NULL;
        finish(
            &frame, fixed, flows, grad, totals, first_grad + pair * pixels, second_grad + pair * pixels, start_x_grad,
            start_y_grad, sums
        );
    }
    free(memory);
    return 0;
}
