// Gradient of attention in fused multiply-adds, by two kernels that recompute the probabilities from the log of their
// sums: one owns queries and sums over keys, the other owns keys and sums over queries. So nothing is added by two
// blocks.
//   dv = p^T dy,  dp = dy·v^T,  ds = p (dp - delta),  dq = scale ds·k,  dk = scale ds^T q,
//   delta = the sum over a row of dy y.

// Writes the q part of dqkv (zeros for tokens that are no query) and delta [images, heads, queries].
template <class T, int C>
__device__ __forceinline__ void attention_grad_of_queries(T* dqkv, float* delta, const T* dy, const T* y, const T* qkv,
                                                          const float* lse, int tokens, int queries, int heads,
                                                          int head_dim, int groups, float scale) {
    const int N = 64, LD = C + 4, LP = N + 8;
    const AttentionPlace at = attention_place(groups, heads, head_dim, C);
    const int warps = blockDim.x / 32, row0 = at.row0 + 16 * at.warp, slice_columns = min(C, head_dim - at.slice * C);
    DYNAMIC_SHARED(float, shared);
    float *q = shared, *dy_own = q + warps * 16 * LD, *k = dy_own + warps * 16 * LD, *v = k + N * LD, *p = v + N * LD;
    const int own = (16 * at.warp + at.r) * LD;
    p += at.warp * 16 * LP;
    const long long width = (long long)heads * head_dim, stride = 3 * width;
    const T* base = qkv + at.image * tokens * stride + at.head * head_dim;
    const T* dy_base = dy + at.image * queries * width + at.head * head_dim;
    const float* lse_base = lse + (at.image * heads + at.head) * queries;
    const bool active = row0 < queries, any = at.row0 < queries;
    float o[4][C / 8] = {}, log_sum[4], mean[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + at.r + 4 * i;
        float sum = 0;
        if (row < queries) {
            const T *a = dy_base + row * width, *b = y + (at.image * queries + row) * width + at.head * head_dim;
#pragma unroll 1
            for (int d = at.c; d < head_dim; d += 8) sum = fmaf(to_float(a[d]), to_float(b[d]), sum);
        }
        mean[i] = attention_row_sum(sum);
        log_sum[i] = row < queries ? lse_base[row] * LOG2_E : 0.0f;
        if (row < queries && at.c == 0 && at.slice == 0) delta[(at.image * heads + at.head) * queries + row] = mean[i];
    }

#pragma unroll 1
    for (int k0 = 0; any && k0 < tokens; k0 += N) {
        const int n = min(N, tokens - k0), w = attention_width<N>(n);
        float s[4][N / 8] = {}, dp[4][N / 8] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < at.chunks; chunk++) {
            const int column = chunk * C, columns = min(C, head_dim - column);
            __syncthreads();
            if (k0 == 0 || at.chunks > 1) {
                attention_tile<C>(q, base + at.row0 * stride + column, stride, queries - at.row0, 16 * warps, columns);
                attention_tile<C>(dy_own, dy_base + at.row0 * width + column, width, queries - at.row0, 16 * warps,
                                  columns);
            }
            attention_tile<C>(k, base + width + k0 * stride + column, stride, n, w, columns);
            attention_tile<C>(v, base + 2 * width + k0 * stride + column, stride, n, w, columns);
            wait_for_copies();
            __syncthreads();
            if (active) {
                attention_scores<C, N>(s, q + own, k + at.c * LD, w);
                attention_scores<C, N>(dp, dy_own + own, v + at.c * LD, w);
            }
        }
        if (at.chunks > 1) {
            __syncthreads();
            attention_tile<C>(k, base + width + k0 * stride + at.slice * C, stride, n, w, slice_columns);
            wait_for_copies();
            __syncthreads();
        }
        if (!active) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                const float probability = probability_of(fmaf(s[i][j], scale * LOG2_E, -log_sum[i]));
                s[i][j] = at.c + 8 * j < n ? probability * (dp[i][j] - mean[i]) : 0.0f;
            }
        }
        attention_keep<N>(p + at.r * LP + at.c, s, w);
        __syncwarp();
        attention_add<C, N>(o, p + at.r * LP, k + 4 * at.c, (n + 3) / 4 * 4);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + at.r + 4 * i;
        if (row >= tokens) continue;
        T* to = dqkv + (at.image * tokens + row) * stride + at.head * head_dim + at.slice * C;
        attention_write<C>(to, o[i], row < queries ? scale : 0.0f, at.c, slice_columns);
    }
}

