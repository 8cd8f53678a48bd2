//! Backgrounds: procedural textures with values from 0 to 1.

use rand::{Rng, RngExt};
use rand_chacha::ChaCha8Rng;

/// One background, with its random parameters. Lengths are in pixels.
#[derive(Clone, Debug)]
pub(super) enum Texture {
    /// Parallel waves of direction (`fx`, `fy`) radians a pixel.
    Stripes { fx: f32, fy: f32, phase: f32 },
    /// Two crossed waves with hard edges.
    Checks { fx: f32, fy: f32, phase: f32 },
    /// Smooth noise of three octaves.
    Clouds { cell: f32, key: u32 },
    /// A slope over the whole image.
    Gradient { dx: f32, dy: f32 },
    /// Round spots on a jittered grid.
    Dots { cell: f32, key: u32 },
    /// Concentric waves around a point.
    Ripples { x: f32, y: f32, frequency: f32 },
}

impl Texture {
    pub fn random(rng: &mut ChaCha8Rng, side: f32) -> Self {
        let turn: f32 = rng.random_range(0.0..std::f32::consts::TAU);
        let (sin, cos) = turn.sin_cos();
        let phase = rng.random_range(0.0..std::f32::consts::TAU);
        // Wavelengths of an eighth to a third of the image, and at least four pixels.
        let wave = (side * rng.random_range(0.125..0.33)).max(4.0);
        let frequency = std::f32::consts::TAU / wave;
        match rng.random_range(0..6) {
            0 => Self::Stripes { fx: frequency * cos, fy: frequency * sin, phase },
            1 => Self::Checks { fx: frequency * cos, fy: frequency * sin, phase },
            2 => Self::Clouds { cell: wave, key: rng.next_u32() },
            3 => Self::Gradient { dx: cos / side, dy: sin / side },
            4 => Self::Dots { cell: wave, key: rng.next_u32() },
            _ => Self::Ripples { x: rng.random_range(0.0..side), y: rng.random_range(0.0..side), frequency },
        }
    }

    /// Value at a pixel, 0 to 1.
    pub fn at(&self, x: f32, y: f32) -> f32 {
        match *self {
            Self::Stripes { fx, fy, phase } => 0.5 + 0.5 * (fx * x + fy * y + phase).sin(),
            Self::Checks { fx, fy, phase } => {
                let waves = (fx * x + fy * y + phase).sin() * (fx * y - fy * x).sin();
                (0.5 + 4.0 * waves).clamp(0.0, 1.0)
            }
            Self::Clouds { cell, key } => {
                let octave = |scale: f32, key| smooth_noise(x * scale / cell, y * scale / cell, key);
                (octave(1.0, key) * 4.0 + octave(2.0, key ^ 1) * 2.0 + octave(4.0, key ^ 2)) / 7.0
            }
            Self::Gradient { dx, dy } => (0.5 + 0.7 * (dx * x + dy * y)).clamp(0.0, 1.0),
            Self::Dots { cell, key } => dots(x / cell, y / cell, key),
            Self::Ripples { x: x0, y: y0, frequency } => 0.5 + 0.5 * ((x - x0).hypot(y - y0) * frequency).sin(),
        }
    }
}

/// A fixed value from 0 to 1 for a grid point.
fn lattice(x: i32, y: i32, key: u32) -> f32 {
    let mut hash = key ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
    for _ in 0..2 {
        hash = (hash ^ (hash >> 15)).wrapping_mul(0x2C1B_3C6D);
        hash ^= hash >> 13;
    }
    (hash >> 8) as f32 / (1 << 24) as f32
}

fn smooth_noise(x: f32, y: f32, key: u32) -> f32 {
    let (x0, y0) = (x.floor(), y.floor());
    let ease = |t: f32| t * t * (3.0 - 2.0 * t);
    let (tx, ty) = (ease(x - x0), ease(y - y0));
    let corner = |i: i32, j: i32| lattice(x0 as i32 + i, y0 as i32 + j, key);
    let row = |j: i32| corner(0, j) + (corner(1, j) - corner(0, j)) * tx;
    row(0) + (row(1) - row(0)) * ty
}

fn dots(x: f32, y: f32, key: u32) -> f32 {
    let (column, row) = (x.floor() as i32, y.floor() as i32);
    let jitter = |salt: u32| 0.3 + 0.4 * lattice(column, row, key ^ salt);
    let distance = (x - x.floor() - jitter(3)).hypot(y - y.floor() - jitter(5));
    ((0.32 - distance) * 6.0).clamp(0.0, 1.0)
}
