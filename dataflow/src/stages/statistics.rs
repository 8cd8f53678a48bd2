//! Numbers about masks and scores, and the checks that every gradient passes.

use mlomae_model::kernels;
use mlomae_model::{Layout, ModelError};

use crate::exit::StageError;
use crate::stage_name::StageName;

/// How often each position has been masked of late.
#[derive(Debug, Default)]
pub(super) struct MaskStatistics {
    coverage: Vec<f64>,
}

/// Weight of one image in the running share of masked patches: about the last thousand images count.
const COVERAGE_WEIGHT: f64 = 1e-3;

impl MaskStatistics {
    pub(super) fn add_mask(&mut self, mask: &[bool]) {
        if self.coverage.is_empty() {
            self.coverage = vec![mask.iter().filter(|m| **m).count() as f64 / mask.len() as f64; mask.len()];
        }
        for (share, &masked) in self.coverage.iter_mut().zip(mask) {
            *share += COVERAGE_WEIGHT * (f64::from(u8::from(masked)) - *share);
        }
    }

    /// Lowest and highest running share of images in which a position is masked.
    pub(super) fn coverage(&self) -> (f64, f64) {
        let fold = |start: f64, pick: fn(f64, f64) -> f64| self.coverage.iter().copied().fold(start, pick);
        (fold(1.0, f64::min), fold(0.0, f64::max))
    }

    /// Mean binary entropy of the scores in nats, and the share of them outside 0.02..0.98.
    pub(super) fn of_scores(scores: &[f32]) -> (f64, f64) {
        let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        let entropy: f64 = scores.iter().map(|&p| term(f64::from(p)) + term(1.0 - f64::from(p))).sum();
        let saturated = scores.iter().filter(|p| !(0.02..=0.98).contains(*p)).count();
        (entropy / scores.len() as f64, saturated as f64 / scores.len() as f64)
    }
}

/// Share of saturated scores above which a policy has nothing left to learn from.
const SATURATED: f64 = 0.9;
/// Level-1 steps in a row after which saturated scores are called so.
const SATURATED_STEPS: u32 = 20;

/// Watches for scores that have saturated: their gradient is next to nothing, and the same patches stay masked.
#[derive(Debug, Default)]
pub(super) struct SaturationWatch {
    num_steps: u32,
}

impl SaturationWatch {
    /// Takes the saturation of one more step; true once, when it has been above [`SATURATED`] for [`SATURATED_STEPS`] steps in a row.
    pub(super) fn has_become_saturated(&mut self, saturation: f64) -> bool {
        if self.num_steps >= SATURATED_STEPS {
            return false;
        }
        self.num_steps = if saturation > SATURATED { self.num_steps + 1 } else { 0 };
        self.num_steps == SATURATED_STEPS
    }
}

fn refusal(level: &str, step: u64, quantity: String, value: f64) -> StageError {
    StageError::NonFinite { level: level.into(), quantity, step, value }
}

/// Refuses a loss that is not finite.
pub(super) fn check_loss(level: &str, step: u64, loss: f64) -> Result<(), StageError> {
    if loss.is_finite() { Ok(()) } else { Err(refusal(level, step, "loss".into(), loss)) }
}

/// Refuses a flat vector laid out as `layout` that is not finite, naming what it is and its first such tensor.
pub(super) fn check_vector(
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

/// A model error as an internal error of `stage`.
pub(super) fn internal(stage: StageName) -> impl Fn(ModelError) -> StageError {
    move |error| StageError::Internal { stage, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_and_coverage() {
        let (entropy, saturation) = MaskStatistics::of_scores(&[0.5, 0.5, 1.0, 0.01]);
        assert!((entropy - (2.0 * 2f64.ln() + 0.056) / 4.0).abs() < 1e-3, "{entropy}");
        assert_eq!(saturation, 0.5);
        let mut statistics = MaskStatistics::default();
        (0..20_000).for_each(|_| statistics.add_mask(&[true, false]));
        let (low, high) = statistics.coverage();
        assert!(low < 1e-3 && high > 0.999);
    }

    #[test]
    fn saturation_is_told_once_and_only_when_it_stays() {
        let mut watch = SaturationWatch::default();
        let saturated =
            |watch: &mut SaturationWatch, num: usize| (0..num).filter(|_| watch.has_become_saturated(0.95)).count();
        assert_eq!(saturated(&mut watch, 19), 0);
        assert!(!watch.has_become_saturated(0.5), "a step below begins the count anew");
        assert_eq!(saturated(&mut watch, 19), 0);
        assert_eq!(saturated(&mut watch, 1000), 1);
        assert!(!watch.has_become_saturated(0.1));
        assert_eq!(saturated(&mut watch, 1000), 0);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_is_at_least_what_was_just_touched() {
        let touched = vec![1_u8; 32 << 20];
        let (resident, peak) = crate::memory::process_memory().unwrap();
        assert!(resident > touched.iter().map(|&b| u64::from(b)).sum() && peak >= resident / 2, "{resident} {peak}");
    }

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
