//! Whether a device computes what it should: every operation and product beside plain f64 on the host, at a few shapes
//! and in each precision. It takes seconds, and is for a device that nobody has tried yet.

mod networks;
mod rows;
mod tokens;
mod trial;
mod vectors;

use std::cell::RefCell;

use crate::error::DeviceError;
use crate::gpu::Gpu;
use crate::stream::{Precision, Priority, Stream};
use trial::Trial;

/// How far an operation is from what the host computes.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The operation, as its method of [`Stream`] is called.
    pub operation: &'static str,
    /// The precision of its activations and products, f32, tf32 or bf16; `all` where they do not depend on it.
    pub precision: &'static str,
    /// The largest error over all shapes: of a value beside the largest of its result (in bf16 beside itself), for
    /// attention and products of all values beside all. Infinite where a value is NaN or was not written.
    pub error: f64,
    /// The most that it may be; 0 where results have to be equal.
    pub limit: f64,
    /// Number of values that were compared.
    pub num_values: usize,
}

impl Outcome {
    /// Whether the error is within its limit.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.error <= self.limit
    }
}

type Check = fn(&Trial<'_>) -> Result<(), DeviceError>;

/// Checks of operations that read or write activations, or whose products round by the precision.
const OF_PRECISION: &[Check] = &[
    rows::norms,
    rows::activations,
    rows::casts,
    tokens::tokens,
    tokens::patches,
    networks::products,
    networks::attention,
    networks::graphs,
];

/// Checks of operations that are the same in every precision.
const OF_ALL: &[Check] = &[
    vectors::sums,
    vectors::optimizer,
    vectors::reductions,
    vectors::sigmoids,
    tokens::images,
    tokens::orders_and_weights,
    tokens::masking,
    networks::heads,
];

/// Runs every operation on `gpu` and tells how far each was off, one after the other.
///
/// # Errors
/// What failed on the device; the last outcome that was told came before it.
pub fn selftest(gpu: &Gpu, tell: &mut dyn FnMut(&Outcome)) -> Result<(), DeviceError> {
    for (precision, name) in [(Precision::F32, "f32"), (Precision::Tf32, "tf32"), (Precision::Bf16, "bf16")] {
        let stream = Stream::new(gpu, precision, Priority::Normal)?;
        let of_all = OF_ALL.iter().filter(|_| precision == Precision::F32).map(|check| (check, "all"));
        for (check, name) in OF_PRECISION.iter().map(|check| (check, name)).chain(of_all) {
            let trial = Trial { stream: &stream, precision: name, outcomes: RefCell::default() };
            check(&trial)?;
            trial.outcomes.into_inner().iter().for_each(&mut *tell);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing;

    #[test]
    fn every_kernel_is_run_and_right() {
        let table = include_str!("../../../../tests/gpu/registers.json");
        let names = table.lines().filter_map(|line| line.strip_prefix("  \"")?.split_once("\": ["));
        let kernels: BTreeSet<&str> = names.map(|(name, _)| name).collect();
        assert!(kernels.len() > 90, "{kernels:?}");
        let gpu = testing::gpu();
        drop(testing::launched());
        let mut outcomes = Vec::new();
        selftest(&gpu, &mut |outcome| outcomes.push(outcome.clone())).unwrap();
        for outcome in &outcomes {
            assert!(outcome.is_ok() && outcome.num_values > 0, "{outcome:?}");
        }
        let names: BTreeSet<_> = outcomes.iter().map(|outcome| (outcome.operation, outcome.precision)).collect();
        assert_eq!(names.len(), outcomes.len(), "one line each");
        let launched = testing::launched();
        let missing: Vec<_> = kernels.iter().filter(|name| !launched.contains(**name)).collect();
        assert!(missing.is_empty(), "kernels that the self-test does not run: {missing:?}");
    }
}
