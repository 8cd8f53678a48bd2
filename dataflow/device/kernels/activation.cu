// Sweeps over activations: GELU, ReLU and sigmoid with their derivatives, casts, sums, and sums over rows.

// ---- GELU ----

// Of the normal distribution at x: the share beyond |x| on one side, and the density.
struct Normal {
    float tail, density;
};

// To f32's rounding of the share within.
__device__ __forceinline__ Normal normal(float x, float) {
    return {0.5f - 0.5f * erff(fabsf(x) * 0.70710678f), 0.39894228f * expf(-0.5f * x * x)};
}

// Within 4e-5 of its size, a hundredth of bf16's rounding, at a third of the cost: tail = density m(|x|), where the
// polynomial fits Mills' ratio m with the least relative error over 0..14. Its coefficients have the density's factor.
__device__ __forceinline__ Normal normal(float x, bf16) {
    const float t = reciprocal_approx(1.0f + 0.375f * fabsf(x));
    const float power = exp2_approx(-0.72134752f * x * x);
    float ratio = -0.09064854f;
    ratio = ratio * t + 0.20029397f;
    ratio = ratio * t + 0.08355505f;
    ratio = ratio * t + 0.15773655f;
    ratio = ratio * t + 0.14906080f;
    return {ratio * t * power, 0.39894228f * power};
}

// x Phi(x).
__device__ __forceinline__ float gelu(float x, const Normal& at) { return fmaxf(x, 0.0f) - fabsf(x) * at.tail; }

// Phi(x) + x phi(x), the derivative.
__device__ __forceinline__ float gelu_slope(float x, const Normal& at) {
    return (x < 0.0f ? at.tail : 1.0f - at.tail) + x * at.density;
}

#define GELU(NAME, T)                                                                                            \
    KERNEL(256) NAME(T* h, const T* z, int64_t len) {                                                            \
        map(h, len, [](float x) { return gelu(x, normal(x, T())); }, z);                                         \
    }
GELU(gelu_f32, float)
GELU(gelu_bf16, bf16)

// dz = dh gelu'(z).
#define GELU_GRAD(NAME, T)                                                                                       \
    KERNEL(256) NAME(T* dz, const T* dh, const T* z, int64_t len) {                                              \
        map(dz, len, [](float d, float x) { return d * gelu_slope(x, normal(x, T())); }, dh, z);                 \
    }
GELU_GRAD(gelu_grad_f32, float)
GELU_GRAD(gelu_grad_bf16, bf16)

// h = gelu(z) and dh = gelu'(z) dz.
template <int N, class T>
__device__ __forceinline__ void gelu_tangent_runs(int64_t begin, int64_t end, T* h, T* dh, const T* z, const T* dz) {
    FOR_RUNS(N, i, begin, end) {
        Floats<N> x = load<N>(z + i), d = load<N>(dz + i);
#pragma unroll
        for (int j = 0; j < N; j++) {
            const Normal at = normal(x.v[j], T());
            d.v[j] *= gelu_slope(x.v[j], at);
            x.v[j] = gelu(x.v[j], at);
        }
        store(h + i, x);
        store(dh + i, d);
    }
}

#define GELU_TANGENT(NAME, T)                                                                                    \
    KERNEL(256) NAME(T* h, T* dh, const T* z, const T* dz, int64_t len) {                                        \
        const int WIDE = 16 / sizeof(T);                                                                         \
        const int64_t runs = len_of_runs<WIDE>(len, are_aligned<WIDE>(h, dh, z, dz));                            \
        gelu_tangent_runs<WIDE>(0, runs, h, dh, z, dz);                                                          \
        gelu_tangent_runs<1>(runs, len, h, dh, z, dz);                                                           \
    }
GELU_TANGENT(gelu_tangent_f32, float)
GELU_TANGENT(gelu_tangent_bf16, bf16)

// ---- Networks of the masks: f32, in place ----

KERNEL(256) relu(float* x, int64_t len) {
    map(x, len, [](float v) { return v < 0.0f ? 0.0f : v; }, x);
}

// d = 0 where h, the output of relu, is not positive.
KERNEL(256) relu_grad(float* d, const float* h, int64_t len) {
    map(d, len, [](float v, float out) { return out > 0.0f ? v : 0.0f; }, d, h);
}

