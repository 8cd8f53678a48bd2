//! Numbers about masks and scores.

/// How often each position has been masked recently.
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
}
