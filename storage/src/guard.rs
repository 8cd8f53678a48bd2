//! A guard around other crates' decoders, which may panic on damaged bytes, and the text of a panic.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// The text of a panic's payload.
#[must_use]
pub fn panic_message(payload: &(dyn Any + Send)) -> String {
    if let Some(text) = payload.downcast_ref::<&str>() {
        (*text).to_owned()
    } else if let Some(text) = payload.downcast_ref::<String>() {
        text.clone()
    } else {
        "panic without a message".to_owned()
    }
}

/// Runs `decode`, whose state is thrown away if it panics; a panic becomes an error made of its message.
pub(crate) fn guarded<T, E>(decode: impl FnOnce() -> Result<T, E>, refuse: impl FnOnce(String) -> E) -> Result<T, E> {
    match catch_unwind(AssertUnwindSafe(decode)) {
        Ok(result) => result,
        Err(payload) => {
            let text = panic_message(payload.as_ref());
            // One line, whatever an assertion had to say.
            Err(refuse(format!("the decoder gave up: {}", text.lines().next().unwrap_or_default())))
        }
    }
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
