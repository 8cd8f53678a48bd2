// Heads of tasks, in f64: layer norm, linear layer and cross entropy of one token an image. They are small, and finite
// differences over their weights must not cancel. Sums are taken in an order that the shape alone decides.

// ---- Layer norm ----

// normed [B, D] = (z - mean) scale and y = (normed gamma + beta) factors, with scale [B] = 1 / sqrt(variance + eps);
// factors may be null. A block an image.
KERNEL(256) head_norm(double* normed, double* scale, double* y, const float* z, const double* gamma,
                      const double* beta, const float* factors, int width, double eps) {
    const int64_t from = (int64_t)blockIdx.x * width;
    double sum = 0;
    for (int i = threadIdx.x; i < width; i += 256) sum += (double)z[from + i];
    const double mean = block_sum(sum) / width;
    sum = 0;
    for (int i = threadIdx.x; i < width; i += 256) {
        const double moved = (double)z[from + i] - mean;
        sum += moved * moved;
    }
    const double by = 1.0 / sqrt(block_sum(sum) / width + eps);
    if (threadIdx.x == 0) scale[blockIdx.x] = by;
    for (int i = threadIdx.x; i < width; i += 256) {
        const double n = ((double)z[from + i] - mean) * by;
        normed[from + i] = n;
        y[from + i] = (n * gamma[i] + beta[i]) * (factors ? (double)factors[from + i] : 1.0);
    }
}

// dy [B, D] becomes that before the factors, which may be null; dz, if it is not null, the cotangent of z.
KERNEL(256) head_norm_grad(double* dz, double* dy, const double* normed, const double* scale, const double* gamma,
                           const float* factors, int width) {
    const int64_t from = (int64_t)blockIdx.x * width;
    double sum = 0, sum_n = 0;
    for (int i = threadIdx.x; i < width; i += 256) {
        const double d = dy[from + i] * (factors ? (double)factors[from + i] : 1.0);
        dy[from + i] = d;
        sum += d * gamma[i];
        sum_n += d * gamma[i] * normed[from + i];
    }
    if (!dz) return;
    const double mean = block_sum(sum) / width, mean_n = block_sum(sum_n) / width;
    for (int i = threadIdx.x; i < width; i += 256) {
        dz[from + i] = (dy[from + i] * gamma[i] - mean - normed[from + i] * mean_n) * scale[blockIdx.x];
    }
}

// ---- Products ----

const int HEAD_TILE = 32, HEAD_DEPTH = 16;

// Rows `first`.. of a matrix [rows, depth] for `at`.. of its depth, transposed: tile [depth][row], zeros outside. The
// value of row r at depth d is values[r row_step + d step].
__device__ __forceinline__ void head_tile(double (&tile)[HEAD_DEPTH][HEAD_TILE + 1], const double* values, int64_t first,
                                          int64_t rows, int at, int depth, int64_t row_step, int64_t step) {
    for (int e = threadIdx.x; e < HEAD_TILE * HEAD_DEPTH; e += 256) {
        // Neighbours in memory by neighbouring threads.
        const int row = step == 1 ? e / HEAD_DEPTH : e % HEAD_TILE, d = step == 1 ? e % HEAD_DEPTH : e / HEAD_TILE;
        const bool is_in = first + row < rows && at + d < depth;
        tile[d][row] = is_in ? values[(first + row) * row_step + (at + d) * step] : 0.0;
    }
}

// out [m, n] = a [m, k] b [k, n] + bias [n], which may be null; a is stored as [k, m] if a_transposed, and b as [n, k] if
// b_transposed. Each sum goes over k in order. Blocks of 32 columns (x) by 32 rows (y).
KERNEL(256) product_f64(double* out, const double* a, const double* b, const double* bias, int m, int n, int k,
                        int a_transposed, int b_transposed) {
    __shared__ double rows[HEAD_DEPTH][HEAD_TILE + 1], columns[HEAD_DEPTH][HEAD_TILE + 1];
    const int64_t row = (int64_t)blockIdx.y * HEAD_TILE, column = (int64_t)blockIdx.x * HEAD_TILE;
    const int x = threadIdx.x % 16, y = threadIdx.x / 16;
    double sum[2][2] = {};
#pragma unroll 1
    for (int at = 0; at < k; at += HEAD_DEPTH) {
        head_tile(rows, a, row, m, at, k, a_transposed ? 1 : k, a_transposed ? m : 1);
        head_tile(columns, b, column, n, at, k, b_transposed ? k : 1, b_transposed ? 1 : n);
        __syncthreads();
#pragma unroll 4
        for (int d = 0; d < HEAD_DEPTH; d++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
#pragma unroll
                for (int j = 0; j < 2; j++) sum[i][j] += rows[d][y + 16 * i] * columns[d][x + 16 * j];
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            const int64_t r = row + y + 16 * i, c = column + x + 16 * j;
            if (r < m && c < n) out[r * n + c] = sum[i][j] + (bias ? bias[c] : 0.0);
        }
    }
}

