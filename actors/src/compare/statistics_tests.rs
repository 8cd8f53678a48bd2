//! Expected numbers are those of scipy 1.17 and statsmodels 0.15; the Python that gives them stands above each, and
//! `tests/python/check_statistics.py` compares them anew.

use mlomae_model::rng::{Purpose, keyed, uniform};

use super::*;

fn assert_close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance * expected.abs().max(1e-12), "{what}: {found}, not {expected}");
}

const DIFFERENCES: [f64; 6] = [0.012, -0.004, 0.021, 0.008, 0.017, 0.003];

#[test]
fn quantiles_and_intervals_are_those_of_scipy() {
    // [stats.t.ppf(q, df) for q, df in [(0.975, 1), (0.975, 5), (0.975, 11), (0.9996, 3), (0.995, 39)]]
    let expected = [
        (0.975, 1.0, 12.706204736174694),
        (0.975, 5.0, 2.5705818356363146),
        (0.975, 11.0, 2.200985160091639),
        (0.9996, 3.0, 13.93571974559372),
        (0.995, 39.0, 2.707913183517662),
    ];
    for (q, df, t) in expected {
        assert_close(t_quantile(q, df), t, 1e-12, "quantile");
    }
    // r = stats.ttest_1samp(d, 0); np.mean(d), np.std(d, ddof=1), r.confidence_interval(0.95)
    let found = paired(&DIFFERENCES).unwrap();
    assert_close(found.mean, 0.0095, 1e-12, "mean");
    assert_close(found.sd.unwrap(), 0.009181503144910425, 1e-12, "sd");
    assert_close(found.low.unwrap(), -0.00013539662808606176, 1e-9, "low");
    assert_close(found.high.unwrap(), 0.019135396628086065, 1e-12, "high");
    assert_eq!((paired(&[]), paired(&[1.0; MAX_SEEDS + 1])), (None, None));
    let single = paired(&[0.3]).unwrap();
    assert_eq!((single.sd, single.low, single.p), (None, None, 1.0));
}

#[test]
fn the_sign_flip_test_is_that_of_scipy() {
    // stats.permutation_test((d, np.zeros(len(d))), lambda a, b, axis: np.sum(a - b, axis=axis), vectorized=True,
    //     permutation_type="samples", n_resamples=np.inf, alternative="two-sided").pvalue
    assert_eq!(sign_flip(&DIFFERENCES), 0.09375);
    assert_eq!(sign_flip(&[0.3, -0.1, 0.2, 0.2, -0.2, 0.5, 0.1, 0.4]), 0.109375);
    assert_eq!(sign_flip(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]), 0.015625);
    assert_eq!(sign_flip(&[0.5, 0.5, -0.5, -0.5, 0.5]), 1.0);
    assert_eq!(sign_flip(&[0.0; 8]), 1.0);
}

/// Every choice of signs, one after the other.
fn sign_flip_plainly(differences: &[f64]) -> f64 {
    let n = differences.len();
    let size: f64 = differences.iter().map(|d| d.abs()).sum();
    let seen = differences.iter().sum::<f64>().abs();
    let sum = |signs: u32| -> f64 {
        let signed = |(i, d): (usize, &f64)| if signs >> i & 1 == 1 { -d } else { *d };
        differences.iter().enumerate().map(signed).sum()
    };
    let num = (0..1u32 << n).filter(|signs| sum(*signs).abs() >= seen - 1e-12 * size).count();
    num as f64 / f64::from(1u32 << n)
}

#[test]
fn the_sign_flip_test_counts_every_choice_of_signs() {
    let mut rng = keyed(1, Purpose::Eval, 2, 3);
    for n in 1..=12 {
        for round in 0..20 {
            // Every other time on a grid, so that sums are equal up to rounding.
            let draw = |rng: &mut _| match round % 2 {
                0 => uniform(rng) - 0.4,
                _ => (10.0 * uniform(rng)).floor() / 10.0 - 0.3,
            };
            let differences: Vec<f64> = (0..n).map(|_| draw(&mut rng)).collect();
            assert_eq!(sign_flip(&differences), sign_flip_plainly(&differences), "{differences:?}");
        }
    }
    assert_eq!(sign_flip(&[1.0; MAX_SEEDS]), 0.5f64.powi(MAX_SEEDS as i32 - 1));
}

#[test]
fn holm_is_that_of_statsmodels() {
    // multipletests([0.01, 0.04, 0.03, 0.005, 0.5], method="holm")[1]
    let found = holm(&[0.01, 0.04, 0.03, 0.005, 0.5]);
    for (found, expected) in found.iter().zip([0.04, 0.09, 0.09, 0.025, 0.5]) {
        assert_close(*found, expected, 1e-12, "adjusted");
    }
    assert_eq!(holm(&[]), Vec::<f64>::new());
    assert_eq!(holm(&[0.6, 0.7]), [1.0, 1.0]);
}

