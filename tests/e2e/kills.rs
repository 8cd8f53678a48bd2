//! Runs killed and stopped at random moments and resumed until they finish: they end with the same bits as an
//! uninterrupted run, and their logs have neither gaps nor duplicates.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::luck::Luck;
use crate::place::{Place, Running, file_names};

const NUM_OUTER: u64 = 30;

/// A checkpoint after every outer iteration and a rotation of the logs every few rows, so that much
/// of the run's time is spent in writing them.
const SETTINGS: [&str; 7] = [
    "train.outer_iterations=30",
    "checkpoint.every_steps=2",
    "checkpoint.keep=2",
    "logs.rotate_rows=40",
    "actors.encoder.workers=1",
    "actors.policy.workers=1",
    "eval.at_end=false",
];

/// The signals of a graceful stop, and the exit codes.
const ENDING_SIGNALS: [(&str, i32); 5] = [("INT", 130), ("TERM", 143), ("HUP", 129), ("USR2", 140), ("XCPU", 152)];

/// When a run gets its signal.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after its start.
    After(Duration),
    /// When it is writing a checkpoint, so long after the first file of one was seen.
    InCheckpoint(Duration),
    /// When it is sealing a table of the logs, so long after the first such file was seen.
    InRotation(Duration),
}

/// Whether a file that is being written is in `folder` or below it.
fn has_unfinished(folder: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    entries.flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.starts_with(".tmp-") || name.ends_with(".tmp") || has_unfinished(&entry.path())
    })
}

/// Waits for the moment; false if the run has ended before.
fn wait(running: &mut Running, run: &Path, moment: Moment) -> bool {
    let until_seen = |running: &mut Running, folder: &str| {
        let folder = run.join(folder);
        while !has_unfinished(&folder) {
            if running.has_ended() {
                return false;
            }
        }
        true
    };
    let (seen, rest) = match moment {
        Moment::After(time) => (true, time),
        Moment::InCheckpoint(time) => (until_seen(running, "checkpoints"), time),
        Moment::InRotation(time) => (until_seen(running, "logs"), time),
    };
    std::thread::sleep(rest);
    seen && !running.has_ended()
}

