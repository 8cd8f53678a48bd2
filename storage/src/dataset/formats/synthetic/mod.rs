//! Generated images: a textured background with one shaped object, or with several where more than the class is asked for.
//! The label is the shape, and the object's place is known, so that a learned mask can be judged. Every image is a
//! function of (seed, split, index) and of the number of objects alone.

mod objects;
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
use crate::dataset::synthetic_spec::{SyntheticScene, SyntheticSpec};
use crate::dataset::target::{TargetInfo, TargetKind};
use objects::{Object, Objects, VALUES};
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
        "Generated: a textured background with shaped objects, and targets of every kind."
    }

    fn targets(&self) -> &'static [TargetKind] {
        &TargetKind::ALL
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
        Ok(Arc::new(SyntheticDataset::with_targets(&spec.synthetic, spec.split, &spec.targets)?))
    }
}

/// A split of generated images.
pub struct SyntheticDataset {
    info: DatasetInfo,
    spec: SyntheticSpec,
    split: Split,
    targets: Vec<TargetKind>,
}

/// Keys of the random streams of one image.
#[derive(Clone, Copy)]
enum Purpose {
    Labels = 1,
    Object = 2,
    Pixels = 3,
    /// The number of objects, and those in front of the first.
    Others = 4,
    /// The colours of these.
    Colours = 5,
}

impl SyntheticDataset {
    /// A split of the images that `spec` describes, with the class of their one object.
    ///
    /// # Errors
    /// [`DataError::Setting`] about the first value that is out of range.
    pub fn new(spec: &SyntheticSpec, split: Split) -> Result<Self, DataError> {
        Self::with_targets(spec, split, &[TargetKind::Class])
    }

    /// The same with the targets `targets`: if that is more than the class, images of the scene `shapes` show
    /// `spec.num_objects` objects.
    ///
    /// # Errors
    /// [`DataError::Setting`] about the first value that is out of range.
    pub fn with_targets(spec: &SyntheticSpec, split: Split, targets: &[TargetKind]) -> Result<Self, DataError> {
        spec.check()?;
        let default = SyntheticSpec::default().num_objects;
        if spec.num_objects != default && targets.iter().all(|kind| *kind == TargetKind::Class) {
            return Err(DataError::Setting {
                key: "data.synthetic.num_objects",
                allowed: format!("{default:?} where only the class is asked for, as images then show one object"),
                value: format!("{:?}", spec.num_objects),
            });
        }
        let names: Vec<&str> = match spec.scene {
            SyntheticScene::Shapes => Shape::ALL.map(Shape::name).to_vec(),
            SyntheticScene::Voronoi => Kind::ALL.map(Kind::name).to_vec(),
        };
        let info = DatasetInfo {
            name: "synthetic".to_owned(),
            format: Synthetic::NAME.to_string(),
            split: split.to_string(),
            num_samples: if split == Split::Train { spec.num_train } else { spec.num_test },
            class_names: names[..spec.num_classes].iter().map(|name| (*name).to_owned()).collect(),
            label_column: Some("label".to_owned()),
            image_size: Some((spec.image, spec.image)),
            channels: spec.channels,
        };
        Ok(Self { info, spec: spec.clone(), split, targets: targets.to_vec() })
    }

