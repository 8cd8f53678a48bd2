//! What a run says: lines on stderr as asked for, and samples of its workers in the `actors` table.

use std::collections::{BTreeMap, BTreeSet};

use crate::place::Place;

const LINES_OF_A_RUN: [&str; 3] = ["run directory", "roles: pretrain", "patches: "];

#[test]
fn rust_log_filters_what_stderr_shows_and_not_what_is_logged() {
    let place = Place::new();
    let setup_rows = |run: &str| place.rows(run, "events").iter().filter(|row| row.contains(",setup,")).count();
    let shows = |run: &str, filter: Option<&str>, expected: [bool; 3]| {
        let args = ["train", "tiny.toml", "--run-dir", run];
        let ended = filter.map_or_else(|| place.run(&args), |filter| place.run_with_filter(filter, &args));
        assert_eq!(ended.code, Some(0), "{filter:?}: {ended:#?}");
        assert_eq!(LINES_OF_A_RUN.map(|line| ended.err.contains(line)), expected, "{filter:?}: {ended:#?}");
        assert!(ended.out.contains("k-NN"), "{filter:?}: the summary is no log: {ended:#?}");
        assert_eq!(setup_rows(run), 8, "{filter:?}: the events table has all");
        ended.err
    };
    shows("unset", None, [true; 3]);
    shows("empty", Some(""), [true; 3]);
    for (run, filter) in [("off", "off"), ("error", "error"), ("other", "some_other_program=trace")] {
        assert_eq!(shows(run, Some(filter), [false; 3]), "");
    }
    shows("info", Some("info"), [true; 3]);
    shows("module", Some("mlomae_actors::train::run=info"), [true, false, false]);
    shows("debug", Some("warn,mlomae_actors::cli=debug"), [false, true, true]);
    let ended = place.run_with_filter("mlomae=loud", &["train", "tiny.toml"]);
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    assert!(
        ended.err.starts_with("error: RUST_LOG is not a filter") && ended.err.contains("mlomae=loud"),
        "{ended:#?}"
    );
}

#[test]
fn json_lines_have_time_level_target_message_and_the_event_s_own_fields() {
    let place = Place::new();
    let fault = "score:process:3:panic";
    let ended = place.run_with_faults(fault, &["train", "tiny.toml", "--run-dir", "run", "--log-format", "json"]);
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for line in ended.err.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let text = |key: &str| event[key].as_str().unwrap_or_else(|| panic!("no {key}: {line}")).to_owned();
        assert!(["ERROR", "WARN", "INFO"].contains(&&*text("level")), "{line}");
        assert!(text("target").starts_with("mlomae") && !text("message").is_empty(), "{line}");
        let time = text("timestamp");
        assert!(time.len() >= 20 && time.as_bytes()[10] == b'T' && time.ends_with('Z'), "{line}");
        if let Some(kind) = event["kind"].as_str() {
            *kinds.entry(kind.to_owned()).or_default() += 1;
        }
        if event["kind"] == "stage_restarted" {
            assert_eq!(
                (&event["stage"], &event["instance"], &event["level"]),
                (&"score".into(), &0.into(), &"ERROR".into())
            );
            assert!(text("lost_sample_ids").starts_with('['), "{line}");
        }
        if event["kind"] == "setup" {
            assert!(text("message").starts_with(&format!("{}: ", text("what"))), "{line}");
        }
    }
    assert_eq!((kinds["run_started"], kinds["setup"], kinds["stage_restarted"]), (1, 8, 1), "{kinds:?}");
}

#[test]
fn the_actors_table_has_a_row_for_each_worker_and_period() {
    let place = Place::new();
    let settings = [
        "logs.actors_every_seconds=0.1",
        "train.outer_iterations=600",
        "actors.load.workers=2",
        "actors.score.workers=2",
        "eval.at_end=false",
    ];
    let args: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
    place.train("run", &args);
    place.succeed(&["logs", "export", "run", "--table", "actors", "--format", "csv", "--out", "actors.csv"]);
    let text = String::from_utf8(crate::place::read(&place.path("actors.csv"))).expect("UTF-8");
    let mut lines = text.lines();
    let head: Vec<_> = lines.next().expect("a head").split(',').collect();
    let column = |name: &str| head.iter().position(|column| *column == name).unwrap_or_else(|| panic!("{name}"));
    let [ts, wall_s, stage, instance, items] = ["ts", "wall_s", "stage", "instance", "items"].map(column);
    let mut rounds: BTreeMap<&str, BTreeSet<(&str, &str)>> = BTreeMap::new();
    let mut newest: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    let mut begins = Vec::new();
    for line in lines {
        let row: Vec<_> = line.split(',').collect();
        let worker = (row[stage], row[instance]);
        if !rounds.contains_key(row[ts]) {
            begins.push(row[wall_s].parse::<f64>().expect("seconds"));
        }
        assert!(rounds.entry(row[ts]).or_default().insert(worker), "twice in a round: {line}");
        let items: u64 = row[items].parse().expect("a number");
        let before = newest.insert(worker, items).unwrap_or(0);
        assert!(items >= before, "{worker:?} fell from {before} to {items}");
    }
    assert_eq!(newest.len(), 8, "{newest:?}");
    for (time, workers) in &rounds {
        assert_eq!(workers.len(), 8, "{time}: {workers:?}");
    }
    let seconds = begins[begins.len() - 1] - begins[0];
    // The log stage flushes its streams once a second; samples between two flushes must not be lost.
    let mut gaps: Vec<_> = begins.windows(2).map(|pair| pair[1] - pair[0]).collect();
    gaps.sort_by(f64::total_cmp);
    assert!(gaps.len() >= 5 && gaps[gaps.len() / 2] < 0.5, "{gaps:?}");
    println!("{} rounds of {} workers in {seconds:.2} s, one row each", rounds.len(), newest.len());
}
