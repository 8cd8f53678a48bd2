//! An opened device: its context, its kernels and the memory pools of its lanes.

use std::cell::Cell;
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use cudarc::driver::result as driver;
use cudarc::driver::sys;

use crate::error::DeviceError;
use crate::image;
use crate::libraries::{self, DeviceFacts, c_string, survey};
use crate::memory::Pool;

/// An opened GPU. Cloning shares it.
#[derive(Clone)]
pub struct Gpu(Arc<Opened>);

struct Opened {
    device: sys::CUdevice,
    context: sys::CUcontext,
    module: sys::CUmodule,
    facts: DeviceFacts,
    functions: Mutex<HashMap<String, Function>>,
    pools: Mutex<Vec<Weak<Pool>>>,
    /// Bytes that all pools hold, and the most that they ever held.
    taken_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

#[derive(Clone, Copy)]
struct Function {
    raw: sys::CUfunction,
    /// Shared memory that it may have so far; more than the default must be asked for.
    shared_bytes: u32,
}

/// Free memory of the first GPU in bytes, without compiling kernels for it; none if it cannot be asked for.
#[must_use]
pub fn free_bytes() -> Option<u64> {
    if survey().problem.is_some() {
        return None;
    }
    let device = driver::device::get(0).ok()?;
    // SAFETY: `device` was returned by the driver. The context stays retained to the end of the process, as threads may
    // have it current.
    let free = unsafe {
        let context = driver::primary_ctx::retain(device).ok()?;
        driver::ctx::set_current(context).ok()?;
        driver::mem_get_info().ok()?.0
    };
    Some(free as u64)
}

/// Shared memory that every kernel may have without asking.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

// SAFETY: context, module and functions of the driver may be used by any thread that makes the context current.
unsafe impl Send for Opened {}
// SAFETY: as above; the driver locks where it must.
unsafe impl Sync for Opened {}

thread_local! {
    /// The context that this thread made current last, as an address.
    static CURRENT: Cell<usize> = const { Cell::new(0) };
}

impl Gpu {
    /// Opens the first GPU, and compiles the kernels for it unless they are cached.
    ///
    /// # Errors
    /// [`DeviceError::Missing`] if the machine has none that can be used, else what failed.
    pub fn open() -> Result<Self, DeviceError> {
        if let Some(problem) = &survey().problem {
            return Err(DeviceError::Missing(problem.clone()));
        }
        let facts = libraries::facts(0)?;
        let failed = |error| DeviceError::driver("opening the device", error);
        let device = driver::device::get(0).map_err(failed)?;
        // SAFETY: `device` was returned by the driver; the context is released when the last clone is dropped.
        let context = unsafe { driver::primary_ctx::retain(device) }.map_err(failed)?;
        let mut opened = Opened {
            device,
            context,
            module: std::ptr::null_mut(),
            facts,
            functions: Mutex::default(),
            pools: Mutex::default(),
            taken_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        };
        opened.enter()?;
        let image = image::image(opened.facts.compute_capability)?;
        // SAFETY: the image is a whole cubin of NVRTC, or one from the cache with the right checksum.
        opened.module = unsafe { driver::module::load_data(image.as_ptr().cast()) }.map_err(failed)?;
        Ok(Gpu(Arc::new(opened)))
    }

    /// What the device is.
    #[must_use]
    pub fn facts(&self) -> &DeviceFacts {
        &self.0.facts
    }

    /// Bytes that all pools hold.
    #[must_use]
    pub fn taken_bytes(&self) -> u64 {
        self.0.taken_bytes.load(Ordering::Relaxed)
    }

    /// The most bytes that all pools have ever held together.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak_bytes.load(Ordering::Relaxed)
    }

    /// Counts what a pool has taken from the driver.
    pub(crate) fn count_taken(&self, bytes: u64) {
        let now = self.0.taken_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak_bytes.fetch_max(now, Ordering::Relaxed);
    }

    /// Counts what a pool has given back.
    pub(crate) fn count_given_back(&self, bytes: u64) {
        self.0.taken_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Makes the context current on this thread.
    pub(crate) fn enter(&self) -> Result<(), DeviceError> {
        self.0.enter()
    }

    pub(crate) fn add_pool(&self, pool: &Arc<Pool>) {
        let mut pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|pool| pool.strong_count() > 0);
        pools.push(Arc::downgrade(pool));
    }

    fn pools(&self) -> Vec<Arc<Pool>> {
        let pools = self.0.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).collect()
    }

    /// Gives the free blocks of all pools back to the driver.
    pub(crate) fn trim(&self) {
        self.pools().iter().for_each(|pool| pool.trim());
    }

    /// A kernel that may have `shared_bytes` of dynamic shared memory.
    pub(crate) fn function(&self, name: &str, shared_bytes: u32) -> Result<sys::CUfunction, DeviceError> {
        let mut functions = self.0.functions.lock().unwrap_or_else(PoisonError::into_inner);
        let mut function = match functions.get(name) {
            Some(function) => *function,
            None => {
                // SAFETY: the module is loaded.
                let raw = unsafe { driver::module::get_function(self.0.module, c_string(name)?) };
                let failed = |error| DeviceError::driver("looking a kernel up", error);
                Function { raw: raw.map_err(failed)?, shared_bytes: DEFAULT_SHARED_BYTES }
            }
        };
        if shared_bytes > function.shared_bytes {
            let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function is of a loaded module.
            unsafe { driver::function::set_function_attribute(function.raw, attribute, shared_bytes as i32) }
                .map_err(|error| DeviceError::driver("asking for shared memory", error))?;
            function.shared_bytes = shared_bytes;
        }
        functions.insert(name.to_owned(), function);
        Ok(function.raw)
    }
}

impl Opened {
    fn enter(&self) -> Result<(), DeviceError> {
        let context = self.context as usize;
        if CURRENT.get() == context {
            return Ok(());
        }
        // SAFETY: the context is retained while `self` lives.
        unsafe { driver::ctx::set_current(self.context) }
            .map_err(|error| DeviceError::driver("entering the context", error))?;
        CURRENT.set(context);
        Ok(())
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: pools and streams hold clones of the `Gpu`, so nothing uses the module any more.
        unsafe {
            if !self.module.is_null() && self.enter().is_ok() {
                let _ = driver::module::unload(self.module);
            }
            let _ = driver::primary_ctx::release(self.device);
        }
    }
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Gpu({})", self.0.facts.name)
    }
}
