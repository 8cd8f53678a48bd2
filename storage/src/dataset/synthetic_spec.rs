//! What the format `synthetic` generates, and which of its settings go together.

use serde::{Deserialize, Serialize};

use super::error::DataError;

/// What the generated images show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SyntheticScene {
    /// A textured background and one large object of any colour, 10 shapes. It stands out by its brightness.
    #[default]
    Shapes,
    /// Eight Voronoi cells, each with a colour and a grating of its own, and one small red object, 8 shapes. Most of
    /// the variance is in the background, which says nothing of the label: a testbed in which it matters what is
    /// masked.
    Voronoi,
}

impl SyntheticScene {
    /// Every scene, the default first.
    pub const ALL: [Self; 2] = [Self::Shapes, Self::Voronoi];

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Shapes => "shapes",
            Self::Voronoi => "voronoi",
        }
    }

    /// How many shapes, and so classes, the scene has.
    #[must_use]
    pub const fn num_shapes(self) -> usize {
        match self {
            Self::Shapes => 10,
            Self::Voronoi => 8,
        }
    }
}

/// Whether the size of an object of the scene `voronoi` tells its shape.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ObjectAreas {
    /// Shapes of one radius: a disc has twice the area of a bar, so that counting red pixels tells some classes.
    #[default]
    ByShape,
    /// The radius of each shape is scaled so that all have the same mean area.
    Equal,
}

impl ObjectAreas {
    /// Every value, the default first.
    pub const ALL: [Self; 2] = [Self::ByShape, Self::Equal];

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ByShape => "by-shape",
            Self::Equal => "equal",
        }
    }
}

/// What the label of a generated image is of. The images are the same to the bit either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum SyntheticLabel {
    /// The object's shape. Every run of `num_classes` images holds each class once.
    #[default]
    Object,
    /// The cell of a grid over the image in which the object's centre lies. Centres are uniform where the object is
    /// wholly inside the image: 2 x 2 cells are equally likely; of 3 x 3 the middle ones hold more, by as much as the
    /// object is large.
    Place,
}

impl SyntheticLabel {
    /// Every value, the default first.
    pub const ALL: [Self; 2] = [Self::Object, Self::Place];

    /// The name in configurations.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Place => "place",
        }
    }
}

/// The largest factor by which [`ObjectAreas::Equal`] scales a radius.
pub(super) const MAX_RADIUS_SCALE: f64 = 1.1;

/// What the format `synthetic` generates: images whose labels are shapes and whose object has a known place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticSpec {
    /// What the images show: `shapes` (one large object on a texture) or `voronoi` (one small red object on a
    /// background of high variance, on which masks matter).
    pub scene: SyntheticScene,
    /// Images of the training split.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000_000)))]
    pub num_train: usize,
    /// Images of the test split.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 10_000_000)))]
    pub num_test: usize,
    /// Side of the square images in pixels.
    #[cfg_attr(feature = "schema", schemars(range(min = 8, max = 1024)))]
    pub image: usize,
    /// Shapes in use, which are the classes with `label = "object"`: up to 10, with `scene = "voronoi"` up to 8.
    #[cfg_attr(feature = "schema", schemars(range(min = 2, max = 10)))]
    pub num_classes: usize,
    /// What the label is of: the object's shape (`object`) or the cell of a grid in which its centre lies (`place`).
    /// Images are the same, so that a label can judge what another has taught.
    pub label: SyntheticLabel,
    /// `label = "place"`: cells of the grid along either axis; their number squared is that of the classes.
    #[cfg_attr(feature = "schema", schemars(range(min = 2, max = 3)))]
    pub place_grid: usize,
    /// Colour channels, 1 or 3; with `scene = "voronoi"` 3.
    #[cfg_attr(feature = "schema", schemars(range(min = 1, max = 3)))]
    pub channels: usize,
    /// Seed of the images; apart from the seed of the training.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 9_223_372_036_854_775_807_u64)))]
    pub seed: u64,
    /// `scene = "voronoi"`: whether areas differ by shape (`by-shape`) or are `equal`, so that only the shape tells the
    /// class.
    pub areas: ObjectAreas,
    /// `scene = "voronoi"`: blue and green objects of random shapes, which say nothing, behind the red one.
    #[cfg_attr(feature = "schema", schemars(range(min = 0, max = 16)))]
    pub num_distractors: usize,
    /// `scene = "voronoi"`: least and greatest radius of an object, in pixels, at most half of the image's side.
    #[cfg_attr(feature = "schema", schemars(inner(range(min = 1.0, max = 512.0))))]
    pub object_radius: [f64; 2],
    /// `scene = "voronoi"`: factor on the colours of objects; 1 is pure red.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.1, max = 10.0)))]
    pub object_contrast: f64,
    /// `scene = "voronoi"`: factor on the background's values, which reach from -1.1 to 1.1; 0 is a flat one.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 10.0)))]
    pub background_amplitude: f64,
    /// `scene = "voronoi"`: standard deviation of the noise of each value.
    #[cfg_attr(feature = "schema", schemars(range(min = 0.0, max = 1.0)))]
    pub pixel_noise: f64,
}

