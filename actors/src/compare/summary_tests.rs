use std::path::Path;

use mlomae_dataflow::config::{Config, ConfigInputs};

use super::super::evaluations::MetricValue;
use super::super::key::Key;
use super::super::markdown::{markdown, verdict_text};
use super::super::page::page;
use super::*;
use crate::compare::cost::Cost;

const EXPERIMENT: &str = r#"
base = "quickstart"
seeds = [0, 1, 2, 3, 4, 5, 6, 7]
reference = "random"
primary = "knn.accuracy"
tested = ["learned", "slow", "lost"]
[arms.random]
ready = "random"
[arms.learned]
about = "<b>markup & pipes | in a text</b>"
[arms.slow]
set = ["pretrain.lr=1e-4"]
[arms.lost]
[arms.initial]
ready = "untrained"
"#;

fn value(name: &str, value: f64) -> MetricValue {
    MetricValue { name: name.to_owned(), value, unit: "share".to_owned(), num_items: 100, ci_low: None, ci_high: None }
}

/// A comparison in which `learned` is five points better, `slow` sways around nothing, all cells of `lost` failed and
/// one of `slow`.
fn summary() -> Summary {
    let file = ExperimentFile::parse("x.toml", EXPERIMENT).unwrap();
    let arm = |arm: &super::super::experiment::Arm| {
        let mut inputs = ConfigInputs::quickstart().set("engine=cpu");
        inputs.sets.extend(arm.set.iter().cloned());
        PlannedArm {
            name: arm.name.clone(),
            trial: None,
            about: arm.about.clone(),
            set: arm.set.clone(),
            config: Config::resolve(&inputs).unwrap(),
            untrained: arm.untrained,
            data: Key::of(&["data"]),
            judge: None,
            cost: Cost { gflop: 2.0, seconds: None },
            failure: None,
        }
    };
    let arms: Vec<PlannedArm> = file.arms.iter().map(arm).collect();
    let cells =
        file.seeds.iter().flat_map(|seed| arms.iter().map(|arm| arm.cell(Path::new("out"), *seed, &[]).unwrap()));
    let cells: Vec<Cell> = cells.collect();
    let record = |cell: &Cell| {
        let luck = 0.5 + 0.03 * ((cell.seed * 7 % 5) as f64);
        let sway = if cell.seed.is_multiple_of(2) { 0.01 } else { -0.01 };
        let accuracy = match cell.arm.as_str() {
            "learned" => luck + 0.05 + 0.1 * sway,
            "slow" => luck + sway,
            _ => luck,
        };
        let is_failed = cell.arm == "lost" || (cell.arm == "slow" && cell.seed == 3);
        let mut record = CellRecord { seconds: 3.0, ..cell.record() };
        if is_failed {
            (record.status, record.exit_code, record.error) = (Status::Failed, Some(70), Some("not finite".into()));
        } else {
            record.status = Status::Finished;
            record.metrics = vec![value("knn.accuracy", accuracy), value("linear.accuracy", 1.0 - accuracy)];
        }
        record
    };
    let known: Vec<Known<'_>> = cells.iter().map(|cell| (cell, record(cell))).collect();
    summarise("test", &file, &file.seeds, &arms, &known, vec!["a warning".to_owned()], Vec::new())
}

fn of<'s>(summary: &'s Summary, arm: &str, metric: &str) -> Option<&'s Comparison> {
    summary.comparisons.iter().find(|one| one.arm == arm && one.metric == metric)
}

#[test]
fn verdicts_are_of_pairs_of_finished_cells_and_of_tested_arms() {
    let summary = summary();
    assert!(!summary.is_complete);
    let learned = of(&summary, "learned", "knn.accuracy").unwrap();
    assert_eq!((learned.verdict, learned.paired.num_pairs), (Some(Verdict::Better), 8));
    assert!((learned.paired.mean - 0.05).abs() < 1e-12);
    assert_eq!(learned.paired.p, 2.0 / 256.0);
    assert_eq!(learned.p_holm, Some(6.0 / 256.0), "three arms are tested, one of which has no results");
    let slow = of(&summary, "slow", "knn.accuracy").unwrap();
    assert_eq!((slow.verdict, slow.paired.num_pairs), (Some(Verdict::NotShown), 7));
    assert!(slow.seeds_needed.is_some_and(|seeds| seeds > 8), "{slow:?}");
    assert!(verdict_text(slow).contains("seeds"));
    assert!(slow.differences.iter().all(|(seed, _)| *seed != 3));
    assert!(of(&summary, "lost", "knn.accuracy").is_none());
    let initial = of(&summary, "initial", "knn.accuracy").unwrap();
    assert_eq!((initial.verdict, initial.p_holm), (None, None), "not tested");
    assert_eq!(verdict_text(initial), "not tested");
    let other = of(&summary, "learned", "linear.accuracy").unwrap();
    assert_eq!((other.verdict, other.p_holm), (None, None), "only the primary metric has verdicts");
    assert!(other.paired.mean < 0.0);
}

#[test]
fn amounts_are_those_of_the_plan_and_an_untrained_arm_has_none() {
    let summary = summary();
    let amount = |name: &str| summary.arms.iter().find(|arm| arm.name == name).unwrap().amount;
    let random = amount("random");
    assert_eq!((random.outer, random.steps, random.images, random.labels), (1000, 2000, 128_000, 0));
    assert_eq!(amount("learned").labels, 128_000, "64 labels for each of levels 2 and 3, a thousand times");
    assert_eq!(random.gflop, 2000.0);
    assert_eq!(amount("initial"), Amount::default());
    let differs: Vec<&str> = summary.arms[2].differs.iter().map(|(key, _)| key.as_str()).collect();
    assert!(differs.contains(&"pretrain.lr") && differs.contains(&"mask.strategy"), "{differs:?}");
    assert!(summary.arms[0].differs.is_empty());
}

#[test]
fn tables_and_page_hold_what_they_are_made_of() {
    let summary = summary();
    let text = markdown(&summary);
    assert!(text.contains("| learned | +5.00 |") && text.contains("| better |"), "{text}");
    assert!(text.contains("Without a pair of finished cells: lost."), "{text}");
    assert!(text.contains("| lost | 7 | 70 | not finite |"), "{text}");
    for table in text.split("\n\n").filter(|part| part.starts_with('|')) {
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        let first = table.lines().next().map(columns);
        assert!(table.lines().all(|line| Some(columns(line)) == first), "{table}");
    }
    let html = page(&summary, &[]);
    assert!(html.contains("&lt;b&gt;markup &amp; pipes") && !html.contains("<b>markup"));
    for tag in ["div", "svg", "section", "table", "tr", "td", "th", "p", "b", "em", "span", "title", "h2"] {
        let num_opened = html.matches(&format!("<{tag}>")).count() + html.matches(&format!("<{tag} ")).count();
        assert_eq!(num_opened, html.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert!(!html.contains("NaN") && !html.contains("inf%"));
}

#[test]
fn the_best_trial_is_the_first_of_the_best_mean_without_a_failed_cell() {
    let trial = |values: &[Option<f64>]| (Vec::new(), values.to_vec());
    let trials = [
        trial(&[Some(0.2), Some(0.4)]),
        trial(&[Some(0.9), None]),
        trial(&[Some(0.5), Some(0.3)]),
        trial(&[Some(0.3), Some(0.5)]),
    ];
    assert_eq!(Choice::best(&trials, true), Some(2));
    assert_eq!(Choice::best(&trials, false), Some(0));
    assert_eq!(Choice::best(&trials[1..2], true), None);
    assert_eq!(Choice::best(&[], true), None);
}
