//! What operations shall give, by their formulas in plain f64, for tests and for the [self-test](crate::selftest).

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod head;
pub(crate) mod norm;

/// Deterministic values around ±1.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..len).map(|_| 2.0 * (uniform() + uniform() + uniform() + uniform())).collect()
}

/// Orders of patches of `batch` images: `kept` and `rank`.
pub(crate) fn orders(batch: usize, num_patches: usize, num_visible: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut kept, mut rank) = (Vec::new(), vec![0; batch * num_patches]);
    for image in 0..batch {
        let keys = values(num_patches, 100 + image as u64);
        let (of_image, places) = sorted(&keys);
        kept.extend_from_slice(&of_image[..num_visible]);
        rank[image * num_patches..(image + 1) * num_patches].copy_from_slice(&places);
    }
    (kept, rank)
}

/// The order of an image's keys by [`f32::total_cmp`], ties to the lower patch, and the place of each patch in it.
pub(crate) fn sorted(keys: &[f32]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..keys.len() as u32).collect();
    order.sort_by(|a, b| keys[*a as usize].total_cmp(&keys[*b as usize]));
    let mut rank = vec![0; keys.len()];
    for (place, patch) in order.iter().enumerate() {
        rank[*patch as usize] = place as u32;
    }
    (order, rank)
}

/// The same values in f64.
pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

/// a `[m, k]` · b `[k, n]` + bias `[n]`, row-major; a factor that is `transposed` is stored as its transpose.
pub(crate) fn product(
    [a, b]: [&[f64]; 2],
    transposed: [bool; 2],
    [m, n, k]: [usize; 3],
    bias: Option<&[f64]>,
) -> Vec<f64> {
    let a = |row: usize, i: usize| if transposed[0] { a[i * m + row] } else { a[row * k + i] };
    let b = |i: usize, column: usize| if transposed[1] { b[column * k + i] } else { b[i * n + column] };
    let at = |place: usize| {
        let (row, column) = (place / n, place % n);
        bias.map_or(0.0, |bias| bias[column]) + (0..k).map(|i| a(row, i) * b(i, column)).sum::<f64>()
    };
    (0..m * n).map(at).collect()
}
