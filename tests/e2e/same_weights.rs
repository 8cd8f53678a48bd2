//! Serial and threaded runs end in the same files, whatever the workers and queues.

use crate::place::Place;

/// Settings that give every stage `workers` workers or threads and queues of `queue_cap`.
fn stages(workers: usize, queue_cap: usize) -> Vec<String> {
    let stages = ["load", "score", "encoder", "evaluator", "policy"].iter();
    stages
        .flat_map(|stage| {
            [format!("actors.{stage}.workers={workers}"), format!("actors.{stage}.queue_cap={queue_cap}")]
        })
        .collect()
}

fn set(settings: &[String]) -> Vec<&str> {
    settings.iter().flat_map(|setting| ["--set", setting]).collect()
}

#[test]
fn serial_equals_threaded_to_the_byte() {
    let place = Place::new();
    for (lag, pairs) in [(0, &[(1, 0), (3, 1), (3, 4)][..]), (2, &[(1, 1), (3, 0)])] {
        let (serial, lag) = (format!("serial-{lag}"), format!("pipeline.lag={lag}"));
        place.train(&serial, &["--serial", "--set", &lag]);
        for (workers, queue_cap) in pairs {
            let run = format!("{serial}-{workers}-{queue_cap}");
            let settings = stages(*workers, *queue_cap);
            let mut args = set(&settings);
            args.extend(["--set", &lag]);
            place.train(&run, &args);
            place.assert_same_end(&serial, &run);
        }
    }
    assert_ne!(place.weights("serial-0"), place.weights("serial-2"), "the lag changes what is learned");
}

#[test]
fn the_seed_and_the_length_matter() {
    let place = Place::new();
    place.train("base", &["--max-outer", "2"]);
    assert_eq!(place.state("base")["outer_iteration"], 2);
    assert_eq!(place.run_record("base")["step"], 4, "two level-1 steps in each outer iteration");
    for (run, args) in
        [("seed", ["--max-outer=2", "--set", "seed=4"]), ("longer", ["--max-outer=3", "--set", "seed=3"])]
    {
        place.train(run, &args);
        assert_ne!(place.weights("base"), place.weights(run), "{run}");
    }
}

#[test]
fn a_new_run_does_not_touch_an_old_one() {
    let place = Place::new();
    place.train("run", &[]);
    let before = place.weights("run");
    let lines = place.fail(74, &["train", "tiny.toml", "--run-dir", "run", "--set", "seed=9"]);
    assert!(lines[0].contains("run"), "{lines:?}");
    assert_eq!(before, place.weights("run"));
}
