//! Images that cannot be decoded: refused, or passed over and named once.
//!
//! Whether an image is bad depends on its bytes alone, and so does what takes its place: nothing of it is state of a
//! run.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mlomae_storage::dataset::{DataError, Dataset, Sample};

use crate::config::OnBadImage;

/// The kind of the event that names a bad image.
pub const IMAGE_SKIPPED: &str = "image_skipped";

/// An image that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedImage {
    /// Its split's name.
    pub split: String,
    /// Its index within the split.
    pub sample: usize,
    /// Its file and what is wrong with it.
    pub message: String,
}

/// Messages by split and index.
type Skipped = BTreeMap<(String, usize), String>;

/// What is done about bad images, and those that were passed over by this process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct BadImages {
    on_bad_image: OnBadImage,
    skipped: Arc<Mutex<Skipped>>,
}

impl BadImages {
    /// None so far.
    #[must_use]
    pub fn new(on_bad_image: OnBadImage) -> Self {
        Self { on_bad_image, skipped: Arc::default() }
    }

    /// Sample `index`, or none if its image is bad and to be passed over: then it is named in a warning (event
    /// [`IMAGE_SKIPPED`]), the first time.
    ///
    /// # Errors
    /// Whatever else is wrong; a bad image too if it is to be refused.
    pub fn read(&self, dataset: &dyn Dataset, index: usize) -> Result<Option<Sample>, DataError> {
        if self.on_bad_image == OnBadImage::Refuse {
            return dataset.sample(index).map(Some);
        }
        let key = (dataset.info().split.clone(), index);
        if self.lock().contains_key(&key) {
            return Ok(None);
        }
        match dataset.sample(index) {
            Err(error) if error.is_bad_image() => {
                let split = key.0.clone();
                if self.lock().insert(key, error.to_string()).is_none() {
                    let kind = IMAGE_SKIPPED;
                    tracing::warn!(kind, stage = "load", split, sample = index, "image skipped: {error}");
                }
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Whether bad images are passed over.
    #[must_use]
    pub fn are_skipped(&self) -> bool {
        self.on_bad_image == OnBadImage::Skip
    }

    /// All that were passed over, by split and index.
    #[must_use]
    pub fn skipped(&self) -> Vec<SkippedImage> {
        let skipped = self.lock();
        let image = |((split, sample), message): (&(String, usize), &String)| SkippedImage {
            split: split.clone(),
            sample: *sample,
            message: message.clone(),
        };
        skipped.iter().map(image).collect()
    }

    /// How many were passed over, in words, as `3 of train, 1 of test`; none if there are none.
    #[must_use]
    pub fn counts_text(&self) -> Option<String> {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for image in self.skipped() {
            *counts.entry(image.split).or_default() += 1;
        }
        // The train split first, as everywhere.
        let texts: Vec<String> = counts.iter().rev().map(|(split, num)| format!("{num} of {split}")).collect();
        (!texts.is_empty()).then(|| texts.join(", "))
    }

    fn lock(&self) -> MutexGuard<'_, Skipped> {
        // A map of messages is whole after any panic.
        self.skipped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
