//! `mlomae compare`: cells that are killed, fail or run side by side, and what is said of them.

use std::collections::BTreeMap;

use mlomae_storage::dataset::convert::encode_png;
use mlomae_storage::dataset::{Dataset, Split, SyntheticDataset, SyntheticSpec};
use serde_json::Value;

use crate::place::{Place, file_names, read, wait_for};

/// Two arms on two seeds, of half a second each.
const EXPERIMENT: &str = r#"
base = "tiny.toml"
seeds = [0, 1]
reference = "random"
primary = "knn.accuracy"
logged = ["object_score_auc", "mask_coverage_max"]
set = ["eval.linear_epochs=3", "checkpoint.every_steps=8"]
budget = { kind = "outer", value = 40 }

[arms.random]
ready = "random"
[arms.learned]
set = ["mask.strategy=token-mlp", "mask.input=pixels"]
"#;

/// Every value of a comparison by arm, metric and seed, to the bit.
pub(crate) type Values = BTreeMap<(String, String, i64), Option<u64>>;

impl Place {
    pub(crate) fn summary(&self, out: &str) -> Value {
        serde_json::from_slice(&read(&self.path(out).join("summary.json"))).expect("summary.json")
    }

    /// The rows of `cells.parquet`, as text.
    pub(crate) fn cells(&self, out: &str) -> Vec<BTreeMap<String, String>> {
        self.parquet(&format!("{out}/cells.parquet"))
    }

    /// The rows of a Parquet file, as text.
    pub(crate) fn parquet(&self, file: &str) -> Vec<BTreeMap<String, String>> {
        use arrow::util::display::array_value_to_string;
        use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
        let file = std::fs::File::open(self.path(file)).expect("a file");
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).expect("Parquet").build().expect("reader");
        let mut rows = Vec::new();
        for batch in reader {
            let batch = batch.expect("batch");
            for row in 0..batch.num_rows() {
                let value = |(field, column): (&arrow::datatypes::FieldRef, &arrow::array::ArrayRef)| {
                    (field.name().clone(), array_value_to_string(column, row).expect("text"))
                };
                rows.push(batch.schema_ref().fields().iter().zip(batch.columns()).map(value).collect());
            }
        }
        rows
    }

    pub(crate) fn values(&self, out: &str) -> Values {
        let value = |row: &BTreeMap<String, String>| {
            let number: Option<f64> = row["value"].parse().ok();
            let key = (row["arm"].clone(), row["metric"].clone(), row["seed"].parse().expect("seed"));
            (key, number.map(f64::to_bits))
        };
        self.cells(out).iter().map(value).collect()
    }

    pub(crate) fn compare(&self, out: &str, args: &[&str]) -> String {
        let mut all = vec!["compare", "e.toml", "--out", out];
        all.extend(args);
        self.succeed(&all)
    }
}

fn place() -> Place {
    let place = Place::new();
    place.write("e.toml", EXPERIMENT.as_bytes());
    place
}

#[test]
fn cells_that_run_side_by_side_or_are_killed_and_resumed_end_with_the_same_bits() {
    let place = Place::new();
    // Long enough for a signal to come in the middle of a cell on a busy machine.
    place.write("e.toml", EXPERIMENT.replace("value = 40", "value = 150").as_bytes());
    let text = place.compare("plain", &[]);
    assert!(text.contains("against random"), "{text}");
    let expected = place.values("plain");
    assert_eq!(expected.len(), 2 * 2 * 4, "arms, seeds, metrics");
    // Random masks have no scores.
    let is_there = |(arm, metric, _): &(String, String, i64)| arm != "random" || metric != "log.object_score_auc";
    assert!(expected.iter().all(|(key, value)| value.is_some() == is_there(key)), "{expected:?}");

    place.compare("jobs", &["--jobs", "2"]);
    assert_eq!(place.values("jobs"), expected, "--jobs changes nothing");

    // Killed at once, the comparison leaves a cell that ends by itself; stopped, it waits for it.
    for (out, signal, code) in [("killed", "KILL", None), ("stopped", "INT", Some(130))] {
        let running = place.start(&["compare", "e.toml", "--out", out]);
        let begun = place.path(out).join("cells/learned/seed-0/checkpoints");
        wait_for("a checkpoint of the second cell", || !file_names(&begun).is_empty());
        running.signal(signal);
        assert_eq!(running.end().code, code, "{signal}");
        let done = place.run_record(&format!("{out}/cells/random/seed-0"));
        assert!(!place.path(out).join("cells/learned/seed-1/run.json").exists(), "{signal} came in the middle");
        place.compare(out, &[]);
        assert_eq!(place.values(out), expected, "after {signal}");
        for cell in ["random/seed-0", "learned/seed-0", "learned/seed-1"] {
            place.assert_same_end(&format!("plain/cells/{cell}"), &format!("{out}/cells/{cell}"));
        }
        assert_eq!(place.run_record(&format!("{out}/cells/random/seed-0")), done, "a finished cell is left alone");
        let segment = place.run_record(&format!("{out}/cells/learned/seed-0"))["segment"].as_i64();
        assert_eq!(segment, Some(1), "the cell that was trained when {signal} came went on");
    }
}

