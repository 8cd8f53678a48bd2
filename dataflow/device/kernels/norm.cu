// Layer norm over the rows of x [rows, width], its gradient and its tangent. stats [rows, 2] holds mean and
// 1 / sqrt(variance + eps), with the biased variance, computed after the mean in a second pass.

const int NORM_WARPS = 4;   // rows of a block where a warp has a row
const int NORM_CHUNKS = 8;  // runs of 4 values that a lane holds of a row: rows of up to 1,024 values stay in registers
const int NORM_FEW = 4;     // the same for short rows, where instructions for absent values would take the time

// One row of y = norm(x) gamma + beta, or with ADD of sum = x + delta, y = norm(sum) gamma + beta.
template <class T> struct NormRow {
    float* sum;
    T* y;
    float* stats;
    const float* x;
    const T* delta;
    const float *gamma, *beta;
    int width;
    float eps;
};

// A row by a warp, held in registers: a lane has the 4 values from 128 k + 4 lane on, for each k.
template <int CHUNKS, bool ADD, class T> __device__ __forceinline__ void layer_norm_held(const NormRow<T>& r) {
    const int first = threadIdx.x % WARP * 4;
    Floats<4> held[CHUNKS], more[CHUNKS];
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const int c = 4 * WARP * k + first;
        held[k] = load_if<4>(c < r.width, r.x + c);
        if (ADD) more[k] = load_if<4>(c < r.width, r.delta + c);
    }
    float total = 0;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const int c = 4 * WARP * k + first;
        if (ADD) {
#pragma unroll
            for (int i = 0; i < 4; i++) held[k].v[i] += more[k].v[i];
            if (c < r.width) store(r.sum + c, held[k]);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) total += held[k].v[i];
    }
    const float share = reciprocal_approx(r.width), mean = warp_sum(total) * share;
    float squares = 0;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        if (4 * WARP * k + first >= r.width) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            held[k].v[i] -= mean;
            squares += held[k].v[i] * held[k].v[i];
        }
    }
    const float scale = rsqrtf(warp_sum(squares) * share + r.eps);
    if (first == 0) r.stats[0] = mean, r.stats[1] = scale;
#pragma unroll
    for (int k = 0; k < CHUNKS; k++) {
        const int c = 4 * WARP * k + first;
        if (c >= r.width) continue;
        const Floats<4> g = load<4>(r.gamma + c), b = load<4>(r.beta + c);
        Floats<4> out;
#pragma unroll
        for (int i = 0; i < 4; i++) out.v[i] = held[k].v[i] * scale * g.v[i] + b.v[i];
        store(r.y + c, out);
    }
}

// A row of any width by a warp, N values of a lane at a time, read three times.
template <int N, bool ADD, class T> __device__ __forceinline__ void layer_norm_long(const NormRow<T>& r) {
    const int first = threadIdx.x % WARP * N, step = WARP * N;
    float total = 0;
#pragma unroll 2
    for (int c = first; c < r.width; c += step) {
        Floats<N> at = load<N>(r.x + c);
        if (ADD) {
            const Floats<N> more = load<N>(r.delta + c);
#pragma unroll
            for (int i = 0; i < N; i++) at.v[i] += more.v[i];
            store(r.sum + c, at);
        }
#pragma unroll
        for (int i = 0; i < N; i++) total += at.v[i];
    }
    const float* x = ADD ? r.sum : r.x;
    const float share = reciprocal_approx(r.width), mean = warp_sum(total) * share;
    float squares = 0;
#pragma unroll 2
    for (int c = first; c < r.width; c += step) {
        const Floats<N> at = load<N>(x + c);
#pragma unroll
        for (int i = 0; i < N; i++) squares += (at.v[i] - mean) * (at.v[i] - mean);
    }
    const float scale = rsqrtf(warp_sum(squares) * share + r.eps);
    if (first == 0) r.stats[0] = mean, r.stats[1] = scale;
#pragma unroll 2
    for (int c = first; c < r.width; c += step) {
        const Floats<N> at = load<N>(x + c), g = load<N>(r.gamma + c), b = load<N>(r.beta + c);
        Floats<N> out;
#pragma unroll
        for (int i = 0; i < N; i++) out.v[i] = (at.v[i] - mean) * scale * g.v[i] + b.v[i];
        store(r.y + c, out);
    }
}

