//! Every key of the configuration, changed on a resume: it takes effect, or it is refused by name.

use std::collections::BTreeMap;

use mlomae_dataflow::config::{OnResume, rules};

use crate::place::{Ended, Place};

/// Another valid value of every key than the one of the run.
const OTHER: [(&str, &str); 170] = [
    ("seed", "4"),
    ("engine", "auto"),
    ("run.root", "elsewhere"),
    ("run.id", "other"),
    ("data.format", "embedded"),
    ("data.path", "elsewhere"),
    ("data.label_column", "label"),
    ("data.image_column", "image"),
    ("data.mask_column", "mask"),
    ("data.value_columns", "[\"age\"]"),
    ("data.bbox_format", "xyxy"),
    ("data.reduce_zero_label", "true"),
    ("data.exclude", "[\"x\"]"),
    ("data.exif_orientation", "false"),
    ("data.on_bad_image", "skip"),
    ("run.memory_check", "warn"),
    ("data.test_split", "none"),
    ("data.image", "32"),
    ("data.channels", "3"),
    ("data.max_samples", "80"),
    ("data.pretrain_fraction", "0.5"),
    ("data.finetune_fraction", "0.1"),
    ("data.validation_fraction", "0.1"),
    ("data.mean", "[0.5]"),
    ("data.std", "[0.5]"),
    ("data.augment.crop", "none"),
    ("data.augment.crop_padding", "4"),
    ("data.augment.min_area", "0.5"),
    ("data.augment.flip", "false"),
    ("data.synthetic.num_train", "91"),
    ("data.synthetic.num_test", "17"),
    ("data.synthetic.image", "24"),
    ("data.synthetic.num_classes", "3"),
    ("data.synthetic.label", "place"),
    ("data.synthetic.place_grid", "3"),
    ("data.synthetic.channels", "3"),
    ("data.synthetic.seed", "9"),
    ("data.synthetic.scene", "voronoi"),
    ("data.synthetic.num_objects", "[2, 2]"),
    ("data.synthetic.areas", "equal"),
    ("data.synthetic.num_distractors", "1"),
    ("data.synthetic.object_radius", "[2.0, 3.0]"),
    ("data.synthetic.object_contrast", "0.5"),
    ("data.synthetic.background_amplitude", "0.5"),
    ("data.synthetic.pixel_noise", "0.1"),
    ("model.preset", "small"),
    ("model.patch", "8"),
    ("model.dim", "32"),
    ("model.depth", "2"),
    ("model.heads", "1"),
    ("model.dec_dim", "16"),
    ("model.dec_depth", "2"),
    ("model.dec_heads", "1"),
    ("model.pos_embed", "frozen"),
    ("mask.strategy", "token-mlp"),
    ("mask.input", "embedding"),
    ("mask.hidden", "11"),
    ("mask.scales", "[1, 2]"),
    ("mask.features", "[\"contrast\"]"),
    ("mask.explore_arms", "[0.0, 0.5]"),
    ("mask.ratio_arms", "[0.5, 0.6]"),
    ("mask.ratio_per_flop", "true"),
    ("mask.ratio", "0.5"),
    ("mask.explore", "0.5"),
    ("mask.ratio_schedule", "linear"),
    ("mask.ratio_end", "0.5"),
    ("mask.explore_schedule", "linear"),
    ("mask.explore_end", "0.5"),
    ("mask.ema", "0.5"),
    ("mask.refresh", "3"),
    ("mask.attention", "low"),
    ("mask.attention_map", "rollout"),
    ("mask.hints", "0.25"),
    ("mask.parts", "3"),
    ("mask.difficulty", "predicted"),
    ("mask.mixture", "{ random = 1.0 }"),
    ("mask.oracle_masked", "half"),
    ("mask.oracle_weight", "10"),
    ("mask.oracle_background", "0"),
    ("mask.noise", "red"),
    ("method.preset", "recommended"),
    ("mask.weights", "normalised"),
    ("mask.select", "sample"),
    ("mask.temperature", "2.0"),
    ("method.task", "segmentation"),
    ("method.balance", "normalised"),
    ("task", "[{ kind = \"segmentation\" }]"),
    ("data.max_boxes", "7"),
    ("mask.shuffle_scores", "true"),
    ("method.supervised", "true"),
    ("method.shuffle_labels", "true"),
    ("method.precondition", "adam"),
    ("method.ridge_penalty", "0.5"),
    ("method.ridge_bank", "2"),
    ("method.cg_damping", "0.5"),
    ("method.cg_steps", "2"),
    ("policy.average", "2"),
    ("policy.estimator", "score"),
    ("policy.search", "branch"),
    ("policy.branch_steps", "1"),
    ("policy.branch_judges", "2"),
    ("method.unroll", "3"),
    ("method.hypergradient", "published"),
    ("method.multitask", "true"),
    ("method.alpha", "0.1"),
    ("method.head_dropout", "0.5"),
    ("pretrain.batch", "7"),
    ("finetune.batch", "7"),
    ("policy.batch", "7"),
    ("compute.precision", "bf16"),
    ("pretrain.lr", "0.02"),
    ("finetune.lr", "0.02"),
    ("policy.lr", "0.02"),
    ("pretrain.weight_decay", "0.5"),
    ("finetune.weight_decay", "0.5"),
    ("policy.weight_decay", "0.5"),
    ("pretrain.decay_group", "matrices"),
    ("finetune.decay_group", "matrices"),
    ("policy.decay_group", "matrices"),
    ("pretrain.warmup_steps", "1000"),
    ("finetune.warmup_steps", "1000"),
    ("policy.warmup_steps", "1000"),
    ("pretrain.schedule", "constant"),
    ("finetune.schedule", "constant"),
    ("policy.schedule", "constant"),
    ("pretrain.betas", "[0.5, 0.5]"),
    ("finetune.betas", "[0.5, 0.5]"),
    ("policy.betas", "[0.5, 0.5]"),
    ("train.outer_iterations", "8"),
    ("train.grain", "1"),
    ("pipeline.lag", "0"),
    ("actors.load.workers", "2"),
    ("actors.score.workers", "2"),
    ("actors.encoder.workers", "1"),
    ("actors.evaluator.workers", "1"),
    ("actors.policy.workers", "1"),
    ("actors.log.workers", "1"),
    ("actors.load.queue_cap", "3"),
    ("actors.score.queue_cap", "3"),
    ("actors.encoder.queue_cap", "3"),
    ("actors.evaluator.queue_cap", "3"),
    ("actors.policy.queue_cap", "3"),
    ("actors.log.queue_cap", "3"),
    ("actors.score.micro_batch", "2"),
    ("actors.encoder.micro_batch", "2"),
    ("actors.evaluator.micro_batch", "2"),
    ("actors.policy.micro_batch", "2"),
    ("actors.max_restarts", "5"),
    ("actors.watchdog_seconds", "60.0"),
    ("checkpoint.every_steps", "2"),
    ("checkpoint.keep", "5"),
    ("logs.metrics_every_steps", "2"),
    ("logs.masks_every_steps", "2"),
    ("logs.panel_size", "2"),
    ("logs.actors_every_seconds", "0.5"),
    ("logs.rotate_rows", "1000"),
    ("logs.rotate_seconds", "5.0"),
    ("telemetry.prometheus", "127.0.0.1:0"),
    ("eval.at_end", "true"),
    ("eval.knn_k", "3"),
    ("eval.knn_temperature", "0.5"),
    ("eval.batch", "8"),
    ("eval.max_train", "20"),
    ("eval.max_test", "10"),
    ("eval.cache_mib", "7"),
    ("eval.linear_epochs", "2"),
    ("eval.linear_lr", "0.5"),
    ("eval.linear_weight_decay", "0.5"),
    ("actors.load.micro_batch", "0"),
    ("actors.log.micro_batch", "0"),
];

