//! Device memory: pools of blocks, shared handles, and views of ranges.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use cudarc::driver::result as driver;
use half::bf16;

use crate::error::DeviceError;
use crate::gpu::Gpu;

/// A type of values in device memory: plain old data without padding, for which all bits are valid.
pub trait Element: Copy + Send + Sync + 'static + sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty),*) => { $(impl sealed::Sealed for $t {} impl Element for $t {})* };
}
elements!(f32, f64, u32, u8, bf16);

/// Blocks start and end at multiples of this, so that every vector is aligned for 16-byte loads.
const ALIGN: u64 = 512;

/// Whether mistakes with memory are to be shown rather than hidden: blocks are as long as what is asked for, so that an
/// overrun leaves them, and begin as NaN. In this crate's tests, and where `MLOMAE_GPU_CAREFUL=1`.
pub(crate) fn is_careful() -> bool {
    static CAREFUL: OnceLock<bool> = OnceLock::new();
    *CAREFUL.get_or_init(|| cfg!(test) || std::env::var("MLOMAE_GPU_CAREFUL").is_ok_and(|value| value == "1"))
}

/// The blocks of one lane. A block that is given back is used again for the next request of its size, lowest address
/// first, so that equal sequences of requests get equal addresses.
///
/// A block may be given back while kernels that use it are still enqueued: what is enqueued later on the same stream
/// runs after them. A block that other lanes have seen comes back when their calls have ended, and calls end by a wait.
pub(crate) struct Pool {
    gpu: Gpu,
    free: Mutex<BTreeMap<u64, BTreeSet<u64>>>,
    taken_bytes: AtomicU64,
}

impl Pool {
    pub(crate) fn new(gpu: &Gpu) -> Arc<Self> {
        let pool = Arc::new(Pool { gpu: gpu.clone(), free: Mutex::default(), taken_bytes: AtomicU64::new(0) });
        gpu.add_pool(&pool);
        pool
    }

    /// Bytes that the pool holds, in use or not.
    pub(crate) fn taken_bytes(&self) -> u64 {
        self.taken_bytes.load(Ordering::Relaxed)
    }

    fn reuse(&self, size: u64) -> Option<u64> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.get_mut(&size)?.pop_first()
    }

    /// A block of at least `bytes`. Short of memory, free blocks of all pools go back to the driver first.
    pub(crate) fn take(self: &Arc<Self>, bytes: u64) -> Result<Block, DeviceError> {
        let size = if is_careful() { bytes.max(1) } else { bytes.max(1).next_multiple_of(ALIGN) };
        let pointer = match self.reuse(size) {
            Some(pointer) => pointer,
            None => self.allocate(size)?,
        };
        Ok(Block { pool: self.clone(), pointer, size })
    }

    fn allocate(&self, size: u64) -> Result<u64, DeviceError> {
        self.gpu.enter()?;
        // SAFETY: the context is current.
        let try_once = || unsafe { driver::malloc_sync(size as usize) };
        let pointer = try_once().or_else(|_| {
            self.gpu.trim();
            try_once()
        });
        let pointer = pointer.map_err(|error| match error.0 {
            cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                DeviceError::Memory { wanted_bytes: size, taken_bytes: self.gpu.taken_bytes() }
            }
            _ => DeviceError::driver("allocating memory", error),
        })?;
        self.taken_bytes.fetch_add(size, Ordering::Relaxed);
        self.gpu.count_taken(size);
        Ok(pointer)
    }

    /// Gives the free blocks back to the driver, which waits for the device.
    pub(crate) fn trim(&self) {
        let free = std::mem::take(&mut *self.free.lock().unwrap_or_else(PoisonError::into_inner));
        for (size, blocks) in free {
            for pointer in blocks {
                // SAFETY: the block is from `malloc_sync` and nobody holds it; the driver waits for kernels that use
                // it. A failure means a lost device, whose memory is gone anyway.
                let _ = unsafe { driver::free_sync(pointer) };
                self.taken_bytes.fetch_sub(size, Ordering::Relaxed);
                self.gpu.count_given_back(size);
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.gpu.enter().is_ok() {
            self.trim();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} bytes)", self.taken_bytes())
    }
}

/// A block of a pool; dropping gives it back.
#[derive(Debug)]
pub(crate) struct Block {
    pool: Arc<Pool>,
    pub(crate) pointer: u64,
    size: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut free = self.pool.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(self.size).or_default().insert(self.pointer);
    }
}

/// A vector in device memory. Cloning shares it; dropping the last clone gives the block back to its pool.
pub struct Mem<T> {
    /// None for an empty vector, and where taking it failed: the stream knows.
    block: Option<Arc<Block>>,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Mem<T> {
    fn clone(&self) -> Self {
        Mem { block: self.block.clone(), len: self.len, element: PhantomData }
    }
}

impl<T> fmt::Debug for Mem<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mem<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

impl<T> Default for Mem<T> {
    fn default() -> Self {
        Mem { block: None, len: 0, element: PhantomData }
    }
}

impl<T: Element> Mem<T> {
    pub(crate) fn new(block: Option<Block>, len: usize) -> Self {
        Mem { block: block.map(Arc::new), len, element: PhantomData }
    }

    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether nobody else holds the vector, so that writing it changes no snapshot.
    #[must_use]
    pub fn is_unique(&self) -> bool {
        self.block.as_ref().is_none_or(|block| Arc::strong_count(block) == 1)
    }

