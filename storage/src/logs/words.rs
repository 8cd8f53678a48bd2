//! Text columns of few distinct values: plain words, and enums that are written as words.

use std::borrow::Cow;
use std::fmt;

/// Short text of low cardinality, usually a literal.
pub type Text = Cow<'static, str>;

/// A value that is written as one of a few words.
pub trait Word: Copy + 'static {
    /// All values.
    const WORDS: &'static [Self];

    /// The word in the logs.
    fn word(self) -> &'static str;

    /// The value that is written as `word`.
    fn of_word(word: &str) -> Option<Self> {
        Self::WORDS.iter().copied().find(|value| value.word() == word)
    }
}

/// Declares an enum with the word of each variant.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $Name:ident { $($(#[$of_variant:meta])* $Variant:ident = $word:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $Name { $($(#[$of_variant])* $Variant,)+ }

        impl $Name {
            /// All values.
            pub const ALL: [Self; [$($word),+].len()] = [$(Self::$Variant),+];

            /// The name in the logs.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $word,)+
                }
            }
        }

        impl Word for $Name {
            const WORDS: &'static [Self] = &Self::ALL;

            fn word(self) -> &'static str {
                self.name()
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

words! {
    /// The level of the optimisation problem that a row belongs to.
    pub enum Level {
        /// Level 1: masked reconstruction.
        Pretrain = "pretrain",
        /// Level 2: the downstream head.
        Finetune = "finetune",
        /// Level 3: the masking network.
        Mask = "mask",
        /// Evaluation.
        Eval = "eval",
    }
}

words! {
    /// How much an event matters.
    pub enum Severity {
        /// For developers.
        Debug = "debug",
        /// Normal operation.
        Info = "info",
        /// Something was lost, repeated or late; the run continues.
        Warn = "warn",
        /// The run ends, or a part of it failed.
        Error = "error",
    }
}
