// Sweeps over whole parameter vectors: AdamW, sums of two, and reductions in f64.

// ---- AdamW ----

// What is the same for all weights of a step.
struct AdamWConstants {
    double lr;
    float lerp1, beta2, lerp2, root_scale, eps, rate;
};

// The piece that weight i is in: the last that starts at or before it.
__device__ __forceinline__ int piece_of(const uint32_t* starts, int num_pieces, uint32_t i) {
    int low = 0, high = num_pieces;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        if (starts[middle] <= i) low = middle;
        else high = middle;
    }
    return low;
}

// One step for N weights from i on, of one piece.
template <int N>
__device__ __forceinline__ void adamw_run(float* next, float* m, float* v, const float* values, const float* gradient,
                                          int64_t i, float decay, const AdamWConstants& c) {
    Floats<N> at = load<N>(values + i);
    if (decay == decay) {  // NaN: frozen
        const float keep = (float)(1.0 - c.lr * (double)decay);
        const Floats<N> g = load<N>(gradient + i);
        Floats<N> new_m = load<N>(m + i), new_v = load<N>(v + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            new_m.v[j] += (g.v[j] - new_m.v[j]) * c.lerp1;
            new_v.v[j] = new_v.v[j] * c.beta2 + g.v[j] * g.v[j] * c.lerp2;
            const float slope = reciprocal_approx(sqrt_approx(new_v.v[j]) * c.root_scale + c.eps);
            at.v[j] = at.v[j] * keep + c.rate * new_m.v[j] * slope;
        }
        store(m + i, new_m);
        store(v + i, new_v);
    }
    store(next + i, at);
}

// One step over pieces starts[p]..starts[p + 1] with weight decay decay[p] each; NaN: the piece stays as it is.
KERNEL(256) adamw(float* next, float* m, float* v, const float* values, const float* gradient, const uint32_t* starts,
                  const float* decay, int num_pieces, int64_t len, double lr, float lerp1, float beta2, float lerp2,
                  float root_scale, float eps, float rate) {
    const AdamWConstants c = {lr, lerp1, beta2, lerp2, root_scale, eps, rate};
    const int64_t runs = len_of_runs<4>(len, are_aligned<4>(next, m, v, values, gradient));
    FOR_RUNS(4, i, 0, runs) {
        const int piece = piece_of(starts, num_pieces, (uint32_t)i);
        if (starts[piece + 1] - (uint32_t)i >= 4) {
            adamw_run<4>(next, m, v, values, gradient, i, decay[piece], c);
        } else {
#pragma unroll 1
            for (int64_t j = i; j < i + 4; j++) {
                const int of_one = piece_of(starts, num_pieces, (uint32_t)j);
                adamw_run<1>(next, m, v, values, gradient, j, decay[of_one], c);
            }
        }
    }
    FOR_RUNS(1, i, runs, len) {
        const int piece = piece_of(starts, num_pieces, (uint32_t)i);
        adamw_run<1>(next, m, v, values, gradient, i, decay[piece], c);
    }
}

// ---- Sums ----

// out = a x + b y.
KERNEL(256) combined(float* out, float a, const float* x, float b, const float* y, int64_t len) {
    map(out, len, [=](float at_x, float at_y) { return a * at_x + b * at_y; }, x, y);
}

// out = x + alpha v.
KERNEL(256) scale_add(float* out, const float* x, float alpha, const float* v, int64_t len) {
    map(out, len, [=](float at_x, float at_v) { return at_x + alpha * at_v; }, x, v);
}

// out = alpha x.
KERNEL(256) scaled(float* out, const float* x, float alpha, int64_t len) {
    map(out, len, [=](float at_x) { return alpha * at_x; }, x);
}

// out = x / (sqrt(v correction) + eps): a direction in the metric of AdamW.
KERNEL(256) preconditioned(float* out, const float* x, const float* v, float correction, float eps, int64_t len) {
    map(out, len,
        [=](float at_x, float at_v) {
            return at_x * reciprocal_approx(sqrt_approx(at_v * correction) + eps);
        },
        x, v);
}

// ---- Reductions ----

// partials [parts]: the sums of x y over each range of len_of_part values, in f64. y may be x.
KERNEL(256) dot(double* partials, const float* x, const float* y, int64_t len, int len_of_part) {
    const int64_t first = (int64_t)blockIdx.x * len_of_part, end = min(len, first + len_of_part);
    double sum = 0;
    int64_t i = first;
    if (are_aligned<4>(x + first, y + first)) {
#pragma unroll 4
        for (int64_t run = first + 4 * threadIdx.x; run + 4 <= end; run += 4 * 256) {
            const Floats<4> a = load<4>(x + run), b = x == y ? a : load<4>(y + run);
#pragma unroll
            for (int j = 0; j < 4; j++) sum += (double)a.v[j] * (double)b.v[j];
        }
        i = end - (end - first) % 4;
    }
    for (i += threadIdx.x; i < end; i += 256) sum += (double)x[i] * (double)y[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// partials [parts]: the place in each range of len_of_part values of the first that is infinite or NaN; else all bits.
KERNEL(256) first_non_finite(uint32_t* partials, const float* x, int64_t len, int len_of_part) {
    __shared__ uint32_t of_warp[256 / WARP];
    const int64_t first = (int64_t)blockIdx.x * len_of_part, end = min(len, first + len_of_part);
    uint32_t at = 0xffffffffu;
#pragma unroll 8
    for (int64_t i = first + threadIdx.x; i < end; i += 256) {
        const bool is_finite = (float_to_bits(x[i]) & 0x7f800000u) != 0x7f800000u;
        if (!is_finite) at = min(at, (uint32_t)(i - first));
    }
    at = warp_min(at);
    if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = at;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (int w = 1; w < 256 / WARP; w++) at = min(at, of_warp[w]);
    partials[blockIdx.x] = at;
}
