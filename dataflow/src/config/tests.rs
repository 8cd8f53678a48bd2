use mlomae_storage::dataset::FormatName;

use super::*;
use crate::counts::Outer;

const SHIPPED: [(&str, &str); 5] = [
    ("quickstart", QUICKSTART),
    ("synthetic", include_str!("../../../configs/synthetic.toml")),
    ("cifar10", include_str!("../../../configs/cifar10.toml")),
    ("baseline-random", include_str!("../../../configs/baseline-random.toml")),
    ("paper-vit-b", include_str!("../../../configs/paper-vit-b.toml")),
];

fn of(text: &str) -> Result<Config, Vec<ConfigError>> {
    Config::resolve(&ConfigInputs::default().layer("test.toml", text))
}

fn lines(text: &str) -> Vec<String> {
    let errors = of(text).expect_err("refused");
    errors.iter().map(ToString::to_string).collect()
}

fn set(setting: &str) -> Result<Config, Vec<ConfigError>> {
    Config::resolve(&ConfigInputs::default().set(setting))
}

#[test]
fn every_shipped_configuration_resolves_and_comes_back_the_same() {
    for (name, text) in SHIPPED {
        let config = of(text).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        let written = config.to_toml().expect("TOML");
        assert_eq!(of(&written).as_ref(), Ok(&config), "{name}\n{written}");
    }
}

#[test]
fn the_baseline_goes_over_every_configuration_and_changes_nothing_but_the_masks() {
    let overlay = SHIPPED.iter().find(|(name, _)| *name == "baseline-random").expect("shipped").1;
    for (name, text) in SHIPPED {
        let inputs = ConfigInputs::default().layer(name, text).layer("baseline-random", overlay);
        let mut config = Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{name}: {errors:?}"));
        assert_eq!(config.mask.strategy.name(), "random", "{name}");
        let alone = of(text).expect("resolves");
        (config.method.multitask, config.mask) = (alone.method.multitask, alone.mask.clone());
        assert_eq!(config, alone, "{name}");
    }
    let multitask = ConfigInputs::default().layer("multitask", "[method]\nmultitask = true");
    assert!(Config::resolve(&multitask.layer("baseline-random", overlay)).is_ok());
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(of(""), Ok(Config::default()));
    assert_eq!(of("[model]\npreset = \"tiny\""), Ok(Config::default()));
}

#[test]
fn a_preset_is_weaker_than_a_written_key_in_any_layer() {
    let inputs = ConfigInputs::default()
        .layer("a.toml", "[model]\ndepth = 7")
        .layer("b.toml", "[model]\npreset = \"base\"\n[data]\nformat = \"synthetic\"")
        .set("policy.batch=32");
    let config = Config::resolve(&inputs).expect("valid");
    assert_eq!((config.model.depth, config.model.dim, config.model.patch), (7, 768, 2));
    assert_eq!((config.policy.batch, config.pretrain.batch), (32, 128));
    assert_eq!(config.mask.hidden, 512);
}

#[test]
fn a_preset_of_the_method_gives_its_keys_unless_nothing_is_learned() {
    let of = |sets: &[&str]| {
        let inputs = sets.iter().fold(ConfigInputs::quickstart(), |inputs, set| inputs.set(set));
        Config::resolve(&inputs).unwrap_or_else(|errors| panic!("{errors:?}"))
    };
    let recommended =
        of(&["method.preset=recommended", "policy.batch=64", "mask.strategy=token-mlp", "mask.explore=0.0"]);
    assert_eq!(recommended.method.hypergradient.name(), "ridge");
    assert_eq!((recommended.policy.batch, recommended.finetune.batch), (64, 256), "written keys are stronger");
    assert_eq!(recommended.mask.strategy.name(), "token-mlp");
    let again = ConfigInputs::default().layer("again", &recommended.to_toml().expect("TOML"));
    assert_eq!(Config::resolve(&again), Ok(recommended));
    let random = of(&["method.preset=recommended", "mask.strategy=random", "mask.explore=0.0"]);
    assert_eq!(random.mask.weights, Config::default().mask.weights);
    for preset in [MethodPreset::Published, MethodPreset::Recommended] {
        for (key, value) in preset.values() {
            let given = ConfigInputs::default().set(&format!("{key}={value}"));
            assert!(given.sets.len() == 1 && super::rules().any(|(known, _)| known == *key), "{key}");
        }
    }
    assert_eq!(of(&["method.preset=published"]).mask, of(&[]).mask);
}