/// What has to be set beside some keys, so that they mean something.
const BESIDE: [(&str, &[&str]); 8] = [
    ("mask.temperature", &["mask.select=sample"]),
    ("policy.estimator", &["mask.select=sample", "mask.explore=0.0"]),
    ("policy.branch_steps", &["policy.search=branch", "policy.branch_judges=1"]),
    ("policy.branch_judges", &["policy.search=branch"]),
    ("method.ridge_penalty", &["method.hypergradient=ridge"]),
    ("method.ridge_bank", &["method.hypergradient=ridge"]),
    ("method.cg_damping", &["method.hypergradient=cg"]),
    ("method.cg_steps", &["method.hypergradient=cg"]),
];

/// Keys without a meaning for generated data, or in the run's setting, or for training; and one that takes longer than the
/// run.
const WITHOUT_EFFECT: [&str; 12] = [
    "policy.branch_judges",
    "data.label_column",
    "data.image_column",
    "data.mask_column",
    "data.value_columns",
    "data.bbox_format",
    "data.reduce_zero_label",
    "data.test_split",
    "data.augment.min_area",
    "data.synthetic.num_test",
    "data.on_bad_image",
    "data.exif_orientation",
];

fn resume(place: &Place, run: &str, sets: &[String]) -> Ended {
    place.copy("base", run);
    let mut args = vec!["train", "--resume", run, "--quiet"];
    args.extend(sets.iter().flat_map(|set| ["--set", set.as_str()]));
    place.run(&args)
}

