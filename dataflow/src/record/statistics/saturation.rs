//! Scores that have saturated.

/// Share of saturated scores above which a policy has nothing left to learn from.
const SATURATED: f64 = 0.9;
/// Consecutive level-1 steps with saturated scores before a warning.
const SATURATED_STEPS: u32 = 20;

/// Watches for scores that have saturated: their gradient is next to nothing, and the same patches stay masked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SaturationWatch {
    num_steps: u32,
}

impl SaturationWatch {
    /// After `num_steps` saturated steps in a row.
    pub(crate) const fn restored(num_steps: u32) -> Self {
        Self { num_steps }
    }

    /// Saturated steps in a row.
    pub(crate) const fn num_steps(&self) -> u32 {
        self.num_steps
    }

    /// Takes the saturation of one more step; true once, when it has been above [`SATURATED`] for [`SATURATED_STEPS`]
    /// steps in a row.
    pub(crate) fn has_become_saturated(&mut self, saturation: f64) -> bool {
        if self.num_steps >= SATURATED_STEPS {
            return false;
        }
        self.num_steps = if saturation > SATURATED { self.num_steps + 1 } else { 0 };
        self.num_steps == SATURATED_STEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