#[test]
fn a_mixture_is_one_value_that_a_later_one_replaces() {
    let base = "[mask]\nstrategy = \"mixture\"\nmixture = { random = 1.0, block = 1.0 }";
    let of = |set: &str| {
        let inputs = ConfigInputs::default().layer("a.toml", "[data]\nformat = \"synthetic\"").layer("b.toml", base);
        let config = Config::resolve(&inputs.set(set)).unwrap_or_else(|errors| panic!("{errors:?}"));
        config.mask.mixture.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(of("mask.ratio=0.5"), ["block", "random"]);
    assert_eq!(of("mask.mixture={ grid = 1.0, noise = 2.0 }"), ["grid", "noise"]);
    assert_eq!(of("mask={ mixture = { grid = 1.0 } }"), ["grid"]);
}

#[test]
fn what_a_closed_form_head_and_a_schedule_need_is_said_at_once() {
    let line = |sets: &[&str]| {
        let inputs = ConfigInputs::default().layer("a.toml", "[data]\nformat = \"synthetic\"");
        let inputs = sets.iter().fold(inputs, |inputs, set| inputs.set(set));
        Config::resolve(&inputs).expect_err("refused").iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let one = line(&["method.hypergradient=ridge", "finetune.batch=1", "train.grain=1"]);
    assert!(one.starts_with("finetune.batch = 1: is too small") && one.ends_with("(allowed: 2 or more)"), "{one}");
    let none = line(&["mask.strategy=block", "mask.explore_schedule=linear"]);
    assert!(none.starts_with("mask.explore_schedule = \"linear\": has no meaning"), "{none}");
}

#[test]
fn a_precision_brings_its_hypergradient_where_none_is_given() {
    let form = |settings: &[&str]| {
        let inputs = ConfigInputs::default().layer("a.toml", "[data]\nformat = \"synthetic\"");
        let inputs = settings.iter().fold(inputs, |inputs, setting| inputs.set(setting));
        Config::resolve(&inputs).expect("valid").method.hypergradient.name()
    };
    assert_eq!(form(&[]), "clean");
    assert_eq!(form(&["compute.precision=f32"]), "clean");
    assert_eq!(form(&["compute.precision=bf16"]), "tangent");
    assert_eq!(form(&["method.hypergradient=clean", "compute.precision=bf16"]), "clean");
    let resolved = ConfigInputs::default().set("data.format=synthetic").set("compute.precision=bf16");
    let written = Config::resolve(&resolved).expect("valid").to_toml().expect("TOML");
    let again = ConfigInputs::default().layer("run", &written).set("compute.precision=f32");
    assert_eq!(Config::resolve(&again).expect("valid").method.hypergradient.name(), "tangent", "a run keeps its form");
}

#[test]
fn settings_reach_every_key_with_a_value_of_its_type() {
    fn walk(prefix: &str, value: &toml::Value, keys: &mut Vec<(String, toml::Value)>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, keys);
                }
            }
            other => keys.push((prefix.to_owned(), other.clone())),
        }
    }
    let table = toml::Value::try_from(Config::default()).expect("TOML");
    let mut keys = Vec::new();
    walk("", &table, &mut keys);
    assert!(keys.len() > 80, "{}", keys.len());
    for (key, value) in keys {
        assert_eq!(set(&format!("{key}={value}")), Ok(Config::default()), "{key}");
    }
    // A bare word is a string, quoted or not.
    let bare = set("data.format=synthetic").expect("valid");
    assert_eq!(set("data.format=\"synthetic\""), Ok(bare.clone()));
    assert_eq!(bare.data.format.as_str(), "synthetic");
    assert_eq!(set("data.format=embedded"), Ok(Config::default()));
}

