// Images to patches, reconstruction targets and the loss of each patch. Images are f32 [B, C, S, S] with S = side, cut
// into patches of P x P pixels.

// Where pixel (c, y, x) of a patch lies; patches are counted over all images.
__device__ __forceinline__ int64_t pixel(int64_t patch_index, int c, int y, int x, int channels, int side, int patch) {
    const int across = side / patch;
    const Place image = place_of(patch_index, across * across);
    const int top = image.column / across * patch, left = image.column % across * patch;
    return ((image.row * channels + c) * side + top + y) * side + left + x;
}

// out [B·L, C·P·P] in the order (channel, row, column), N values of a line at once.
template <int N, class T>
__device__ __forceinline__ void patchify(T* out, const float* images, int64_t len, int channels, int side, int patch) {
    FOR_RUNS(N, i, 0, len) {
        const Place at = place_of(i, channels * patch * patch);
        const int line = at.column / patch, x = at.column % patch;
        store(out + i, load<N>(images + pixel(at.row, line / patch, line % patch, x, channels, side, patch)));
    }
}

// The sum over each group of 2^shift lanes, for all of them.
template <class F> __device__ __forceinline__ F group_sum(F value, int shift) {
    for (int distance = 1 << shift >> 1; distance; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

// The row, of 2^shift lanes each, that this thread works on, and its lane.
__device__ __forceinline__ Place group_of(int shift) {
    const int64_t thread = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    return {thread >> shift, (int)threadIdx.x & ((1 << shift) - 1)};
}

// out [B·L, P·P·C] in the order (row, column, channel): each patch less its mean, over the root of its unbiased
// variance + 1e-6. 2^shift lanes a patch; sums in f64 over what the values differ from the first one.
KERNEL(256) patch_targets(float* out, const float* images, int64_t patches, int channels, int side, int patch,
                          int shift) {
    const Place group = group_of(shift);
    const int n = group.row < patches ? channels * patch * patch : 0;
    const float* from = n ? images + pixel(group.row, 0, 0, 0, channels, side, patch) : images;
    const double origin = n ? from[0] : 0.0f;
    auto difference = [&](int k) {
        const int at = k / channels, c = k % channels;
        return from[((int64_t)c * side + at / patch) * side + at % patch] - origin;
    };
    double sum = 0, squares = 0;
    for (int k = group.column; k < n; k += 1 << shift) {
        const double d = difference(k);
        sum += d;
        squares += d * d;
    }
    sum = group_sum(sum, shift);
    squares = group_sum(squares, shift);
    const double mean = sum / (n > 0 ? n : 1), deviations = squares - sum * mean;
    const double variance = (deviations > 0 ? deviations : 0) / (n > 1 ? n - 1 : 1);
    const double scale = 1 / sqrt(variance + 1e-6);
    for (int k = group.column; k < n; k += 1 << shift) out[group.row * n + k] = (float)((difference(k) - mean) * scale);
}

// loss[row] = the mean of (pred - target)² over n columns, 2^shift lanes a row.
template <bool IS_WIDE, class T>
__device__ __forceinline__ void patch_loss(float* loss, const T* pred, const float* target, int64_t rows, int n,
                                           int shift) {
    const Place group = group_of(shift);
    float sum = 0;
    for (int column = group.column * 4; column < n && group.row < rows; column += 4 << shift) {
        const Floats<4> p = load_columns<IS_WIDE>(pred + group.row * n, column, n);
        const Floats<4> t = load_columns<IS_WIDE>(target + group.row * n, column, n);
#pragma unroll
        for (int v = 0; v < 4; v++) sum += (p.v[v] - t.v[v]) * (p.v[v] - t.v[v]);
    }
    sum = group_sum(sum, shift);
    if (group.column == 0 && group.row < rows) loss[group.row] = sum / n;
}

// dloss[row] = Σ 2 (pred - target)·dpred / n, 2^shift lanes a row.
template <bool IS_WIDE, class T>
__device__ __forceinline__ void patch_loss_tangent(float* dloss, const T* pred, const T* dpred, const float* target,
                                                   int64_t rows, int n, int shift) {
    const Place group = group_of(shift);
    float sum = 0;
    for (int column = group.column * 4; column < n && group.row < rows; column += 4 << shift) {
        const Floats<4> p = load_columns<IS_WIDE>(pred + group.row * n, column, n);
        const Floats<4> d = load_columns<IS_WIDE>(dpred + group.row * n, column, n);
        const Floats<4> t = load_columns<IS_WIDE>(target + group.row * n, column, n);
#pragma unroll
        for (int v = 0; v < 4; v++) sum += (p.v[v] - t.v[v]) * d.v[v];
    }
    sum = group_sum(sum, shift);
    if (group.column == 0 && group.row < rows) dloss[group.row] = sum * 2 / n;
}

// dpred = dloss·2 (pred - target) / n, N values at once.
template <int N, class T>
__device__ __forceinline__ void patch_loss_grad(T* dpred, const T* pred, const float* target, const float* dloss,
                                                int64_t len, int n) {
    FOR_RUNS(N, i, 0, len) {
        const float scale = dloss[place_of(i, n).row] * 2 / n;
        auto slope = [=](float p, float t) { return scale * (p - t); };
        store(dpred + i, each<N>(slope, load<N>(pred + i), load<N>(target + i)));
    }
}

#define PATCHES(NAME, T)                                                                                              \
    KERNEL(256) patchify_##NAME(T* out, const float* images, int64_t len, int channels, int side, int patch) {        \
        if (patch % 4 == 0 && are_aligned<4>(out, images)) patchify<4>(out, images, len, channels, side, patch);      \
        else if (patch % 2 == 0 && are_aligned<2>(out, images)) patchify<2>(out, images, len, channels, side, patch); \
        else patchify<1>(out, images, len, channels, side, patch);                                                    \
    }                                                                                                                 \
    KERNEL(256) patch_loss_##NAME(float* loss, const T* pred, const float* target, int64_t rows, int n, int shift) {  \
        const bool is_wide = n % 4 == 0 && are_aligned<4>(pred, target);                                              \
        if (is_wide) patch_loss<true>(loss, pred, target, rows, n, shift);                                            \
        else patch_loss<false>(loss, pred, target, rows, n, shift);                                                   \
    }                                                                                                                 \
    KERNEL(256) patch_loss_tangent_##NAME(float* dloss, const T* pred, const T* dpred, const float* target,           \
                                          int64_t rows, int n, int shift) {                                           \
        const bool is_wide = n % 4 == 0 && are_aligned<4>(pred, dpred, target);                                       \
        if (is_wide) patch_loss_tangent<true>(dloss, pred, dpred, target, rows, n, shift);                            \
        else patch_loss_tangent<false>(dloss, pred, dpred, target, rows, n, shift);                                   \
    }                                                                                                                 \
    KERNEL(256) patch_loss_grad_##NAME(T* dpred, const T* pred, const float* target, const float* dloss, int64_t len, \
                                       int n) {                                                                       \
        const bool is_wide = n % 4 == 0 && are_aligned<4>(dpred, pred, target);                                       \
        if (is_wide) patch_loss_grad<4>(dpred, pred, target, dloss, len, n);                                          \
        else patch_loss_grad<1>(dpred, pred, target, dloss, len, n);                                                  \
    }
PATCHES(f32, float)
PATCHES(bf16, bf16)
