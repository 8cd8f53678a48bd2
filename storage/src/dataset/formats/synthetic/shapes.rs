//! The objects: shapes in the unit square, placed, turned a little and drawn with soft edges.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// The classes, in the order of their labels. They stay distinct under the turns of [`Placement::random`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
    Ring,
    Bar,
    Diamond,
    Frame,
    Corner,
    Star,
}

impl Shape {
    pub const ALL: [Self; 10] = [
        Self::Circle,
        Self::Square,
        Self::Triangle,
        Self::Cross,
        Self::Ring,
        Self::Bar,
        Self::Diamond,
        Self::Frame,
        Self::Corner,
        Self::Star,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
            Self::Ring => "ring",
            Self::Bar => "bar",
            Self::Diamond => "diamond",
            Self::Frame => "frame",
            Self::Corner => "corner",
            Self::Star => "star",
        }
    }

    /// Whether a point of the square from -1 to 1 belongs to the shape.
    fn contains(self, u: f32, v: f32) -> bool {
        let (au, av) = (u.abs(), v.abs());
        let radius = u.hypot(v);
        let larger = au.max(av);
        match self {
            Self::Circle => radius <= 0.92,
            Self::Square => larger <= 0.8,
            Self::Triangle => v <= 0.75 && au <= (v + 0.95) * 0.56,
            Self::Cross => larger <= 0.95 && au.min(av) <= 0.28,
            Self::Ring => (0.52..=0.98).contains(&radius),
            Self::Bar => au <= 1.0 && av <= 0.3,
            Self::Diamond => au + av <= 1.0,
            Self::Frame => (0.48..=0.88).contains(&larger),
            Self::Corner => larger <= 0.88 && (u <= -0.36 || v >= 0.36),
            Self::Star => {
                let turn = v.atan2(u) + std::f32::consts::FRAC_PI_2;
                radius <= 0.66 + 0.34 * (5.0 * turn).cos()
            }
        }
    }
}

/// Where and how large an object is, in pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placement {
    x: f32,
    y: f32,
    radius: f32,
    turn: f32,
}

impl Placement {
    /// A radius of 16 to 28 % of the image's side, wholly inside, turned by at most 12 degrees.
    pub fn random(rng: &mut ChaCha8Rng, side: f32) -> Self {
        let radius = side * rng.random_range(0.16..0.28);
        // The turned square of the shape reaches at most 1.2 radii from its centre along an axis.
        let reach = 1.2 * radius;
        Self {
            radius,
            x: rng.random_range(reach..side - reach),
            y: rng.random_range(reach..side - reach),
            turn: rng.random_range(-0.2..0.2),
        }
    }

    /// The centre, x and y in pixels.
    pub fn centre(&self) -> [f64; 2] {
        [self.x, self.y].map(f64::from)
    }
}

const STEPS: usize = 4;

/// Share of each pixel inside the shape, [side * side], from 4 x 4 points a pixel.
pub(super) fn coverage(shape: Shape, placement: &Placement, side: usize) -> Vec<f32> {
    let (sin, cos) = placement.turn.sin_cos();
    let mut shares = vec![0.0; side * side];
    let reach = 1.25 * placement.radius + 1.0;
    let bounds = |centre: f32| ((centre - reach).max(0.0) as usize, ((centre + reach) as usize + 1).min(side));
    let ((left, right), (top, bottom)) = (bounds(placement.x), bounds(placement.y));
    for y in top..bottom {
        for x in left..right {
            let mut inside = 0;
            for step in 0..STEPS * STEPS {
                let offset = |i: usize| (i as f32 + 0.5) / STEPS as f32;
                let dx = (x as f32 + offset(step % STEPS) - placement.x) / placement.radius;
                let dy = (y as f32 + offset(step / STEPS) - placement.y) / placement.radius;
                inside += usize::from(shape.contains(dx * cos + dy * sin, dy * cos - dx * sin));
            }
            shares[y * side + x] = inside as f32 / (STEPS * STEPS) as f32;
        }
    }
    shares
}
