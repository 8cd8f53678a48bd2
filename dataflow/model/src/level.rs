//! The three levels of the method, and a container with one value for each.

use serde::{Deserialize, Serialize};

/// A level of MLO-MAE (arXiv 2402.18128). Its parameter set, optimizer, loss and data role are named after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Level 1: θ, encoder and decoder, by the masked reconstruction loss L_m.
    Pretrain,
    /// Level 2: c, the head of the downstream task, by its loss L_f on a frozen encoder.
    Finetune,
    /// Level 3: φ, the masking network, by the task's loss L_v on validation data.
    Mask,
}

impl Level {
    /// All levels, from the first to the third.
    pub const ALL: [Level; 3] = [Level::Pretrain, Level::Finetune, Level::Mask];

    /// Its name in files, logs and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Level::Pretrain => "pretrain",
            Level::Finetune => "finetune",
            Level::Mask => "mask",
        }
    }
}

impl std::fmt::Display for Level {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One value for each [`Level`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PerLevel<T> {
    /// Of level 1.
    pub pretrain: T,
    /// Of level 2.
    pub finetune: T,
    /// Of level 3.
    pub mask: T,
}

impl<T> PerLevel<T> {
    /// The value of each level.
    pub fn from_fn(mut of: impl FnMut(Level) -> T) -> Self {
        PerLevel { pretrain: of(Level::Pretrain), finetune: of(Level::Finetune), mask: of(Level::Mask) }
    }

    /// As [`PerLevel::from_fn`] for a function that may fail.
    ///
    /// # Errors
    /// The first error of `of`, which is not called again after it.
    pub fn try_from_fn<E>(mut of: impl FnMut(Level) -> Result<T, E>) -> Result<Self, E> {
        Ok(PerLevel { pretrain: of(Level::Pretrain)?, finetune: of(Level::Finetune)?, mask: of(Level::Mask)? })
    }

    /// Each level with its value, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Level, &T)> {
        Level::ALL.into_iter().zip([&self.pretrain, &self.finetune, &self.mask])
    }
}

impl<T> std::ops::Index<Level> for PerLevel<T> {
    type Output = T;
    fn index(&self, level: Level) -> &T {
        match level {
            Level::Pretrain => &self.pretrain,
            Level::Finetune => &self.finetune,
            Level::Mask => &self.mask,
        }
    }
}

impl<T> std::ops::IndexMut<Level> for PerLevel<T> {
    fn index_mut(&mut self, level: Level) -> &mut T {
        match level {
            Level::Pretrain => &mut self.pretrain,
            Level::Finetune => &mut self.finetune,
            Level::Mask => &mut self.mask,
        }
    }
}
