//! A progress bar for one task.

use indicatif::{ProgressBar, ProgressStyle};

use crate::process::terminal::Terminal;

/// A bar on a terminal; nothing elsewhere. It goes when dropped.
pub(crate) struct Bar {
    bar: ProgressBar,
}

impl Bar {
    pub(crate) fn new(terminal: &Terminal, name: &'static str) -> Self {
        let style = ProgressStyle::with_template("{prefix} {wide_bar:.cyan/dim} {pos}/{len} ETA {eta}")
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("━╸─");
        let bar = ProgressBar::new(0).with_style(style).with_prefix(name);
        Self { bar: terminal.bars().add(bar) }
    }

    /// Shows that `done` of `all` are done of what `name` says.
    pub(crate) fn set(&self, name: &'static str, done: usize, all: usize) {
        self.bar.set_prefix(name);
        self.bar.set_length(all as u64);
        self.bar.set_position(done as u64);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
