// Tensor cores, and asynchronous copies to shared memory. For the emulation, its header has all but what is below.
// In a fragment of m16n8k16 of bf16, with g = lane / 4 and t = lane % 4, word i of A [16, 16] holds row g + 8(i % 2),
// columns 2t + 8(i / 2) and the next; word i of B [16, 8] rows 2t + 8i and the next of column g; value i of D [16, 8]
// row g + 8(i / 2), column 2t + i % 2. In one of m16n8k8 of tf32, word i of A [16, 8] holds row g + 8(i % 2), column t
// + 4(i / 2); word i of B [8, 8] row t + 4i of column g; D is the same.

#ifndef EMULATED
// d += a b with f32 sums.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same of tf32.
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 8 matrices from shared memory: lane 8i + j names row j of matrix i, 16 aligned bytes; word i of a lane is
// row lane / 4, columns 2(lane % 4) and the next, of matrix i.
__device__ __forceinline__ void load_matrices(uint32_t (&words)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

// The same of the transposed matrices: column lane / 4, rows 2(lane % 4) and the next.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&words)[4], const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row)));
}

// Starts a copy of 16 aligned bytes to shared memory, or of zeros.
__device__ __forceinline__ void copy16_async(void* to, const void* from, bool is_there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"((uint32_t)__cvta_generic_to_shared(to)),
                 "l"(from), "r"(is_there ? 16 : 0)
                 : "memory");
}

// Waits for the copies that this thread has started; a barrier makes them visible to others.
__device__ __forceinline__ void wait_for_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#else
__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    struct Factors {
        uint32_t a[4], b[2];
    };
    __shared__ Factors factors_of_warps[32][WARP];
    Factors* factors = factors_of_warps[threadIdx.x / WARP];
    const int lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    factors[lane] = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
    __syncwarp();
    for (int i = 0; i < 4; i++) {
        for (int k = 0; k < 8; k++) {
            const uint32_t x = factors[4 * g + k % 4].a[k / 4 * 2 + i / 2];
            const uint32_t y = factors[4 * (2 * t + i % 2) + k % 4].b[k / 4];
            d[i] += bits_to_float(x & 0xffffe000u) * bits_to_float(y & 0xffffe000u);
        }
    }
    __syncwarp();
}
#endif

// The nearest tf32: 10 bits of mantissa, ties away from 0.
__device__ __forceinline__ uint32_t round_to_tf32(uint32_t bits) { return (bits + 0x1000u) & 0xffffe000u; }