// The row of this warp, where `r` begins as the first of `rows`.
template <bool ADD, class T> __device__ __forceinline__ void layer_norm_row(NormRow<T> r, int64_t rows) {
    const int64_t row = (int64_t)blockIdx.x * NORM_WARPS + threadIdx.x / WARP, from = row * r.width;
    if (row >= rows) return;
    r.stats += 2 * row, r.x += from, r.y += from;
    if (ADD) r.sum += from, r.delta += from;
    if (r.width % 4 != 0 || !are_aligned<4>(r.sum, r.y, r.x, r.delta, r.gamma, r.beta)) {
        layer_norm_long<1, ADD>(r);
    } else if (r.width > NORM_CHUNKS * 4 * WARP) {
        layer_norm_long<4, ADD>(r);
    } else if (r.width > NORM_FEW * 4 * WARP) {
        layer_norm_held<NORM_CHUNKS, ADD>(r);
    } else {
        layer_norm_held<NORM_FEW, ADD>(r);
    }
}

#define LAYER_NORM(NAME, T)                                                                                      \
    KERNEL(128) NAME(T* y, float* stats, const float* x, const float* gamma, const float* beta,                  \
                     int64_t rows, int width, float eps) {                                                       \
        layer_norm_row<false, T>({nullptr, y, stats, x, nullptr, gamma, beta, width, eps}, rows);                \
    }
LAYER_NORM(layer_norm_f32, float)
LAYER_NORM(layer_norm_bf16, bf16)

#define ADD_LAYER_NORM(NAME, T)                                                                                  \
    KERNEL(128) NAME(float* sum, T* y, float* stats, const float* x, const T* delta,                             \
                     const float* gamma, const float* beta, int64_t rows, int width, float eps) {                \
        layer_norm_row<true, T>({sum, y, stats, x, delta, gamma, beta, width, eps}, rows);                       \
    }
ADD_LAYER_NORM(add_layer_norm_f32, float)
ADD_LAYER_NORM(add_layer_norm_bf16, bf16)

// ---- Gradient ----

const int NORM_GRAD_THREADS = 512;  // at most; with 4 columns each, rows of up to 2,048 values stay in registers

// The sums of two values over the block. `round` counts the calls: one barrier a call does, as two tables take turns.
__device__ __forceinline__ void block_sums(float& a, float& b, int round) {
    __shared__ float of_warp[2][NORM_GRAD_THREADS / WARP][2];
    a = warp_sum(a), b = warp_sum(b);
    const int warps = blockDim.x / WARP;
    if (warps == 1) return;
    float(*table)[2] = of_warp[round % 2];
    if (threadIdx.x % WARP == 0) table[threadIdx.x / WARP][0] = a, table[threadIdx.x / WARP][1] = b;
    __syncthreads();
    a = table[0][0], b = table[0][1];
    for (int w = 1; w < warps; w++) a += table[w][0], b += table[w][1];
}

// dx = add + scale (g - mean(g) - n mean(g n)) with g = dy gamma and n = norm(x); low = dx in bf16. partial [2, width]:
// the sums over the block's rows of dy n, then of dy. low, add and partial may be null.
template <class T> struct NormGrad {
    float* dx;
    bf16* low;
    const float* add;
    const T* dy;
    const float *x, *stats, *gamma;
    float* partial;
    int width;
};

// What the gradient reads of a row besides gamma: 4 values, zeros past its end.
struct NormGradRow {
    Floats<4> dy, x, add;
    float mean, scale;
};

template <class T>
__device__ __forceinline__ NormGradRow load_norm_grad(const NormGrad<T>& r, int64_t row, int c) {
    const bool is_mine = c < r.width;
    const int64_t from = row * r.width + c;
    NormGradRow at = {};
    at.mean = r.stats[2 * row], at.scale = r.stats[2 * row + 1];
    at.dy = load_if<4>(is_mine, r.dy + from), at.x = load_if<4>(is_mine, r.x + from);
    if (r.add) at.add = load_if<4>(is_mine, r.add + from);
    return at;
}

// Rows first..end by a block of which each thread has 4 columns. The next row is loaded while this one is summed.
template <class T>
__device__ __forceinline__ void layer_norm_grad_held(const NormGrad<T>& r, int64_t first, int64_t end) {
    const int c = 4 * threadIdx.x;
    const bool is_mine = c < r.width;
    const float share = reciprocal_approx(r.width);
    const Floats<4> g = load_if<4>(is_mine, r.gamma + c);
    Floats<4> dgamma = {}, dbeta = {};
    NormGradRow at = load_norm_grad(r, first, c);
    for (int64_t row = first; row < end; row++) {
        NormGradRow next = {};
        if (row + 1 < end) next = load_norm_grad(r, row + 1, c);
        float sum_g = 0, sum_gn = 0;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float normed = (at.x.v[i] - at.mean) * at.scale, dn = at.dy.v[i] * g.v[i];
            dgamma.v[i] += at.dy.v[i] * normed;
            dbeta.v[i] += at.dy.v[i];
            sum_g += dn, sum_gn += dn * normed;
            at.x.v[i] = normed, at.dy.v[i] = dn;
        }
        block_sums(sum_g, sum_gn, (int)(row - first));
        const float mean_g = sum_g * share, mean_gn = sum_gn * share;
        if (is_mine) {
            Floats<4> out;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out.v[i] = at.add.v[i] + at.scale * (at.dy.v[i] - mean_g - at.x.v[i] * mean_gn);
            }
            store(r.dx + row * r.width + c, out);
            if (r.low) store(r.low + row * r.width + c, out);
        }
        at = next;
    }
    if (r.partial && is_mine) store(r.partial + c, dgamma), store(r.partial + r.width + c, dbeta);
}

