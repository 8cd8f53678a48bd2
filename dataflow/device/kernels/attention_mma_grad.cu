// Gradient of attention on tensor cores, by two kernels: see attention_grad.cu for the formulas, attention_mma.cu for
// how a block works.

// Meets the next 8 N keys, of which `valid` exist: dq += ds·k. v lies `gap` values after k.
template <class T, int D, int N>
__device__ __forceinline__ void mma_grad_step_of_queries(float (&dq)[D / 8][4],
                                                         const uint32_t (&q)[D / Mma<T, D>::STEP][4],
                                                         const uint32_t (&dy)[D / Mma<T, D>::STEP][4],
                                                         const float (&log_sum)[2], const float (&mean)[2], const T* k,
                                                         const T* k_columns, int gap, int valid, int t, float factor) {
    float s[N][4], dp[N][4];
    mma_zero(s);
    mma_zero(dp);
    mma_scores<T, D, N>(s, q, k);
    mma_scores<T, D, N>(dp, dy, k + gap);
    mma_mask(s, valid, t);
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = probability_of(fmaf(s[j][i], factor, -log_sum[i / 2])) * (dp[j][i] - mean[i / 2]);
        }
    }
    mma_add<D, N>(dq, s, k_columns);
}

// sum += the product of the values of two words.
__device__ __forceinline__ float mma_dot(bf16, uint32_t a, uint32_t b, float sum) {
    sum = fmaf(bits_to_float(a << 16), bits_to_float(b << 16), sum);
    return fmaf(bits_to_float(a & 0xffff0000u), bits_to_float(b & 0xffff0000u), sum);
}
__device__ __forceinline__ float mma_dot(float, uint32_t a, uint32_t b, float sum) {
    return fmaf(bits_to_float(a), bits_to_float(b), sum);
}

// Writes the q part of dqkv (zeros for tokens that are no query) and delta [images, heads, queries].
template <class T, int D>
__device__ __forceinline__ void mma_grad_of_queries(T* dqkv, float* delta, const T* dy, const T* y, const T* qkv,
                                                    const float* lse, int tokens, int queries, int heads, int groups,
                                                    int rounds, int piece, float scale) {
    const int LD = Mma<T, D>::LD;
    DYNAMIC_SHARED(T, shared);
    const int gap = piece * LD;
    T* k = shared;
    const MmaPlace at = mma_place(heads, groups, rounds);
    const long long width = heads * D, stride = 3 * width;
    const int first = (at.image * heads + at.head) * queries;
    const T* base = qkv + at.image * tokens * stride + at.head * D;
    const long long out = at.image * queries * width + at.head * D;
    const T *k_lane = mma_rows<T, D>(k, at.lane), *k_columns = mma_columns<D>(k, at.lane);
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const int row = (at.tile + round * (int)(blockDim.x / WARP)) * 16 + at.g;
        const bool is_active = row - at.g < queries;
        typename Mma<T, D>::Own q, dy_own;
        float dq[D / 8][4], log_sum[2], mean[2] = {0, 0};
        mma_zero(dq);
        mma_own<T, D>(q, base, stride, row, queries, at.t);
        mma_own<T, D>(dy_own, dy + out, width, row, queries, at.t);
        {
            typename Mma<T, D>::Own y_own;
            mma_own<T, D>(y_own, y + out, width, row, queries, at.t);
#pragma unroll
            for (int j = 0; j < D / Mma<T, D>::STEP; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) mean[i % 2] = mma_dot(T(), dy_own[j][i], y_own[j][i], mean[i % 2]);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int place = row + 8 * h;
            mean[h] = mma_row_sum(mean[h]);
            log_sum[h] = place < queries ? lse[first + place] * LOG2_E : 0.0f;
            if (place < queries && at.t == 0) delta[first + place] = mean[h];
        }
#pragma unroll 1
        for (int k0 = 0; k0 < tokens; k0 += piece) {
            const int n = min(piece, tokens - k0), filled = round_up(n, 16);
            if (round == 0 || piece < tokens) {
                __syncthreads();
                mma_fill<T, D>(k, base + width + k0 * stride, stride, n, filled);
                mma_fill<T, D>(k + gap, base + 2 * width + k0 * stride, stride, n, filled);
                mma_filled<T, D>(k, 2, piece, filled);
                __syncthreads();
            }
            if (!is_active) continue;
            int j = 0;
#pragma unroll 1
            for (; j + 32 <= filled; j += 32) {
                mma_grad_step_of_queries<T, D, 4>(dq, q, dy_own, log_sum, mean, k_lane + j * LD, k_columns + j * LD,
                                                  gap, n - j, at.t, scale * LOG2_E);
            }
            if (j < filled) {
                mma_grad_step_of_queries<T, D, 2>(dq, q, dy_own, log_sum, mean, k_lane + j * LD, k_columns + j * LD,
                                                  gap, n - j, at.t, scale * LOG2_E);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int place = row + 8 * h;
            if (place >= tokens) continue;
            T* to = dqkv + (at.image * tokens + place) * stride + at.head * D;
            mma_write<D>(to, dq, h, place < queries ? scale : 0.0f, at.t);
        }
    }
}

