//! Which products are computed, and how long each takes on the device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use half::bf16;

use crate::error::DeviceError;
use crate::gpu::Gpu;
use crate::graph::Graph;
use crate::memory::{Act, ActView, Mem};
use crate::product::{Matrix, Product};
use crate::stream::{Precision, Priority, Stream};

/// A kind of product: all that decides how long one takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProductKind {
    /// Rows, columns, and the length of the sums.
    pub shape: [usize; 3],
    /// Whether the transpose of what is stored is meant, of each factor.
    pub transposed: [bool; 2],
    /// Whether the factors are bf16; else they are f32.
    pub low_in: bool,
    /// Whether the result is bf16.
    pub low_out: bool,
    /// Whether a bias is added to each row.
    pub bias: bool,
    /// Whether it is added to what is there.
    pub accumulate: bool,
}

impl ProductKind {
    /// The kind of a product.
    pub(crate) fn of(product: &Product<'_>) -> Self {
        let is_low = |view: ActView<'_>| matches!(view, ActView::Bf16(_));
        ProductKind {
            shape: product.shape,
            transposed: [product.a.transposed, product.b.transposed],
            low_in: is_low(product.a.values),
            low_out: is_low(product.out),
            bias: product.bias.is_some(),
            accumulate: product.accumulate,
        }
    }

    /// Its operations: 2mnk.
    #[must_use]
    pub fn flops(&self) -> f64 {
        self.shape.iter().fold(2.0, |flops, &size| flops * size as f64)
    }
}

static IS_RECORDING: AtomicBool = AtomicBool::new(false);
static RECORD: Mutex<BTreeMap<ProductKind, u64>> = Mutex::new(BTreeMap::new());

/// Counts a product, if somebody wants to know.
pub(crate) fn note(product: &Product<'_>) {
    if IS_RECORDING.load(Ordering::Relaxed) && !product.out.is_empty() {
        *RECORD.lock().unwrap_or_else(PoisonError::into_inner).entry(ProductKind::of(product)).or_default() += 1;
    }
}

/// Runs `work`, and counts the products that all streams of the process enqueue meanwhile. What a graph replays is not
/// seen.
pub fn recorded<T>(work: impl FnOnce() -> T) -> (T, BTreeMap<ProductKind, u64>) {
    IS_RECORDING.store(true, Ordering::Relaxed);
    let done = work();
    IS_RECORDING.store(false, Ordering::Relaxed);
    (done, std::mem::take(&mut RECORD.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Random values, as many as the longest factor has: what a product costs depends on its bits.
fn random(stream: &Stream, len: usize, low: bool) -> Act {
    const CHUNK: usize = 1 << 18;
    let chunk = crate::twins::values(CHUNK.min(len), 1);
    fn repeated<T: crate::Element>(stream: &Stream, chunk: &[T], len: usize) -> Mem<T> {
        let (all, chunk) = (stream.take(len), stream.upload(chunk));
        for start in (0..len).step_by(CHUNK) {
            let part = start..(start + CHUNK).min(len);
            stream.copy(all.slice(part.clone()), chunk.slice(0..part.len()));
        }
        all
    }
    if low {
        let chunk: Vec<bf16> = chunk.iter().map(|value| bf16::from_f32(*value)).collect();
        return Act::Bf16(repeated(stream, &chunk, len));
    }
    Act::F32(repeated(stream, &chunk, len))
}

/// Times products on random values, `ms` milliseconds each or three runs if they take longer, and tells the seconds of
/// one. They are launched as a graph, so that launches by the host are no part of it.
///
/// # Errors
/// What failed on the device.
pub fn time_products(
    gpu: &Gpu,
    precision: Precision,
    kinds: &[ProductKind],
    ms: f64,
    tell: &mut dyn FnMut(&ProductKind, f64),
) -> Result<(), DeviceError> {
    const LEAST: f64 = 3.0;
    const MOST: f64 = 500.0;
    let stream = Stream::new(gpu, precision, Priority::Normal)?;
    for low_in in [false, true] {
        let of_type: Vec<_> = kinds.iter().filter(|kind| kind.low_in == low_in).collect();
        let longest = |len: fn(&ProductKind) -> usize| of_type.iter().map(|kind| len(kind)).max().unwrap_or(0);
        let [a, b] = [longest(|kind| kind.shape[0] * kind.shape[2]), longest(|kind| kind.shape[1] * kind.shape[2])]
            .map(|len| random(&stream, len, low_in));
        for &kind in &of_type {
            let [m, n, k] = kind.shape;
            let [out, bias] = [m * n, n].map(|len| random(&stream, len, kind.low_out));
            let product = Product {
                out: out.view(),
                a: Matrix { values: a.view().slice(0..m * k), transposed: kind.transposed[0] },
                b: Matrix { values: b.view().slice(0..k * n), transposed: kind.transposed[1] },
                shape: kind.shape,
                bias: kind.bias.then(|| bias.view()),
                accumulate: kind.accumulate,
            };
            let seconds = |num: usize| -> Result<f64, DeviceError> {
                let mut graph = Graph::new(stream.graph_pool());
                let mut busy_ns = 0;
                // As it is, captured, and replayed, which is measured.
                for _ in 0..3 {
                    stream.wait()?;
                    stream.busy_ns();
                    stream.steady(&mut graph, &[], |_| {
                        (0..num).for_each(|_| stream.product(&product));
                        Vec::new()
                    });
                    stream.wait()?;
                    busy_ns = stream.busy_ns();
                }
                Ok(busy_ns as f64 * 1e-9 / num as f64)
            };
            let one = seconds(1)?;
            let num = (ms * 1e-3 / one.max(1e-9)).clamp(LEAST, MOST);
            tell(kind, seconds(num as usize)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::gpu;

    #[test]
    fn products_are_recorded_and_timed() {
        let gpu = gpu();
        let stream = Stream::new(&gpu, Precision::Bf16, Priority::Normal).unwrap();
        let (a, b, out) = (stream.act(15), stream.act(20), stream.zeros::<f32>(12));
        let product = Product {
            out: out.view().into(),
            a: Matrix::of(a.view()),
            b: Matrix::transpose(b.view()),
            shape: [3, 4, 5],
            bias: None,
            accumulate: true,
        };
        // Other tests record none, but enqueue products meanwhile.
        let ((), seen) = recorded(|| (0..3).for_each(|_| stream.product(&product)));
        let kind = ProductKind {
            shape: [3, 4, 5],
            transposed: [false, true],
            low_in: true,
            low_out: false,
            bias: false,
            accumulate: true,
        };
        assert!((seen.get(&kind), kind.flops()) == (Some(&3), 120.0), "{seen:?}");
        stream.wait().unwrap();
        let kinds = [kind, ProductKind { low_in: false, bias: true, accumulate: false, shape: [7, 3, 2], ..kind }];
        let mut told = Vec::new();
        time_products(&gpu, Precision::Bf16, &kinds, 0.01, &mut |kind, seconds| told.push((*kind, seconds))).unwrap();
        told.sort_by_key(|(kind, _)| !kind.low_in);
        assert_eq!(told.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), kinds);
        assert!(told.iter().all(|(_, seconds)| *seconds > 0.0 && *seconds < 10.0), "{told:?}");
    }
}