#[test]
fn unknown_keys_are_refused_with_a_suggestion() {
    assert_eq!(lines("[model]\ndimm = 3"), ["model.dimm: unknown key; did you mean model.dim?"]);
    assert_eq!(lines("[actors.lod]\nworkers = 1"), ["actors.lod: unknown key; did you mean actors.load?"]);
    assert_eq!(
        lines("[train]\nwarmup_steps = 1"),
        ["train.warmup_steps: unknown key; did you mean finetune.warmup_steps?"]
    );
    assert_eq!(
        lines("[pretrain]\nlearning_rate = 1"),
        ["pretrain.learning_rate: unknown key; did you mean pretrain.lr?"]
    );
    assert_eq!(lines("[mask]\nmask_ratio = 0.5"), ["mask.mask_ratio: unknown key; did you mean mask.ratio?"]);
    assert_eq!(lines("num_workers = 1"), ["num_workers: unknown key; did you mean actors.encoder.workers?"]);
    assert_eq!(
        lines("[finetune]\ndropout = 0.1"),
        ["finetune.dropout: unknown key; did you mean method.head_dropout?"]
    );
    assert_eq!(lines("zzz = 1"), ["zzz: unknown key"]);
}

#[test]
fn all_errors_come_at_once_and_each_on_one_line() {
    let text = "
        seed = -1
        [mask]
        ratio = 1.5
        net = \"token\"
        [actors.load]
        queue_cap = 9
        workers = \"two\"
        [pipeline]
        lag = 9
        [pretrain]
        betas = [0.9]
        lr = nan
        [model]
        heads = 5
        patch = 5
        [data]
        pretrain_fraction = 0.9
    ";
    let lines = lines(text);
    assert_eq!(lines.len(), 11, "{lines:#?}");
    let has = |line: &str| assert!(lines.iter().any(|l| l == line), "{line}\nin {lines:#?}");
    has("mask.ratio = 1.5: out of range (allowed: number, 0.05 to 0.95)");
    let maskings: Vec<&str> = mlomae_model::masking::MASKINGS.iter().map(|kind| kind.name()).collect();
    has(&format!(
        "mask.net = \"token\": not an allowed value; did you mean \"token-mlp\"? (allowed: {})",
        maskings.join(", ")
    ));
    has("actors.load.queue_cap = 9: out of range (allowed: whole number, 0 to 8)");
    has("actors.load.workers = \"two\": wrong type (allowed: whole number, 0 to 256)");
    has("pipeline.lag = 9: out of range (allowed: whole number, 0 to 8)");
    has("pretrain.betas = [0.9]: wrong number of values (allowed: list of 2 values, each number, 0.0 to 0.999999)");
    has("pretrain.lr = nan: out of range (allowed: number, 0.0 to 10.0)");
    has("model.heads = 5: does not divide model.dim 96 (allowed: 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)");
    has("model.patch = 5: does not divide the image's side 28 (allowed: 1, 2, 4, 7, 14, 28)");
    assert!(lines.iter().any(|line| line.starts_with("seed = -1: out of range")));
    assert!(lines.iter().any(|line| line.contains("data.pretrain_fraction")));
}

#[test]
fn the_colour_of_noise_is_for_masks_of_noise() {
    let resolve = |strategy: &str, noise: &str| {
        let inputs =
            ConfigInputs::default().set(&format!("mask.strategy={strategy}")).set(&format!("mask.noise={noise}"));
        Config::resolve(&inputs).map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(resolve("noise", "blue").expect("valid").mask.noise, mlomae_model::masking::MaskNoise::Blue);
    assert_eq!(
        resolve("block", "blue").expect_err("no noise"),
        ["mask.noise = \"blue\": has no meaning with mask.strategy = \"block\" \
          (allowed: green, or mask.strategy = \"noise\")"]
    );
    assert_eq!(
        resolve("noise", "pink").expect_err("no such noise"),
        ["mask.noise = \"pink\": not an allowed value (allowed: red, blue, green, purple)"]
    );
}

#[test]
fn the_readme_has_every_masking_strategy() {
    let readme = include_str!("../../../README.md");
    for kind in mlomae_model::masking::MASKINGS {
        let row = format!("| `{}` | {} |", kind.name(), kind.summary());
        assert!(readme.lines().any(|line| line == row), "README.md lacks the row: {row}");
    }
}

#[test]
fn broken_configurations_name_key_value_and_allowed() {
    #[derive(serde::Deserialize)]
    struct Cases {
        case: Vec<Case>,
    }
    #[derive(serde::Deserialize)]
    struct Case {
        text: String,
        begins: String,
    }
    let cases: Cases = toml::from_str(include_str!("../../../tests/fixtures/broken-configs.toml")).expect("TOML");
    assert!(cases.case.len() >= 60, "{}", cases.case.len());
    for Case { text, begins } in cases.case {
        let lines = lines(&text);
        assert!(lines[0].starts_with(&begins), "{text:?}: {lines:?}");
        assert_eq!(lines.len(), 1, "{text:?}: {lines:?}");
        assert!(!lines[0].contains('\n'), "{lines:?}");
    }
}

#[test]
fn settings_without_a_key_or_value_are_refused() {
    for setting in ["pipeline.lag", "=3", "a..b=1"] {
        let errors = set(setting).expect_err("refused");
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().starts_with(&format!("--set {setting}: has")), "{errors:?}");
    }
    assert_eq!(
        set("seed.x=1").expect_err("refused")[0].to_string(),
        "seed = { .. }: wrong type (allowed: whole number, 0 to 9223372036854775807)"
    );
}