// The same for any width and alignment; the sums of the weights grow in memory.
template <class T>
__device__ __forceinline__ void layer_norm_grad_long(const NormGrad<T>& r, int64_t first, int64_t end) {
    const float share = reciprocal_approx(r.width);
    for (int64_t row = first; row < end; row++) {
        const float mean = r.stats[2 * row], scale = r.stats[2 * row + 1];
        const int64_t from = row * r.width;
        float sum_g = 0, sum_gn = 0;
#pragma unroll 1
        for (int c = threadIdx.x; c < r.width; c += blockDim.x) {
            const float d = to_float(r.dy[from + c]), normed = (r.x[from + c] - mean) * scale;
            sum_g += d * r.gamma[c], sum_gn += d * r.gamma[c] * normed;
            if (r.partial) {
                float *dgamma = r.partial + c, *dbeta = dgamma + r.width;
                *dgamma = d * normed + (row == first ? 0.0f : *dgamma);
                *dbeta = d + (row == first ? 0.0f : *dbeta);
            }
        }
        block_sums(sum_g, sum_gn, (int)(row - first));
        const float mean_g = sum_g * share, mean_gn = sum_gn * share;
#pragma unroll 1
        for (int c = threadIdx.x; c < r.width; c += blockDim.x) {
            const float normed = (r.x[from + c] - mean) * scale;
            float out = scale * (to_float(r.dy[from + c]) * r.gamma[c] - mean_g - normed * mean_gn);
            if (r.add) out += r.add[from + c];
            r.dx[from + c] = out;
            if (r.low) r.low[from + c] = to_bf16(out);
        }
    }
}

// The rows of this block, where r.partial begins as that of the first block.
template <class T> __device__ __forceinline__ void layer_norm_grad_rows(NormGrad<T> r, int64_t rows, int rows_of_part) {
    const int64_t first = (int64_t)blockIdx.x * rows_of_part, end = min(rows, first + rows_of_part);
    if (r.partial) r.partial += (int64_t)blockIdx.x * 2 * r.width;
    const bool fits = r.width % 4 == 0 && r.width <= 4 * (int)blockDim.x;
    if (fits && are_aligned<4>(r.dx, r.low, r.add, r.dy, r.x, r.gamma)) {
        layer_norm_grad_held(r, first, end);
    } else {
        layer_norm_grad_long(r, first, end);
    }
}

#define LAYER_NORM_GRAD(NAME, T)                                                                                 \
    KERNEL(512) NAME(float* dx, bf16* low, const float* add, const T* dy, const float* x,                        \
                     const float* stats, const float* gamma, float* partials, int64_t rows,                      \
                     int rows_of_part, int width) {                                                              \
        layer_norm_grad_rows<T>({dx, low, add, dy, x, stats, gamma, partials, width}, rows, rows_of_part);       \
    }
LAYER_NORM_GRAD(layer_norm_grad_f32, float)
LAYER_NORM_GRAD(layer_norm_grad_bf16, bf16)

// first [split] and second [columns - split] together are the sums of partials [parts, columns] over parts, added to
// what is there or overwriting it. Blocks of 32 columns by 32 shares of the parts.
KERNEL(1024) finish_sums(float* first, float* second, const float* partials, int parts, int columns, int split,
                         int accumulate) {
    __shared__ float shares[WARP][WARP + 1];
    const int column = blockIdx.x * WARP + threadIdx.x % WARP, share = threadIdx.x / WARP;
    float sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int part = share; part < parts; part += WARP) sum += partials[(int64_t)part * columns + column];
    }
    shares[threadIdx.x % WARP][share] = sum;
    __syncthreads();
    // Each warp ends the sum of one column.
    const int mine = blockIdx.x * WARP + share;
    sum = warp_sum(shares[share][threadIdx.x % WARP]);
    if (threadIdx.x % WARP != 0 || mine >= columns) return;
    float* to = mine < split ? first + mine : second + (mine - split);
    *to = accumulate ? *to + sum : sum;
}