    fn rng(&self, purpose: Purpose, index: u64) -> ChaCha8Rng {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&self.spec.seed.to_le_bytes());
        key[8] = purpose as u8;
        key[9] = self.split as u8;
        key[16..24].copy_from_slice(&index.to_le_bytes());
        ChaCha8Rng::from_seed(key)
    }

    /// Every run of `num_classes` images holds each class once, in an order of its own.
    fn class(&self, index: usize) -> usize {
        let num_classes = self.spec.num_classes;
        let mut rng = self.rng(Purpose::Labels, (index / num_classes) as u64);
        let mut order: Vec<usize> = (0..num_classes).collect();
        for at in (1..num_classes).rev() {
            order.swap(at, rng.random_range(0..=at));
        }
        order[index % num_classes]
    }

    /// Whether images show several objects.
    fn has_several(&self) -> bool {
        self.spec.scene == SyntheticScene::Shapes && self.targets.iter().any(|kind| *kind != TargetKind::Class)
    }

    /// The object of a sample of the scene `voronoi`.
    fn voronoi_object(&self, index: usize) -> voronoi::Object {
        voronoi::Object::random(&mut self.rng(Purpose::Object, index as u64), Kind::ALL[self.class(index)], &self.spec)
    }

    /// The objects of a sample. The first is the same however many there are.
    fn objects(&self, index: usize) -> Objects {
        let (side, class) = (self.spec.image, self.class(index));
        if self.spec.scene == SyntheticScene::Voronoi {
            let object = self.voronoi_object(index);
            let coverage =
                (0..side * side).map(|at| f32::from(u8::from(object.covers(at % side, at / side)))).collect();
            let (centre, radius) = object.place();
            return Objects { all: vec![Object { class, centre, radius, coverage }], side };
        }
        let placed = |rng: &mut ChaCha8Rng, class: usize| {
            let placement = Placement::random(rng, side as f32);
            let coverage = shapes::coverage(Shape::ALL[class], &placement, side);
            Object { class, centre: placement.centre(), radius: placement.radius(), coverage }
        };
        let mut all = vec![placed(&mut self.rng(Purpose::Object, index as u64), class)];
        if self.has_several() {
            let [least, most] = self.spec.num_objects;
            let mut rng = self.rng(Purpose::Others, index as u64);
            for _ in 1..rng.random_range(least..=most) {
                let class = rng.random_range(0..self.spec.num_classes);
                all.push(placed(&mut rng, class));
            }
        }
        Objects { all, side }
    }

    /// The class of the largest object.
    fn label_of(&self, index: usize) -> i32 {
        let class = if self.has_several() { self.objects(index).largest().class } else { self.class(index) };
        class as i32
    }

    /// The objects of sample `index` alone, a grey image: 0 where there is none, 255 where one covers the whole pixel.
    fn object(&self, index: usize) -> Image {
        let side = self.spec.image;
        let coverage = self.objects(index).coverage();
        let pixels = coverage.into_iter().map(|share| (255.0 * share).round() as u8).collect();
        Image { width: side, height: side, channels: 1, pixels }
    }

    /// Pixels of sample `index` that are at least half object, [image * image].
    pub(crate) fn object_pixels(&self, index: usize) -> Vec<bool> {
        self.objects(index).coverage().into_iter().map(|share| share >= 0.5).collect()
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

    fn image(&self, index: usize, objects: &Objects) -> Image {
        let (side, channels) = (self.spec.image, self.spec.channels);
        let mut rng = self.rng(Purpose::Pixels, index as u64);
        if self.spec.scene == SyntheticScene::Voronoi {
            let pixels = voronoi::pixels(&self.spec, &self.voronoi_object(index), &mut rng);
            return Image { width: side, height: side, channels, pixels };
        }
        let texture = Texture::random(&mut rng, side as f32);
        let dark: [f32; 3] = std::array::from_fn(|_| rng.random_range(20.0..150.0));
        let light: [f32; 3] = dark.map(|value| value + rng.random_range(25.0..70.0));
        let mut colours = vec![object_colour(&mut rng, &dark, &light)];
        let shade = rng.random_range(-0.15..0.15_f32);
        // Of a stream of their own, so that all other draws are those of an image of one object.
        let mut others = self.rng(Purpose::Colours, index as u64);
        colours.extend(objects.all.iter().skip(1).map(|_| object_colour(&mut others, &dark, &light)));
        let mut pixels = Vec::with_capacity(side * side * channels);
        for at in 0..side * side {
            let (x, y) = ((at % side) as f32, (at / side) as f32);
            let mix = texture.at(x, y);
            let fade = 1.0 + shade * (y / side as f32 - 0.5);
            let rgb: [f32; 3] = std::array::from_fn(|c| {
                let background = dark[c] + (light[c] - dark[c]) * mix;
                let painted = colours.iter().zip(&objects.all).fold(background, |value, (colour, object)| {
                    value + (colour[c] * fade - value) * object.coverage[at]
                });
                painted + rng.random_range(-6.0..6.0)
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
        Ok(Some(self.label_of(index)))
    }

    fn targets_info(&self) -> Vec<TargetInfo> {
        let shapes = &self.info.class_names;
        let names = |kind| match kind {
            TargetKind::Values => VALUES.map(str::to_owned).to_vec(),
            TargetKind::Map => std::iter::once("background".to_owned()).chain(shapes.iter().cloned()).collect(),
            TargetKind::Class | TargetKind::Labels | TargetKind::Boxes => shapes.clone(),
        };
        let column = |kind| (kind == TargetKind::Class).then(|| self.info.label_column.clone()).flatten();
        self.targets.iter().map(|&kind| TargetInfo::declared(kind, names(kind), column(kind))).collect()
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let objects = self.objects(index);
        let target = |kind: &TargetKind| objects.target(*kind, self.spec.num_classes);
        Ok(Sample {
            id: index as i64,
            image: self.image(index, &objects),
            label: Some(objects.largest().class as i32),
            targets: self.targets.iter().map(target).collect(),
        })
    }

    fn known_object_patches(&self, index: usize, patch: usize) -> Option<Vec<bool>> {
        (index < self.info.num_samples && patch > 0).then(|| self.object_patches(index, patch))
    }
    fn known_object(&self, index: usize) -> Option<Image> {
        (index < self.info.num_samples).then(|| self.object(index))
    }
}
