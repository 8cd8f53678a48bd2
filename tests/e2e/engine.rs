//! The choice of a device: by configuration and command, in the record of a run, and over a resume.

use serde_json::Value;

use crate::place::Place;

/// Puts other values for what the run's last process computed on.
fn record_engine(place: &Place, run: &str, engine: Option<(&str, &str)>) {
    let mut record = place.run_record(run);
    let host = record["host"].as_object_mut().expect("host");
    for key in ["engine", "device"] {
        host.remove(key).expect("recorded");
    }
    if let Some((engine, device)) = engine {
        host.insert("engine".to_owned(), engine.into());
        host.insert("device".to_owned(), device.into());
    }
    place.write(&format!("{run}/run.json"), record.to_string().as_bytes());
}

#[test]
fn the_engine_is_recorded_and_a_resume_on_another_one_is_told() {
    let place = Place::new();
    place.train("base", &["--max-outer", "4"]);
    let host = &place.run_record("base")["host"];
    assert_eq!((&host["engine"], &host["device"]), (&"cpu".into(), &"".into()), "the processor's text is its isa");
    place.copy("base", "straight");
    let resume = |run: &str| {
        let ended = place.run(&["train", "--resume", run, "--max-outer", "7", "--quiet"]);
        assert_eq!(ended.code, Some(0), "{ended:#?}");
        ended.err
    };
    assert_eq!(resume("straight"), "");
    for (run, was) in [("old", None), ("from-cuda", Some(("cuda", "NVIDIA H200, driver 13.0")))] {
        place.copy("base", run);
        record_engine(&place, run, was);
        let told = resume(run);
        match was {
            // Runs of before the key had one engine.
            None => assert_eq!(told, ""),
            Some(_) => {
                let line = "the run computed on cuda (NVIDIA H200, driver 13.0) and goes on on cpu";
                assert!(told.contains(line) && told.lines().count() == 1, "{told}");
                let events = place.rows(run, "events");
                assert_eq!(events.iter().filter(|row| row.contains(",engine_changed,")).count(), 1, "{events:?}");
            }
        }
        place.assert_same_end("straight", run);
        assert_eq!(place.run_record(run)["host"]["engine"], "cpu");
    }
}

#[test]
fn an_engine_is_said_at_the_start_and_one_that_is_not_here_is_refused_on_a_line() {
    let place = Place::new();
    let ended = place.run(&["train", "tiny.toml", "--run-dir", "run", "--max-outer", "1"]);
    assert!(ended.code == Some(0) && ended.err.contains("engine cpu: as configured"), "{ended:#?}");
    let checked = place.succeed(&["check", "tiny.toml"]);
    assert!(
        checked.contains("\nengine     cpu: as configured\n") || checked.starts_with("engine     cpu"),
        "{checked}"
    );
    for args in [&["eval", "knn", "run"][..], &["visualize", "run"]] {
        let ended = place.run(args);
        assert_eq!((ended.code, &*ended.err), (Some(0), ""), "nothing new is said");
        let ended = place.run(&[args, &["--set", "engine=abacus"]].concat());
        assert!(
            ended.code == Some(78) && ended.err.contains("engine = \"abacus\": not an allowed value"),
            "{ended:#?}"
        );
    }
    for name in ["engine", "compute.device"] {
        let lines = place.fail(78, &["train", "--set", &format!("{name}=abacus")]);
        assert!(lines.len() == 1 && lines[0].starts_with(&format!("{name} = \"abacus\": not an")), "{lines:?}");
    }
    if place.run(&["gpu", "info"]).code == Some(1) {
        for args in [&["train", "tiny.toml"][..], &["check", "tiny.toml"], &["tune", "tiny.toml"]] {
            let lines = place.fail(78, &[args, &["--set", "engine=cuda"]].concat());
            assert!(lines.len() == 1 && lines[0].starts_with("engine = \"cuda\": "), "{lines:?}");
            assert!(lines[0].contains("auto, cpu"), "names what can be used: {lines:?}");
        }
        assert!(!place.path("runs").exists(), "nothing was begun");
    }
}

#[test]
fn commands_with_an_argument_for_the_engine_take_it() {
    let place = Place::new();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/golden/tiny.safetensors");
    let report: Value =
        serde_json::from_str(&place.succeed(&["verify", golden, "--engine", "cpu", "--json"])).expect("JSON");
    assert_eq!((&report["engine"], &report["ok"]), (&"cpu".into(), &true.into()));
    let bench = ["bench", "--engine", "cpu", "--batch", "4", "--rounds", "1", "--no-pipeline", "--json"];
    let report: Value = serde_json::from_str(&place.succeed(&bench)).expect("JSON");
    assert_eq!((&report["engine"], &report["device"]), (&"cpu".into(), &"".into()));
    assert!(report["peak_gflops"].as_f64().is_some_and(|peak| peak > 0.0), "{report}");
    for args in [&["verify", golden][..], &["bench"], &["tune"]] {
        let message = place.fail_usage(&[args, &["--engine", "abacus"]].concat());
        assert!(message.contains("allowed: auto, ") && message.contains("cpu"), "{message}");
    }
}

#[test]
fn what_a_gpu_needs_is_looked_for() {
    let place = Place::new();
    let (text, json) = (place.run(&["gpu", "info"]), place.run(&["gpu", "info", "--json"]));
    assert!(matches!(text.code, Some(0 | 1)) && text.code == json.code, "{text:#?}");
    let report: Value = serde_json::from_str(&json.out).expect("JSON");
    assert_eq!(report["usable"], text.code == Some(0));
    assert_eq!(report["problem"].is_null(), text.code == Some(0), "{report}");
    let last = text.out.lines().last().expect("an answer");
    match report["problem"].as_str() {
        None => assert!(last.starts_with("a GPU can be used: "), "{last}"),
        Some(problem) => assert_eq!(last, format!("no GPU can be used: {problem}")),
    }
    assert_eq!((text.err.as_str(), json.err.as_str()), ("", ""), "the answer is the output");
}
