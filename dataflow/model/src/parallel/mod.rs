//! Data parallelism on the CPU with deterministic sums (the same bits for any number of threads), and its memory pool.
//!
//! A batch is cut into grains (`train.grain` images), the unit of every sum. A thread takes a micro-batch of 1, 2, 4, …
//! grains at a time and sums their gradients along the branches of one binary tree; [`sum::OrderedSum`] adds the
//! branches of the micro-batches as they arrive. The tree depends on the number of grains alone:
//!
//! ```text
//! grain        0   1   2   3   4   5   6
//! micro-batch  [0   1] [2   3] [4   5] [6]      one thread each, tree sums inside
//! branch        \___ ___/       \___ ___/        OrderedSum, by whoever completes a branch
//! sum               \______ ______/
//! ```

pub mod arena;
pub mod collective;
pub mod compute;
pub mod sum;
