//! Logging: lines on stderr for people or machines, and every event forwarded to a bounded
//! channel, from which the log stage writes the `events` table.

use std::env::VarError;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Instant, SystemTime};

use crossbeam::channel::{Receiver, Sender, TrySendError, bounded};
use mlomae_storage::escape::{one_line, os_text};
use mlomae_storage::logs::Severity;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Registry};

use crate::process::terminal::Terminal;

/// Events that the channel holds until they are written: a burst of a few thousand lines.
const EVENT_QUEUE_CAP: usize = 4096;

/// What is shown on stderr when RUST_LOG is not set. Panics have their own line, see
/// [`crate::process::panic_hook`].
const DEFAULT_FILTER: &str = "warn,mlomae=info,mlomae_panic=off";
/// The same if the user wants to see only what is not as it should be.
const QUIET_FILTER: &str = "warn,mlomae_panic=off";

/// The form of the lines on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// One event on its way to the `events` table.
#[derive(Debug, Clone, PartialEq)]
pub struct LoggedEvent {
    /// When it happened.
    pub time: SystemTime,
    /// How much it matters.
    pub severity: Severity,
    /// What kind of event it is, as `stage_restarted`; `message` if the event does not say.
    pub kind: String,
    /// The stage it is about; empty if none.
    pub stage: String,
    /// One line for people.
    pub message: String,
    /// The further fields, one JSON object.
    pub fields: Map<String, Value>,
}

/// The receiving side of the forwarded events. Cloning shares the queue.
#[derive(Debug, Clone)]
pub struct EventQueue {
    events: Receiver<LoggedEvent>,
    num_dropped: Arc<AtomicU64>,
}

impl EventQueue {
    /// Takes everything that is queued. If the queue overflowed since the last call, the first
    /// event says how many were lost.
    #[must_use]
    pub fn drain(&self) -> Vec<LoggedEvent> {
        let num_dropped = self.num_dropped.swap(0, Ordering::Relaxed);
        let drops = (num_dropped > 0).then(|| LoggedEvent {
            time: SystemTime::now(),
            severity: Severity::Warn,
            kind: "events_dropped".to_owned(),
            stage: String::new(),
            message: format!("{num_dropped} events were dropped, the queue was full"),
            fields: Map::from_iter([("num_dropped".to_owned(), num_dropped.into())]),
        });
        drops.into_iter().chain(self.events.try_iter()).collect()
    }
}

/// Installs the process's subscriber: lines of `format` on stderr, filtered by RUST_LOG (default
/// `warn,mlomae=info`, or `warn` for a quiet program), and everything from `info` up to the returned queue.
///
/// A second call in one process changes nothing and returns a queue that stays empty.
///
/// # Errors
/// If RUST_LOG is not a valid filter; the message names it.
pub fn init(format: LogFormat, is_quiet: bool, terminal: &Terminal) -> Result<EventQueue, String> {
    let (layer, queue) = event_layer(EVENT_QUEUE_CAP);
    let filter = match std::env::var("RUST_LOG") {
        Err(VarError::NotUnicode(text)) => return Err(format!("RUST_LOG is not UTF-8 text: {}", os_text(&text))),
        Ok(text) if !text.trim().is_empty() => EnvFilter::try_new(&text)
            .map_err(|error| format!("RUST_LOG is not a filter such as `info,mlomae=debug` ({error}): {text}"))?,
        _ => EnvFilter::new(if is_quiet { QUIET_FILTER } else { DEFAULT_FILTER }),
    };
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Human => tracing_subscriber::fmt::layer()
            .event_format(HumanFormat { begin: Instant::now() })
            .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
            .with_writer(terminal.clone())
            .with_filter(filter)
            .boxed(),
        LogFormat::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(terminal.clone())
            .with_filter(filter)
            .boxed(),
    };
    let events = layer.with_filter(EnvFilter::new("warn,mlomae=info,mlomae_progress=off"));
    // Failure means that a subscriber is installed already, by a test in the same process.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(lines).with(events));
    Ok(queue)
}

fn event_layer(capacity: usize) -> (EventLayer, EventQueue) {
    let (sender, receiver) = bounded(capacity);
    let num_dropped = Arc::<AtomicU64>::default();
    let queue = EventQueue { events: receiver, num_dropped: Arc::clone(&num_dropped) };
    (EventLayer { sender, num_dropped }, queue)
}

/// Forwards events without ever waiting.
struct EventLayer {
    sender: Sender<LoggedEvent>,
    num_dropped: Arc<AtomicU64>,
}

