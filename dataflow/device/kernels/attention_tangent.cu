// Derivative of attention along dqkv in fused multiply-adds, in one sweep over the keys.
//   s' = scale (q'·k^T + q·k'^T),  y' = sum p (s' - mean of s') v + sum p v',  the mean weighted by p.
// The mean so far is taken off s' at once, and what it changes by later from the sum so far: so no large sums cancel at
// the end.

template <class T, int C> __device__ __forceinline__ void attention_tangent_of(T* y, T* dy, const T* qkv, const T* dqkv,
                                                                               int tokens, int queries, int heads,
                                                                               int head_dim, int groups, float scale) {
    const int N = 32, LD = C + 4, LP = N + 8;
    const AttentionPlace at = attention_place(groups, heads, head_dim, C);
    const int warps = blockDim.x / 32, row0 = at.row0 + 16 * at.warp, slice_columns = min(C, head_dim - at.slice * C);
    DYNAMIC_SHARED(float, shared);
    float *q = shared, *dq = q + warps * 16 * LD, *k = dq + warps * 16 * LD, *dk = k + N * LD, *v = dk + N * LD,
          *dv = v + N * LD;
    float *p = dv + N * LD + at.warp * 32 * LP, *dp = p + 16 * LP;
    const int own = (16 * at.warp + at.r) * LD;
    const long long width = (long long)heads * head_dim, stride = 3 * width,
                    offset = at.image * tokens * stride + at.head * head_dim;
    const T *base = qkv + offset, *dbase = dqkv + offset;
    const bool active = row0 < queries;
    const float factor = scale * LOG2_E;
    float o[4][C / 8] = {}, d_o[4][C / 8] = {}, top[4], sum[4] = {}, dsum[4] = {}, mean[4] = {};
    for (int i = 0; i < 4; i++) top[i] = ATTENTION_NEVER;

#pragma unroll 1
    for (int k0 = 0; k0 < tokens; k0 += N) {
        const int n = min(N, tokens - k0), w = attention_width<N>(n), rows = (n + 3) / 4 * 4;
        float s[4][N / 8] = {}, ds[4][N / 8] = {};
#pragma unroll 1
        for (int chunk = 0; chunk < at.chunks; chunk++) {
            const int column = chunk * C, columns = min(C, head_dim - column);
            __syncthreads();
            if (k0 == 0 || at.chunks > 1) {
                attention_tile<C>(q, base + at.row0 * stride + column, stride, queries - at.row0, 16 * warps, columns);
                attention_tile<C>(dq, dbase + at.row0 * stride + column, stride, queries - at.row0, 16 * warps,
                                  columns);
            }
            attention_tile<C>(k, base + width + k0 * stride + column, stride, n, w, columns);
            attention_tile<C>(dk, dbase + width + k0 * stride + column, stride, n, w, columns);
            if (chunk + 1 == at.chunks) {
                const long long place = 2 * width + k0 * stride + at.slice * C;
                attention_tile<C>(v, base + place, stride, n, w, slice_columns);
                attention_tile<C>(dv, dbase + place, stride, n, w, slice_columns);
            }
            wait_for_copies();
            __syncthreads();
            if (active) {
                attention_scores<C, N>(s, q + own, k + at.c * LD, w);
                attention_scores<C, N>(ds, dq + own, k + at.c * LD, w);
                attention_scores<C, N>(ds, q + own, dk + at.c * LD, w);
            }
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
            float part = 0, dpart = 0;
#pragma unroll
            for (int j = 0; j < N / 8; j++) {
                s[i][j] = exp2_approx((s[i][j] - highest) * factor);
                part += s[i][j];
                dpart = fmaf(s[i][j], ds[i][j], dpart);
            }
            sum[i] = fmaf(sum[i], shrink, attention_row_sum(part));
            dsum[i] = fmaf(dsum[i], shrink, attention_row_sum(dpart));
            const float mean_so_far = dsum[i] / sum[i], more = (mean[i] - mean_so_far) * scale;
            mean[i] = mean_so_far;
#pragma unroll
            for (int j = 0; j < N / 8; j++) ds[i][j] = s[i][j] * (ds[i][j] - mean[i]) * scale;
#pragma unroll
            for (int e = 0; e < C / 8; e++) {
                o[i][e] *= shrink;
                d_o[i][e] = fmaf(d_o[i][e], shrink, o[i][e] * more);
            }
        }
        attention_keep<N>(p + at.r * LP + at.c, s, w);
        attention_keep<N>(dp + at.r * LP + at.c, ds, w);
        __syncwarp();
        attention_add<C, N>(o, p + at.r * LP, v + 4 * at.c, rows);
        attention_add<C, N>(d_o, dp + at.r * LP, v + 4 * at.c, rows);
        attention_add<C, N>(d_o, p + at.r * LP, dv + 4 * at.c, rows);
    }
    if (!active) return;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float inverse = 1.0f / sum[i];
        const int row = row0 + at.r + 4 * i;
        if (row >= queries) continue;
        const long long place = (at.image * queries + row) * width + at.head * head_dim + at.slice * C;
        attention_write<C>(y + place, o[i], inverse, at.c, slice_columns);
        attention_write<C>(dy + place, d_o[i], inverse, at.c, slice_columns);
    }
}

#define ATTENTION_TANGENT_KERNEL(suffix, T, C) \
    extern "C" __global__ void __launch_bounds__(128, 2) \
        attention_tangent_##suffix(T* y, T* dy, const T* qkv, const T* dqkv, int tokens, int queries, int heads, \
                                   int head_dim, int groups, float scale) { \
        attention_tangent_of<T, C>(y, dy, qkv, dqkv, tokens, queries, heads, head_dim, groups, scale); \
    }
ATTENTION_TANGENT_KERNEL(c32_f32, float, 32)
ATTENTION_TANGENT_KERNEL(c64_f32, float, 64)
ATTENTION_TANGENT_KERNEL(c64_bf16, bf16, 64)