// ---- Tangent ----

// One row of dy = scale (dx - mean(dx) - n mean(dx n)) gamma + n dgamma + dbeta with n = norm(x). dgamma and dbeta are
// the derivatives of the weights, null if these rest.
template <class T> struct NormTangentRow {
    T* dy;
    const float *dx, *x, *gamma, *dgamma, *dbeta;
    int width;
    float mean = 0, scale = 0;
};

// A row by a warp, held in registers as in layer_norm_held.
template <class T> __device__ __forceinline__ void layer_norm_tangent_held(const NormTangentRow<T>& r) {
    const int first = threadIdx.x % WARP * 4;
    Floats<4> moved[NORM_CHUNKS], normed[NORM_CHUNKS];
#pragma unroll
    for (int k = 0; k < NORM_CHUNKS; k++) {
        const int c = 4 * WARP * k + first;
        moved[k] = load_if<4>(c < r.width, r.dx + c), normed[k] = load_if<4>(c < r.width, r.x + c);
    }
    float sum = 0, sum_n = 0;
#pragma unroll
    for (int k = 0; k < NORM_CHUNKS; k++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            normed[k].v[i] = (normed[k].v[i] - r.mean) * r.scale;
            sum += moved[k].v[i], sum_n += moved[k].v[i] * normed[k].v[i];
        }
    }
    const float share = reciprocal_approx(r.width), mean = warp_sum(sum) * share, mean_n = warp_sum(sum_n) * share;
#pragma unroll
    for (int k = 0; k < NORM_CHUNKS; k++) {
        const int c = 4 * WARP * k + first;
        if (c >= r.width) continue;
        const Floats<4> g = load<4>(r.gamma + c);
        Floats<4> out;
#pragma unroll
        for (int i = 0; i < 4; i++) out.v[i] = r.scale * (moved[k].v[i] - mean - normed[k].v[i] * mean_n) * g.v[i];
        if (r.dgamma) {
            const Floats<4> dg = load<4>(r.dgamma + c), db = load<4>(r.dbeta + c);
#pragma unroll
            for (int i = 0; i < 4; i++) out.v[i] += normed[k].v[i] * dg.v[i] + db.v[i];
        }
        store(r.dy + c, out);
    }
}

// A row of any width by a warp, a value of a lane at a time.
template <class T> __device__ __forceinline__ void layer_norm_tangent_long(const NormTangentRow<T>& r) {
    const int lane = threadIdx.x % WARP;
    float sum = 0, sum_n = 0;
#pragma unroll 2
    for (int c = lane; c < r.width; c += WARP) sum += r.dx[c], sum_n += r.dx[c] * ((r.x[c] - r.mean) * r.scale);
    const float share = reciprocal_approx(r.width), mean = warp_sum(sum) * share, mean_n = warp_sum(sum_n) * share;
#pragma unroll 2
    for (int c = lane; c < r.width; c += WARP) {
        const float normed = (r.x[c] - r.mean) * r.scale;
        float out = r.scale * (r.dx[c] - mean - normed * mean_n) * r.gamma[c];
        if (r.dgamma) out += normed * r.dgamma[c] + r.dbeta[c];
        r.dy[c] = from_float<T>(out);
    }
}

// The row of this warp, where `r` begins as the first of `rows`.
template <class T>
__device__ __forceinline__ void layer_norm_tangent_row(NormTangentRow<T> r, const float* stats, int64_t rows) {
    const int64_t row = (int64_t)blockIdx.x * NORM_WARPS + threadIdx.x / WARP, from = row * r.width;
    if (row >= rows) return;
    r.mean = stats[2 * row], r.scale = stats[2 * row + 1];
    r.dy += from, r.dx += from, r.x += from;
    const bool fits = r.width % 4 == 0 && r.width <= NORM_CHUNKS * 4 * WARP;
    if (!fits || !are_aligned<4>(r.dy, r.dx, r.x, r.gamma, r.dgamma, r.dbeta)) {
        layer_norm_tangent_long(r);
    } else {
        layer_norm_tangent_held(r);
    }
}

#define LAYER_NORM_TANGENT(NAME, T)                                                                              \
    KERNEL(128) NAME(T* dy, const float* dx, const float* x, const float* stats,                                 \
                     const float* gamma, const float* dgamma, const float* dbeta, int64_t rows,                  \
                     int width) {                                                                                \
        layer_norm_tangent_row<T>({dy, dx, x, gamma, dgamma, dbeta, width}, stats, rows);                        \
    }
LAYER_NORM_TANGENT(layer_norm_tangent_f32, float)
LAYER_NORM_TANGENT(layer_norm_tangent_bf16, bf16)
