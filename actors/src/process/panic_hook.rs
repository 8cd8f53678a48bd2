//! The panic hook: a panic becomes one event, never a trace on a user's terminal.

use std::cell::Cell;
use std::panic::{self, PanicHookInfo};
use std::thread;

use mlomae_dataflow::flow::exit::panic_message;

thread_local! {
    static IN_HOOK: Cell<bool> = const { Cell::new(false) };
}

/// Installs the hook for the whole process.
///
/// The event has the place of the panic, goes to the `events` table, and is off on stderr unless
/// RUST_LOG enables `mlomae_panic`: the code that catches the panic reports it in one line.
pub fn install() {
    panic::set_hook(Box::new(report));
}

fn report(info: &PanicHookInfo<'_>) {
    // A panic inside the logging itself must not come back here.
    if IN_HOOK.replace(true) {
        return;
    }
    let message = panic_message(info.payload());
    let thread = thread::current();
    let location = info.location().map(ToString::to_string).unwrap_or_default();
    tracing::error!(
        target: "mlomae_panic",
        kind = "panic",
        thread = thread.name().unwrap_or("unnamed"),
        location,
        "panic at {location}: {message}"
    );
    IN_HOOK.set(false);
}
