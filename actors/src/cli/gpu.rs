//! `mlomae gpu`: what a GPU needs, what of it this machine has, and whether it computes what it should.

use std::fmt::Write;

use mlomae_device::{DeviceError, Gpu, Outcome, Survey, selftest, survey};
use mlomae_storage::escape::one_line;
use mlomae_storage::exit_code::ExitCode;
use mlomae_storage::machine_memory::bytes_text;

use super::gpu_products::Products;
use super::session::Session;
use crate::process::error::CliError;

/// Look at the GPU of this machine and at what training on it needs
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Info(Info),
    Selftest(Selftest),
    Products(Products),
}

/// Show GPUs, driver and libraries: what was found, and where what is missing was looked for
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A GPU is used with a CUDA driver (libcuda.so.1) and the libraries libnvrtc and libcublasLt, of a CUDA toolkit or of the
packages nvidia-cuda-nvrtc and nvidia-cublas of PyPI; LD_LIBRARY_PATH is looked through first. Ends with 0 if a GPU can
be used, with 1 if not.

Examples:
  mlomae gpu info
  mlomae gpu info --json | jq -r .problem")]
struct Info {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Run every operation of a GPU beside plain arithmetic on the processor, and show how far each is off
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One line an operation and precision: the largest error over a few shapes, and its limit. Takes seconds. Ends with 0 if
all are within their limits, with 1 if one is not, 70 if the GPU fails, 78 if there is no GPU to use.

Examples:
  mlomae gpu selftest
  mlomae gpu selftest --json | jq '.operations[] | select(.ok | not)'")]
struct Selftest {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

impl Args {
    pub(crate) fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        match self.command {
            Command::Info(info) => info.run(session),
            Command::Selftest(selftest) => selftest.run(session),
            Command::Products(products) => products.run(session),
        }
    }
}

/// The GPU fails.
pub(super) fn failed(error: &DeviceError) -> CliError {
    CliError::new(ExitCode::Internal, error.to_string())
}

/// The first GPU, opened.
pub(super) fn open() -> Result<Gpu, CliError> {
    Gpu::open().map_err(|error| match error {
        DeviceError::Missing(problem) => CliError::new(ExitCode::Config, format!("no GPU can be used: {problem}")),
        error => failed(&error),
    })
}

impl Selftest {
    fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let gpu = open()?;
        let (mut outcomes, mut written) = (Vec::new(), Ok(()));
        let tested = selftest(&gpu, &mut |outcome| {
            if !self.json && written.is_ok() {
                written = writeln!(session.out, "{}", line(outcome));
            }
            outcomes.push(outcome.clone());
        });
        written?;
        let problem = tested.err().map(|error| error.to_string());
        let wrong: Vec<String> = outcomes.iter().filter(|outcome| !outcome.is_ok()).map(name).collect();
        if self.json {
            let operations: Vec<_> = outcomes.iter().map(of_outcome).collect();
            let report = serde_json::json!({
                "device": gpu.facts(),
                "ok": wrong.is_empty() && problem.is_none(),
                "problem": problem,
                "operations": operations,
            });
            writeln!(session.out, "{report:#}")?;
        }
        session.out.flush()?;
        if let Some(problem) = problem {
            let last = outcomes
                .last()
                .map_or_else(|| "before the first operation".to_owned(), |outcome| format!("after {}", name(outcome)));
            return Err(CliError::new(ExitCode::Internal, format!("{problem}, {last}")));
        }
        if !wrong.is_empty() {
            let line = format!("{} of {} operations are wrong: {}", wrong.len(), outcomes.len(), wrong.join(", "));
            return Err(CliError::new(ExitCode::Failed, line));
        }
        Ok(())
    }
}

/// An operation with its precision.
fn name(outcome: &Outcome) -> String {
    format!("{} ({})", outcome.operation, outcome.precision)
}

fn of_outcome(outcome: &Outcome) -> serde_json::Value {
    serde_json::json!({
        "operation": outcome.operation,
        "precision": outcome.precision,
        // JSON has no infinity.
        "error": outcome.error.is_finite().then_some(outcome.error),
        "limit": outcome.limit,
        "num_values": outcome.num_values,
        "ok": outcome.is_ok(),
    })
}

/// For people.
fn line(outcome: &Outcome) -> String {
    let verdict = if outcome.is_ok() { "ok" } else { "WRONG" };
    let Outcome { operation, precision, error, limit, num_values } = outcome;
    format!("{operation:32} {precision:5} {verdict:5}  error {error:8.1e}, limit {limit:7.1e}, {num_values} values")
}

