//! Initial values of the networks, drawn from a generator keyed by seed and tensor name.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use crate::rng::uniform;

/// A standard normal draw (Box-Muller).
pub fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(rng)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(rng)).cos()
}

/// The generator for one named tensor. Its draws do not depend on the order in which tensors are initialised.
#[must_use]
pub fn tensor_rng(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a of the name suffices: ChaCha turns keys that differ in one bit into unrelated streams.
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    key[16..20].copy_from_slice(b"init");
    ChaCha8Rng::from_seed(key)
}

/// Xavier uniform: U(±sqrt(6 / (inputs + outputs))), as MAE initialises its linear layers.
pub fn xavier_uniform(values: &mut [f32], inputs: usize, outputs: usize, rng: &mut ChaCha8Rng) {
    symmetric(values, (6.0 / (inputs + outputs) as f64).sqrt(), rng);
}

/// U(±bound).
pub fn symmetric(values: &mut [f32], bound: f64, rng: &mut ChaCha8Rng) {
    values.iter_mut().for_each(|v| *v = ((2.0 * uniform(rng) - 1.0) * bound) as f32);
}

/// N(0, std²).
pub fn normals(values: &mut [f32], std: f64, rng: &mut ChaCha8Rng) {
    values.iter_mut().for_each(|v| *v = (normal(rng) * std) as f32);
}

/// The 2-D sin-cos position embedding of MAE (arXiv 2111.06377), `[1 + grid², dim]`, for `dim` a multiple of 4.
///
/// The CLS row is zero. The first half of a patch's row encodes its column, the second half its row; each half is a
/// block of sines, then a block of cosines, with frequencies 1/10000^(i/(dim/4)), i < dim/4.
pub fn sincos_2d(values: &mut [f32], dim: usize, grid: usize) {
    let quarter = dim / 4;
    values[..dim].fill(0.0);
    for (place, row) in values[dim..].chunks_exact_mut(dim).enumerate() {
        for (half, position) in [place % grid, place / grid].into_iter().enumerate() {
            for i in 0..quarter {
                let angle = position as f64 / 10000f64.powf(i as f64 / quarter as f64);
                row[half * 2 * quarter + i] = angle.sin() as f32;
                row[half * 2 * quarter + quarter + i] = angle.cos() as f32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normals_have_the_asked_moments() {
        let mut rng = tensor_rng(3, "x");
        let mut values = vec![0.0; 40_000];
        normals(&mut values, 0.02, &mut rng);
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / 40_000.0;
        let std = (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / 40_000.0).sqrt();
        assert!(mean.abs() < 5e-4 && (std - 0.02).abs() < 3e-4, "{mean} {std}");
    }

    #[test]
    fn tensors_draw_independently_of_each_other() {
        let draw = |seed, name: &str| uniform(&mut tensor_rng(seed, name));
        assert_eq!(draw(1, "a"), draw(1, "a"));
        assert_ne!(draw(1, "a"), draw(1, "b"));
        assert_ne!(draw(1, "a"), draw(2, "a"));
    }
}
