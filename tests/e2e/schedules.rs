//! Mask ratio and exploration that change over a run.

use crate::place::Place;

/// The values of a metric over a run.
pub fn values(place: &Place, run: &str, name: &str) -> Vec<f64> {
    let rows = place.rows(run, "metrics");
    let rows = rows.iter().filter(|row| row.contains(&format!(",{name},")));
    rows.filter_map(|row| row.split(',').nth(8)?.parse().ok()).collect()
}

#[test]
fn the_mask_ratio_follows_its_schedule_and_a_resume_goes_on_with_it() {
    let place = Place::new();
    let common = ["--set", "eval.at_end=false", "--set", "mask.ratio=0.875", "--set", "mask.ratio_end=0.25"];
    let linear = [&common[..], &["--set", "mask.ratio_schedule=linear"]].concat();
    place.train("linear", &linear);
    // 14 steps; of 16 patches floor(16·(1 − ratio)) are visible.
    let expected: Vec<f64> = (0..14).map(|step| 0.875 - 0.625 * f64::from(step) / 13.0).collect();
    let expected: Vec<f64> = expected.iter().map(|ratio| 1.0 - (16.0 * (1.0 - ratio) + 1e-9).floor() / 16.0).collect();
    assert_eq!(values(&place, "linear", "mask_ratio"), expected);
    assert_eq!((expected[0], expected[13]), (0.875, 0.25));
    let rows = place.rows("linear", "masks");
    for ratio in [expected[3], expected[7], expected[11]] {
        let num = rows.iter().filter(|row| row.split(',').any(|field| field.parse() == Ok(ratio))).count();
        assert!(num >= 3, "the panel at {ratio}: {rows:?}");
    }
    place.train("serial", &[&linear[..], &["--serial"]].concat());
    assert_eq!(place.weights("serial"), place.weights("linear"));
    let drawn = [&common[..], &["--set", "mask.ratio_schedule=random", "--set", "mask.strategy=random"]].concat();
    place.train("drawn", &drawn);
    let ratios = values(&place, "drawn", "mask_ratio");
    assert!(ratios.len() == 14 && ratios.iter().all(|ratio| (0.25..=0.875).contains(ratio)), "{ratios:?}");
    assert!(ratios.windows(2).filter(|pair| pair[0] != pair[1]).count() > 5, "{ratios:?}");
    // Draws depend on the step alone, not on the length of the run.
    place.train("half", &[&drawn[..], &["--max-outer", "3"]].concat());
    place.succeed(&["train", "--resume", "half", "--max-outer", "7", "--quiet"]);
    assert_eq!(values(&place, "half", "mask_ratio"), ratios);
    assert!(values(&place, "drawn", "mask_explore").is_empty());
    place.succeed(&["visualize", "linear"]);
}

#[test]
fn exploration_follows_its_schedule() {
    let place = Place::new();
    let settings = ["mask.explore=1", "mask.explore_end=0", "mask.explore_schedule=quadratic", "eval.at_end=false"];
    place.train("run", &settings.iter().flat_map(|setting| ["--set", setting]).collect::<Vec<_>>());
    let explored = values(&place, "run", "mask_explore");
    assert_eq!(explored.len(), 14);
    for (step, value) in explored.iter().enumerate() {
        let expected = 1.0 - (step as f64 / 13.0).powi(2);
        assert!((value - expected).abs() < 1e-6, "{step}: {value} {expected}");
    }
    assert!(values(&place, "run", "mask_ratio").is_empty(), "constant");
}

#[test]
fn a_schedule_without_an_end_and_an_end_without_a_schedule_are_refused() {
    let place = Place::new();
    let refusal = |settings: &[&str]| {
        let mut args = vec!["check", "tiny.toml"];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let lines = place.fail(78, &args);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    let line = refusal(&["mask.ratio_schedule=cosine"]);
    assert!(line.starts_with("mask.ratio_end: is missing, mask.ratio_schedule = \"cosine\" leads to it"), "{line}");
    let line = refusal(&["mask.explore_end=0.5"]);
    assert!(line.starts_with("mask.explore_end = 0.5: has no meaning"), "{line}");
    let line = refusal(&["mask.ratio_schedule=linear", "mask.ratio_end=0.95", "model.patch=8"]);
    assert!(line.starts_with("mask.ratio_end = 0.95: leaves 0 of 4 patches visible"), "{line}");
    let line = refusal(&["mask.ratio_schedule=sometimes"]);
    assert!(line.contains("constant, linear, cosine, quadratic, random"), "{line}");
    let line = refusal(&["mask.strategy=random", "mask.explore_schedule=linear"]);
    assert!(line.starts_with("mask.explore_schedule = \"linear\": has no meaning"), "no scores to explore beside");
}
