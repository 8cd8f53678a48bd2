//! What a format of datasets is: how it is recognised, opened and described.

use std::path::Path;
use std::sync::Arc;

use super::error::DataError;
use super::layout::listing::Scope;
use super::sample::Dataset;
use super::spec::{DatasetSpec, FormatName};
use super::target::TargetKind;

/// A form in which datasets are stored. One that is in the list [`FORMATS`](super::FORMATS) is known everywhere: to
/// detection, to `data.format` of the configuration and its schema, to the command line's help, and to messages.
pub trait Format: Sync {
    /// Its name as the value of `data.format`.
    fn name(&self) -> FormatName;

    /// What it reads, one line that begins with a capital and ends with a full stop.
    fn about(&self) -> &'static str;

    /// What its files look like, for the message when no format is recognised; none for one that reads no files.
    fn looked_for(&self) -> Option<String>;

    /// The kinds of targets that data of this format may have, whether or not some files have them.
    fn targets(&self) -> &'static [TargetKind] {
        &[TargetKind::Class]
    }

    /// The kinds of targets that the data at `place` have, of [`Format::targets`].
    ///
    /// # Errors
    /// As [`Format::open`], about what has to be looked at to know it.
    fn kinds(&self, _place: &Path, _spec: &DatasetSpec, _scope: &Scope) -> Result<Vec<TargetKind>, DataError> {
        Ok(self.targets().to_vec())
    }

    /// The extension of a file that is a dataset by itself, in lower case, without the dot.
    fn file_extension(&self) -> Option<&'static str> {
        None
    }

    /// How surely the files in `folder` are of this format. `scope` says what of the folder is to be looked at.
    ///
    /// # Errors
    /// [`DataError::Io`] if a folder cannot be read; [`DataError::Malformed`] for files that are of this format by
    /// their names, but contradict each other.
    fn recognises(&self, folder: &Path, scope: &Scope) -> Result<Likeness, DataError>;

    /// Whether several datasets of this format lie beside each other, a folder each, as configurations on the Hub do.
    fn has_configurations(&self) -> bool {
        false
    }

    /// Side in pixels of its square images, if it is known before the dataset is opened.
    fn image_side(&self, _spec: &DatasetSpec) -> Option<usize> {
        None
    }

    /// Opens the wanted split of the dataset at `place`, the folder that was recognised or the file that was named.
    /// Both `place` and `scope` are empty for a format that reads no files.
    ///
    /// # Errors
    /// [`DataError`] about a split that is absent, files that are damaged, labels that cannot be read or settings that
    /// do not fit.
    fn open(&self, place: &Path, spec: &DatasetSpec, scope: &Scope) -> Result<Arc<dyn Dataset>, DataError>;
}

/// How surely files are of a format. The surest format is taken, of equally sure ones the first of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Likeness {
    /// Nothing of the format.
    None,
    /// Files of its kind that no name places in a split. Taken if nothing else is found, in no folder below either.
    Loose,
    /// What may as well be something else, as a single folder of images. Taken likewise.
    Doubtful,
    /// What one split consists of, as class folders of images.
    OneSplit,
    /// Files in folders that are named as splits. Beside class folders in these they may be facts about the images.
    SplitFiles,
    /// Class folders in folders that are named as splits.
    SplitFolders,
    /// Files that no other format has.
    Certain,
}
