//! A stream: work in order on the device, with its own memory and its own handle of cuBLASLt.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::sync::Arc;

use cudarc::driver::result as driver;
use cudarc::driver::sys;
use half::bf16;

use crate::error::DeviceError;
use crate::gpu::Gpu;
use crate::memory::{Act, Arg, Element, Mem, Pool, View, is_careful};
use crate::product::Products;

/// How products round their inputs. Sums are f32, and everything but activations stays f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    F32,
    /// To 10 bits of mantissa inside the product.
    Tf32,
    /// Activations and weights of products are bf16.
    Bf16,
}

/// Work in order on the device, for one host thread at a time.
///
/// Enqueueing cannot fail for the caller: the first failure is kept, nothing is enqueued after it, and the next
/// [`Stream::wait`] or [`Stream::download`] returns it.
pub struct Stream {
    gpu: Gpu,
    raw: sys::CUstream,
    pool: RefCell<Arc<Pool>>,
    precision: Precision,
    products: RefCell<Products>,
    failure: RefCell<Option<DeviceError>>,
    timer: RefCell<Timer>,
    flops: Cell<u64>,
}

// SAFETY: a stream of CUDA and a handle of cuBLASLt may be used by any thread, by one at a time; a `Stream` is not
// `Sync`.
unsafe impl Send for Stream {}

/// Events around the work between two waits.
struct Timer {
    start: sys::CUevent,
    end: sys::CUevent,
    is_running: bool,
    busy_ns: u64,
}

/// Priority of a stream among those of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Before others, where both have work.
    High,
    /// After them.
    Normal,
}

