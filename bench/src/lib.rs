//! Shared by the benchmarks of single operations: data, and the shapes of one encoder block.

#![forbid(unsafe_code)]

use mlomae_kernels::AttentionShape;

/// The encoder block of a preset on one micro-batch of whole images.
#[derive(Clone, Copy, Debug)]
pub struct BlockShape {
    /// Images of the micro-batch.
    pub images: usize,
    /// Tokens of an image, with CLS.
    pub tokens: usize,
    /// Width.
    pub dim: usize,
    /// Attention heads.
    pub heads: usize,
}

/// Micro-batches of 16 images of 32 × 32 in patches of 4: presets tiny and small.
pub const BLOCKS: [BlockShape; 2] = [
    BlockShape { images: 16, tokens: 65, dim: 96, heads: 3 },
    BlockShape { images: 16, tokens: 65, dim: 192, heads: 3 },
];

impl std::fmt::Display for BlockShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rows of {}", self.rows(), self.dim)
    }
}

impl BlockShape {
    /// Rows of the block's matrices.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.images * self.tokens
    }

    /// Attention of all tokens.
    #[must_use]
    pub const fn attention(&self) -> AttentionShape {
        AttentionShape {
            batch: self.images,
            tokens: self.tokens,
            heads: self.heads,
            head_dim: self.dim / self.heads,
            queries: self.tokens,
        }
    }
}

/// `len` values in ±0.5 without a pattern that matters.
#[must_use]
pub fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_divide_the_width() {
        for block in BLOCKS {
            let shape = block.attention();
            assert_eq!(shape.heads * shape.head_dim, block.dim);
            assert!(values(100).iter().all(|v| v.abs() <= 0.5));
        }
    }
}
