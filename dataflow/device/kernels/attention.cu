// Attention of one head in fused multiply-adds, for any head dimension and any number of tokens: parts of all three
// kernels, and the forward one.
//
// qkv is [images * tokens, 3 * heads * head_dim]: q, k, v of a token, each [heads, head_dim]. The first `queries`
// tokens of an image are queries. A warp owns 16 rows (queries, or keys for their own gradients) and meets the other
// side in tiles of N rows. Its lane (r, c) = (lane / 8, lane % 8) holds of a [16, N] tile the rows r + 4i and columns c
// + 8j, of a [16, C] tile the same rows and columns 32x + 4c + e. Head dimensions are met in chunks of C; a block gives
// one chunk of its results, number blockIdx.y. Shared memory holds tiles as [rows, C + 4] and probabilities as [16, N +
// 8] a warp: no two rows that are read at once share banks.

// 2^x for the logarithm of a probability. Rounding of large scores must not put it above 1: an overflow would be NaN.
static __device__ __forceinline__ float probability_of(float x) { return fminf(exp2_approx(x), 1.0f); }

// Which rows of which head a block works on. blockIdx.x counts groups of rows, heads, images, the first one fastest.
struct AttentionPlace {
    int lane, warp, r, c, head, group, chunks, slice;
    long long image;
    // First own row of the block.
    int row0;
};

__device__ __forceinline__ AttentionPlace attention_place(int groups, int heads, int head_dim, int chunk) {
    AttentionPlace at;
    at.lane = threadIdx.x % 32;
    at.warp = threadIdx.x / 32;
    at.r = at.lane / 8;
    at.c = at.lane % 8;
    at.group = blockIdx.x % groups;
    at.head = blockIdx.x / groups % heads;
    at.image = blockIdx.x / groups / heads;
    at.chunks = (head_dim + chunk - 1) / chunk;
    at.slice = blockIdx.y;
    at.row0 = at.group * (blockDim.x / 32) * 16;
    return at;
}

// A tile value by value: where head dimensions do not fill chunks, or values are no floats.
template <int C, class T> __device__ __noinline__ void attention_odd_tile(float* to, const T* from, long long stride,
                                                                          int rows, int filled, int columns) {
    for (int i = threadIdx.x; i < filled * C; i += blockDim.x) {
        const int row = i / C, column = i % C;
        to[row * (C + 4) + column] = row < rows && column < columns ? to_float(from[row * stride + column]) : 0.0f;
    }
}

// The block copies `rows` rows and `columns` of C columns to a tile, and zeros up to row `filled`. Call wait_for_copies
// before the barrier.
template <int C, class T> __device__ __forceinline__ void attention_tile(float* to, const T* from, long long stride,
                                                                         int rows, int filled, int columns) {
    if (sizeof(T) == 4 && columns == C && are_aligned<4>(from) && stride % 4 == 0) {
        const int step = blockDim.x / (C / 4), column = threadIdx.x % (C / 4) * 4;
#pragma unroll 4
        for (int row = threadIdx.x / (C / 4); row < filled; row += step) {
            copy16_async(to + row * (C + 4) + column, from + min(row, rows - 1) * stride + column, row < rows);
        }
    } else {
        attention_odd_tile<C>(to, from, stride, rows, filled, columns);
    }
}

// Columns of a tile with n rows of the other side that are computed: a tile with few takes as many as it needs.
template <int N> __device__ __forceinline__ int attention_width(int n) { return n > 16 ? N : (n + 7) / 8 * 8; }

__device__ __forceinline__ float attention_dot4(const Floats<4>& a, const Floats<4>& b, float sum) {
#pragma unroll
    for (int e = 0; e < 4; e++) sum = fmaf(a.v[e], b.v[e], sum);
    return sum;
}

// s[i][j] += the product of rows r + 4i of a and c + 8j of b, for the first `width` rows of b. a and b point to the
// lane's first rows.
template <int C, int N>
__device__ __forceinline__ void attention_scores(float (&s)[4][N / 8], const float* a, const float* b, int width) {
    const int LD = C + 4;
    if (width == N) {
#pragma unroll 2
        for (int k = 0; k < C; k += 4) {
            Floats<4> y[N / 8];
#pragma unroll
            for (int j = 0; j < N / 8; j++) y[j] = load<4>(b + 8 * j * LD + k);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const Floats<4> x = load<4>(a + 4 * i * LD + k);
#pragma unroll
                for (int j = 0; j < N / 8; j++) s[i][j] = attention_dot4(x, y[j], s[i][j]);
            }
        }
    } else {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            if (8 * j >= width) break;
#pragma unroll 1
            for (int k = 0; k < C; k += 4) {
                const Floats<4> y = load<4>(b + 8 * j * LD + k);
#pragma unroll
                for (int i = 0; i < 4; i++) s[i][j] = attention_dot4(load<4>(a + 4 * i * LD + k), y, s[i][j]);
            }
        }
    }
}

// o += p·v: p [16, rows] of the warp at the lane's first row, v [rows, C] at column 4c.
template <int C, int N>
__device__ __forceinline__ void attention_add(float (&o)[4][C / 8], const float* p, const float* v, int rows) {
#pragma unroll 1
    for (int j = 0; j < rows; j += 4) {
        Floats<4> x[4];
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = load<4>(p + 4 * i * (N + 8) + j);
#pragma unroll
        for (int e = 0; e < 4; e++) {
#pragma unroll
            for (int d = 0; d < C / 32; d++) {
                const Floats<4> y = load<4>(v + (j + e) * (C + 4) + 32 * d);
#pragma unroll
                for (int i = 0; i < 4; i++) {
#pragma unroll
                    for (int f = 0; f < 4; f++) o[i][4 * d + f] = fmaf(x[i].v[e], y.v[f], o[i][4 * d + f]);
                }
            }
        }
    }
}

