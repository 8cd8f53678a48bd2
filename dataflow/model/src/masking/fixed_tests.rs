//! The strategies that learn nothing: `block`, `grid`, `noise`.

use std::collections::BTreeSet;

use super::order::order_by_keys;
use super::{MaskNoise, MaskRule, Masking, MaskingChoice, MaskingFacts, Needs};

const COLOURS: [(&str, MaskNoise); 4] = [
    ("noise-red", MaskNoise::Red),
    ("noise-blue", MaskNoise::Blue),
    ("noise-green", MaskNoise::Green),
    ("noise-purple", MaskNoise::Purple),
];
const NAMES: [&str; 6] = ["block", "grid", "noise-red", "noise-blue", "noise-green", "noise-purple"];

fn masking(name: &str, grid: usize, num_visible: usize) -> std::sync::Arc<dyn Masking> {
    let noise = COLOURS.iter().find(|colour| colour.0 == name).map_or(MaskNoise::default(), |colour| colour.1);
    let strategy = name.split('-').next().unwrap();
    let facts = MaskingFacts { noise, ..MaskingFacts::of_grid(grid, num_visible) };
    let kind = MaskingChoice::by_name(strategy).unwrap();
    assert!(!kind.is_learned());
    let masking = kind.build(&facts);
    assert_eq!(masking.needs(), Needs::Nothing);
    assert!(masking.layout().is_none());
    masking
}

fn rule(seed: u64, step: u64, first_image: u64) -> MaskRule {
    MaskRule { seed, step, first_image, ..MaskRule::BY_SCORE }
}

/// Which patches are visible, [num_images, L].
fn visible(name: &str, grid: usize, num_visible: usize, num_images: usize, rule: &MaskRule) -> Vec<bool> {
    let keys = masking(name, grid, num_visible).keys(num_images, None, rule);
    let order = order_by_keys(&keys, grid * grid, num_visible);
    (0..num_images * grid * grid).map(|patch| !order.is_masked(patch)).collect()
}

/// The share of images in which each patch is masked, [L].
fn coverage(name: &str, grid: usize, num_visible: usize, num_images: usize) -> Vec<f64> {
    let visible = visible(name, grid, num_visible, num_images, &rule(4, 9, 0));
    let mut masked = vec![0.0; grid * grid];
    for image in visible.chunks_exact(grid * grid) {
        masked.iter_mut().zip(image).for_each(|(share, visible)| *share += f64::from(u8::from(!visible)));
    }
    masked.into_iter().map(|num| num / num_images as f64).collect()
}

/// Covariance of visible patches `(dy, dx)` apart, over the variance of one.
fn correlation(name: &str, grid: usize, num_visible: usize, (dy, dx): (usize, usize)) -> f64 {
    let num_images = 2000;
    let visible = visible(name, grid, num_visible, num_images, &rule(4, 9, 0));
    let share = num_visible as f64 / (grid * grid) as f64;
    let (mut sum, mut num) = (0.0, 0.0);
    for image in visible.chunks_exact(grid * grid) {
        for y in 0..grid - dy {
            for x in 0..grid - dx {
                let both = image[y * grid + x] && image[(y + dy) * grid + x + dx];
                sum += f64::from(u8::from(both));
                num += 1.0;
            }
        }
    }
    (sum / num - share * share) / (share - share * share)
}

#[test]
fn masks_are_those_of_the_descriptions_written_out_apart() {
    let text = include_str!("../../../../tests/fixtures/masks/masks.txt");
    let mut names = BTreeSet::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, seed, step, image, grid, num_visible, mask] = words[..] else { panic!("{line}") };
        let numbers = [seed, step, image, grid, num_visible].map(|word| word.parse::<u64>().unwrap());
        let [seed, step, image, grid, num_visible] = numbers;
        let got = visible(name, grid as usize, num_visible as usize, 1, &rule(seed, step, image));
        let got: String = got.into_iter().map(|visible| if visible { 'o' } else { '.' }).collect();
        assert_eq!(got, mask, "{line}");
        names.insert(name);
    }
    assert_eq!(names, NAMES.into_iter().collect());
}

#[test]
fn every_image_has_exactly_the_visible_patches_and_a_mask_of_its_own() {
    for name in NAMES {
        for (grid, num_visible) in [(2, 1), (2, 3), (3, 2), (5, 1), (8, 16), (8, 60), (9, 40), (14, 49)] {
            let keys = masking(name, grid, num_visible).keys(50, None, &rule(1, 2, 0));
            assert_eq!(keys.len(), 50 * grid * grid);
            assert!(keys.iter().all(|key| key.is_finite()));
            let masks = visible(name, grid, num_visible, 50, &rule(1, 2, 0));
            let different: BTreeSet<&[bool]> = masks.chunks_exact(grid * grid).collect();
            for mask in &different {
                assert_eq!(mask.iter().filter(|visible| **visible).count(), num_visible, "{name} {grid}");
            }
            // One block of four patches or less has few places.
            let wanted = if grid < 8 || num_visible == 60 { 3 } else { 50 };
            assert!(different.len() >= wanted, "{name} {grid}: {} masks", different.len());
        }
    }
}

#[test]
fn blocks_mask_exactly_what_the_keys_say() {
    for (grid, num_visible) in [(2, 1), (6, 9), (8, 60), (14, 10)] {
        let keys = masking("block", grid, num_visible).keys(200, None, &rule(3, 1, 0));
        for keys in keys.chunks_exact(grid * grid) {
            assert!(keys.iter().all(|key| *key == 0.0 || *key == 1.0));
            assert_eq!(keys.iter().filter(|key| **key == 0.0).count(), num_visible);
        }
    }
}

