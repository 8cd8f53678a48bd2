//! A guard around other crates' decoders, which may panic on damaged bytes, and the text of a panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The text of a panic's payload, for messages.
#[must_use]
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    match panic_text(payload) {
        "" => "panic without a message".to_owned(),
        text => text.to_owned(),
    }
}

/// Runs `decode`, whose state is dropped if it panics; a panic becomes an error made of its message.
pub(crate) fn guarded<T, E>(decode: impl FnOnce() -> Result<T, E>, refuse: impl FnOnce(String) -> E) -> Result<T, E> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(result) => result,
        Err(payload) => {
            // One line, whatever an assertion had to say.
            let text = panic_text(&*payload).lines().next().unwrap_or_default();
            Err(refuse(format!("the decoder gave up: {text}")))
        }
    }
}

/// The message of a panic; empty if it has none.
pub(crate) fn panic_text(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_of_one_line() {
        let refused = guarded(|| -> Result<(), String> { panic!("{} of\nmany", 1) }, |text| text);
        assert_eq!(refused, Err("the decoder gave up: 1 of".to_owned()));
        assert_eq!(guarded(|| Err::<(), _>("as it is".to_owned()), |text| text), Err("as it is".to_owned()));
        assert_eq!(guarded(|| Ok::<_, String>(3), |text| text), Ok(3));
    }
}
