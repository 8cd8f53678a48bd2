//! The metrics for Prometheus: scraped from a run by a plain TCP client, without an effect on its results.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::place::{Place, Running, file_names, wait_for};

const NUM_OUTER: u64 = 400;

/// Every series with its value, by the whole text before it.
type Series = BTreeMap<String, f64>;

/// A parsed exposition: the kind of each family, and the series.
struct Scrape {
    kinds: BTreeMap<String, String>,
    series: Series,
}

fn is_name(name: &str) -> bool {
    let begins = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(begins) && name.chars().all(|c| begins(c) || c.is_ascii_digit())
}

/// The labels of `{a="x",b="y"}` without the braces; values here need no escapes.
fn labels(text: &str) -> BTreeMap<&str, &str> {
    let mut labels = BTreeMap::new();
    for label in text.split(',') {
        let (name, value) = label.split_once('=').unwrap_or_else(|| panic!("a label: {label}"));
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"'));
        let value = value.unwrap_or_else(|| panic!("quoted: {label}"));
        assert!(is_name(name) && !value.is_empty() && !value.contains(['"', '\\', '\n']), "{label}");
        assert_eq!(labels.insert(name, value), None, "{text}");
    }
    labels
}

impl Scrape {
    /// Parses the text format, strictly: HELP, then TYPE, then all samples of a family, each series once.
    fn parse(text: &str) -> Self {
        assert!(text.ends_with('\n') && !text.contains("\n\n"), "{text}");
        let (mut kinds, mut series) = (BTreeMap::new(), Series::new());
        let (mut helped, mut family, mut num_samples) = (String::new(), String::new(), 1);
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, words) = help.split_once(' ').expect("a name and words");
                assert!(is_name(name) && !words.trim().is_empty() && !kinds.contains_key(name), "{line}");
                assert!(num_samples > 0, "{family} has no samples");
                helped = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a type");
                assert_eq!(name, helped, "HELP comes first");
                assert!(["counter", "gauge"].contains(&kind), "{line}");
                assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
                assert_eq!(kinds.insert(name.to_owned(), kind.to_owned()), None, "{line}");
                (family, num_samples) = (name.to_owned(), 0);
            } else {
                let (key, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("a sample: {line}"));
                let name = match key.split_once('{') {
                    Some((name, tail)) => {
                        labels(tail.strip_suffix('}').expect("closed"));
                        name
                    }
                    None => key,
                };
                assert_eq!(name, family, "samples follow their TYPE: {line}");
                let value: f64 = value.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
                assert_eq!(series.insert(key.to_owned(), value), None, "twice: {key}");
                num_samples += 1;
            }
        }
        Self { kinds, series }
    }

    fn get(&self, key: &str) -> f64 {
        *self.series.get(key).unwrap_or_else(|| panic!("no {key} in {:#?}", self.series))
    }

    /// The values of a label over a family's series.
    fn label_values(&self, family: &str, label: &str) -> BTreeSet<String> {
        let of_family = |key: &&String| key.split('{').next() == Some(family);
        let tails = self.series.keys().filter(of_family).filter_map(|key| key.split_once('{')?.1.strip_suffix('}'));
        tails.filter_map(|tail| labels(tail).get(label).map(|&value| value.to_owned())).collect()
    }

    /// Asserts that no counter has fallen since `before`.
    fn assert_not_below(&self, before: &Self) {
        for (key, value) in &before.series {
            if before.kinds[key.split('{').next().expect("a name")] == "counter" {
                assert!(self.get(key) >= *value, "{key} fell from {value} to {}", self.get(key));
            }
        }
    }
}

/// The whole answer to a request; none if nobody answers, as after the end of the run.
fn ask(address: SocketAddr, request: &str) -> Option<String> {
    let mut client = TcpStream::connect(address).ok()?;
    client.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    client.read_to_string(&mut answer).ok()?;
    (!answer.is_empty()).then_some(answer)
}

