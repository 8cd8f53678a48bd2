//! Model errors that indicate a bug.

use mlomae_model::ModelError;

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;

/// A model error as an internal error of `stage`.
pub(crate) fn internal(stage: StageName) -> impl Fn(ModelError) -> StageError {
    move |error| StageError::Internal { stage, message: error.to_string() }
}
