//! What a reader leaves out, gathered for the owner of the data: a line for each kind, with names and a count.

use std::path::Path;

/// Names of a kind that are listed.
const MAX_NAMES: usize = 10;

/// Kinds of things left out, in the order in which they were met.
#[derive(Clone, Debug, Default)]
pub(crate) struct Notes {
    kinds: Vec<Kind>,
}

#[derive(Clone, Debug)]
struct Kind {
    text: String,
    names: Vec<String>,
    num: usize,
}

impl Notes {
    /// One more `name` of a kind.
    pub fn add(&mut self, text: &str, name: String) {
        let at = self.kinds.iter().position(|kind| kind.text == text).unwrap_or_else(|| {
            self.kinds.push(Kind { text: text.to_owned(), names: Vec::new(), num: 0 });
            self.kinds.len() - 1
        });
        let kind = &mut self.kinds[at];
        kind.num += 1;
        if kind.names.len() < MAX_NAMES {
            kind.names.push(name);
        }
    }

    /// A line of its own.
    pub fn say(&mut self, text: String) {
        self.kinds.push(Kind { text, names: Vec::new(), num: 0 });
    }

    /// `kind: 12 (a, b, c and 9 more)`, a line a kind.
    pub fn lines(&self) -> Vec<String> {
        let line = |Kind { text, names, num }: &Kind| match (num, num - names.len()) {
            (0, _) => text.clone(),
            (_, 0) => format!("{text}: {num} ({})", names.join(", ")),
            (_, more) => format!("{text}: {num} ({} and {more} more)", names.join(", ")),
        };
        self.kinds.iter().map(line).collect()
    }
}

/// A path below `root` as it is shown: relative, with what a terminal would obey or a line cannot hold written as
/// escapes.
pub(crate) fn shown(path: &Path, root: &Path) -> String {
    let relative = path.strip_prefix(root).ok().filter(|path| !path.as_os_str().is_empty());
    escaped(&relative.unwrap_or(path).to_string_lossy())
}

/// Text with control and other unprintable characters as escapes; quotes and backslashes stay.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for part in text.split_inclusive(['\'', '"', '\\']) {
        let body = part.trim_end_matches(['\'', '"', '\\']);
        out.extend(body.escape_debug());
        out.push_str(&part[body.len()..]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_and_counted() {
        let mut notes = Notes::default();
        for number in 0..13 {
            notes.add("skipped", format!("n{number}"));
        }
        notes.say("said".to_owned());
        notes.add("other", shown(Path::new("/data/x\u{1b}[2J\ny"), Path::new("/data")));
        let lines = notes.lines();
        assert_eq!(lines[0], "skipped: 13 (n0, n1, n2, n3, n4, n5, n6, n7, n8, n9 and 3 more)");
        assert_eq!(lines[1..], ["said", "other: 1 (x\\u{1b}[2J\\ny)"]);
        assert_eq!(escaped("it's \"é\" \\ \u{202e}"), "it's \"é\" \\ \\u{202e}");
        assert_eq!(shown(Path::new("/data"), Path::new("/data")), "/data");
    }
}
