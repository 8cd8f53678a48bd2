//! How the mask ratio and the exploration change over the level-1 steps of a run.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::rng::{Purpose, keyed, uniform};

/// The way of a number from its first value a to its last b, where s is the share of the run that is done, 0 at its
/// first level-1 step and 1 at its last.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
pub enum MaskSchedule {
    /// a throughout.
    #[default]
    Constant,
    /// a + (b − a)·s.
    Linear,
    /// a + (b − a)·(1 − cos πs)/2: slow at both ends.
    Cosine,
    /// a + (b − a)·s²: slow at the start.
    Quadratic,
    /// Drawn anew for each batch, uniformly between a and b (R²MAE, arXiv 2509.21650).
    Random,
}

impl fmt::Display for MaskSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MaskSchedule::Constant => "constant",
            MaskSchedule::Linear => "linear",
            MaskSchedule::Cosine => "cosine",
            MaskSchedule::Quadratic => "quadratic",
            MaskSchedule::Random => "random",
        })
    }
}

/// Which number it is, so that each has its own draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduled {
    /// The share of the patches that is masked.
    Ratio = 0,
    /// The share of the patches that get random keys.
    Explore = 1,
}

/// A number that changes over a run: a function of the step, so that a resume goes on as if it had not stopped.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// Which number.
    pub of: Scheduled,
    /// Its way.
    pub schedule: MaskSchedule,
    /// a.
    pub start: f64,
    /// b.
    pub end: f64,
    /// Level-1 steps of the run.
    pub total_steps: u64,
}

impl Course {
    /// The number at level-1 step `step`, counted from 0; beyond the last step the last one's, or another draw.
    #[must_use]
    pub fn at(&self, seed: u64, step: u64) -> f64 {
        let last = self.total_steps.saturating_sub(1).max(1);
        let done = (step as f64 / last as f64).min(1.0);
        let share = match self.schedule {
            MaskSchedule::Constant => return self.start,
            MaskSchedule::Linear => done,
            MaskSchedule::Cosine => 0.5 * (1.0 - (std::f64::consts::PI * done).cos()),
            MaskSchedule::Quadratic => done * done,
            MaskSchedule::Random => uniform(&mut keyed(seed, Purpose::MaskSchedule, step, self.of as u64)),
        };
        self.start + (self.end - self.start) * share
    }

    /// Whether it is the same at every step.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.schedule == MaskSchedule::Constant
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn course(schedule: MaskSchedule) -> Course {
        Course { of: Scheduled::Ratio, schedule, start: 0.9, end: 0.5, total_steps: 101 }
    }

    #[test]
    fn ways_lead_from_the_first_value_to_the_last_as_their_formulas_say() {
        let at = |schedule, step| course(schedule).at(7, step);
        for schedule in [MaskSchedule::Linear, MaskSchedule::Cosine, MaskSchedule::Quadratic] {
            assert_eq!(at(schedule, 0), 0.9);
            assert!((at(schedule, 100) - 0.5).abs() < 1e-12 && at(schedule, 100) == at(schedule, u64::MAX));
            assert!((1..=100).all(|step| at(schedule, step) < at(schedule, step - 1)), "{schedule:?}");
        }
        assert!((at(MaskSchedule::Linear, 25) - 0.8).abs() < 1e-12);
        assert!((at(MaskSchedule::Quadratic, 50) - 0.8).abs() < 1e-12);
        assert!((at(MaskSchedule::Cosine, 50) - 0.7).abs() < 1e-12);
        assert!((at(MaskSchedule::Cosine, 25) - (0.9 - 0.4 * (0.5 - 0.5f64.sqrt() / 2.0))).abs() < 1e-12);
        assert_eq!((at(MaskSchedule::Constant, 0), at(MaskSchedule::Constant, 100)), (0.9, 0.9));
        // A run of a single step, and one of none.
        for total_steps in [0, 1] {
            assert_eq!(Course { total_steps, ..course(MaskSchedule::Linear) }.at(7, 0), 0.9);
        }
    }

    #[test]
    fn draws_are_uniform_and_follow_from_seed_step_and_number() {
        let random = course(MaskSchedule::Random);
        let draws: Vec<f64> = (0..4000).map(|step| random.at(7, step)).collect();
        assert!(draws.iter().all(|ratio| (0.5..=0.9).contains(ratio)));
        let mean = draws.iter().sum::<f64>() / 4000.0;
        let variance = draws.iter().map(|ratio| (ratio - mean).powi(2)).sum::<f64>() / 4000.0;
        assert!((mean - 0.7).abs() < 0.01 && (variance - 0.16 / 12.0).abs() < 1e-3, "{mean} {variance}");
        assert_eq!(random.at(7, 5), draws[5]);
        assert_ne!(random.at(8, 5), draws[5]);
        assert_ne!(Course { of: Scheduled::Explore, ..random }.at(7, 5), draws[5]);
    }
}
