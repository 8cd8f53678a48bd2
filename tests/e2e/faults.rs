//! Fault injection in every stage at every point: what is lost is reported, and nothing else is lost.

use std::collections::BTreeSet;

use crate::place::{Ended, Place};

const PHASES: [&str; 5] = ["receive", "begin", "process", "send", "finish"];

/// The level-1 steps of `tiny.toml`.
const NUM_STEPS: u64 = 14;

const TRAIN: [&str; 3] = ["train", "tiny.toml", "--quiet"];

fn train(place: &Place, run: &str, faults: &str, settings: &[&str]) -> Ended {
    let mut args = TRAIN.to_vec();
    args.extend(["--run-dir", run]);
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    place.run_with_faults(faults, &args)
}

/// The events of a kind.
fn events(place: &Place, run: &str, kind: &str) -> Vec<String> {
    let kind = format!(",{kind},");
    place.rows(run, "events").into_iter().filter(|row| row.contains(&kind)).collect()
}

/// The samples that an event names.
fn sample_ids(event: &str) -> BTreeSet<u64> {
    let list = event.split("sample_ids").nth(1).and_then(|tail| tail.split(['[', ']']).nth(1)).expect("samples");
    list.split(',').map(|id| id.trim().parse().expect("a number")).collect()
}

fn all_steps() -> Vec<u64> {
    (1..=NUM_STEPS).collect()
}

fn assert_sealed(place: &Place, run: &str, status: &str, exit_code: i32) {
    let record = place.run_record(run);
    assert_eq!((&record["status"], &record["exit_code"]), (&status.into(), &exit_code.into()), "{run}");
    assert_eq!(place.live_streams(run), Vec::<String>::new(), "{run}: the logs are sealed");
}

#[test]
fn a_panic_of_a_stage_without_state_costs_one_batch_which_is_named() {
    let place = Place::new();
    place.train("straight", &[]);
    let mut by_pretrain_batch = BTreeSet::new();
    let mut num_faults = 0;
    // Batch 3 of the loader is level-1 step 2; its batch 5 is a labelled pair.
    for (stage, unit, num_samples) in [("load", 3, 6), ("load", 5, 9), ("score", 2, 6)] {
        for phase in PHASES {
            let unit = if phase == "finish" { "any".to_owned() } else { unit.to_string() };
            let run = format!("{stage}-{num_samples}-{phase}");
            let ended = train(&place, &run, &format!("{stage}:{phase}:{unit}:panic"), &[]);
            num_faults += 1;
            assert_eq!(ended.code, Some(0), "{run}: {ended:#?}");
            assert_sealed(&place, &run, "finished", 0);
            let restarts = events(&place, &run, "stage_restarted");
            assert!(restarts.len() == 1 && restarts[0].contains(stage), "{run}: {restarts:?}");
            assert_eq!(place.state(&run)["outer_iteration"], NUM_STEPS / 2);
            let lost = events(&place, &run, "lost_batch");
            if ["receive", "finish"].contains(&phase) {
                assert_eq!(lost, Vec::<String>::new(), "{run}: nothing was in hand");
                assert_eq!(place.loss_steps(&run), all_steps(), "{run}");
                place.assert_same_end("straight", &run);
                continue;
            }
            assert_eq!(lost.len(), 1, "{run}: {lost:?}");
            let ids = sample_ids(&lost[0]);
            assert_eq!(ids.len(), num_samples, "{run}: {lost:?}");
            assert!(ids.iter().all(|id| *id < 90), "{run}: {lost:?}");
            if num_samples == 6 {
                by_pretrain_batch.insert(ids);
                assert_eq!(place.loss_steps(&run), [&[1, 2][..], &all_steps()[3..]].concat(), "{run}");
            } else {
                assert_eq!(place.loss_steps(&run), all_steps(), "{run}");
            }
        }
    }
    assert_eq!(by_pretrain_batch.len(), 1, "the same batch is lost by loader and scorer: {by_pretrain_batch:?}");
    println!("{num_faults} panics in load and score: each run ended with 0, each lost batch is named");
}

#[test]
fn a_panic_of_a_stage_with_state_ends_the_run_which_can_be_resumed() {
    let place = Place::new();
    place.train("straight", &[]);
    let mut num_faults = 0;
    // After the checkpoint of outer iteration 3.
    for (stage, unit) in [("encoder", "9"), ("evaluator", "4"), ("policy", "4")] {
        for phase in PHASES {
            for lag in [0, 1] {
                // Only lag 0 has its own straight run; with a lag the resumed run is compared below.
                if lag == 1 && phase != "process" {
                    continue;
                }
                let unit = if phase == "finish" { "any" } else { unit };
                let run = format!("{stage}-{phase}-lag-{lag}");
                let setting = format!("pipeline.lag={lag}");
                let ended = train(&place, &run, &format!("{stage}:{phase}:{unit}:panic"), &[&setting]);
                num_faults += 1;
                assert_eq!(ended.code, Some(70), "{run}: {ended:#?}");
                let line = format!("error: {stage} 0: internal error: injected fault at {stage}:{phase}:");
                assert_eq!(ended.err.lines().filter(|text| text.starts_with(&line)).count(), 1, "{run}: {ended:#?}");
                assert_sealed(&place, &run, "failed", 70);
                assert_eq!(events(&place, &run, "stage_failed").len(), 1, "{run}");
                assert!(place.succeed(&["inspect", &run]).contains("outer"), "{run}");
                let kept = place.state(&run)["outer_iteration"].as_u64().expect("a number");
                assert!(kept >= 3, "{run}: {kept}");
                place.succeed(&["train", "--resume", &run, "--quiet"]);
                assert_eq!(place.loss_steps(&run), all_steps(), "{run}");
                if lag == 0 {
                    place.assert_same_end("straight", &run);
                } else {
                    let straight = format!("straight-{run}");
                    place.train(&straight, &["--set", &setting]);
                    place.assert_same_end(&straight, &run);
                }
            }
        }
    }
    println!(
        "{num_faults} panics in encoder, evaluator and policy: each run ended with 70 and was resumed to the same bits"
    );
}