/// The value of a dotted key in the run's resolved configuration.
fn value(place: &Place, run: &str, key: &str) -> Option<toml::Value> {
    let text = String::from_utf8(crate::place::read(&place.path(run).join("config.toml"))).expect("UTF-8");
    let table: toml::Table = text.parse().expect("TOML");
    let (last, sections) = key.rsplit_once('.').map_or((key, ""), |(sections, last)| (last, sections));
    let mut table = &table;
    for section in sections.split('.').filter(|section| !section.is_empty()) {
        table = table.get(section)?.as_table()?;
    }
    table.get(last).cloned()
}

#[test]
fn every_key_takes_effect_on_a_resume_or_is_refused_by_name() {
    let place = Place::new();
    // Half a run with a lag, so that it may be lowered.
    let mut half = vec!["--max-outer", "4"];
    for set in ["pipeline.lag=1", "eval.at_end=false", "mask.explore=0.1", "mask.input=pixels"] {
        half.extend(["--set", set]);
    }
    place.train("base", &half);
    let length = "train.outer_iterations=7".to_owned();
    let same = resume(&place, "same", std::slice::from_ref(&length));
    assert_eq!((same.code, &*same.err), (Some(0), ""), "no key has changed");
    let others: BTreeMap<_, _> = OTHER.into_iter().collect();
    assert_eq!(others.len(), OTHER.len());
    let (mut num_refused, mut num_told) = (0, 0);
    for (key, rule) in rules() {
        let other = others.get(key).unwrap_or_else(|| panic!("no other value of {key}"));
        let run = key.replace('.', "-");
        let beside = BESIDE.iter().find(|(beside, _)| *beside == key).map_or(&[][..], |(_, sets)| sets);
        let mut sets: Vec<String> = beside.iter().map(|set| (*set).to_owned()).collect();
        sets.push(length.clone());
        let without = if beside.is_empty() { "same".to_owned() } else { format!("{run}-without") };
        if !beside.is_empty() {
            assert_eq!(resume(&place, &without, &sets).code, Some(0), "{sets:?}");
        }
        sets.push(format!("{key}={other}"));
        let ended = resume(&place, &run, &sets);
        if ended.code == Some(78) {
            let lines: Vec<_> = ended.err.lines().collect();
            let is_named = lines.iter().any(|line| line.starts_with("error: ") && line.contains(key));
            assert!(is_named && rule != OnResume::Free, "{key} is {rule:?}: {ended:#?}");
            assert_eq!(place.weights("base"), place.weights(&run), "nothing is touched");
            assert_eq!(place.run_record("base"), place.run_record(&run));
            num_refused += 1;
            continue;
        }
        assert_eq!(ended.code, Some(0), "{key}: {ended:#?}");
        assert_ne!(rule, OnResume::Fixed, "{key} was not refused");
        assert_eq!(
            value(&place, &run, key).expect("resolved").to_string().replace('"', ""),
            other.replace('"', ""),
            "{key}"
        );
        let differs = place.weights(&without) != place.weights(&run);
        match rule {
            OnResume::Told => {
                let told = ended.err.replace('"', "");
                assert!(told.contains(key) && told.contains(&format!("-> {other}")), "{key}: {ended:#?}");
                assert!(differs || WITHOUT_EFFECT.contains(&key), "{key} took no effect");
                num_told += 1;
            }
            // Where there is a GPU, another engine is told by its device and rounds otherwise.
            OnResume::Free => {
                assert!(!differs || ["train.outer_iterations", "engine"].contains(&key), "{key} changed results");
            }
            OnResume::Data | OnResume::Fixed => assert!(WITHOUT_EFFECT.contains(&key), "{key} was not compared"),
        }
        std::fs::remove_dir_all(place.path(&run)).expect("removed");
    }
    assert!(num_refused > 30 && num_told > 25, "{num_refused} refused, {num_told} told");
}

