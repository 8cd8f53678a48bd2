// Derivative of attention along dqkv on tensor cores: see attention_tangent.cu for the formulas, attention_mma.cu for
// how a block works.

// What a warp sums for its 16 queries.
template <int D> struct MmaTangent {
    float o[D / 8][4], d_o[D / 8][4];
    // Highest score, sum of p, and of its product with s' before the scale. The mean of s' so far is taken off in d_o.
    float top[2], sum[2], dsum[2];
};

// Meets the next 8 N keys, of which `valid` exist. Derivatives lie `gap` values after k and v.
template <class T, int D, int N>
__device__ __forceinline__ void mma_tangent_step(MmaTangent<D>& own, const uint32_t (&q)[D / Mma<T, D>::STEP][4],
                                                 const uint32_t (&dq)[D / Mma<T, D>::STEP][4], const T* k, const T* v,
                                                 int gap, int valid, int t, float scale) {
    const float factor = scale * LOG2_E;
    float s[N][4], ds[N][4];
    mma_zero(s);
    mma_zero(ds);
    mma_scores<T, D, N>(ds, q, k + gap);
#pragma unroll
    for (int j = 0; j < N; j += 2) {
#pragma unroll
        for (int i = 0; i < D / Mma<T, D>::STEP; i++) {
            uint32_t b[4];
            load_matrices(b, (const bf16*)(k + 8 * j * Mma<T, D>::LD + Mma<T, D>::STEP * i));
            mma(T(), s[j], q[i], b[0], b[1]);
            mma(T(), s[j + 1], q[i], b[2], b[3]);
            mma(T(), ds[j], dq[i], b[0], b[1]);
            mma(T(), ds[j + 1], dq[i], b[2], b[3]);
        }
    }
    mma_mask(s, valid, t);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float highest = own.top[h];
#pragma unroll
        for (int j = 0; j < N; j++) highest = fmaxf(highest, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        highest = mma_row_max(highest);
        const float shrink = exp2_approx((own.top[h] - highest) * factor);
        own.top[h] = highest;
        const float mean_before = own.dsum[h] * reciprocal_approx(own.sum[h]);
        float sum = 0, dsum = 0;
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) {
                s[j][i] = exp2_approx((s[j][i] - highest) * factor);
                sum += s[j][i];
                dsum = fmaf(s[j][i], ds[j][i], dsum);
            }
        }
        own.sum[h] = fmaf(own.sum[h], shrink, mma_row_sum(sum));
        own.dsum[h] = fmaf(own.dsum[h], shrink, mma_row_sum(dsum));
        const float mean = own.dsum[h] * reciprocal_approx(own.sum[h]), more = (mean_before - mean) * scale;
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) ds[j][i] = s[j][i] * (ds[j][i] - mean) * scale;
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) {
                own.o[j][i] *= shrink;
                own.d_o[j][i] = fmaf(own.d_o[j][i], shrink, own.o[j][i] * more);
            }
        }
    }
    mma_add<D, N>(own.o, s, v);
    mma_add<D, N>(own.d_o, ds, v);
    mma_add<D, N>(own.d_o, s, v + gap);
}

template <class T, int D> __device__ __forceinline__ void mma_tangent(T* y, T* dy, const T* qkv, const T* dqkv,
                                                                      int tokens, int queries, int heads, int groups,
                                                                      int rounds, int piece, float scale) {
    // Columns of tiles that are met at once, in eights: as many as registers allow.
    const int LD = Mma<T, D>::LD, N = D == 64 ? 2 : 4;
    DYNAMIC_SHARED(T, shared);
    const int gap = piece * LD;
    T *k = shared, *v = k + 2 * gap;
    const MmaPlace at = mma_place(heads, groups, rounds);
    const long long width = heads * D, stride = 3 * width;
    const long long first = at.image * tokens * stride + at.head * D;
    const T *k_lane = mma_rows<T, D>(k, at.lane), *v_lane = mma_columns<D>(v, at.lane);
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const int row = (at.tile + round * (int)(blockDim.x / WARP)) * 16 + at.g;
        const bool is_active = row - at.g < queries;
        typename Mma<T, D>::Own q, dq;
        MmaTangent<D> own;
        mma_zero(own.o);
        mma_zero(own.d_o);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            own.top[h] = ATTENTION_NEVER;
            // Any sum but 0: the first step shrinks it to nothing.
            own.sum[h] = 1;
            own.dsum[h] = 0;
        }
        mma_own<T, D>(q, qkv + first, stride, row, queries, at.t);
        mma_own<T, D>(dq, dqkv + first, stride, row, queries, at.t);
#pragma unroll 1
        for (int k0 = 0; k0 < tokens; k0 += piece) {
            const int n = min(piece, tokens - k0), filled = round_up(n, 16);
            if (round == 0 || piece < tokens) {
                __syncthreads();
                const long long place = first + width + k0 * stride;
                mma_fill<T, D>(k, qkv + place, stride, n, filled);
                mma_fill<T, D>(k + gap, dqkv + place, stride, n, filled);
                mma_fill<T, D>(v, qkv + place + width, stride, n, filled);
                mma_fill<T, D>(v + gap, dqkv + place + width, stride, n, filled);
                mma_filled<T, D>(k, 4, piece, filled);
                __syncthreads();
            }
            if (!is_active) continue;
            int j = 0;
#pragma unroll 1
            for (; j + 8 * N <= filled; j += 8 * N) {
                mma_tangent_step<T, D, N>(own, q, dq, k_lane + j * LD, v_lane + j * LD, gap, n - j, at.t, scale);
            }
            if (N > 2 && j < filled) {
                mma_tangent_step<T, D, 2>(own, q, dq, k_lane + j * LD, v_lane + j * LD, gap, n - j, at.t, scale);
            }
        }
        if (!is_active) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float inverse = 1.0f / own.sum[h];
            const int place = row + 8 * h;
            if (place >= queries) continue;
            const long long to = (at.image * queries + place) * width + at.head * D;
            mma_write<D>(y + to, own.o, h, inverse, at.t);
            mma_write<D>(dy + to, own.d_o, h, inverse, at.t);
        }
    }
}

#define MMA_TANGENT(NAME, T, D, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) \
        NAME(T* y, T* dy, const T* qkv, const T* dqkv, int tokens, int queries, int heads, int groups, int rounds, \
             int piece, float scale) { \
        mma_tangent<T, D>(y, dy, qkv, dqkv, tokens, queries, heads, groups, rounds, piece, scale); \
    }
MMA_TANGENT(attention_mma_tangent_32_bf16, bf16, 32, 384, 1)
MMA_TANGENT(attention_mma_tangent_64_bf16, bf16, 64, 384, 1)
MMA_TANGENT(attention_mma_tangent_32_f32, float, 32, 384, 1)
MMA_TANGENT(attention_mma_tangent_64_f32, float, 64, 256, 1)
