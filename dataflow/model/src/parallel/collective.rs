//! Sums and concatenations over ranks: several processes that work on one batch.
//!
//! Every rank holds a part of each batch: rank r of R has the r-th of R equal runs of images, R a power of two, and the images of a rank
//! are whole branches of the tree of [`Tree`](super::sum::Tree). So the sum over ranks continues the tree, with log₂ R exchanges, and any
//! number of ranks gives the same bits. What is small (features, patch losses) is gathered, and each rank computes on all of it.

use std::fmt;

use super::arena::Buffer;
use crate::error::ModelError;

/// The ranks of a run, as one of them sees them.
///
/// All ranks must make the same calls in the same order.
pub trait Collective: Send + Sync + fmt::Debug {
    /// Number of ranks, a power of two.
    fn num_ranks(&self) -> usize;

    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// The sum of every rank's `values`, added along the binary tree of ranks: ((0 + 1) + (2 + 3)) + …
    ///
    /// # Errors
    /// When another rank is gone.
    fn sum(&self, values: Buffer) -> Result<Buffer, ModelError>;

    /// Every rank's `values`, rank after rank.
    ///
    /// # Errors
    /// When another rank is gone.
    fn gather(&self, values: Buffer) -> Result<Buffer, ModelError>;
}

/// The only rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Local;

impl Collective for Local {
    fn num_ranks(&self) -> usize {
        1
    }

    fn rank(&self) -> usize {
        0
    }

    fn sum(&self, values: Buffer) -> Result<Buffer, ModelError> {
        Ok(values)
    }

    fn gather(&self, values: Buffer) -> Result<Buffer, ModelError> {
        Ok(values)
    }
}
