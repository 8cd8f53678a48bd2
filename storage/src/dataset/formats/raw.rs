//! Equally sized u8 images in memory, as CIFAR and IDX have them: what their readers share.

use std::path::{Path, PathBuf};

use crate::dataset::error::DataError;
use crate::dataset::pixels::Image;
use crate::dataset::sample::{Dataset, DatasetInfo, LabelOrigin, NameSource, Sample, check_index};

/// How the values of an image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One plane a channel, as CIFAR has it.
    Planes,
    /// The channels of a pixel together.
    Interleaved,
}

/// Images of one size, one after the other.
pub(crate) struct RawDataset {
    info: DatasetInfo,
    names: NameSource,
    layout: Layout,
    pixels: Vec<u8>,
    labels: Vec<i32>,
    image_len: usize,
    notes: Vec<String>,
    files: Vec<PathBuf>,
}

impl RawDataset {
    /// `names` says where those of the classes come from. `info.image_size` and `info.channels` must be known; labels
    /// are checked against the class names.
    pub fn new(
        info: DatasetInfo,
        names: NameSource,
        layout: Layout,
        pixels: Vec<u8>,
        labels: Vec<i32>,
        files: &[(PathBuf, usize)],
    ) -> Result<Self, DataError> {
        let first = files.first().map_or(Path::new(""), |(path, _)| path.as_path());
        let (width, height) = info.image_size.unwrap_or((0, 0));
        let image_len = width * height * info.channels;
        if image_len == 0 || labels.is_empty() {
            return Err(DataError::malformed(first, "no images"));
        }
        if labels.len() != info.num_samples || pixels.len() != image_len * labels.len() {
            return Err(DataError::malformed(
                first,
                format!("{} labels for {} pixel values of images of {image_len}", labels.len(), pixels.len()),
            ));
        }
        let num_classes = info.class_names.len() as i64;
        if let Some(sample) = labels.iter().position(|&label| !(0..num_classes).contains(&i64::from(label))) {
            let path = files.iter().rev().find(|(_, start)| *start <= sample).map_or(first, |(path, _)| path.as_path());
            return Err(DataError::sample(
                path,
                sample,
                format!("label must be 0 to {}, not {}", num_classes - 1, labels[sample]),
            ));
        }
        let files = files.iter().map(|(path, _)| path.clone()).collect();
        Ok(Self { info, names, layout, pixels, labels, image_len, notes: Vec::new(), files })
    }

    /// The same with what its reader left out.
    pub fn with_notes(self, notes: Vec<String>) -> Self {
        Self { notes, ..self }
    }
}

impl Dataset for RawDataset {
    fn info(&self) -> &DatasetInfo {
        &self.info
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn label_origin(&self) -> LabelOrigin {
        LabelOrigin { names: self.names, ..LabelOrigin::default() }
    }

    fn files(&self) -> Vec<&Path> {
        self.files.iter().map(PathBuf::as_path).collect()
    }

    fn resident_bytes(&self) -> u64 {
        (self.pixels.capacity() + 4 * self.labels.capacity()) as u64
    }

    fn label(&self, index: usize) -> Result<Option<i32>, DataError> {
        check_index(&self.info, index)?;
        Ok(Some(self.labels[index]))
    }

    fn sample(&self, index: usize) -> Result<Sample, DataError> {
        check_index(&self.info, index)?;
        let stored = &self.pixels[index * self.image_len..][..self.image_len];
        let channels = self.info.channels;
        let pixels = match self.layout {
            Layout::Interleaved => stored.to_vec(),
            Layout::Planes => {
                let plane = self.image_len / channels;
                (0..plane).flat_map(|at| (0..channels).map(move |channel| stored[channel * plane + at])).collect()
            }
        };
        let (width, height) = self.info.image_size.expect("invariant: checked by new");
        Ok(Sample::of_class(index as i64, Image { width, height, channels, pixels }, Some(self.labels[index])))
    }
}
