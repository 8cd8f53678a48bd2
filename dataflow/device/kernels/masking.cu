// What the masking networks need beside products: the input of the network over each patch, and positions.

const int POSITION_COLUMNS = 64;

// out [B·L, 2f + 64]: the patch's features, the mean features of its image, its position or zeros; N values at once.
template <int N>
__device__ __forceinline__ void token_features_of(float* out, const float* input, const float* mean,
                                                  const float* positions, int64_t len, int num_patches,
                                                  int features) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, 2 * features + POSITION_COLUMNS);
        const Place patch = place_of(to.row, num_patches);
        const int of_mean = to.column - features, of_position = of_mean - features;
        Floats<N> x = {};
        if (of_mean < 0) x = load<N>(input + to.row * features + to.column);
        else if (of_position < 0) x = load<N>(mean + patch.row * features + of_mean);
        else if (positions) x = load<N>(positions + (int64_t)patch.column * POSITION_COLUMNS + of_position);
        store(out + i, x);
    }
}

KERNEL(256) token_features(float* out, const float* input, const float* mean, const float* positions, int64_t len,
                           int num_patches, int features) {
    const bool is_wide = features % 4 == 0 && are_aligned<4>(out, input, mean, positions);
    if (is_wide) token_features_of<4>(out, input, mean, positions, len, num_patches, features);
    else token_features_of<1>(out, input, mean, positions, len, num_patches, features);
}

// dinput [B·L, f] = the patch's own columns of du + mean, the mean over patches of those that read the image's mean.
template <int N>
__device__ __forceinline__ void token_features_grad_of(float* dinput, const float* du, const float* mean, int64_t len,
                                                       int num_patches, int features) {
    FOR_RUNS(N, i, 0, len) {
        const Place to = place_of(i, features);
        const Floats<N> own = load<N>(du + to.row * (2 * features + POSITION_COLUMNS) + to.column);
        store(dinput + i, plus(own, load<N>(mean + place_of(to.row, num_patches).row * features + to.column)));
    }
}

KERNEL(256) token_features_grad(float* dinput, const float* du, const float* mean, int64_t len, int num_patches,
                                int features) {
    const bool is_wide = features % 4 == 0 && are_aligned<4>(dinput, du, mean);
    if (is_wide) token_features_grad_of<4>(dinput, du, mean, len, num_patches, features);
    else token_features_grad_of<1>(dinput, du, mean, len, num_patches, features);
}

// x [B, columns] += pos [columns], N values at once.
template <int N>
__device__ __forceinline__ void add_positions_of(float* x, const float* pos, int64_t len, int columns) {
    FOR_RUNS(N, i, 0, len) store(x + i, plus(load<N>(x + i), load<N>(pos + place_of(i, columns).column)));
}

KERNEL(256) add_positions(float* x, const float* pos, int64_t len, int columns) {
    if (columns % 4 == 0 && are_aligned<4>(x, pos)) add_positions_of<4>(x, pos, len, columns);
    else add_positions_of<1>(x, pos, len, columns);
}
