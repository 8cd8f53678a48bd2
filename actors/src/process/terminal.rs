//! The user's terminal, shared by the progress display and the log lines.

use std::fmt;
use std::io::{self, IsTerminal};

use console::Term;
use indicatif::{MultiProgress, ProgressDrawTarget, TermLike};

/// How often the display may be drawn in a second.
const DRAWS_PER_SECOND: u8 = 10;

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
        let target = if is_interactive {
            let term = Box::new(ForgivingTerm(Term::buffered_stderr()));
            ProgressDrawTarget::term_like_with_hz(term, DRAWS_PER_SECOND)
        } else {
            ProgressDrawTarget::hidden()
        };
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

/// A terminal that may go away (hang-up, EIO): what cannot be drawn is not drawn. The display's library would panic in
/// the middle of a log line otherwise.
#[derive(Debug)]
struct ForgivingTerm(Term);

fn forgive(drawn: io::Result<()>) -> io::Result<()> {
    // Ignored: there is nowhere left to report it.
    drawn.or(Ok(()))
}

impl TermLike for ForgivingTerm {
    fn width(&self) -> u16 {
        self.0.size().1
    }

    fn height(&self) -> u16 {
        self.0.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        forgive(self.0.move_cursor_up(n))
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        forgive(self.0.move_cursor_down(n))
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        forgive(self.0.move_cursor_right(n))
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        forgive(self.0.move_cursor_left(n))
    }

    fn write_line(&self, line: &str) -> io::Result<()> {
        forgive(self.0.write_line(line))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        forgive(self.0.write_str(text))
    }

    fn clear_line(&self) -> io::Result<()> {
        forgive(self.0.clear_line())
    }

    fn flush(&self) -> io::Result<()> {
        forgive(self.0.flush())
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use indicatif::ProgressBar;

    use super::*;

    #[test]
    fn a_terminal_that_takes_no_more_output_is_no_reason_to_panic() {
        let (Ok(input), Ok(output)) = (File::open("/dev/null"), File::options().write(true).open("/dev/full")) else {
            println!("no /dev/full here");
            return;
        };
        let term = Term::read_write_pair(input, output);
        assert!(term.write_line("").is_err(), "nothing can be written");
        let target = ProgressDrawTarget::term_like(Box::new(ForgivingTerm(term)));
        let terminal = Terminal { bars: MultiProgress::with_draw_target(target), is_interactive: true };
        let bar = terminal.bars().add(ProgressBar::new(3));
        bar.tick();
        assert_eq!(terminal.suspend(|| 7), 7);
        bar.inc(1);
        terminal.clear();
    }
}
