// Attention of one head on tensor cores, for head dimensions D of 32 and 64: parts of all kernels, and forward. T is
// bf16, or float for products of tf32.
//
// A warp owns tiles of 16 rows (queries, or keys for their own gradients), whose fragments it keeps in registers. The
// other side lies in shared memory with 16 bytes between rows, so that no bank is met twice: all of it where it fits,
// else piece by piece. A block takes `rounds` tiles a warp; blockIdx.x counts groups of tiles, heads, images, the first
// one fastest. Sums are f32; probabilities are rounded as factors of products.

template <class T, int D> struct Mma {
    // Values in 16 bytes, from a row to the next in shared memory, and in one step along head dimensions.
    static const int PART = 16 / sizeof(T), LD = D + PART, STEP = 2 * PART;
    // Fragments A of 16 rows.
    typedef uint32_t Own[D / STEP][4];
};

__device__ __forceinline__ void mma(bf16, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_bf16(d, a, b0, b1);
}
__device__ __forceinline__ void mma(float, float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    mma_tf32(d, a, b0, b1);
}

struct MmaPlace {
    int lane, g, t, head, image;
    // The first tile of this warp; the next is as many tiles away as there are warps.
    int tile;
};

__device__ __forceinline__ MmaPlace mma_place(int heads, int groups, int rounds) {
    MmaPlace at;
    at.lane = threadIdx.x % WARP;
    at.g = at.lane / 4;
    at.t = at.lane % 4;
    at.head = blockIdx.x / groups % heads;
    at.image = blockIdx.x / groups / heads;
    at.tile = blockIdx.x % groups * rounds * (blockDim.x / WARP) + threadIdx.x / WARP;
    return at;
}

// The block copies `rows` rows to shared memory, and zeros up to row `filled`. Call mma_filled with the same, then a
// barrier.
template <class T, int D>
__device__ __forceinline__ void mma_fill(T* to, const T* from, long long stride, int rows, int filled) {
    const int PARTS = D * sizeof(T) / 16, PART = Mma<T, D>::PART;
    const int step = blockDim.x / PARTS, column = threadIdx.x % PARTS * PART;
    for (int row = threadIdx.x / PARTS; row < filled; row += step) {
        copy16_async(to + row * Mma<T, D>::LD + column, from + min(row, rows - 1) * stride + column, row < rows);
    }
}

// Waits for what this thread copied to `arrays` arrays that lie one after the other, and rounds it.
template <class T, int D> __device__ __forceinline__ void mma_filled(T* first, int arrays, int piece, int filled) {
    wait_for_copies();
    if (sizeof(T) == 2) return;
    const int PARTS = D * sizeof(T) / 16, PART = Mma<T, D>::PART;
    const int step = blockDim.x / PARTS, column = threadIdx.x % PARTS * PART;
    for (int array = 0; array < arrays; array++) {
        for (int row = threadIdx.x / PARTS; row < filled; row += step) {
            Packed<uint32_t, 4>* at = (Packed<uint32_t, 4>*)(first + (array * piece + row) * Mma<T, D>::LD + column);
            Packed<uint32_t, 4> words = *at;
#pragma unroll
            for (int i = 0; i < 4; i++) words.v[i] = round_to_tf32(words.v[i]);
            *at = words;
        }
    }
}

// Fragments A of 16 rows from `row` - g on, zeros from row `rows` on. `from` is row 0.
template <class T, int D> __device__ __forceinline__ void mma_own(uint32_t (&words)[D / Mma<T, D>::STEP][4],
                                                                  const T* from, long long stride, int row, int rows,
                                                                  int t) {
    const int PART = Mma<T, D>::PART;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int at = row + 8 * (i % 2);
        const T* p = from + at * stride + PART / 4 * t + PART * (i / 2);
#pragma unroll
        for (int k = 0; k < D / Mma<T, D>::STEP; k++) {
            const uint32_t word = at < rows ? *(const uint32_t*)(p + Mma<T, D>::STEP * k) : 0u;
            words[k][i] = sizeof(T) == 4 ? round_to_tf32(word) : word;
        }
    }
}

