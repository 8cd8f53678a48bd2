//! Image files with what annotations say of them: class maps, and objects with boxes. What the readers of such datasets
//! share.
//!
//! Targets are in the pixels of the image file as stored, as other readers of these formats take them, and turn with the
//! image where EXIF says so. Those whose size is that of the turned image alone are taken for upright already.

use std::path::{Path, PathBuf};

use crate::dataset::decode::index_map::{self, Indices};
use crate::dataset::decode::resize::into_channels;
use crate::dataset::decode::{DecodeLimits, Decoder, Turn};
use crate::dataset::error::DataError;
use crate::dataset::formats::image_files::{read, survey};
use crate::dataset::labels::map_classes::MapRule;
use crate::dataset::pixels::Image;
use crate::dataset::sample::{Dataset, DatasetInfo, Sample, check_index};
use crate::dataset::spec::DatasetSpec;
use crate::dataset::target::{ObjectBox, Target, TargetInfo, TargetKind, labels_of_boxes};

/// How far a box may leave its image, in pixels, by rounding or by counting from 1: what is outside is cut off.
const MAX_OUTSIDE: f32 = 1.0;

/// An image, and what is said of it.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub image: PathBuf,
    /// Its class map.
    pub mask: Option<PathBuf>,
    /// Width and height of the image for which the boxes were made, if that is said.
    pub size: Option<[u32; 2]>,
    pub boxes: Box<[ObjectBox]>,
}

/// A split of annotated image files.
pub(crate) struct Annotated {
    info: DatasetInfo,
    /// The canonical folder that no file may leave.
    root: PathBuf,
    items: Vec<Item>,
    decoder: Decoder,
    notes: Vec<String>,
    targets: Vec<TargetInfo>,
    rule: Option<MapRule>,
    annotations: Vec<PathBuf>,
}

/// What a reader has found.
pub(crate) struct Found {
    /// Name and format of the dataset, and the stored name of the split.
    pub name: String,
    pub format: &'static str,
    pub split: String,
    pub root: PathBuf,
    pub items: Vec<Item>,
    pub notes: Vec<String>,
    /// For each kind that was asked for.
    pub targets: Vec<TargetInfo>,
    /// How indices of maps become classes, where maps were asked for.
    pub rule: Option<MapRule>,
    /// Files that hold annotations of several images, or names.
    pub annotations: Vec<PathBuf>,
}

impl Annotated {
    pub fn new(found: Found, spec: &DatasetSpec) -> Self {
        let Found { name, format, split, root, items, notes, targets, rule, annotations } = found;
        let survey = survey(items.iter().map(|item| item.image.as_path()), &root, spec);
        let info = DatasetInfo {
            name,
            format: format.to_owned(),
            split,
            num_samples: items.len(),
            class_names: Vec::new(),
            label_column: None,
            image_size: survey.image_size(),
            channels: survey.channels(),
        };
        Self { info, root, items, decoder: spec.decoder(), notes, targets, rule, annotations }
    }

    fn target(&self, kind: TargetKind, index: usize, image: &Image, turn: Turn) -> Result<Target, DataError> {
        let item = &self.items[index];
        match kind {
            TargetKind::Map => {
                let (Some(mask), Some(rule)) = (&item.mask, self.rule) else { return Ok(Target::Unknown) };
                self.map(index, mask, rule, turn)
            }
            TargetKind::Boxes => {
                let boxes = turned_boxes(&item.boxes, item.size, image, turn);
                boxes.map_err(|reason| DataError::sample(&item.image, index, reason))
            }
            TargetKind::Labels => {
                let num = self.targets.iter().find(|target| target.kind == kind).map_or(0, |target| target.names.len());
                Ok(Target::Labels(labels_of_boxes(&item.boxes, num)))
            }
            TargetKind::Class | TargetKind::Values => Ok(Target::Unknown),
        }
    }

    fn map(&self, index: usize, mask: &Path, rule: MapRule, turn: Turn) -> Result<Target, DataError> {
        let indices = read_indices(mask, index, &self.root, &self.decoder.limits)?;
        turned_map(indices, rule, turn).map_err(|reason| DataError::sample(mask, index, reason))
    }
}

/// The class map of an image, turned as it was.
///
/// # Errors
/// In words, about another size than the image's, or an index that is no class.
pub(crate) fn turned_map(indices: Indices, rule: MapRule, turn: Turn) -> Result<Target, String> {
    let (width, height) = (indices.width, indices.height);
    let is_to_turn = turn.is_to_come(width, height);
    let is_to_turn = is_to_turn
        .ok_or_else(|| format!("is of {width}x{height} pixels, its image of {}x{}", turn.width, turn.height))?;
    let map = rule.apply(indices)?;
    Ok(Target::Map(if is_to_turn { turn.map(map) } else { map }))
}

