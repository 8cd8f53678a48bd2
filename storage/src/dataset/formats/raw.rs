//! What readers share: datasets of equally sized u8 images in memory, and the survey of image headers.

use std::path::{Path, PathBuf};

use crate::dataset::decode::Header;
use crate::dataset::labels::classes::{LabelOrigin, NameSource};
use crate::dataset::{DataError, Dataset, DatasetInfo, Image, Sample, check_index};

/// Size and channels of the images seen so far; unreadable ones are left to whoever decodes them.
#[derive(Debug, Default)]
pub(crate) struct Survey {
    size: Option<(usize, usize)>,
    differs: bool,
    coloured: bool,
    seen: bool,
    /// Channels that were decided before.
    decided: Option<usize>,
    is_part: bool,
}

impl Survey {
    /// Of a dataset whose samples are wanted with `channels`; only 3 decides anything.
    pub fn new(channels: Option<usize>) -> Self {
        Self { decided: channels.filter(|channels| *channels == 3), ..Self::default() }
    }

    pub fn add(&mut self, header: Option<Header>) {
        let Some(header) = header else { return };
        let size = (header.width, header.height);
        self.differs |= *self.size.get_or_insert(size) != size;
        self.coloured |= header.channels != 1;
        self.seen = true;
    }

    /// True when no further image can change the outcome.
    pub fn is_settled(&self) -> bool {
        self.differs && (self.coloured || self.decided.is_some())
    }

    /// There are images that were not looked at: what is not settled then is not known.
    pub fn leave_out_the_rest(&mut self) {
        self.is_part = true;
    }

    /// (width, height) when all were the same.
    pub fn image_size(&self) -> Option<(usize, usize)> {
        self.size.filter(|_| !self.differs && !self.is_part)
    }

    /// 1 when all were grey, else 3.
    pub fn channels(&self) -> usize {
        let all_grey = self.seen && !self.coloured && !self.is_part;
        self.decided.unwrap_or(if all_grey { 1 } else { 3 })
    }
}

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
    layout: Layout,
    pixels: Vec<u8>,
    labels: Vec<i32>,
    image_len: usize,
    notes: Vec<String>,
    files: Vec<PathBuf>,
}

impl RawDataset {
    /// `info.image_size` and `info.channels` must be known; labels are held against the class names.
    pub fn new(
        info: DatasetInfo,
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
        Ok(Self { info, layout, pixels, labels, image_len, notes: Vec::new(), files })
    }

    /// The same with what its reader passed over.
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
        // IDX alone has no names at all, not even that of a field.
        let names = if self.info.label_column.is_none() { NameSource::Numbers } else { NameSource::Declared };
        LabelOrigin { names, ..LabelOrigin::default() }
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
        Ok(Sample {
            id: index as i64,
            image: Image { width, height, channels, pixels },
            label: Some(self.labels[index]),
        })
    }
}