// Where a lane begins to load the factor B of own·other^T, and of p·other.
template <class T, int D> __device__ __forceinline__ const T* mma_rows(const T* other, int lane) {
    return other + (lane / 16 * 8 + lane % 8) * Mma<T, D>::LD + lane / 8 % 2 * Mma<T, D>::PART;
}
template <int D> __device__ __forceinline__ const bf16* mma_columns(const bf16* other, int lane) {
    return other + (lane / 8 % 2 * 8 + lane % 8) * Mma<bf16, D>::LD + lane / 16 * 8;
}
template <int D> __device__ __forceinline__ const float* mma_columns(const float* other, int lane) {
    return other + lane % 4 * 2 * Mma<float, D>::LD + lane / 4;
}

template <int N> __device__ __forceinline__ void mma_zero(float (&s)[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[j][i] = 0;
    }
}

// s += own·other^T for 8 N rows of the other side, from mma_rows on.
template <class T, int D, int N>
__device__ __forceinline__ void mma_scores(float (&s)[N][4], const uint32_t (&own)[D / Mma<T, D>::STEP][4],
                                           const T* other) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
#pragma unroll
        for (int k = 0; k < D / Mma<T, D>::STEP; k++) {
            uint32_t b[4];
            load_matrices(b, (const bf16*)(other + 8 * j * Mma<T, D>::LD + Mma<T, D>::STEP * k));
            mma(T(), s[j], own[k], b[0], b[1]);
            mma(T(), s[j + 1], own[k], b[2], b[3]);
        }
    }
}

// o += p·other for 8 N rows of the other side, from mma_columns on. Two [16, 8] tiles of p are one factor A of bf16;
// one is a factor of tf32, whose columns, and so the rows of B, are taken in the order in which lanes hold them.
template <int D, int N>
__device__ __forceinline__ void mma_add(float (&o)[D / 8][4], const float (&p)[N][4], const bf16* other) {
#pragma unroll
    for (int j = 0; j < N; j += 2) {
        const uint32_t a[4] = {pack_bf16(p[j][0], p[j][1]), pack_bf16(p[j][2], p[j][3]),
                               pack_bf16(p[j + 1][0], p[j + 1][1]), pack_bf16(p[j + 1][2], p[j + 1][3])};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[4];
            load_matrices_transposed(b, other + 8 * j * Mma<bf16, D>::LD + 16 * k);
            mma_bf16(o[2 * k], a, b[0], b[1]);
            mma_bf16(o[2 * k + 1], a, b[2], b[3]);
        }
    }
}
template <int D, int N>
__device__ __forceinline__ void mma_add(float (&o)[D / 8][4], const float (&p)[N][4], const float* other) {
#pragma unroll
    for (int j = 0; j < N; j++) {
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) a[i] = round_to_tf32(float_to_bits(p[j][i % 2 * 2 + i / 2]));
        const float* b = other + 8 * j * Mma<float, D>::LD;
#pragma unroll
        for (int k = 0; k < D / 8; k++) {
            mma_tf32(o[k], a, float_to_bits(b[8 * k]), float_to_bits(b[8 * k + Mma<float, D>::LD]));
        }
    }
}

// Writes half h of a tile: row g + 8h, times factor. `to` is the row.
template <int D, class T>
__device__ __forceinline__ void mma_write(T* to, const float (&o)[D / 8][4], int h, float factor, int t) {
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        store(to + 8 * j + 2 * t, Floats<2>{{o[j][2 * h] * factor, o[j][2 * h + 1] * factor}});
    }
}

// Over the four lanes of a row.
__device__ __forceinline__ float mma_row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
__device__ __forceinline__ float mma_row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

// Columns of a tile of scores from `valid` on never happen.
template <int N> __device__ __forceinline__ void mma_mask(float (&s)[N][4], int valid, int t) {
    if (valid >= 8 * N) return;
#pragma unroll
    for (int j = 0; j < N; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (8 * j + 2 * t + i % 2 >= valid) s[j][i] = ATTENTION_NEVER;
        }
    }
}

