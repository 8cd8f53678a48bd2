//! Names under which the splits of a dataset are stored: one table for folders, shards and single files.

use crate::dataset::spec::Split;

/// A part of a dataset as it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Train,
    Test,
    Validation,
}

impl Part {
    pub const ALL: [Self; 3] = [Self::Train, Self::Test, Self::Validation];

    /// The usual name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Validation => "validation",
        }
    }

    /// All names, in lower case.
    pub const fn words(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train", "training", "trn"],
            Self::Test => &["test", "testing", "tst"],
            Self::Validation => &["validation", "valid", "val", "dev", "eval", "evaluation"],
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        // `trainset`, `testdata`.
        let is = |word: &str| Self::ALL.into_iter().find(|part| part.words().contains(&word));
        is(word).or_else(|| ["set", "data", "images"].iter().find_map(|end| is(word.strip_suffix(end)?)))
    }
}

/// The parts that serve as a split, best first.
pub(crate) const fn parts_of(split: Split) -> &'static [Part] {
    match split {
        Split::Train => &[Part::Train],
        Split::Test => &[Part::Test, Part::Validation],
        Split::Validation => &[Part::Validation],
    }
}

/// Whether a split's stored name is that of a validation split.
#[must_use]
pub fn is_validation(split: &str) -> bool {
    Part::Validation.words().iter().any(|name| name.eq_ignore_ascii_case(split))
}

/// The names that are looked for, for messages.
pub(crate) fn names_of(split: Split) -> String {
    parts_of(split).iter().flat_map(|part| part.words()).copied().collect::<Vec<_>>().join(", ")
}

/// Words that may stand beside a split's name and say nothing of what is in it.
const PLAIN_WORDS: [&str; 22] = [
    "set", "data", "dataset", "images", "image", "imgs", "img", "pictures", "pics", "photos", "jpeg", "jpegs", "jpg",
    "png", "seg", "split", "folder", "files", "samples", "parquet", "partial", "full",
];

/// What a name says of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub part: Part,
    /// How much there is beside the split's name.
    pub rank: Rank,
    /// The words beside it, joined by `_`, without those that say nothing: what distinguishes `train_noisy` from
    /// `train`.
    pub group: String,
    /// Whether nothing of meaning stands before the split's name.
    pub leads: bool,
}

/// How plainly a name names a split, plainest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// The split's name alone.
    Exact,
    /// With words or numbers that say nothing of what is in it, as `seg_train`, `train_images`, `train2017`.
    Plain,
    /// With other words, as `train_noisy`: perhaps another split.
    Other,
}

/// Splits a name at what is no letter or digit, before capitals (`TrainSet`) and between letters and digits
/// (`train2017`); words in lower case.
pub(crate) fn words(name: &str) -> Vec<String> {
    let (mut words, mut word, mut last) = (Vec::new(), String::new(), ' ');
    for next in name.chars() {
        let is_boundary = (last.is_lowercase() && next.is_uppercase())
            || (last.is_alphabetic() && next.is_ascii_digit())
            || (last.is_ascii_digit() && next.is_alphabetic());
        if (is_boundary || !next.is_alphanumeric()) && !word.is_empty() {
            words.push(std::mem::take(&mut word));
        }
        if next.is_alphanumeric() {
            word.extend(next.to_lowercase());
        }
        last = next;
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}

/// The split that a name names, none if it names none or several (`train_val`). Its word must be the first or the last,
/// or have only words before or after it that say nothing.
pub(crate) fn named(name: &str) -> Option<Named> {
    named_words(&words(name))
}

/// The same of a name's [`words`].
pub(crate) fn named_words(words: &[String]) -> Option<Named> {
    let mut found = words.iter().enumerate().filter_map(|(at, word)| Some((at, Part::of_word(word)?)));
    let (at, part) = found.next()?;
    if found.next().is_some() {
        return None;
    }
    let says_something = |word: &&String| !is_plain(word);
    let before: Vec<_> = words[..at].iter().filter(says_something).collect();
    let after: Vec<_> = words[at + 1..].iter().filter(says_something).collect();
    if !before.is_empty() && !after.is_empty() {
        return None;
    }
    let group = before.iter().chain(&after).map(|word| word.as_str()).collect::<Vec<_>>().join("_");
    let rank = match (words.len(), group.is_empty()) {
        (1, _) => Rank::Exact,
        (_, true) => Rank::Plain,
        _ => Rank::Other,
    };
    Some(Named { part, rank, group, leads: before.is_empty() })
}

/// Whether a word says nothing of what is in a folder.
pub(crate) fn is_plain(word: &str) -> bool {
    PLAIN_WORDS.contains(&word) || word.bytes().all(|byte| byte.is_ascii_digit())
}

/// What the name of a Parquet file says of its place among the files of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    /// The split, none where the name says none.
    pub named: Option<Named>,
    /// Its number.
    pub index: Option<usize>,
    /// The number of files, of `00001-of-00003`.
    pub total: Option<usize>,
    /// The name without number, total and extension, as an exclusion may have it.
    pub stem: String,
}

/// Words of a shard's name that are not of its split.
const SHARD_WORDS: [&str; 4] = ["part", "shard", "chunk", "file"];
const CODEC_WORDS: [&str; 8] = ["snappy", "zstd", "gzip", "gz", "brotli", "br", "lz4", "uncompressed"];

