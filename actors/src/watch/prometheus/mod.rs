//! Metrics of a running run in Prometheus' text format, at a loopback address.
//!
//! They are read from the workers' counters when a client requests them: without requests they cost nothing, and no
//! request reaches the training.

mod exposition;
mod http;
mod server;

use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};

use mlomae_dataflow::config::TelemetryConfig;
use mlomae_dataflow::record::memory::process_memory;
use mlomae_dataflow::run::sink::Latest;
use mlomae_storage::exit_code::ExitCode;

pub use exposition::{Figures, QueueSample, render};
pub use http::PATH;

use crate::process::background::Background;
use crate::process::error::CliError;
use crate::roles::telemetry::WorkerProbe;
use crate::watch::progress::ProgressFigures;

/// Takes the configured address; none if no metrics are wanted. A client that connects is answered once [`serve`] has
/// been called.
///
/// # Errors
/// If the address cannot be had.
pub fn bind(config: &TelemetryConfig) -> Result<Option<TcpListener>, CliError> {
    let refuse = |problem| CliError::new(ExitCode::Config, format!("telemetry.prometheus {problem}"));
    let Some(address) = config.address().map_err(refuse)? else {
        return Ok(None);
    };
    let listener = TcpListener::bind(address).map_err(|error| {
        CliError::new(ExitCode::Io, format!("telemetry.prometheus: cannot listen ({error}): {address}"))
    })?;
    Ok(Some(listener))
}

/// The workers' probes, once there are workers.
#[derive(Debug, Clone, Default)]
pub struct ProbeSlot {
    probes: Arc<Mutex<Vec<WorkerProbe>>>,
}

impl ProbeSlot {
    /// Serves the figures of these workers from now on.
    pub fn connect(&self, probes: &[WorkerProbe]) {
        *self.probes.lock().unwrap_or_else(PoisonError::into_inner) = probes.to_vec();
    }

    fn get(&self) -> Vec<WorkerProbe> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Serves the metrics of a run until the server is dropped: its `progress`, and the figures of `latest` and `probes`.
///
/// # Errors
/// If no thread can be started.
pub fn serve(
    listener: TcpListener,
    progress: impl Fn() -> ProgressFigures + Send + 'static,
    latest: Latest,
    probes: ProbeSlot,
) -> Result<Background, CliError> {
    let body = move || render(&gather(progress(), &latest, &probes.get()));
    let address = listener.local_addr();
    let server = address.and_then(|address| Ok((address, server::start(listener, body)?)));
    let (address, server) =
        server.map_err(|error| CliError::new(ExitCode::Io, format!("telemetry.prometheus: {error}")))?;
    tracing::info!(kind = "metrics_served", %address, "metrics for Prometheus at http://{address}{PATH}");
    Ok(server)
}

fn gather(progress: ProgressFigures, latest: &Latest, probes: &[WorkerProbe]) -> Figures {
    let latest = latest.get();
    let mut queues: Vec<QueueSample> = Vec::new();
    for probe in probes {
        for edge in &probe.inputs {
            // All workers of a stage share the gauges of its edges.
            if queues.iter().all(|queue| queue.edge != edge.id()) {
                queues.push(QueueSample {
                    edge: edge.id(),
                    len: edge.queue_len(),
                    capacity: edge.queue_cap(),
                    bytes: edge.queue_bytes(),
                });
            }
        }
    }
    Figures {
        version: env!("CARGO_PKG_VERSION"),
        workers: probes.iter().map(|probe| (probe.worker, probe.counters.snapshot())).collect(),
        queues,
        progress,
        images_per_second: latest.images_per_second,
        epoch: latest.epoch,
        num_checkpoints: latest.num_checkpoints,
        num_rows: latest.num_rows,
        policy_lag: latest.policy_lag,
        memory: process_memory(),
    }
}
