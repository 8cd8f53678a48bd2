//! The user's terminal, shared by the progress display and the log lines.

use std::fmt;
use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressDrawTarget};

/// Stderr as people see it. Cloning shares it.
#[derive(Clone)]
pub struct Terminal {
    bars: MultiProgress,
    is_interactive: bool,
}

impl Terminal {
    /// The process's stderr; interactive if it is a terminal.
    #[must_use]
    pub fn stderr() -> Self {
        let is_interactive =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let target = if is_interactive { ProgressDrawTarget::stderr_with_hz(10) } else { ProgressDrawTarget::hidden() };
        Self { bars: MultiProgress::with_draw_target(target), is_interactive }
    }

    /// Whether a display that redraws itself makes sense.
    #[must_use]
    pub const fn is_interactive(&self) -> bool {
        self.is_interactive
    }

    /// Writes with the display out of the way.
    pub fn suspend<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.is_interactive { self.bars.suspend(write) } else { write() }
    }

    /// Ends the display for good; what it showed last is removed.
    pub fn clear(&self) {
        // Nothing can be done for a terminal that takes no more output.
        let _ = self.bars.clear();
        self.bars.set_draw_target(ProgressDrawTarget::hidden());
    }

    pub(crate) fn bars(&self) -> &MultiProgress {
        &self.bars
    }
}

impl fmt::Debug for Terminal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Terminal").field("is_interactive", &self.is_interactive).finish_non_exhaustive()
    }
}
