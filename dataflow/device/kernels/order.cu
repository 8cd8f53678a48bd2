// Which patches are masked, and the sums that masks weight. An image has L patches; the n of lowest rank are visible.

// Patches that an image may have: what a block sorts in 32 KiB of shared memory.
const int SORT_LIMIT = 4096;

// The bits of an f32 such that unsigned numbers compare as IEEE 754's total order does.
__device__ __forceinline__ uint32_t total_order(uint32_t bits) {
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Block: an image. Bitonic sort of (key, patch), filled up to `padded`, a power of two, by what comes after every key.
// Equal keys stay in the order of patches. kept [B, n], rank [B, L].
KERNEL(1024) sort_keys(uint32_t* kept, uint32_t* rank, const uint32_t* keys, int num_patches, int num_visible,
                       int padded) {
    __shared__ uint64_t sorted[SORT_LIMIT];
    const int64_t start = (int64_t)blockIdx.x * num_patches;
    for (int i = threadIdx.x; i < padded; i += blockDim.x) {
        sorted[i] = i < num_patches ? (uint64_t)total_order(keys[start + i]) << 32 | (uint32_t)i : ~(uint64_t)0;
    }
    __syncthreads();
    for (int length = 2; length <= padded; length *= 2) {
        for (int distance = length / 2; distance; distance /= 2) {
            for (int pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
                const int low = 2 * pair - (pair & (distance - 1)), high = low + distance;
                const uint64_t a = sorted[low], b = sorted[high];
                if ((a > b) == ((low & length) == 0)) {
                    sorted[low] = b;
                    sorted[high] = a;
                }
            }
            // Pairs of distance 32 or less are, for all pairs of a warp, among 64 values that no other warp touches.
            const int next = distance > 1 ? distance / 2 : length;
            if (distance > WARP || next > WARP) __syncthreads();
            else __syncwarp();
        }
    }
    for (int place = threadIdx.x; place < num_patches; place += blockDim.x) {
        const uint32_t patch = (uint32_t)sorted[place];
        rank[start + patch] = place;
        if (place < num_visible) kept[(int64_t)blockIdx.x * num_visible + place] = patch;
    }
}

// mᵢ·pᵢ, where p is 1 without scores.
KERNEL(256) loss_weights(float* weights, const uint32_t* rank, const float* scores, int64_t len, int num_visible) {
    FOR_RUNS(1, i, 0, len) {
        weights[i] = rank[i] < (uint32_t)num_visible ? 0.0f : scores ? scores[i] : 1.0f;
    }
}

// sums[image] = Σ ℓ·w in f64, a warp an image; where w is 0, ℓ may be anything.
KERNEL(256) masked_loss(double* sums, const float* losses, const float* weights, int batch, int num_patches) {
    const int64_t image = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / WARP;
    const int lane = threadIdx.x % WARP;
    double sum = 0;
    for (int patch = lane; patch < num_patches && image < batch; patch += WARP) {
        const float weight = weights[image * num_patches + patch];
        if (weight != 0) sum += (double)losses[image * num_patches + patch] * weight;
    }
    sum = warp_sum(sum);
    if (lane == 0 && image < batch) sums[image] = sum;
}

// out = mᵢ·ℓᵢ·factor
KERNEL(256) score_cotangent(float* out, const float* losses, const uint32_t* rank, int64_t len, int num_visible,
                            double factor) {
    FOR_RUNS(1, i, 0, len) {
        out[i] = rank[i] < (uint32_t)num_visible ? 0.0f : (float)(losses[i] * factor);
    }
}