// Keeps the lane's part of a [16, width] tile where attention_add reads it.
template <int N> __device__ __forceinline__ void attention_keep(float* p, const float (&s)[4][N / 8], int width) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            if (8 * j < width) p[4 * i * (N + 8) + 8 * j] = s[i][j];
        }
    }
}

// Writes `columns` of C columns of a row, times factor. c is the lane's column group.
template <int C, class T>
__device__ __forceinline__ void attention_write(T* row, const float (&o)[C / 8], float factor, int c, int columns) {
    const bool aligned = are_aligned<4>(row);
#pragma unroll
    for (int d = 0; d < C / 32; d++) {
        const int column = 32 * d + 4 * c;
        Floats<4> x;
#pragma unroll
        for (int e = 0; e < 4; e++) x.v[e] = o[4 * d + e] * factor;
        if (aligned && column + 4 <= columns) {
            store(row + column, x);
        } else {
            for (int e = 0; e < 4; e++) {
                if (column + e < columns) row[column + e] = from_float<T>(x.v[e]);
            }
        }
    }
}

// Over the eight lanes of a row.
__device__ __forceinline__ float attention_row_sum(float x) {
    for (int mask = 1; mask < 8; mask *= 2) x += __shfl_xor_sync(ALL_LANES, x, mask);
    return x;
}
__device__ __forceinline__ float attention_row_max(float x) {
    for (int mask = 1; mask < 8; mask *= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, mask));
    return x;
}

// A score of a key that does not exist.
#define ATTENTION_NEVER -1e30f
#define LOG2_E 1.44269504f

// y [images * queries, heads * head_dim] = softmax(scale q·k^T) v, lse [images, heads, queries] = log of the sum of exp
// of the scaled scores.
template <class T, int C> __device__ __forceinline__ void attention_forward(T* y, float* lse, const T* qkv, int tokens,
                                                                            int queries, int heads, int head_dim,
                                                                            int groups, float scale) {
    const int N = 64, LD = C + 4, LP = N + 8;
    const AttentionPlace at = attention_place(groups, heads, head_dim, C);
    const int warps = blockDim.x / 32, row0 = at.row0 + 16 * at.warp;
    DYNAMIC_SHARED(float, shared);
    float *own = shared, *k = own + warps * 16 * LD, *v = k + N * LD, *p = v + N * LD;
    const float* own_lane = own + (16 * at.warp + at.r) * LD;
    p += at.warp * 16 * LP;
    const long long width = (long long)heads * head_dim, stride = 3 * width;
    const T* base = qkv + at.image * tokens * stride + at.head * head_dim;
    const int slice_columns = min(C, head_dim - at.slice * C);
    const bool active = row0 < queries;
    const float factor = scale * LOG2_E;
    float o[4][C / 8] = {}, top[4], sum[4] = {};
    for (int i = 0; i < 4; i++) top[i] = ATTENTION_NEVER;

#pragma unroll 1
    for (int k0 = 0; k0 < tokens; k0 += N) {
        const int n = min(N, tokens - k0), w = attention_width<N>(n);
        float s[4][N / 8] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < at.chunks; chunk++) {
            const int column = chunk * C, columns = min(C, head_dim - column);
            __syncthreads();
            if (k0 == 0 || at.chunks > 1) {
                attention_tile<C>(own, base + at.row0 * stride + column, stride, queries - at.row0, 16 * warps,
                                  columns);
            }
            attention_tile<C>(k, base + width + k0 * stride + column, stride, n, w, columns);
            if (chunk + 1 == at.chunks) {
                attention_tile<C>(v, base + 2 * width + k0 * stride + at.slice * C, stride, n, w, slice_columns);
            }
            wait_for_copies();
            __syncthreads();
            if (active) attention_scores<C, N>(s, own_lane, k + at.c * LD, w);
        }
        if (!active) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float highest = top[i];
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                if (at.c + 8 * j >= n) s[i][j] = ATTENTION_NEVER;
                highest = fmaxf(highest, s[i][j]);
            }
            highest = attention_row_max(highest);
            const float shrink = exp2_approx((top[i] - highest) * factor);
            top[i] = highest;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                s[i][j] = exp2_approx((s[i][j] - highest) * factor);
                sum[i] += s[i][j];
            }
#pragma unroll
            for (int e = 0; e < C / 8; e++) o[i][e] *= shrink;
        }
        attention_keep<N>(p + at.r * LP + at.c, s, w);
        __syncwarp();
        attention_add<C, N>(o, p + at.r * LP, v + 4 * at.c, (n + 3) / 4 * 4);
    }
    if (!active) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float total = attention_row_sum(sum[i]);
        const int row = row0 + at.r + 4 * i;
        if (row >= queries) continue;
        if (at.c == 0 && at.slice == 0)
            lse[(at.image * heads + at.head) * queries + row] = top[i] * scale + logf(total);
        T* to = y + (at.image * queries + row) * width + at.head * head_dim + at.slice * C;
        attention_write<C>(to, o[i], 1.0f / total, at.c, slice_columns);
    }
}

#define ATTENTION_KERNEL(suffix, T, C) \
    extern "C" __global__ void __launch_bounds__(192, 2) attention_##suffix( \
        T* y, float* lse, const T* qkv, int tokens, int queries, int heads, int head_dim, int groups, float scale) { \
        attention_forward<T, C>(y, lse, qkv, tokens, queries, heads, head_dim, groups, scale); \
    }
ATTENTION_KERNEL(c32_f32, float, 32)
ATTENTION_KERNEL(c64_f32, float, 64)
ATTENTION_KERNEL(c64_bf16, bf16, 64)
