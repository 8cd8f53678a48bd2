//! The exit codes of the program, named in one place.

use std::fmt;

/// How a process ends: the codes of `sysexits.h` for what failed, and 128 and the signal's number, as a shell reports
/// it, for a run that a signal ended in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything went well.
    Ok = 0,
    /// The command ran, and its answer is no: a verification failed, or there is no GPU to use.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The data is bad.
    BadData = 65,
    /// The input does not exist.
    NoInput = 66,
    /// An internal error, or a number that is not finite.
    Internal = 70,
    /// Reading or writing failed, or the system starts no more threads.
    Io = 74,
    /// The configuration is bad, or needs more memory or another engine than there is.
    Config = 78,
    /// Stopped by SIGHUP.
    HangUp = 129,
    /// Stopped by SIGINT.
    Interrupt = 130,
    /// Stopped by SIGUSR2.
    Preempt = 140,
    /// Stopped by SIGTERM.
    Terminate = 143,
    /// Stopped by SIGXCPU.
    CpuTime = 152,
}

impl ExitCode {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8
    }

    /// Whether a signal asked for the end, which is no error.
    #[must_use]
    pub const fn is_by_signal(self) -> bool {
        self.code() > 128
    }
}

impl PartialEq<u8> for ExitCode {
    fn eq(&self, code: &u8) -> bool {
        self.code() == *code
    }
}

impl fmt::Display for ExitCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.code().fmt(f)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code.code())
    }
}

impl From<ExitCode> for i32 {
    fn from(code: ExitCode) -> Self {
        code.code().into()
    }
}
