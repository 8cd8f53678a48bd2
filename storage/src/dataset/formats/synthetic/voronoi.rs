//! The scene `voronoi`: eight cells, each with a colour and a grating of its own, and one small red object. Lengths are
//! in pixels and values about from -1 to 1 before [`to_byte`].

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

use crate::dataset::synthetic_spec::{ObjectAreas, SyntheticSpec};

/// The classes, in the order of their labels; y points down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Disc,
    Plus,
    HorizontalBar,
    VerticalBar,
    FallingDiagonal,
    RisingDiagonal,
    Ring,
    Triangle,
}

impl Kind {
    pub const ALL: [Self; 8] = [
        Self::Disc,
        Self::Plus,
        Self::HorizontalBar,
        Self::VerticalBar,
        Self::FallingDiagonal,
        Self::RisingDiagonal,
        Self::Ring,
        Self::Triangle,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Disc => "disc",
            Self::Plus => "plus",
            Self::HorizontalBar => "horizontal-bar",
            Self::VerticalBar => "vertical-bar",
            Self::FallingDiagonal => "falling-diagonal",
            Self::RisingDiagonal => "rising-diagonal",
            Self::Ring => "ring",
            Self::Triangle => "triangle",
        }
    }

    /// Whether a point in units of the radius, from the centre, belongs to the shape.
    fn contains(self, u: f64, v: f64) -> bool {
        let (au, av) = (u.abs(), v.abs());
        let squared = u * u + v * v;
        match self {
            Self::Disc => squared < 1.0,
            Self::Plus => au.min(av) < 0.33 && au.max(av) < 1.0,
            Self::HorizontalBar => au < 1.0 && av < 0.36,
            Self::VerticalBar => av < 1.0 && au < 0.36,
            Self::FallingDiagonal => (u - v).abs() < 0.5 && au.max(av) < 1.0,
            Self::RisingDiagonal => (u + v).abs() < 0.5 && au.max(av) < 1.0,
            Self::Ring => squared < 1.0 && squared > 0.3,
            Self::Triangle => v > -1.0 && v < 0.75 && au < (v + 1.0) * 0.6,
        }
    }

    /// Factor on the radius that gives every kind an area of about 1.76 squared radii.
    fn equal_area_scale(self) -> f64 {
        match self {
            Self::Disc => 0.75,
            Self::Plus | Self::Ring => 0.9,
            Self::HorizontalBar | Self::VerticalBar => 1.1,
            Self::FallingDiagonal | Self::RisingDiagonal => 1.0,
            Self::Triangle => 0.98,
        }
    }
}

/// A shape at its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    kind: Kind,
    x: f64,
    y: f64,
    radius: f64,
}

impl Object {
    /// Of a random radius, wholly inside the image.
    pub fn random(rng: &mut ChaCha8Rng, kind: Kind, spec: &SyntheticSpec) -> Self {
        let [low, high] = spec.object_radius;
        let scale = if spec.areas == ObjectAreas::Equal { kind.equal_area_scale() } else { 1.0 };
        let radius = uniform(rng, low, high) * scale;
        let side = spec.image as f64;
        Self { kind, radius, x: uniform(rng, radius, side - radius), y: uniform(rng, radius, side - radius) }
    }

    /// The centre, x and y in pixels.
    pub fn centre(&self) -> [f64; 2] {
        [self.x, self.y]
    }

    /// Whether the centre of pixel (`x`, `y`) is inside: edges are hard.
    pub fn covers(&self, x: usize, y: usize) -> bool {
        let from = |pixel: usize, centre: f64| (pixel as f64 + 0.5 - centre) / self.radius;
        self.kind.contains(from(x, self.x), from(y, self.y))
    }

    fn paint(&self, colour: [f64; 3], values: &mut [[f64; 3]], side: usize) {
        for (at, value) in values.iter_mut().enumerate() {
            if self.covers(at % side, at / side) {
                *value = colour;
            }
        }
    }
}

const NUM_CELLS: usize = 8;