// Writes the k and v parts of dqkv.
template <class T, int C>
__device__ __forceinline__ void attention_grad_of_keys(T* dqkv, const float* delta, const T* dy, const T* qkv,
                                                       const float* lse, int tokens, int queries, int heads,
                                                       int head_dim, int groups, float scale) {
    const int N = 64, LD = C + 4, LP = N + 8;
    const AttentionPlace at = attention_place(groups, heads, head_dim, C);
    const int warps = blockDim.x / 32, row0 = at.row0 + 16 * at.warp, slice_columns = min(C, head_dim - at.slice * C);
    DYNAMIC_SHARED(float, shared);
    float *k = shared, *v = k + warps * 16 * LD, *q = v + warps * 16 * LD, *dy_tile = q + N * LD, *p = dy_tile + N * LD;
    float *log_sum = p + warps * 16 * LP, *mean = log_sum + N;
    const int own = (16 * at.warp + at.r) * LD;
    p += at.warp * 16 * LP;
    const long long width = (long long)heads * head_dim, stride = 3 * width;
    const T* base = qkv + at.image * tokens * stride + at.head * head_dim;
    const T* dy_base = dy + at.image * queries * width + at.head * head_dim;
    const long long first = (at.image * heads + at.head) * queries;
    const bool active = row0 < tokens;
    float dk[4][C / 8] = {}, dv[4][C / 8] = {};

#pragma unroll 1
    for (int q0 = 0; q0 < queries; q0 += N) {
        const int n = min(N, queries - q0), w = attention_width<N>(n), rows = (n + 3) / 4 * 4;
        float s[4][N / 8] = {}, dp[4][N / 8] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < at.chunks; chunk++) {
            const int column = chunk * C, columns = min(C, head_dim - column);
            __syncthreads();
            if (q0 == 0 || at.chunks > 1) {
                attention_tile<C>(k, base + width + at.row0 * stride + column, stride, tokens - at.row0, 16 * warps,
                                  columns);
                attention_tile<C>(v, base + 2 * width + at.row0 * stride + column, stride, tokens - at.row0, 16 * warps,
                                  columns);
            }
            attention_tile<C>(q, base + q0 * stride + column, stride, n, w, columns);
            attention_tile<C>(dy_tile, dy_base + q0 * width + column, width, n, w, columns);
            for (int i = threadIdx.x; i < N; i += blockDim.x) {
                log_sum[i] = i < n ? lse[first + q0 + i] * LOG2_E : 0.0f;
                mean[i] = i < n ? delta[first + q0 + i] : 0.0f;
            }
            wait_for_copies();
            __syncthreads();
            if (active) {
                attention_scores<C, N>(s, k + own, q + at.c * LD, w);
                attention_scores<C, N>(dp, v + own, dy_tile + at.c * LD, w);
            }
        }
        if (at.chunks > 1) {
            __syncthreads();
            attention_tile<C>(q, base + q0 * stride + at.slice * C, stride, n, w, slice_columns);
            attention_tile<C>(dy_tile, dy_base + q0 * width + at.slice * C, width, n, w, slice_columns);
            wait_for_copies();
            __syncthreads();
        }
        if (!active) continue;
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
            const int column = at.c + 8 * j;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float probability = probability_of(fmaf(s[i][j], scale * LOG2_E, -log_sum[column]));
                s[i][j] = column < n ? probability : 0.0f;
                dp[i][j] = s[i][j] * (dp[i][j] - mean[column]);
            }
        }
        attention_keep<N>(p + at.r * LP + at.c, s, w);
        __syncwarp();
        attention_add<C, N>(dv, p + at.r * LP, dy_tile + 4 * at.c, rows);
        __syncwarp();
        attention_keep<N>(p + at.r * LP + at.c, dp, w);
        __syncwarp();
        attention_add<C, N>(dk, p + at.r * LP, q + 4 * at.c, rows);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = row0 + at.r + 4 * i;
        if (row >= tokens) continue;
        T* to = dqkv + (at.image * tokens + row) * stride + width + at.head * head_dim + at.slice * C;
        attention_write<C>(to, dk[i], scale, at.c, slice_columns);
        attention_write<C>(to + width, dv[i], 1.0f, at.c, slice_columns);
    }
}

#define ATTENTION_GRAD_KERNELS(suffix, T, C) \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_grad_of_queries_##suffix( \
        T* dqkv, float* delta, const T* dy, const T* y, const T* qkv, const float* lse, int tokens, int queries, \
        int heads, int head_dim, int groups, float scale) { \
        attention_grad_of_queries<T, C>(dqkv, delta, dy, y, qkv, lse, tokens, queries, heads, head_dim, groups, \
                                        scale); \
    } \
    extern "C" __global__ void __launch_bounds__(128, 2) \
        attention_grad_of_keys_##suffix(T* dqkv, const float* delta, const T* dy, const T* qkv, const float* lse, \
                                        int tokens, int queries, int heads, int head_dim, int groups, float scale) { \
        attention_grad_of_keys<T, C>(dqkv, delta, dy, qkv, lse, tokens, queries, heads, head_dim, groups, scale); \
    }
ATTENTION_GRAD_KERNELS(c32_f32, float, 32)
ATTENTION_GRAD_KERNELS(c64_f32, float, 64)
ATTENTION_GRAD_KERNELS(c64_bf16, bf16, 64)
