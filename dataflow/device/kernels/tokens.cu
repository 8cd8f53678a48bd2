// Rows of tokens: gathering visible patches, CLS token and positions, and the decoder's unshuffle, with gradients.
// B images of L patches, of which n are visible; D columns. kept [B, n] names the visible patches in the order of their
// tokens, rank [B, L] the place of each patch in the order of all, so that patches of rank < n are visible.

struct Place {
    int64_t row;
    int column;
};

// i as row and column, by a division of 32 bits where these hold i.
__device__ __forceinline__ Place place_of(int64_t i, int columns) {
    if (i <= 0xffffffffll) {
        const uint32_t row = (uint32_t)i / (uint32_t)columns;
        return {row, (int)((uint32_t)i - row * (uint32_t)columns)};
    }
    const int64_t row = i / columns;
    return {row, (int)(i - row * columns)};
}

template <int N, class T> __device__ __forceinline__ void copy_values(T* to, const T* from) {
    *(Packed<T, N>*)to = *(const Packed<T, N>*)from;
}

template <int N> __device__ __forceinline__ Floats<N> plus(const Floats<N>& a, const Floats<N>& b) {
    return each<N>([](float x, float y) { return x + y; }, a, b);
}

// out[row] = x[the row of patch kept[row] of its image], N values at once.
template <int N, class T>
__device__ __forceinline__ void gather_rows(T* out, const T* x, const uint32_t* kept, int64_t len, int columns,
                                            int num_patches, int num_visible) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, columns);
        const int64_t image = place_of(to.row, num_visible).row;
        copy_values<N>(out + i, x + (image * num_patches + kept[to.row]) * columns + to.column);
    }
}

// out = the first row of each group of `period` rows of x, or all the others.
template <int N, class T>
__device__ __forceinline__ void pick_rows(T* out, const T* x, int64_t len, int columns, int period, int first) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, columns);
        int64_t row = to.row * period;
        if (!first) {
            const Place place = place_of(to.row, period - 1);
            row = place.row * period + 1 + place.column;
        }
        copy_values<N>(out + i, x + row * columns + to.column);
    }
}

// dx [len] = dy in the rows that were picked, else zero.
template <int N, class T>
__device__ __forceinline__ void pick_rows_grad(T* dx, const T* dy, int64_t len, int columns, int period, int first) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, columns);
        const Place place = place_of(to.row, period);
        if ((place.column == 0) == (first != 0)) {
            const int64_t row = first ? place.row : place.row * (period - 1) + place.column - 1;
            copy_values<N>(dx + i, dy + row * columns + to.column);
        } else {
            *(Packed<T, N>*)(dx + i) = {};
        }
    }
}

// out [B(1+n), D] = cls + pos[0], then each embedded patch + its position.
template <int N, class T>
__device__ __forceinline__ void assemble_tokens(float* out, const T* embedded, const float* cls, const float* pos,
                                                const uint32_t* kept, int64_t len, int columns, int num_visible) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, columns);
        const Place token = place_of(to.row, 1 + num_visible);
        const int64_t row = token.row * num_visible + token.column - 1;
        const int64_t patch = token.column > 0 && kept ? 1 + (int)kept[row] : token.column;
        Floats<N> x;
        if (patch == 0) x = load<N>(cls + to.column);
        else x = load<N>(embedded + row * columns + to.column);
        store(out + i, plus(x, load<N>(pos + patch * columns + to.column)));
    }
}

// out [B(1+L), D] = the CLS token, then at each patch its token where it is visible, else the mask token; all + pos.
template <int N, class T>
__device__ __forceinline__ void unshuffle(float* out, const T* x, const uint32_t* rank, const float* mask_token,
                                          const float* pos, int64_t len, int columns, int num_patches,
                                          int num_visible) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, columns);
        const Place place = place_of(to.row, 1 + num_patches);
        const int token = place.column == 0 ? 0 : 1 + (int)rank[place.row * num_patches + place.column - 1];
        Floats<N> value;
        if (token > num_visible) value = load<N>(mask_token + to.column);
        else value = load<N>(x + (place.row * (1 + num_visible) + token) * columns + to.column);
        store(out + i, plus(value, load<N>(pos + (int64_t)place.column * columns + to.column)));
    }
}