#[test]
fn a_finished_comparison_is_left_alone_and_a_changed_arm_is_run_anew() {
    let place = place();
    place.compare("out", &[]);
    let record = |cell: &str| place.run_record(&format!("out/cells/{cell}"));
    let before = ["random/seed-0", "learned/seed-0"].map(record);
    place.compare("out", &[]);
    assert_eq!(["random/seed-0", "learned/seed-0"].map(record), before);

    let changed = EXPERIMENT.replace("mask.input=pixels\"", "mask.input=pixels\", \"policy.lr=5e-4\"");
    place.write("e.toml", changed.as_bytes());
    let plan = place.compare("out", &["--dry-run"]);
    assert!(plan.contains("0 of 2 to run") && plan.contains("2 of 2 to run"), "{plan}");
    assert_eq!(["random/seed-0", "learned/seed-0"].map(record), before, "a plan changes nothing");
    place.compare("out", &[]);
    assert_eq!(record("random/seed-0"), before[0]);
    assert_ne!(record("learned/seed-0"), before[1]);
    assert!(place.path("out/cells/learned/seed-0.before-1/run.json").exists(), "the former run is kept");

    // Another way to judge needs no training.
    place.write("e.toml", changed.replace("linear_epochs=3", "linear_epochs=4").as_bytes());
    let before = ["random/seed-0", "learned/seed-0"].map(|cell| place.weights(&format!("out/cells/{cell}")));
    place.compare("out", &[]);
    let after = ["random/seed-0", "learned/seed-0"].map(|cell| place.weights(&format!("out/cells/{cell}")));
    assert!(before == after);
    assert!(!place.path("out/cells/random/seed-0.before-1").exists());
}

