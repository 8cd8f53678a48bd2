//! A peer in a process of its own, stepped over its standard input and output, so that its iterations and ours take
//! turns.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::measure::workload::WorkloadSpec;
use serde::Deserialize;

use super::peer_error;
use crate::process::error::CliError;

/// The peer's program, which is part of ours.
const PROGRAM: &str = include_str!("../../../../bench/peer/torch_loop.py");

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
    /// The largest resident memory of its process.
    pub peak_bytes: u64,
}

impl Peer {
    /// Starts the peer with `python` and waits until it is ready.
    ///
    /// # Errors
    /// If it cannot be started, or ends by itself, with its own message on stderr.
    pub fn start(python: &Path, spec: &WorkloadSpec) -> Result<Self, CliError> {
        let cannot =
            |error: &dyn std::fmt::Display| peer_error(format!("--peer: cannot run {}: {error}", python.display()));
        let mut command = Command::new(python);
        command.arg("-c").arg(PROGRAM).arg("--serve");
        command.args(["--preset", spec.preset.as_str(), "--batch", &spec.batch.to_string()]);
        command.args(["--threads", &spec.num_threads.to_string()]);
        if spec.baseline {
            command.arg("--random");
        }
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