// ---- Sums over images ----
// A block sums SUM_COLUMNS columns, four neighbours a lane. Warp w adds images w, w + 8, … in order, of which
// SUM_AHEAD are on their way from memory at a time; then the sums of the warps are added in order.

const int SUM_WARPS = 8;
const int SUM_AHEAD = 4;
const int SUM_COLUMNS = 4 * WARP;

// Four columns of a row from `column` on; those behind its end are 0.
template <bool IS_WIDE, class T>
__device__ __forceinline__ Floats<4> load_columns(const T* row, int64_t column, int64_t columns) {
    if constexpr (IS_WIDE) {
        return load<4>(row + column);
    } else {
        Floats<4> x;
#pragma unroll
        for (int v = 0; v < 4; v++) x.v[v] = column + v < columns ? to_float(row[column + v]) : 0;
        return x;
    }
}

template <bool IS_WIDE, class T>
__device__ __forceinline__ void store_columns(T* row, int64_t column, int64_t columns, const Floats<4>& x) {
    if constexpr (IS_WIDE) {
        store(row + column, x);
    } else {
#pragma unroll
        for (int v = 0; v < 4; v++) {
            if (column + v < columns) row[column + v] = from_float<T>(x.v[v]);
        }
    }
}

// The sum of the block's warps: thread i < SUM_COLUMNS gets that of column i.
__device__ __forceinline__ float sum_of_warps(const Floats<4>& sum) {
    __shared__ float of_warp[SUM_WARPS][SUM_COLUMNS];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();
#pragma unroll
    for (int v = 0; v < 4; v++) of_warp[warp][lane * 4 + v] = sum.v[v];
    __syncthreads();
    float total = 0;
    if (threadIdx.x < SUM_COLUMNS) {
        for (int w = 0; w < SUM_WARPS; w++) total += of_warp[w][threadIdx.x];
    }
    return total;
}

// Block (place of the token, columns). dembedded = the cotangents of the tokens but CLS. Those of one place, summed
// over the images that show it, are dpos, and dcls.
template <bool IS_WIDE, class T>
__device__ __forceinline__ void assemble_tokens_grad(T* dembedded, float* dcls, float* dpos, const float* dx,
                                                     const uint32_t* rank, int batch, int columns, int num_patches,
                                                     int num_visible) {
    const Place block = place_of(blockIdx.x, div_up(columns, SUM_COLUMNS));
    const int place = (int)block.row, tile = block.column * SUM_COLUMNS;
    const int warp = threadIdx.x / WARP, column = tile + threadIdx.x % WARP * 4;
    Floats<4> sum = {};
    for (int first = warp; first < batch && column < columns; first += SUM_WARPS * SUM_AHEAD) {
        int token[SUM_AHEAD];
        Floats<4> d[SUM_AHEAD];
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            const int image = first + a * SUM_WARPS;
            token[a] = place;
            if (image >= batch) {
                token[a] = 1 + num_visible;
            } else if (place > 0 && rank) {
                token[a] = 1 + (int)rank[(int64_t)image * num_patches + place - 1];
            }
        }
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            if (token[a] > num_visible) continue;
            const int64_t row = (int64_t)(first + a * SUM_WARPS) * (1 + num_visible) + token[a];
            d[a] = load_columns<IS_WIDE>(dx + row * columns, column, columns);
        }
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            if (token[a] > num_visible) continue;
            sum = plus(sum, d[a]);
            const int64_t row = (int64_t)(first + a * SUM_WARPS) * num_visible + token[a] - 1;
            if (token[a] > 0) store_columns<IS_WIDE>(dembedded + row * columns, column, columns, d[a]);
        }
    }
    const float total = sum_of_warps(sum);
    const int mine = tile + threadIdx.x;
    if (threadIdx.x >= SUM_COLUMNS || mine >= columns) return;
    dpos[(int64_t)place * columns + mine] = total;
    if (place == 0) dcls[mine] = total;
}