#[test]
fn the_schema_documents_every_key() {
    fn walk(path: &str, schema: &serde_json::Value) {
        let documented = |schema: &serde_json::Value| {
            schema.get("description").is_some_and(|text| text.as_str().is_some_and(|t| t.len() > 10))
        };
        assert!(documented(schema), "{path} has no description");
        if let Some(keys) = schema.get("properties").and_then(serde_json::Value::as_object) {
            keys.iter().for_each(|(key, inner)| walk(&format!("{path}.{key}"), inner));
        }
    }
    walk("config", schema());
    let encoder = &schema()["properties"]["actors"]["properties"]["encoder"];
    assert_eq!(encoder["properties"]["workers"]["default"], 0, "the section's default");
}

#[test]
fn checkpoints_fall_on_the_first_boundary_after_each_interval() {
    let at = |every_steps| -> Vec<u64> {
        let checkpoint = CheckpointConfig { every_steps, ..CheckpointConfig::default() };
        (0..=10).filter(|outer| checkpoint.is_due(Outer(*outer), 2)).collect()
    };
    assert_eq!(at(5), [3, 5, 8, 10]);
    assert!(at(0).is_empty());
}

#[test]
fn roles_too_small_for_a_batch_are_named() {
    let config = Config::default();
    assert!(config.check_roles(64, 64, 64).is_empty());
    let errors = config.check_roles(64, 63, 0);
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0].to_string(), "finetune.batch = 64: is more than the finetune role has (allowed: 1 to 63)");
}

#[test]
fn the_embedded_and_the_generated_data_open_as_configured() {
    use mlomae_storage::dataset::{Split, open};
    let generated = ConfigInputs::default()
        .set("data.format=synthetic")
        .set("data.synthetic.num_train=40")
        .set("data.synthetic.num_classes=3")
        .set("data.synthetic.image=16");
    let embedded = ConfigInputs::quickstart();
    for (inputs, num_samples, side, num_classes) in [(embedded, 5000, 28, 10), (generated, 40, 16, 3)] {
        let config = Config::resolve(&inputs).expect("valid");
        let train = open(&config.data.dataset_spec(Split::Train)).expect("opens");
        assert_eq!(train.len(), num_samples);
        assert_eq!(train.info().image_size, Some((side, side)));
        assert_eq!(train.info().class_names.len(), num_classes);
    }
}

#[test]
fn nothing_is_deep_enough_to_overflow_the_stack() {
    let many = 60_000;
    let settings = [
        format!("{}a=1", "a.".repeat(many)),
        format!("x={}", "[".repeat(many)),
        format!("x={}1{}", "[".repeat(many), "]".repeat(many)),
        format!("x={}", "{a=".repeat(many)),
        format!("x={{{}a=1}}", "a.".repeat(many)),
        format!("x={}1{}", "[".repeat(70), "]".repeat(70)),
        // The parser's own bounds multiplied make some thousand levels, which the stack of the main thread has room
        // for.
        format!("x={}1{}", format!("{{{}a=", "a.".repeat(20)).repeat(20), "}".repeat(20)),
    ];
    for setting in &settings {
        let errors = set(setting).expect_err("refused");
        let line = errors[0].to_string();
        assert!(errors.len() == 1 && line.len() < 2000, "{} of {} bytes", errors.len(), line.len());
        let layers = [setting.clone(), format!("[{}a]", "a.".repeat(many)), "[a]\n".repeat(many)];
        for text in layers {
            let lines = lines(&text);
            assert!(lines.len() == 1 && lines[0].starts_with("test.toml"), "{} lines", lines.len());
            assert!(lines[0].len() < 2000);
        }
    }
}

