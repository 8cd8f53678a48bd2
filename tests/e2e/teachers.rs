//! Strategies that read the networks: attention, parts, losses, and mixtures with them.

use crate::place::Place;

fn set<'a>(settings: &[&'a str]) -> Vec<&'a str> {
    settings.iter().flat_map(|setting| ["--set", *setting]).collect()
}

#[test]
fn masks_by_a_teacher_train_resume_and_show() {
    let place = Place::new();
    for (run, settings) in [
        ("attention", &["mask.strategy=attention", "mask.refresh=2", "mask.ema=0.9"][..]),
        (
            "rollout",
            &["mask.strategy=attention", "mask.attention_map=rollout", "mask.attention=hint", "mask.temperature=0.5"],
        ),
        ("parts", &["mask.strategy=parts", "mask.refresh=2", "mask.ema=0"]),
        ("loss", &["mask.strategy=loss", "mask.refresh=0", "mask.ema=0.5"]),
        ("predicted", &["mask.strategy=loss", "mask.difficulty=predicted", "mask.refresh=2", "mask.ema=0.9"]),
        (
            "linear",
            &[
                "mask.strategy=linear",
                "mask.input=pixels",
                "mask.features=[\"loss\",\"attention\",\"contrast\",\"position\"]",
                "mask.refresh=2",
                "mask.ema=0.5",
            ],
        ),
        ("mixture", &["mask.strategy=mixture", "mask.mixture={ random = 1, attention = 2 }", "mask.refresh=3"]),
    ] {
        let settings = set(&[settings, &["eval.at_end=false"]].concat());
        place.train(run, &settings);
        let (serial, workers, again) = (format!("{run}-serial"), format!("{run}-workers"), format!("{run}-again"));
        place.train(&serial, &[&settings[..], &["--serial"]].concat());
        assert_eq!(place.weights(&serial), place.weights(run), "{run}");
        let many = set(&["actors.score.workers=3", "actors.load.workers=2", "actors.encoder.workers=2"]);
        place.train(&workers, &[&settings[..], &many].concat());
        assert_eq!(place.weights(&workers), place.weights(run), "{run}");
        // Three outer iterations are done, so that a teacher of two or three has gone on without being renewed.
        place.copy(run, &again);
        place.succeed(&["train", "--resume", &format!("{again}/checkpoints/step-00000006"), "--quiet"]);
        assert_eq!(place.weights(&again), place.weights(run), "{run}");
        place.succeed(&["visualize", run]);
        let knows = place.rows(run, "metrics").iter().any(|row| row.contains(",object_score_auc,"));
        assert_eq!(knows, run != "parts", "{run}: attention and losses are judged as scores are");
        let metrics = place.rows(run, "metrics");
        let ranks = metrics.iter().any(|row| row.contains(",ranking_loss,"));
        assert_eq!(ranks, run == "predicted", "{run}");
        for feature in ["contrast", "loss", "attention", "position"] {
            let name = format!(",feature_weight.{feature},");
            assert_eq!(metrics.iter().any(|row| row.contains(&name)), run == "linear", "{run}: {feature}");
        }
    }
}

#[test]
fn keys_of_other_strategies_and_broken_mixtures_are_refused() {
    let place = Place::new();
    let refusal = |settings: &[&str]| {
        let lines = place.fail(78, &[&["check", "tiny.toml"][..], &set(settings)].concat());
        assert_eq!(lines.len(), 1, "{lines:?}");
        lines[0].clone()
    };
    for setting in [
        "mask.ema=0.5",
        "mask.refresh=2",
        "mask.attention=low",
        "mask.parts=3",
        "mask.hints=0.5",
        "mask.difficulty=predicted",
    ] {
        let (key, _) = setting.split_once('=').expect("a setting");
        let line = refusal(&["mask.strategy=random", setting]);
        assert!(line.starts_with(key) && line.contains("has no meaning with"), "{line}");
    }
    for (settings, problem) in [
        (&["mask.features=[]"][..], "names no feature"),
        (&["mask.strategy=linear", "mask.features=[\"loss\", \"loss\"]"], "names a feature twice"),
        (&["mask.features=[\"loss\"]"], "has no meaning with mask.strategy = \"flat-mlp\""),
    ] {
        let line = refusal(&[settings, &["mask.input=pixels"]].concat());
        assert!(line.starts_with("mask.features = ") && line.contains(problem), "{line}");
    }
    let line = refusal(&["mask.strategy=linear", "mask.input=pixels", "mask.ema=0.5"]);
    assert!(line.starts_with("mask.ema = 0.5") && line.contains("mask.features loss or attention"), "{line}");
    let line = refusal(&["mask.strategy=mixture"]);
    assert!(line.starts_with("mask.mixture: has no strategy with a weight above 0"), "{line}");
    let line = refusal(&["mask.strategy=mixture", "mask.mixture={ random = 1, flat-mlp = 1 }"]);
    assert!(line.contains("cannot be mixed: flat-mlp") && line.contains("random"), "{line}");
    let line = refusal(&["mask.strategy=mixture", "mask.mixture={ loss = 1, parts = 1 }"]);
    assert!(line.contains("more than one strategy that reads the networks"), "{line}");
    let line = refusal(&["mask.strategy=mixture", "mask.mixture={ random = -1 }"]);
    assert!(line.starts_with("mask.mixture.random = -1: out of range"), "{line}");
    let line = refusal(&["mask.mixture={ random = 1 }"]);
    assert!(line.starts_with("mask.mixture: has no meaning with mask.strategy = \"flat-mlp\""), "{line}");
}