// Block (place of the token, columns). dx = the cotangents where a token was visible. Those of one place, summed over
// all images, are dpos; summed over the images that mask it, a row of dmasked [L, D].
template <bool IS_WIDE, class T>
__device__ __forceinline__ void unshuffle_grad(T* dx, float* dmasked, float* dpos, const float* dy,
                                               const uint32_t* rank, int batch, int columns, int num_patches,
                                               int num_visible) {
    const Place block = place_of(blockIdx.x, div_up(columns, SUM_COLUMNS));
    const int place = (int)block.row, tile = block.column * SUM_COLUMNS;
    const int warp = threadIdx.x / WARP, column = tile + threadIdx.x % WARP * 4;
    Floats<4> shown = {}, masked = {};
    for (int first = warp; first < batch && column < columns; first += SUM_WARPS * SUM_AHEAD) {
        int token[SUM_AHEAD];
        Floats<4> d[SUM_AHEAD];
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            const int64_t image = first + a * SUM_WARPS;
            if (image >= batch) continue;
            token[a] = place == 0 ? 0 : 1 + (int)rank[image * num_patches + place - 1];
            d[a] = load_columns<IS_WIDE>(dy + (image * (1 + num_patches) + place) * columns, column, columns);
        }
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            const int64_t image = first + a * SUM_WARPS;
            if (image >= batch) continue;
            if (token[a] > num_visible) {
                masked = plus(masked, d[a]);
                continue;
            }
            shown = plus(shown, d[a]);
            store_columns<IS_WIDE>(dx + (image * (1 + num_visible) + token[a]) * columns, column, columns, d[a]);
        }
    }
    const float total_shown = sum_of_warps(shown), total_masked = sum_of_warps(masked);
    const int mine = tile + threadIdx.x;
    if (threadIdx.x >= SUM_COLUMNS || mine >= columns) return;
    dpos[(int64_t)place * columns + mine] = total_shown + total_masked;
    if (place > 0) dmasked[(int64_t)(place - 1) * columns + mine] = total_masked;
}

// Of each group of `rows` rows of x, `stride` apart: the sum, added to out or not, or the mean. Block (group, columns).
enum { SUM_SET, SUM_ADD, SUM_MEAN };
template <bool IS_WIDE>
__device__ __forceinline__ void sum_rows_of(float* out, const float* x, int rows, int64_t stride, int64_t columns,
                                            int mode) {
    const int64_t tiles = div_up<int64_t>(columns, SUM_COLUMNS);
    const int64_t group = blockIdx.x / tiles, tile = (blockIdx.x - group * tiles) * SUM_COLUMNS;
    const int warp = threadIdx.x / WARP;
    const int64_t column = tile + threadIdx.x % WARP * 4;
    Floats<4> sum = {};
    for (int first = warp; first < rows && column < columns; first += SUM_WARPS * SUM_AHEAD) {
        Floats<4> d[SUM_AHEAD];
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            const int row = first + a * SUM_WARPS;
            if (row < rows) d[a] = load_columns<IS_WIDE>(x + (group * rows + row) * stride, column, columns);
        }
#pragma unroll
        for (int a = 0; a < SUM_AHEAD; a++) {
            if (first + a * SUM_WARPS < rows) sum = plus(sum, d[a]);
        }
    }
    const float total = sum_of_warps(sum);
    if (threadIdx.x >= SUM_COLUMNS || tile + threadIdx.x >= columns) return;
    float* to = out + group * columns + tile + threadIdx.x;
    *to = mode == SUM_ADD ? *to + total : mode == SUM_MEAN ? total / rows : total;
}

KERNEL(256) sum_rows(float* out, const float* x, int rows, int64_t stride, int64_t columns, int mode) {
    const bool is_wide = columns % 4 == 0 && stride % 4 == 0 && are_aligned<4>(x);
    if (is_wide) sum_rows_of<true>(out, x, rows, stride, columns, mode);
    else sum_rows_of<false>(out, x, rows, stride, columns, mode);
}

