//! What a policy learns beside patches: scales, exploration and the mask ratio.

use crate::place::Place;
use crate::schedules::values;

#[test]
fn scales_exploration_and_ratio_are_learned_logged_and_resumed_to_the_bit() {
    let place = Place::new();
    let settings = [
        "eval.at_end=false",
        "mask.strategy=token-mlp",
        "mask.input=pixels",
        "mask.scales=[1, 2, 4]",
        "mask.explore_arms=[0.0, 0.25, 1.0]",
        "mask.ratio_arms=[0.5, 0.75]",
        "policy.lr=0.05",
        "pipeline.lag=1",
        // So that the length of a run makes no difference.
        "pretrain.schedule=constant",
        "finetune.schedule=constant",
        "policy.schedule=constant",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    place.train("run", &settings);
    place.train("serial", &[&settings[..], &["--serial"]].concat());
    assert_eq!(place.weights("serial"), place.weights("run"));
    place.train("half", &[&settings[..], &["--max-outer", "4"]].concat());
    place.succeed(&["train", "--resume", "half", "--max-outer", "7", "--quiet"]);
    place.assert_same_end("run", "half");

    for (family, arms) in [
        ("scale_gate", &["1", "2", "4"][..]),
        ("explore_probability", &["0", "0.25", "1"]),
        ("ratio_probability", &["0.5", "0.75"]),
    ] {
        let of_arms: Vec<Vec<f64>> = arms.iter().map(|arm| values(&place, "run", &format!("{family}.{arm}"))).collect();
        for outer in 0..7 {
            let sum: f64 = of_arms.iter().map(|values| values[outer]).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{family}: {of_arms:?}");
        }
        let even = 1.0 / arms.len() as f64;
        assert!(of_arms.iter().any(|values| (values[6] - even).abs() > 1e-3), "{family} is learned: {of_arms:?}");
    }
    let (entropies, rewards) = (values(&place, "run", "explore_entropy"), values(&place, "run", "ratio_reward"));
    assert!(entropies.len() == 7 && entropies.iter().all(|entropy| (0.0..=3f64.ln()).contains(entropy)));
    assert!(rewards.len() == 7 && rewards.iter().all(|reward| (-1.0..=1.0).contains(reward)), "{rewards:?}");
    let ratios = values(&place, "run", "mask_ratio");
    assert!(ratios.len() == 14 && [0.5, 0.75].iter().all(|ratio| ratios.contains(ratio)), "{ratios:?}");
    assert!(ratios.iter().all(|ratio| [0.5, 0.75].contains(ratio)), "{ratios:?}");
    // The reward of the ratio is compared with those before, also after a resume.
    assert!(place.state("run")["policy"]["ratio_baseline"].is_f64());
    place.succeed(&["visualize", "run"]);
}

#[test]
fn a_branch_search_decides_is_logged_and_resumes_to_the_bit() {
    let place = Place::new();
    let settings = [
        "eval.at_end=false",
        "mask.strategy=linear",
        "mask.input=pixels",
        "mask.weights=normalised",
        "mask.select=sample",
        "policy.search=branch",
        "policy.branch_steps=2",
        "policy.branch_judges=1",
        "policy.lr=0.5",
        "pipeline.lag=1",
        "pretrain.schedule=constant",
        "finetune.schedule=constant",
        "policy.schedule=constant",
    ];
    let settings: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    place.train("run", &settings);
    place.train("serial", &[&settings[..], &["--serial"]].concat());
    assert_eq!(place.weights("serial"), place.weights("run"));
    // After four iterations one search has ended and the next has trained one of its two steps.
    place.train("half", &[&settings[..], &["--max-outer", "4"]].concat());
    assert_eq!(place.state("half")["policy"]["branch"]["num_steps"], 1);
    place.succeed(&["train", "--resume", "half", "--max-outer", "7", "--quiet"]);
    place.assert_same_end("run", "half");

    let winners = values(&place, "run", "branch_winner");
    assert!(winners.len() == 3 && winners.iter().all(|winner| [-1.0, 0.0, 1.0].contains(winner)), "{winners:?}");
    for candidate in ["plus", "random", "minus"] {
        let losses = values(&place, "run", &format!("branch_loss.{candidate}"));
        assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite() && *loss > 0.0), "{losses:?}");
    }
    let decisions = place.rows("run", "events").iter().filter(|row| row.contains("branch_decided")).count();
    assert_eq!(decisions, 3);
    assert_eq!(place.state("run")["policy"]["random_masks"][0], winners[2] == 0.0);
    place.succeed(&["visualize", "run"]);
    // Without a search nothing would end random masks, so a resume without one has none.
    place.succeed(&[
        "train",
        "--resume",
        "half",
        "--max-outer",
        "8",
        "--set",
        "policy.search=gradient",
        "--quiet",
        "--set",
        "policy.branch_steps=32",
        "--set",
        "policy.branch_judges=4",
    ]);
    assert!(place.state("half")["policy"].get("random_masks").is_none());
}
