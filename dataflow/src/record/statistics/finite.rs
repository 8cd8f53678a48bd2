//! The check that every loss and gradient passes: no NaN and no infinity.

use mlomae_model::lane::Lane;
use mlomae_model::{Layout, Level, Vector};

use crate::counts::Step;
use crate::flow::exit::StageError;

fn refusal(level: Level, step: Step, quantity: String, value: f64) -> StageError {
    StageError::NonFinite { level: level.as_str().into(), quantity, step: step.0, value }
}

/// Refuses a loss that is not finite.
pub(crate) fn check_loss(level: Level, step: Step, loss: f64) -> Result<(), StageError> {
    if loss.is_finite() { Ok(()) } else { Err(refusal(level, step, "loss".into(), loss)) }
}

/// Refuses a flat vector laid out as `layout` that is not finite, naming what it is and its first such tensor.
pub(crate) fn check_vector(
    lane: &mut dyn Lane,
    level: Level,
    step: Step,
    what: &str,
    vector: &Vector,
    layout: &Layout,
) -> Result<(), StageError> {
    let found = lane.first_non_finite(vector);
    let found = found.map_err(|error| refusal(level, step, format!("{what} cannot be checked: {error}"), f64::NAN))?;
    let Some((place, value)) = found else { return Ok(()) };
    let tensor = layout.locate(place).map_or(what, |(name, _)| name);
    Err(refusal(level, step, format!("{what} of {tensor}"), f64::from(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tensor_that_is_not_finite_is_named() {
        let mut layout = Layout::new(Level::Finetune);
        layout.linear("head", &[2, 3]);
        let model = mlomae_model::Model::new(&mlomae_model::ModelConfig::default()).unwrap();
        let mut lane = mlomae_model::lane::CpuLane::serial(std::sync::Arc::new(model), 1);
        let mut check = |gradient: &[f32]| {
            check_vector(&mut lane, Level::Finetune, Step(3), "gradient", &gradient.to_vec().into(), &layout)
        };
        let mut gradient = vec![0.0; 8];
        assert!(check(&gradient).is_ok());
        gradient[7] = f32::NAN;
        let text = check(&gradient).unwrap_err().to_string();
        assert_eq!(text, "finetune: gradient of head.bias is not finite at step 3: NaN");
        assert!(check_loss(Level::Mask, Step(3), f64::INFINITY).unwrap_err().to_string().contains("loss"));
    }
}