#[test]
fn scales_and_arms_are_refused_where_they_mean_nothing() {
    let pixels = "strategy = \"token-mlp\"\ninput = \"pixels\"";
    assert!(of(&format!("[mask]\n{pixels}\nscales = [1, 2, 4]\nexplore_arms = [0, 0.5]")).is_ok());
    for (mask, begins) in [
        ("scales = []", "mask.scales = []: is not a list of rising sides"),
        ("scales = [2, 1]", "mask.scales = [2, 1]: is not a list of rising sides"),
        ("scales = [0]", "mask.scales = [0]: out of range"),
        (
            "input = \"pixels\"\nscales = [1, 2]",
            "mask.scales = [1, 2]: has no meaning with mask.strategy = \"flat-mlp\"",
        ),
        (
            "strategy = \"token-mlp\"\nscales = [1, 2]",
            "mask.scales = [1, 2]: is only for a masking that reads the pixels",
        ),
        ("input = \"pixels\"\nexplore_arms = [0.5]", "mask.explore_arms = [0.5]: is not a list of two or more"),
        ("input = \"pixels\"\nexplore_arms = [0.5, 1.5]", "mask.explore_arms = [0.5, 1.5]: out of range"),
        ("explore_arms = [0.0, 0.5]", "mask.explore_arms = [0.0, 0.5]: is only for a masking that reads the pixels"),
        ("strategy = \"random\"\nexplore_arms = [0.0, 0.5]", "mask.explore_arms = [0.0, 0.5]: has no meaning"),
        ("ratio_per_flop = true", "mask.ratio_per_flop = true: has no meaning without mask.ratio_arms"),
        ("ratio_arms = [0.5]", "mask.ratio_arms = [0.5]: is not a list of two or more rising ratios"),
        ("ratio_arms = [0.5, 0.99]", "mask.ratio_arms = [0.5, 0.99]: out of range"),
        ("strategy = \"grid\"\nratio_arms = [0.5, 0.6]", "mask.ratio_arms = [0.5, 0.6]: has no meaning"),
        (
            "ratio_schedule = \"linear\"\nratio_end = 0.5\nratio_arms = [0.5, 0.6]",
            "mask.ratio_arms = [0.5, 0.6]: takes the place of mask.ratio_schedule, which is \"linear\"",
        ),
        (
            "input = \"pixels\"\nexplore = 0.5\nexplore_arms = [0.0, 0.5]",
            "mask.explore_arms = [0.0, 0.5]: takes the place of mask.explore, which is 0.5",
        ),
        (
            "input = \"pixels\"\nselect = \"random\"\nexplore_arms = [0.0, 0.5]",
            "mask.explore_arms = [0.0, 0.5]: has no meaning with mask.select = \"random\"",
        ),
        (
            "input = \"pixels\"\nselect = \"sample\"\nexplore_arms = [0.0, 0.5]\n[policy]\nestimator = \"score\"",
            "mask.explore_arms = [0.0, 0.5]: leaves masks whose probability",
        ),
    ] {
        let lines = lines(&format!("[mask]\n{mask}"));
        assert!(lines.len() == 1 && lines[0].starts_with(begins), "{mask}: {lines:?}");
    }
    // The images of the default data have 7 patches a side.
    let lines = lines(&format!("[mask]\n{pixels}\nscales = [1, 9]"));
    assert!(lines.len() == 1 && lines[0].starts_with("mask.scales = [1, 9]: has a block of 9 patches"), "{lines:?}");
}

