//! Statistics of paired differences over few seeds: t-intervals, the exact sign-flip test, Holm's adjustment, and the
//! number of seeds that a difference would need.
//!
//! An arm is judged by the differences dᵢ = arm − reference of the same seed i. The interval is Student's,
//! mean ± t₀.₉₇₅,ₙ₋₁ · sd/√n. The p-value is exact: under the null hypothesis that the two arms are exchangeable within
//! a seed, each of the 2ⁿ choices of signs is equally likely (R. A. Fisher, The Design of Experiments, 1935, §21). Holm
//! (Scand. J. Statist. 6, 1979) bounds the chance of any false claim among the arms of one reference. Percentile
//! bootstraps over so few seeds cover far too little, and are not offered.

use serde::{Deserialize, Serialize};
use statrs::distribution::{ContinuousCDF, StudentsT};
use statrs::function::erf::erfc;
use statrs::function::gamma::ln_gamma;

/// Chance of any false claim against one reference, and 1 minus the confidence of intervals.
pub const ALPHA: f64 = 0.05;
/// Chance to find a difference as large as the one seen, for the number of seeds that is told.
pub const POWER: f64 = 0.8;
/// Seeds below which nothing is claimed: at five the smallest p-value of the exact test is 0.0625.
pub const MIN_SEEDS: usize = 6;
/// Seeds for which the exact test is still computed: half of them has 2²⁰ sums.
pub const MAX_SEEDS: usize = 40;
/// Seeds beyond which it is not said how many exactly would be needed.
const MAX_NEEDED: u64 = 10_000;

/// Paired differences and what follows from them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Paired {
    /// Pairs.
    pub num_pairs: usize,
    /// Mean difference.
    pub mean: f64,
    /// Standard deviation of the differences, with n − 1. None below two pairs.
    pub sd: Option<f64>,
    /// Lower end of the 95 % t-interval of the mean. None below two pairs.
    pub low: Option<f64>,
    /// Its upper end.
    pub high: Option<f64>,
    /// Two-sided p-value of the exact sign-flip test.
    pub p: f64,
}

/// What is said about an arm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// At least [`MIN_SEEDS`] pairs, adjusted p below [`ALPHA`], and the interval above 0.
    Better,
    /// The same below 0.
    Worse,
    /// Anything else: neither a difference nor equality is shown.
    NotShown,
}

impl Verdict {
    /// In words.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NotShown => "not shown",
        }
    }
}

/// Mean and standard deviation (n − 1) of `values`; the latter none below two.
#[must_use]
pub fn mean_sd(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let square: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (square / (n - 1.0)).sqrt()))
}

/// The quantile `q` of Student's t with `df` degrees of freedom.
#[must_use]
pub fn t_quantile(q: f64, df: f64) -> f64 {
    let Ok(t) = StudentsT::new(0.0, 1.0, df) else { return f64::NAN };
    // The library's quantile is a bisection that stops early: Newton's steps finish it.
    let mut x = t.inverse_cdf(q);
    for _ in 0..4 {
        let density = statrs::distribution::Continuous::pdf(&t, x);
        x -= (t.cdf(x) - q) / density;
    }
    x
}

/// The 95 % t-interval of the mean. None below two values.
#[must_use]
pub fn t_interval(values: &[f64]) -> Option<[f64; 2]> {
    let (mean, sd) = mean_sd(values);
    let n = values.len() as f64;
    let half = t_quantile(1.0 - ALPHA / 2.0, n - 1.0) * sd? / n.sqrt();
    Some([mean - half, mean + half])
}

/// What follows from the paired `differences`. None if there are none, or more than [`MAX_SEEDS`].
#[must_use]
pub fn paired(differences: &[f64]) -> Option<Paired> {
    if differences.is_empty() || differences.len() > MAX_SEEDS {
        return None;
    }
    let (mean, sd) = mean_sd(differences);
    let interval = t_interval(differences);
    Some(Paired {
        num_pairs: differences.len(),
        mean,
        sd,
        low: interval.map(|[low, _]| low),
        high: interval.map(|[_, high]| high),
        p: sign_flip(differences),
    })
}

/// Two-sided p-value of the exact sign-flip test: the share of all 2ⁿ choices of signs for which |Σ ±dᵢ| is at least
/// |Σ dᵢ|, up to rounding.
///
/// The sums of either half of the differences are sorted, and pairs are counted from both ends, so that n = 40 takes as
/// long as 2²⁰ sums.
#[must_use]
pub fn sign_flip(differences: &[f64]) -> f64 {
    let (left, right) = differences.split_at(differences.len() / 2);
    let (left, right) = (signed_sums(left), signed_sums(right));
    let size: f64 = differences.iter().map(|d| d.abs()).sum();
    let least = differences.iter().sum::<f64>().abs() - 1e-12 * size;
    if least <= 0.0 {
        return 1.0;
    }
    // Choices whose sum is at least `least`; as many have one of at most −`least`.
    let mut num_above = 0u64;
    let mut first = right.len();
    for l in &left {
        while first > 0 && l + right[first - 1] >= least {
            first -= 1;
        }
        num_above += (right.len() - first) as u64;
    }
    2.0 * num_above as f64 / (left.len() as f64 * right.len() as f64)
}