// Meets the next 8 N queries: dv += p^T dy, dk += ds^T q. Queries that do not exist have an endless log_sum. A piece
// after q lies dy, after log_sum delta.
template <class T, int D, int N>
__device__ __forceinline__ void mma_grad_step_of_keys(float (&dk)[D / 8][4], float (&dv)[D / 8][4],
                                                      const uint32_t (&k)[D / Mma<T, D>::STEP][4],
                                                      const uint32_t (&v)[D / Mma<T, D>::STEP][4], const float* log_sum,
                                                      const T* q, const T* q_columns, int piece, float factor) {
    float s[N][4], dp[N][4];
    mma_zero(s);
    mma_zero(dp);
    mma_scores<T, D, N>(s, k, q);
    mma_scores<T, D, N>(dp, v, q + piece * Mma<T, D>::LD);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const Floats<2> logs = load<2>(log_sum + 8 * j), means = load<2>(log_sum + piece + 8 * j);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = probability_of(fmaf(s[j][i], factor, -logs.v[i % 2]));
            dp[j][i] = s[j][i] * (dp[j][i] - means.v[i % 2]);
        }
    }
    mma_add<D, N>(dv, s, q_columns + piece * Mma<T, D>::LD);
    mma_add<D, N>(dk, dp, q_columns);
}