impl Shard {
    /// Reads `train.parquet`, `train-00000-of-00002.parquet` (with or without a hash after it), `train_0.parquet`,
    /// `train-part-3.snappy.parquet`; none for another extension.
    pub fn read(name: &str) -> Option<Self> {
        let stem = strip_extension(name)?;
        let mut tokens: Vec<&str> = stem.split(['-', '_', '.', ' ']).filter(|token| !token.is_empty()).collect();
        let number = |token: &str| {
            let is_number = !token.is_empty() && token.len() <= 18 && token.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| token.parse::<usize>().ok()).flatten()
        };
        let (mut index, mut total) = (None, None);
        while tokens.last().is_some_and(|last| CODEC_WORDS.contains(last)) {
            tokens.pop();
        }
        let of = tokens.windows(3).position(|three| {
            three[1].eq_ignore_ascii_case("of") && number(three[0]).is_some() && number(three[2]).is_some()
        });
        if let Some(at) = of {
            (index, total) = (number(tokens[at]), number(tokens[at + 2]));
            // A hash of the content, as older versions of the Hub's library append it.
            let is_hash = |token: &&str| token.len() >= 8 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
            let end = at + 3 + usize::from(tokens.get(at + 3).is_some_and(is_hash));
            tokens.drain(at..end);
        } else if let Some(last) = tokens.last().and_then(|last| number(last)) {
            index = Some(last);
            tokens.pop();
        }
        if index.is_some() && tokens.len() > 1 && tokens.last().is_some_and(|last| SHARD_WORDS.contains(last)) {
            tokens.pop();
        }
        let mut all = words(&tokens.join("_"));
        // `train0.parquet`
        if index.is_none()
            && all.len() > 1
            && let Some(last) = all.last().and_then(|last| number(last))
        {
            index = Some(last);
            all.pop();
        }
        Some(Self { named: named_words(&all), index, total, stem: tokens.join("_") })
    }
}

/// A Parquet file's name without its extension.
pub(crate) fn strip_extension(name: &str) -> Option<&str> {
    let (stem, extension) = name.rsplit_once('.')?;
    extension.eq_ignore_ascii_case("parquet").then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_names_are_read_in_any_case_and_at_word_boundaries() {
        for (name, part, rank) in [
            ("train", Part::Train, Rank::Exact),
            ("TRAIN", Part::Train, Rank::Exact),
            ("Training", Part::Train, Rank::Exact),
            ("trainset", Part::Train, Rank::Exact),
            ("testing", Part::Test, Rank::Exact),
            ("VAL", Part::Validation, Rank::Exact),
            ("valid", Part::Validation, Rank::Exact),
            ("Dev", Part::Validation, Rank::Exact),
            ("evaluation", Part::Validation, Rank::Exact),
            ("seg_train", Part::Train, Rank::Plain),
            ("TrainImages", Part::Train, Rank::Plain),
            ("test_set", Part::Test, Rank::Plain),
            ("val2017", Part::Validation, Rank::Plain),
            ("train_noisy", Part::Train, Rank::Other),
            ("asl_alphabet_train", Part::Train, Rank::Other),
            ("test_tube", Part::Test, Rank::Other),
        ] {
            let found = named(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!((found.part, found.rank), (part, rank), "{name}");
        }
        for name in
            ["strain", "trainer", "contest", "latest", "valley", "device", "train_val", "", "my test tube", "t10k"]
        {
            assert_eq!(named(name), None, "{name}");
        }
        assert_eq!(named("train_noisy").unwrap().group, "noisy");
        assert_eq!(named("Noisy-Test").unwrap().group, "noisy");
    }

    #[test]
    fn shards_have_numbers_and_totals() {
        for (name, group, index, total) in [
            ("train.parquet", "", None, None),
            ("TRAIN.PARQUET", "", None, None),
            ("train-00000-of-00002.parquet", "", Some(0), Some(2)),
            ("train-00001-of-00002-0123456789abcdef.parquet", "", Some(1), Some(2)),
            ("train-1-of-3.parquet", "", Some(1), Some(3)),
            ("train_0.parquet", "", Some(0), None),
            ("train-7.parquet", "", Some(7), None),
            ("train.3.parquet", "", Some(3), None),
            ("train0.parquet", "", Some(0), None),
            ("train-part-3.snappy.parquet", "", Some(3), None),
            ("train_noisy-00000-of-00001.parquet", "noisy", Some(0), Some(1)),
            ("cifar10-train.parquet", "cifar", None, None),
        ] {
            let shard = Shard::read(name).unwrap_or_else(|| panic!("{name}"));
            let named = shard.named.unwrap_or_else(|| panic!("{name} names no split"));
            assert_eq!(
                (named.part, named.group.as_str(), shard.index, shard.total),
                (Part::Train, group, index, total),
                "{name}"
            );
        }
        assert_eq!(Shard::read("0003.parquet").map(|shard| (shard.named, shard.index)), Some((None, Some(3))));
        assert_eq!(Shard::read("part-00000-3b5c-c000.snappy.parquet").and_then(|shard| shard.named), None);
        for name in ["train.parquet.incomplete", "train", "train.parquet.crc", "train.csv"] {
            assert_eq!(Shard::read(name), None, "{name}");
        }
    }
}
