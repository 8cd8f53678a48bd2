//! Tensors on the GPU, and the gradients that arrive at them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use mlomae_device::{Act, ActView, Mem, Precision, Stream, View, bf16};

/// Which patches of a batch are visible, on the device; see [`TokenOrder`](crate::engine::TokenOrder).
#[derive(Clone, Debug)]
pub struct GpuOrder {
    /// Patches of an image.
    pub num_patches: usize,
    /// Visible patches of an image.
    pub num_visible: usize,
    /// `[batch, visible]`.
    pub kept: Mem<u32>,
    /// `[batch, L]`.
    pub rank: Mem<u32>,
}

/// A tensor `[rows, columns]`, row-major.
#[derive(Clone, Debug)]
pub struct GpuTensor {
    values: Arc<Values>,
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Where its gradient is on the record; none if no gradient flows through it.
    pub(super) slot: Option<usize>,
}

#[derive(Debug)]
enum Values {
    Activation(Act),
    Residual {
        state: Mutex<State>,
        /// Mean and 1/standard deviation of each row, once a layer norm has read it.
        stats: OnceLock<Mem<f32>>,
    },
}

/// A residual, perhaps with a sum that is not done yet.
#[derive(Clone, Debug)]
enum State {
    Ready(Mem<f32>),
    Pending(Mem<f32>, Act),
}

impl GpuTensor {
    pub(super) fn activation(values: Act, rows: usize, columns: usize, slot: Option<usize>) -> Self {
        GpuTensor { values: Arc::new(Values::Activation(values)), rows, columns, slot }
    }

    pub(super) fn residual(values: Mem<f32>, rows: usize, columns: usize, slot: Option<usize>) -> Self {
        Self::of(State::Ready(values), rows, columns, slot)
    }

    /// `base + delta`, summed by whoever reads it first.
    pub(super) fn pending(base: Mem<f32>, delta: Act, rows: usize, columns: usize, slot: Option<usize>) -> Self {
        Self::of(State::Pending(base, delta), rows, columns, slot)
    }

    fn of(state: State, rows: usize, columns: usize, slot: Option<usize>) -> Self {
        let values = Values::Residual { state: Mutex::new(state), stats: OnceLock::new() };
        GpuTensor { values: Arc::new(values), rows, columns, slot }
    }

    /// Whether it belongs to the residual stream (f32) rather than to the activations.
    pub(super) fn is_residual(&self) -> bool {
        matches!(*self.values, Values::Residual { .. })
    }

    /// The values as input of a product.
    #[must_use]
    pub fn act(&self, stream: &Stream) -> Act {
        match &*self.values {
            Values::Activation(values) => values.clone(),
            Values::Residual { .. } => {
                let full = self.full(stream);
                if stream.precision() != Precision::Bf16 {
                    return Act::F32(full);
                }
                let low = stream.take(full.len());
                stream.cast_bf16(low.view(), full.view());
                Act::Bf16(low)
            }
        }
    }

    /// The values in f32.
    #[must_use]
    pub fn full(&self, stream: &Stream) -> Mem<f32> {
        match &*self.values {
            Values::Activation(Act::F32(values)) => values.clone(),
            Values::Activation(low) => {
                let full = stream.take(low.len());
                stream.widen(full.view(), low.view());
                full
            }
            Values::Residual { state, .. } => {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let sum = match &*state {
                    State::Ready(values) => return values.clone(),
                    State::Pending(base, delta) => {
                        let sum = stream.take(base.len());
                        stream.add_act(sum.view(), base.view(), delta.view());
                        sum
                    }
                };
                *state = State::Ready(sum.clone());
                sum
            }
        }
    }

    /// Writes the layer norm to `y`; a sum that is pending is done in the same sweep. Returns the values and their
    /// statistics.
    pub(super) fn normed(
        &self,
        stream: &Stream,
        y: ActView<'_>,
        gamma: View<'_, f32>,
        beta: View<'_, f32>,
    ) -> (Mem<f32>, Mem<f32>) {
        let stats = stream.take(2 * self.rows);
        let Values::Residual { state, stats: known } = &*self.values else {
            let full = self.full(stream);
            stream.layer_norm(y, stats.view(), full.view(), gamma, beta);
            return (full, stats);
        };
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let values = match &*state {
            State::Ready(values) => {
                stream.layer_norm(y, stats.view(), values.view(), gamma, beta);
                values.clone()
            }
            State::Pending(base, delta) => {
                let sum = stream.take(base.len());
                stream.add_layer_norm(sum.view(), y, stats.view(), base.view(), delta.view(), gamma, beta);
                sum
            }
        };
        *state = State::Ready(values.clone());
        (values, known.get_or_init(|| stats).clone())
    }

    /// Mean and 1/standard deviation of each row, if a layer norm has read the tensor.
    pub(super) fn stats(&self) -> Option<Mem<f32>> {
        match &*self.values {
            Values::Residual { stats, .. } => stats.get().cloned(),
            Values::Activation(_) => None,
        }
    }
}

/// A gradient of a tensor.
#[derive(Clone, Debug)]
pub enum Cotangent {
    /// Of an activation.
    Act(Act),
    /// Of the residual stream, perhaps with a copy for products.
    Residual(Mem<f32>, Option<Mem<bf16>>),
}

impl Cotangent {
    pub(super) fn into_act(self, stream: &Stream) -> Act {
        match self {
            Cotangent::Act(values) => values,
            Cotangent::Residual(_, Some(low)) if stream.precision() == Precision::Bf16 => Act::Bf16(low),
            Cotangent::Residual(full, _) if stream.precision() == Precision::Bf16 => {
                let low = stream.take(full.len());
                stream.cast_bf16(low.view(), full.view());
                Act::Bf16(low)
            }
            Cotangent::Residual(full, _) => Act::F32(full),
        }
    }

    pub(super) fn into_residual(self, stream: &Stream) -> (Mem<f32>, Option<Mem<bf16>>) {
        match self {
            Cotangent::Residual(full, low) => (full, low),
            Cotangent::Act(Act::F32(full)) => (full, None),
            Cotangent::Act(Act::Bf16(low)) => {
                let full = stream.take(low.len());
                stream.widen(full.view(), ActView::Bf16(low.view()));
                (full, Some(low))
            }
        }
    }
}