/// Σ ±dᵢ for all choices of signs, ascending.
fn signed_sums(differences: &[f64]) -> Vec<f64> {
    let mut sums = vec![0.0];
    for d in differences {
        sums = sums.iter().flat_map(|sum| [sum - d, sum + d]).collect();
    }
    sums.sort_unstable_by(f64::total_cmp);
    sums
}

/// Holm's adjusted p-values, in the order of `p`.
#[must_use]
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*a].total_cmp(&p[*b]));
    let mut adjusted = vec![0.0; p.len()];
    let mut so_far: f64 = 0.0;
    for (rank, index) in order.into_iter().enumerate() {
        so_far = so_far.max((p.len() - rank) as f64 * p[index]).min(1.0);
        adjusted[index] = so_far;
    }
    adjusted
}

/// The verdict on paired differences whose adjusted p-value is `p_adjusted`. `is_higher_better` gives the direction.
#[must_use]
pub fn verdict(paired: &Paired, p_adjusted: f64, is_higher_better: bool) -> Verdict {
    let (Some(low), Some(high)) = (paired.low, paired.high) else { return Verdict::NotShown };
    if paired.num_pairs < MIN_SEEDS || p_adjusted >= ALPHA || (low <= 0.0 && high >= 0.0) {
        return Verdict::NotShown;
    }
    if (low > 0.0) == is_higher_better { Verdict::Better } else { Verdict::Worse }
}

/// The fewest seeds with which the exact test could claim anything at all for one of `num_arms` arms: 2¹⁻ⁿ times their
/// number must be below [`ALPHA`].
#[must_use]
pub fn fewest_seeds(num_arms: usize) -> usize {
    let can_claim = |n: &usize| num_arms.max(1) as f64 * 0.5f64.powi(*n as i32 - 1) < ALPHA;
    (MIN_SEEDS..).find(can_claim).unwrap_or(MIN_SEEDS)
}

/// Seeds with which a difference of `mean` with standard deviation `sd` would be found with the chance [`POWER`] among
/// `num_arms` arms, at Holm's strictest level [`ALPHA`]/`num_arms`; by the noncentral t, and at least
/// [`fewest_seeds`]. None if there is no difference, or beyond ten thousand.
#[must_use]
pub fn seeds_needed(mean: f64, sd: f64, num_arms: usize) -> Option<u64> {
    let fewest = fewest_seeds(num_arms) as u64;
    let level = ALPHA / num_arms.max(1) as f64;
    if !mean.is_finite() || !sd.is_finite() || mean == 0.0 {
        return None;
    }
    if sd == 0.0 {
        return Some(fewest);
    }
    let is_enough = |n: u64| power(mean.abs() / sd, n, level) >= POWER;
    if is_enough(fewest) {
        return Some(fewest);
    }
    if !is_enough(MAX_NEEDED) {
        return None;
    }
    let (mut too_few, mut enough) = (fewest, MAX_NEEDED);
    while enough - too_few > 1 {
        let middle = u64::midpoint(too_few, enough);
        if is_enough(middle) {
            enough = middle;
        } else {
            too_few = middle;
        }
    }
    Some(enough)
}

/// Power of the two-sided paired t-test at `level` for `n` pairs and an effect of `effect` standard deviations:
/// P(|T| > t) with T noncentral, as the integral over the ratio s of the sample's deviation to the true one.
#[must_use]
pub fn power(effect: f64, n: u64, level: f64) -> f64 {
    let df = (n - 1) as f64;
    let (t, shift) = (t_quantile(1.0 - level / 2.0, df), effect * (n as f64).sqrt());
    // s² is χ²/df: density 2 (df/2)^(df/2) s^(df−1) e^(−df s²/2) / Γ(df/2).
    let scale = std::f64::consts::LN_2 + 0.5 * df * (0.5 * df).ln() - ln_gamma(0.5 * df);
    let density = |s: f64| (scale + (df - 1.0) * s.ln() - 0.5 * df * s * s).exp();
    let normal = |x: f64| 0.5 * erfc(-x / std::f64::consts::SQRT_2);
    let beyond = |s: f64| normal(shift - t * s) + normal(-t * s - shift);
    // Far beyond what the density leaves of the weight.
    let half = 10.0 / (2.0 * df).sqrt();
    let (from, to) = ((1.0 - half).max(1e-9), 1.0 + half);
    // Simpson's rule.
    const NUM_INTERVALS: usize = 1000;
    let step = (to - from) / NUM_INTERVALS as f64;
    let weighted = (0..=NUM_INTERVALS).map(|i| {
        let s = from + step * i as f64;
        let weight = match i {
            0 | NUM_INTERVALS => 1.0,
            i if i % 2 == 1 => 4.0,
            _ => 2.0,
        };
        weight * density(s) * beyond(s)
    });
    weighted.sum::<f64>() * step / 3.0
}

#[cfg(test)]
#[path = "statistics_tests.rs"]
mod tests;