#[test]
fn a_branch_search_is_refused_where_it_means_nothing() {
    let lines = |settings: &[&str]| {
        let inputs = settings.iter().fold(ConfigInputs::default(), |inputs, setting| inputs.set(setting));
        match Config::resolve(&inputs) {
            Ok(config) => vec![format!("{:?} {}", config.policy.search, config.policy.branch_judges)],
            Err(errors) => errors.iter().map(ToString::to_string).collect(),
        }
    };
    let branch = "policy.search=branch";
    assert_eq!(lines(&[branch]), ["Branch 4"]);
    assert_eq!(lines(&[branch, "method.ridge_penalty=0.1", "policy.branch_steps=4"]), ["Branch 4"]);
    for (settings, expected) in [
        (&["policy.search=line"][..], "policy.search = \"line\": not an allowed value (allowed: gradient, branch)"),
        (
            &["policy.branch_steps=8"],
            "policy.branch_steps = 8: has no meaning with policy.search = \"gradient\" \
             (allowed: policy.search = \"branch\")",
        ),
        (
            &["policy.branch_judges=1"],
            "policy.branch_judges = 1: has no meaning with policy.search = \"gradient\" \
             (allowed: policy.search = \"branch\")",
        ),
        (
            &[branch, "policy.branch_steps=3"],
            "policy.branch_judges = 4: is more than policy.branch_steps = 3 (allowed: 1 to 3)",
        ),
        (
            &[branch, "mask.strategy=random"],
            "policy.search = \"branch\": has no meaning with mask.strategy = \"random\", which learns nothing \
             (allowed: gradient)",
        ),
        (
            &[branch, "method.multitask=true"],
            "policy.search = \"branch\": has no meaning with method.multitask, whose labels move the encoder itself \
             (allowed: gradient)",
        ),
        (
            &[branch, "finetune.batch=1", "train.grain=1"],
            "finetune.batch = 1: is too small for policy.search = \"branch\", which judges by a head in closed form \
             (allowed: 2 or more)",
        ),
        (
            &["method.ridge_penalty=0.1"],
            "method.ridge_penalty = 0.1: has no meaning with method.hypergradient = \"clean\" \
             (allowed: method.hypergradient = \"ridge\", or policy.search = \"branch\")",
        ),
    ] {
        assert_eq!(lines(settings), [expected], "{settings:?}");
    }
}

#[test]
fn malformed_settings_are_refused_in_one_line() {
    for setting in [
        "",
        "=",
        "=1",
        "a",
        "seed",
        ".=1",
        "a..b=1",
        "seed.=1",
        "seed=",
        "seed==1",
        "seed=1\npipeline.lag=1",
        "\u{1b}[31m=1",
    ] {
        let errors = set(setting).expect_err(setting);
        assert_eq!(errors.len(), 1, "{setting:?}: {errors:?}");
    }
}

#[test]
fn every_format_of_data_sets_is_a_value_with_its_description() {
    let keys = |section: &serde_json::Value| section["properties"].clone();
    let format = &keys(&keys(schema())["data"])["format"];
    let variants: Vec<&serde_json::Value> = format["oneOf"].as_array().expect("variants").iter().collect();
    let names: Vec<_> = variants.iter().filter_map(|variant| variant["const"].as_str()).collect();
    assert!(names.iter().copied().eq(FormatName::all().map(FormatName::as_str)), "{names:?}");
    // Old configurations and checkpoints have these.
    for name in ["auto", "hf-parquet", "cifar-bin", "cifar-pickle", "idx", "image-folder", "synthetic", "embedded"] {
        assert!(names.contains(&name), "{name}");
    }
    assert!(variants.iter().all(|variant| variant["description"].as_str().is_some_and(|text| text.ends_with('.'))));
    assert_eq!((&format["default"], &format["description"]), (&"embedded".into(), &"Form of the files.".into()));
    // As a derived enum has them.
    let of_test_split = &keys(&keys(schema())["data"])["test_split"]["oneOf"][0];
    let fields =
        |variant: &serde_json::Value| variant.as_object().map(|fields| fields.keys().cloned().collect::<Vec<_>>());
    assert_eq!(fields(variants[0]), fields(of_test_split));
    assert_eq!(
        lines("[data]\nformat = \"image-foldr\""),
        [format!(
            "data.format = \"image-foldr\": not an allowed value; did you mean \"image-folder\"? (allowed: {})",
            names.join(", ")
        )]
    );
}
