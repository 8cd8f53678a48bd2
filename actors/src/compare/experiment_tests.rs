use super::*;

const PLAIN: &str = r#"
base = "quickstart"
seeds = [0, 1, 2]
reference = "random"
primary = "knn.accuracy"

[arms.zebra]
set = ["mask.strategy=token-mlp"]
[arms.random]
ready = "random"
about = "masks at random"
set = ["mask.ratio=0.5"]
[arms.ant]
untrained = true
"#;

fn lines(text: &str) -> Vec<String> {
    let errors = ExperimentFile::parse("x.toml", text).expect_err("must be refused");
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn arms_come_in_the_order_of_the_file_after_the_reference() {
    let file = ExperimentFile::parse("x.toml", PLAIN).unwrap();
    let names: Vec<&str> = file.arms.iter().map(|arm| arm.name.as_str()).collect();
    assert_eq!(names, ["random", "zebra", "ant"]);
    assert_eq!((file.references, file.tested), (vec!["random".to_owned()], vec!["zebra".to_owned(), "ant".to_owned()]));
    assert_eq!(file.evals, ["knn", "linear"], "all by default");
    assert_eq!(file.budget, Budget::Config);
    let logged = ExperimentFile::parse("x.toml", &format!("logged = [\"object_score_auc\"]\n{PLAIN}")).unwrap();
    assert_eq!(logged.metrics(), ["knn.accuracy", "linear.accuracy", "log.object_score_auc"]);
    let random = &file.arms[0];
    assert_eq!((random.about.as_str(), random.untrained), ("masks at random", false));
    assert_eq!(random.set.last().map(String::as_str), Some("mask.ratio=0.5"), "an arm's own settings are stronger");
    assert_eq!(random.set.len(), by_name("random").unwrap().settings().len() + 1);
    assert_eq!([1, 2].map(|arm| file.arms[arm].untrained), [false, true]);
}

#[test]
fn a_grid_is_every_combination_and_dotted_keys_are_tables() {
    let text = format!(
        "tuning_seeds = [8]\n{PLAIN}[arms.zebra.grid]\n\"policy.lr\" = [1e-4, 1e-3]\nmask.input = [\"pixels\", \"embedding\"]\n"
    );
    let file = ExperimentFile::parse("x.toml", &text).unwrap();
    let grid = &file.arms[1].grid;
    assert_eq!(num_trials(grid), 4);
    let all = trials(grid);
    assert_eq!(all.len(), 4);
    for trial in &all {
        assert_eq!(trial.len(), 2);
        assert!(trial.iter().any(|set| set.starts_with("policy.lr=")));
        assert!(trial.iter().any(|set| set == "mask.input=\"pixels\"" || set == "mask.input=\"embedding\""));
        assert_eq!(all.iter().filter(|other| *other == trial).count(), 1, "{trial:?} once");
    }
    assert_eq!((num_trials(&Vec::new()), trials(&Vec::new())), (1, vec![Vec::<String>::new()]));
}

#[test]
fn every_budget_has_a_kind_and_a_value() {
    let of = |text: &str| ExperimentFile::parse("x.toml", &format!("budget = {text}\n{PLAIN}"));
    let expected = [
        ("{ kind = \"outer\", value = 5 }", Budget::Outer(5.0)),
        ("{ kind = \"steps\", value = 5 }", Budget::Steps(5.0)),
        ("{ kind = \"images\", value = 1e6 }", Budget::Images(1e6)),
        ("{ kind = \"gflop\", value = 2.5 }", Budget::Gflop(2.5)),
        ("{ kind = \"seconds\", value = 60 }", Budget::Seconds(60.0)),
    ];
    for (text, budget) in expected {
        assert_eq!(of(text).unwrap().budget, budget);
    }
    for bad in ["3", "{ kind = \"hours\", value = 1 }", "{ kind = \"outer\", value = 0 }", "{ kind = \"outer\" }", "{}"]
    {
        let errors = of(bad).expect_err(bad);
        assert!(errors.iter().all(|error| error.key.starts_with("x.toml: budget")), "{errors:?}");
    }
}

#[test]
fn what_is_wrong_is_said_in_one_line_each_with_what_is_allowed() {
    let replaced = |from: &str, to: &str| {
        assert!(PLAIN.contains(from), "{from}");
        lines(&PLAIN.replacen(from, to, 1))
    };
    let cases = [
        ("seeds =", "sedes =", "sedes: unknown key; did you mean seeds?"),
        ("seeds = [0, 1, 2]", "", "seeds: is missing"),
        ("[0, 1, 2]", "[0, 1, 0]", "names seed 0 twice"),
        ("[0, 1, 2]", "[-1]", "is no list of seeds"),
        ("[0, 1, 2]", "[]", "is no list of seeds"),
        ("base = \"quickstart\"", "", "base: is missing"),
        ("base = \"quickstart\"", "base = 3", "base = 3: is no text"),
        (
            "reference = \"random\"",
            "reference = \"rando\"",
            "is no arm; did you mean random? (allowed: zebra, random, ant)",
        ),
        ("reference = \"random\"", "references = []", "references = []: is empty"),
        ("reference = \"random\"", "", "reference: is missing"),
        ("knn.accuracy", "knn.acuracy", "did you mean knn.accuracy?"),
        ("ready = \"random\"", "ready = \"publishd\"", "did you mean published?"),
        ("untrained = true", "untrained = 1", "is no truth value"),
        ("untrained = true", "steps = 3", "is not 0"),
        ("untrained = true", "untrained = true\ngrid = { \"policy.lr\" = [1] }", "has nothing to choose"),
        ("[arms.ant]", "[arms.\"a/b\"]", "is no name of an arm"),
        ("set = [\"mask.ratio=0.5\"]", "set = \"mask.ratio=0.5\"", "is no list of texts"),
        ("set = [\"mask.ratio=0.5\"]", "sett = []", "arms.random.sett: unknown key; did you mean set?"),
        ("set = [\"mask.ratio=0.5\"]", "grid = { \"policy.lr\" = [1] }", "tuning_seeds: is missing"),
        ("set = [\"mask.ratio=0.5\"]", "grid = { \"policy.lr\" = 1 }", "is no list of values"),
        ("primary =", "tuning_seeds = [2]\nprimary =", "seed 2 is one of seeds too"),
        ("primary =", "evals = [\"knn\", \"lineer\"]\nprimary =", "did you mean linear?"),
        ("primary =", "logged = [\"object_score_auk\"]\nprimary =", "did you mean object_score_auc?"),
        ("primary =", "logged = [\"loss\"]\nprimary =", "logged = \"loss\": is no number of the logs"),
        ("primary =", "tested = [\"ants\"]\nprimary =", "did you mean ant?"),
        ("base = ", "base = = ", "x.toml:2:"),
        (
            "set = [\"mask.ratio=0.5\"]",
            "set = [\"seed=3\"]",
            "arms.random.set = \"seed=3\": has no effect here: seeds says it",
        ),
        ("set = [\"mask.ratio=0.5\"]", "set = [\"run={ id = \\\"x\\\" }\"]", "(allowed: no run.id)"),
        ("primary =", "set = [\"eval.at_end=true\"]\nprimary =", "set = \"eval.at_end=true\": has no effect here"),
        (
            "primary =",
            "budget = { kind = \"steps\", value = 5 }\nset = [\"train.outer_iterations=7\"]\nprimary =",
            "set = \"train.outer_iterations=7\": has no effect here: budget says it",
        ),
        (
            "untrained = true",
            "untrained = false\ngrid = { seed = [1] }",
            "arms.ant.grid = \"seed=1\": has no effect here",
        ),
        ("[arms.ant]", "[judge]\n[arms.ant]", "judge: is empty"),
        ("[arms.ant]", "[judge]\nsets = []\n[arms.ant]", "judge.sets: unknown key; did you mean set?"),
        (
            "[arms.ant]",
            "[judge]\nset = [\"model.dim=8\"]\n[arms.ant]",
            "judge.set = \"model.dim=8\": is of the training",
        ),
        (
            "[arms.ant]",
            "[judge]\nset = [\"data.mean=[0.5]\"]\n[arms.ant]",
            "has no effect: images are normalised as those",
        ),
        (
            "[arms.ant]",
            "[judge]\nset = [\"data.augment.flip=true\"]\n[arms.ant]",
            "are not augmented (allowed: no data.augment)",
        ),
        ("primary =", "judge = 3\nprimary =", "judge = 3: is no table"),
    ];
    for (from, to, expected) in cases {
        let found = replaced(from, to);
        assert!(found.iter().any(|line| line.contains(expected)), "{to}: {found:#?}");
        assert!(found.iter().all(|line| !line.contains('\n') && line.starts_with("x.toml:")), "{found:#?}");
    }
    assert!(
        lines("base = \"quickstart\"\nseeds = [1]\nreference = \"a\"\n").iter().any(|l| l.contains("arms: is missing"))
    );
}

#[test]
fn a_length_is_a_setting_where_there_is_no_budget_and_a_judge_has_data_of_its_own() {
    let text = PLAIN.replace("mask.ratio=0.5", "train.outer_iterations=7");
    assert!(ExperimentFile::parse("x.toml", &text).is_ok());
    let text = format!("{PLAIN}[judge]\nbase = \"y.toml\"\nset = [\"data.image=16\", \"eval.knn_k=3\"]\n");
    let judge = ExperimentFile::parse("x.toml", &text).unwrap().judge.unwrap();
    assert_eq!(judge.to_string(), "data of y.toml, data.image=16, eval.knn_k=3");
    let arm = ConfigInputs::quickstart().set("mask.strategy=token-mlp").set("eval.linear_epochs=7");
    let base = ConfigInputs::default().set("data.format=synthetic").set("data.synthetic.image=16").set("seed=9");
    let config = judge.config(&arm, Some(&base)).unwrap();
    assert_eq!((config.data.format.as_str(), config.data.image), ("synthetic", Some(16)));
    assert_eq!((config.eval.knn_k, config.eval.linear_epochs, config.seed), (3, 7, 1), "seed and model are the arm's");
    assert_eq!(config.model, mlomae_dataflow::config::Config::resolve(&arm).unwrap().model);
    let own = judge.config(&arm, None).unwrap();
    assert_eq!((own.data.format.as_str(), own.data.image), ("embedded", Some(16)));
    assert!(!own.mask.strategy.is_learned(), "nothing is trained under it");
    let wrong = judge.config(&arm, Some(&ConfigInputs::default().set("data.format=synthetik"))).unwrap_err();
    assert!(wrong[0].to_string().contains("did you mean \"synthetic\"?"), "{wrong:?}");
}

#[test]
fn grids_must_be_equally_large() {
    let text = format!(
        "tuning_seeds = [8]\n{PLAIN}[arms.other.grid]\n\"policy.lr\" = [1e-4]\n[arms.zebra.grid]\n\"policy.lr\" = [1e-4, 1e-3]\n"
    );
    let found = lines(&text);
    assert!(found.iter().any(|line| line.contains("the same number in all grids")), "{found:#?}");
}
