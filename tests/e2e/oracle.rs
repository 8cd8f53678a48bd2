//! Masks by the known objects of generated data.

use crate::place::Place;

const STILL: [&str; 6] =
    ["--set", "mask.strategy=oracle", "--set", "data.augment.crop=none", "--set", "data.augment.flip=false"];

fn train(place: &Place, run: &str, settings: &[&str]) {
    place.train(run, &[&STILL[..], &["--set", "eval.at_end=false"], settings].concat());
}

/// The values of a metric over a run.
fn values(place: &Place, run: &str, name: &str) -> Vec<f64> {
    let rows = place.rows(run, "metrics");
    let rows = rows.iter().filter(|row| row.contains(&format!(",{name},")));
    rows.filter_map(|row| row.split(',').nth(8)?.parse().ok()).collect()
}

#[test]
fn object_patches_are_masked_as_asked_for_and_weigh() {
    let place = Place::new();
    // Of 16 patches 12 are masked. Objects of a radius up to 2 pixels fill at most 4 patches of 4 by 4.
    let small =
        ["data.synthetic.scene=voronoi", "data.synthetic.channels=3", "data.synthetic.object_radius=[1.0, 2.0]"];
    let small: Vec<&str> = small.iter().flat_map(|setting| ["--set", *setting]).collect();
    for (masked, shares) in [("always", 1.0..=1.0), ("never", 0.0..=0.0), ("half", 0.3..=0.6), ("random", 0.0..=1.0)] {
        let masked_as = format!("mask.oracle_masked={masked}");
        train(&place, masked, &[&small[..], &["--set", &masked_as]].concat());
        let found = values(&place, masked, "object_mask_share");
        assert!(found.len() == 3 && found.iter().all(|share| shares.contains(share)), "{masked}: {found:?}");
    }
    // A strategy without knowledge draws the same masks as `random`.
    place.train(
        "baseline",
        &[&STILL[2..], &small, &["--set", "mask.strategy=random", "--set", "eval.at_end=false"]].concat(),
    );
    assert_eq!(place.weights("random"), place.weights("baseline"));

    let weights = |run: &str, settings: &[&str]| {
        train(&place, run, &[&small[..], settings].concat());
        let (shares, losses) = (values(&place, run, "effective_share"), values(&place, run, "loss"));
        assert!(!losses.is_empty() && losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{run}: {losses:?}");
        shares.iter().sum::<f64>() / shares.len().max(1) as f64
    };
    let alone = ["--set", "mask.oracle_masked=always", "--set", "mask.oracle_background=0"];
    assert!(weights("alone", &alone) < 0.4, "a third of the masked patches at most");
    let tenfold = ["--set", "mask.oracle_weight=10"];
    let share = weights("tenfold", &tenfold);
    assert!(share > 0.1 && share < 0.8, "{share}");
    // Serial, and with several workers, it is the same to the bit.
    train(&place, "serial", &[&small[..], &tenfold, &["--serial"]].concat());
    train(
        &place,
        "workers",
        &[&small[..], &tenfold, &["--set", "actors.load.workers=3", "--set", "actors.score.workers=2"]].concat(),
    );
    for run in ["serial", "workers"] {
        assert_eq!(place.weights(run), place.weights("tenfold"), "{run}");
    }
    place.copy("tenfold", "again");
    place.succeed(&["train", "--resume", "again/checkpoints/step-00000006", "--quiet"]);
    assert_eq!(place.weights("again"), place.weights("tenfold"));
    place.succeed(&["visualize", "alone"]);
}

#[test]
fn an_oracle_without_knowledge_is_refused_in_one_line() {
    let place = Place::new();
    let refusal = |settings: &[&str]| {
        let mut args = vec!["check", "tiny.toml"];
        args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let lines = place.fail(78, &args);
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    let still = ["mask.strategy=oracle", "data.augment.crop=none", "data.augment.flip=false"];
    let with = |more: &[&'static str]| refusal(&[&still[..], more].concat());
    let line = with(&["data.format=embedded"]);
    assert!(line.starts_with("mask.strategy = \"oracle\": needs data that knows its objects"), "{line}");
    let line = with(&["data.image=24"]);
    assert!(line.starts_with("data.image = 24: resizes images") && line.ends_with("(allowed: 16)"), "{line}");
    for augmented in [&still[..1], &still[..2], &[still[0], still[2]]] {
        let line = refusal(augmented);
        assert!(line.starts_with("mask.strategy = \"oracle\": needs objects that stay where they are"), "{line}");
    }
    let line = with(&["mask.oracle_background=0", "mask.oracle_masked=never"]);
    assert!(
        line.starts_with("mask.oracle_background = 0: leaves no loss with mask.oracle_masked = \"never\""),
        "{line}"
    );
    let line = with(&["mask.oracle_background=0", "mask.oracle_weight=0"]);
    assert!(line.contains("leaves no loss with mask.oracle_weight = 0"), "{line}");
    for setting in ["mask.oracle_masked=half", "mask.oracle_weight=10", "mask.oracle_background=0"] {
        let line = refusal(&[setting]);
        assert!(line.contains("has no meaning with mask.strategy = \"flat-mlp\""), "{line}");
    }
    let line = with(&["mask.oracle_masked=sometimes"]);
    assert!(line.contains("random, half, always, never"), "{line}");
}