#define TOKENS(NAME, T)                                                                                               \
    KERNEL(256) gather_rows_##NAME(T* out, const T* x, const uint32_t* kept, int64_t len, int columns,                \
                                   int num_patches, int num_visible) {                                                \
        const int N = 16 / sizeof(T);                                                                                 \
        const bool is_wide = columns % N == 0 && are_aligned<N>(out, x);                                              \
        if (is_wide) gather_rows<N>(out, x, kept, len, columns, num_patches, num_visible);                            \
        else gather_rows<1>(out, x, kept, len, columns, num_patches, num_visible);                                    \
    }                                                                                                                 \
    KERNEL(256) pick_rows_##NAME(T* out, const T* x, int64_t len, int columns, int period, int first) {               \
        const int N = 16 / sizeof(T);                                                                                 \
        const bool is_wide = columns % N == 0 && are_aligned<N>(out, x);                                              \
        if (is_wide) pick_rows<N>(out, x, len, columns, period, first);                                               \
        else pick_rows<1>(out, x, len, columns, period, first);                                                       \
    }                                                                                                                 \
    KERNEL(256) pick_rows_grad_##NAME(T* dx, const T* dy, int64_t len, int columns, int period, int first) {          \
        const int N = 16 / sizeof(T);                                                                                 \
        const bool is_wide = columns % N == 0 && are_aligned<N>(dx, dy);                                              \
        if (is_wide) pick_rows_grad<N>(dx, dy, len, columns, period, first);                                          \
        else pick_rows_grad<1>(dx, dy, len, columns, period, first);                                                  \
    }                                                                                                                 \
    KERNEL(256) assemble_tokens_##NAME(float* out, const T* embedded, const float* cls, const float* pos,             \
                                       const uint32_t* kept, int64_t len, int columns, int num_visible) {             \
        const bool is_wide = columns % 4 == 0 && are_aligned<4>(out, embedded, cls, pos);                             \
        if (is_wide) assemble_tokens<4>(out, embedded, cls, pos, kept, len, columns, num_visible);                    \
        else assemble_tokens<1>(out, embedded, cls, pos, kept, len, columns, num_visible);                            \
    }                                                                                                                 \
    KERNEL(256) assemble_tokens_grad_##NAME(T* dembedded, float* dcls, float* dpos, const float* dx,                  \
                                            const uint32_t* rank, int batch, int columns, int num_patches,            \
                                            int num_visible) {                                                        \
        const bool is_wide = columns % 4 == 0 && are_aligned<4>(dembedded, dx);                                       \
        if (is_wide)                                                                                                  \
            assemble_tokens_grad<true>(dembedded, dcls, dpos, dx, rank, batch, columns, num_patches, num_visible);    \
        else assemble_tokens_grad<false>(dembedded, dcls, dpos, dx, rank, batch, columns, num_patches, num_visible);  \
    }                                                                                                                 \
    KERNEL(256) unshuffle_##NAME(float* out, const T* x, const uint32_t* rank, const float* mask_token,               \
                                 const float* pos, int64_t len, int columns, int num_patches, int num_visible) {      \
        const bool is_wide = columns % 4 == 0 && are_aligned<4>(out, x, mask_token, pos);                             \
        if (is_wide) unshuffle<4>(out, x, rank, mask_token, pos, len, columns, num_patches, num_visible);             \
        else unshuffle<1>(out, x, rank, mask_token, pos, len, columns, num_patches, num_visible);                     \
    }                                                                                                                 \
    KERNEL(256) unshuffle_grad_##NAME(T* dx, float* dmasked, float* dpos, const float* dy, const uint32_t* rank,      \
                                      int batch, int columns, int num_patches, int num_visible) {                     \
        const bool is_wide = columns % 4 == 0 && are_aligned<4>(dx, dy);                                              \
        if (is_wide) unshuffle_grad<true>(dx, dmasked, dpos, dy, rank, batch, columns, num_patches, num_visible);     \
        else unshuffle_grad<false>(dx, dmasked, dpos, dy, rank, batch, columns, num_patches, num_visible);            \
    }
TOKENS(f32, float)
TOKENS(bf16, bf16)
