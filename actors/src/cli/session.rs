//! What a command works with.

use std::io::Write;

use mlomae_dataflow::flow::fault::FaultPlan;

use crate::process::logging::EventQueue;
use crate::process::signals::SignalWatcher;
use crate::process::terminal::Terminal;

/// The streams and the services of the process that every command has.
pub(crate) struct Session<'a> {
    /// Stdout.
    pub out: &'a mut dyn Write,
    /// Stderr, with its progress display.
    pub terminal: Terminal,
    /// Logged events, for the `events` table.
    pub events: EventQueue,
    /// What signals do: leave at once, unless the command says otherwise.
    pub signals: SignalWatcher,
    /// Faults that a training run shall survive; the program itself has none.
    pub faults: FaultPlan,
}