fn scrape(address: SocketAddr) -> Option<Scrape> {
    let answer = ask(address, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
    Some(Scrape::parse(body))
}

/// Starts a run with metrics at a free port, and returns their address.
fn start(place: &Place, run: &str, settings: &[&str]) -> (Running, SocketAddr) {
    let mut args = vec!["train", "tiny.toml", "--run-dir", run, "--set", "telemetry.prometheus=127.0.0.1:0"];
    args.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let log = format!("{run}.log");
    let mut running = place.start_with_log(&args, &log);
    let mut address = None;
    wait_for("the metrics' address", || {
        let text = std::fs::read_to_string(place.path(&log)).expect("the log");
        let tail = text.split_once("at http://").and_then(|(_, tail)| tail.split_once("/metrics"));
        address = tail.map(|(address, _)| address.parse().expect("an address"));
        address.is_some() || running.has_ended()
    });
    let address = address.unwrap_or_else(|| panic!("{:?}", std::fs::read_to_string(place.path(&log))));
    (running, address)
}

#[test]
fn a_run_is_scraped_while_it_trains_and_is_none_the_worse() {
    let place = Place::new();
    let outer = format!("train.outer_iterations={NUM_OUTER}");
    place.train("straight", &["--set", &outer]);
    for (run, settings) in [("plain", &[][..]), ("workers", &["actors.load.workers=2", "actors.score.workers=2"])] {
        let (mut running, address) = start(&place, run, &[&[outer.as_str()], settings].concat());
        assert!(address.ip().is_loopback());
        let mut scrapes = Vec::new();
        while !running.has_ended() {
            let Some(next) = scrape(address) else { continue };
            if let Some(before) = scrapes.last() {
                next.assert_not_below(before);
            }
            scrapes.push(next);
        }
        assert_eq!(running.end().code, Some(0), "{run}");
        place.assert_same_end("straight", run);
        assert!(TcpStream::connect(address).is_err(), "{run}: nobody listens after the run");

        let last = scrapes.last().expect("the run lasts longer than a scrape");
        let done = last.get("mlomae_outer_iterations_total");
        assert!(done > 0.0 && done <= NUM_OUTER as f64, "{run}: {done}");
        assert_eq!(last.get("mlomae_images_total"), done * 12.0, "two batches of six an iteration");
        assert_eq!(last.get("mlomae_outer_iterations_planned"), NUM_OUTER as f64);
        assert_eq!(last.get("mlomae_policy_lag"), 0.0);
        assert!(last.get("process_resident_memory_bytes") > 1e6);
        for level in ["pretrain", "finetune", "mask"] {
            assert!(last.get(&format!("mlomae_loss{{level=\"{level}\"}}")) > 0.0);
        }
        let stages = ["encoder", "evaluator", "load", "log", "policy", "score"].map(str::to_owned);
        for name in ["items", "bytes", "busy_seconds", "wait_in_seconds", "wait_out_seconds", "restarts"] {
            let name = format!("mlomae_stage_{name}_total");
            assert_eq!(last.label_values(&name, "stage"), BTreeSet::from(stages.clone()), "{run}: {name}");
        }
        let instances = last.label_values("mlomae_stage_items_total", "instance").len();
        assert_eq!(instances, if run == "plain" { 1 } else { 2 });
        assert!(last.get("mlomae_stage_items_total{stage=\"encoder\",instance=\"0\"}") > 0.0);
        let queues = last.label_values("mlomae_queue_capacity", "queue");
        assert_eq!(queues.len(), 6, "{run}: {queues:?}");
        for name in ["mlomae_queue_length", "mlomae_queue_bytes"] {
            assert_eq!(last.label_values(name, "queue"), queues, "{run}: {name}");
        }
        println!(
            "{run}: {} scrapes of up to {} series; no counter fell, the same weights to the bit",
            scrapes.len(),
            last.series.len()
        );
    }
}

#[test]
fn other_requests_are_refused_while_the_run_goes_on() {
    let place = Place::new();
    let (running, address) = start(&place, "run", &["train.outer_iterations=1000000"]);
    let long = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405 Method Not Allowed"),
        (&long, "431 Request Header Fields Too Large"),
        ("hello\r\n\r\n", "400 Bad Request"),
    ] {
        let answer = ask(address, request).expect("an answer");
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    let head = ask(address, "HEAD /metrics HTTP/1.0\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    // Hundreds of clients that send half a request or nothing, up to the timeout or the end of the run, and slow ones.
    let connect = |num: usize| -> Vec<_> { (0..num).map(|_| TcpStream::connect(address).expect("connects")).collect() };
    let silent = connect(200);
    for mut client in &silent[..50] {
        client.write_all(b"GET /met").expect("sent");
    }
    let asked_at = Instant::now();
    scrape(address).expect("metrics");
    assert!(asked_at.elapsed() < Duration::from_secs(2), "{:?}", asked_at.elapsed());
    let begin = scrape(address).expect("metrics").get("mlomae_outer_iterations_total");
    wait_for("the run to go on", || scrape(address).expect("metrics").get("mlomae_outer_iterations_total") > begin);
    let _more = connect(100);
    running.signal("INT");
    assert_eq!(running.end().code, Some(130));
    assert_eq!(place.run_record("run")["status"], "interrupted");
}

#[test]
fn an_address_that_is_taken_is_one_error_before_anything_is_begun() {
    let place = Place::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let setting = format!("telemetry.prometheus={address}");
    let train = ["train", "tiny.toml", "--set", &setting];
    let lines = place.fail(74, &[&train[..], &["--run-dir", "run"]].concat());
    assert!(lines.len() == 1 && lines[0].starts_with("telemetry.prometheus: cannot listen ("), "{lines:?}");
    assert!(lines[0].ends_with(&address), "{lines:?}");
    assert_eq!(file_names(&place.path("")), ["tiny.toml"], "nothing is begun");
    // A check neither trains nor listens.
    place.succeed(&["check", "tiny.toml", "--set", &setting]);

    place.train("run", &[]);
    let record = place.run_record("run");
    let lines = place.fail(74, &["train", "--resume", "run", "--max-outer", "9", "--set", &setting]);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(place.run_record("run"), record, "the run is as it was");
}

#[test]
fn a_run_on_one_thread_has_metrics_too() {
    let place = Place::new();
    let log = "serial.log";
    let setting = "telemetry.prometheus=[::1]:0";
    if TcpListener::bind("[::1]:0").is_err() {
        println!("no IPv6 here");
        return;
    }
    let args = ["train", "tiny.toml", "--serial", "--run-dir", "run", "--set", setting];
    let args = [&args[..], &["--set", "train.outer_iterations=1000000"]].concat();
    let mut running = place.start_with_log(&args, log);
    let mut last = None;
    wait_for("metrics of an iteration", || {
        let text = std::fs::read_to_string(place.path(log)).expect("the log");
        let tail = text.split_once("at http://").and_then(|(_, tail)| tail.split_once("/metrics"));
        last = tail.and_then(|(address, _)| scrape(address.parse().expect("an address")));
        let num_done = last.as_ref().map(|scrape| scrape.get("mlomae_outer_iterations_total"));
        num_done > Some(0.0) || running.has_ended()
    });
    let last = last.expect("metrics");
    assert!(last.get("mlomae_stage_items_total{stage=\"encoder\",instance=\"0\"}") > 0.0);
    assert!(last.label_values("mlomae_queue_length", "queue").is_empty(), "there are no queues");
    running.signal("TERM");
    assert_eq!(running.end().code, Some(143));
}