/// The boxes of an image, turned as it was. They were made for one of `size`, if that is said.
///
/// # Errors
/// In words, about another size than the image's, or a box that leaves it.
pub(crate) fn turned_boxes(
    boxes: &[ObjectBox],
    size: Option<[u32; 2]>,
    image: &Image,
    turn: Turn,
) -> Result<Target, String> {
    let [width, height] = size.map_or([turn.width, turn.height], |size| size.map(|side| side as usize));
    let is_to_turn = turn.is_to_come(width, height).ok_or_else(|| {
        format!("is of {}x{} pixels, its boxes are those of an image of {width}x{height}", image.width, image.height)
    })?;
    let mut found = Vec::with_capacity(boxes.len());
    for object in boxes {
        let edges = fitted(object.edges, [width as f32, height as f32]);
        let edges = edges.ok_or_else(|| outside(object.edges, width, height))?;
        if has_area(edges) {
            found.push(ObjectBox { edges: if is_to_turn { turn.edges(edges) } else { edges }, ..*object });
        }
    }
    Ok(Target::Boxes(found.into()))
}

/// The indices in the file of a mask, which is sample `index`'s.
pub(crate) fn read_indices(
    mask: &Path,
    index: usize,
    root: &Path,
    limits: &DecodeLimits,
) -> Result<Indices, DataError> {
    let bytes = read(mask, root, limits.max_bytes as u64 + 1)?;
    index_map::decode(&bytes, limits).map_err(|source| DataError::Decode {
        path: mask.to_owned(),
        sample: index,
        source,
    })
}

/// Edges inside an image of `size`, of ones that leave it by not more than rounding does; none of others.
pub(crate) fn fitted(edges: [f32; 4], size: [f32; 2]) -> Option<[f32; 4]> {
    let [width, height] = size;
    let [left, top, right, bottom] = edges;
    let is_inside = left >= -MAX_OUTSIDE
        && top >= -MAX_OUTSIDE
        && right <= width + MAX_OUTSIDE
        && bottom <= height + MAX_OUTSIDE
        && left <= right
        && top <= bottom;
    is_inside
        .then(|| [left.clamp(0.0, width), top.clamp(0.0, height), right.clamp(0.0, width), bottom.clamp(0.0, height)])
}

/// Whether a box has any area.
pub(crate) fn has_area([left, top, right, bottom]: [f32; 4]) -> bool {
    right > left && bottom > top
}

/// What is wrong with a box that leaves its image.
pub(crate) fn outside([left, top, right, bottom]: [f32; 4], width: usize, height: usize) -> String {
    format!("a box from {left}, {top} to {right}, {bottom} leaves its image of {width}x{height} pixels")
}

impl Dataset for Annotated {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(None)
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let path = &self.items[index].image;
        // One byte more than allowed is enough for the decoder to refuse the rest.
        let bytes = read(path, &self.root, self.decoder.limits.max_bytes as u64 + 1)?;
        let decoded = self.decoder.decode_turned(&bytes);
        let (image, turn) =
            decoded.map_err(|source| DataError::Decode { path: path.clone(), sample: index, source })?;
        if image.channels > self.info.channels {
            return Err(DataError::sample(path, index, "is in colour, while all images were grey at the beginning"));
        }
        let targets = self.targets.iter().map(|target| self.target(target.kind, index, &image, turn));
        let targets = targets.collect::<Result<_, _>>()?;
        Ok(Sample { id: index as i64, image: into_channels(image, self.info.channels), label: None, targets })
    }

    fn targets_info(&self) -> Vec<TargetInfo> {
        self.targets.clone()
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn files(&self) -> Vec<&Path> {
        let images = self.items.iter().map(|item| item.image.as_path());
        let masks = self.items.iter().filter_map(|item| item.mask.as_deref());
        images.chain(masks).chain(self.annotations.iter().map(PathBuf::as_path)).collect()
    }

    fn resident_bytes(&self) -> u64 {
        let of_item = |item: &Item| {
            let names = [Some(&item.image), item.mask.as_ref()].into_iter().flatten();
            size_of::<Item>() + size_of_val(&*item.boxes) + names.map(|name| name.as_os_str().len()).sum::<usize>()
        };
        let annotations = self.annotations.iter().map(|path| size_of::<PathBuf>() + path.as_os_str().len());
        self.items.iter().map(of_item).chain(annotations).sum::<usize>() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_cut_at_the_edge_and_refused_far_beyond_it() {
        let size = [10.0, 20.0];
        assert_eq!(fitted([-1.0, 0.5, 10.4, 20.0], size), Some([0.0, 0.5, 10.0, 20.0]));
        for bad in
            [[-1.5, 0.0, 5.0, 5.0], [0.0, 0.0, 11.5, 5.0], [0.0, 0.0, 5.0, 22.0], [5.0, 0.0, 4.0, 5.0], [f32::NAN; 4]]
        {
            assert_eq!(fitted(bad, size), None, "{bad:?}");
        }
        assert!(!has_area([3.0, 0.0, 3.0, 5.0]) && has_area([3.0, 0.0, 3.5, 5.0]));
    }
}