// Writes the k and v parts of dqkv.
template <class T, int D> __device__ __forceinline__ void mma_grad_of_keys(T* dqkv, const float* delta, const T* dy,
                                                                           const T* qkv, const float* lse, int tokens,
                                                                           int queries, int heads, int groups,
                                                                           int rounds, int piece, float scale) {
    // Columns of tiles that are met at once, in eights: as many as registers allow.
    const int LD = Mma<T, D>::LD, N = D == 64 ? 2 : 4;
    DYNAMIC_SHARED(T, shared);
    T *q = shared, *dy_all = q + piece * LD;
    float *log_sum = (float*)(dy_all + piece * LD), *mean = log_sum + piece;
    const MmaPlace at = mma_place(heads, groups, rounds);
    const long long width = heads * D, stride = 3 * width;
    const int first = (at.image * heads + at.head) * queries;
    const T* base = qkv + at.image * tokens * stride + at.head * D;
    const T* dy_base = dy + at.image * queries * width + at.head * D;
    const T *q_lane = mma_rows<T, D>(q, at.lane), *q_columns = mma_columns<D>(q, at.lane);
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const int row = (at.tile + round * (int)(blockDim.x / WARP)) * 16 + at.g;
        const bool is_active = row - at.g < tokens;
        typename Mma<T, D>::Own k, v;
        float dk[D / 8][4], dv[D / 8][4];
        mma_zero(dk);
        mma_zero(dv);
        mma_own<T, D>(k, base + width, stride, row, tokens, at.t);
        mma_own<T, D>(v, base + 2 * width, stride, row, tokens, at.t);
#pragma unroll 1
        for (int q0 = 0; q0 < queries; q0 += piece) {
            const int n = min(piece, queries - q0), filled = round_up(n, 16);
            if (round == 0 || piece < queries) {
                __syncthreads();
                mma_fill<T, D>(q, base + q0 * stride, stride, n, filled);
                mma_fill<T, D>(dy_all, dy_base + q0 * width, width, n, filled);
                for (int i = threadIdx.x; i < filled; i += blockDim.x) {
                    log_sum[i] = i < n ? lse[first + q0 + i] * LOG2_E : -ATTENTION_NEVER;
                    mean[i] = i < n ? delta[first + q0 + i] : 0.0f;
                }
                mma_filled<T, D>(q, 2, piece, filled);
                __syncthreads();
            }
            if (!is_active) continue;
            int j = 0;
#pragma unroll 1
            for (; j + 8 * N <= filled; j += 8 * N) {
                mma_grad_step_of_keys<T, D, N>(dk, dv, k, v, log_sum + j + 2 * at.t, q_lane + j * LD,
                                               q_columns + j * LD, piece, scale * LOG2_E);
            }
            if (N > 2 && j < filled) {
                mma_grad_step_of_keys<T, D, 2>(dk, dv, k, v, log_sum + j + 2 * at.t, q_lane + j * LD,
                                               q_columns + j * LD, piece, scale * LOG2_E);
            }
        }
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int place = row + 8 * h;
            if (place >= tokens) continue;
            T* to = dqkv + (at.image * tokens + place) * stride + width + at.head * D;
            mma_write<D>(to, dk, h, scale, at.t);
            mma_write<D>(to + width, dv, h, 1.0f, at.t);
        }
    }
}

#define MMA_GRAD_OF_QUERIES(NAME, T, D, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) \
        NAME(T* dqkv, float* delta, const T* dy, const T* y, const T* qkv, const float* lse, int tokens, int queries, \
             int heads, int groups, int rounds, int piece, float scale) { \
        mma_grad_of_queries<T, D>(dqkv, delta, dy, y, qkv, lse, tokens, queries, heads, groups, rounds, piece, scale); \
    }
MMA_GRAD_OF_QUERIES(attention_mma_grad_of_queries_32_bf16, bf16, 32, 192, 2)
MMA_GRAD_OF_QUERIES(attention_mma_grad_of_queries_64_bf16, bf16, 64, 192, 2)
MMA_GRAD_OF_QUERIES(attention_mma_grad_of_queries_32_f32, float, 32, 192, 2)
MMA_GRAD_OF_QUERIES(attention_mma_grad_of_queries_64_f32, float, 64, 256, 1)

#define MMA_GRAD_OF_KEYS(NAME, T, D, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) \
        NAME(T* dqkv, const float* delta, const T* dy, const T* qkv, const float* lse, int tokens, int queries, \
             int heads, int groups, int rounds, int piece, float scale) { \
        mma_grad_of_keys<T, D>(dqkv, delta, dy, qkv, lse, tokens, queries, heads, groups, rounds, piece, scale); \
    }
MMA_GRAD_OF_KEYS(attention_mma_grad_of_keys_32_bf16, bf16, 32, 192, 2)
MMA_GRAD_OF_KEYS(attention_mma_grad_of_keys_64_bf16, bf16, 64, 192, 2)
MMA_GRAD_OF_KEYS(attention_mma_grad_of_keys_32_f32, float, 32, 192, 2)
MMA_GRAD_OF_KEYS(attention_mma_grad_of_keys_64_f32, float, 64, 256, 1)