fn train_args<'a>(run: &'a str, settings: &[&'static str]) -> Vec<&'a str> {
    let mut args = vec!["train", "tiny.toml", "--quiet", "--run-dir", run];
    args.extend(SETTINGS.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    args
}

/// What the logs say of training, without what depends on the clock and on the process: times, memory,
/// and the running means over earlier masks, which restart with the process.
fn told(place: &Place, run: &str) -> Vec<String> {
    let rows = |table: &str| place.rows(run, table).into_iter();
    let tail = |row: String| row.splitn(5, ',').nth(4).expect("columns").to_owned();
    let timeless = |row: &String| {
        let is_local = [",s", "/s", ",bytes"].iter().any(|unit| row.ends_with(unit));
        !is_local && !row.contains(",mask_coverage") && !row.contains(",mask_change,")
    };
    let mut told: Vec<_> = rows("metrics").map(tail).filter(timeless).chain(rows("masks").map(tail)).collect();
    told.sort();
    told
}

fn assert_as_straight(place: &Place, run: &str, straight: &[String]) {
    place.assert_same_end("straight", run);
    assert_eq!(place.run_record(run)["status"], "finished", "{run}");
    assert_eq!(place.live_streams(run), Vec::<String>::new(), "{run}: the logs are sealed");
    assert_eq!(place.loss_steps(run), (1..=2 * NUM_OUTER).collect::<Vec<_>>(), "{run}");
    let told = told(place, run);
    let differs = straight.iter().zip(&told).find(|(a, b)| a != b);
    assert!(told == straight, "{run}: {} rows, not {}: {differs:?}", told.len(), straight.len());
    assert!(!has_unfinished(&place.path(run)), "{run}: {:?}", file_names(&place.path(run)));
}

/// Starts or resumes the run; a run that was killed before it had a record is started again.
fn go_on(place: &Place, run: &str, settings: &[&'static str]) -> Running {
    if place.path(run).join("run.json").exists() {
        return place.start(&["train", "--resume", run, "--quiet"]);
    }
    let mut args = train_args(run, settings);
    args.push("--restart");
    place.start(&args)
}

/// Counts over the runs of one test.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    runs: u32,
    kills: u32,
    in_checkpoint: u32,
    in_rotation: u32,
    begun_anew: u32,
}

/// Kills a run `num_kills` times and runs it to its end.
fn kill_and_resume(place: &Place, run: &str, luck: &mut Luck, num_kills: u32, time: Duration) -> Counts {
    let mut counts = Counts { runs: 1, ..Counts::default() };
    let mut running = place.start(&train_args(run, &[]));
    let mut num_late = 0;
    while counts.kills < num_kills {
        let brief = luck.part_of(Duration::from_millis(4));
        let moment = match luck.below(3) {
            0 => Moment::After(luck.part_of(time)),
            1 => Moment::InCheckpoint(brief),
            _ => Moment::InRotation(brief),
        };
        let hit = wait(&mut running, &place.path(run), moment);
        if hit {
            running.signal("KILL");
        }
        let ended = running.end();
        if !hit || ended.code.is_some() {
            // Too late, the run had finished: start again; it does not count as a kill.
            num_late += 1;
            assert!(num_late < 100, "{run} is over before it can be killed");
            assert_eq!(ended.code, Some(0), "{run} {moment:?}: {ended:#?}");
            std::fs::remove_dir_all(place.path(run)).expect("removed");
            counts = Counts { runs: 1, ..Counts::default() };
            running = place.start(&train_args(run, &[]));
            continue;
        }
        counts.kills += 1;
        match moment {
            Moment::After(_) => {}
            Moment::InCheckpoint(_) => counts.in_checkpoint += 1,
            Moment::InRotation(_) => counts.in_rotation += 1,
        }
        counts.begun_anew += u32::from(!place.path(run).join("run.json").exists());
        running = go_on(place, run, &[]);
    }
    let ended = running.end();
    assert_eq!(ended.code, Some(0), "{run}: {ended:#?}");
    counts
}

#[test]
fn forty_runs_killed_at_random_moments_end_as_the_straight_one() {
    let mut luck = Luck::new(20);
    let place = Place::new();
    let begin = Instant::now();
    place.succeed(&train_args("straight", &[]));
    let time = begin.elapsed();
    let straight = told(&place, "straight");
    assert!(straight.len() > 2 * NUM_OUTER as usize, "{}", straight.len());
    let mut all = Counts::default();
    for number in 0..40 {
        let run = format!("killed-{number}");
        // Every fourth is killed while it is resumed too.
        let counts = kill_and_resume(&place, &run, &mut luck, if number % 4 == 0 { 2 } else { 1 }, time);
        assert_as_straight(&place, &run, &straight);
        all.runs += counts.runs;
        all.kills += counts.kills;
        all.in_checkpoint += counts.in_checkpoint;
        all.in_rotation += counts.in_rotation;
        all.begun_anew += counts.begun_anew;
        std::fs::remove_dir_all(place.path(&run)).expect("removed");
    }
    assert_eq!((all.runs, all.kills), (40, 50));
    assert!(all.in_checkpoint >= 5 && all.in_rotation >= 5, "{all:?}");
    println!(
        "{} runs, {} kills ({} in a checkpoint, {} in a rotation, {} before the run had a record): \
         all survived in {:.1} s",
        all.runs,
        all.kills,
        all.in_checkpoint,
        all.in_rotation,
        all.begun_anew,
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn runs_stopped_by_signals_at_random_moments_end_as_the_straight_one() {
    let mut luck = Luck::new(21);
    let place = Place::new();
    let begin = Instant::now();
    place.succeed(&train_args("straight", &[]));
    let time = begin.elapsed();
    let straight = told(&place, "straight");
    let (mut num_stopped, mut num_late) = (0, 0);
    while num_stopped < 15 {
        assert!(num_late < 200, "the runs are over before they can be stopped");
        let (signal, code) = ENDING_SIGNALS[num_stopped % ENDING_SIGNALS.len()];
        let run = format!("stopped-{num_stopped}-{num_late}");
        let mut running = place.start(&train_args(&run, &[]));
        let moment = match luck.below(3) {
            // Before its first change to the disk a run has nothing to write.
            0 => Moment::InCheckpoint(luck.part_of(time)),
            1 => Moment::InCheckpoint(luck.part_of(Duration::from_millis(4))),
            _ => Moment::InRotation(luck.part_of(Duration::from_millis(4))),
        };
        if !wait(&mut running, &place.path(&run), moment) {
            assert_eq!(running.end().code, Some(0), "{run}");
            num_late += 1;
            continue;
        }
        running.signal(signal);
        let ended = running.end();
        if ended.code == Some(0) {
            // The last iteration was in progress.
            num_late += 1;
            continue;
        }
        assert_eq!(ended.code, Some(code), "{run}: {ended:#?}");
        assert!(!ended.err.contains("error"), "a signal is no error: {ended:#?}");
        num_stopped += 1;
        let record = place.run_record(&run);
        assert_eq!((&record["status"], &record["exit_code"]), (&"interrupted".into(), &code.into()), "{run}");
        assert_eq!(place.live_streams(&run), Vec::<String>::new(), "{run}: the logs are sealed");
        // Before its first iteration it has nothing to write.
        let has_checkpoint = place.path(&run).join("checkpoints/latest").exists();
        let done = if has_checkpoint { place.state(&run)["outer_iteration"].as_u64().expect("a number") } else { 0 };
        assert_eq!(Some(2 * done), record["step"].as_u64(), "{run}: the checkpoint is the newest state");
        assert_eq!(place.loss_steps(&run), (1..=2 * done).collect::<Vec<_>>(), "{run}");
        place.succeed(&["train", "--resume", &run, "--quiet"]);
        assert_as_straight(&place, &run, &straight);
    }
    println!(
        "{num_stopped} runs stopped by SIGINT, SIGTERM, SIGHUP, SIGUSR2 and SIGXCPU ended with their codes and were \
         resumed to the same bits"
    );
}