impl Stream {
    /// A stream of `gpu` with a memory pool, a handle and a workspace of its own.
    ///
    /// # Errors
    /// When the device fails or lacks memory.
    pub fn new(gpu: &Gpu, precision: Precision, priority: Priority) -> Result<Self, DeviceError> {
        gpu.enter()?;
        let failed = |error| DeviceError::driver("creating a stream", error);
        let (_, high) = driver::stream::get_priority_range().map_err(failed)?;
        let priority = if priority == Priority::High { high } else { 0 };
        let kind = driver::stream::StreamKind::NonBlocking;
        let raw = driver::stream::create_with_priority(kind, priority).map_err(failed)?;
        let pool = Pool::new(gpu);
        let event = || driver::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT).map_err(failed);
        let timer = Timer { start: event()?, end: event()?, is_running: false, busy_ns: 0 };
        let products = RefCell::new(Products::new(&pool)?);
        Ok(Stream {
            gpu: gpu.clone(),
            raw,
            pool: RefCell::new(pool),
            precision,
            products,
            failure: RefCell::default(),
            timer: RefCell::new(timer),
            flops: Cell::new(0),
        })
    }

    /// The device.
    #[must_use]
    pub const fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// How products round.
    #[must_use]
    pub const fn precision(&self) -> Precision {
        self.precision
    }

    /// Shared memory that a block may have, in bytes.
    #[must_use]
    pub fn shared_limit(&self) -> usize {
        self.gpu.facts().shared_bytes
    }

    /// Bytes that the stream's pool holds.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.pool.borrow().taken_bytes()
    }

    /// Device time between the first enqueued work and each wait, in ns, since the last call.
    pub fn busy_ns(&self) -> u64 {
        std::mem::take(&mut self.timer.borrow_mut().busy_ns)
    }

    /// Operations of the products that were enqueued since the last call, those of attention included: Σ 2mnk. What is
    /// computed again to save memory is not counted.
    pub fn flops(&self) -> u64 {
        self.flops.take()
    }

    /// The operations that `work` counts, which are not counted yet.
    pub(crate) fn flops_of<T>(&self, work: impl FnOnce() -> T) -> (T, u64) {
        let before = self.flops.get();
        let done = work();
        (done, self.flops.replace(before) - before)
    }

    /// Counts operations.
    pub(crate) fn count_flops(&self, flops: u64) {
        self.flops.set(self.flops.get() + flops);
    }

    /// Counts `num` products m × n × k.
    pub(crate) fn count_products(&self, num: usize, [m, n, k]: [usize; 3]) {
        self.count_flops(2 * num as u64 * m as u64 * n as u64 * k as u64);
    }

    /// Runs `enqueue` unless something has failed, with the context current; keeps its error.
    pub(crate) fn enqueue(&self, work: impl FnOnce(sys::CUstream) -> Result<(), DeviceError>) {
        if self.failure.borrow().is_some() {
            return;
        }
        let outcome = self.gpu.enter().and_then(|()| self.start_timer()).and_then(|()| work(self.raw));
        if let Err(error) = outcome {
            *self.failure.borrow_mut() = Some(error);
        }
    }

    /// Takes memory from another pool from now on; the one before.
    pub(crate) fn swap_pool(&self, pool: Arc<Pool>) -> Arc<Pool> {
        self.pool.replace(pool)
    }

    /// Calls the driver whatever has failed before.
    pub(crate) fn with_raw<T>(&self, call: impl FnOnce(sys::CUstream) -> T) -> T {
        call(self.raw)
    }

    /// Keeps a failure, unless there is one.
    pub(crate) fn fail(&self, error: DeviceError) {
        self.failure.borrow_mut().get_or_insert(error);
    }

    fn start_timer(&self) -> Result<(), DeviceError> {
        let mut timer = self.timer.borrow_mut();
        if !timer.is_running {
            timer.is_running = true;
            // SAFETY: event and stream are alive.
            unsafe { driver::event::record(timer.start, self.raw) }
                .map_err(|error| DeviceError::driver("recording an event", error))?;
        }
        Ok(())
    }

    /// Whether something has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// An uninitialised vector. Empty memory, and a kept failure, where there is none left.
    #[must_use]
    pub fn take<T: Element>(&self, len: usize) -> Mem<T> {
        if len == 0 || self.has_failed() {
            return Mem::new(None, len);
        }
        let taken = self.pool.borrow().take((len * size_of::<T>()) as u64);
        match taken {
            Ok(block) => {
                let memory = Mem::new(Some(block), len);
                if is_careful() {
                    self.fill_with_nan(memory.view());
                }
                memory
            }
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                Mem::new(None, len)
            }
        }
    }

    /// An uninitialised activation in the type of the stream's precision.
    #[must_use]
    pub fn act(&self, len: usize) -> Act {
        match self.precision {
            Precision::F32 | Precision::Tf32 => Act::F32(self.take(len)),
            Precision::Bf16 => Act::Bf16(self.take::<bf16>(len)),
        }
    }

    /// A vector of zeros.
    #[must_use]
    pub fn zeros<T: Element>(&self, len: usize) -> Mem<T> {
        let values = self.take(len);
        self.fill_zero(values.view());
        values
    }

    /// Shows whoever reads a vector before it is written; a block that is used again would hold numbers.
    fn fill_with_nan<T: Element>(&self, of: View<'_, T>) {
        self.enqueue(|stream| {
            // SAFETY: the range lies in a live block of a pool.
            unsafe { driver::memset_d8_async(of.pointer, 0xff, of.size_bytes(), stream) }
                .map_err(|error| DeviceError::driver("filling memory", error))
        });
    }

    /// Sets all bits to zero.
    pub fn fill_zero<T: Element>(&self, of: View<'_, T>) {
        if of.is_empty() {
            return;
        }
        self.enqueue(|stream| {
            // SAFETY: the range lies in a live block of a pool.
            unsafe { driver::memset_d8_async(of.pointer, 0, of.size_bytes(), stream) }
                .map_err(|error| DeviceError::driver("filling memory", error))
        });
    }

    /// A copy of host values. They are read before it returns.
    #[must_use]
    pub fn upload<T: Element>(&self, values: &[T]) -> Mem<T> {
        let to = self.take(values.len());
        if !values.is_empty() {
            self.enqueue(|stream| {
                // SAFETY: the block is as long as the values. Pageable memory has been read when the call returns.
                unsafe { driver::memcpy_htod_async(to.view().pointer, values, stream) }
                    .map_err(|error| DeviceError::driver("uploading", error))
            });
        }
        to
    }

    /// A copy in host memory; waits for the stream.
    ///
    /// # Errors
    /// The first failure of the stream.
    pub fn download<T: Element>(&self, of: View<'_, T>) -> Result<Vec<T>, DeviceError> {
        let mut values: Vec<T> = Vec::with_capacity(of.len());
        if !of.is_empty() {
            self.enqueue(|stream| {
                // SAFETY: all bits are valid for an `Element`, and the slice is not read before the wait below.
                let to = unsafe {
                    std::ptr::write_bytes(values.as_mut_ptr(), 0, of.len());
                    values.set_len(of.len());
                    &mut values[..]
                };
                // SAFETY: the range lies in a live block; the host slice outlives the wait below.
                unsafe { driver::memcpy_dtoh_async(to, of.pointer, stream) }
                    .map_err(|error| DeviceError::driver("downloading", error))
            });
        }
        self.wait()?;
        Ok(values)
    }

    /// Copies values within the device.
    pub fn copy<T: Element>(&self, to: View<'_, T>, from: View<'_, T>) {
        assert_eq!(to.len(), from.len(), "a copy needs equal lengths");
        if to.is_empty() {
            return;
        }
        self.enqueue(|stream| {
            // SAFETY: both ranges lie in live blocks and are equally long.
            unsafe { driver::memcpy_dtod_async(to.pointer, from.pointer, from.size_bytes(), stream) }
                .map_err(|error| DeviceError::driver("copying", error))
        });
    }

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// The first failure since the last call; afterwards the stream works again if the device does.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.gpu.enter()?;
        let mut timer = self.timer.borrow_mut();
        let is_timed = std::mem::take(&mut timer.is_running);
        // SAFETY: events and stream are alive, and nothing is being captured.
        let waited = unsafe {
            let recorded = if is_timed { driver::event::record(timer.end, self.raw) } else { Ok(()) };
            recorded.and_then(|()| driver::stream::synchronize(self.raw))
        };
        if let Some(failure) = self.failure.borrow_mut().take() {
            return Err(failure);
        }
        waited.map_err(|error| DeviceError::driver("waiting for the stream", error))?;
        if is_timed {
            // SAFETY: both events have been recorded and have happened.
            let ms = unsafe { driver::event::elapsed(timer.start, timer.end) }.unwrap_or(0.0);
            timer.busy_ns += (f64::from(ms) * 1e6) as u64;
        }
        Ok(())
    }

    /// Enqueues a kernel. `args` must be as the kernel declares them; each wrapper in [`ops`](crate::ops) sees to it.
    pub(crate) fn launch(&self, kernel: &str, grid: [u32; 3], threads: u32, shared_bytes: u32, args: &[Arg]) {
        #[cfg(any(test, feature = "testing"))]
        crate::testing::check_arguments(kernel, args);
        self.enqueue(|stream| {
            let function = self.gpu.function(kernel, shared_bytes)?;
            let mut places: Vec<*mut std::ffi::c_void> = args.iter().map(Arg::place).collect();
            // SAFETY: the arguments fit the kernel's declaration, the lengths behind their pointers were checked by the
            // wrapper, and all blocks stay reserved for this stream until later work on it.
            unsafe {
                let grid = (grid[0], grid[1], grid[2]);
                driver::launch_kernel(function, grid, (threads, 1, 1), shared_bytes, stream, &mut places)
            }
            .map_err(|error| DeviceError::driver("launching a kernel", error))
        });
    }

    /// The products of the stream.
    pub(crate) fn products(&self) -> std::cell::RefMut<'_, Products> {
        self.products.borrow_mut()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({:?}, {:?})", self.gpu, self.precision)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.gpu.enter().is_err() {
            return;
        }
        let timer = self.timer.get_mut();
        // SAFETY: nobody else has them. Failures mean a lost device, where there is nothing to free.
        unsafe {
            let _ = driver::stream::synchronize(self.raw);
            let _ = driver::event::destroy(timer.start);
            let _ = driver::event::destroy(timer.end);
            let _ = driver::stream::destroy(self.raw);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::AttentionShape;
    use crate::product::{Matrix, Product};
    use crate::testing::gpu;

    #[test]
    fn operations_of_products_and_attention_are_counted_once() {
        let stream = Stream::new(&gpu(), Precision::F32, Priority::Normal).unwrap();
        let of = |len| stream.zeros::<f32>(len);
        let (a, b, out) = (of(15), of(20), of(12));
        stream.product(&Product {
            out: out.view().into(),
            a: Matrix::of(a.view()),
            b: Matrix::of(b.view()),
            shape: [3, 4, 5],
            bias: None,
            accumulate: false,
        });
        assert_eq!((stream.flops(), stream.flops()), (2 * 3 * 4 * 5, 0), "since the last call");
        let shape = AttentionShape { batch: 2, tokens: 5, heads: 3, head_dim: 8, queries: 1 };
        let one = 2 * 2 * 3 * 5 * 8;
        let (qkv, dqkv, y, dy, lse) = (of(720), of(720), of(48), of(48), of(6));
        let [qkv, dqkv, y, dy] = [&qkv, &dqkv, &y, &dy].map(|values| values.view().into());
        stream.attention(y, lse.view(), qkv, &shape);
        assert_eq!(stream.flops(), 2 * one);
        stream.attention_grad(dqkv, dy, y, qkv, lse.view(), &shape);
        assert_eq!(stream.flops(), 4 * one);
        stream.attention_tangent(y, dy, qkv, dqkv, &shape);
        assert_eq!(stream.flops(), 6 * one);
        stream.wait().unwrap();
    }

    /// Other tests use the same device.
    #[test]
    fn the_peak_of_memory_stays_when_pools_have_gone() {
        let gpu = gpu();
        let stream = Stream::new(&gpu, Precision::F32, Priority::Normal).unwrap();
        let before = stream.taken_bytes();
        let values = stream.take::<f32>(1 << 20);
        let taken = stream.taken_bytes();
        assert_eq!(taken - before, 4 << 20);
        assert!(gpu.taken_bytes() >= taken && gpu.peak_bytes() >= taken);
        drop(values);
        drop(stream);
        assert!(gpu.peak_bytes() >= taken);
    }
}