// Meets the next 8 N keys, of which `valid` exist.
template <class T, int D, int N>
__device__ __forceinline__ void mma_forward_step(float (&o)[D / 8][4], float (&top)[2], float (&sum)[2],
                                                 const uint32_t (&q)[D / Mma<T, D>::STEP][4], const T* k, const T* v,
                                                 int valid, int t, float factor) {
    float s[N][4];
    mma_zero(s);
    mma_scores<T, D, N>(s, q, k);
    mma_mask(s, valid, t);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float highest = top[h];
#pragma unroll
        for (int j = 0; j < N; j++) highest = fmaxf(highest, fmaxf(s[j][2 * h], s[j][2 * h + 1]));
        highest = mma_row_max(highest);
        const float shrink = exp2_approx((top[h] - highest) * factor);
        top[h] = highest;
        sum[h] *= shrink;
#pragma unroll
        for (int j = 0; j < N; j++) {
#pragma unroll
            for (int i = 2 * h; i < 2 * h + 2; i++) {
                s[j][i] = exp2_approx((s[j][i] - highest) * factor);
                sum[h] += s[j][i];
            }
        }
#pragma unroll
        for (int j = 0; j < D / 8; j++) {
            o[j][2 * h] *= shrink;
            o[j][2 * h + 1] *= shrink;
        }
    }
    mma_add<D, N>(o, s, v);
}

// Columns of tiles that are met at once, in eights: as many as registers allow.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ / 100 == 10
const int MMA_COLUMNS = 6;
#else
const int MMA_COLUMNS = 8;
#endif

template <class T, int D> __device__ __forceinline__ void mma_forward(T* y, float* lse, const T* qkv, int tokens,
                                                                      int queries, int heads, int groups, int rounds,
                                                                      int piece, float scale) {
    const int LD = Mma<T, D>::LD, N = sizeof(T) == 2 ? MMA_COLUMNS : 4;
    DYNAMIC_SHARED(T, shared);
    T *k = shared, *v = k + piece * LD;
    const MmaPlace at = mma_place(heads, groups, rounds);
    const long long width = heads * D, stride = 3 * width;
    const T* base = qkv + at.image * tokens * stride + at.head * D;
    const T *k_lane = mma_rows<T, D>(k, at.lane), *v_lane = mma_columns<D>(v, at.lane);
    const float factor = scale * LOG2_E;
#pragma unroll 1
    for (int round = 0; round < rounds; round++) {
        const int row = (at.tile + round * (int)(blockDim.x / WARP)) * 16 + at.g;
        const bool is_active = row - at.g < queries;
        typename Mma<T, D>::Own q;
        float o[D / 8][4], top[2] = {ATTENTION_NEVER, ATTENTION_NEVER}, sum[2] = {0, 0};
        mma_zero(o);
        mma_own<T, D>(q, base, stride, row, queries, at.t);
#pragma unroll 1
        for (int k0 = 0; k0 < tokens; k0 += piece) {
            const int n = min(piece, tokens - k0), filled = round_up(n, 16);
            if (round == 0 || piece < tokens) {
                __syncthreads();
                mma_fill<T, D>(k, base + width + k0 * stride, stride, n, filled);
                mma_fill<T, D>(v, base + 2 * width + k0 * stride, stride, n, filled);
                mma_filled<T, D>(k, 2, piece, filled);
                __syncthreads();
            }
            if (!is_active) continue;
            int j = 0;
#pragma unroll 1
            for (; j + 8 * N <= filled; j += 8 * N) {
                mma_forward_step<T, D, N>(o, top, sum, q, k_lane + j * LD, v_lane + j * LD, n - j, at.t, factor);
            }
#pragma unroll 1
            for (; j < filled; j += 16) {
                mma_forward_step<T, D, 2>(o, top, sum, q, k_lane + j * LD, v_lane + j * LD, n - j, at.t, factor);
            }
        }
        if (!is_active) continue;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const float total = mma_row_sum(sum[h]);
            const int place = row + 8 * h;
            if (place >= queries) continue;
            if (at.t == 0) lse[(at.image * heads + at.head) * queries + place] = top[h] * scale + logf(total);
            mma_write<D>(y + (at.image * queries + place) * width + at.head * D, o, h, 1.0f / total, at.t);
        }
    }
}

// Two blocks of bf16 share a multiprocessor, and so its registers; one of tf32 takes all of the shared memory.
#define MMA_FORWARD(NAME, T, D, ...) \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) \
        NAME(T* y, float* lse, const T* qkv, int tokens, int queries, int heads, int groups, int rounds, int piece, \
             float scale) { \
        mma_forward<T, D>(y, lse, qkv, tokens, queries, heads, groups, rounds, piece, scale); \
    }
MMA_FORWARD(attention_mma_32_bf16, bf16, 32, 192, 2)
MMA_FORWARD(attention_mma_64_bf16, bf16, 64, 192, 2)
MMA_FORWARD(attention_mma_32_f32, float, 32, 192, 2)
MMA_FORWARD(attention_mma_64_f32, float, 64, 384, 1)