/// The part of the background that is nearer to its point than to those of the others.
struct Cell {
    x: f64,
    y: f64,
    /// Radians a pixel along each axis.
    wave: [f64; 2],
    phase: f64,
    colour: [f64; 3],
    amplitude: [f64; 3],
}

impl Cell {
    fn random(rng: &mut ChaCha8Rng, side: f64) -> Self {
        let (x, y) = (uniform(rng, 0.0, side), uniform(rng, 0.0, side));
        let (sin, cos) = uniform(rng, 0.0, std::f64::consts::PI).sin_cos();
        let frequency = uniform(rng, 0.5, 1.8);
        let phase = uniform(rng, 0.0, std::f64::consts::TAU);
        let colour = std::array::from_fn(|_| uniform(rng, -0.5, 0.5));
        let amplitude = std::array::from_fn(|_| uniform(rng, -0.6, 0.6));
        Self { x, y, wave: [cos * frequency, sin * frequency], phase, colour, amplitude }
    }

    fn squared_distance(&self, x: f64, y: f64) -> f64 {
        (x - self.x).powi(2) + (y - self.y).powi(2)
    }

    fn at(&self, x: f64, y: f64) -> [f64; 3] {
        let grating = (x * self.wave[0] + y * self.wave[1] + self.phase).sin();
        std::array::from_fn(|c| self.colour[c] + self.amplitude[c] * grating)
    }
}

/// The greatest value of a background of amplitude 1, and of an object of contrast 1.
const BACKGROUND_PEAK: f64 = 1.1;
const OBJECT_PEAK: f64 = 1.15;

const RED: [f64; 3] = [1.0, -0.6, -0.6];
const BLUE: [f64; 3] = [-0.6, -0.6, 1.0];
const GREEN: [f64; 3] = [-0.6, 0.8, -0.6];

/// The RGB pixels of an image with `object`, row by row: background, distractors, object, noise.
pub(super) fn pixels(spec: &SyntheticSpec, object: &Object, rng: &mut ChaCha8Rng) -> Vec<u8> {
    let side = spec.image;
    let cells: [Cell; NUM_CELLS] = std::array::from_fn(|_| Cell::random(rng, side as f64));
    let background = |at: usize| {
        let (x, y) = ((at % side) as f64, (at / side) as f64);
        let nearest = cells.iter().min_by(|a, b| a.squared_distance(x, y).total_cmp(&b.squared_distance(x, y)));
        nearest.map_or([0.0; 3], |cell| cell.at(x, y).map(|value| value * spec.background_amplitude))
    };
    let mut values: Vec<[f64; 3]> = (0..side * side).map(background).collect();
    for _ in 0..spec.num_distractors {
        let kind = Kind::ALL[rng.random_range(0..spec.num_classes)];
        let distractor = Object::random(rng, kind, spec);
        let base = if rng.random_bool(0.5) { BLUE } else { GREEN };
        distractor.paint(tinted(base, spec.object_contrast, rng), &mut values, side);
    }
    object.paint(tinted(RED, spec.object_contrast, rng), &mut values, side);
    // One map for all images of a dataset, so that its normalisation undoes it.
    let peak = (BACKGROUND_PEAK * spec.background_amplitude).max(OBJECT_PEAK * spec.object_contrast);
    let peak = peak + 3.0 * spec.pixel_noise;
    values.into_iter().flatten().map(|value| to_byte(value + spec.pixel_noise * normal(rng), peak)).collect()
}

fn tinted(base: [f64; 3], contrast: f64, rng: &mut ChaCha8Rng) -> [f64; 3] {
    base.map(|value| contrast * (value + uniform(rng, -0.15, 0.15)))
}

/// The byte of a value from `-peak` to `peak`; beyond is cut off.
fn to_byte(value: f64, peak: f64) -> u8 {
    (127.5 + 127.5 * value / peak).round().clamp(0.0, 255.0) as u8
}

fn uniform(rng: &mut ChaCha8Rng, low: f64, high: f64) -> f64 {
    low + (high - low) * rng.random::<f64>()
}

/// A standard normal value, by the method of Box and Muller.
fn normal(rng: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
}