#[test]
fn a_failing_arm_is_shown_and_the_others_go_on() {
    let place = Place::new();
    let failing = format!(
        "{EXPERIMENT}[arms.diverges]\nset = [\"pretrain.lr=10.0\", \"pretrain.weight_decay=1.0\"]\n\
         [arms.initial]\nready = \"untrained\"\n"
    );
    place.write("e.toml", failing.as_bytes());
    let ended = place.run(&["compare", "e.toml", "--out", "out"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.err.contains("diverges seed 0 failed with 70") && ended.err.contains("not finite"), "{ended:#?}");
    assert!(ended.err.contains("error: 2 cells failed"), "{ended:#?}");
    for row in place.cells("out") {
        let expected = if row["arm"] == "diverges" { ("failed", "70", true) } else { ("finished", "", false) };
        if row["metric"].starts_with("knn") {
            assert_eq!(
                (row["status"].as_str(), row["exit_code"].as_str(), row["value"].is_empty()),
                expected,
                "{row:?}"
            );
        }
        if row["arm"] == "initial" {
            assert_eq!(["outer_iterations", "steps", "images", "labels"].map(|key| row[key].as_str()), ["0"; 4]);
        }
        if row["arm"] == "random" {
            let amounts = ["outer_iterations", "steps", "images", "labels"].map(|key| row[key].as_str());
            assert_eq!(amounts, ["40", "80", "480", "0"], "two steps of 6 images, and no labels");
        }
    }
    let summary = place.summary("out");
    let arms: Vec<&str> = summary["arms"].as_array().unwrap().iter().map(|arm| arm["name"].as_str().unwrap()).collect();
    assert_eq!(arms, ["random", "learned", "diverges", "initial"]);
    assert_eq!(summary["is_complete"], false);
    let page = String::from_utf8(read(&place.path("out/report.html"))).expect("UTF-8");
    assert!(page.contains("Failed cells") && page.contains("not finite"));
    for outside in ["http://", "https://", "<script", "url(", "@import"] {
        assert!(!page.contains(outside), "the page needs {outside}");
    }
    let markdown = String::from_utf8(read(&place.path("out/summary.md"))).expect("UTF-8");
    assert!(markdown.contains("| diverges | 0 | 70 |"), "{markdown}");
}

#[test]
fn an_arm_whose_cost_cannot_be_measured_is_shown_as_failed_and_the_others_go_on() {
    let place = Place::new();
    let spec = SyntheticSpec { num_train: 90, num_test: 16, image: 16, channels: 1, ..SyntheticSpec::default() };
    for split in [Split::Train, Split::Test] {
        let images = SyntheticDataset::new(&spec, split).expect("images");
        for index in 0..images.len() {
            let sample = images.sample(index).expect("generated");
            let folder = place.path(&format!("images/{split}/class-{}", sample.label.expect("a label")));
            std::fs::create_dir_all(&folder).expect("folder");
            let png = encode_png(&sample.image).expect("encoded");
            // Their headers are whole, so that nothing is wrong until they are decoded.
            std::fs::write(folder.join(format!("{index:03}.png")), &png[..png.len() - 20]).expect("written");
        }
    }
    let broken = "[arms.broken]\nset = [\"mask.strategy=random\", \"data.format=image-folder\", \"data.path=images\", \
                  \"data.mean=[0.5]\", \"data.std=[0.2]\", \"data.image=16\", \"data.channels=1\"]\n";
    place.write(
        "e.toml",
        EXPERIMENT
            .replace("value = 40", "value = 4")
            .replace("[arms.random]", &format!("{broken}[arms.random]"))
            .as_bytes(),
    );
    let planned = place.run(&["compare", "e.toml", "--out", "out", "--dry-run"]);
    assert_eq!(planned.code, Some(1), "{planned:#?}");
    assert!(planned.out.contains("broken  failed with 65: its cost cannot be measured: "), "{planned:#?}");
    assert!(planned.err.contains("error: 1 of 3 arms cannot be run, see above"), "{planned:#?}");
    let ended = place.run(&["compare", "e.toml", "--out", "out"]);
    assert_eq!(ended.code, Some(1), "{ended:#?}");
    assert!(ended.err.contains("broken failed with 65: ") && ended.err.contains("error: 2 cells failed"), "{ended:#?}");
    for row in place.cells("out").iter().filter(|row| row["metric"].starts_with("knn")) {
        let expected = if row["arm"] == "broken" { ("failed", "65", true) } else { ("finished", "", false) };
        let found = (row["status"].as_str(), row["exit_code"].as_str(), row["value"].is_empty());
        assert_eq!(found, expected, "{row:?}");
    }
    let markdown = String::from_utf8(read(&place.path("out/summary.md"))).expect("UTF-8");
    assert!(markdown.contains("| broken | 0 | 65 | its cost cannot be measured: "), "{markdown}");
    assert!(!place.path("out/cells/broken").exists(), "nothing of it was begun");
}

#[test]
fn hyperparameters_are_chosen_on_other_seeds_and_other_images() {
    let place = Place::new();
    let grid = EXPERIMENT.replace("seeds = [0, 1]", "seeds = [0]\ntuning_seeds = [7, 8]");
    let grid = format!("{grid}[arms.learned.grid]\n\"policy.lr\" = [1e-4, 1e-2]\n");
    place.write("e.toml", grid.as_bytes());
    place.compare("out", &[]);
    let tuning = &place.summary("out")["tuning"][0];
    let trials = tuning["trials"].as_array().expect("trials");
    assert_eq!((tuning["arm"].as_str(), trials.len()), (Some("learned"), 2));
    let means: Vec<f64> = trials
        .iter()
        .map(|trial| trial[1].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).sum::<f64>())
        .collect();
    let best = if means[1] > means[0] { 1 } else { 0 };
    assert_eq!(tuning["chosen"], best);
    let chosen = place.summary("out")["arms"][1]["set"].as_array().unwrap().last().unwrap().clone();
    assert_eq!(chosen, trials[best][0].as_array().unwrap().last().unwrap().clone());
    for seed in [7, 8] {
        let record = place.run_record(&format!("out/tuning/learned/trial-0/seed-{seed}"));
        assert_eq!(record["seed"], seed);
        let path = place.path(&format!("out/tuning/learned/trial-0/seed-{seed}.json"));
        let cell: Value = serde_json::from_slice(&read(&path)).expect("JSON");
        assert_eq!(cell["metrics"][0]["num_items"], 18, "images of the role validation; the test split has 16");
        let rows = place.rows(&format!("out/tuning/learned/trial-0/seed-{seed}"), "evals");
        assert!(rows.is_empty(), "the test split was not looked at: {rows:?}");
    }
    assert_eq!(place.rows("out/cells/learned/seed-0", "evals").len(), 2, "k-NN and linear");
}