#[test]
fn keys_that_cannot_take_effect_are_refused_all_at_once_whoever_gives_them() {
    let place = Place::new();
    place.train("run", &["--max-outer", "4"]);
    let lines =
        place.fail(78, &["train", "--resume", "run", "--set", "model.preset=small", "--set", "method.unroll=3"]);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("model.preset = \"small\": cannot take effect"), "{lines:?}");
    assert!(lines[1].starts_with("method.unroll = 3: ") && lines[1].ends_with("(allowed: 2)"), "{lines:?}");
    assert_eq!(place.loss_steps("run"), (1..=8).collect::<Vec<_>>(), "finished steps stay");
    place.write("other.toml", b"[mask]\nhidden = 11\n[pretrain]\nbatch = 7\n");
    let lines = place.fail(78, &["train", "--resume", "run", "--config-overlay", "other.toml"]);
    assert!(lines.len() == 2 && lines[0].starts_with("mask.hidden = 11") && lines[1].starts_with("pretrain.batch = 7"));
    // A whole other configuration, here the quickstart's.
    place.write("base.toml", b"[model]\ndepth = 2\n");
    let lines = place.fail(78, &["train", "base.toml", "--resume", "run", "--set", "data.format=synthetic"]);
    assert!(lines.len() >= 10 && lines.iter().any(|line| line.starts_with("model.depth = 2")), "{lines:?}");
    let lines = place.fail(78, &["train", "--resume", "run", "--max-outer", "3"]);
    assert_eq!(lines, ["train.outer_iterations = 3: 4 outer iterations are done already (allowed: 4 or more)"]);
    let lines = place.fail(78, &["train", "--resume", "run", "--max-outer", "5", "--set", "pipeline.lag=1"]);
    assert!(lines.len() == 1 && lines[0].starts_with("pipeline.lag = 1: cannot be raised"), "{lines:?}");
    for command in ["eval knn run", "visualize run"] {
        let mut args: Vec<_> = command.split(' ').collect();
        args.extend(["--set", "model.heads=1"]);
        let lines = place.fail(78, &args);
        assert!(lines.len() == 1 && lines[0].starts_with("model.heads = 1: cannot take effect"), "{lines:?}");
    }
    // The same values are no change, also of what follows from the data.
    let same = ["seed=3", "model.preset=tiny", "method.unroll=2", "data.image=16", "data.channels=1", "run.id=run"];
    let mut args = vec!["train", "--resume", "run", "--max-outer", "5", "--quiet"];
    args.extend(same.iter().flat_map(|set| ["--set", *set]));
    assert_eq!(place.run(&args).err, "");
}

#[test]
fn a_change_outlives_a_process_that_was_killed_before_its_next_checkpoint() {
    let place = Place::new();
    place.train("base", &["--max-outer", "4", "--set", "eval.at_end=false"]);
    let changes = ["--set", "train.outer_iterations=7", "--set", "pretrain.lr=0.02"];
    place.copy("base", "straight");
    place.succeed(&[&["train", "--resume", "straight", "--quiet"], &changes[..]].concat());
    // As that process leaves it when it is killed at once: only the configuration file is new.
    place.copy("base", "killed");
    let config = crate::place::read(&place.path("straight/config.toml"));
    place.write("killed/config.toml", &config);
    let ended = place.run(&["train", "--resume", "killed", "--quiet"]);
    assert!(ended.code == Some(0) && ended.err.contains("pretrain.lr 0.0001 -> 0.02"), "{ended:#?}");
    assert_eq!(place.weights("straight"), place.weights("killed"));
    // Going back is to the configuration of that time, and a broken file of the run's is no obstacle.
    let ended = place.run(&["train", "--resume", "killed/checkpoints/step-00000008", "--quiet", "--max-outer", "5"]);
    assert!(ended.code == Some(0) && !ended.err.contains("pretrain.lr"), "{ended:#?}");
    place.write("killed/config.toml", b"[broken");
    place.succeed(&["train", "--resume", "killed", "--quiet", "--max-outer", "6"]);
}