// out [columns] = the sums over rows of x [rows, columns], each times y [rows, columns], which may be null. Blocks of 32
// columns by 32 shares of the rows.
KERNEL(1024) column_sums_f64(double* out, const double* x, const double* y, int rows, int columns) {
    __shared__ double shares[WARP][WARP + 1];
    const int column = blockIdx.x * WARP + threadIdx.x % WARP, share = threadIdx.x / WARP;
    double sum = 0;
    if (column < columns) {
        for (int row = share; row < rows; row += WARP) {
            const int64_t i = (int64_t)row * columns + column;
            sum += y ? x[i] * y[i] : x[i];
        }
    }
    shares[threadIdx.x % WARP][share] = sum;
    __syncthreads();
    // Each warp ends the sum of one column.
    const int mine = blockIdx.x * WARP + share;
    sum = warp_sum(shares[share][threadIdx.x % WARP]);
    if (threadIdx.x % WARP == 0 && mine < columns) out[mine] = sum;
}

// ---- Cross entropy ----

// The loss [B] of each image's logits [B, classes] for its label, and whether the first largest is the label's [B], as
// 0 or 1. The logits become their cotangents, (softmax - one hot) share. A warp an image.
KERNEL(128) cross_entropy_f64(double* loss, double* right, double* logits, const uint32_t* labels, int images,
                              int classes, double share) {
    const int image = blockIdx.x * 4 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (image >= images) return;
    double* row = logits + (int64_t)image * classes;
    const uint32_t label = labels[image];
    double top = (double)bits_to_float(0xff800000u);  // -infinity
    uint32_t best = 0xffffffffu;
#pragma unroll 1
    for (int c = lane; c < classes; c += WARP) {
        if (row[c] > top || (row[c] == top && (uint32_t)c < best)) top = row[c], best = (uint32_t)c;
    }
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const double other = __shfl_xor_sync(ALL_LANES, top, distance);
        const uint32_t place = __shfl_xor_sync(ALL_LANES, best, distance);
        if (other > top || (other == top && place < best)) top = other, best = place;
    }
    double sum = 0;
#pragma unroll 1
    for (int c = lane; c < classes; c += WARP) sum += exp(row[c] - top);
    const double log_sum = top + log(warp_sum(sum)), of_label = row[label];
    // All lanes have read what others overwrite.
    __syncwarp();
#pragma unroll 1
    for (int c = lane; c < classes; c += WARP) {
        row[c] = (exp(row[c] - log_sum) - ((uint32_t)c == label ? 1.0 : 0.0)) * share;
    }
    if (lane == 0) loss[image] = log_sum - of_label, right[image] = best == label ? 1.0 : 0.0;
}

// ---- Vectors ----

// out = x, wider.
KERNEL(256) widen_f64(double* out, const float* x, int64_t len) { FOR_RUNS(1, i, 0, len) out[i] = (double)x[i]; }

// out = x + alpha v.
KERNEL(256) scale_add_f64(double* out, const double* x, double alpha, const double* v, int64_t len) {
    FOR_RUNS(1, i, 0, len) out[i] = x[i] + alpha * v[i];
}

// out = (x - y) / divisor, rounded once; y may be null.
KERNEL(256) narrow_difference_f64(float* out, const double* x, const double* y, double divisor, int64_t len) {
    FOR_RUNS(1, i, 0, len) out[i] = (float)((y ? x[i] - y[i] : x[i]) / divisor);
}
