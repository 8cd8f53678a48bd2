//! `mlomae compare` with a judge of other data than those that train, and what it says of every image.

use std::collections::{BTreeMap, BTreeSet};

use mlomae_storage::dataset::{Dataset, Split, SyntheticDataset, SyntheticLabel, SyntheticSpec};

use crate::place::{Place, read};

const EXPERIMENT: &str = r#"
base = "tiny.toml"
seeds = [0, 1]
reference = "random"
primary = "knn.accuracy"
set = ["eval.linear_epochs=3"]
budget = { kind = "outer", value = 6 }

[arms.random]
ready = "random"
[arms.learned]
set = ["mask.strategy=token-mlp", "mask.input=pixels"]
[arms.initial]
ready = "untrained"
"#;

const BY_PLACE: &str = "[judge]\nset = [\"data.synthetic.label=place\"]\n";

/// The images of `tiny.toml`.
fn images(label: SyntheticLabel) -> SyntheticDataset {
    let spec = SyntheticSpec { num_train: 90, num_test: 16, image: 16, channels: 1, label, ..SyntheticSpec::default() };
    SyntheticDataset::new(&spec, Split::Test).expect("images")
}

fn experiment(place: &Place, judge: &str) {
    place.write("e.toml", format!("{EXPERIMENT}{judge}").as_bytes());
}

#[test]
fn a_judge_of_the_same_data_changes_nothing_and_one_of_other_labels_only_what_is_judged() {
    let place = Place::new();
    experiment(&place, "");
    place.compare("own", &[]);
    let own = place.values("own");
    // The same data by other words: as a setting over them, and as those of another configuration of other networks.
    experiment(&place, "[judge]\nset = [\"data.synthetic.seed=0\"]\n");
    place.compare("own", &[]);
    assert_eq!(place.values("own"), own, "judged anew, to the same bits");
    let other = "[data]\nformat = \"synthetic\"\nmean = [0.9]\nstd = [0.1]\n[data.synthetic]\nnum_train = 90\nnum_test = 16\n\
                 image = 16\nchannels = 1\n[model]\npatch = 8\ndim = 32\nheads = 2\n[eval]\nlinear_epochs = 1\n";
    place.write("other.toml", other.as_bytes());
    experiment(&place, "[judge]\nbase = \"other.toml\"\n");
    let plan = place.compare("own", &["--dry-run"]);
    assert!(plan.contains("judged by   data of other.toml; with the normalisation of the training"), "{plan}");
    place.compare("own", &[]);
    assert_eq!(place.values("own"), own, "its normalisation, its networks and its evaluations are not asked");

    let weights = ["random", "learned"].map(|arm| place.weights(&format!("own/cells/{arm}/seed-0")));
    experiment(&place, BY_PLACE);
    place.compare("own", &[]);
    assert!(weights == ["random", "learned"].map(|arm| place.weights(&format!("own/cells/{arm}/seed-0"))));
    assert!(!place.path("own/cells/random/seed-0.before-1").exists(), "nothing is trained again");
    let judged = place.values("own");
    assert!(judged.keys().eq(own.keys()) && judged != own, "other labels, other accuracies");
    for arm in ["random", "initial"] {
        let rows = place.rows(&format!("own/cells/{arm}/seed-0"), "evals");
        assert!(rows.iter().rev().take(2).all(|row| row.contains(",judge/test,accuracy,")), "{rows:?}");
    }
    for page in ["report.html", "summary.md", "summary.json"] {
        let page = String::from_utf8(read(&place.path("own").join(page))).expect("UTF-8");
        assert!(page.contains("data.synthetic.label=place"), "{page}");
    }
    // Trained in one go, the transfer is the same.
    place.compare("straight", &["--jobs", "2"]);
    assert_eq!(place.values("straight"), judged);
}

