//! A peer in a process of its own, stepped over its standard input and output, so that its iterations and ours take
//! turns.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::measure::workload::WorkloadSpec;
use mlomae_model::lane::DeviceChoice;
use serde::Deserialize;

use super::peer_error;
use crate::process::error::CliError;

/// The peer's program, which is part of ours.
const PROGRAM: &str = include_str!("../../../../bench/peer/torch_loop.py");

/// Which peer to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeerSpec {
    /// Python with torch.
    pub python: PathBuf,
    /// The same mathematics with every exact saving, instead of the published passes.
    pub savings: bool,
    /// Its networks compiled by `torch.compile`.
    pub compile: bool,
}

impl PeerSpec {
    /// Arguments of the peer's program for the shape, device and precision of `workload`.
    fn arguments(&self, workload: &WorkloadSpec, device: DeviceChoice) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for (name, value) in [
            ("--preset", workload.preset.as_str()),
            ("--batch", &workload.batch.to_string()),
            ("--threads", &workload.num_threads.to_string()),
            // Devices have the same names there.
            ("--device", device.name()),
            ("--precision", workload.precision.name()),
        ] {
            arguments.extend([name.into(), value.into()]);
        }
        let switches = [(workload.baseline, "--random"), (self.savings, "--savings"), (self.compile, "--compile")];
        arguments.extend(switches.into_iter().filter(|(is_on, _)| *is_on).map(|(_, name)| name.into()));
        arguments
    }
}

/// A running peer.
#[derive(Debug)]
pub struct Peer {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    about: String,
}

/// One outer iteration of the peer.
#[derive(Debug, Clone, Copy, Deserialize)]
pub struct PeerLap {
    /// Its length.
    pub ms: f64,
}

/// What the peer says of itself.
#[derive(Debug, Deserialize)]
struct Hello {
    about: String,
}

/// What the peer says at its end.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Goodbye {
    /// What it is.
    #[serde(default)]
    pub about: String,
    /// The most memory of its tensors on the device; on the processor the largest resident memory of its process.
    pub peak_bytes: u64,
}

impl Peer {
    /// Starts the peer for the shape and precision of `workload` on `device`, and waits until it is ready.
    ///
    /// # Errors
    /// If it cannot be started, or ends by itself, with its own message on stderr.
    pub fn start(spec: &PeerSpec, workload: &WorkloadSpec, device: DeviceChoice) -> Result<Self, CliError> {
        let cannot = |error: &dyn std::fmt::Display| {
            peer_error(format!("--peer: cannot run {}: {error}", spec.python.display()))
        };
        let mut command = Command::new(&spec.python);
        command.arg("-c").arg(PROGRAM).arg("--serve");
        command.args(spec.arguments(workload, device));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|error| cannot(&error))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(cannot(&"no pipe"));
        };
        let mut peer = Self { child, input, output: BufReader::new(output), about: String::new() };
        peer.about = peer.read::<Hello>()?.about;
        Ok(peer)
    }

    /// Does one outer iteration.
    ///
    /// # Errors
    /// If the peer has ended.
    pub fn step(&mut self) -> Result<PeerLap, CliError> {
        self.say("step")?;
        self.read()
    }

    /// Ends the peer.
    ///
    /// # Errors
    /// If it ended before.
    pub(super) fn finish(mut self) -> Result<Goodbye, CliError> {
        self.say("end")?;
        let goodbye = Goodbye { about: std::mem::take(&mut self.about), ..self.read()? };
        Ok(goodbye)
    }

    fn say(&mut self, word: &str) -> Result<(), CliError> {
        writeln!(self.input, "{word}")
            .and_then(|()| self.input.flush())
            .map_err(|error| peer_error(format!("--peer: the peer has ended: {error}")))
    }

    fn read<T: serde::de::DeserializeOwned>(&mut self) -> Result<T, CliError> {
        let mut line = String::new();
        match self.output.read_line(&mut line) {
            // What went wrong is on stderr, which is ours too.
            Ok(0) => Err(peer_error("--peer: the peer ended by itself; it needs a Python with torch".to_owned())),
            Ok(_) => serde_json::from_str(&line)
                .map_err(|error| peer_error(format!("--peer: not understood ({error}): {}", line.trim_end()))),
            Err(error) => Err(peer_error(format!("--peer: no answer: {error}"))),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // One that has ended cannot be killed, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mlomae_dataflow::config::Preset;
    use mlomae_model::Precision;
    use mlomae_model::lane::Engine;

    #[test]
    fn the_peer_gets_shape_device_and_precision_of_ours() {
        let words = |peer: &PeerSpec, workload: &WorkloadSpec, device: &str| {
            let arguments = peer.arguments(workload, DeviceChoice::by_name(device).unwrap());
            arguments.into_iter().map(|word| word.into_string().unwrap()).collect::<Vec<_>>().join(" ")
        };
        let ours = WorkloadSpec { batch: 8, num_threads: 3, ..WorkloadSpec::new(Preset::Small) };
        let published = PeerSpec { python: "python3".into(), ..PeerSpec::default() };
        assert_eq!(
            words(&published, &ours, "cpu"),
            "--preset small --batch 8 --threads 3 --device cpu --precision f32"
        );
        let strict = PeerSpec { savings: true, compile: true, ..published.clone() };
        let bf16 = WorkloadSpec { precision: Precision::Bf16, engine: Engine::by_name("cuda").unwrap(), ..ours };
        let words_of_strict = words(&strict, &bf16, "cuda");
        assert!(words_of_strict.ends_with("--device cuda --precision bf16 --savings --compile"), "{words_of_strict}");
        let random = words(&published, &WorkloadSpec { baseline: true, ..ours }, "cpu");
        assert!(random.ends_with("--precision f32 --random"), "{random}");
        // All that is passed is an option of the program.
        for word in words_of_strict.split(' ').chain(["--random"]).filter(|word| word.starts_with("--")) {
            assert!(PROGRAM.contains(&format!("\"{word}\"")), "{word}");
        }
    }
}