impl Default for SyntheticSpec {
    /// 4,000 + 1,000 colour images of 32 x 32 pixels in 4 classes.
    fn default() -> Self {
        Self {
            scene: SyntheticScene::Shapes,
            num_train: 4000,
            num_test: 1000,
            image: 32,
            num_classes: 4,
            label: SyntheticLabel::Object,
            place_grid: 2,
            channels: 3,
            seed: 0,
            areas: ObjectAreas::ByShape,
            num_distractors: 0,
            object_radius: [4.0, 5.2],
            object_contrast: 1.0,
            background_amplitude: 1.0,
            pixel_noise: 0.05,
        }
    }
}

impl SyntheticSpec {
    /// Refuses values that are out of range, or that do not go together.
    ///
    /// # Errors
    /// [`DataError::Setting`] about the first of them, by its key below `data`.
    pub fn check(&self) -> Result<(), DataError> {
        let refuse = |key, allowed: String, value: String| Err(DataError::Setting { key, allowed, value });
        let whole = |key, value: usize, low: usize, high: usize| {
            let ok = (low..=high).contains(&value);
            if ok { Ok(()) } else { refuse(key, format!("{low} to {high}"), value.to_string()) }
        };
        if !matches!(self.channels, 1 | 3) {
            return refuse("synthetic.channels", "1 or 3".to_owned(), self.channels.to_string());
        }
        whole("synthetic.image", self.image, 8, 1024)?;
        whole("synthetic.num_train", self.num_train, 1, 1 << 31)?;
        whole("synthetic.num_test", self.num_test, 1, 1 << 31)?;
        let scene = self.scene;
        if !(2..=scene.num_shapes()).contains(&self.num_classes) {
            let allowed = match scene {
                SyntheticScene::Shapes => "2 to 10".to_owned(),
                SyntheticScene::Voronoi => format!("2 to 8 with {}", of_scene(scene)),
            };
            return refuse("synthetic.num_classes", allowed, self.num_classes.to_string());
        }
        whole("synthetic.place_grid", self.place_grid, 2, 3)?;
        if self.label == SyntheticLabel::Object && self.place_grid != Self::default().place_grid {
            let allowed = format!("{}, or data.synthetic.label = \"place\"", Self::default().place_grid);
            return refuse("synthetic.place_grid", allowed, self.place_grid.to_string());
        }
        match scene {
            SyntheticScene::Shapes => self.check_unused(),
            SyntheticScene::Voronoi => self.check_voronoi(),
        }
    }

    /// Keys of the other scene that have been given a value.
    fn check_unused(&self) -> Result<(), DataError> {
        let default = Self::default();
        let unused = |key, value: String, default: String| {
            if value == default {
                return Ok(());
            }
            let allowed = format!("{default} with {}", of_scene(self.scene));
            Err(DataError::Setting { key, allowed, value })
        };
        let word = |areas: ObjectAreas| format!("\"{}\"", areas.as_str());
        let number = |value: f64| format!("{value:?}");
        unused("synthetic.areas", word(self.areas), word(default.areas))?;
        let counts = [self.num_distractors, default.num_distractors].map(|num| num.to_string());
        unused("synthetic.num_distractors", counts[0].clone(), counts[1].clone())?;
        let radii = [self.object_radius, default.object_radius].map(|range| format!("{range:?}"));
        unused("synthetic.object_radius", radii[0].clone(), radii[1].clone())?;
        unused("synthetic.object_contrast", number(self.object_contrast), number(default.object_contrast))?;
        let amplitudes = [self.background_amplitude, default.background_amplitude].map(number);
        unused("synthetic.background_amplitude", amplitudes[0].clone(), amplitudes[1].clone())?;
        unused("synthetic.pixel_noise", number(self.pixel_noise), number(default.pixel_noise))
    }

    fn check_voronoi(&self) -> Result<(), DataError> {
        let refuse = |key, allowed: String, value: String| Err(DataError::Setting { key, allowed, value });
        if self.channels != 3 {
            let allowed = format!("3 with {}, whose object is told by its colour", of_scene(self.scene));
            return refuse("synthetic.channels", allowed, self.channels.to_string());
        }
        if self.num_distractors > 16 {
            return refuse("synthetic.num_distractors", "0 to 16".to_owned(), self.num_distractors.to_string());
        }
        let [low, high] = self.object_radius;
        let scale = if self.areas == ObjectAreas::Equal { MAX_RADIUS_SCALE } else { 1.0 };
        let largest = self.image as f64 / 2.0 / scale;
        // Written so that NaN is refused too.
        if !(low >= 1.0 && low <= high && high <= largest) {
            let side = self.image;
            // Rounded down, so that the value named is allowed.
            let largest = (largest * 100.0).floor() / 100.0;
            let allowed = format!("the lower and the upper of two radii from 1 to {largest} (image = {side})");
            return refuse("synthetic.object_radius", allowed, format!("{:?}", self.object_radius));
        }
        let real = |key, value: f64, low: f64, high: f64| {
            let ok = (low..=high).contains(&value);
            if ok { Ok(()) } else { refuse(key, format!("{low} to {high}"), format!("{value:?}")) }
        };
        real("synthetic.object_contrast", self.object_contrast, 0.1, 10.0)?;
        real("synthetic.background_amplitude", self.background_amplitude, 0.0, 10.0)?;
        real("synthetic.pixel_noise", self.pixel_noise, 0.0, 1.0)
    }
}

fn of_scene(scene: SyntheticScene) -> String {
    format!("data.synthetic.scene = \"{}\"", scene.as_str())
}