#[test]
fn power_is_that_of_statsmodels() {
    // TTestPower().power(effect, n, level, alternative="two-sided")
    let expected = [
        (0.5, 10, 0.05, 0.2931756065140767),
        (1.0, 6, 0.05, 0.5068419799585816),
        (0.3, 50, 0.01, 0.2994694911461521),
        (2.0, 7, 0.05 / 7.0, 0.8332000147189756),
        (0.05, 400, 0.05, 0.16948241098934702),
    ];
    for (effect, n, level, of_statsmodels) in expected {
        assert_close(power(effect, n, level), of_statsmodels, 1e-6, "power");
    }
    // TTestPower().solve_power(effect_size=effect, alpha=level, power=0.8, alternative="two-sided"), rounded up:
    // 33.37, 198.15, 22.46 at 0.05/6, and 9.94.
    assert_eq!(seeds_needed(0.5, 1.0, 1), Some(34));
    assert_eq!(seeds_needed(-0.2, 1.0, 1), Some(199));
    assert_eq!(seeds_needed(0.8, 1.0, 6), Some(23));
    assert_eq!(seeds_needed(1.0, 1.0, 1), Some(10));
    // Never fewer than the exact test needs, whatever the effect.
    assert_eq!(seeds_needed(100.0, 1.0, 1), Some(6));
    assert_eq!(seeds_needed(100.0, 0.0, 7), Some(fewest_seeds(7) as u64));
    assert_eq!((seeds_needed(0.0, 1.0, 1), seeds_needed(1e-9, 1.0, 1)), (None, None));
}

#[test]
fn with_the_fewest_seeds_something_can_be_claimed_and_with_one_less_nothing() {
    for num_arms in 1..=40 {
        let fewest = fewest_seeds(num_arms);
        let claim = |n: usize| {
            let differences: Vec<f64> = (0..n).map(|i| 1.0 + 0.01 * i as f64).collect();
            let p: Vec<f64> = std::iter::once(sign_flip(&differences)).chain((1..num_arms).map(|_| 1.0)).collect();
            verdict(&paired(&differences).unwrap(), holm(&p)[0], true)
        };
        assert_eq!(claim(fewest), Verdict::Better, "{num_arms} arms");
        assert_eq!(claim(fewest - 1), Verdict::NotShown, "{num_arms} arms");
    }
}

#[test]
fn a_verdict_needs_seeds_a_small_p_and_an_interval_without_zero() {
    let six = [1.0, 1.1, 0.9, 1.2, 0.8, 1.0];
    let up = paired(&six).unwrap();
    let down = paired(&six.map(|d| -d)).unwrap();
    assert_eq!([true, false].map(|higher| verdict(&up, 0.04, higher)), [Verdict::Better, Verdict::Worse]);
    assert_eq!([true, false].map(|higher| verdict(&down, 0.04, higher)), [Verdict::Worse, Verdict::Better]);
    assert_eq!(verdict(&up, 0.05, true), Verdict::NotShown);
    assert_eq!(verdict(&paired(&six[..5]).unwrap(), 0.0, true), Verdict::NotShown);
    let wide = paired(&[10.0, 0.1, 0.1, 0.1, 0.1, 0.1]).unwrap();
    assert!(wide.low.unwrap() < 0.0, "one large difference widens the interval");
    assert_eq!(verdict(&wide, sign_flip(&[10.0, 0.1, 0.1, 0.1, 0.1, 0.1]), true), Verdict::NotShown);
}

/// Standard normal draws, by Box and Muller.
fn normals(seed: u64, round: u64, num: usize) -> Vec<f64> {
    let mut rng = keyed(seed, Purpose::Eval, round, 7);
    let mut draw = || {
        let (radius, angle) =
            ((-2.0 * (1.0 - uniform(&mut rng)).ln()).sqrt(), std::f64::consts::TAU * uniform(&mut rng));
        radius * angle.cos()
    };
    (0..num).map(|_| draw()).collect()
}

#[test]
fn intervals_cover_the_truth_as_often_as_they_say() {
    const NUM_ROUNDS: u64 = 20_000;
    for n in [3, 6, 10] {
        let covers = |round: u64| {
            let values: Vec<f64> = normals(n as u64, round, n).into_iter().map(|v| 0.3 + 2.0 * v).collect();
            t_interval(&values).is_some_and(|[low, high]| low <= 0.3 && 0.3 <= high)
        };
        let share = (0..NUM_ROUNDS).filter(|round| covers(*round)).count() as f64 / NUM_ROUNDS as f64;
        println!("{n} seeds: {share:.4} of {NUM_ROUNDS} intervals cover the truth");
        assert!((share - 0.95).abs() < 0.01, "{n} seeds: {share}");
    }
}

#[test]
fn equal_arms_are_seldom_told_apart() {
    const NUM_ROUNDS: u64 = 4_000;
    const NUM_ARMS: usize = 7;
    for n in [6, 12] {
        // All arms on a seed share its luck, and the reference's is in all differences.
        let claims = |round: u64| {
            let draws = normals(100 + n as u64, round, n * (NUM_ARMS + 1));
            let value = |arm: usize, seed: usize| draws[arm * n + seed] + 3.0 * draws[NUM_ARMS * n + seed];
            let against = |arm: usize| -> Vec<f64> { (0..n).map(|seed| value(arm, seed) - value(0, seed)).collect() };
            let all: Vec<Paired> = (1..NUM_ARMS).map(|arm| paired(&against(arm)).unwrap()).collect();
            let p: Vec<f64> = all.iter().map(|paired| paired.p).collect();
            all.iter().zip(holm(&p)).any(|(paired, p)| verdict(paired, p, true) != Verdict::NotShown)
        };
        let share = (0..NUM_ROUNDS).filter(|round| claims(*round)).count() as f64 / NUM_ROUNDS as f64;
        println!("{n} seeds: a claim among {NUM_ARMS} equal arms in {share:.4} of {NUM_ROUNDS} comparisons");
        assert!(share <= 0.05, "{n} seeds: {share}");
        // Where the test can claim anything it is not blind either.
        assert!(n < fewest_seeds(NUM_ARMS - 1) || share > 0.005, "{n} seeds: {share}");
    }
}