impl Info {
    fn run(self, session: &mut Session<'_>) -> Result<(), CliError> {
        let Info { json } = self;
        let found = survey();
        if json {
            let mut report = serde_json::to_value(found)
                .map_err(|error| CliError::new(ExitCode::Internal, format!("report has no JSON form: {error}")))?;
            report["usable"] = found.problem.is_none().into();
            writeln!(session.out, "{report:#}")?;
        } else {
            writeln!(session.out, "{}", text(found))?;
        }
        // The answer is no, and the output says why.
        if found.problem.is_some() { Err(CliError::silent(ExitCode::Failed)) } else { Ok(()) }
    }
}

/// For people, without a newline at its end.
fn text(found: &Survey) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    for device in &found.devices {
        let (major, minor) = device.compute_capability;
        let _ = writeln!(
            text,
            "{:<12} {}, compute capability {major}.{minor}, {} multiprocessors, {}, driver {}",
            "GPU",
            one_line(&device.name),
            device.num_sms,
            bytes_text(device.memory_bytes),
            one_line(&device.driver_version)
        );
    }
    if found.devices.is_empty() {
        let _ = writeln!(text, "{:<12} none found", "GPU");
    }
    for library in &found.libraries {
        let _ = match &library.found {
            Some(path) => {
                let version = library.version.as_deref().unwrap_or("of unknown version");
                let path = path.display().to_string();
                writeln!(text, "{:<12} {}, {}", library.name, one_line(version), one_line(&path))
            }
            None => writeln!(text, "{:<12} not found", library.name),
        };
        if library.found.is_none() {
            for place in &library.searched {
                let _ = writeln!(text, "{:<12}   looked for in {}", "", one_line(place));
            }
        }
    }
    text + &match &found.problem {
        None => "a GPU can be used: engine = \"auto\" and \"cuda\" do".to_owned(),
        Some(problem) => format!("no GPU can be used: {}", one_line(problem)),
    }
}

#[cfg(test)]
mod tests {
    use mlomae_device::{DeviceFacts, Library};

    use super::*;

    fn library(name: &'static str, found: Option<&str>, version: Option<&str>) -> Library {
        let searched = vec!["/usr/local/cuda/lib64".to_owned(), "/usr/lib\n64".to_owned()];
        Library { name, found: found.map(Into::into), version: version.map(str::to_owned), searched }
    }

    #[test]
    fn what_was_found_and_what_is_missing_is_said_line_by_line() {
        let missing = Survey {
            libraries: vec![
                library("libcuda", Some("/usr/lib/libcuda.so.1"), Some("13.0")),
                library("libnvrtc", None, None),
            ],
            devices: Vec::new(),
            problem: Some("libnvrtc not found".to_owned()),
        };
        let expected = "\
GPU          none found
libcuda      13.0, /usr/lib/libcuda.so.1
libnvrtc     not found
               looked for in /usr/local/cuda/lib64
               looked for in /usr/lib\\n64
no GPU can be used: libnvrtc not found";
        assert_eq!(text(&missing), expected);
        let device = DeviceFacts {
            name: "NVIDIA H200".to_owned(),
            compute_capability: (9, 0),
            num_sms: 132,
            memory_bytes: 139 << 30,
            shared_bytes: 227 << 10,
            driver_version: "13.0".to_owned(),
        };
        let all = Survey {
            libraries: vec![library("libcublasLt", Some("/opt/lib/libcublasLt.so.13"), None)],
            devices: vec![device],
            problem: None,
        };
        let text = text(&all);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "GPU          NVIDIA H200, compute capability 9.0, 132 multiprocessors, 139.00 GiB, driver 13.0"
        );
        assert_eq!(lines[1], "libcublasLt  of unknown version, /opt/lib/libcublasLt.so.13");
        assert_eq!(lines[2], "a GPU can be used: engine = \"auto\" and \"cuda\" do");
    }

    #[test]
    fn a_survey_of_this_machine_has_a_json_form_and_says_whether_it_is_enough() {
        let found = survey();
        let json = serde_json::to_value(found).expect("JSON");
        assert!(json["libraries"].is_array() && json["devices"].is_array() && json.get("problem").is_some(), "{json}");
        assert!(found.problem.is_some() || !found.devices.is_empty(), "a GPU is there or something is missing");
    }
}
