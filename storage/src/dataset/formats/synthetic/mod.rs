//! Generated images: a textured background with one shaped object. The label is the shape or the place of the object,
//! which is known, so that a learned mask can be judged. Every image is a function of (seed, split, index) alone.

mod shapes;
mod textures;
mod voronoi;

use std::path::Path;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::dataset::error::DataError;
use crate::dataset::format::{Format, Likeness};
use crate::dataset::layout::listing::Scope;
use crate::dataset::pixels::Image;
use crate::dataset::sample::{Dataset, DatasetInfo, Sample, check_index};
use crate::dataset::spec::{DatasetSpec, FormatName, Split};
use crate::dataset::synthetic_spec::{SyntheticLabel, SyntheticScene, SyntheticSpec};
use shapes::{Placement, Shape};
use textures::Texture;
use voronoi::Kind;

/// The format of generated images.
pub(crate) struct Synthetic;

impl Synthetic {
    pub(crate) const NAME: FormatName = FormatName::new("synthetic");
}

impl Format for Synthetic {
    fn name(&self) -> FormatName {
        Self::NAME
    }

    fn about(&self) -> &'static str {
        "Generated: a textured background with one shaped object."
    }

    fn looked_for(&self) -> Option<String> {
        None
    }

    fn recognises(&self, _folder: &Path, _scope: &Scope) -> Result<Likeness, DataError> {
        Ok(Likeness::None)
    }

    fn image_side(&self, spec: &DatasetSpec) -> Option<usize> {
        Some(spec.synthetic.image)
    }

    fn open(&self, _place: &Path, spec: &DatasetSpec, _scope: &Scope) -> Result<Arc<dyn Dataset>, DataError> {
        if spec.split == Split::Validation {
            return Err(DataError::only_train_and_test(Self::NAME.as_str(), spec.split.as_str()));
        }
        Ok(Arc::new(SyntheticDataset::new(&spec.synthetic, spec.split)?))
    }
}

/// A split of generated images.
pub struct SyntheticDataset {
    info: DatasetInfo,
    spec: SyntheticSpec,
    split: Split,
}

/// Names of the cells of a grid over the image, row by row.
const CELLS_2: [&str; 4] = ["top-left", "top-right", "bottom-left", "bottom-right"];
const CELLS_3: [&str; 9] =
    ["top-left", "top", "top-right", "left", "middle", "right", "bottom-left", "bottom", "bottom-right"];

/// Keys of the random streams of one image.
#[derive(Clone, Copy)]
enum Purpose {
    Labels = 1,
    Object = 2,
    Pixels = 3,
}

