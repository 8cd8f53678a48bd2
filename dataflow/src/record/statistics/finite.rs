//! The check that every loss and gradient passes: no NaN and no infinity.

use mlomae_kernels as kernels;
use mlomae_model::Layout;

use crate::flow::exit::StageError;

fn refusal(level: &str, step: u64, quantity: String, value: f64) -> StageError {
    StageError::NonFinite { level: level.into(), quantity, step, value }
}

/// Refuses a loss that is not finite.
pub(crate) fn check_loss(level: &str, step: u64, loss: f64) -> Result<(), StageError> {
    if loss.is_finite() { Ok(()) } else { Err(refusal(level, step, "loss".into(), loss)) }
}

/// Refuses a flat vector laid out as `layout` that is not finite, naming what it is and its first such tensor.
pub(crate) fn check_vector(
    level: &str,
    step: u64,
    what: &str,
    values: &[f32],
    layout: &Layout,
) -> Result<(), StageError> {
    let Some(place) = kernels::first_non_finite(values) else { return Ok(()) };
    let tensor = layout.locate(place).map_or(what, |(name, _)| name);
    Err(refusal(level, step, format!("{what} of {tensor}"), f64::from(values[place])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_tensor_that_is_not_finite_is_named() {
        let mut layout = Layout::new(mlomae_model::ParamSet::Head);
        layout.linear("head", &[2, 3]);
        let mut gradient = vec![0.0; 8];
        assert!(check_vector("finetune", 3, "gradient", &gradient, &layout).is_ok());
        gradient[7] = f32::NAN;
        let text = check_vector("finetune", 3, "gradient", &gradient, &layout).unwrap_err().to_string();
        assert_eq!(text, "finetune: gradient of head.bias is not finite at step 3: NaN");
        assert!(check_loss("mask", 3, f64::INFINITY).unwrap_err().to_string().contains("loss"));
    }
}