impl<S: Subscriber> Layer<S> for EventLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let logged = LoggedEvent {
            time: SystemTime::now(),
            severity: severity(*event.metadata().level()),
            kind: fields.kind.unwrap_or_else(|| "message".to_owned()),
            stage: fields.stage.unwrap_or_default(),
            message: fields.message,
            fields: fields.others,
        };
        if let Err(TrySendError::Full(_)) = self.sender.try_send(logged) {
            self.num_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

const fn severity(level: Level) -> Severity {
    match level {
        Level::ERROR => Severity::Error,
        Level::WARN => Severity::Warn,
        Level::INFO => Severity::Info,
        Level::DEBUG | Level::TRACE => Severity::Debug,
    }
}

/// The fields of an event, sorted by what they become.
#[derive(Default)]
struct Fields {
    message: String,
    kind: Option<String>,
    stage: Option<String>,
    others: Map<String, Value>,
}

impl Fields {
    fn insert(&mut self, field: &Field, value: Value) {
        let text = || value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        match field.name() {
            "message" => self.message = text(),
            "kind" => self.kind = Some(text()),
            "stage" => self.stage = Some(text()),
            name => _ = self.others.insert(name.to_owned(), value),
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        // Lists of numbers, such as sample ids, are JSON already.
        let value = match serde_json::from_str(&text) {
            Ok(list @ Value::Array(_)) => list,
            _ => Value::String(text),
        };
        self.insert(field, value);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no NaN; its name is worth keeping.
        let value = serde_json::Number::from_f64(value).map_or_else(|| Value::String(value.to_string()), Value::Number);
        self.insert(field, value);
    }
}

/// `   12.3s warn  message  field=value`.
struct HumanFormat {
    begin: Instant,
}

impl<S, N> FormatEvent<S, N> for HumanFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &tracing_subscriber::fmt::FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = *event.metadata().level();
        let color = match level {
            Level::ERROR => "31",
            Level::WARN => "33",
            Level::INFO => "32",
            _ => "2",
        };
        let (begin, end) =
            if writer.has_ansi_escapes() { (format!("\x1b[{color}m"), "\x1b[0m") } else { (String::new(), "") };
        let name = if level == Level::TRACE { "trace" } else { severity(level).name() };
        let seconds = self.begin.elapsed().as_secs_f64();
        write!(writer, "{seconds:7.1}s {begin}{:<5}{end} {}", name, one_line(&fields.message))?;
        // The message says it all; what is a column for queries is noise for people.
        if level > Level::INFO {
            for (name, value) in &fields.others {
                write!(writer, " {name}={}", one_line(&value.to_string()))?;
            }
        }
        writeln!(writer)
    }
}

impl<'a> MakeWriter<'a> for Terminal {
    type Writer = LineWriter;

    fn make_writer(&'a self) -> LineWriter {
        LineWriter { terminal: self.clone() }
    }
}

/// Writes whole lines above the progress display.
#[derive(Debug)]
pub struct LineWriter {
    terminal: Terminal,
}

impl Write for LineWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.terminal.suspend(|| io::stderr().write_all(bytes))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(capacity: usize, log: impl FnOnce()) -> Vec<LoggedEvent> {
        let (layer, queue) = event_layer(capacity);
        tracing::subscriber::with_default(Registry::default().with(layer), log);
        queue.drain()
    }

    #[test]
    fn fields_become_columns() {
        let events = logged(4, || {
            let ids = vec![3_i64, 5];
            tracing::error!(
                kind = "stage_restarted",
                stage = %"score",
                instance = 1_u16,
                lost_sample_ids = ?ids,
                loss = f64::NAN,
                "score {} panicked",
                1
            );
            tracing::info!("plain");
        });
        assert_eq!(events.len(), 2);
        let event = &events[0];
        assert_eq!(
            (event.severity, &*event.kind, &*event.stage, &*event.message),
            (Severity::Error, "stage_restarted", "score", "score 1 panicked")
        );
        let expected = serde_json::json!({"instance": 1, "lost_sample_ids": [3, 5], "loss": "NaN"});
        assert_eq!(Value::Object(event.fields.clone()), expected);
        assert_eq!((&*events[1].kind, &*events[1].stage), ("message", ""));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let events = logged(3, || (0..10).for_each(|number| tracing::warn!(number, "line")));
        assert_eq!(events.len(), 4);
        assert_eq!(events[0].kind, "events_dropped");
        assert_eq!(events[0].fields["num_dropped"], 7);
        assert_eq!(events[3].fields["number"], 2);
    }
}