#[test]
fn budgets_of_images_and_arithmetic_give_whole_outer_iterations() {
    let place = place();
    let outer_of = |budget: &str| -> Vec<u64> {
        place.write("e.toml", EXPERIMENT.replace("{ kind = \"outer\", value = 40 }", budget).as_bytes());
        let plan = place.compare("out", &["--dry-run"]);
        let lines = plan.lines().filter(|line| line.ends_with("of 2 to run"));
        lines.map(|line| line.split_whitespace().nth(1).unwrap().parse().unwrap()).collect()
    };
    assert_eq!(outer_of("{ kind = \"images\", value = 125 }"), [10, 10], "12 images an iteration");
    assert_eq!(outer_of("{ kind = \"steps\", value = 9 }"), [4, 4]);
    let of_gflop = outer_of("{ kind = \"gflop\", value = 0.5 }");
    assert!(of_gflop[0] > 3 * of_gflop[1] / 2, "levels 2 and 3 cost: {of_gflop:?}");
    assert!(!place.path("out").exists(), "a plan leaves nothing");
}

#[test]
fn arithmetic_is_counted_as_the_benchmark_counts_it() {
    let place = Place::new();
    let base = "[data]\nformat = \"synthetic\"\n[data.synthetic]\nnum_train = 400\nnum_test = 20\nimage = 32\nchannels = 3\n\
                [model]\npreset = \"tiny\"\n";
    place.write("base.toml", base.as_bytes());
    let text = "base = \"base.toml\"\nseeds = [0]\nreference = \"random\"\nprimary = \"knn.accuracy\"\n\
                budget = { kind = \"outer\", value = 100 }\n[arms.random]\nready = \"random\"\n";
    place.write("e.toml", text.as_bytes());
    let plan = place.compare("out", &["--dry-run"]);
    let line = plan.lines().find(|line| line.starts_with("random ")).expect("a line");
    let counted: f64 = line.split_whitespace().nth(5).and_then(|word| word.parse().ok()).expect("GFLOP");
    let bench = place.succeed(&["bench", "--preset", "tiny", "--random", "--rounds", "1", "--json"]);
    let bench: Value = serde_json::from_str(&bench).expect("JSON");
    let expected = 100.0 * bench["gflop_outer"].as_f64().expect("gflop_outer");
    assert!((counted - expected).abs() < 1.0, "{counted} GFLOP planned, {expected} by bench");
}

#[test]
fn a_wrong_experiment_is_refused_before_anything_is_made() {
    let place = place();
    let refused = |from: &str, to: &str, expected: &str| {
        place.write("e.toml", EXPERIMENT.replacen(from, to, 1).as_bytes());
        let lines = place.fail(78, &["compare", "e.toml", "--out", "out"]);
        assert!(lines.iter().any(|line| line.contains(expected)), "{to}: {lines:#?}");
    };
    refused("token-mlp", "token-mpl", "e.toml: arms.learned: mask.strategy = \"token-mpl\"");
    refused("eval.linear_epochs", "eval.linear_epoch", "e.toml: set: eval.linear_epoch: unknown key");
    refused("mask.input=pixels", "model.patch=5", "e.toml: arms.learned: model.patch = 5");
    refused("reference = \"random\"", "reference = \"rendom\"", "did you mean random?");
    refused("value = 40", "value = 0.3", "less than one of arms.random");
    place.write("e.toml", EXPERIMENT.replace("tiny.toml", "tinny.toml").as_bytes());
    assert!(place.fail(66, &["compare", "e.toml", "--out", "out"])[0].contains("tinny.toml"));
    place.write("e.toml", EXPERIMENT.as_bytes());
    assert!(place.fail(2, &["compare", "e.toml", "--only", "lerned"])[0].contains("did you mean learned?"));
    assert!(place.fail(2, &["compare", "e.toml", "--seeds", "4"])[0].contains("allowed: 0, 1"));
    let lines = place.fail(2, &["compare", "e.toml", "--set", "train.outer_iterations=3"]);
    assert!(lines[0].contains("--set train.outer_iterations=3: has no effect here: budget says it"), "{lines:?}");
    assert!(!place.path("out/cells").exists());
}
