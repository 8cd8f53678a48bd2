// From the pixels of images to the values that networks see.

// out [B, C, S, S], S = side, of pixels [B, S, S, C]: each value is pixel·scale + shift of its channel, rounded after
// the product and after the sum as the processor does, so that no fused operation may take their place. `windows`
// [B, 3] has for each image the offsets (signed) of the first row and column, and whether it is mirrored: pixels are
// taken from the mirrored column, then moved. What lies outside is black: a row of it is the shift itself, as black
// within a row would turn a shift of -0 to 0. `scaling` [C, 2] has scale and shift. N values of a row at once.
template <int N>
__device__ __forceinline__ void pixel_values_of(float* out, const uint8_t* pixels, const uint32_t* windows,
                                                const float* scaling, int64_t len, int channels, int side) {
    FOR_RUNS(N, i, 0, len) {
        const Place at = place_of(i, side), line = place_of(at.row, side), plane = place_of(line.row, channels);
        const uint32_t* window = windows + 3 * plane.row;
        const uint32_t top = window[0], left = window[1], is_mirrored = window[2];
        const float scale = scaling[2 * plane.column], shift = scaling[2 * plane.column + 1];
        // Below 0 it is above every side.
        const uint32_t y = (uint32_t)line.column + top;
        const uint8_t* row = pixels + (plane.row * side + y) * side * channels + plane.column;
        Floats<N> x;
#pragma unroll
        for (int v = 0; v < N; v++) {
            const int column = at.column + v;
            const uint32_t from = (uint32_t)(is_mirrored ? side - 1 - column : column) + left;
            int pixel = 0;
            if (y < (uint32_t)side && from < (uint32_t)side) pixel = row[(int64_t)from * channels];
            x.v[v] = y < (uint32_t)side ? __fadd_rn(__fmul_rn((float)pixel, scale), shift) : shift;
        }
        store(out + i, x);
    }
}

KERNEL(256) pixel_values(float* out, const uint8_t* pixels, const uint32_t* windows, const float* scaling, int64_t len,
                         int channels, int side) {
    if (side % 4 == 0 && are_aligned<4>(out)) pixel_values_of<4>(out, pixels, windows, scaling, len, channels, side);
    else if (side % 2 == 0 && are_aligned<2>(out))
        pixel_values_of<2>(out, pixels, windows, scaling, len, channels, side);
    else pixel_values_of<1>(out, pixels, windows, scaling, len, channels, side);
}