impl SyntheticDataset {
    /// A split of the images that `spec` describes.
    ///
    /// # Errors
    /// [`DataError::Setting`] about the first value that is out of range.
    pub fn new(spec: &SyntheticSpec, split: Split) -> Result<Self, DataError> {
        spec.check()?;
        let shapes = |names: &[&'static str]| names[..spec.num_classes].to_vec();
        let names: Vec<&str> = match (spec.label, spec.scene) {
            (SyntheticLabel::Object, SyntheticScene::Shapes) => shapes(&Shape::ALL.map(Shape::name)),
            (SyntheticLabel::Object, SyntheticScene::Voronoi) => shapes(&Kind::ALL.map(Kind::name)),
            (SyntheticLabel::Place, _) if spec.place_grid == 2 => CELLS_2.to_vec(),
            (SyntheticLabel::Place, _) => CELLS_3.to_vec(),
        };
        let info = DatasetInfo {
            name: "synthetic".to_owned(),
            format: Synthetic::NAME.to_string(),
            split: split.to_string(),
            num_samples: if split == Split::Train { spec.num_train } else { spec.num_test },
            class_names: names.into_iter().map(str::to_owned).collect(),
            label_column: Some("label".to_owned()),
            image_size: Some((spec.image, spec.image)),
            channels: spec.channels,
        };
        Ok(Self { info, spec: spec.clone(), split })
    }

    fn rng(&self, purpose: Purpose, index: u64) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.spec.seed.to_le_bytes());
        key[8] = purpose as u8;
        key[9] = self.split as u8;
        key[16..24].copy_from_slice(&index.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// The shape of sample `index`, by its number. Every run of `num_classes` images holds each once, in an order of its
    /// own.
    fn shape(&self, index: usize) -> usize {
        let num_classes = self.spec.num_classes;
        let mut rng = self.rng(Purpose::Labels, (index / num_classes) as u64);
        let mut order: Vec<usize> = (0..num_classes).collect();
        for at in (1..num_classes).rev() {
            order.swap(at, rng.random_range(0..=at));
        }
        order[index % num_classes]
    }

    /// The object of a sample of the scene `voronoi`.
    fn voronoi_object(&self, index: usize) -> voronoi::Object {
        voronoi::Object::random(&mut self.rng(Purpose::Object, index as u64), Kind::ALL[self.shape(index)], &self.spec)
    }

    /// The object's place in a sample of the scene `shapes`.
    fn placement(&self, index: usize) -> Placement {
        Placement::random(&mut self.rng(Purpose::Object, index as u64), self.spec.image as f32)
    }

    /// The label of sample `index`.
    fn class(&self, index: usize) -> usize {
        if self.spec.label == SyntheticLabel::Object {
            return self.shape(index);
        }
        let [x, y] = match self.spec.scene {
            SyntheticScene::Shapes => self.placement(index).centre(),
            SyntheticScene::Voronoi => self.voronoi_object(index).centre(),
        };
        let (side, grid) = (self.spec.image as f64, self.spec.place_grid);
        let cell = |at: f64| ((at / side * grid as f64) as usize).min(grid - 1);
        cell(y) * grid + cell(x)
    }

    /// Share of each pixel that the object covers, [image * image].
    fn coverage(&self, index: usize) -> Vec<f32> {
        let side = self.spec.image;
        match self.spec.scene {
            SyntheticScene::Shapes => shapes::coverage(Shape::ALL[self.shape(index)], &self.placement(index), side),
            SyntheticScene::Voronoi => {
                let object = self.voronoi_object(index);
                (0..side * side).map(|at| f32::from(u8::from(object.covers(at % side, at / side)))).collect()
            }
        }
    }

    /// The object of sample `index` alone, a grey image: 0 where it is not, 255 where it covers the whole pixel.
    fn object(&self, index: usize) -> Image {
        let side = self.spec.image;
        let pixels = self.coverage(index).into_iter().map(|share| (255.0 * share).round() as u8).collect();
        Image { width: side, height: side, channels: 1, pixels }
    }

    /// Pixels of sample `index` that are at least half object, [image * image].
    pub(crate) fn object_pixels(&self, index: usize) -> Vec<bool> {
        self.coverage(index).into_iter().map(|share| share >= 0.5).collect()
    }

    /// Patches of sample `index` with at least one object pixel, row by row over the grid of `patch` by `patch` pixels
    /// (the last row and column of the grid may be narrower); empty for a patch of 0.
    #[must_use]
    pub fn object_patches(&self, index: usize, patch: usize) -> Vec<bool> {
        if patch == 0 {
            return Vec::new();
        }
        let (side, grid) = (self.spec.image, self.spec.image.div_ceil(patch));
        let mut patches = vec![false; grid * grid];
        for (at, covered) in self.object_pixels(index).into_iter().enumerate() {
            patches[at / side / patch * grid + at % side / patch] |= covered;
        }
        patches
    }

    fn image(&self, index: usize) -> Image {
        let (side, channels) = (self.spec.image, self.spec.channels);
        let mut rng = self.rng(Purpose::Pixels, index as u64);
        if self.spec.scene == SyntheticScene::Voronoi {
            let pixels = voronoi::pixels(&self.spec, &self.voronoi_object(index), &mut rng);
            return Image { width: side, height: side, channels, pixels };
        }
        let texture = Texture::random(&mut rng, side as f32);
        let dark: [f32; 3] = std::array::from_fn(|_| rng.random_range(20.0..150.0));
        let light: [f32; 3] = dark.map(|value| value + rng.random_range(25.0..70.0));
        let object = object_colour(&mut rng, &dark, &light);
        let shade = rng.random_range(-0.15..0.15_f32);
        let mut pixels = Vec::with_capacity(side * side * channels);
        for (at, share) in self.coverage(index).into_iter().enumerate() {
            let (x, y) = ((at % side) as f32, (at / side) as f32);
            let mix = texture.at(x, y);
            let fade = 1.0 + shade * (y / side as f32 - 0.5);
            let rgb: [f32; 3] = std::array::from_fn(|c| {
                let background = dark[c] + (light[c] - dark[c]) * mix;
                background + (object[c] * fade - background) * share + rng.random_range(-6.0..6.0)
            });
            if channels == 3 {
                pixels.extend(rgb.map(|value| value.round().clamp(0.0, 255.0) as u8));
            } else {
                pixels.push(((rgb[0] + rgb[1] + rgb[2]) / 3.0).round().clamp(0.0, 255.0) as u8);
            }
        }
        Image { width: side, height: side, channels, pixels }
    }
}

/// A colour whose brightness is at least 60 away from the background's range, so that grey images show the object too.
fn object_colour(rng: &mut ChaCha8Rng, dark: &[f32; 3], light: &[f32; 3]) -> [f32; 3] {
    let mean = |colour: &[f32; 3]| colour.iter().sum::<f32>() / 3.0;
    let (low, high) = (mean(dark), mean(light));
    let tint: [f32; 3] = std::array::from_fn(|_| rng.random_range(-30.0..30.0));
    let gap = rng.random_range(60.0..100.0);
    // Above the background where there is room below white, else below it.
    let target = if high + gap <= 245.0 && (low - gap < 10.0 || rng.random_bool(0.5)) { high + gap } else { low - gap };
    let tint_mean = mean(&tint);
    tint.map(|value| target.max(5.0) + value - tint_mean)
}

impl Dataset for SyntheticDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(Some(self.class(index) as i32))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        Ok(Sample { id: index as i64, image: self.image(index), label: Some(self.class(index) as i32) })
    }

    fn known_object_patches(&self, index: usize, patch: usize) -> Option<Vec<bool>> {
        (index < self.info.num_samples && patch > 0).then(|| self.object_patches(index, patch))
    }
    fn known_object(&self, index: usize) -> Option<Image> {
        (index < self.info.num_samples).then(|| self.object(index))
    }
}