    /// All of it.
    #[must_use]
    pub fn view(&self) -> View<'_, T> {
        let pointer = self.block.as_ref().map_or(0, |block| block.pointer);
        View { pointer, len: self.len, of: PhantomData }
    }

    /// A range of it.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> View<'_, T> {
        self.view().slice(range)
    }
}

/// A range of a vector, for reading and, by what is enqueued, for writing.
pub struct View<'a, T> {
    pub(crate) pointer: u64,
    len: usize,
    of: PhantomData<&'a T>,
}

impl<T> Clone for View<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for View<'_, T> {}

impl<T> fmt::Debug for View<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "View<{}>[{}]", std::any::type_name::<T>(), self.len)
    }
}

impl<T: Element> View<'_, T> {
    /// Number of values.
    #[must_use]
    pub const fn len(self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len == 0
    }

    /// A range of it.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "range {range:?} of {} values", self.len);
        let pointer = if self.pointer == 0 { 0 } else { self.pointer + (range.start * size_of::<T>()) as u64 };
        View { pointer, len: range.len(), of: PhantomData }
    }

    /// Size in bytes.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        self.len * size_of::<T>()
    }

    /// The pointer as an argument of a kernel.
    #[must_use]
    pub(crate) const fn arg(self) -> Arg {
        Arg::Pointer(self.pointer)
    }
}

/// An activation, in the type that products of the stream's precision read.
#[derive(Clone, Debug)]
pub enum Act {
    /// Of f32 and tf32.
    F32(Mem<f32>),
    /// Of bf16.
    Bf16(Mem<bf16>),
}

impl Act {
    /// Number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it.
    #[must_use]
    pub fn view(&self) -> ActView<'_> {
        match self {
            Act::F32(values) => ActView::F32(values.view()),
            Act::Bf16(values) => ActView::Bf16(values.view()),
        }
    }
}

/// A range of an activation.
#[derive(Clone, Copy, Debug)]
pub enum ActView<'a> {
    /// Of f32 and tf32.
    F32(View<'a, f32>),
    /// Of bf16.
    Bf16(View<'a, bf16>),
}

impl ActView<'_> {
    /// Number of values.
    #[must_use]
    pub const fn len(self) -> usize {
        match self {
            ActView::F32(values) => values.len(),
            ActView::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// A range of it.
    #[must_use]
    pub fn slice(self, range: Range<usize>) -> Self {
        match self {
            ActView::F32(values) => ActView::F32(values.slice(range)),
            ActView::Bf16(values) => ActView::Bf16(values.slice(range)),
        }
    }

    /// The pointer as an argument of a kernel.
    #[must_use]
    pub(crate) const fn arg(self) -> Arg {
        match self {
            ActView::F32(values) => values.arg(),
            ActView::Bf16(values) => values.arg(),
        }
    }

    /// The ending of a kernel's name for this type.
    #[must_use]
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            ActView::F32(_) => "f32",
            ActView::Bf16(_) => "bf16",
        }
    }
}

impl<'a> From<View<'a, f32>> for ActView<'a> {
    fn from(view: View<'a, f32>) -> Self {
        ActView::F32(view)
    }
}

impl<'a> From<View<'a, bf16>> for ActView<'a> {
    fn from(view: View<'a, bf16>) -> Self {
        ActView::Bf16(view)
    }
}

/// An argument of a kernel, of the size that the kernel declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Arg {
    Pointer(u64),
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
}

impl Arg {
    /// A null pointer.
    pub(crate) const NONE: Arg = Arg::Pointer(0);

    /// Where the value lies, for the driver.
    pub(crate) fn place(&self) -> *mut std::ffi::c_void {
        let place: *const std::ffi::c_void = match self {
            Arg::Pointer(v) => std::ptr::from_ref(v).cast(),
            Arg::I32(v) => std::ptr::from_ref(v).cast(),
            Arg::U32(v) => std::ptr::from_ref(v).cast(),
            Arg::I64(v) => std::ptr::from_ref(v).cast(),
            Arg::F32(v) => std::ptr::from_ref(v).cast(),
            Arg::F64(v) => std::ptr::from_ref(v).cast(),
        };
        place.cast_mut()
    }
}

macro_rules! args {
    ($($t:ty => $kind:ident),*) => { $(impl From<$t> for Arg { fn from(v: $t) -> Self { Arg::$kind(v) } })* };
}
args!(i32 => I32, u32 => U32, i64 => I64, f32 => F32, f64 => F64);

impl<T: Element> From<View<'_, T>> for Arg {
    fn from(view: View<'_, T>) -> Self {
        view.arg()
    }
}

impl<T: Element> From<Option<View<'_, T>>> for Arg {
    fn from(view: Option<View<'_, T>>) -> Self {
        view.map_or(Arg::NONE, View::arg)
    }
}

impl From<ActView<'_>> for Arg {
    fn from(view: ActView<'_>) -> Self {
        view.arg()
    }
}
