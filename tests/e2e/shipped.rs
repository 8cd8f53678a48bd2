//! The shipped configurations, as their own comments say that they are used.

use crate::place::Place;

const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/");

/// The command in a configuration's header, with the place of the shipped configurations.
fn command_in(text: &str) -> Vec<String> {
    let line = text.lines().find_map(|line| line.strip_prefix("#     mlomae ")).expect("a command in the header");
    line.split_whitespace().map(|word| word.replace("configs/", CONFIGS)).collect()
}

#[test]
fn the_baseline_runs_as_its_header_says() {
    let place = Place::new();
    let command = command_in(include_str!("../../configs/baseline-random.toml"));
    let mut args: Vec<&str> = command.iter().map(String::as_str).collect();
    assert_eq!(args[0], "train");
    args.extend(["--run-dir", "run", "--max-outer", "2", "--set", "eval.at_end=false"]);
    place.succeed(&args);
    let metrics = place.rows("run", "metrics");
    assert!(metrics.iter().any(|row| row.contains(",pretrain,loss,")), "it trains");
    assert!(!metrics.iter().any(|row| row.contains("score_entropy")), "without scores");
    for name in ["synthetic", "quickstart"] {
        let (config, overlay) = (format!("{CONFIGS}{name}.toml"), format!("{CONFIGS}baseline-random.toml"));
        place.succeed(&["check", &config, "--config-overlay", &overlay]);
    }
}

#[test]
fn masks_of_generated_images_are_judged() {
    let place = Place::new();
    let summary = place.succeed(&["train", "tiny.toml", "--run-dir", "run"]);
    assert!(summary.lines().any(|line| line.starts_with("object ") && line.contains("AUC 0.")), "{summary}");
    let metrics = place.rows("run", "metrics");
    for name in ["object_score_auc", "object_mask_share", "background_mask_share"] {
        let rows = metrics.iter().filter(|row| row.contains(&format!(",mask,{name},")));
        let values: Vec<f64> = rows.filter_map(|row| row.split(',').nth(8)?.parse().ok()).collect();
        assert_eq!(values.len(), 3, "{name}: every fourth of 14 steps");
        assert!(values.iter().all(|value| (0.0..=1.0).contains(value)), "{name}: {values:?}");
    }
    // 4 x 4 positions, three times; of 16 patches 12 are masked.
    let rows = metrics.iter().filter(|row| row.contains(",pretrain,mask_coverage."));
    let shares: Vec<f64> = rows.filter_map(|row| row.split(',').nth(8)?.parse().ok()).collect();
    assert_eq!(shares.len(), 3 * 16);
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    assert!((mean - 0.75).abs() < 1e-9, "{mean}");
    assert!(metrics.iter().any(|row| row.contains(",mask_coverage.3.3,")), "row and column of the patch");
}