#[test]
fn a_panic_of_the_log_stage_costs_at_most_one_row_which_is_named() {
    let place = Place::new();
    place.train("straight", &[]);
    let mut num_faults = 0;
    for phase in PHASES {
        let unit = if phase == "finish" { "any" } else { "20" };
        let run = format!("log-{phase}");
        let ended = train(&place, &run, &format!("log:{phase}:{unit}:panic"), &[]);
        num_faults += 1;
        assert_eq!(ended.code, Some(0), "{run}: {ended:#?}");
        assert_sealed(&place, &run, "finished", 0);
        assert_eq!(events(&place, &run, "stage_restarted").len(), 1, "{run}");
        let num_named = usize::from(["begin", "process"].contains(&phase));
        assert_eq!(events(&place, &run, "lost_record").len(), num_named, "{run}");
        place.assert_same_end("straight", &run);
    }
    println!("{num_faults} panics in log: each run ended with 0, each lost row is named");
}

#[test]
fn a_panic_at_every_record_still_loses_no_checkpoint() {
    let place = Place::new();
    place.train("straight", &[]);
    let faults: Vec<_> = (0..1000).map(|unit| format!("log:begin:{unit}:panic")).collect();
    let ended = train(&place, "run", &faults.join(","), &["actors.max_restarts=1000"]);
    assert_eq!(ended.code, Some(0), "{:?}", ended.code);
    place.assert_same_end("straight", "run");
    let num_restarts = events(&place, "run", "stage_restarted").len();
    let num_lost = events(&place, "run", "lost_record").len();
    // The three parts of each of three checkpoints are retried; the rows are lost.
    assert!(num_lost > 50 && num_restarts == num_lost + 9, "{num_restarts} restarts, {num_lost} rows");
    println!("{num_restarts} panics in log in one run: {num_lost} rows lost and named, no checkpoint lost");
}

#[test]
fn a_stage_that_panics_too_often_ends_the_run_which_can_be_resumed() {
    let place = Place::new();
    place.train("straight", &[]);
    let mut num_faults = 0;
    for (stage, first) in [("load", 10), ("score", 8), ("log", 60)] {
        let faults: Vec<_> = (first..first + 3).map(|unit| format!("{stage}:begin:{unit}:panic")).collect();
        let ended = train(&place, stage, &faults.join(","), &["actors.max_restarts=2"]);
        num_faults += faults.len();
        assert_eq!(ended.code, Some(70), "{stage}: {ended:#?}");
        assert!(ended.err.contains(&format!("error: {stage} 0: internal error: injected fault")), "{ended:#?}");
        assert_eq!(place.run_record(stage)["status"], "failed", "{stage}");
        assert!(!place.rows(stage, "metrics").is_empty(), "{stage}: the logs can be read");
        let settings = ["--set", "actors.max_restarts=3"];
        let mut args = vec!["train", "--resume", stage, "--quiet"];
        args.extend(settings);
        place.succeed(&args);
        assert_sealed(&place, stage, "finished", 0);
        if stage == "log" {
            place.assert_same_end("straight", stage);
        }
    }
    println!("{num_faults} panics beyond the restarts: 3 runs ended with 70 and were resumed");
}

#[test]
fn a_hang_is_named_by_the_watchdog_and_changes_nothing() {
    let place = Place::new();
    place.train("straight", &[]);
    let stages = ["load", "score", "encoder", "evaluator", "policy", "log"];
    std::thread::scope(|scope| {
        for stage in stages {
            let place = &place;
            scope.spawn(move || {
                let settings = ["actors.watchdog_seconds=0.3", "logs.actors_every_seconds=0.1"];
                let ended = train(place, stage, &format!("{stage}:process:4:hang=1.5"), &settings);
                assert_eq!(ended.code, Some(0), "{stage}: {ended:#?}");
                let line = format!("{stage} 0 has been busy on one item for");
                assert!(ended.err.contains(&line), "{stage}: {ended:#?}");
                let named = events(place, stage, "stage_hangs");
                assert!(named.iter().any(|event| event.contains(&format!("{stage} 0 has been busy"))), "{named:?}");
                place.assert_same_end("straight", stage);
            });
        }
    });
    println!("{} hangs: each named by the watchdog, each run ended with 0 and the same bits", stages.len());
}

#[test]
fn the_program_itself_has_no_switch_for_faults() {
    let place = Place::new();
    let ended = place.run_with_faults("score:process:3", &["--version"]);
    assert_eq!(ended.code, Some(2), "the program under test reads its plan: {ended:#?}");
    let source = include_str!("../../actors/src/main.rs");
    assert!(!source.to_lowercase().contains("fault"), "{source}");
}
