//! Numbers about masks and scores, and the checks that every gradient passes.

use mlomae_kernels as kernels;
use mlomae_model::{Layout, ModelError};

use crate::flow::exit::StageError;
use crate::flow::stage_name::StageName;

/// How often each position has been masked of late.
#[derive(Debug, Default)]
pub(crate) struct MaskStatistics {
    coverage: Vec<f64>,
}

/// Weight of one image in the running share of masked patches: about the last thousand images count.
const COVERAGE_WEIGHT: f64 = 1e-3;

impl MaskStatistics {
    pub(crate) fn add_mask(&mut self, mask: &[bool]) {
        if self.coverage.is_empty() {
            self.coverage = vec![mask.iter().filter(|m| **m).count() as f64 / mask.len() as f64; mask.len()];
        }
        for (share, &masked) in self.coverage.iter_mut().zip(mask) {
            *share += COVERAGE_WEIGHT * (f64::from(u8::from(masked)) - *share);
        }
    }

    /// Lowest and highest running share of images in which a position is masked.
    pub(crate) fn coverage(&self) -> (f64, f64) {
        let fold = |start: f64, pick: fn(f64, f64) -> f64| self.coverage.iter().copied().fold(start, pick);
        (fold(1.0, f64::min), fold(0.0, f64::max))
    }

    /// Running share of images in which each position is masked, row by row \[L]; empty before the first mask.
    pub(crate) fn coverage_by_position(&self) -> &[f64] {
        &self.coverage
    }

    /// Mean binary entropy of the scores in nats, and the share of them outside 0.02..0.98.
    pub(crate) fn of_scores(scores: &[f32]) -> (f64, f64) {
        let term = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        let entropy: f64 = scores.iter().map(|&p| term(f64::from(p)) + term(1.0 - f64::from(p))).sum();
        let saturated = scores.iter().filter(|p| !(0.02..=0.98).contains(*p)).count();
        (entropy / scores.len() as f64, saturated as f64 / scores.len() as f64)
    }
}

/// How masks and scores lie to objects whose patches are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ObjectStatistics {
    /// Area under the ROC curve of the scores as a detector of an image's object patches, mean of the images: 1 if each object patch has a
    /// higher score than each other, 0.5 by chance, 0 if a lower one. None without scores, or if no image has patches of both kinds.
    pub(crate) score_auc: Option<f64>,
    /// Share of the object patches that are masked; none if there are none.
    pub(crate) object_share: Option<f64>,
    /// Share of the other patches that are masked; none if there are none.
    pub(crate) background_share: Option<f64>,
}

impl ObjectStatistics {
    /// Of images of `num_patches` patches each: `objects`, `masked` and `scores` [images, num_patches].
    pub(crate) fn of(objects: &[bool], masked: &[bool], scores: Option<&[f32]>, num_patches: usize) -> Self {
        let share_masked = |of_object: bool| {
            let of_kind = || objects.iter().zip(masked).filter(|(object, _)| **object == of_object);
            let num = of_kind().count();
            (num > 0).then(|| of_kind().filter(|(_, masked)| **masked).count() as f64 / num as f64)
        };
        let aucs = scores.into_iter().flat_map(|scores| {
            let images = objects.chunks_exact(num_patches).zip(scores.chunks_exact(num_patches));
            images.filter_map(|(objects, scores)| area_under_roc(objects, scores))
        });
        let aucs: Vec<f64> = aucs.collect();
        Self {
            score_auc: (!aucs.is_empty()).then(|| aucs.iter().sum::<f64>() / aucs.len() as f64),
            object_share: share_masked(true),
            background_share: share_masked(false),
        }
    }
}

/// Share of the pairs of a hit and a miss in which the hit has the higher score; equal scores count half. None unless there are both.
fn area_under_roc(hits: &[bool], scores: &[f32]) -> Option<f64> {
    let of_kind = |kind: bool| hits.iter().zip(scores).filter(move |(hit, _)| **hit == kind).map(|(_, score)| *score);
    let (num_hits, num_misses) = (of_kind(true).count(), of_kind(false).count());
    let wins = of_kind(true).flat_map(|hit| {
        of_kind(false).map(move |miss| f64::from(u8::from(hit > miss)) + 0.5 * f64::from(u8::from(hit == miss)))
    });
    (num_hits > 0 && num_misses > 0).then(|| wins.sum::<f64>() / (num_hits * num_misses) as f64)
}

/// Share of saturated scores above which a policy has nothing left to learn from.
const SATURATED: f64 = 0.9;
/// Level-1 steps in a row after which saturated scores are called so.
const SATURATED_STEPS: u32 = 20;

/// Watches for scores that have saturated: their gradient is next to nothing, and the same patches stay masked.
#[derive(Debug, Default)]
pub(crate) struct SaturationWatch {
    num_steps: u32,
}

impl SaturationWatch {
    /// Takes the saturation of one more step; true once, when it has been above [`SATURATED`] for [`SATURATED_STEPS`] steps in a row.
    pub(crate) fn has_become_saturated(&mut self, saturation: f64) -> bool {
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

/// A model error as an internal error of `stage`.
pub(crate) fn internal(stage: StageName) -> impl Fn(ModelError) -> StageError {
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
        assert_eq!(statistics.coverage_by_position(), [high, low]);
    }

    #[test]
    fn known_scores_find_the_object_or_not() {
        let objects = [true, true, false, false, false, true, false, false];
        let masked = [true, true, true, false, false, false, true, false];
        let of = |scores: &[f32]| ObjectStatistics::of(&objects, &masked, Some(scores), 4);
        // First image: all 4 pairs won; second: all 3 lost.
        let found = of(&[0.9, 0.8, 0.1, 0.2, 0.7, 0.1, 0.6, 0.5]);
        assert_eq!(found.score_auc, Some(0.5));
        assert_eq!((found.object_share, found.background_share), (Some(2.0 / 3.0), Some(2.0 / 5.0)));
        assert_eq!(of(&[0.9, 0.8, 0.1, 0.2, 0.1, 0.7, 0.6, 0.5]).score_auc, Some(1.0));
        assert_eq!(of(&[0.3; 8]).score_auc, Some(0.5), "equal scores say nothing");
        // 3 of 4 pairs, and one of 3 with one draw.
        let third = 1.5 / 3.0;
        assert_eq!(of(&[0.9, 0.5, 0.6, 0.1, 0.2, 0.5, 0.5, 0.9]).score_auc, Some((0.75 + third) / 2.0));
        assert_eq!(ObjectStatistics::of(&objects, &masked, None, 4).score_auc, None);
        let without = ObjectStatistics::of(&[false; 4], &masked[..4], Some(&[0.5; 4]), 4);
        assert_eq!((without.score_auc, without.object_share), (None, None));
        assert_eq!(without.background_share, Some(0.75));
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
        let (resident, peak) = crate::record::memory::process_memory().unwrap();
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
