//! Where a downstream task's head reads the encoder.

use std::fmt;

/// A part of what the encoder makes of all patches of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tap {
    /// The CLS token after the final norm: one token an image.
    Cls,
    /// The mean of the patch tokens before the final norm, without CLS and without that norm: one token an image. A head
    /// that begins with a layer norm makes of it the global pooling of MAE's `models_vit.py` (arXiv 2111.06377), whose
    /// `fc_norm` behind the mean takes the place of the encoder's norm.
    Mean,
    /// The patch tokens after the final norm: L tokens an image, row by row of the image.
    Patches,
    /// All tokens of a block's output, from 0 to the encoder's depth less 1, without the final norm: 1 + L an image, CLS
    /// first.
    Layer(usize),
}

impl Tap {
    /// Tokens that it has for an image of `num_patches` patches.
    #[must_use]
    pub const fn tokens(self, num_patches: usize) -> usize {
        match self {
            Tap::Cls | Tap::Mean => 1,
            Tap::Patches => num_patches,
            Tap::Layer(_) => 1 + num_patches,
        }
    }

    /// Whether it is one token an image.
    #[must_use]
    pub const fn is_pooled(self) -> bool {
        matches!(self, Tap::Cls | Tap::Mean)
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tap::Cls => f.write_str("cls"),
            Tap::Mean => f.write_str("mean"),
            Tap::Patches => f.write_str("patches"),
            Tap::Layer(block) => write!(f, "layer {block}"),
        }
    }
}
