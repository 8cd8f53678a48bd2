//! Text that came from elsewhere, made fit for a terminal, a log line or a JSON file.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;

/// Whether a character does something else than be seen: it ends the line, moves the cursor, begins an escape
/// sequence, or turns the direction of what follows (bidirectional override).
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The text on one line: line breaks, tabs and all that a terminal would obey are written as Rust does, `\n`, `\u{1b}`.
/// All else stays, backslashes too.
#[must_use]
pub fn one_line(text: &str) -> Cow<'_, str> {
    escaped(text, acts)
}

/// As [`one_line`], for text of several lines: line breaks and tabs stay.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| acts(c) && !matches!(c, '\n' | '\t'))
}

fn escaped(text: &str, is_escaped: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            match c {
                '\n' | '\r' | '\t' => out.extend(c.escape_default()),
                c => out.extend(c.escape_unicode()),
            }
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// Bytes that need not be UTF-8 as text from which they can be had again: each byte that belongs to no UTF-8 sequence
/// becomes `\xNN` (two lower-case hexadecimal digits), each backslash `\\`, all else stays.
#[must_use]
pub fn os_text(bytes: &OsStr) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str(r"\\"),
                c => out.push(c),
            }
        }
        for byte in chunk.invalid() {
            // Writing to a string cannot fail.
            let _ = write!(out, r"\x{byte:02x}");
        }
    }
    out
}

/// At most `max_chars` characters of a text, with the number of all of them if there are more.
#[must_use]
pub fn shortened(text: &str, max_chars: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => Cow::Owned(format!("{}… ({} characters)", &text[..end], text.chars().count())),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_written_out_and_all_else_stays() {
        assert!(matches!(one_line(r#"C:\Äpfel "x" 日本"#), Cow::Borrowed(_)));
        assert_eq!(
            one_line("a\nb\r\tc\u{1b}[31m\u{7f}\u{9b}\u{202e}\0"),
            r"a\nb\r\tc\u{1b}[31m\u{7f}\u{9b}\u{202e}\u{0}"
        );
        assert_eq!(lines("a\n\tb\u{1b}"), "a\n\tb\\u{1b}");
    }

    /// The way back from [`os_text`].
    fn bytes_of(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            if let Some(escape) = rest.strip_prefix(r"\x") {
                bytes.push(u8::from_str_radix(&escape[..2], 16).expect("two digits"));
                rest = &escape[2..];
            } else if let Some(after) = rest.strip_prefix(r"\\") {
                bytes.push(b'\\');
                rest = after;
            } else {
                bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                rest = &rest[c.len_utf8()..];
            }
        }
        bytes
    }

    #[test]
    fn bytes_of_any_kind_come_back_from_their_text() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&b"plain"[..], b"caf\xe9", b"caf\xe8", br"\xe9", "é\u{fffd}".as_bytes(), b"\xf0\x9f\x98", &all] {
            let text = os_text(OsStr::from_bytes(bytes));
            assert_eq!(bytes_of(&text), bytes, "{text}");
        }
        assert_eq!(os_text(OsStr::from_bytes(b"caf\xe9\\")), r"caf\xe9\\");
    }

    #[test]
    fn long_text_says_how_long_it_is() {
        assert_eq!(shortened("äbc", 3), "äbc");
        assert_eq!(shortened("äbcd", 3), "äbc… (4 characters)");
    }
}