#[test]
fn every_image_has_its_row_and_intervals_lie_around_the_value() {
    let place = Place::new();
    experiment(&place, BY_PLACE);
    place.compare("out", &[]);
    let of_place = images(SyntheticLabel::Place);
    assert_ne!(
        (0..16).map(|i| of_place.label(i).unwrap()).collect::<Vec<_>>(),
        (0..16).map(|i| images(SyntheticLabel::Object).label(i).unwrap()).collect::<Vec<_>>()
    );
    let mut cells: BTreeMap<[String; 3], Vec<BTreeMap<String, String>>> = BTreeMap::new();
    for row in place.parquet("out/items.parquet") {
        let id: usize = row["sample_id"].parse().expect("an id");
        assert_eq!(row["label"], of_place.label(id).unwrap().unwrap().to_string(), "the judge's label of sample {id}");
        assert_eq!(row["correct"] == "1", row["label"] == row["predicted"]);
        cells.entry(["arm", "seed", "eval"].map(|key| row[key].clone())).or_default().push(row);
    }
    assert_eq!(cells.len(), 3 * 2 * 2, "arms, seeds, evaluations");
    for row in place.cells("out") {
        let eval = row["metric"].split('.').next().expect("an evaluation").to_owned();
        let images = &cells[&[row["arm"].clone(), row["seed"].clone(), eval]];
        let ids: BTreeSet<&str> = images.iter().map(|image| image["sample_id"].as_str()).collect();
        assert_eq!((images.len(), ids.len(), row["n"].as_str()), (16, 16, "16"));
        let [value, low, high] = ["value", "ci_low", "ci_high"].map(|key| row[key].parse::<f64>().expect("a number"));
        let num_right = images.iter().filter(|image| image["correct"] == "1").count();
        assert_eq!(value, num_right as f64 / 16.0, "{row:?}");
        assert!((0.0..=1.0).contains(&low) && low <= value && value <= high && high <= 1.0, "{row:?}");
        assert!(low < high || num_right == 0 || num_right == 16, "{row:?}");
    }
    // The table of the run has the same interval, and so has the summary.
    let row = place.rows("out/cells/learned/seed-1", "evals").pop().expect("a row");
    let of_run: Vec<f64> = row.rsplitn(3, ',').take(2).map(|end| end.parse().expect("a number")).collect();
    let cell = place
        .cells("out")
        .into_iter()
        .find(|cell| cell["arm"] == "learned" && cell["seed"] == "1" && cell["metric"] == "linear.accuracy");
    let cell = cell.expect("a cell");
    assert_eq!(of_run, ["ci_high", "ci_low"].map(|key| cell[key].parse::<f64>().expect("a number")));
    let summary = &place.summary("out")["arms"][1]["cells"][1]["metrics"][1];
    assert_eq!([summary["ci_high"].as_f64(), summary["ci_low"].as_f64()], [Some(of_run[0]), Some(of_run[1])]);

    // Without its images a cell is judged again, and nothing is trained.
    let before = place.run_record("out/cells/random/seed-0");
    let items = read(&place.path("out/items.parquet"));
    std::fs::remove_file(place.path("out/cells/random/seed-0.items.parquet")).expect("removed");
    place.compare("out", &[]);
    assert_eq!(read(&place.path("out/items.parquet")), items);
    assert_eq!(place.run_record("out/cells/random/seed-0")["started_at"], before["started_at"]);
}

#[test]
fn a_judge_that_cannot_judge_is_refused_before_anything_is_made() {
    let place = Place::new();
    let refused = |code: i32, judge: &str, expected: &str| {
        experiment(&place, judge);
        let lines = place.fail(code, &["compare", "e.toml", "--out", "out"]);
        assert!(lines.len() == 1 && lines[0].starts_with("e.toml: judge"), "{judge}: {lines:#?}");
        assert!(lines[0].contains(expected), "{judge}: {lines:#?}");
    };
    let set = |set: &str| format!("[judge]\nset = [\"{set}\"]\n");
    refused(
        78,
        &set("data.synthetic.image=24"),
        "has images of 24 x 24 pixels and 1 channel, arms.random trains on images of 16 x 16 pixels and 1 channel",
    );
    refused(78, &set("data.synthetic.channels=3"), "has images of 16 x 16 pixels and 3 channels");
    refused(78, &set("data.synthetic.labl=place"), "judge: data.synthetic.labl: unknown key; did you mean");
    refused(78, &set("data.synthetic.label=plaze"), "data.synthetic.label = \"plaze\"");
    refused(78, &set("mask.ratio=0.5"), "is of the training");
    refused(66, &set("data.test_split=none"), "no images of synthetic can judge");
    experiment(&place, "[judge]\nbase = \"none.toml\"\n");
    assert!(place.fail(66, &["compare", "e.toml", "--out", "out"])[0].contains("none.toml"));
    // Others are resized: images of 24 pixels and three channels judge those of 16 and one.
    experiment(
        &place,
        "[judge]\nset = [\"data.synthetic.image=24\", \"data.synthetic.channels=3\", \"data.image=16\", \"data.channels=1\"]\n",
    );
    place.compare("out", &["--dry-run"]);
    assert!(!place.path("out").exists());
}
