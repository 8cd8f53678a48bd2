//! Collective operations (all-reduce and all-gather) over ranks: several processes that work on one batch.
//!
//! Every rank holds a part of each batch: rank r of R has the r-th of R equal runs of images, R is a power of two, and
//! the images of a rank are a whole branch of the [`Tree`](super::sum::Tree). So the sum over ranks continues the tree,
//! in log₂ R exchanges, and losses and gradients of levels 1 and 2 have the same bits for any number of ranks. The
//! hypergradient agrees up to rounding only: each rank adds both ends of the finite difference before the sum over
//! ranks. What is small (features, patch losses) is gathered, and each rank computes on all of it.

use std::fmt;

use super::arena::Buffer;
use crate::error::ModelError;

/// The collective operations of one rank.
///
/// All ranks must make the same calls in the same order, with equally many values; a call waits for all ranks.
pub trait Collective: Send + Sync + fmt::Debug {
    /// Number of ranks, a power of two.
    fn num_ranks(&self) -> usize;

    /// This rank, from 0.
    fn rank(&self) -> usize;

    /// The elementwise sum of every rank's `values` (all-reduce), added along the binary tree of ranks:
    /// ((0 + 1) + (2 + 3)) + …
    ///
    /// # Errors
    /// When another rank is gone.
    fn sum(&self, values: Buffer) -> Result<Buffer, ModelError>;

    /// The concatenation of every rank's `values`, in order of rank (all-gather).
    ///
    /// # Errors
    /// When another rank is gone.
    fn gather(&self, values: Buffer) -> Result<Buffer, ModelError>;
}

/// The collective operations of a run with one rank.
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