KERNEL(256) sigmoid(float* x, int64_t len) {
    map(x, len, [](float v) {
        const float e = expf(-fabsf(v));
        return (v < 0.0f ? e : 1.0f) * reciprocal_approx(1.0f + e);
    }, x);
}

// d *= p (1 - p), where p is the output of sigmoid.
KERNEL(256) sigmoid_grad(float* d, const float* p, int64_t len) {
    map(d, len, [](float v, float out) { return v * (out * (1.0f - out)); }, d, p);
}

// dd += ds dp (1 - 2 p): the tangent of d = ds p (1 - p) for a moving p, but for the factor of p's own slope.
KERNEL(256) sigmoid_curvature(float* dd, const float* ds, const float* dp, const float* p, int64_t len) {
    map(dd, len, [](float old, float s, float moved, float out) { return old + s * moved * (1.0f - 2.0f * out); },
        dd, ds, dp, p);
}

// ---- Casts and sums ----

KERNEL(256) narrow_bf16(bf16* out, const float* x, int64_t len) {
    map(out, len, [](float v) { return v; }, x);
}

KERNEL(256) widen_bf16(float* out, const bf16* x, int64_t len) {
    map(out, len, [](float v) { return v; }, x);
}

// out = x + y, in the types of the residual stream.
#define ADD_ACT(NAME, T)                                                                                         \
    KERNEL(256) NAME(float* out, const float* x, const T* y, int64_t len) {                                      \
        map(out, len, [](float a, float b) { return a + b; }, x, y);                                             \
    }
ADD_ACT(add_act_f32, float)
ADD_ACT(add_act_bf16, bf16)

// x += y for activations.
KERNEL(256) act_add_bf16(bf16* x, const bf16* y, int64_t len) {
    map(x, len, [](float a, float b) { return a + b; }, x, y);
}

// ---- Sums over rows ----

const int COLUMN_SUM_ROWS = 8;  // rows that a block reads at once, a warp each

// Columns c.. of `partial` are the sums of rows first..end of x [rows, columns], N columns a lane.
template <int N, class T>
__device__ __forceinline__ void column_sums_of(float* partial, const T* x, int64_t first, int64_t end, int columns) {
    __shared__ float of_warp[COLUMN_SUM_ROWS][WARP * N];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int block = blockIdx.x * WARP * N; block < columns; block += gridDim.x * WARP * N) {
        const int c = block + N * lane;
        Floats<N> sum = {};
        if (c < columns) {
#pragma unroll 4
            for (int64_t row = first + warp; row < end; row += COLUMN_SUM_ROWS) {
                const Floats<N> at = load<N>(x + row * columns + c);
#pragma unroll
                for (int i = 0; i < N; i++) sum.v[i] += at.v[i];
            }
        }
#pragma unroll
        for (int i = 0; i < N; i++) of_warp[warp][WARP * i + lane] = sum.v[i];
        __syncthreads();
        // A thread ends the sums of one column, or of none.
        for (int at = threadIdx.x; at < WARP * N; at += COLUMN_SUM_ROWS * WARP) {
            const int column = block + at;
            float total = 0;
            for (int w = 0; w < COLUMN_SUM_ROWS; w++) total += of_warp[w][WARP * (at % N) + at / N];
            if (column < columns) partial[column] = total;
        }
        __syncthreads();
    }
}

// partials [parts, columns]: the sums of each block of rows_of_part rows of x [rows, columns].
#define COLUMN_SUMS(NAME, T)                                                                                     \
    KERNEL(256) NAME(float* partials, const T* x, int64_t rows, int rows_of_part,                                \
                     int columns) {                                                                              \
        const int64_t first = (int64_t)blockIdx.y * rows_of_part, end = min(rows, first + rows_of_part);         \
        const int WIDE = 16 / sizeof(T);                                                                         \
        float* partial = partials + (int64_t)blockIdx.y * columns;                                               \
        if (columns % WIDE == 0 && are_aligned<WIDE>(x)) {                                                       \
            column_sums_of<WIDE>(partial, x, first, end, columns);                                               \
        } else {                                                                                                 \
            column_sums_of<1>(partial, x, first, end, columns);                                                  \
        }                                                                                                        \
    }
COLUMN_SUMS(column_sums_f32, float)
COLUMN_SUMS(column_sums_bf16, bf16)
