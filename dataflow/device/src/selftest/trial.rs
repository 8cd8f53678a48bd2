//! What checks share: vectors on the device, and how far results are off.

use std::cell::RefCell;

use half::bf16;

use super::Outcome;
use crate::error::DeviceError;
use crate::memory::{Act, Element, Mem};
use crate::stream::{Precision, Stream};
use crate::twins::attention::error;

/// Relative error of rounding to bf16, to the nearest.
const BF16: f64 = 1.0 / 256.0;

/// A stream on which operations are tried.
pub(super) struct Trial<'a> {
    pub(super) stream: &'a Stream,
    pub(super) precision: &'static str,
    pub(super) outcomes: RefCell<Vec<Outcome>>,
}

impl Trial<'_> {
    fn is_bf16(&self) -> bool {
        self.stream.precision() == Precision::Bf16
    }

    /// `values` as an activation.
    pub(super) fn act(&self, values: &[f32]) -> Act {
        if !self.is_bf16() {
            return Act::F32(self.stream.upload(values));
        }
        Act::Bf16(self.stream.upload(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>()))
    }

    /// `values` as an activation holds them.
    pub(super) fn rounded(&self, values: &[f32]) -> Vec<f32> {
        values.iter().map(|v| if self.is_bf16() { bf16::from_f32(*v).to_f32() } else { *v }).collect()
    }

    /// Room for a result, with NaN in it, which shows what is not written.
    pub(super) fn nan(&self, len: usize) -> Mem<f32> {
        self.stream.upload(&vec![f32::NAN; len])
    }

    /// The same for an activation.
    pub(super) fn nan_act(&self, len: usize) -> Act {
        self.act(&vec![f32::NAN; len])
    }

    /// The same in f64.
    pub(super) fn nan_wide(&self, len: usize) -> Mem<f64> {
        self.stream.upload(&vec![f64::NAN; len])
    }

    /// The values of a vector.
    pub(super) fn read<T: Element>(&self, of: &Mem<T>) -> Result<Vec<T>, DeviceError> {
        self.stream.download(of.view())
    }

    /// The values of an activation.
    pub(super) fn read_act(&self, of: &Act) -> Result<Vec<f32>, DeviceError> {
        Ok(match of {
            Act::F32(values) => self.read(values)?,
            Act::Bf16(values) => self.read(values)?.iter().map(|v| v.to_f32()).collect(),
        })
    }

    /// Keeps the outcome of an operation that is furthest from passing.
    fn note(&self, operation: &'static str, error: f64, limit: f64, num_values: usize) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        let mut outcomes = self.outcomes.borrow_mut();
        let Some(known) = outcomes.iter_mut().find(|known| known.operation == operation) else {
            outcomes.push(Outcome { operation, precision: self.precision, error, limit, num_values });
            return;
        };
        known.num_values += num_values;
        let share = |error: f64, limit: f64| if error == 0.0 { 0.0 } else { error / limit };
        let (new, old) = (share(error, limit), share(known.error, known.limit));
        if new > old || (new == old && limit > known.limit) {
            (known.error, known.limit) = (error, limit);
        }
    }

    /// Values beside the largest of their result, or 1 if that is larger.
    pub(super) fn close(&self, operation: &'static str, got: &[f32], want: &[f64], limit: f64) {
        let got: Vec<f64> = got.iter().map(|v| f64::from(*v)).collect();
        self.close_wide(operation, &got, want, limit);
    }

    /// The same in f64.
    pub(super) fn close_wide(&self, operation: &'static str, got: &[f64], want: &[f64], limit: f64) {
        let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
        self.note(operation, largest(got, want, |_| size), limit, got.len());
    }

    /// An activation: as [`Trial::close`], or in bf16 each value beside itself, where what f32 has for an error may add
    /// a quarter to that of rounding.
    pub(super) fn close_act(
        &self,
        operation: &'static str,
        got: &Act,
        want: &[f64],
        limit: f64,
    ) -> Result<(), DeviceError> {
        let got = self.read_act(got)?;
        if !self.is_bf16() {
            self.close(operation, &got, want, limit);
            return Ok(());
        }
        let got: Vec<f64> = got.iter().map(|v| f64::from(*v)).collect();
        let size = want.iter().fold(1.0f64, |a, b| a.max(b.abs()));
        let error = largest(&got, want, |want| want.abs().max(4.0 * size * limit / BF16));
        self.note(operation, error, 1.25 * BF16, got.len());
        Ok(())
    }

    /// Values that have to be equal.
    pub(super) fn equal<T: Copy + PartialEq>(&self, operation: &'static str, got: &[T], want: &[T]) {
        let error = if got == want { 0.0 } else { f64::INFINITY };
        self.note(operation, error, 0.0, got.len());
    }

    /// All values beside all that is wanted, by their roots of mean squares.
    pub(super) fn near(&self, operation: &'static str, got: &[f32], want: &[f64], limit: f64) {
        self.note(operation, error(got, want), limit, got.len());
    }
}

/// The largest |got − want|/size(want); NaN if there is one.
fn largest(got: &[f64], want: &[f64], size: impl Fn(f64) -> f64) -> f64 {
    let errors = got.iter().zip(want).map(|(got, want)| (got - want).abs() / size(*want));
    errors.fold(0.0, |worst, error| if error > worst || error.is_nan() { error } else { worst })
}
