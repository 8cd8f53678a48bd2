//! Where a downstream task's head reads the encoder.

/// A part of the encoder's output over all patches of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tap {
    /// The CLS token after the final norm: one token an image.
    Cls,
    /// The patch tokens after the final norm: L tokens an image, row by row of the image.
    Patches,
}

impl Tap {
    /// Tokens that it has for an image of `num_patches` patches.
    #[must_use]
    pub const fn tokens(self, num_patches: usize) -> usize {
        match self {
            Tap::Cls => 1,
            Tap::Patches => num_patches,
        }
    }
}