#[test]
fn masks_depend_on_seed_step_and_the_images_place_alone() {
    for name in NAMES {
        let all = visible(name, 8, 16, 12, &rule(1, 2, 0));
        // Images 5 to 11 alone, as another rank has them.
        assert_eq!(visible(name, 8, 16, 7, &rule(1, 2, 5)), all[5 * 64..], "{name}");
        for other in [rule(2, 2, 0), rule(1, 3, 0)] {
            assert_ne!(visible(name, 8, 16, 12, &other), all, "{name}");
        }
    }
}

#[test]
fn each_cell_of_a_grid_has_one_visible_patch() {
    for grid in [2, 6, 14] {
        for image in visible("grid", grid, grid * grid / 4, 100, &rule(7, 7, 7)).chunks_exact(grid * grid) {
            let mut num = vec![0; grid * grid / 4];
            for patch in (0..grid * grid).filter(|patch| image[*patch]) {
                num[patch / grid / 2 * (grid / 2) + patch % grid / 2] += 1;
            }
            assert!(num.iter().all(|num| *num == 1), "{num:?}");
        }
    }
    // With more or fewer of them, cells differ by one at most.
    for (num_visible, allowed) in [(5, [0, 1]), (20, [1, 2]), (40, [2, 3])] {
        for image in visible("grid", 8, num_visible, 100, &rule(7, 7, 7)).chunks_exact(64) {
            let mut num = [0; 16];
            (0..64).filter(|patch| image[*patch]).for_each(|patch| num[patch / 16 * 4 + patch % 8 / 2] += 1);
            assert!(num.iter().all(|num| allowed.contains(num)), "{num:?}");
        }
    }
}

#[test]
fn every_patch_of_a_grid_is_masked_as_often_as_the_others() {
    for (grid, num_visible) in [(8, 16), (8, 6), (8, 40), (7, 12), (5, 10)] {
        let ratio = 1.0 - num_visible as f64 / (grid * grid) as f64;
        for share in coverage("grid", grid, num_visible, 20_000) {
            // Four standard errors, and what the cells at an odd border change.
            assert!((share - ratio).abs() < 0.014 + if grid % 2 == 1 { 0.01 } else { 0.0 }, "{grid}: {share} {ratio}");
        }
    }
}

#[test]
fn no_patch_is_masked_much_more_often_than_others_by_noise() {
    // Four standard errors are 0.024. The extremes of smooth noise lie at the border of a window more often than others.
    let tolerances = [("noise-blue", 0.024), ("noise-purple", 0.024), ("noise-green", 0.03), ("noise-red", 0.11)];
    for (name, tolerance) in tolerances {
        for grid in [8, 14] {
            let shares = coverage(name, grid, grid * grid / 4, 5000);
            assert!(shares.iter().all(|share| (share - 0.75).abs() < tolerance), "{name} {grid}: {shares:.3?}");
        }
    }
}

#[test]
fn blocks_lie_in_the_middle_more_often() {
    let shares = coverage("block", 14, 49, 5000);
    let (corner, middle) = (shares[0], shares[7 * 14 + 7]);
    let mean = shares.iter().sum::<f64>() / 196.0;
    assert!((mean - 0.75).abs() < 1e-9);
    // Few of the places of a block reach a corner: 0.176 and 0.982 in 3,000 masks by tests/fixtures/masks/make.py.
    assert!((corner - 0.176).abs() < 0.03 && (middle - 0.982).abs() < 0.01, "{corner} {middle}");
    // And the same from all four sides.
    for (y, x) in [(0, 0), (0, 5), (3, 6), (2, 2)] {
        let turned = [(y, x), (x, 13 - y), (13 - y, 13 - x), (13 - x, y)].map(|(y, x)| shares[y * 14 + x]);
        assert!(turned.iter().all(|share| (share - turned[0]).abs() < 0.04), "{turned:?}");
    }
}

#[test]
fn colours_differ_by_how_visible_patches_keep_together() {
    // By numpy, 20,000 masks of the formulas; standard errors are below 0.003.
    for (name, one, two, four) in [
        ("noise-red", 0.713, 0.452, 0.071),
        ("noise-blue", -0.089, -0.013, -0.001),
        ("noise-green", 0.411, 0.023, -0.063),
        ("noise-purple", 0.023, 0.038, -0.008),
    ] {
        for (apart, wanted) in [(1, one), (2, two), (4, four)] {
            for place in [(0, apart), (apart, 0)] {
                let got = correlation(name, 14, 49, place);
                assert!((got - wanted).abs() < 0.012, "{name}, {place:?} apart: {got}");
            }
        }
    }
    assert!(correlation("noise-purple", 14, 49, (1, 1)) > 0.06, "its large pieces");
    assert!(correlation("block", 14, 49, (0, 1)) > 0.5);
}

#[test]
fn a_scheduled_ratio_gives_the_masks_of_a_strategy_that_is_built_for_it() {
    for name in NAMES {
        let built = masking(name, 8, 16).keys(20, None, &rule(1, 2, 0));
        let scheduled = MaskRule { num_visible: Some(16), ..rule(1, 2, 0) };
        assert_eq!(masking(name, 8, 40).keys(20, None, &scheduled), built, "{name}");
    }
}
